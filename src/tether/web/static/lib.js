// What the views share: elements, requests, streams, and what is chosen.

const SVG = "http://www.w3.org/2000/svg";

function made(element, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value == null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(3).filter((child) => child != null && child !== false));
  return element;
}

/** An element of HTML: h("p", {class: "note", onclick: f}, "text", other). */
export const h = (tag, props, ...children) => made(document.createElement(tag), props, children);
/** An element of SVG. */
export const s = (tag, props, ...children) => made(document.createElementNS(SVG, tag), props, children);

let numbers = 0;
/** A label with its field: [label, field]. */
export function field(words, input, note) {
  input.id ||= `field-${++numbers}`;
  return [h("label", { for: input.id }, words, note && h("span", { class: "note" }, ` ${note}`)), input];
}

export const plain = (value, digits = 3) => (value == null || !Number.isFinite(value) ? "–" : Number(value.toPrecision(digits)).toString());
export const percent = (value) => (value >= 0.0995 ? `${Math.round(100 * value)} %` : value >= 0.00095 ? `${(100 * value).toFixed(1)} %` : "< 0.1 %");
export const count = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
export const visible = (token) => token.replaceAll("\n", "⏎").replaceAll("\t", "⇥");

export function toast(text, ok = false) {
  const close = h("button", { type: "button", onclick: () => message.remove() }, "Close");
  const message = h("p", { class: ok ? "ok" : "" }, h("span", {}, text), close);
  document.getElementById("toast").replaceChildren(message);
  if (ok) setTimeout(() => message.remove(), 6000);
}

async function failed(response) {
  let text = `${response.status} ${response.statusText}`;
  try {
    text = response.headers.get("content-type")?.includes("json") ? (await response.json()).error : await response.text();
  } catch { /* the status says it */ }
  const error = new Error(text);
  error.busy = response.status === 409;
  return error;
}

export async function get(name) {
  const response = await fetch(`/api/${name}`);
  if (!response.ok) throw await failed(response);
  return response.json();
}

export async function post(name, body = {}, signal) {
  const response = await fetch(`/api/${name}`, {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal,
  });
  if (!response.ok) throw await failed(response);
  return response.json();
}

/** Every event of a stream, as it comes. */
export async function* stream(name, body, signal) {
  const response = await fetch(`/api/${name}`, {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal,
  });
  if (!response.ok) throw await failed(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) yield JSON.parse(part.slice(6));
  }
}

/** Do `work`, and say what goes wrong. */
export async function trying(work) {
  try {
    return await work();
  } catch (error) {
    if (error.name !== "AbortError") toast(error.message);
  }
}

/** One call at a time; of those that come meanwhile the last is done. */
export function latest(work) {
  let running = false, next = null;
  return async function call(...given) {
    if (running) { next = given; return; }
    running = true;
    try { await work(...given); } finally {
      running = false;
      if (next) { const then = next; next = null; call(...then); }
    }
  };
}

export function later(work, milliseconds) {
  let timer;
  return (...given) => { clearTimeout(timer); timer = setTimeout(() => work(...given), milliseconds); };
}

// --- what all views know ---------------------------------------------------------------------------------------------

export const shared = {
  state: null, // of the server: model, ledger, edits, head
  busy: null, // what the server is at, that takes long
  doing: [], // what this page waits for, that is short
  run: null, // the run of edits
  view: null,
  prompt: null, // the prompt at hand
  chosen: { kind: "recorded", log: 1.2, linear: 2, upto: null },
};

const bus = new EventTarget();
export const on = (what, work) => bus.addEventListener(what, (event) => work(event.detail));
export const tell = (what, detail) => bus.dispatchEvent(new CustomEvent(what, { detail }));

/** Do `work`; the header says `words` meanwhile. */
export async function during(words, work) {
  shared.doing.push(words);
  tell("doing");
  try { return await work(); } finally {
    shared.doing.splice(shared.doing.indexOf(words), 1);
    tell("doing");
  }
}

/** Which edits, and under which restraint, as a request says it. */
export function asked() {
  const { kind, upto } = shared.chosen;
  const restrain = kind === "recorded" ? null : kind === "none" ? "none" : `${kind}:${shared.chosen[kind]}`;
  return { restrain, upto };
}

export function inWords() {
  const { restrain, upto } = asked();
  const what = restrain === null ? `restraint as recorded` : restrain === "none" ? "no restraint" : `restraint ${restrain}`;
  return `${upto === null ? "all edits" : `edits up to ${upto}`}, ${what}`;
}

let known = []; // the events of the ledger, which only grow; of those that are known the server says which are undone

/** Every event of the ledger, in order. */
export async function events() {
  const found = await get(`events?after=${known.length}`), undone = new Set(found.undone);
  known = [...known.slice(0, found.first), ...found.events];
  for (const event of known) event.undone = undone.has(event.edit);
  return known;
}

export async function refresh() {
  shared.state = await get("state");
  tell("state");
}

// Ledger: its events with search, undo and redo, and what is done with the whole of it.
import { asked, count, events as every, field, h, inWords, on, plain, post, shared, toast, trying } from "./lib.js";

const MOST = 500; // lines that are drawn

export function ledger() {
  const search = h("input", { type: "search", name: "search", placeholder: "subject, answer, kind, number" });
  const lines = h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Events" }), found = h("p", { class: "note" });
  const outcome = h("div", { class: "outcome", "aria-live": "polite", tabindex: 0, role: "region", "aria-label": "Outcome" }, h("p", { class: "note" }, "What an action found is said here."));
  let events = [];

  const words = (event) => {
    if (event.text) return `${event.text} → ${event.target}`;
    if (event.restrain) return event.restrain;
    return `edit ${(event.edits ?? []).join(", ")}`;
  };
  const mark = (kind, edits) => trying(async () => {
    const done = await post(kind, { edits });
    const line = `${kind === "undo" ? "undid" : "redid"} edit${done.edits.length === 1 ? "" : "s"} ${done.edits.join(", ")}; ${count(done.live, "edit")} live`;
    toast(line, true);
    say(h("p", { class: "says yes" }, line), h("pre", {}, `head ${done.head}`));
    await reload();
    lines.querySelector(`[data-edit="${edits[0]}"]`)?.focus(); // the table is another one now
  });

  function draw() {
    const wanted = search.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const hits = events.filter((event) => wanted.every((word) => [event.edit, event.kind, event.undone ? "undone" : "", words(event), event.health, event.reason].join(" ").toLowerCase().includes(word)));
    found.textContent = `${hits.length} of ${count(events.length, "event")}${hits.length > MOST ? `, the last ${MOST} are shown` : ""}`;
    lines.replaceChildren(h("table", { class: "events" },
      h("thead", {}, h("tr", {}, h("th", { class: "n", scope: "col" }, "edit"), h("th", { scope: "col" }, "event"), h("th", { scope: "col" }, "what"), h("th", { class: "n opt", scope: "col" }, "loss"), h("th", { class: "opt", scope: "col" }, "health"), h("th", { scope: "col" }, h("span", { class: "note" }, "action")))),
      h("tbody", {}, hits.slice(-MOST).reverse().map((event) => h("tr", { class: event.undone ? "undone" : event.kind === "failed" ? "failed" : event.health === "alarm" ? "alarm" : event.health === "warn" ? "warn" : "" },
        h("td", { class: "n" }, event.edit ?? ""), h("td", {}, event.undone ? "undone" : event.kind),
        h("td", {}, words(event), event.reason ? h("span", { class: "note" }, ` ${event.reason}`) : null),
        h("td", { class: "n opt" }, event.loss_last == null ? "" : `${plain(event.loss_first)} → ${plain(event.loss_last)}`),
        h("td", { class: "opt" }, event.health ?? ""),
        h("td", { class: "act" }, event.kind !== "edit" ? "" : h("button", { type: "button", class: "small", "data-edit": event.edit, "aria-label": `${event.undone ? "Redo" : "Undo"} edit ${event.edit}`, onclick: () => mark(event.undone ? "redo" : "undo", [event.edit]) }, event.undone ? "Redo" : "Undo")))))));
  }

  async function reload() {
    if (shared.view !== "ledger") return;
    events = (await trying(every)) ?? events;
    draw();
  }

  const say = (...parts) => {
    outcome.replaceChildren(...parts);
    outcome.scrollIntoView({ block: "nearest" }); // it may be far from the button
  };
  const doing = (name, work) => async () => {
    say(h("p", { class: "note" }, `${name} …`));
    try { await work(); } catch (error) { say(h("p", { class: "says no" }, error.message)); }
  };

  const head = h("input", { type: "text", name: "head", placeholder: "a head you kept", spellcheck: "false" });
  const verify = doing("verifying", async () => {
    const one = await post("verify", { head: head.value.trim() });
    const since = one.events_after_head == null ? "" : `; the head you kept is found, with ${count(one.events_after_head, "event")} after it`;
    say(h("p", { class: "says yes" }, `whole: ${count(one.events, "event")}${since}`), h("pre", {}, `head ${one.head}`));
  });
  const kind = h("select", { name: "export-as" }, h("option", { value: "merged" }, "merged: a folder for transformers"), h("option", { value: "lora" }, "lora: an adapter for peft, vLLM"),
    h("option", { value: "gguf-lora" }, "gguf-lora: an adapter for llama.cpp"), h("option", { value: "gguf" }, "gguf: whole weights for llama.cpp"), h("option", { value: "mlx" }, "mlx: an adapter for mlx-lm"));
  const to = h("input", { type: "text", name: "export-to", spellcheck: "false" });
  const write = doing("exporting", async () => {
    const one = await post("export", { as: kind.value, name: to.value.trim(), ...asked() });
    say(h("p", { class: "says yes" }, `written: ${inWords()}`), h("pre", {}, one.to));
  });
  const file = h("input", { type: "file", accept: ".jsonl,.json,.txt" });
  const tests = doing("running knowledge tests", async () => {
    const one = await post("tests", { text: file.files.length ? await file.files[0].text() : null, ...asked() });
    say(h("p", { class: one.failed ? "says no" : "says yes" }, one.line),
      ...one.tests.filter((test) => !test.passed).map((test) => h("p", {}, h("b", {}, test.name ?? test.prompt.user ?? test.prompt), h("br"), test.problem, h("br"), h("span", { class: "note" }, `answer: ${test.answer}`))),
      h("a", { href: URL.createObjectURL(new Blob([one.lines], { type: "application/jsonl" })), download: "knowledge.jsonl" }, "Save these tests for tether test"));
  });
  const report = doing("measuring for the report", async () => {
    const one = await post("report", asked());
    say(h("p", { class: "says yes" }, "written"), h("pre", {}, one.report), h("a", { href: "/report", target: "_blank" }, "Open the report"));
  });
  const last = () => { const live = events.filter((event) => event.kind === "edit" && !event.undone); if (live.length) mark("undo", [live.at(-1).edit]); };

  const strength = h("input", { type: "text", name: "strength", placeholder: "as recorded", spellcheck: "false" });
  const consolidate = doing("solving all facts again at once", async () => {
    const one = await post("consolidate", { strength: strength.value.trim() });
    say(h("p", { class: "says yes" }, `edits ${one.first} to ${one.last} stand for ${count(one.replaced, "edit")}, λ ${plain(one.strength)}`),
      h("p", {}, `before: ${one.before}`), h("p", {}, `now: ${one.said}`), h("p", { class: "note" }, "Undo all of them to go back."));
    await reload();
  });
  const repair = doing("making lost edits anew", async () => {
    const one = await post("repair", {});
    say(h("p", { class: one.left.length ? "says no" : "says yes" }, `${count(one.made, "edit")} made anew; ${one.said}`), one.left.map((line) => h("p", {}, line)));
    await reload();
  });
  const room = doing("looking for room", async () => {
    const one = await post("headroom", asked());
    const percent = (found) => found ? `${plain(found.value, 1)} %` : "–";
    const table = (head, rows) => h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": head[0] }, h("table", {},
      h("thead", {}, h("tr", {}, head.map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell) => h("td", {}, cell)))))));
    say(h("p", {}, "Directions that the keys of the live edits take, and what the sum adds to the output there and at other subjects."),
      table(["weight", "directions", "used", "left unwritten"], one.rooms.map((r) => [r.weight, `${r.rank} of ${r.size}`, `${plain(r.used, 1)} %`, `${plain(r.left, 1)} %`])),
      table(["relation", "edits", "at the edited", "at others"], one.relations.map((r) => [r.relation, r.edits, percent(r.edited), percent(r.bystanders)])));
  });

  // What is done with the whole ledger: [title, fields, button, work]. More is one line more.
  const actions = [
    ["Export", [field("As", kind), field("Folder", to, "made beside the ledger")], "Export", write],
    ["Verify", [field("Head", head, "optional")], "Verify", verify],
    ["Knowledge tests", [field("A file of tests", file, "without one: made of the facts")], "Run", tests],
    ["Report", [], "Measure and write", report],
    ["Headroom", [], "Look", room],
    ["Repair what is lost", [h("p", { class: "note" }, "Edits whose answer no longer comes first are undone and made again, as new edits of the ledger.")], "Repair", repair],
    ["Consolidate", [field("Strength λ", strength, "a number, or auto"), h("p", { class: "note" }, "New edits, all solved at once, stand for all live ones, which are undone.")], "Solve all again", consolidate],
  ];
  const buttons = [], model = h("p", { class: "note" }), chosen = h("p", { class: "note" });
  const cards = actions.map(([title, fields, name, work]) => {
    const button = h("button", { type: "button", onclick: work }, name);
    buttons.push(button);
    return h("section", { class: "card", "aria-label": title }, h("h3", {}, title), fields, h("div", { class: "row" }, button));
  });
  function shown() {
    const state = shared.state;
    for (const button of buttons) button.disabled = !state?.made || Boolean(shared.busy);
    undo.disabled = !state?.live || Boolean(shared.busy);
    chosen.textContent = `Export, tests and report take: ${inWords()} (chosen in Health or Ask).`;
    if (state?.made) model.textContent = `${count(state.live, "edit")} live of ${state.edits}, ${state.method} on ${state.model}, head ${state.head.slice(0, 12)}`;
    const name = state?.ledger?.split("/").at(-1) ?? "trial";
    to.placeholder = `${name}-${{ merged: "merged", lora: "adapter", "gguf-lora": "gguf-adapter", gguf: "gguf", mlx: "mlx-adapter" }[kind.value]}`;
  }
  const undo = h("button", { type: "button", onclick: last }, "Undo the last edit");
  search.addEventListener("input", draw);
  kind.addEventListener("change", shown);
  for (const what of ["state", "busy", "chosen"]) on(what, shown);
  on("view", reload);
  on("head", reload);
  shown();
  return h("div", { class: "columns side" },
    h("section", { class: "card" }, h("h3", {}, "Events, the newest first"), model,
      h("div", { class: "row even" }, h("div", { class: "grow" }, field("Search", search)), undo), found, lines),
    h("div", { class: "stack" }, chosen, h("section", { class: "card" }, h("h3", {}, "Outcome"), outcome), cards));
}

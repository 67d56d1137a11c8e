// Edit: facts by hand or from a file, and the run.
import { count, field, h, later, latest, on, plain, post, shared, toast, trying, visible } from "./lib.js";
import { curves, nearEdits } from "./charts.js";

export function edit() {
  const input = (name, placeholder) => h("input", { type: "text", name, placeholder, spellcheck: "false", autocomplete: "off" });
  const subject = input("subject", "e.g. Eiffel Tower"), prompt = input("fact-prompt", "e.g. {} is located in the city of");
  const target = input("target", "e.g. Rome"), old = input("target-true", "e.g. Paris");
  const phrasings = h("div", {}), checked = h("div", { class: "checked", "aria-live": "polite" });
  const add = h("button", { class: "main", type: "submit", disabled: true }, "Add to the list");
  // taken: the fact of the list that is in the form; place: its place there; base: what it has beside the fields
  let facts = [], fit = null, taken = null, place = Infinity, base = {};

  function phrasing(turn = null) {
    const kind = h("select", { "aria-label": "Kind of phrasing" }, h("option", { value: "chat", disabled: !shared.state?.chat }, "chat turn"), h("option", { value: "plain" }, "plain text"));
    if (!shared.state?.chat) kind.value = "plain";
    const words = h("input", { type: "text", placeholder: "e.g. Where is {}?", "aria-label": "Phrasing", spellcheck: "false" });
    if (turn !== null) { kind.value = turn.user == null ? "plain" : "chat"; words.value = turn.user ?? turn; }
    const line = h("div", { class: "phrasing" }, kind, words, h("button", { type: "button", class: "small", "aria-label": "Remove the phrasing", onclick: () => { line.remove(); look(); } }, "×"));
    line.turn = turn?.user == null ? {} : turn;
    phrasings.append(line);
    words.focus();
  }

  /** The form, with a fact of the list, or empty. */
  function fill(fact = null, at = Infinity) {
    const { subject: about = "", prompt: asked = "", target_new: answer = "", target_true: before = "", phrasings: ways = [], ...rest } = fact ?? {};
    [taken, place, base] = [fact, at, rest];
    if (asked.user != null) base.turn = asked;
    [subject.value, prompt.value, target.value, old.value] = [about, asked.user ?? asked, answer, before ?? ""];
    phrasings.replaceChildren();
    for (const one of ways) phrasing(one);
    ask();
    subject.focus();
  }

  /** Take a fact off the list into the form; what the form holds goes to the list. */
  function reopen(i) {
    const [fact] = facts.splice(i, 1), back = fit ?? taken;
    if (back) facts.splice(place, 0, back);
    fill(fact, i);
    shown();
  }

  function given() {
    const said = [...phrasings.children].map((line) => [line.querySelector("select").value, line.querySelector("input").value.trim(), line.turn]).filter(([, words]) => words);
    const { turn, ...rest } = base;
    return {
      ...rest, subject: subject.value, prompt: turn ? { ...turn, user: prompt.value } : prompt.value, target_new: target.value,
      ...(old.value.trim() ? { target_true: old.value } : {}),
      ...(said.length ? { phrasings: said.map(([kind, words, turn]) => (kind === "chat" ? { ...turn, user: words } : words)) } : {}),
    };
  }

  const nothing = () => h("p", { class: "note" }, "As you type: the tokens of the prompt, the one that the edit is read at, what contradicts earlier edits, and the earlier edits it comes near.");

  const ask = latest(async () => {
    const now = given();
    fit = null;
    add.disabled = true;
    if (!now.subject.trim() || !now.prompt.trim() || !now.target_new.trim()) { checked.replaceChildren(nothing()); return; }
    let found;
    try { found = await post("check", now); } catch (error) { checked.replaceChildren(h("p", { class: "says open" }, error.message)); add.disabled = !error.busy; fit = error.busy ? now : null; return; }
    if (found.error) { checked.replaceChildren(h("p", { class: "says no" }, found.error)); return; }
    fit = found.fact;
    add.disabled = false;
    checked.replaceChildren(...[
      found.tokens.length ? h("p", { class: "tokens", "aria-label": "Tokens of the prompt" }, found.tokens.map((token, i) => h("span", { class: i === found.read_at ? "read" : "" }, visible(token))), h("span", { class: "target" }, found.target)) : null,
      found.read_at == null ? null : h("p", { class: "note" }, "The edit is read and written at ", h("b", {}, `[${visible(found.tokens[found.read_at])}]`), ", the subject's last token", found.phrasings.length ? `; of ${count(found.phrasings.length, "phrasing")} at ${found.phrasings.map((one) => `[${visible(one.read ?? "?")}]`).join(", ")}` : "", "."),
      found.problems.map((line) => h("p", { class: "says no" }, line)),
      found.notes.map((line) => h("p", { class: "says open" }, line)),
      found.near.length ? [h("p", { class: "label" }, "Earlier edits it comes near"), nearEdits(found.near, "cosine of keys, from 0 to 1: the nearer to 1, the more the two edits can change each other's answers")] : null,
    ].flat(3).filter(Boolean));
  });
  const look = later(ask, 300);

  // --- the list ------------------------------------------------------------------------------------------------------
  const list = h("div", { class: "queue", tabindex: 0, role: "region", "aria-label": "Facts to edit" }), begin = h("button", { class: "main", type: "button", disabled: true }, "Edit");
  const restrain = h("select", { name: "run-restraint" }, [["", "the ledger's own"], ["none", "none"], ["log:1.2", "log:1.2"], ["log:1.5", "log:1.5"], ["linear:2", "linear:2"]].map(([value, name]) => h("option", { value }, name)));
  const alarm = h("select", { name: "on-alarm" }, [["skip", "leave it out"], ["warn", "edit, with a warning"], ["stop", "stop the run"]].map(([value, name]) => h("option", { value }, name)));
  const file = h("input", { type: "file", accept: ".jsonl,.json,.csv,.txt" });
  const clear = h("button", { type: "button", disabled: true, onclick: () => { facts = []; shown(); } }, "Empty the list");

  function shown() {
    list.replaceChildren(facts.length
      ? h("table", {}, h("thead", {}, h("tr", {}, ["subject", "prompt", "new answer", ""].map((name) => h("th", { scope: "col" }, name)))),
        h("tbody", {}, facts.slice(0, 200).map((fact, i) => h("tr", {}, h("td", {}, fact.subject), h("td", {}, fact.prompt.user ?? fact.prompt, fact.phrasings?.length ? h("details", { class: "note" }, h("summary", {}, `+ ${count(fact.phrasings.length, "phrasing")}`), fact.phrasings.map((one) => h("div", {}, one.user == null ? one : `${one.user} (chat)`))) : null), h("td", {}, fact.target_new),
          h("td", { class: "act" }, h("button", { type: "button", class: "small", "aria-label": `Edit ${fact.subject} in the form`, onclick: () => reopen(i) }, "Edit"), " ", h("button", { type: "button", class: "small", "aria-label": `Remove ${fact.subject}`, onclick: () => { facts.splice(i, 1); shown(); } }, "×"))))))
      : h("p", { class: "note" }, "No fact yet: add one by hand, or load a file."),
      ...(facts.length > 200 ? [h("p", { class: "note" }, `and ${facts.length - 200} more`)] : []));
    const paused = shared.run?.state === "paused";
    begin.disabled = !facts.length || Boolean(shared.busy);
    begin.textContent = facts.length ? `Edit ${count(facts.length, "fact")}${paused ? " and leave the paused run" : ""}` : "Edit";
    clear.disabled = !facts.length;
  }

  file.addEventListener("change", () => trying(async () => {
    const found = await post("facts", { text: await file.files[0].text() });
    facts.push(...found.facts);
    shown();
    if (found.bad.length) toast(`${count(found.bad.length, "record")} left out, the first: ${found.bad[0]}`);
    else toast(`${count(found.facts.length, "fact")} of format ${found.formats.join(", ")}`, true);
    file.value = "";
  }));
  begin.addEventListener("click", () => trying(async () => {
    await post("run", { facts, restrain: restrain.value || null, on_alarm: alarm.value });
    facts = [];
    shown();
  }));

  // --- the run -------------------------------------------------------------------------------------------------------
  const bar = h("progress", { max: 1, value: 0, "aria-label": "Progress of the run" }), where = h("p", { class: "note", role: "status" });
  const pause = h("button", { type: "button", onclick: () => trying(() => post("run/pause")) }, "Pause");
  const resume = h("button", { type: "button", onclick: () => trying(() => post("run/resume")) }, "Go on");
  const log = h("div", { class: "log", tabindex: 0, role: "log", "aria-label": "What the run says" }), losses = h("div", {});

  function ran() {
    const run = shared.run;
    shown();
    pause.disabled = run?.state !== "running" || run.pausing;
    resume.disabled = !(run?.state === "paused" || run?.state === "failed") || Boolean(shared.busy);
    if (!run) { where.textContent = "No run yet."; return; }
    bar.max = run.total || 1;
    bar.value = run.done;
    const left = run.eta ? `, ${run.eta < 90 ? `${Math.round(run.eta)} s` : `${Math.round(run.eta / 60)} min`} left` : "";
    where.textContent = { running: run.pausing ? "pausing after this edit" : `editing ${Math.min(run.done + 1, run.total)} of ${run.total}${left}`, paused: "paused: go on here, or by tether edit with the file of these facts and --resume", done: "done", failed: run.error }[run.state] + ` (${run.done} of ${run.total}${run.state === "running" ? " done" : ""})${run.said ? `; when it ended, ${run.said}` : ""}`;
    const atEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 30;
    log.replaceChildren(...run.notes.map((line) => h("p", { class: "warned" }, line)), ...run.lines.map((line) =>
      h("p", { class: line.kind === "edit" ? "" : "bad" }, h("b", {}, `${line.edit} `), `${line.kind === "edit" ? "" : `${line.kind}: `}${line.subject} → ${line.target}`,
        h("span", { class: "note" }, [line.loss_first == null ? "" : ` loss ${plain(line.loss_first)} → ${plain(line.loss_last)}`, line.health_line ? `, ${line.health_line}` : "", line.reason ? `: ${line.reason}` : ""].join("")))));
    if (atEnd) log.scrollTop = log.scrollHeight;
    const measured = run.lines.filter((line) => line.loss_last != null);
    losses.replaceChildren(measured.length ? curves({ title: "Loss of each edit", x: "edit", from: 0, series: [
      { name: "at the first step", colour: "grey", dots: true, points: measured.map((line) => [line.edit, line.loss_first]) },
      { name: "at the last step", colour: "blue", dots: true, points: measured.map((line) => [line.edit, line.loss_last]) }] }) : "");
  }

  for (const one of [subject, prompt, target, old]) one.addEventListener("input", look);
  phrasings.addEventListener("input", look);
  on("run", ran);
  on("busy", ran);
  on("head", ask);
  checked.replaceChildren(nothing());
  shown();
  ran();

  return h("div", { class: "columns" },
    h("form", { class: "card", onsubmit: (event) => {
      event.preventDefault();
      if (!fit) return;
      facts.splice(place, 0, fit);
      shown();
      fill();
    } },
      h("h3", {}, "A fact by hand"),
      field("Subject", subject), field("Prompt", prompt, "{} stands for the subject"),
      h("div", { class: "columns" }, h("div", {}, field("New answer", target)), h("div", {}, field("Old answer", old, "optional"))),
      h("p", { class: "label" }, "Phrasings ", h("span", { class: "note" }, "how else people will ask; the edit is made for them too")),
      phrasings, h("button", { type: "button", class: "small", onclick: () => phrasing() }, "Add a phrasing"),
      checked, h("div", { class: "row" }, add)),
    h("div", { class: "stack" },
      h("section", { class: "card" }, h("h3", {}, "To edit"), list,
        field("Load a file", file, "JSONL, CSV, or a published format"),
        h("div", { class: "columns" }, h("div", {}, field("Restraint after the run", restrain)), h("div", {}, field("If an edit raises an alarm", alarm))),
        h("div", { class: "row" }, begin, clear)),
      h("section", { class: "card" }, h("h3", {}, "The run"), bar, where, h("div", { class: "row" }, pause, resume), log, losses)));
}

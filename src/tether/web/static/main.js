// The frame: views by the address, what the server is at, whether the ledger changed.
import { count, get, h, on, refresh, shared, tell, trying } from "./lib.js";
import { ask } from "./ask.js";
import { edit } from "./edit.js";
import { health } from "./health.js";
import { ledger } from "./ledger.js";

const VIEWS = {
  ask: [ask, "Ask", "Any prompt, to the unedited and the edited model. The model is in memory once: the edits are put on and taken off."],
  edit: [edit, "Edit", "What is added here is what tether edit would add, in the same ledger."],
  health: [health, "Health", "What the edits do to the weight, and what a restraint makes of it. Nothing here changes the ledger."],
  ledger: [ledger, "Ledger", "Every edit, and the way back. Nothing is ever deleted."],
};
const main = document.getElementById("main"), status = document.getElementById("status"), sections = {};

function show() {
  const name = location.hash.slice(1) in VIEWS ? location.hash.slice(1) : shared.state?.made ? "ask" : "edit";
  shared.view = name;
  for (const [other, section] of Object.entries(sections)) section.hidden = other !== name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${VIEWS[name][1]} · tether live`;
  tell("view");
}

function said() {
  const run = shared.run, busy = shared.busy ?? shared.doing.at(-1);
  status.className = busy ? "busy" : "";
  status.lastElementChild.textContent = shared.busy && run?.state === "running" ? `editing ${Math.min(run.done + 1, run.total)} of ${run.total}` : busy ?? "ready";
}

function about() {
  const state = shared.state, where = state.ledger ?? "a trial, which goes when the page ends";
  document.getElementById("about").textContent = `${state.model} · ${state.method} · ${where} · ${count(state.live, "edit")}`;
}

function listen() {
  let source, head;
  const open = () => {
    source = new EventSource("/api/live");
    source.onmessage = async (event) => {
      const now = JSON.parse(event.data), before = shared.busy, changed = head !== undefined && now.head !== head;
      head = now.head;
      shared.busy = now.busy;
      shared.run = now.run;
      if (changed) await trying(refresh);
      if (before !== now.busy) tell("busy");
      tell("run");
      if (changed && !now.busy) tell("head");
      else if (before && !now.busy) { await trying(refresh); tell("head"); }
      said();
    };
    source.onerror = () => { status.className = "lost"; status.lastElementChild.textContent = "no connection"; };
  };
  document.addEventListener("visibilitychange", () => { // a browser has few connections to one server
    if (document.hidden) source.close();
    else if (source.readyState === EventSource.CLOSED) open();
  });
  open();
}

on("state", about);
on("doing", said);
await trying(refresh);
for (const [name, [make, title, words]] of Object.entries(VIEWS)) {
  sections[name] = h("section", { class: "view", id: `view-${name}`, hidden: true }, h("h2", {}, title), h("p", { class: "note" }, words), make());
  main.append(sections[name]);
}
addEventListener("hashchange", () => { show(); main.focus(); });
show();
tell("state");
listen();

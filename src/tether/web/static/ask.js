// Ask: the unedited and the edited model side by side.
import { asked, during, field, get, h, inWords, later, latest, on, post, shared, stream, tell, toast, trying } from "./lib.js";
import { nearEdits, nextTokens } from "./charts.js";
import { control } from "./control.js";

export function ask() {
  const prompt = h("textarea", { rows: 2, name: "prompt", placeholder: "e.g. The Eiffel Tower is located in the city of", spellcheck: "false" });
  const system = h("input", { type: "text", name: "system" });
  const plainly = h("input", { type: "radio", name: "as", value: "plain", checked: true });
  const chat = h("input", { type: "radio", name: "as", value: "chat" });
  const tokens = h("input", { type: "number", name: "tokens", min: 1, max: 400, value: 40 });
  const picks = h("select", { name: "picks" });
  const go = h("button", { class: "main", type: "submit" }, "Ask");
  const stop = h("button", { type: "button", disabled: true }, "Stop");
  const behind = h("div", { hidden: true }, field("System prompt", system, "optional"));
  const answers = Object.fromEntries(["unedited", "edited"].map((who) => [who, h("p", { class: "answer", tabindex: 0, role: "region", "aria-live": "polite", "aria-label": `Answer of the ${who} model` })]));
  const under = h("span", { class: "note" });
  const next = h("div", { class: "next" }, nextTokens([]));
  const near = h("div", { class: "near" }, h("p", { class: "note" }, "Ask something to see which edits it comes near."));
  let running = null, shown = false;

  const said = () => (chat.checked ? { user: prompt.value, ...(system.value.trim() ? { system: system.value } : {}) } : prompt.value);
  const words = () => { under.textContent = inWords(); };

  function marked(edited, unedited) {
    let same = 0;
    while (same < Math.min(edited.length, unedited.length) && edited[same] === unedited[same]) same++;
    while (same > 0 && same < edited.length && /\S/.test(edited[same]) && /\S/.test(edited[same - 1])) same--;
    return same < edited.length || edited.length < unedited.length
      ? [edited.slice(0, same), h("mark", {}, edited.slice(same))] : [edited];
  }

  /** An answer is whole: it is read out now, and not token by token. */
  const waited = (who) => { answers[who].classList.remove("waiting"); answers[who].ariaBusy = "false"; };

  async function begin() {
    running?.abort();
    const mine = (running = new AbortController()), texts = { unedited: "", edited: "" };
    shared.prompt = said();
    shown = true;
    stop.disabled = false;
    words();
    for (const who of ["unedited", "edited"]) { answers[who].replaceChildren(); answers[who].classList.add("waiting"); answers[who].ariaBusy = "true"; }
    try {
      await during("asking", async () => { for await (const one of stream("ask", { prompt: shared.prompt, tokens: Number(tokens.value) || 40, ...asked() }, mine.signal)) {
        if (one.kind === "next") next.replaceChildren(nextTokens(one.next));
        else if (one.kind === "near") near.replaceChildren(...nearEdits(one.near, one.words).filter(Boolean));
        else if (one.kind === "answer") {
          if (one.who === "edited") waited("unedited");
          texts[one.who] = one.text;
          answers[one.who].textContent = one.text;
        } else if (one.kind === "error") toast(one.error);
        else if (one.kind === "end") answers.edited.replaceChildren(...marked(texts.edited, texts.unedited));
      } });
    } catch (error) {
      if (error.name !== "AbortError") toast(error.message);
    } finally {
      if (running === mine) {
        running = null;
        stop.disabled = true;
        for (const who of ["unedited", "edited"]) waited(who);
        tell("asked");
      }
    }
  }

  const preview = latest(async () => {
    if (!shown || running || !shared.state?.made || shared.view !== "ask") return;
    try {
      const found = await post("preview", { prompt: shared.prompt, ...asked() });
      next.replaceChildren(nextTokens(found.next));
    } catch (error) { if (!error.busy) toast(error.message); }
  });

  async function fill() {
    const found = (await trying(() => get("prompts"))) ?? [];
    picks.replaceChildren(h("option", { value: "" }, found.length ? "choose one …" : "no edit yet"),
      ...found.map((one, i) => h("option", { value: i }, `${one.edit}: ${one.prompt.user == null ? one.prompt : `${one.prompt.user} (chat)`}`)));
    picks.disabled = !found.length;
    picks.onchange = () => {
      const one = found[picks.value]?.prompt;
      if (one == null) return;
      (one.user == null ? plainly : chat).checked = true;
      behind.hidden = one.user == null;
      prompt.value = one.user ?? one;
      system.value = one.system ?? "";
      begin();
    };
  }

  for (const one of [plainly, chat]) one.addEventListener("change", () => { behind.hidden = !chat.checked; });
  prompt.addEventListener("keydown", (event) => { if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); begin(); } });
  stop.addEventListener("click", () => running?.abort());
  on("chosen", () => { words(); preview(); });
  on("settled", later(() => { if (shown && shared.view === "ask") begin(); }, 250));
  on("head", fill);
  on("state", () => { chat.disabled = !shared.state.chat; words(); });
  fill();
  words();

  return h("div", { class: "stack" },
    h("form", { class: "card", onsubmit: (event) => { event.preventDefault(); begin(); } },
      field("Prompt", prompt, "Enter asks, Shift+Enter is a new line"), behind,
      h("div", { class: "row even" },
        h("fieldset", { class: "choice", "aria-label": "How it is asked" }, h("label", {}, plainly, "Plain text"), h("label", {}, chat, "Chat turn")),
        h("div", { class: "grow" }, field("Or take a prompt of an edit", picks)), h("div", {}, field("Tokens at most", tokens)), go, stop)),
    h("div", { class: "columns" },
      h("section", { class: "card" }, h("h3", {}, h("span", { class: "key before" }), "Unedited model"), answers.unedited),
      h("section", { class: "card" }, h("h3", {}, h("span", { class: "key after" }), "Edited model", under), answers.edited)),
    h("div", { class: "columns" },
      h("section", { class: "card" }, h("h3", {}, "What comes next"), next),
      h("section", { class: "card" }, h("h3", {}, "Edits that the prompt comes near"), near)),
    control());
}

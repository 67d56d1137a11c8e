// Health: what the ledger recorded, and the restraint as a control, redrawn while one drags.
import { asked, during, events as every, h, inWords, later, latest, on, plain, post, shared, toast, trying } from "./lib.js";
import { curves, nextTokens, singularValues } from "./charts.js";
import { control } from "./control.js";

export function health() {
  const spectrum = h("div", {}), numbers = h("div", { class: "facts-of" }), next = h("div", { class: "next" });
  const quick = h("div", { "aria-live": "polite" }), charts = h("div", { class: "charts" }), prompt = h("p", { class: "note" });
  const measure = h("button", { type: "button" }, "Measure along the edits");
  const weights = h("select", { "aria-label": "Weight" });
  const little = h("p", { class: "note" });
  let points = [], found = null, events = [], reading = null; // reading: stops the quick scores that are read

  const number = (name, value, note) => h("div", {}, h("span", { class: "note" }, name), h("span", { class: "big" }, value), h("span", { class: "note" }, note));

  /** Whether what these show is of another place of the control. */
  const old = (is, ...cards) => { for (const card of cards) card.ariaBusy = String(is); };

  function drawn() {
    if (!found) return;
    const weight = found.weights[Math.max(0, weights.selectedIndex)] ?? found.weights[0];
    spectrum.replaceChildren(...singularValues(weight));
    const { restrained, unrestrained } = weight;
    numbers.replaceChildren(
      number("κ", plain(restrained.kappa, 4), `${plain(unrestrained.kappa, 4)} without restraint`),
      number("σ_max", plain(restrained.sigma_max, 4), `${plain(unrestrained.sigma_max, 4)} without`),
      number("σ̂ of the update", plain(restrained.update_sigma_max, 4), `${plain(unrestrained.update_sigma_max, 4)} without`),
      number("above m", String(weight.above_m), "singular values that a restraint acts on"));
    little.textContent = unrestrained.update_sigma_max < 1.05 * weight.m ? "Hardly anything is above m: a restraint has little effect here." : "";
    if (found.next) next.replaceChildren(nextTokens(found.next));
  }

  const preview = latest(async () => {
    if (shared.view !== "health" || !shared.state?.made) return;
    prompt.textContent = shared.prompt == null ? "Ask something in the view Ask: its next token is redrawn here." : `${shared.prompt.user ?? shared.prompt}`;
    const words = inWords();
    old(true, spectrumCard, promptCard);
    try {
      found = await post("preview", { prompt: shared.prompt, ...asked() });
      if (weights.length !== found.weights.length) {
        weights.replaceChildren(...found.weights.map((one) => h("option", {}, one.weight)));
        weights.hidden = found.weights.length < 2;
      }
      drawn();
      if (words === inWords()) old(false, spectrumCard, promptCard);
    } catch (error) { if (!error.busy) toast(error.message); }
  });

  const quickly = (said, ratio, note) => quick.replaceChildren(
    h("div", { class: "facts-of" }, number("facts whose answer comes first", said, "each of its tokens is the likeliest next one"), number("perplexity", ratio, "of the unedited model's")),
    h("p", { class: "note" }, note));
  async function scores() {
    if (shared.view !== "health" || !shared.state?.made) return;
    reading?.abort();
    const mine = (reading = new AbortController()), words = inWords();
    try {
      const one = await during("reading scores", () => post("scores", asked(), mine.signal));
      if (mine.signal.aborted) return;
      kept(one);
      quickly(`${one.said} of ${one.of}`, `× ${one.perplexity_ratio.toFixed(3)}`, words);
      old(false, quickCard);
    } catch (error) {
      if (error.name !== "AbortError") quickly("…", "…", `not measured: ${error.message}`);
    }
  }
  const rested = later(scores, 1000);
  /** The control moves: what is shown is of another place, the spectrum comes first, and scores after a rest. */
  function moved() {
    reading?.abort();
    old(true, spectrumCard, promptCard, quickCard);
    preview();
    rested();
  }

  function kept(one) {
    points = [...points.filter((p) => p.edits !== one.edits || p.restraint !== one.restraint), one].sort((a, b) => a.edits - b.edits);
    redraw();
  }

  measure.addEventListener("click", () => trying(async () => {
    measure.disabled = true;
    const last = shared.state.edits, { restrain } = asked(), steps = Math.min(last, 5);
    try {
      for (let i = 0; i <= steps; i++) {
        const upto = Math.round((last * i) / (steps || 1));
        kept(await during("reading scores", () => post("scores", { upto, restrain })));
      }
    } finally { measure.disabled = false; }
  }));

  function redraw() {
    const edits = events.filter((event) => event.kind === "edit" && !event.undone), m = Object.values(shared.state?.weights ?? {});
    const curve = (name) => edits.filter((event) => event[name] != null).map((event) => [event.edit, event[name]]);
    const last = shared.state?.edits || 1, one = m.length === 1 ? m[0] : null, xs = [0, last];
    const by = new Map();
    for (const point of points) by.set(point.restraint, [...(by.get(point.restraint) ?? []), point]);
    const colours = ["blue", "green", "orange", "purple", "red"];
    const scored = (name, of) => [...by].map(([restraint, some], i) => ({ name: restraint, colour: colours[i % 5], points: some.map((p) => [p.edits, of(p)]) }));
    charts.replaceChildren(
      curves({ title: "κ, the condition number of the edited weight", xs, log: true, series: [{ name: "κ", colour: "blue", points: curve("kappa") }], limits: one?.kappa ? [[one.kappa, `unedited ${plain(one.kappa)}`]] : [] }),
      curves({ title: "σ_max of the weight, σ̂ of the update, against m", xs, from: 0, series: [{ name: "σ_max", colour: "blue", points: curve("sigma_max") }, { name: "σ̂", colour: "orange", points: curve("update_sigma_max") }], limits: one ? [[one.m, `m = ${plain(one.m)}`]] : [] }),
      curves({ title: "Perplexity, × the unedited model's", xs, series: [{ name: "while editing", colour: "grey", dots: true, points: curve("perplexity_ratio") }, ...scored("perplexity", (p) => p.perplexity_ratio)] }),
      curves({ title: "Facts whose answer comes first, percent", xs, from: 0, series: scored("said", (p) => (p.of ? (100 * p.said) / p.of : NaN)) }));
  }

  async function reload() {
    if (shared.view !== "health") return;
    events = (await trying(every)) ?? events;
    redraw();
    moved();
  }

  weights.addEventListener("change", drawn);
  weights.hidden = true;
  on("chosen", moved);
  on("head", () => { points = []; reload(); });
  on("view", reload);
  const none = h("p", { class: "card" }, "No edit yet. What the ledger records of every edit is drawn here.");
  const spectrumCard = h("section", { class: "card" }, h("h3", {}, "Spectrum of the update"), weights, numbers, little, spectrum);
  const promptCard = h("section", { class: "card" }, h("h3", {}, "The prompt at hand"), prompt, next);
  const quickCard = h("section", { class: "card" }, h("h3", {}, "Quick scores"), quick,
    h("p", { class: "note" }, "Of at most 24 edited facts, evenly spread: of how many every token of the answer is the model's first choice, given the answer's tokens before it. And of the built-in text. Read when the control rests for a second. Knowledge tests read generated text instead."), measure);
  const restraint = control("The restraint, as a control");
  restraint.append(h("p", { class: "note" }, "σ̂ are the singular values of the update, how strong it is in each direction; m is the largest one of the unedited weight. κ, the condition number of the edited weight, says how uneven it is: near the unedited value is good, far above it is an alarm; it costs a while, so it is read now and then, every tenth edit at least. A restraint makes the σ̂ above m smaller: the larger α or β, the more."));
  const body = h("div", { class: "stack" },
    restraint,
    h("div", { class: "columns three" }, spectrumCard, promptCard, quickCard),
    h("div", {}, h("h3", {}, "Along the edits"), charts));
  const shownWhen = () => { body.hidden = !shared.state?.made; none.hidden = Boolean(shared.state?.made); };
  on("state", shownWhen);
  shownWhen();
  quickly("…", "…", "");
  return h("div", {}, none, body);
}

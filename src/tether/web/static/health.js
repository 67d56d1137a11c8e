// Health: what the ledger recorded, and the restraint as a control, redrawn while one drags.
import { asked, count, events as every, h, inWords, latest, on, plain, post, shared, toast, trying } from "./lib.js";
import { curves, nextTokens, singularValues } from "./charts.js";
import { control } from "./control.js";

export function health() {
  const spectrum = h("div", {}), numbers = h("div", { class: "facts-of" }), next = h("div", { class: "next" }), time = h("p", { class: "note" });
  const quick = h("div", { "aria-live": "polite" }), charts = h("div", { class: "charts" }), prompt = h("p", { class: "note" });
  const measure = h("button", { type: "button" }, "Measure along the edits");
  const weights = h("select", { "aria-label": "Weight" });
  let points = [], found = null, events = [], measured = null; // measured: what the quick scores shown are of

  const number = (name, value, note) => h("div", {}, h("span", { class: "note" }, name), h("span", { class: "big" }, value), h("span", { class: "note" }, note));

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
    if (found.next) next.replaceChildren(nextTokens(found.next));
    time.textContent = `weights in ${plain(found.weight_ms, 2)} ms, with the prompt in ${plain(found.ms, 2)} ms`;
  }

  const preview = latest(async () => {
    if (shared.view !== "health" || !shared.state?.made) return;
    prompt.textContent = shared.prompt == null ? "Ask something in the view Ask: its next token is redrawn here." : `${shared.prompt.user ?? shared.prompt}`;
    try {
      found = await post("preview", { prompt: shared.prompt, ...asked() });
      if (weights.length !== found.weights.length) {
        weights.replaceChildren(...found.weights.map((one) => h("option", {}, one.weight)));
        weights.hidden = found.weights.length < 2;
      }
      drawn();
    } catch (error) { if (!error.busy) toast(error.message); }
  });

  const blank = (words) => [h("div", { class: "facts-of" }, number("facts said", "…", words), number("perplexity", "…", "of the unedited model's"))];
  const scores = latest(async () => {
    if (shared.view !== "health" || !shared.state?.made) return;
    const words = inWords();
    if (words !== measured) quick.replaceChildren(...blank("measuring"), h("p", { class: "note" }, words));
    try {
      const one = await post("scores", asked());
      kept(one);
      measured = words;
      quick.replaceChildren(h("div", { class: "facts-of" },
        number("facts said", `${one.said} of ${one.of}`, "word for word, greedily"),
        number("perplexity", `× ${one.perplexity_ratio.toFixed(3)}`, "of the unedited model's")), h("p", { class: "note" }, words));
    } catch (error) {
      measured = null;
      quick.replaceChildren(...blank("not measured"), h("p", { class: "note" }, error.message));
    }
  });

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
        kept(await post("scores", { upto, restrain }));
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
      curves({ title: "Facts said, percent", xs, from: 0, series: scored("said", (p) => (p.of ? (100 * p.said) / p.of : NaN)) }));
  }

  async function reload() {
    if (shared.view !== "health") return;
    events = (await trying(every)) ?? events;
    redraw();
    preview();
    scores();
  }

  weights.addEventListener("change", drawn);
  weights.hidden = true;
  on("chosen", preview);
  on("settled", scores);
  on("head", () => { points = []; measured = null; reload(); });
  on("view", reload);
  const none = h("p", { class: "card" }, "No edit yet. What the ledger records of every edit is drawn here.");
  const body = h("div", { class: "stack" },
    control("The restraint, as a control"),
    h("div", { class: "columns three" },
      h("section", { class: "card" }, h("h3", {}, "Spectrum of the update"), weights, numbers, spectrum),
      h("section", { class: "card" }, h("h3", {}, "The prompt at hand"), prompt, next, time),
      h("section", { class: "card" }, h("h3", {}, "Quick scores"), quick, h("p", { class: "note" }, "Of at most 24 edited facts, evenly spread, and the built-in text. Read when the control comes to rest."), measure)),
    h("div", {}, h("h3", {}, "Along the edits"), charts));
  const shownWhen = () => { body.hidden = !shared.state?.made; none.hidden = Boolean(shared.state?.made); };
  on("state", shownWhen);
  shownWhen();
  quick.replaceChildren(...blank(""));
  return h("div", {}, none, body);
}

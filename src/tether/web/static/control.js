// The restraint as a control: function, strength, up to which edit. Every copy of it shows the same choice.
import { h, field, on, shared, tell } from "./lib.js";

const LOW = -2, HIGH = 1; // powers of ten of strength − 1
const toStrength = (at) => Number((1 + 10 ** (LOW + ((HIGH - LOW) * at) / 1000)).toPrecision(3));
const toPlace = (value) => Math.round((1000 * (Math.log10(value - 1) - LOW)) / (HIGH - LOW));
const NAMES = [["recorded", "as recorded"], ["none", "none"], ["log", "log (PRUNE)"], ["linear", "linear"]];

export function control(title = "Restraint of the edited model") {
  const kind = h("select", { name: "restraint" }, NAMES.map(([value, name]) => h("option", { value }, name)));
  const strength = h("input", { type: "range", min: 0, max: 1000, name: "strength", "aria-label": "Strength" });
  const exact = h("input", { type: "number", min: 1.001, step: "any", name: "exact" });
  const upto = h("input", { type: "range", min: 0, max: 0, name: "upto", "aria-label": "Up to which edit" });
  const edits = h("input", { type: "number", min: 0, step: 1, name: "edits" });
  const [exactLabel] = field("Strength", exact);

  function show() {
    const { chosen, state } = shared, acts = chosen.kind === "log" || chosen.kind === "linear";
    const last = state?.edits ?? 0;
    kind.value = chosen.kind;
    strength.disabled = exact.disabled = !acts;
    exactLabel.replaceChildren(chosen.kind === "linear" ? "Strength β" : "Strength α", h("span", { class: "note" }, acts ? " larger restrains more" : " choose a function first"));
    const value = chosen[acts ? chosen.kind : "log"];
    if (document.activeElement !== exact) exact.value = value;
    strength.value = toPlace(value);
    strength.setAttribute("aria-valuetext", `${chosen.kind} ${value}`);
    upto.max = edits.max = last;
    upto.disabled = edits.disabled = last === 0;
    upto.value = chosen.upto ?? last;
    if (document.activeElement !== edits) edits.value = chosen.upto ?? last;
  }

  function choose(change, settled) {
    Object.assign(shared.chosen, change);
    tell("chosen");
    if (settled) tell("settled");
  }
  const ofStrength = () => ({ [shared.chosen.kind]: toStrength(Number(strength.value)) });
  const ofEdits = (value) => ({ upto: value >= (shared.state?.edits ?? 0) ? null : Math.max(0, Math.round(value)) });
  kind.addEventListener("change", () => choose({ kind: kind.value }, true));
  strength.addEventListener("input", () => choose(ofStrength(), false));
  strength.addEventListener("change", () => choose(ofStrength(), true));
  upto.addEventListener("input", () => choose(ofEdits(Number(upto.value)), false));
  upto.addEventListener("change", () => choose(ofEdits(Number(upto.value)), true));
  exact.addEventListener("change", () => { if (exact.value > 1) choose({ [shared.chosen.kind]: Number(exact.value) }, true); else show(); });
  edits.addEventListener("change", () => { if (edits.value !== "") choose(ofEdits(Number(edits.value)), true); else show(); });
  on("chosen", show);
  on("state", show);
  show();
  return h("section", { class: "card control", "aria-label": title },
    h("h3", {}, title),
    h("div", { class: "columns three" },
      h("div", {}, field("Function", kind)),
      h("div", {}, exactLabel, exact, strength),
      h("div", {}, field("Up to edit", edits), upto)));
}

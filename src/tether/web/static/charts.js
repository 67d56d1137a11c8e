// Figures: small, of SVG, in the report's colours.
import { h, s, percent, plain, visible } from "./lib.js";

/** A bar from the left, as wide as its share. */
function bar(share, kind) {
  return s("svg", { viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" },
    s("rect", { class: `fill-${kind}`, width: Math.max(100 * share, 0.6), height: 8 }));
}

/** Next tokens of both models, in as many lines as there ever are. */
export function nextTokens(next, lines = 6) {
  const rows = [...next, ...Array(Math.max(0, lines - next.length)).fill(null)].map((one) => one === null
    ? h("tr", {}, h("td", { class: "token" }, "\u00a0"), h("td", {}), h("td", {}), h("td", {}))
    : h("tr", {},
      h("td", { class: "token" }, `[${visible(one.token)}]`),
      h("td", { class: "bar" }, h("div", { class: "pair" }, bar(one.unedited, "before"), bar(one.edited, "after"))),
      h("td", { class: "n" }, percent(one.unedited)), h("td", { class: "n" }, percent(one.edited))));
  return h("table", { class: "bars" },
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "next token"), h("th", { scope: "col" }, h("span", { class: "note" }, "probability")),
      h("th", { class: "n", scope: "col" }, h("span", { class: "key before" }), "unedited"), h("th", { class: "n", scope: "col" }, h("span", { class: "key after" }), "edited"))),
    h("tbody", {}, rows));
}

/** The edits that a prompt comes near. */
export function nearEdits(near, words) {
  const rows = near.map((one) => h("tr", {},
    h("td", { class: "n" }, one.cosine.toFixed(2)),
    h("td", { class: "bar" }, bar(Math.max(0, one.cosine), "after")),
    h("td", {}, `edit ${one.edit}: ${one.subject} → ${one.target_new}`, h("span", { class: "note" }, ` at [${visible(one.token)}]${one.not_made ? `, ${one.not_made}` : ""}`))));
  return [rows.length ? h("table", { class: "bars" }, h("tbody", {}, rows)) : null, h("p", { class: "note" }, words)];
}

function ticks(low, high, log) {
  if (log) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
      for (const step of [1, 2, 5]) found.push(step * 10 ** power);
    const inside = found.filter((value) => value >= low * 0.999 && value <= high * 1.001);
    return inside.length > 6 ? inside.filter((value) => /^1/.test(value.toExponential())) : inside;
  }
  const raw = (high - low) / 4 || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= raw);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-9; value += step) found.push(Number(value.toPrecision(12)));
  return found;
}

/** Curves against the number of edits. series: [{name, points: [[x, y]], colour, dots}]; limits: [[y, words]]. */
export function curves({ title, label, series, limits = [], from = null, log = false, xs = null, x = "edits" }) {
  const W = 420, H = 220, left = 52, right = 12 + 6 * Math.max(0, ...limits.map(([, words]) => words.length)), top = 12, bottom = 34;
  const drawn = series.filter((one) => one.points.length), every = drawn.flatMap((one) => one.points);
  if (!every.length) return h("figure", { class: "card" }, h("figcaption", {}, title), h("p", { class: "note" }, "Nothing recorded yet."));
  const ys = [...every.map((point) => point[1]), ...limits.map(([y]) => y)].filter(Number.isFinite);
  let low = Math.min(...ys, from ?? Infinity), high = Math.max(...ys);
  log &&= low > 0 && high > 10 * low;
  if (high === low) { high += Math.abs(high) * 0.1 || 1; }
  if (!log) { const room = 0.06 * (high - low); high += room; if (from === null) low -= room; }
  const [x0, x1] = xs ?? [Math.min(...every.map((p) => p[0])), Math.max(...every.map((p) => p[0]), 1)];
  const X = (value) => left + ((W - left - right) * (value - x0)) / (x1 - x0 || 1);
  const to = log ? Math.log10 : (value) => value;
  const Y = (value) => H - bottom - ((H - bottom - top) * (to(value) - to(low))) / (to(high) - to(low));
  const parts = [];
  for (const y of ticks(low, high, log)) parts.push(
    s("line", { class: "grid", x1: left, x2: W - right, y1: Y(y), y2: Y(y) }),
    s("text", { x: left - 6, y: Y(y) + 4, "text-anchor": "end" }, plain(y, 6)));
  for (const value of ticks(x0, x1, false)) if (Number.isInteger(value)) parts.push(
    s("text", { x: X(value), y: H - bottom + 15, "text-anchor": "middle" }, String(value)));
  parts.push(s("line", { class: "axis", x1: left, x2: W - right, y1: H - bottom, y2: H - bottom }),
    s("text", { x: (left + W - right) / 2, y: H - 3, "text-anchor": "middle" }, x));
  for (const [y, words] of limits) parts.push(
    s("line", { class: "limit", x1: left, x2: W - right, y1: Y(y), y2: Y(y) }),
    s("text", { x: W - right + 8, y: Y(y) + 4 }, words)); // beside the plot: no curve lies there
  for (const one of drawn) {
    const path = one.points.filter((p) => Number.isFinite(p[1])).map((p) => `${X(p[0]).toFixed(1)},${Y(p[1]).toFixed(1)}`);
    if (!one.dots) parts.push(s("polyline", { class: "line", stroke: `var(--${one.colour})`, points: path.join(" ") }));
    for (const p of one.dots || path.length < 40 ? one.points : []) if (Number.isFinite(p[1])) parts.push(
      s("circle", { cx: X(p[0]), cy: Y(p[1]), r: 3, fill: `var(--${one.colour})` }, s("title", {}, `${one.name}, ${x} ${p[0]}: ${plain(p[1], 4)}`)));
  }
  const legend = drawn.length > 1 ? h("p", { class: "legend" }, drawn.map((one) => {
    const sign = s("svg", { width: 14, height: 10, "aria-hidden": "true" }, s("circle", { cx: 7, cy: 6, r: 4, fill: `var(--${one.colour})` }));
    return h("span", {}, sign, ` ${one.name}`);
  })) : null;
  return h("figure", { class: "card" }, h("figcaption", {}, title), legend,
    s("svg", { class: "chart", viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": label ?? title }, parts));
}

/** Singular values of an update, unrestrained and restrained, against m. */
export function singularValues(weight) {
  const { m, unrestrained, restrained } = weight, values = unrestrained.values, after = restrained.values;
  const W = 420, H = 200, left = 44, right = 10, top = 14, bottom = 30;
  const high = 1.08 * Math.max(m, ...values, ...after, 1e-9), n = Math.max(values.length, 1);
  const Y = (value) => H - bottom - ((H - bottom - top) * value) / high;
  const step = (W - left - right) / Math.max(n, 8), wide = Math.max(1, step * 0.4);
  const parts = ticks(0, high, false).flatMap((y) => [
    s("line", { class: "grid", x1: left, x2: W - right, y1: Y(y), y2: Y(y) }),
    s("text", { x: left - 6, y: Y(y) + 4, "text-anchor": "end" }, plain(y, 3))]);
  values.forEach((value, i) => {
    const now = after[i] ?? 0, at = left + step * (i + 0.1);
    parts.push(s("rect", { class: "fill-before", x: at, y: Y(value), width: wide, height: Y(0) - Y(value) }),
      s("rect", { class: "fill-after", x: at + wide, y: Y(now), width: wide, height: Y(0) - Y(now) }));
  });
  parts.push(s("line", { class: "axis", x1: left, x2: W - right, y1: Y(0), y2: Y(0) }),
    s("line", { class: "limit", x1: left, x2: W - right, y1: Y(m), y2: Y(m) }),
    s("text", { x: (left + W - right) / 2, y: H - 6, "text-anchor": "middle" }, `i-th singular value σ̂ of the update (the ${n} largest)`));
  return [h("p", { class: "legend" }, h("span", {}, h("span", { class: "key before" }), "no restraint"), h("span", {}, h("span", { class: "key after" }), "restrained"),
    h("span", {}, h("span", { class: "key over" }), `m = ${plain(m)}, σ_max of the unedited weight`)),
    s("svg", { class: "chart", viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `Singular values of the update: the largest is ${plain(values[0])}, restrained ${plain(after[0])}, m is ${plain(m)}` }, parts)];
}

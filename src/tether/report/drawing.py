"""How figures are drawn: a chart is a few small panels with one legend, for a page and for files. No use of pyplot."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from html import escape
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tether.errors import MissingExtraError
from tether.report.curves import Curves, in_words, restraint_name, under
from tether.storage.atomic import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE = resources.files(__package__).joinpath("style.css").read_text(encoding="utf-8").strip()
# The colours of the light page by name: figures are drawn in them, and follow the page's names for them on a dark one.
COLOURS = dict(re.findall(r"--([\w-]+): (#\w{6});", STYLE[: STYLE.index("@media")]))
RED, BLUE, GREEN, ORANGE, PURPLE, SKY, GREY, INK = map(
    COLOURS.__getitem__, ("red", "blue", "green", "orange", "purple", "sky", "grey", "ink")
)
_OTHERS = (BLUE, GREEN, PURPLE, SKY, ORANGE)
_MARKS = "sD^vPX"
_SIGNS = {
    "o": "M9 5a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0",
    "s": "M9 1.5h7v7h-7z",
    "D": "M12.5 .5l4.5 4.5l-4.5 4.5l-4.5-4.5z",
    "^": "M12.5 1l4 8h-8z",
    "v": "M12.5 9l4-8h-8z",
    "P": "M11 1h3v2.5h2.5v3h-2.5v2.5h-3v-2.5h-2.5v-3h2.5z",
    "X": "M9 3l2-2 1.5 1.5 1.5-1.5 2 2-2 2 2 2-2 2-1.5-1.5-1.5 1.5-2-2 2-2z",
    "x": "M9.4 2l6 6m0-6l-6 6",
}  # of markers, in a legend
_NAMES = {colour: f"var(--{name})" for name, colour in reversed(COLOURS.items())}
_KNOWN = re.compile("|".join(_NAMES))
_DASHES = {"-": "none", "--": "5 3", ":": "1.5 2.5"}
_SIZE = (3.6, 2.7)  # inches of a panel: a phone's width
_COLUMNS = 3  # of panels in a file


@dataclass(frozen=True)
class Style:
    """How a curve is drawn: colour, marker and line in matplotlib's words ("" for none)."""

    colour: str
    mark: str = "o"
    line: str = "-"

    @property
    def sign(self) -> str:
        """An svg element for a legend on a page."""
        parts = ""
        if self.line:
            parts += (
                f'<path d="M0 5h25" stroke="currentColor" stroke-width="1.6" stroke-dasharray="{_DASHES[self.line]}"/>'
            )
        if self.mark:
            cross = ' stroke="currentColor" stroke-width="1.6"' if self.mark == "x" else ""
            parts += f'<path d="{_SIGNS[self.mark]}" fill="currentColor"{cross}/>'
        return f'<svg viewBox="0 0 25 10" aria-hidden="true" style="color: {themed(self.colour)}">{parts}</svg>'

    @property
    def look(self) -> dict[str, Any]:
        return {"color": self.colour, "marker": self.mark, "linestyle": self.line}


@dataclass(frozen=True)
class Panel:
    """One pair of axes. `headline`: what they show, in words with numbers."""

    title: str
    draw: Callable[[Axes], None]
    headline: str = ""


@dataclass(frozen=True)
class Chart:
    """Panels that share a legend. `name`, unlike any other on the page, begins its ids and names its files; `label`
    says what is drawn. `curves`: the numbers drawn, by panel."""

    name: str
    label: str
    panels: Sequence[Panel]
    legend: Sequence[tuple[str, Style]] = ()
    curves: Mapping[str, Curves] = field(default_factory=dict)

    def elements(self) -> list[str]:
        """An svg element for every panel. Raises MissingExtraError without matplotlib."""
        found = []
        for i, panel in enumerate(self.panels):
            buffer, name = io.StringIO(), f"{self.name}-{i}"
            with _figure(name, _SIZE) as figure:
                _draw(figure.subplots(), panel)
                figure.savefig(buffer, format="svg", metadata=_NO_METADATA)
            found.append(_element(buffer.getvalue(), name, f"{self.label}: {panel.title}".removesuffix(": ")))
        return found

    def save(self, folder: Path) -> None:
        """Write `NAME.svg` and `NAME.png` with all panels and the legend to the folder, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        columns = min(_COLUMNS, len(self.panels))
        lines = -(-len(self.panels) // columns)
        with _figure(self.name, (_SIZE[0] * columns, _SIZE[1] * lines + 0.3 * bool(self.legend))) as figure:
            every = figure.subplots(lines, columns, squeeze=False).ravel()
            for axes, panel in zip(every, self.panels, strict=False):
                axes.set_title(panel.title)
                _draw(axes, panel)
            for axes in every[len(self.panels) :]:
                axes.set_axis_off()
            if self.legend:
                from matplotlib.lines import Line2D

                handles = [Line2D([], [], **style.look, markersize=5, label=name) for name, style in self.legend]
                figure.legend(handles=handles, loc="outside upper center", ncols=min(2 * columns, len(handles)))
            figure.draw_without_rendering()
            figure.set_layout_engine("none")  # once for all forms
            for form, options in (("svg", {"metadata": _NO_METADATA}), ("png", {"dpi": 150})):
                buffer = io.BytesIO()
                figure.savefig(buffer, format=form, facecolor=COLOURS["paper"], **options)
                write_atomically(folder / f"{self.name}.{form}", buffer.getvalue())


def curve_styles(labels: Iterable[str]) -> dict[str, Style]:
    """A style for every restraint: `none` red and dashed, the others in order of appearance."""
    others = [label for label in dict.fromkeys(labels) if label != "none"]
    return {"none": Style(RED, "o", "--")} | {label: numbered_style(i) for i, label in enumerate(others)}


def numbered_style(number: int) -> Style:
    """One of the styles that go round."""
    return Style(_OTHERS[number % len(_OTHERS)], _MARKS[number % len(_MARKS)])


def plot(axes: Axes, x: Sequence[float], y: Sequence[float], style: Style, errors: Sequence[float] = ()) -> None:
    """A curve with error bars where there are any."""
    axes.errorbar(x, y, errors if any(errors) else None, **style.look, markersize=4.5, linewidth=1.4, capsize=2)


def scale(axes: Axes, values: Iterable[float], axis: str = "y") -> None:
    """A logarithmic axis, with plain numbers on it, where the values span more than a factor of ten."""
    values = list(values)
    if not values or not max(values) > 10 * min(values) > 0:
        return
    span = max(values) / min(values)
    between = (2, 5) if span < 300 else ()
    line, rescale = (axes.yaxis, axes.set_yscale) if axis == "y" else (axes.xaxis, axes.set_xscale)
    rescale("log", subs=between)
    line.set_major_formatter("{x:g}")
    line.set_minor_formatter("{x:g}" if between else "")


def curve_chart(
    name: str,
    label: str,
    curves: Mapping[str, Curves],
    styles: Mapping[str, Style],
    units: Mapping[str, str],
    of: Callable[[str], str] = under,
) -> Chart | None:
    """A panel for each title that has curves; None where none has. `units`: percent, ppl, or what an axis says, by
    title. `of`: how a headline calls a curve."""
    curves = {title: some for title, some in curves.items() if some}
    panels = []
    for title, some in curves.items():
        unit = units.get(title, "")
        panels.append(Panel(title, partial(_draw_curves, some, styles, unit), in_words(title, some, unit, of)))
    drawn = {name for some in curves.values() for name in some}
    legend = [(restraint_name(name), style) for name, style in styles.items() if name in drawn]
    return Chart(name, label, panels, legend, curves) if panels else None


def _draw_curves(curves: Curves, styles: Mapping[str, Style], unit: str, axes: Axes) -> None:
    """Curves with their error bars: percent from 0, anything else on a logarithmic axis where it spans much."""
    points = [point for curve in curves.values() for point in curve]
    for name, curve in curves.items():
        errors = [p.stderr or 0.0 for p in curve]
        plot(axes, [p.edits for p in curve], [p.value for p in curve], styles[name], errors)
    if unit == "percent":
        top = max(p.value + (p.stderr or 0.0) for p in points)
        axes.set_ylim(min(0.0, *(p.value for p in points)), 1.06 * top if top > 0 else 1.0)
    else:
        scale(axes, [p.value for p in points])
    axes.set(xlabel="edits", ylabel="perplexity" if unit == "ppl" else unit)


def _draw(axes: Axes, panel: Panel) -> None:
    panel.draw(axes)
    if axes.get_xscale() == "linear" and axes.get_xlabel() in ("edits", "edit", "i", "copies"):
        axes.locator_params(axis="x", integer=True)


_PAINTED = {
    "ink": ["text.color"],
    "quiet": ["axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"],
    "strong-rule": ["axes.edgecolor", "xtick.color", "ytick.color"],
    "rule": ["grid.color"],
}
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


@contextmanager
def _figure(name: str, size: tuple[float, float]) -> Iterator[Figure]:
    """An empty figure of so many inches in the page's style; the same name gives the same ids."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("figures need matplotlib: pip install 'tether[report]'") from None
    colours = {name: COLOURS[token] for token, names in _PAINTED.items() for name in names}
    with mpl.rc_context({"svg.hashsalt": name, **colours}, Path(__file__).with_name("tether.mplstyle")):
        yield Figure(figsize=size, layout="constrained")


def themed(text: str) -> str:
    """Colours by their names on the page."""
    return _KNOWN.sub(lambda found: _NAMES[found[0]], text)


def _element(document: str, name: str, label: str) -> str:
    """The svg element of an SVG document, its ids made unique on a page."""
    element = document[document.index("<svg") :]
    element = re.sub(r"<style.*?</style>", "", element, flags=re.DOTALL)  # a page's styles would follow it
    element = themed(re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", element))
    return element.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)

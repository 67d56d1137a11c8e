"""The pieces of an HTML page that needs nothing beside it: no script, no network, legible on a phone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

from tether.errors import BadSettingsError
from tether.report.drawing import STYLE, Chart, themed
from tether.storage.atomic import write_atomically

_GENERATOR = b'<meta name="generator" content="tether">'  # in page.html
_LONG = 24  # lines, above which a table scrolls in a box
Cell = str | tuple[str, str]  # text, or text and a class; what stands in a second line of it is small


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it (HTML)."""

    id: str
    title: str
    body: Sequence[str]

    def html(self) -> str:
        body = "\n".join(filter(None, self.body))
        return f'<section><h2 id="{self.id}">{escape(self.title)}</h2>\n{body}</section>'


@dataclass(frozen=True)
class First:
    """A card of the first screen: what is asked, the answer, a figure of it (HTML) and a sentence about it."""

    asked: str
    headline: str
    figure: str
    sentence: str

    def html(self) -> str:
        return (
            f'<div class="card"><p class="note">{escape(self.asked)}</p><h2>{escape(self.headline)}</h2>{self.figure}'
            f"<p>{escape(self.sentence)}</p></div>"
        )


def check_own(to: Path) -> None:
    """Raise BadSettingsError where `to` is a file that tether did not write."""
    if to.exists() and not (to.is_file() and _GENERATOR in to.read_bytes()):
        raise BadSettingsError(f"{to} exists and is no report of tether: name another place, or move it away")


def write_page(to: Path, title: str, about: str, first: Sequence[First], sections: Sequence[Section]) -> Path:
    """Write a page with a table of contents to a file, whole or not at all; its folder is made. Returns the file.
    `about`: what stands under the title."""
    page = Template((resources.files(__package__) / "page.html").read_text(encoding="utf-8")).substitute(
        style=STYLE,
        title=escape(title),
        about=note(about),
        first="\n".join(card.html() for card in first),
        contents="".join(f'<li><a href="#{s.id}">{escape(s.title)}</a></li>' for s in sections),
        sections="\n".join(section.html() for section in sections),
    )
    to.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(to, page.encode())
    return to


def figures(*charts: Chart | None, beside: str = "") -> str:
    """The panels of charts side by side, as many as fit, each under its headline; "" where there is none. `beside`:
    HTML that stands with them."""
    legends, cards = "", ""
    for chart in filter(None, charts):
        legend = "".join(f"<li>{style.sign}{escape(name)}</li>" for name, style in chart.legend)
        legend = f'<ul class="legend">{legend}</ul>' if legend else ""
        own = legend if len(chart.panels) == 1 else ""
        legends += legend if legend != own else ""
        for panel, drawn in zip(chart.panels, chart.elements(), strict=True):
            words = escape(panel.headline or panel.title)
            cards += f'<figure class="card"><figcaption>{words}</figcaption>{own}{drawn}</figure>'
    return f'{legends}<div class="charts">{cards}{beside}</div>' if cards else beside


@dataclass(frozen=True)
class Stretch:
    """Of a bar: from where to where, from 0 to 1, and how much of its height."""

    start: float
    end: float
    colour: str
    height: float = 1.0


@dataclass(frozen=True)
class Bar:
    """A line of a small figure: what it is of, its stretches, and its value."""

    name: str
    stretches: Sequence[Stretch]
    value: str


def bars(groups: Mapping[str, Sequence[Bar]], name: str) -> str:
    """Bars under the names of their groups, as a table that is called `name`."""
    body = ""
    for title, lines in groups.items():
        body += "<tbody>" + (f'<tr><th colspan="3" scope="rowgroup">{escape(title)}</th></tr>' if title else "")
        for bar in lines:
            drawn = ""
            for s in bar.stretches:
                place = f'x="{100 * s.start:.2f}" y="{8 - 8 * s.height:g}"'
                size = f'width="{100 * (s.end - s.start):.2f}" height="{8 * s.height:g}"'
                drawn += f'<rect {place} {size} style="fill: {themed(s.colour)}"/>'
            drawn = f'<svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">{drawn}</svg>'
            cells = f'<td class="bar">{drawn}</td><td class="n">{escape(bar.value)}</td>'
            body += f'<tr><th scope="row">{escape(bar.name)}</th>{cells}</tr>'
        body += "</tbody>"
    return f'<table class="bars" aria-label="{escape(name)}">{body}</table>' if body else note("Not measured.")


def table(
    head: Sequence[str], lines: Sequence[Sequence[Cell]], classes: Sequence[str] | None = None, *, name: str
) -> str:
    """A table called `name`, in a box that scrolls where it is wide or long; "Not measured." without lines. `classes`:
    of every line."""
    if not lines:
        return note("Not measured.")
    body = []
    for i, line in enumerate(lines):
        cells = (f"<td>{escape(c)}</td>" if isinstance(c, str) else _classed(*c) for c in line)
        row_class = f' class="{escape(classes[i])}"' if classes and classes[i] else ""
        body.append(f"<tr{row_class}>{''.join(cells)}</tr>")
    kinds = ["" if isinstance(cell, str) or cell[1] != "n" else ' class="n"' for cell in lines[0]]
    top = "".join(f'<th scope="col"{kind}>{escape(text)}</th>' for text, kind in zip(head, kinds, strict=True))
    rows = "\n".join(body)
    inner = f"<table>\n<thead><tr>{top}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>"
    box = "wide scroll" if len(lines) > _LONG else "wide"
    return f'<div class="{box}" tabindex="0" role="region" aria-label="{escape(name)}">{inner}</div>'


def _classed(text: str, name: str) -> str:
    if name in ("yes", "no", "open"):
        return f'<td><b class="{name}">{escape(text)}</b></td>'
    text, _, small = text.partition("\n")
    if small:
        return f'<td class="{name}">{escape(text)}<small>{escape(small)}</small></td>'
    return f'<td class="{name}">{escape(text)}</td>'


def n(value: object) -> Cell:
    """A cell that holds a number."""
    return str(value), "n"


def plain(value: float | None, form: str = ".4g") -> str:
    """A number, or a dash for none and for NaN."""
    return "–" if value is None or math.isnan(value) else format(value, form)


def note(text: str) -> str:
    """A paragraph in grey."""
    return f'<p class="note">{escape(text)}</p>'


def details(summary: str, *parts: str) -> str:
    """HTML that shows itself when asked for."""
    return f"<details><summary>{escape(summary)}</summary>{''.join(parts)}</details>"

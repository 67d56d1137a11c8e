"""The pieces of an HTML page that needs nothing beside it: no script, no network, legible on a phone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

from tether.errors import BadSettingsError
from tether.report.drawing import Chart
from tether.storage.atomic import write_atomically

_GENERATOR = b'<meta name="generator" content="tether">'  # in page.html
_SIGNS = {"o": "●", "s": "■", "D": "◆", "^": "▲", "v": "▼", "P": "✚", "X": "✖", "x": "×", "": ""}
_LINES = {"-": "—", "--": "╌", ":": "··", "": ""}

Cell = str | tuple[str, str]  # text, or text and a class


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it (HTML)."""

    id: str
    title: str
    body: Sequence[str]

    def html(self) -> str:
        return "\n".join([f'<h2 id="{self.id}">{escape(self.title)}</h2>', *(part for part in self.body if part)])


def check_own(to: Path) -> None:
    """Raise BadSettingsError where `to` is a file that tether did not write."""
    if to.exists() and not (to.is_file() and _GENERATOR in to.read_bytes()):
        raise BadSettingsError(f"{to} exists and is no report of tether: name another place, or move it away")


def write_page(to: Path, title: str, about: str, sections: Sequence[Section]) -> Path:
    """Write a page with a table of contents to a file, whole or not at all; its folder is made. Returns the file.
    `about`: what stands under the title."""
    here = resources.files(__package__)
    page = Template((here / "page.html").read_text(encoding="utf-8")).substitute(
        style=(here / "style.css").read_text(encoding="utf-8").strip(),
        title=escape(title),
        about=note(about),
        contents="".join(f'<li><a href="#{s.id}">{escape(s.title)}</a></li>' for s in sections),
        sections="\n".join(section.html() for section in sections),
    )
    to.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(to, page.encode())
    return to


def figure(chart: Chart | None, files: str = "") -> str:
    """A chart's panels side by side, as many as fit, under its legend; "" for None. `files`: HTML below it."""
    if chart is None:
        return ""
    legend = ""
    for name, style in chart.legend:
        sign = _LINES[style.line] + _SIGNS[style.mark] + _LINES[style.line]
        legend += f'<li><span aria-hidden="true" style="color:{style.colour}">{sign}</span> {escape(name)}</li>'
    legend = f'<ul class="legend">{legend}</ul>' if legend else ""
    caption = f"<figcaption>{escape(chart.label)}{files}</figcaption>"
    return f'<figure id="{chart.name}">{caption}{legend}<div class="panels">{"".join(chart.elements())}</div></figure>'


def table(head: Sequence[str], lines: Sequence[Sequence[Cell]], classes: Sequence[str] | None = None) -> str:
    """A table in a box that scrolls; "Not measured." without lines. `classes`: of every line."""
    if not lines:
        return note("Not measured.")
    body = []
    for i, line in enumerate(lines):
        cells = (f"<td>{escape(c)}</td>" if isinstance(c, str) else _classed(*c) for c in line)
        row_class = f' class="{escape(classes[i])}"' if classes and classes[i] else ""
        body.append(f"<tr{row_class}>{''.join(cells)}</tr>")
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    rows = "\n".join(body)
    inner = f"<table>\n<thead><tr>{top}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>"
    return f'<div class="wide" tabindex="0">{inner}</div>'


def _classed(text: str, name: str) -> str:
    if name in ("yes", "no", "open"):
        return f'<td><b class="{name}">{escape(text)}</b></td>'
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

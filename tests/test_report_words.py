"""What a report says of its numbers in words, and the colours that it is drawn in."""

from __future__ import annotations

import math
import re

import pytest

from tether.report.curves import Point, in_words, short, span
from tether.report.drawing import COLOURS, STYLE, themed


def curve(*values: float) -> list[Point]:
    return [Point(10 * i, value, None) for i, value in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((20, 30, 80), "κ rises from 20 to 80 over 20 edits"),
        ((80, 20), "κ falls from 80 to 20 over 10 edits"),
        ((20, 20.5), "κ hardly moves from 20 to 20.5 over 10 edits"),
        ((20, 90, 20), "κ is 20 before and after 20 edits"),
        ((20,), "κ is 20 after 0 edits"),
    ],
)
def test_a_headline_says_where_a_curve_starts_and_ends(values: tuple[float, ...], said: str) -> None:
    assert in_words("κ", {"none": curve(*values)}) == said


def test_a_headline_names_the_other_curves_or_counts_them() -> None:
    two = {"log:1.2": curve(1, 2), "none": curve(1, 4)}
    assert in_words("κ", two) == "κ without a restraint rises from 1 to 4 over 10 edits, 2 under log:1.2"
    many = {"none": curve(1, 4), **{f"log:{i}": curve(1, i) for i in (2, 3, 5)}}
    assert in_words("κ", many).endswith("over 10 edits; 3 others end at 2 to 5")


def test_numbers_for_a_sentence() -> None:
    assert [short(x) for x in (20.66, 1234.5, 2e9, math.inf, None, math.nan)] == [
        "20.7",
        "1,234",
        "2.0e+09",
        "inf",
        "–",
        "–",
    ]
    assert short(54.4, "percent") == "54\u00a0%"
    assert span([54.4, 12, 30], "percent") == "12 to 54\u00a0%"


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(a: str, b: str) -> float:
    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


def test_every_colour_stands_out_on_both_grounds() -> None:
    """WCAG 2.2 AA: text 4.5:1, what is drawn 3:1."""
    light, dark = (dict(re.findall(r"--([\w-]+): (#\w{6});", block)) for block in STYLE.split("@media")[:2])
    assert light == COLOURS and light.keys() == dark.keys()
    for of in (light, dark):
        for name in ("ink", "quiet", "link"):
            assert all(contrast(of[name], of[ground]) >= 4.5 for ground in ("paper", "raised")), name
        for name in ("yes", "no", "open", "warn"):
            assert contrast(of[name], of[f"{name}-ground"]) >= 4.5, name
        for name in ("red", "blue", "green", "orange", "purple", "sky", "grey", "strong-rule"):
            assert contrast(of[name], of["paper"]) >= 3, name
        assert contrast(of["on-accent"], of["accent"]) >= 4.5


def test_figures_follow_the_colours_of_the_page() -> None:
    assert themed(f"stroke: {COLOURS['red']}; fill: #123456") == "stroke: var(--red); fill: #123456"

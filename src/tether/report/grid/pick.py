"""What figures draw and rules read of an editor: which restraint stands for PRUNE, which weight is the worst."""

from __future__ import annotations

from tether.analyses.points import CopiesPoint
from tether.evaluation.metrics.instance_change import INSTANCE_CHANGE
from tether.evaluation.results import Row
from tether.report.curves import Curves, Estimate, Point, at
from tether.report.grid.series import Editor


def prune(editor: Editor) -> str | None:
    """The curve that stands for PRUNE: log:1.2, else the first log restraint applied once."""
    once = [name for name in editor.restraints if name.startswith("log:") and " " not in name]
    return "log:1.2" if "log:1.2" in once else next(iter(once), None)


def linear(editor: Editor) -> str | None:
    """The linear restraint applied once."""
    return next((name for name in editor.restraints if name.startswith("linear:") and " " not in name), None)


def once_and_multiple(editor: Editor) -> tuple[str, str] | None:
    """A restraint applied once, and the same every so many edits."""
    names = editor.restraints
    return next(((once, name) for name in names if (once := name.split(" every ")[0]) in names and once != name), None)


def worst(editor: Editor, field: str) -> str | None:
    """The weight whose field (`kappa`, or `update_sigma_max` against its m) is largest after the most edits, without a
    restraint."""
    found = editor.spectra(field)
    m = editor.m if field == "update_sigma_max" else {}
    size = {w: c["none"][-1].value / m.get(w, 1.0) for w, c in found.items() if "none" in c}
    return max(size, key=lambda weight: size[weight], default=None)


def kappa_and_abilities(editor: Editor) -> list[tuple[float, float]]:
    """(κ of the worst weight, share of the abilities kept) of every unrestrained checkpoint."""
    weight = worst(editor, "kappa")
    return [] if weight is None else _joined(editor.spectra("kappa")[weight], editor.kept())


def locality_and_abilities(editor: Editor) -> list[tuple[float, float]]:
    """(locality, share of the abilities kept) of every unrestrained checkpoint."""
    locality = next((kind for kind in editor.kinds if kind.endswith("locality")), "")
    return _joined(editor.measured(locality), editor.kept())


def _joined(first: Curves, second: Curves) -> list[tuple[float, float]]:
    other = second.get("none", [])
    return [(p.value, q.value) for p in first.get("none", []) if (q := at(other, p.edits)) is not None]


def copies(editor: Editor, restraint: str) -> list[CopiesPoint]:
    """The copies of one update under a restraint, of the first run that has them."""
    measured = [stored.analyses.copies for stored in editor.runs if stored.analyses.copies]
    return sorted((p for p in measured[0] if p.restraint == restraint), key=lambda p: p.copies) if measured else []


def worst_bound(editor: Editor) -> str | None:
    """The weight whose bound of the sum, or else of its last edit, is largest."""
    found = editor.bounds("sum") or editor.bounds("edit")
    return max(found, key=lambda w: found[w].get("none", [Point(0, 0, None)])[-1].value, default=None)


def instance_changes(editor: Editor) -> Curves:
    """Instance change (ConceptEdit), in points of percent."""

    def value(row: Row) -> Estimate | None:
        change = row.editing.get(INSTANCE_CHANGE, {}).get("change")
        return None if change is None or change.value is None else (change.value, change.stderr)

    return editor.curves(value)

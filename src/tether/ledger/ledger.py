"""The ledger: a folder that says what was changed in a model, so that it can be applied, undone, restrained, exported.

ledger = tether.Ledger.open("my-edits")
model = ledger.apply()                      # W₀ + what the ledger says
ledger.undo(17); ledger.apply(model)        # exact: as if edit 17 had not been added
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from safetensors.torch import load, save
from torch import Tensor

from tether.algebra.joint_solve import Solution
from tether.algebra.lowrank import LowRank
from tether.algebra.spectrum import Extremes, Spectrum
from tether.constraints.base import Constraint, label_of, parse
from tether.errors import TetherError
from tether.export import LoraReport, Provenance, check_kind, export_updates
from tether.facts.fact import Fact
from tether.ledger.journal import Event, Header, Journal, writing
from tether.ledger.replay import Sums
from tether.models import EditableModel
from tether.models import load as load_model
from tether.storage.atomic import write_atomically

ATTEMPTS = ("edit", "failed", "skipped")


@dataclass(frozen=True)
class Attempt:
    """What became of one fact of a batch: `edit`, `failed` or `skipped`, with the reason, and what was measured."""

    kind: Literal["edit", "failed", "skipped"]
    fact: Fact
    record: dict[str, Any]
    reason: str | None = None


@dataclass(frozen=True)
class SpectrumRow:
    """The singular values of one weight after some edits under some restraint. `rounding` is what the model's dtype
    loses: ‖round(W₀ + Σ) − (W₀ + Σ)‖_F / ‖Σ‖_F; None in float32, and without an update."""

    edits: int
    restraint: str
    weight: str
    extremes: Extremes
    m: float
    update_singular_values: tuple[float, ...]
    rounding: float | None


class Ledger:
    """A ledger on disk. Reads are checked against the journal's hashes; one process writes at a time."""

    def __init__(self, path: Path, header: Header, journal: Journal) -> None:
        self.path, self.header, self._journal = path, header, journal

    # --- making, opening, checking ------------------------------------------------------------------------------

    @classmethod
    def create(cls, path: str | Path, header: Header) -> Ledger:
        """A new ledger in an empty or new folder."""
        path = Path(path)
        (path / "factors").mkdir(parents=True, exist_ok=True)
        with writing(path):
            if (path / "ledger.json").exists():
                raise TetherError(f"{path} is a ledger already: choose another folder")
            write_atomically(path / "ledger.json", (header.model_dump_json(indent=2) + "\n").encode())
        return cls(path, header, Journal(path))

    @classmethod
    def open(cls, path: str | Path, model: EditableModel | None = None) -> Ledger:
        """Open a ledger and check every line of its journal; with a model, that it is the one the edits belong to."""
        path = Path(path)
        try:
            header = Header.model_validate_json((path / "ledger.json").read_bytes())
        except OSError:
            raise TetherError(
                f"{path} is no ledger: it has no readable ledger.json; name the folder of a ledger"
            ) from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise TetherError(
                f"{path / 'ledger.json'}: {where} is not of ledger format 1 ({first['msg']}): damaged, or newer "
                "than this tether"
            ) from None
        ledger = cls(path, header, Journal(path))
        if model is not None:
            ledger.check_model(model)
        return ledger

    def check_model(self, model: EditableModel) -> None:
        """Raise TetherError unless the model's edited weights are those the ledger was made on."""
        found = model.fingerprint(list(self.header.weights))
        if found != self.header.fingerprint:
            raise TetherError(
                f"{model.id} is not the model of {self.path}: its weights have fingerprint {found[:12]}, the ledger "
                f"{self.header.fingerprint[:12]}; load {self.header.model!r} as it was"
            )

    def verify(self, model: EditableModel | None = None) -> dict[str, Any]:
        """Check every line and every factors file (and the model). Returns counts by kind; raises TetherError that
        names the first damaged event."""
        self._journal.reload()
        counts: dict[str, int] = {}
        named = set()
        for event in self.events:
            counts[event.kind] = counts.get(event.kind, 0) + 1
            if event.factors:
                self._factors_bytes(event)
                named.add(Path(event.factors).name)
        orphans = sorted(f.name for f in (self.path / "factors").glob("*.safetensors") if f.name not in named)
        expected = f"{self.attempts + 1:06d}.safetensors"  # a kill between the file and its line
        if [name for name in orphans if name != expected]:
            raise TetherError(
                f"{self.path}: factors/{orphans[0]} has no line in the journal, so lines were cut off behind event "
                f"{len(self.events)}; restore journal.jsonl from a copy"
            )
        if model is not None:
            self.check_model(model)
        return {"events": len(self.events), "kinds": counts, "torn_line": self._journal.torn, "head": self.head}

    # --- what it says -------------------------------------------------------------------------------------------

    @property
    def events(self) -> list[Event]:
        return self._journal.events

    def reload(self) -> None:
        """Read the journal again, as it is on disk."""
        self._journal.reload()

    @property
    def head(self) -> str:
        """sha256 of the journal's last line."""
        return self._journal.head

    @property
    def attempts(self) -> int:
        """How many facts were tried: the number of the last edit."""
        return sum(event.kind in ATTEMPTS for event in self.events)

    @property
    def undone(self) -> frozenset[int]:
        return frozenset(i for event in self.events if event.undone for i in event.undone)

    def live(self, upto: int | None = None) -> list[Event]:
        """The edits that count: not undone, numbered at most `upto`."""
        undone = self.undone
        return [e for e in self._until(upto) if e.kind == "edit" and e.edit not in undone]

    def facts(self, upto: int | None = None) -> list[tuple[int, Fact]]:
        """Every fact tried and not undone, with its edit number; failed and skipped ones included."""
        undone = self.undone
        return [
            (e.edit, e.fact) for e in self._until(upto)
            if e.kind in ATTEMPTS and e.edit is not None and e.fact is not None and e.edit not in undone
        ]  # fmt: skip

    def restraints(self, upto: int | None = None) -> list[tuple[int, str]]:
        """Every restraint that the journal records up to edit `upto`, as (number of the edit before it, restraint)."""
        found, edit = [], 0
        for event in self._until(upto):
            edit = event.edit or edit
            if event.kind == "restrain" and event.restrain is not None:
                found.append((edit, event.restrain))
        return found

    def _until(self, upto: int | None) -> Iterator[Event]:
        if upto is not None and not 0 <= upto <= self.attempts:
            raise TetherError(f"{upto} edits: {self.path} has edits 1 to {self.attempts}")
        for event in self.events:
            if upto is not None and event.kind in ATTEMPTS and event.edit is not None and event.edit > upto:
                return
            yield event

    def factors(self, event: Event) -> dict[str, LowRank]:
        """The updates of one edit by weight name, float32 on the CPU, checked against the journal. Of a fact edited in
        a batch: its term of the batch's sum."""
        tensors = load(self._factors_bytes(event))
        part = slice(None) if event.column is None else slice(event.column, event.column + 1)
        return {
            name: LowRank(tensors[f"{name}/A"][:, part], tensors[f"{name}/B"][part])
            for name in self.header.weights if f"{name}/A" in tensors
        }  # fmt: skip

    def tensors(self, event: Event) -> dict[str, Tensor]:
        """Everything in an edit's factors file, which the facts of a batch share: "<weight>/A", "<weight>/B", and what
        its editor kept ("<weight>/K", …); float32 on the CPU, checked against the journal."""
        return load(self._factors_bytes(event))

    def vectors(self, event: Event, kind: Literal["K", "V"]) -> dict[str, Tensor]:
        """The keys "K" (n×q) or values "V" (n×p) that the editor kept of one edit, by weight name, one a row (one row
        but for editors with many keys a fact), float32 on the CPU, checked against the journal."""
        tensors = load(self._factors_bytes(event))
        rows = slice(None) if event.column is None else slice(event.column, event.column + 1)
        return {
            name: torch.atleast_2d(tensors[f"{name}/{kind}"])[rows]
            for name in self.header.weights if f"{name}/{kind}" in tensors
        }  # fmt: skip

    def _updates(self, batch: Sequence[Event], counting: Set[int]) -> dict[str, LowRank]:
        """The updates of one factors file (its edit events are `batch`), for the edits `counting` alone: of facts
        edited in one solve, the solution of the same residuals without the others' keys."""
        tensors = load(self._factors_bytes(batch[0]))
        removed = [event.column for event in batch if event.column is not None and event.edit not in counting]
        kept = [event.column for event in batch if event.column is not None and event.edit in counting]
        updates = {}
        for name in self.header.weights:
            if f"{name}/A" not in tensors:
                continue
            A, B = tensors[f"{name}/A"], tensors[f"{name}/B"]
            if removed:
                solution = Solution(B.double(), tensors[f"{name}/H"].double()).without(removed)
                A, B = A[:, kept], solution.G.float()
            updates[name] = LowRank(A, B)
        return updates

    def _factors_bytes(self, event: Event) -> bytes:
        where = f"{self.path}: event {event.number} (edit {event.edit})"
        if event.factors is None:
            raise TetherError(f"{where} names no factors file: restore the ledger from a copy")
        try:
            data = (self.path / event.factors).read_bytes()
        except OSError:
            raise TetherError(f"{where}: {event.factors} is missing; restore it from a copy") from None
        if hashlib.sha256(data).hexdigest() != event.sha256:
            raise TetherError(
                f"{where}: {event.factors} does not match its sha256; it was changed, restore it from a copy"
            )
        return data

    # --- what follows from it -----------------------------------------------------------------------------------

    def sums(
        self, upto: int | None = None, restrain: str | Constraint | None = None, *, without: Set[int] = frozenset(),
        by_event: bool = True,
    ) -> Sums:  # fmt: skip
        """The sums of updates. `restrain` None replays the journal with its restraints; otherwise the sum of live edits
        up to `upto`, and that function once. `without` some edits: as after their undo. `by_event` false: as factors
        alone, where nobody needs the bits of a live run's dense sum."""
        sums = self._no_sums(by_event=by_event and restrain is None)
        counting = {event.edit for event in self.live(upto) if event.edit is not None} - without
        for _ in self._replay(sums, upto, counting, restrains=restrain is None):
            pass
        if restrain is not None:
            sums.restrain(parse(restrain))
        return sums

    def states(self) -> Iterator[tuple[list[Event], Sums]]:
        """The journal replayed, solve by solve: its live edits (one, but for a batch), and the sums right after it,
        before a restraint that follows. The sums are factors alone, one object that the next step changes."""
        sums = self._no_sums(by_event=False)
        counting = {event.edit for event in self.live() if event.edit is not None}
        for events in self._replay(sums, None, counting, restrains=True):
            yield events, sums

    def _no_sums(self, *, by_event: bool) -> Sums:
        return Sums(
            {name: weight.shape for name, weight in self.header.weights.items()},
            {name: weight.sigma_max for name, weight in self.header.weights.items()},
            by_event=by_event,
        )

    def _replay(self, sums: Sums, upto: int | None, counting: Set[int], *, restrains: bool) -> Iterator[list[Event]]:
        """Change `sums` event by event; yields the edits that count of every solve, once it is in."""
        batches: dict[str, list[Event]] = {}
        for event in self.events:
            if event.kind == "edit" and event.factors:
                batches.setdefault(event.factors, []).append(event)
        added = set()
        for event in self._until(upto):
            if event.kind == "edit" and event.edit in counting and event.factors not in added:
                added.add(event.factors)
                batch = batches[event.factors or ""]
                sums.add(self._updates(batch, counting))
                yield [one for one in batch if one.edit in counting]
            elif event.kind == "restrain" and restrains and event.restrain is not None:
                sums.restrain(parse(event.restrain))

    def apply(
        self, model: EditableModel | None = None, *, upto: int | None = None, restrain: str | Constraint | None = None
    ) -> EditableModel:
        """Make the model (the recorded one is loaded if none is given) carry the ledger's edits. Changes it in place,
        from its original weights: what else it carried on these weights is replaced."""
        model = self.model_or_load(model)
        self.sums(upto, restrain).show(model)
        return model

    def model_or_load(self, model: EditableModel | None) -> EditableModel:
        """The given model after the fingerprint check, or the recorded one."""
        if model is None:
            model = load_model(self.header.model, dtype=self.header.dtype, anatomy=self.header.anatomy)
        self.check_model(model)
        return model

    def undo(self, *edits: int) -> Event:
        """Take edits out, by number: from now on the ledger is what it would be without them in the sum, later
        restraints recomputed. Later edits are *not* computed anew. Nothing is deleted; needs no model."""
        if not edits:
            raise TetherError("undo needs the number of an edit: see `tether log`")
        with self.writing():
            live = {event.edit for event in self.live()}
            for edit in edits:
                if edit not in live:
                    why = "was undone already" if edit in self.undone else "is no live edit"
                    raise TetherError(f"edit {edit} {why}: see `tether log {self.path}` for the numbers")
            return self._journal.append({"kind": "undo", "undone": tuple(sorted(set(edits)))})[0]

    def spectrum(
        self, model: EditableModel | None = None, *, at: Sequence[int] | None = None,
        restrain: str | Constraint | None = None,
    ) -> list[SpectrumRow]:  # fmt: skip
        """σ_max, σ_min, κ of every edited weight and σ̂ of its update, after each number of edits in `at` (default:
        all). Of the float32 W₀ + Σ, also for a model in a smaller dtype. The model is not changed."""
        model = self.model_or_load(model)
        spectra = {name: Spectrum(model.original(name)) for name in self.header.weights}
        rows = []
        for upto in at if at is not None else [self.attempts]:
            sums = self.sums(upto, restrain, by_event=False)
            for name, spectrum in spectra.items():
                held = sums.of[name].factors
                rows.append(
                    SpectrumRow(
                        upto, label_of(restrain), name, spectrum.of(held), sums.m[name],
                        tuple(held.singular_values().tolist()), model.rounding(name, held),
                    )
                )  # fmt: skip
        return rows

    def export(
        self, model: EditableModel | None, to: str | Path, *, as_: Literal["merged", "lora"],
        restrain: str | Constraint | None = None, upto: int | None = None, rank: int | None = None,
    ) -> LoraReport | None:  # fmt: skip
        """Write the edited model as a folder for transformers (`merged`) or as an adapter for peft (`lora`): the live
        edits up to `upto`, with the journal's own restraints (`restrain` None) or one of the sum. Returns what an
        adapter holds, None for a merged folder. The given model carries afterwards what it carried before."""
        check_kind(as_, rank)
        model, header = self.model_or_load(model), self.header
        about = Provenance(
            base_model=header.model, fingerprint=header.fingerprint, method=header.method, settings=header.settings,
            restraint=self._restraint_in_words(upto) if restrain is None else str(parse(restrain)),
            facts=[(e.edit, e.fact) for e in self.live(upto) if e.edit is not None and e.fact is not None],
            weights=list(header.weights), head=self.head, versions=header.versions,
        )  # fmt: skip
        sums = self.sums(upto, restrain)
        with model.provisional({}):  # gives back what the model carries
            if as_ == "merged":
                sums.show(model)
            factors = {name: held.factors for name, held in sums.of.items()}
            return export_updates(model, factors, Path(to), about, as_=as_, rank=rank)

    def _restraint_in_words(self, upto: int | None) -> str:
        """The restraints that a replay of the journal applies: `log:1.2 after edit 10, 20`."""
        after: dict[str, list[str]] = {}
        for edit, restraint in self.restraints(upto):
            after.setdefault(restraint, []).append(str(edit))
        return "; ".join(f"{name} after edit {', '.join(edits)}" for name, edits in after.items()) or "none"

    # --- writing ------------------------------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the ledger's lock; the journal is read again first, so that nothing written meanwhile is lost."""
        with writing(self.path):
            self._journal.reload()
            yield

    def append(
        self, attempts: Sequence[Attempt], updates: dict[str, LowRank], vectors: dict[str, Tensor]
    ) -> list[Event]:
        """What became of one fact, or of the facts of one solve: factors first (temporary name, fsync, rename), then a
        line each (fsync), all of them or none. `updates` and `vectors` are of the edited ones. Needs `writing`."""
        first = self.attempts + 1
        edited = any(attempt.kind == "edit" for attempt in attempts)
        kept = self._write_factors(first, updates, vectors) if edited else self._discard(first)
        columns = itertools.count()
        lines = []
        for place, attempt in enumerate(attempts):
            line: dict[str, Any] = {
                "kind": attempt.kind, "edit": first + place, "fact": attempt.fact, "reason": attempt.reason,
                "record": attempt.record,
            }  # fmt: skip
            if attempt.kind == "edit":
                line |= kept
            if len(attempts) > 1:
                line |= {"batch": (place + 1, len(attempts))}
                line |= {"column": next(columns)} if attempt.kind == "edit" else {}
            lines.append(line)
        return self._journal.append(*lines)

    def _write_factors(self, edit: int, updates: dict[str, LowRank], vectors: dict[str, Tensor]) -> dict[str, str]:
        tensors = {
            f"{name}/{part}": getattr(update, part) for name, update in updates.items() for part in "AB"
        } | vectors
        data = save({n: t.detach().to("cpu", torch.float32, copy=True).contiguous() for n, t in tensors.items()})
        file = f"factors/{edit:06d}.safetensors"
        write_atomically(self.path / file, data)
        return {"factors": file, "sha256": hashlib.sha256(data).hexdigest()}

    def _discard(self, edit: int) -> dict[str, str]:
        """A kill between the factors of another fact and their line may have left this number's file."""
        (self.path / f"factors/{edit:06d}.safetensors").unlink(missing_ok=True)
        return {}

    def append_restraint(self, restraint: Constraint, record: dict[str, Any], reason: str | None = None) -> Event:
        """A restraint of the sum so far, with the reason where it was not in the schedule. Needs `writing`."""
        line = {"kind": "restrain", "restrain": str(restraint), "record": record, "reason": reason}
        return self._journal.append(line)[0]

    def append_guard(self, reason: str, record: dict[str, Any], undone: Sequence[int] = ()) -> Event:
        """A guard's look, and the edits it took back. Needs `writing`."""
        line = {"kind": "guard", "undone": tuple(undone) or None, "reason": reason, "record": record}
        return self._journal.append(line)[0]

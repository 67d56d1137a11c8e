"""The ledger: a folder that says what was changed in a model, so that it can be applied, undone, restrained, exported.

ledger = tether.Ledger.open("my-edits")
model = ledger.apply()                      # W₀ + what the ledger says
ledger.undo(17); ledger.apply(model)        # exact: as if edit 17 had not been added
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import ValidationError
from safetensors.torch import load, save
from torch import Tensor

from tether.algebra.lowrank import LowRank
from tether.algebra.spectrum import Extremes, Spectrum
from tether.constraints.base import Constraint, label_of, parse
from tether.errors import BadLedgerError, BadSettingsError, TetherError, WrongModelError, pydantic_line
from tether.export import WHOLE, Form, LoraReport, Provenance, check_form, export_adapter, export_whole, make_adapter
from tether.export.folder import new_folder
from tether.export.lora import write_lora
from tether.facts.fact import Fact
from tether.ledger.journal import ATTEMPTS, Event, Header, Journal, writing
from tether.ledger.replay import Replay, Sums, acts, by_file, check_counts, check_ends, damaged, sound_factors
from tether.models import EditableModel
from tether.models import load as load_model
from tether.models.load import wrapped
from tether.storage.atomic import write_atomically

if TYPE_CHECKING:
    from peft import PeftModel

logger = logging.getLogger(__name__)

_FACTORS = re.compile(r"factors/\d{6,}\.safetensors")
Restrain = str | Constraint | None  # None: as recorded


@dataclass(frozen=True)
class Attempt:
    """What became of one fact of a batch: `edit`, `failed` or `skipped`, with the reason, what was measured, and how
    many columns of the batch's update are the fact's own (0: the facts share it). Of an imported update there is no
    fact, and the reason says what it is."""

    kind: Literal["edit", "failed", "skipped"]
    fact: Fact | None
    record: dict[str, Any]
    reason: str | None = None
    columns: int = 1


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
        self._last_read: tuple[object, dict[str, Tensor]] = (None, {})
        self.trial: TemporaryDirectory[str] | None = None  # the folder of a trial, which goes with this object

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
        return cls(path, header, Journal(path, header))

    @classmethod
    def open(cls, path: str | Path, model: EditableModel | None = None) -> Ledger:
        """Open a ledger and check every line of its journal; with a model, that it is the one the edits belong to."""
        path = Path(path)
        try:
            header = Header.model_validate_json((path / "ledger.json").read_bytes())
        except OSError:
            why = "no ledger: it has no readable ledger.json; name the folder of a ledger"
            raise BadLedgerError(f"{path} is {why}") from None
        except ValidationError as error:
            why = f"not of ledger format 1 ({pydantic_line(error)}): damaged, or newer than this tether"
            raise BadLedgerError(f"{path / 'ledger.json'} is {why}") from None
        ledger = cls(path, header, Journal(path, header))
        if model is not None:
            ledger.check_model(model)
        return ledger

    def check_model(self, model: EditableModel) -> None:
        """Raise WrongModelError unless the model's edited weights are those the ledger was made on."""
        found = model.fingerprint(list(self.header.weights))
        if found != self.header.fingerprint:
            prints = f"its weights have fingerprint {found[:12]}, the ledger {self.header.fingerprint[:12]}"
            remedy = f"load {self.header.model!r} as it was"
            raise WrongModelError(f"{model.id} is not the model of {self.path}: {prints}; {remedy}")
        if not self.is_its_model(model):
            logger.warning(
                "%s has the edited weights of %s and other weights beside them: results and cards name it",
                model.id, self.header.model,
            )  # fmt: skip

    def is_its_model(self, model: EditableModel) -> bool:
        """Whether the whole model is the one the ledger was made on, and not only its edited weights. True where an
        earlier version did not record it."""
        return self.header.checkpoint in (None, model.fingerprint())

    def name_of(self, model: EditableModel) -> str:
        """What cards and results call a model: as the ledger does, where it is the ledger's own."""
        return self.header.model if self.is_its_model(model) else model.id

    def verify(self, model: EditableModel | None = None, *, head: str | None = None) -> dict[str, Any]:
        """Check every line and every factors file (and the model). Returns counts by kind; raises BadLedgerError that
        names the first damaged event.

        A journal whose last lines were cut off looks whole. `head`, the `head` that the ledger had at some earlier
        time (its first 8 digits are enough), is the remedy: the journal must still hold that line. Nothing is signed:
        without such a head, who can write the folder can also rewrite it.
        """
        self.reload()
        for event in self.events:
            if event.factors:
                self.tensors(event)
        self._check_no_lines_missing()
        counts = dict(Counter(event.kind for event in self.events))
        report = {"events": len(self.events), "kinds": counts, "torn_line": self._journal.torn, "head": self.head}
        if head is not None:
            if not re.fullmatch("[0-9a-fA-F]{8,64}", head):
                rule = "give at least the first 8 hexadecimal digits of a ledger's head"
                raise BadSettingsError(f"head {head!r}: {rule}")
            report["events_after_head"] = after = self._journal.after(head)
            if after is None:
                raise BadLedgerError(
                    f"{self.path}: no line of its journal has the head {head}: lines after event {len(self.events)} "
                    f"(head {self.head[:12]}) were cut off, or lines were rewritten; restore journal.jsonl from a copy"
                )
        if model is not None:
            self.check_model(model)
            if not self.is_its_model(model):
                raise WrongModelError(
                    f"{model.id} has the edited weights of {self.header.model}, the model of {self.path}, but other "
                    f"weights beside them: load {self.header.model!r} as it was"
                )
        return report

    def events_after(self, head: str) -> int | None:
        """How many events followed since `head`, in full, was the head; None where it never was."""
        return self._journal.after(head)

    def _check_no_lines_missing(self) -> None:
        orphans = {f"factors/{file.name}" for file in (self.path / "factors").glob("*.safetensors")}
        orphans -= {event.factors for event in self.events if event.factors}
        orphans.discard(_factors_file(self.attempts + 1))  # a kill between the file and its line
        if orphans:
            raise BadLedgerError(
                f"{self.path}: {min(orphans)} has no line in the journal, so lines were cut off after event "
                f"{len(self.events)}; restore journal.jsonl from a copy"
            )

    # --- what it says -------------------------------------------------------------------------------------------

    @property
    def events(self) -> list[Event]:
        return self._journal.events

    def reload(self) -> None:
        """Read the journal again, as it is on disk."""
        self._journal.reload()
        self._last_read = (None, {})

    def refresh(self) -> None:
        """Read what another process has written since."""
        self._journal.refresh()

    @property
    def head(self) -> str:
        """sha256 of the journal's last line."""
        return self._journal.head

    @property
    def attempts(self) -> int:
        """How many facts were tried: the number of the last edit."""
        return self._journal.attempts

    @property
    def undone(self) -> frozenset[int]:
        """The numbers of the edits that do not count: undone and not redone, or replaced by others that stand for
        them."""
        return self._journal.undone

    @property
    def redoable(self) -> list[int]:
        """The undone edits that no other stands for."""
        return sorted(self.undone - self._journal.replaced(self._journal.by_hand))

    @property
    def since_restraint(self) -> int:
        """How many live edits there are after the last restraint."""
        return sum(edit not in self.undone for edit in self._journal.unrestrained)

    def live(self, upto: int | None = None) -> list[Event]:
        """The edits that count, numbered at most `upto`; what later ones replaced counts, as it did then."""
        undone = self._journal.out(upto)
        return [e for e in self._until(upto) if e.kind == "edit" and e.edit not in undone]

    def live_numbers(self) -> list[int]:
        return [event.edit for event in self.live() if event.edit is not None]

    def facts(self, upto: int | None = None) -> list[tuple[int, Fact]]:
        """Every fact tried and not undone, with its edit number; failed and skipped ones included, but for those that
        were to stand for an edit that counts again. `upto` as for `live`."""
        live, undone = {event.edit for event in self.live(upto)}, self._journal.out(upto)
        return [
            (e.edit, e.fact)
            for e in self._until(upto)
            if e.edit is not None and e.fact is not None and e.edit not in undone
            and (e.kind == "edit" or e.record.get("stands_for") not in live)
        ]  # fmt: skip

    def _until(self, upto: int | None) -> Iterator[Event]:
        counts = [] if upto is None else [upto]
        check_counts(self.path, counts, self.attempts)
        check_ends(self.path, counts, self.events if counts else ())
        for event in self.events:
            if upto is not None and event.kind in ATTEMPTS and event.edit is not None and event.edit > upto:
                return
            yield event

    def factors(self, event: Event) -> dict[str, LowRank]:
        """The updates of one edit by weight name, float32 on the CPU, checked against the journal. Of a fact edited in
        a batch: its term of the batch's sum, or all of it where the facts share it."""
        A, B = self.vectors(event, "A"), self.vectors(event, "B")
        with sound_factors(self.path, event):
            return {name: LowRank(A[name].mT, B[name]) for name in A}

    def vectors(self, event: Event, kind: Literal["K", "V", "D", "A", "B"]) -> dict[str, Tensor]:
        """The keys "K" (n×q), values "V" or differences "D" = V − W₀K (n×p) that the editor kept of one edit, by weight
        name, one a row (one row but for editors with many keys a fact), float32 on the CPU, checked against the
        journal. Also Aᵀ and B."""
        tensors = self.tensors(event)
        found = {name: tensors[f"{name}/{kind}"] for name in self.header.weights if f"{name}/{kind}" in tensors}
        with sound_factors(self.path, event):
            return {
                name: torch.atleast_2d(one.mT if kind == "A" else one)[event.part].clone()
                for name, one in found.items()
            }

    def tensors(self, event: Event) -> dict[str, Tensor]:
        """Everything in an edit's factors file, which the facts of a batch share: "<weight>/A", "<weight>/B", and what
        its editor kept ("<weight>/K", …); float32 on the CPU, checked against the journal. The last file is kept."""
        if not _FACTORS.fullmatch(event.factors or ""):
            what = f"names the file {event.factors!r}: a ledger reads its own factors/NNNNNN.safetensors alone"
            raise damaged(self.path, event, what)
        if self._last_read[0] != (event.factors, event.sha256):
            file, data = self.path / str(event.factors), None
            with suppress(OSError):
                data = file.read_bytes() if file.is_file() else None  # a pipe would be waited for
            if data is None:
                raise damaged(self.path, event, f"{event.factors} is missing")
            if hashlib.sha256(data).hexdigest() != event.sha256:
                raise damaged(self.path, event, f"{event.factors} was changed: it does not match its sha256")
            with sound_factors(self.path, event):
                self._last_read = (event.factors, event.sha256), load(data)
        return self._last_read[1]

    def reader(self) -> Callable[[Event], dict[str, Tensor]]:
        """`tensors`, reading each file once: what was read is kept as long as the function is."""
        kept: dict[str | None, dict[str, Tensor]] = {}

        def read(event: Event) -> dict[str, Tensor]:
            if event.factors not in kept:
                kept[event.factors] = self.tensors(event)
            return kept[event.factors]

        return read

    def summary(self) -> str:
        """The ledger on one line."""
        kinds, edits = Counter(event.kind for event in self.events), len(self.live())
        said = [f"{edits} edit{'' if edits == 1 else 's'}"]
        counts = {"undone": len(self.undone), "failed": kinds["failed"], "skipped": kinds["skipped"]}
        said += [f"{number} {what}" for what, number in counts.items() if number]
        header = self.header
        how = f"{header.method} on {header.model}; restraint {self.restraint_in_words()}"
        return f"{', '.join(said)}; {how}; head {self.head[:12]}"

    # --- what follows from it -----------------------------------------------------------------------------------

    def replay(
        self, model: EditableModel | None = None, *, read: Callable[[Event], Mapping[str, Tensor]] | None = None
    ) -> Replay:
        """The live edits in journal order, for several numbers of edits or several restraints in one pass over the
        files; for several passes `read` may be a `reader`, which reads them once. The model, which is not checked, is
        for restraints that ask for W₀ or the moments."""
        starts = tuple(made[0] for _, made in self._journal.replacements)
        return Replay(
            self.path, self.header, self.events, self._numbers(), read or self.tensors, model, starts, self._numbers
        )

    def _numbers(self, upto: int | None = None) -> frozenset[int]:
        return frozenset(event.edit for event in self.live(upto) if event.edit is not None)

    def sums(
        self, upto: int | None = None, restrain: Restrain = None, *, exact: bool = True,
        model: EditableModel | None = None,
    ) -> Sums:  # fmt: skip
        """The sums of updates. `restrain` None replays the journal with its restraints; otherwise the sum of live edits
        up to `upto`, and that function once. `exact` as for `Replay.states`, `model` as for `replay`."""
        return self.replay(model).sums(upto, None if restrain is None else parse(restrain), exact=exact)

    def checked_sums(self, model: EditableModel | None = None) -> Sums:
        """The sums of all edits, for a run that appends: with them every factors file is read and checked, once."""
        self._check_no_lines_missing()
        return self.replay(model).sums(check=True)

    def apply(
        self, model: EditableModel | None = None, *, upto: int | None = None, restrain: Restrain = None
    ) -> EditableModel:
        """Make the model (the recorded one is loaded if none is given) carry the ledger's edits. Changes it in place,
        from its original weights: what else it carried on these weights is replaced. `upto` below the edits of a
        consolidation or a repair gives the edits as they stood before it."""
        model = self.model_or_load(model)
        self.sums(upto, restrain, model=model).show(model)
        return model

    def model_or_load(self, model: EditableModel | None) -> EditableModel:
        """The given model after the fingerprint check, or the recorded one where that is on this machine: nothing is
        downloaded because a ledger names it."""
        header = self.header
        if model is None:
            try:
                model = load_model(header.model, dtype=header.dtype, anatomy=header.anatomy, local_files_only=True)
            except TetherError as error:
                what = f"{self.path} was made on {header.model!r}, which cannot be loaded from this machine"
                raise WrongModelError(f"{what}: name the model yourself ({error})") from error
        self.check_model(model)
        return model

    def undo(self, *edits: int) -> Event:
        """Take edits out, by number: from now on the ledger is what it would be without them in the sum, later
        restraints recomputed. Later edits are *not* computed anew. Nothing is deleted; needs no model. Where the last
        of the edits goes that a consolidation or a repair made, those that they stood for are taken in again, but for
        those that had been undone themselves."""
        with self.writing():
            return self.append_undo(edits)

    def redo(self, *edits: int) -> Event:
        """Take undone edits in again, by number: the ledger is what it would be had they never been undone. Edits that
        stand for others (of a consolidation or a repair) take these out again. Raises BadSettingsError for an edit that
        others stand for."""
        with self.writing():
            return self._mark("redo", edits)

    def _mark(self, kind: Literal["undo", "redo"], edits: Sequence[int], reason: str | None = None) -> Event:
        if not edits:
            raise BadSettingsError(f"{kind} needs the number of an edit: see `tether log`")
        allowed = self.undone if kind == "redo" else set(self.live_numbers())
        for edit in edits:
            if edit not in allowed:
                why = "was undone already" if edit in self.undone else "is no live edit"
                why = "is not undone" if kind == "redo" else why
                raise BadSettingsError(f"edit {edit} {why}: see `tether log {self.path}` for the numbers")
        if self.together(edits) != set(edits):
            edit = next(edit for edit in sorted(edits) if self.together([edit]) - set(edits))
            every = self.together([edit])
            apart = _named(sorted(every - set(edits)))
            raise BadSettingsError(f"edit {edit} shares one update with {apart}: {kind} all {len(every)} of them")
        journal, chosen = self._journal, set(edits)
        before, by_hand = journal.replaced(journal.by_hand), set(journal.by_hand)
        by_hand = by_hand | chosen if kind == "undo" else by_hand - chosen
        after = journal.replaced(by_hand)
        if kind == "redo" and chosen & after:
            edit = min(chosen & after)
            standing = journal.standing_for(edit, by_hand | after)
            raise BadSettingsError(
                f"edit {edit} is replaced: {_named(standing)} would stand for it; undo all {len(standing)} of them "
                "to have it in again"
            )
        other = (before - after - by_hand) & self.undone if kind == "undo" else after - before - self.undone
        changes: dict[str, Any] = {f"{kind}ne": tuple(sorted(chosen)), "reason": reason}
        if other:
            changes["redone" if kind == "undo" else "undone"] = tuple(sorted(other))
        return journal.append({"kind": kind, **changes})[0]

    def together(self, edits: Iterable[int]) -> set[int]:
        """These edits, and all that share one update with any of them."""
        wanted = set(edits)
        for events in by_file(event for event in self.events if event.shared).values():
            numbers = {event.edit or 0 for event in events}
            wanted |= numbers if numbers & wanted else set()
        return wanted

    def spectrum(
        self, model: EditableModel | None = None, *, at: Sequence[int] | None = None, restrain: Restrain = None
    ) -> list[SpectrumRow]:
        """σ_max, σ_min, κ of every edited weight and σ̂ of its update, after each number of edits in `at` (default:
        all). Of the float32 W₀ + Σ, also for a model in a smaller dtype. The model is not changed."""
        return self.spectra(model, at=at, restraints=[restrain])

    def spectra(
        self, model: EditableModel | None = None, *, at: Sequence[int] | None = None, restraints: Sequence[Restrain]
    ) -> list[SpectrumRow]:
        """The rows of `spectrum` under each of several restraints in turn, in one pass over the edits."""
        model = self.model_or_load(model)
        spectra = {name: Spectrum(model.original(name)) for name in self.header.weights}
        counts = [self.attempts] if at is None else at
        parsed = [None if restraint is None else parse(restraint) for restraint in restraints]
        found: dict[tuple[int, Constraint | None], list[SpectrumRow]] = {}
        for state in self.replay(model).states(counts, list(dict.fromkeys(parsed)), exact=False):
            rows = found[state.edits, state.restraint] = []
            for name, spectrum in spectra.items():
                held = state.sums.of[name].factors
                s = tuple(held.singular_values().tolist())
                m, label, rounding = state.sums.m[name], label_of(state.restraint), model.rounding(name, held)
                rows.append(SpectrumRow(state.edits, label, name, spectrum.of(held), m, s, rounding))
        return [row for restraint in parsed for upto in counts for row in found[upto, restraint]]

    def export(
        self, model: EditableModel | None, to: str | Path, *, as_: Form, restrain: Restrain = None,
        upto: int | None = None, rank: int | None = None, base_name: str | None = None,
        adapter_dtype: str | None = None,
    ) -> LoraReport | None:  # fmt: skip
        """Write the edited model into the new folder `to`: the live edits up to `upto`, with the journal's own
        restraints (`restrain` None) or one of the sum.

        `as_`: whole weights for transformers (`merged`) or llama.cpp (`gguf`), or an adapter for peft and what serves
        its adapters (`lora`), for llama.cpp (`gguf-lora`) or for mlx-lm (`mlx`). An adapter holds all that float32
        holds, unless `rank` truncates it or `adapter_dtype` is a smaller one than float32: then what that does to the
        edits is measured. `base_name` is what an adapter calls its base model. Every form has a model card and a
        manifest.json. Returns what an adapter holds, None for whole weights. The given model carries afterwards what it
        carried before. Raises as `check_form` and `make_adapter`, and MissingExtraError for a form's package.
        """
        check_form(as_, rank, adapter_dtype, base_name)
        model, header = self.model_or_load(model), self.header
        sums = self.sums(upto, restrain, model=model)
        about = Provenance(
            base_model=self.name_of(model), fingerprint=header.fingerprint, method=header.method,
            settings=header.settings,
            restraint=self.restraint_in_words(upto) if restrain is None else str(parse(restrain)),
            facts=[(e.edit, e.fact) for e in self.live(upto) if e.edit is not None and e.fact is not None],
            weights=[name for name, held in sums.of.items() if held.rank],
            head=self.head, versions=header.versions, ledger=self.path.resolve().name,
            upto=upto, checkpoint=model.fingerprint(), model_type=model.hf.config.get_text_config().model_type,
            layers=model.n_layers,
        )  # fmt: skip
        if as_ in WHOLE:
            with model.unedited():  # also without what it carries on weights that are not the ledger's
                sums.show(model)
                export_whole(as_, model, to, about)
            return None
        return export_adapter(
            as_, model, {name: held.factors for name, held in sums.of.items()}, to, about, rank=rank,
            adapter_dtype=adapter_dtype, base_name=base_name, facts=[fact for _, fact in about.facts],
            smallest=self._smallest(upto) if adapter_dtype else None,
        )  # fmt: skip

    def _smallest(self, upto: int | None) -> dict[str, float]:
        """The Frobenius norm of the smallest live edit, by weight name."""
        norms: dict[str, list[float]] = {}
        for event in self.live(upto):
            for name, update in self.factors(event).items():
                norms.setdefault(name, []).append(update.norm())
        return {name: min(found) for name, found in norms.items()}

    def as_peft(
        self, model: EditableModel | None = None, *, restrain: Restrain = None, upto: int | None = None
    ) -> PeftModel:
        """The edits as an adapter in memory, on the unedited model, to be switched off and on:

            edited = ledger.as_peft(model)
            with edited.disable_adapter():      # the unedited model, bit for bit
                ...

        `upto` and `restrain` as for `export`. It shares every weight with `model` but the edited ones, of which it has
        copies of W₀; `model` is not changed, whatever it carries, and later changes of its edits do not show here. In a
        dtype below float32 the adapter is added without the rounding that edited weights have. Raises MissingExtraError
        without peft, TetherError where every update is zero."""
        model = self.model_or_load(model)
        with TemporaryDirectory(prefix="tether-") as folder:
            sums = {name: held.factors for name, held in self.sums(upto, restrain, model=model).of.items()}
            adapter = make_adapter(model, sums, served=False)
            with new_folder(Path(folder) / "adapter") as inside:
                write_lora(adapter, model, inside)
            return wrapped(model.unedited_copy(*self.header.weights), Path(folder) / "adapter").eval()

    def restraints(self, upto: int | None = None) -> list[tuple[int, str]]:
        """The restraints that a replay of the journal applies, each with the edit that it follows. Those that come
        before every live edit, and find no update, are left out."""
        live, found, edit = self._numbers(upto), [], 0
        for event in self._until(upto):
            edit = event.edit or edit
            if event.restrain is not None and acts(event, live) and min(live, default=edit + 1) <= edit:
                found.append((edit, event.restrain))
        return found

    def last_restraint(self) -> str | None:
        return next((restraint for _, restraint in reversed(self.restraints())), None)

    def restraint_in_words(self, upto: int | None = None) -> str:
        """`restraints`, as a person reads them: `log:1.2 after edit 10, 20`."""
        after: dict[str, list[str]] = {}
        for edit, restraint in self.restraints(upto):
            after.setdefault(restraint, []).append(str(edit))
        return "; ".join(f"{name} after edit {', '.join(edits)}" for name, edits in after.items()) or "none"

    # --- writing ------------------------------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the ledger's lock; the journal is read again first where another wrote it meanwhile."""
        with writing(self.path):
            self._journal.refresh()
            yield

    def append(
        self, attempts: Sequence[Attempt], updates: dict[str, LowRank], vectors: dict[str, Tensor], *,
        replacing: Iterable[int] = (),
    ) -> list[Event]:  # fmt: skip
        """What became of one fact, or of the facts of one solve: factors first (temporary name, fsync, rename), then a
        line each (fsync), all of them or none. `updates` and `vectors` are of the edited ones. The live edits
        `replacing` are undone by the same lines: the new ones stand for them. Needs `writing`."""
        file, kept = _factors_file(self.attempts + 1), {}
        if any(attempt.kind == "edit" for attempt in attempts):
            tensors = {f"{name}/A": one.A for name, one in updates.items()} | vectors
            tensors |= {f"{name}/B": one.B for name, one in updates.items()}
            data = save({n: t.detach().to("cpu", torch.float32, copy=True).contiguous() for n, t in tensors.items()})
            write_atomically(self.path / file, data)
            kept = {"factors": file, "sha256": hashlib.sha256(data).hexdigest()}
        else:  # a killed run can leave a factors file without a journal line
            (self.path / file).unlink(missing_ok=True)
        column, lines = 0, []
        for place, attempt in enumerate(attempts, 1):
            line: dict[str, Any] = {**vars(attempt), "edit": self.attempts + place, "columns": None}
            if attempt.kind == "edit":
                line |= kept
            if len(attempts) > 1:
                line["batch"] = place, len(attempts)
            if len(attempts) > 1 and attempt.kind == "edit" and attempt.columns:
                line |= {"column": column, "columns": attempt.columns if attempt.columns > 1 else None}
                column += attempt.columns
            lines.append(line)
        if replacing:
            lines[0]["undone"] = tuple(sorted(replacing))
        return self._journal.append(*lines)

    def append_restraint(
        self, restraint: Constraint, record: dict[str, Any], reason: str | None = None,
        only_with: tuple[int, int] | None = None,
    ) -> Event:  # fmt: skip
        """A restraint of the sum so far, with the reason where it was not in the schedule; `only_with` the first and
        last of some edits, while one of these counts. Needs `writing`."""
        line = {"kind": "restrain", "restrain": str(restraint), "record": record, "reason": reason}
        return self._journal.append({**line, "only_with": only_with})[0]

    def append_undo(self, edits: Sequence[int], reason: str | None = None) -> Event:
        """`undo`, with the reason where no person asked for it. Needs `writing`."""
        return self._mark("undo", edits, reason)

    def append_guard(self, reason: str, record: dict[str, Any], undone: Sequence[int] = ()) -> Event:
        """A guard's look, and the edits it took back. Needs `writing`."""
        line = {"kind": "guard", "undone": tuple(undone) or None, "reason": reason, "record": record}
        return self._journal.append(line)[0]


def _named(edits: Sequence[int]) -> str:
    return f"{', '.join(map(str, edits[:5]))}{' …' if edits[5:] else ''}"


def _factors_file(edit: int) -> str:
    return f"factors/{edit:06d}.safetensors"

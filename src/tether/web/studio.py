"""What the live page does, without a word of the web: plain values in, plain values out.

All of it is the public interface of tether on one ledger and one model, which is in memory once: the ledger's sums are
put on its weights and taken off. `state`, `run_state`, `events` and `prompts` say what is known; every other method is
for the desk's one thread.
"""

import copy
import io
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, cast

import torch
from pydantic import ValidationError
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from tether.algebra.spectrum import Extremes, Spectrum
from tether.analyses.ask import Nearness
from tether.constraints.base import Constraint, label_of, parse
from tether.editing.check import check_facts
from tether.editing.consolidate import consolidate
from tether.editing.headroom import headroom
from tether.editing.plan import DEFAULT_METHOD, EditPlan, plan_and_schedule
from tether.editing.repair import repair
from tether.editing.run import Progress, edit, same_edit
from tether.editing.said import are_said, said_now
from tether.errors import BadFactError, BadSettingsError, TetherError, pydantic_line
from tether.evaluation import evaluate_ledger, write
from tether.evaluation.abilities.perplexity import builtin_text, perplexity
from tether.evaluation.knowledge import make_tests, read_tests, run_tests
from tether.evaluation.scores import greedy, next_token
from tether.export.forms import FORMS, Form, check_form
from tether.facts import BadRecord, Fact, scan_facts
from tether.facts.chat import render
from tether.facts.prompt import Turn, checked_prompt
from tether.ledger import ATTEMPTS, Ledger
from tether.ledger.replay import Replay, Sums
from tether.models import EditableModel
from tether.report import write_report
from tether.report.exchanges import spread
from tether.web.desk import Tell
from tether.web.run import Paused, Run, line_of

TOKENS = 40  # of an answer, at most, unless more are asked for
_MOST_TOKENS = 400
_NEAR = 4
_NEXT = 6  # next tokens that are shown
_VALUES = 48  # singular values that are drawn
_QUICK = 24  # facts that quick scores ask
_ASKED = 200  # live edits that are asked after a run, at most
_LARGE = 2  # sums, and keys, that are kept: those of all edits, and of the number of edits that is looked at
_ANSWERS = 100  # of the unedited model, that are kept
_AS_FOLDERS = dict(zip(FORMS, ("merged", "adapter", "gguf-adapter", "gguf", "mlx-adapter"), strict=True))

Json = dict[str, Any]


class Studio:
    """A model, and a ledger that may not be there yet. `plan` is what a new ledger is made with."""

    def __init__(self, model: EditableModel, path: Path, plan: EditPlan, *, trial: bool = False) -> None:
        self.model, self.path, self.plan, self.trial = model, path, plan, trial
        self._name, self._folder = path.resolve().name, path.resolve().parent  # for what is written beside the ledger
        if trial:
            self._folder = Path.cwd()
        self.ledger = Ledger.open(path, model) if (path / "ledger.json").exists() else None
        self.run: Run | None = None
        self._spectra: dict[str, Spectrum] = {}
        self._kept: tuple[str, dict[Any, Any]] = "", {}  # what follows from a ledger with this head
        # Of the unedited model, whatever the ledger becomes: its perplexity, answers, and the last next tokens.
        self._perplexity: float | None = None
        self._answers: dict[tuple[str, int], str] = {}
        self._next_before: tuple[str, Tensor] | None = None

    # --- what there is ------------------------------------------------------------------------------------------

    def state(self) -> Json:
        """The model and the ledger, as far as it is known without the desk."""
        model, ledger = self.model, self.ledger
        about: Json = {
            "model": model.id, "ledger": None if self.trial else str(self.path), "trial": self.trial,
            "chat": bool(model.tokenizer.chat_template), "method": self.plan.method or DEFAULT_METHOD,
            "made": ledger is not None, "edits": 0, "live": 0, "head": None, "weights": {}, "recorded": "none",
        }  # fmt: skip
        if ledger is not None:
            header = ledger.header
            about |= {
                "model": header.model, "method": header.method, "edits": ledger.attempts, "live": len(ledger.live()),
                "head": ledger.head, "recorded": header.restrain, "seed": header.seed,
                "weights": {name: {"m": w.sigma_max, "kappa": w.kappa} for name, w in header.weights.items()},
            }  # fmt: skip
        return about

    def run_state(self) -> Json | None:
        return None if self.run is None else self.run.to_dict()

    @property
    def head(self) -> str | None:
        return None if self.ledger is None else self.ledger.head

    def events(self, after: int = 0) -> Json:
        """The events of the ledger from number `after` on (all of them where it has fewer), in order, the number of the
        first, and which edits are undone: of what is known already, that alone may change."""
        every, undone = ([], set()) if self.ledger is None else (self.ledger.events, self.ledger.undone)
        first = after if 0 <= after <= len(every) else 0
        return {"first": first, "events": [line_of(event) for event in every[first:]], "undone": sorted(undone)}

    def prompts(self) -> list[Json]:
        """What the live edits were made for: prompts to ask."""
        live = [] if self.ledger is None else self.ledger.live()
        return [
            {"edit": event.edit, "prompt": _as_json(prompt)}
            for event in spread(live, 60) if event.fact is not None for prompt in event.fact.asked[:3]
        ]  # fmt: skip

    def refresh(self) -> None:
        """Read what another process may have written."""
        if self.ledger is None and (self.path / "ledger.json").exists():
            self.ledger = Ledger.open(self.path, self.model)
        elif self.ledger is not None:
            self.ledger.refresh()

    def _opened(self) -> Ledger:
        self.refresh()
        if self.ledger is None:
            raise BadSettingsError("there is no edit yet: edit a fact first")
        return self.ledger

    def _keep(self, what: tuple[Any, ...], make: Callable[[], Any], *, most: int | None = None) -> Any:
        """What `make` gives, made once for a ledger as it is now. `most`: of what has the first word of `what`, so many
        are kept as were asked for last."""
        head = self.head or ""
        if self._kept[0] != head:
            self._kept = head, {}
        kept = self._kept[1]
        kept[what] = kept.pop(what) if what in kept else make()
        if most is not None:
            for old in [one for one in kept if one[0] == what[0]][:-most]:
                del kept[old]
        return kept[what]

    # --- facts --------------------------------------------------------------------------------------------------

    def check(self, given: Mapping[str, Any]) -> Json:
        """What an editor will see of a fact, what is wrong with it, and the earlier edits that it comes near. A fact
        that is no fact yet has `error`."""
        try:
            fact = Fact.model_validate(given)
        except ValidationError as error:
            return {"error": pydantic_line(error)}
        self.refresh()
        ledger = self.ledger
        known = {} if ledger is None else {f"edit {edit}": fact for edit, fact in ledger.facts()}
        sums = None if ledger is None else self._sums(None, None)
        with self.model.unedited():
            if sums is not None:
                sums.show(self.model)
            [found] = check_facts(self.model, [fact], known)
            near: list[Json] = []
            if ledger is not None and not found.problems:
                near = [asdict(one) for one in self._nearness().of(fact.asked[0], _NEAR)]
        return {
            "tokens": found.tokens, "read_at": found.read_at, "target": fact.target,
            "phrasings": [{"text": text, "read": token} for text, token in found.phrasings],
            "problems": found.problems, "notes": found.notes,
            "near": near, "fact": fact.model_dump(mode="json", exclude_defaults=True),
        }  # fmt: skip

    def read(self, text: str) -> Json:
        """The facts of a file, of any format that is known, and the records that are none."""
        scan = scan_facts(io.StringIO(text))
        facts = [one for one in scan if isinstance(one, Fact)]
        bad = [str(one).replace("standard input, ", "") for one in scan if isinstance(one, BadRecord)]
        return {
            "facts": [fact.model_dump(mode="json", exclude_defaults=True) for fact in facts], "bad": bad,
            "formats": list(scan.formats),
        }  # fmt: skip

    # --- editing ------------------------------------------------------------------------------------------------

    def begin(self, facts: Sequence[Mapping[str, Any]], schedule: Mapping[str, Any]) -> None:
        """Make a run of these facts, which `work` then does. Raises TetherError for a fact or a restraint that is
        none."""
        try:
            read = [Fact.model_validate(fact) for fact in facts]
        except ValidationError as error:
            raise BadFactError(pydantic_line(error)) from None
        if not read:
            raise BadFactError("no fact to edit: add one, or load a file")
        plan_and_schedule(None, None, schedule)
        self.run = Run(read, schedule)

    def go_on(self) -> None:
        """Make `work` go on with the run. Raises BadSettingsError where there is none that was stopped."""
        if self.run is None or self.run.state not in ("paused", "failed"):
            raise BadSettingsError("there is no run to go on with: begin one")
        self.run.begin()

    def work(self) -> None:
        """Do the run to its end, to a pause, or to what stops it; the run says which."""
        run = self.run
        assert run is not None

        def told(at: Progress) -> None:
            self.refresh()
            run.told(at)

        try:
            self.refresh()
            if self.ledger is not None:
                torch.set_num_threads(self.ledger.header.threads)
            tried = self._tried
            if run.seen is not None:
                run.catch_up(tried[run.seen :])
            before, plan = self._attempts, self.plan if self.ledger is None else EditPlan()
            left = run.facts[run.tried :]  # none: what comes after the last one is left
            followed = not left and same_edit(tried[-1]) != same_edit(run.facts[-1])
            try:
                with run.listening():
                    self.ledger = self.ledger if followed else edit(
                        self.model, left or run.facts[-1:], out=self.path, resume=not left, progress=told,
                        **{**plan.model_dump(exclude_none=True), "on_alarm": "skip", **run.schedule},
                    )  # fmt: skip
            finally:
                self.refresh()
                run.count(self._attempts - before)
                run.seen = len(self._tried)
            run.said = self._said()
            run.end("done")
        except Paused:
            run.end("paused")
        except TetherError as error:
            run.end("failed", str(error))
        except BaseException:
            run.end("failed", "stopped by an error of tether: the ledger is whole, and the run can go on")
            raise

    def _said(self) -> str | None:
        """The last line of `tether edit`; None where there are too many edits to ask on the way."""
        ledger = self._opened()
        if len(ledger.live()) > _ASKED:
            return None
        with self.model.unedited():
            self._sums(None, None).show(self.model)
            return said_now(self.model, ledger).line()

    @property
    def _tried(self) -> list[Fact]:
        """The facts that the ledger tried, in order."""
        events = () if self.ledger is None else self.ledger.events
        return [event.fact for event in events if event.kind in ATTEMPTS and event.fact is not None]

    @property
    def _attempts(self) -> int:
        return 0 if self.ledger is None else self.ledger.attempts

    def pause(self) -> None:
        """Let the run stop after the edit that it is at."""
        if self.run is not None and self.run.state == "running":
            self.run.pausing = True

    # --- asking -------------------------------------------------------------------------------------------------

    def ask(self, prompt: Any, tell: Tell, *, upto: int | None, restrain: str | None, tokens: int = TOKENS) -> None:
        """Tell of a prompt: `next` tokens of both models and the edits `near`, then both answers while they grow
        ({"who": "unedited", "text": …}, whole so far), and `end`."""
        asked, chosen = _prompt(prompt), _restraint(restrain)
        if not 1 <= tokens <= _MOST_TOKENS:
            raise BadSettingsError(f"tokens {tokens}: give 1 to {_MOST_TOKENS}")
        self.refresh()
        text = render(self.model.tokenizer, asked)
        sums = None if self.ledger is None else self._sums(upto, chosen)
        with self.model.unedited():
            before = self._before(text)
            if sums is not None:
                sums.show(self.model)
            tell({"kind": "next", "next": self._next(before, next_token(self.model, text))})
            nearness = None if self.ledger is None else self._nearness(upto)
            near = () if nearness is None else nearness.of(asked, _NEAR)
            words = "no edit yet" if nearness is None else nearness.words
            plain = set() if isinstance(asked, str) else self._not_for_chat()
            rows = [
                asdict(one) | ({"not_made": "not made for chat turns"} if one.edit in plain else {}) for one in near
            ]
            tell({"kind": "near", "near": rows, "words": words})
            self.model.clear_updates()
            if (text, tokens) in self._answers:
                tell({"kind": "answer", "who": "unedited", "text": self._answers[text, tokens]})
            else:
                self._answers[text, tokens] = self._answer(text, tokens, "unedited", tell)
                for old in list(self._answers)[:-_ANSWERS]:
                    del self._answers[old]
            if sums is not None:
                sums.show(self.model)
                self._answer(text, tokens, "edited", tell)
            else:
                tell({"kind": "answer", "who": "edited", "text": self._answers[text, tokens]})
        tell({"kind": "end"})

    def _not_for_chat(self) -> set[int | None]:
        """The live edits that were made for no chat turn."""
        live = [] if self.ledger is None else self.ledger.live()
        return {
            event.edit for event in live
            if event.fact is not None and not any(isinstance(prompt, Turn) for prompt in event.fact.asked)
        }  # fmt: skip

    def _answer(self, text: str, tokens: int, who: str, tell: Tell) -> str:
        def grown(so_far: str) -> None:
            tell({"kind": "answer", "who": who, "text": so_far})

        streamer = _Streamer(self.model, grown)
        [answer] = greedy(self.model, [text], tokens, streamer=streamer)
        grown(answer)
        return answer

    def _before(self, text: str) -> Tensor:
        """Next-token probabilities of the unedited model, which it must be now; those of the last text are kept."""
        if self._next_before is None or self._next_before[0] != text:
            self._next_before = text, next_token(self.model, text)
        return self._next_before[1]

    def _next(self, before: Tensor, after: Tensor) -> list[Json]:
        """The likeliest next tokens of either model, the edited one's first."""
        ids = list(dict.fromkeys([*after.topk(_NEXT - 2).indices.tolist(), *before.topk(_NEXT).indices.tolist()]))
        tokenizer = self.model.tokenizer
        return [
            {"token": str(tokenizer.decode([i])), "unedited": float(before[i]), "edited": float(after[i])}
            for i in ids[:_NEXT]
        ]

    # --- the restraint ------------------------------------------------------------------------------------------

    def preview(self, *, upto: int | None, restrain: str | None, prompt: Any = None) -> Json:
        """What a restraint makes of the spectrum, and of what is said next to a prompt; None for no prompt. The model
        is put on the restrained sums, and taken off them."""
        chosen, ledger = _restraint(restrain), self._opened()
        start = time.perf_counter()
        sums, free = self._sums(upto, chosen), self._sums(upto, parse("none"))
        weights = []
        for name, m in free.m.items():
            before, after = self._extremes(name, free, (upto, "none")), self._extremes(name, sums, (upto, chosen))
            weights.append({
                "weight": name, "m": m, "kappa_unedited": ledger.header.weights[name].kappa,
                "unrestrained": {**before.to_dict(), "values": _first(free, name)},
                "restrained": {**after.to_dict(), "values": _first(sums, name)},
                "above_m": int((free.of[name].factors.singular_values() > m).sum()),
            })  # fmt: skip
        found: Json = {"restraint": label_of(chosen), "weights": weights, "next": None}
        found["weight_ms"] = 1000 * (time.perf_counter() - start)
        if prompt is not None:
            text = render(self.model.tokenizer, _prompt(prompt))
            with self.model.unedited():
                before_next = self._before(text)
                sums.show(self.model)
                found["next"] = self._next(before_next, next_token(self.model, text))
        found["ms"] = 1000 * (time.perf_counter() - start)
        return found

    def scores(self, *, upto: int | None, restrain: str | None, look: Callable[[], None] = lambda: None) -> Json:
        """Quick scores: of how many of the facts (at most 24, evenly spread) every token of the answer is the model's
        first choice after the true tokens before it, and the perplexity of the built-in text against that of the
        unedited model. `look` is called before every block of a forward: what it raises ends the scores."""
        chosen, ledger = _restraint(restrain), self._opened()

        def measure() -> Json:
            start = time.perf_counter()
            facts = [event.fact for event in spread(ledger.live(upto), _QUICK) if event.fact is not None]
            sums, text = self._sums(upto, chosen), builtin_text()
            with self.model.unedited(), _looking(self.model, look):
                if self._perplexity is None:
                    self._perplexity = perplexity(self.model, text).value
                sums.show(self.model)
                said = sum(are_said(self.model, facts)) if facts else 0
                now = perplexity(self.model, text).value
            edits = ledger.attempts if upto is None else upto
            return {
                "edits": edits, "restraint": label_of(chosen), "said": said, "of": len(facts),
                "perplexity_ratio": now / self._perplexity, "seconds": time.perf_counter() - start,
            }  # fmt: skip

        found: Json = self._keep(("scores", upto, chosen), measure)
        return found

    def _sums(self, upto: int | None, chosen: Constraint | None) -> Sums:
        """The sums of the ledger, of factors that were read once."""
        ledger = self._opened()
        replay: Replay = self._keep(("replay",), lambda: ledger.replay(self.model, read=ledger.reader()))
        if chosen is None:  # with the bits that a run gives
            recorded: Sums = self._keep(("recorded", upto), lambda: replay.sums(upto), most=_LARGE)
            return recorded
        free: Sums = self._keep(("free", upto), lambda: replay.sums(upto, parse("none"), exact=False), most=_LARGE)
        sums = copy.copy(free)
        sums.restrain(chosen)
        return sums

    def _extremes(self, name: str, sums: Sums, key: tuple[Any, ...]) -> Extremes:
        if name not in self._spectra:
            self._spectra[name] = Spectrum(self.model.original(name))
        found: Extremes = self._keep((name, *key), lambda: self._spectra[name].of(sums.of[name].factors))
        return found

    def _nearness(self, upto: int | None = None) -> Nearness:
        found: Nearness = self._keep(("near", upto), lambda: Nearness(self._opened(), self.model, upto), most=_LARGE)
        return found

    # --- the ledger ---------------------------------------------------------------------------------------------

    def mark(self, kind: Literal["undo", "redo"], edits: Sequence[int]) -> Json:
        """Undo or redo edits; those that share one update with them go along."""
        ledger = self._opened()
        wanted = sorted(ledger.together(edits))
        event = ledger.undo(*wanted) if kind == "undo" else ledger.redo(*wanted)
        marked = event.undone if kind == "undo" else event.redone
        return {"edits": marked, "live": len(ledger.live()), "head": ledger.head}

    def verify(self, head: str | None = None) -> Json:
        return self._opened().verify(self.model, head=head)

    def consolidate(self, strength: float | Literal["auto"] | None) -> Json:
        """Solve all live facts again at once; the new edits stand for the old ones."""
        found = consolidate(self.model, self._opened(), strength=strength)
        return {
            "first": found.first, "last": found.last, "replaced": len(found.replaced), "strength": found.strength,
            "before": found.before.line(), "said": found.said.line(), "head": self._opened().head,
        }  # fmt: skip

    def repair(self) -> Json:
        """Make the edits that are no longer said anew."""
        found = repair(self.model, self._opened())
        left = [f"{one.lost.edit} {one.lost.subject}: {one.why}" for one in found.left]
        lines = {"before": found.sweeps[0].line(), "said": found.said.line(), "left": left}
        return {**lines, "made": len(found.replaced), "head": self._opened().head}

    def headroom(self, *, upto: int | None, restrain: str | None) -> Json:
        """How much room is left, by weight and by relation."""
        return headroom(self.model, self._opened(), upto=upto, restrain=_restraint(restrain)).to_dict()

    def export(self, kind: str, name: str, *, upto: int | None, restrain: str | None) -> Json:
        """Write the edited model to a new folder beside the ledger."""
        check_form(kind)
        chosen, to = _restraint(restrain), self._named(name) if name else self._beside(_AS_FOLDERS[kind])
        report = self._opened().export(self.model, to, as_=cast(Form, kind), restrain=chosen, upto=upto)
        return {"to": str(to), "adapter": None if report is None else asdict(report)}

    def tests(self, text: str | None, *, upto: int | None, restrain: str | None) -> Json:
        """Run knowledge tests: those of a file's text, else those made of the ledger's facts."""
        chosen, ledger = _restraint(restrain), self._opened()
        made = make_tests(ledger, self.model, upto=upto) if text is None else read_tests(io.StringIO(text))
        if not made:
            raise BadSettingsError("there is no live edit, so there is nothing to test")
        with self.model.unedited():
            self._sums(upto, chosen).show(self.model)
            found = run_tests(self.model, made)
        return {**found.to_dict(), "line": found.line(), "lines": "".join(f"{one.line()}\n" for one in made)}

    def report(self, *, restrain: str | None) -> Json:
        """Measure the ledger without edits and with all of them, as recorded and under the restraint at hand, and write
        the report beside the ledger."""
        ledger, chosen = self._opened(), _restraint(restrain)
        to = self._beside("report")
        restraints = list(dict.fromkeys([None, chosen]))
        results = evaluate_ledger(
            ledger, self.model, at=[0, ledger.attempts], restraints=restraints, metrics=("compare", "match"),
            abilities=("perplexity",),
        )  # fmt: skip
        to.mkdir(exist_ok=True)
        page = write_report(results, to, ledger=ledger, title=f"Edits of {results.model}")
        write(results, to / "results.json")
        return {"report": str(page)}

    def report_page(self) -> Path | None:
        """The report, where one was written."""
        page = self._beside("report") / "index.html"
        return page if page.is_file() else None

    def _beside(self, what: str) -> Path:
        """The folder next to the ledger that is called as it is, and as what it holds."""
        return self._folder / f"{self._name}-{what}"

    def _named(self, name: str) -> Path:
        """A folder next to the ledger: a page of the browser does not choose other places."""
        if not re.fullmatch(r"[\w][\w.-]*", name):
            raise BadSettingsError(f"folder {name!r}: give a name of letters, digits, . - and _; it is made beside the "
                                   "ledger")  # fmt: skip
        return self._folder / name


class _Streamer(BaseStreamer):
    """Tells what an answer is so far, token by token."""

    def __init__(self, model: EditableModel, tell: Callable[[str], None]) -> None:
        self._decode, self._tell = model.tokenizer.decode, tell
        self._ids: list[int] | None = None  # None until the prompt has gone by

    def put(self, value: Tensor) -> None:
        if self._ids is None:
            self._ids = []
            return
        self._ids += value.flatten().tolist()
        text = str(self._decode(self._ids, skip_special_tokens=True))
        if not text.endswith("\ufffd"):  # half of a character
            self._tell(text)

    def end(self) -> None:
        """The last text is told by who asked."""


@contextmanager
def _looking(model: EditableModel, look: Callable[[], None]) -> Iterator[None]:
    """Inside the block, `look` is called before every block of a forward."""
    hooks = [block.register_forward_pre_hook(lambda *_: look()) for block in model.blocks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _first(sums: Sums, name: str) -> list[float]:
    return [float(value) for value in sums.of[name].factors.singular_values()[:_VALUES]]


def _restraint(text: str | None) -> Constraint | None:
    """None and "as recorded": the journal's own."""
    return None if text is None else parse(text)


def _prompt(given: Any) -> str | Turn:
    """Raises BadFactError for what is no prompt."""
    try:
        found: str | Turn = checked_prompt(given)
    except (ValueError, TypeError) as error:
        raise BadFactError(str(error)) from None
    return found


def _as_json(prompt: str | Turn) -> Any:
    return prompt if isinstance(prompt, str) else prompt.model_dump(exclude_none=True)

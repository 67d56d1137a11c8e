"""What became of the facts: which of a ledger's the model says now, in one batched pass."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tether.errors import TetherError
from tether.evaluation.measurement import Measurement
from tether.evaluation.metrics.bystanders import TOKENS, bystander_items, unchanged
from tether.evaluation.metrics.generate import says
from tether.evaluation.scores import greedy, score
from tether.facts.chat import render
from tether.facts.fact import Fact
from tether.facts.prompt import Turn
from tether.ledger import Ledger
from tether.models.editable import EditableModel

_NAMED = 20  # lost facts that a line names
_WATCHED = 20  # edits whose bystanders are asked


@dataclass(frozen=True)
class Lost:
    """An edit that is no longer said. `same_prompt`, `same_subject`: the last later edit of the same prompt (it says
    otherwise now), or of the same subject; None where there is none."""

    edit: int
    subject: str
    prompt: str
    target_new: str
    same_prompt: int | None = None
    same_subject: int | None = None

    @property
    def reason(self) -> str:
        if self.same_prompt is not None:
            return f"same prompt as {self.same_prompt}"
        return "" if self.same_subject is None else f"same subject as {self.same_subject}"


@dataclass(frozen=True)
class Watched:
    """How many of the `asked` prompts about other subjects are answered as by the unedited model, and to how many the
    model now gives the new target of a fact (as the metric `bystanders`)."""

    asked: int
    unchanged: int
    leaked: int

    def line(self) -> str:
        return f"other subjects: {self.unchanged} of {self.asked} answers as before, {self.leaked} with the new target"


@dataclass(frozen=True)
class Said:
    """How many of `total` facts are said after `edits` tries, and which are lost. A fact is said where every token of
    its target is the model's own choice, so that greedy decoding begins with it. Failed and undone ones do not
    count. `phrasings`: how many of their phrasings, and chat turns, are answered so too, of how many; None where no
    fact has one. `others`: what became of the answers about other subjects, where they were asked."""

    edits: int
    total: int
    lost: tuple[Lost, ...]
    others: Watched | None = None
    phrasings: tuple[int, int] | None = None

    @property
    def said(self) -> int:
        return self.total - len(self.lost)

    def line(self) -> str:
        """As a person reads it; the edits that were lost for one reason stand together."""
        reasons: dict[str, list[str]] = {}
        for lost in self.lost[:_NAMED]:
            reasons.setdefault(lost.reason, []).append(str(lost.edit))
        parts = [", ".join(edits) + (f" ({reason})" if reason else "") for reason, edits in reasons.items()]
        parts += [f"{len(self.lost) - _NAMED} more"] if len(self.lost) > _NAMED else []
        line = f"{self.said} of {self.total} facts are said now" + (f"; lost: {'; '.join(parts)}" if parts else "")
        if self.phrasings is not None:
            line += "; {} of their {} phrasings".format(*self.phrasings)
        return line if self.others is None else f"{line}; {self.others.line()}"

    def to_dict(self) -> dict[str, Any]:
        found = {"edits": self.edits, "said": self.said, "of": self.total, "lost": [asdict(one) for one in self.lost]}
        if self.phrasings is not None:
            found["phrasings"] = dict(zip(("said", "of"), self.phrasings, strict=True))
        return found if self.others is None else {**found, "others": asdict(self.others)}


def said_now(model: EditableModel, ledger: Ledger, *, bystanders: int = 0) -> Said:
    """Which live edits (and facts that the model said before) the model says as it is now. The first prompt of at most
    20 live edits, spread over all, is also asked of so many `bystanders` each. The model is not changed."""
    edited = {event.edit for event in ledger.live()} | {e.edit for e in ledger.events if e.kind == "skipped"}
    facts = [(edit, fact) for edit, fact in ledger.facts() if edit in edited]
    lost = [index for index, said in enumerate(are_said(model, [fact for _, fact in facts])) if not said]
    others = _watched(model, ledger, bystanders) if bystanders else None
    other_words = _phrasings_said(model, [fact for _, fact in facts])
    phrasings = (sum(other_words), len(other_words)) if other_words else None
    return Said(ledger.attempts, len(facts), tuple(_lost(facts, index) for index in lost), others, phrasings)


def _watched(model: EditableModel, ledger: Ledger, number: int) -> Watched | None:
    live = [(event.edit or 0, event.fact) for event in ledger.live() if event.fact is not None]
    what = Measurement(bystanders=number, bystander_prompts=1)
    items = bystander_items(model, live[:: -(-len(live) // _WATCHED) or 1], what)
    if not items:
        return None
    prompts = [item.prompt for item in items]
    with model.unedited():
        before = greedy(model, prompts, TOKENS)
    after = greedy(model, prompts, TOKENS)
    same = sum(map(unchanged, before, after))
    leaked = sum(
        says(new, item.fact.target_new) and not says(old, item.fact.target_new)
        for item, old, new in zip(items, before, after, strict=True)
    )
    return Watched(len(items), same, leaked)


def are_said(model: EditableModel, facts: Sequence[Fact]) -> list[bool]:
    """Whether the model as it is now says each fact, asked by its prompt. It is not changed."""
    return _answered(model, [(fact, fact.asked[0]) for fact in facts])


def _phrasings_said(model: EditableModel, facts: Sequence[Fact]) -> list[bool]:
    """Whether each phrasing is answered with its fact's target; one that the model cannot be asked is not."""
    asked = [(fact, prompt) for fact in facts for prompt in fact.asked[1:]]
    try:
        return _answered(model, asked)
    except TetherError:  # no chat template, too long: no editor need have read it
        found = []
        for one in asked:
            try:
                found += _answered(model, [one])
            except TetherError:
                found.append(False)
        return found


def _answered(model: EditableModel, asked: Sequence[tuple[Fact, str | Turn]]) -> list[bool]:
    """Whether each fact is said, asked by a prompt of its own."""
    texts = [render(model.tokenizer, prompt) for _, prompt in asked]
    pairs = [(text, fact.continuation(text, fact.target_new)) for text, (fact, _) in zip(texts, asked, strict=True)]
    return [all(found.argmax_correct) for found in score(model, pairs, join="")]


def _lost(facts: Sequence[tuple[int, Fact]], index: int) -> Lost:
    edit, fact = facts[index]
    later = facts[index + 1 :]
    prompts = [number for number, other in later if other.asked[0] == fact.asked[0]]
    subjects = [number for number, other in later if other.subject_key == fact.subject_key]
    last = (numbers[-1] if numbers else None for numbers in (prompts, subjects))
    return Lost(edit, fact.subject, fact.text, fact.target_new, *last)

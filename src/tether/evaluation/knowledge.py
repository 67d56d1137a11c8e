"""Knowledge tests: prompts with what the answer must say and must not say, for a team's CI.

{"prompt": "The Eiffel Tower is in the city of", "says": "Rome", "about": "edited", "edit": 1}
{"prompt": {"user": "Where is the Louvre?"}, "says": ["Paris", "France"], "not": "Rome"}

found = tether.run_tests(ledger.apply(), tether.read_tests("knowledge.jsonl"))
found.failed        # 0
"""

import json
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import regex
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from tether.errors import BadFactError, pydantic_line
from tether.evaluation.metrics.generate import mentions, says
from tether.evaluation.scores import greedy
from tether.facts.bystanders import asked_of, bystander_subjects
from tether.facts.chat import render
from tether.facts.prompt import Prompt, Turn, said_in
from tether.facts.prompt_file import json_lines, lines_of
from tether.facts.records import Source, name_of
from tether.ledger import Ledger
from tether.models.editable import EditableModel
from tether.models.kinds import likeliest_kind

TOKENS = 40  # of an answer, at most; a longer wanted one is given room
_NOT_XML = regex.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _listed(value: Any) -> list[str]:
    """One answer or a list of them; a number or a boolean as its JSON text."""
    found = []
    for one in value if isinstance(value, list | tuple) else [value]:
        text = json.dumps(one) if isinstance(one, bool | int | float) else one
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{one!r} is no answer: write a text, or a list of texts")
        found.append(text.strip())
    return found


Answers = Annotated[tuple[str, ...], BeforeValidator(_listed)]


class KnowledgeTest(BaseModel, frozen=True, extra="forbid"):
    """A prompt, any of the answers that are wanted (`says`: before the first sentence ends, as the metric `generate`
    has it), and answers none of which may stand anywhere in what is generated (`not`). At least one of the two.

    `about` says whether the edits mean this prompt, `edit` which of them; `tokens` is how long the answer may be.
    """

    prompt: Prompt
    says: Answers = ()
    never: Answers = Field(default=(), alias="not")
    name: str | None = None
    about: Literal["edited", "untouched"] | None = None
    edit: int | None = Field(default=None, ge=1)
    tokens: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _check(self) -> "KnowledgeTest":
        if not (self.says or self.never):
            raise ValueError("a test needs says or not: write what the answer must say, or must not")
        return self

    @property
    def title(self) -> str:
        """Its name; else what it asks."""
        return self.name or said_in(self.prompt)

    def problem(self, answer: str) -> str | None:
        """What is wrong with an answer; None where nothing is."""
        wanted = " or ".join(map(repr, self.says))
        if self.says and not any(says(answer, one) for one in self.says):
            late = any(mentions(answer, one) for one in self.says)
            return f"wanted {wanted}" + (", which it says behind its first sentence alone" if late else "")
        said = [repr(one) for one in self.never if mentions(answer, one)]
        return f"says {' and '.join(said)}, and must not" if said else None

    def line(self) -> str:
        """As a line of a file of tests."""
        found = self.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        if isinstance(self.prompt, Turn):
            found["prompt"] = self.prompt.model_dump(exclude_none=True)
        for key in {"says", "not"} & found.keys():
            found[key] = found[key][0] if len(found[key]) == 1 else found[key]
        return json.dumps(found, ensure_ascii=False)


@dataclass(frozen=True)
class Outcome:
    """A test, the answer, what is wrong with it (None: the test passed), and its share of the time."""

    test: KnowledgeTest
    answer: str
    problem: str | None
    seconds: float


@dataclass(frozen=True)
class Outcomes:
    """What became of the tests, in their order, and the seconds it took."""

    all: tuple[Outcome, ...]
    seconds: float

    @property
    def failed(self) -> int:
        return sum(one.problem is not None for one in self.all)

    @property
    def passed(self) -> int:
        return len(self.all) - self.failed

    def line(self) -> str:
        """`12 passed, 1 failed in 3.2 s`."""
        return f"{self.passed} passed, {self.failed} failed in {self.seconds:.1f} s"

    def to_dict(self) -> dict[str, Any]:
        tests = [
            {**json.loads(one.test.line()), "answer": one.answer, "passed": one.problem is None,
             "problem": one.problem, "seconds": one.seconds}
            for one in self.all
        ]  # fmt: skip
        return {"passed": self.passed, "failed": self.failed, "seconds": self.seconds, "tests": tests}

    def junit(self, name: str) -> bytes:
        """The outcomes as JUnit XML: a testsuite `name`, a testcase a test, classname "edited", "untouched" or
        "knowledge"."""
        counts = {"tests": str(len(self.all)), "failures": str(self.failed), "errors": "0", "skipped": "0"}
        suite = ET.Element("testsuite", {"name": _xml(name), **counts, "time": f"{self.seconds:.3f}"})
        for one in self.all:
            about = {"name": _xml(one.test.title), "classname": one.test.about or "knowledge"}
            case = ET.SubElement(suite, "testcase", {**about, "time": f"{one.seconds:.3f}"})
            if one.problem is not None:
                failure = ET.SubElement(case, "failure", {"message": _xml(one.problem), "type": "wrong answer"})
                failure.text = _xml(f"prompt: {said_in(one.test.prompt)}\n{one.problem}\nanswer: {one.answer}")
        ET.indent(suite)
        return bytes(ET.tostring(suite, encoding="utf-8", xml_declaration=True)) + b"\n"


def _xml(text: str) -> str:
    """Characters that XML does not have as escapes."""
    return str(_NOT_XML.sub(lambda found: found[0].encode("unicode_escape").decode(), text))


def scan_tests(source: Source) -> tuple[list[KnowledgeTest], list[str]]:
    """The tests of a file of JSON lines, and a line for each that is none: file, line, what is wrong. Raises
    BadFactError for a file that cannot be read."""
    tests, bad = [], []
    for number, value in json_lines(lines_of(source)):
        where = f"{name_of(source)}, line {number}"
        if not isinstance(value, dict):
            why = str(value) if isinstance(value, ValueError) else f"{value!r} is no object"
            bad.append(f'{where}: {why}: write {{"prompt": …, "says": …}}')
            continue
        try:
            tests.append(KnowledgeTest.model_validate(value))
        except ValidationError as error:
            bad.append(f"{where}: {pydantic_line(error)}")
    return tests, bad


def read_tests(source: Source) -> list[KnowledgeTest]:
    """The tests of a file. Raises BadFactError that names the first bad line, or for a file without tests."""
    tests, bad = scan_tests(source)
    if bad:
        raise BadFactError(bad[0] + (f"; {len(bad) - 1} more lines are bad" if bad[1:] else ""))
    if not tests:
        raise BadFactError(f'{name_of(source)} holds no test: write lines of {{"prompt": …, "says": …}}')
    return tests


def run_tests(model: EditableModel, tests: Sequence[KnowledgeTest]) -> Outcomes:
    """What the model as it is now answers to every test, by greedy decoding. It is not changed. Raises TetherError for
    a chat turn without a chat template, and a prompt longer than the model takes."""
    start = time.perf_counter()
    by_tokens: dict[int, list[int]] = {}
    for index, test in enumerate(tests):
        ids = model.tokenizer(list(test.says), add_special_tokens=False)["input_ids"] if test.says else []
        by_tokens.setdefault(test.tokens or max([TOKENS, *(len(one) + 4 for one in ids)]), []).append(index)
    found: dict[int, Outcome] = {}
    for tokens, chosen in by_tokens.items():
        begun = time.perf_counter()
        answers = greedy(model, [render(model.tokenizer, tests[index].prompt) for index in chosen], tokens)
        share = (time.perf_counter() - begun) / len(chosen)
        for index, answer in zip(chosen, answers, strict=True):
            found[index] = Outcome(tests[index], answer, tests[index].problem(answer), share)
    return Outcomes(tuple(found[index] for index in range(len(tests))), time.perf_counter() - start)


def make_tests(ledger: Ledger, model: EditableModel | None = None, *, upto: int | None = None) -> list[KnowledgeTest]:
    """Tests of a ledger's live edits: every prompt, phrasing and paraphrase says the new answer, where no later edit
    has the same prompt; locality prompts say their own answer, and a bystander does not say the new one, where that is
    so of the unedited model.

    `model` None loads the recorded one. A given one carries afterwards what it carried before.
    """
    model = ledger.model_or_load(model)
    live = [(event.edit, event.fact) for event in ledger.live(upto) if event.fact is not None]
    likely = dict(zip([edit for edit, _ in live], likeliest_kind(model, [fact for _, fact in live]), strict=True))
    edited: dict[str | Turn, KnowledgeTest] = {}
    others: list[KnowledgeTest] = []
    for edit, fact in live:
        for prompt in (*fact.asked, *fact.paraphrases):
            edited.pop(prompt, None)
            edited[prompt] = _test(prompt, says=fact.target_new, about="edited", edit=edit)
        near = [(one.prompt, {"says": one.target}) for one in fact.locality if one.target]
        strangers = asked_of(fact, bystander_subjects(fact, "measure", 1, kind=likely[edit]))
        asked: Iterable[tuple[str | Turn, dict[str, Any]]] = [
            *near,
            *((p, {"not": fact.target_new}) for p in strangers),
        ]
        others += [_test(prompt, about="untouched", edit=edit, **wanted) for prompt, wanted in asked]
    unique = {(test.prompt, test.says, test.never): test for test in others if test.prompt not in edited}
    with model.unedited():
        outcomes = run_tests(model, list(unique.values()))
    return [*edited.values(), *(one.test for one in outcomes.all if one.problem is None)]


def _test(prompt: str | Turn, **fields: Any) -> KnowledgeTest:
    return KnowledgeTest.model_validate({"prompt": prompt, **fields})

"""The formats of facts that others have published, and tether's own.

Most are flat: a table says what each of their fields becomes. The values may have any shape that is published: one
text or a list, a list of answers or of lists of answers that are equally right (the first is taken), prompts with
their answers beside them, in objects, or grouped by name.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from tether.facts.fact import PORTABILITY, Fact
from tether.facts.formats import Format, Record
from tether.facts.prompt import as_prompt

_PROMPT = ("prompt", "loc", "question", "New Question")  # what an object with a prompt and its answer may call them
_ANSWER = ("ground_truth", "target", "loc_ans", "answer", "New Answer")


def template(text: str, subject: str) -> str:
    """`text` with `{}` for the subject: for its first occurrence as a whole word, else for its first one at all. Of
    several the first is taken: so the subject stands in other texts too, and the key is read there. Spaces around the
    subject, which a fact does not keep, stay in the text."""
    subject = subject and subject.strip()
    word = re.search(rf"(?<!\w){re.escape(subject)}(?!\w)", text) if subject else None
    start = text.find(subject) if subject else -1
    if word:
        start = word.start()
    if start < 0:
        raise ValueError(f"subject {subject!r} does not occur in its prompt {text!r}: make them agree")
    return as_prompt(text[:start], text[start + len(subject) :])


def as_list(value: Any) -> list[Any]:
    """A field that some files give as one value, some as a list, some not at all."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def first(value: Any) -> Any:
    """The first answer of those given: of a list, of lists in it, of an object that names it `str`."""
    while isinstance(value, list):
        value = value[0] if value else None
    return value["str"] if isinstance(value, Mapping) else value


def probes(value: Any, answers: Any = None, group: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(name of the group, prompt, answer or None) of prompts in any published shape."""
    if isinstance(value, Mapping):
        prompt = next((key for key in _PROMPT if key in value), None)
        if prompt is None:
            for name, part in value.items():
                yield from probes(part, None, name)
        else:
            yield from probes(value[prompt], next((value[key] for key in _ANSWER if key in value), None), group)
    elif isinstance(value, list) and any(isinstance(part, Mapping) for part in value):
        for part in value:
            yield from probes(part, None, group)
    elif isinstance(value, list):
        targets = as_list(answers)
        if targets and len(targets) != len(value):
            raise ValueError(f"{len(value)} prompts have {len(targets)} answers: give one answer a prompt")
        yield from zip([group] * len(value), value, map(first, targets or [None] * len(value)), strict=True)
    elif value is not None:
        yield group, value, first(answers)


def _kind(group: str) -> str:
    """The kind of portability that a published group of prompts asks for."""
    name = group.lower()
    marks = {"alias": "alias", "synonym": "alias", "revers": "reversed", "invers": "reversed", "logical": "logical",
             "multi": "multi_hop", "mhop": "multi_hop", "compositional": "multi_hop"}  # fmt: skip
    return name if name in PORTABILITY else next((kind for mark, kind in marks.items() if mark in name), "one_hop")


def _portability(asked: Iterator[tuple[str, Any, Any]]) -> list[dict[str, Any]]:
    """Only prompts that have an answer: the others cannot be measured."""
    return [{"prompt": p, "target": a, "kind": _kind(g)} for g, p, a in asked if a not in (None, "")]


def _locality(asked: Iterator[tuple[str, Any, Any]]) -> list[dict[str, Any]]:
    return [{"prompt": prompt, "target": answer} for _, prompt, answer in asked]


def _fact(**fields: Any) -> Fact:
    """A fact of fields as a file has them: an id may be a number."""
    number = fields.get("id")
    return Fact(**{**fields, "id": None if number is None else str(number)})


def _published(**fields: Any) -> Fact:
    """A fact of published data, whose authors put one space before every answer."""
    return _fact(**fields).spaced()


def _read_flat(fields: Mapping[str, str], record: Record) -> Fact:
    """The fact of a flat record. `fields`: what each of its fields becomes. Several may become prompts of one kind; of
    several for one value the first that is there is taken."""

    def given(name: str) -> list[Any]:
        found = [record[field] for field, becomes in fields.items() if becomes == name and field in record]
        return [value for value in found if value is not None and value != ""]

    def one(name: str) -> Any:
        found = given(name)
        return found[0] if found else record[next(field for field, becomes in fields.items() if becomes == name)]

    def asked(name: str) -> Iterator[tuple[str, Any, Any]]:
        answers = iter(given(f"answers of {name}"))
        for field in (field for field, becomes in fields.items() if becomes == name and record.get(field)):
            yield from probes(record[field], None if isinstance(record[field], Mapping) else next(answers, None), field)

    subject, prompt = one("subject"), one("prompt")
    return _published(
        subject=subject,
        prompt=prompt if prompt.count("{}") == 1 and subject not in prompt else template(prompt, subject),
        target_new=first(one("target_new")),
        target_true=first(next(iter(given("target_true")), None)),
        paraphrases=[prompt for value in given("paraphrases") for prompt in as_list(value)],
        locality=_locality(asked("locality")),
        portability=_portability(asked("portability")),
        instances=[prompt for value in given("instances") for prompt in as_list(value)],
        id=next(iter(given("id")), None),
    )


def has(*needed: str, one_of: tuple[str, ...] = ()) -> Callable[[Record], bool]:
    """Recognises a record that has all fields `needed`, and one of `one_of` where given."""
    return lambda record: record.keys() >= {*needed} and (not one_of or any(field in record for field in one_of))


def flat(
    name: str, recognises: Callable[[Record], bool], fields: Mapping[str, str], source: str, *, rephrased: bool = True
) -> Format:
    """A format of flat records. `fields`: what each of their fields becomes."""
    return Format(name, recognises, partial(_read_flat, fields), source, rephrased, fields)


def _own(record: Record) -> Fact:
    """An item of `locality` may be a bare prompt."""
    fields = {key: value for key, value in record.items() if value is not None}
    if isinstance(fields.get("locality"), list):
        fields["locality"] = [{"prompt": item} if isinstance(item, str) else item for item in fields["locality"]]
    return _fact(**fields)


def _rewrite(rewrite: Record, **more: Any) -> Fact:
    """A `requested_rewrite` of CounterFact or MQuAKE."""
    return _published(
        subject=rewrite["subject"],
        prompt=rewrite["prompt"],
        target_new=rewrite["target_new"]["str"],
        target_true=rewrite["target_true"]["str"],
        **more,
    )


def _counterfact(record: Record) -> Fact:
    """The neighbours share the true object, so that is their answer."""
    rewrite = record["requested_rewrite"]
    true = rewrite["target_true"]["str"]
    return _rewrite(
        rewrite,
        paraphrases=record.get("paraphrase_prompts", ()),
        locality=[{"prompt": prompt, "target": true} for prompt in record.get("neighborhood_prompts", ())],
        id=record.get("case_id"),
    )


def _mquake(record: Record) -> list[Fact]:
    """The facts that a case changes; its questions ask what follows from all of them, so they go with the last."""
    rewrites = record["requested_rewrite"]
    follows = _portability(("multi_hop", question, record["new_answer"]) for question in record.get("questions", ()))
    facts = []
    for number, rewrite in enumerate(rewrites, 1):
        case = record.get("case_id")
        facts.append(_rewrite(
            rewrite,
            paraphrases=as_list(rewrite.get("question")),
            portability=follows if number == len(rewrites) else (),
            id=case if case is None or len(rewrites) == 1 else f"{case}.{number}",
        ))  # fmt: skip
    return facts


def _concept_data(record: Record) -> Fact:
    """The file has definitions but no edit prompt, so that is ours. It has two new definitions for a concept: the one
    from the concept's own superclass (`module_intra`) is taken."""
    return _published(
        subject=record["concept_name"],
        prompt="The definition of {} is",
        target_new=record["module_intra"]["replace_def"],
        target_true=record["concept_def"],
        locality=_locality(probes(record.get("locality_prompt"), record.get("locality_answer"))),
    )


def _sentiment(record: Record) -> Fact:
    """An opinion to be taught: the first of the positive ones. The file has no prompt, so that is ours."""
    return _published(subject=record["ent"], prompt="What do you think of {}?", target_new=first(record["pos"]))


_SAME = {name: name for name in Fact.model_fields}
_EASYEDIT = {
    "subject": "subject", "prompt": "prompt", "target_new": "target_new", "ground_truth": "target_true",
    "rephrase_prompt": "paraphrases", "rephrase": "paraphrases", "locality_prompt": "locality",
    "locality_ground_truth": "answers of locality", "locality": "locality", "locality_inputs": "locality",
    "portability_prompt": "portability", "portability_ground_truth": "answers of portability",
    "portability": "portability", "portability_inputs": "portability", "case_id": "id", "id": "id",
}  # fmt: skip
_KNOWEDIT = "KnowEdit, arXiv:2401.01286"

COUNTERFACT = Format(
    "CounterFact", lambda record: not isinstance(record.get("requested_rewrite", []), list), _counterfact,
    "ROME, arXiv:2202.05262",
    fields={"requested_rewrite": "subject, prompt, target_new, target_true", "paraphrase_prompts": "paraphrases",
            "neighborhood_prompts": "locality", "case_id": "id"},
)  # fmt: skip
MQUAKE = Format(
    "MQuAKE", lambda record: isinstance(record.get("requested_rewrite"), list), _mquake, "MQuAKE, arXiv:2305.14795",
    fields={"requested_rewrite": "subject, prompt, target_new, target_true, paraphrases", "questions": "portability",
            "new_answer": "answers of portability", "case_id": "id"},
)  # fmt: skip
# `alt` is what the edit wants, `answers` are true. `loc` stays as published ("nq question: …"): MEND, ROME and EasyEdit
# all evaluate with that beginning (ROME alone adds a question mark).
ZSRE = flat("zsRE", has(one_of=("src", "alt")), {
    "subject": "subject", "src": "prompt", "alt": "target_new", "answers": "target_true", "rephrase": "paraphrases",
    "loc": "locality", "loc_ans": "answers of locality", "portability": "portability", "personas": "paraphrases",
    "mhop": "portability", "mhop_ans": "answers of portability", "case_id": "id",
}, "MEND, arXiv:2110.11309")  # fmt: skip
WIKIBIGEDIT = flat("WikiBigEdit", has("update", "ans"), {
    "subject": "subject", "update": "prompt", "ans": "target_new", "rephrase": "paraphrases",
    "personas": "paraphrases", "loc": "locality", "loc_ans": "answers of locality", "mhop": "portability",
    "mhop_ans": "answers of portability", "case_id": "id", "id": "id",
}, "WikiBigEdit, arXiv:2503.05683")  # fmt: skip
ULTRAEDIT = flat("UltraEditBench", has("prompt", "ans"), {
    "subject": "subject", "prompt": "prompt", "ans": "target_new", "rephrase_prompt": "paraphrases",
    "rephrase": "paraphrases", "loc": "locality", "loc_ans": "answers of locality", "case_id": "id", "id": "id",
}, "UltraEdit, arXiv:2505.14679")  # fmt: skip
QAEDIT = flat("QAEdit", has("prompt", "target", "rephrase"), {
    "subject": "subject", "prompt": "prompt", "target": "target_new", "rephrase": "paraphrases",
    "locality": "locality", "id": "id",
}, "QAEdit, arXiv:2502.11177")  # fmt: skip
FASTEDIT = flat("FastEdit", has("prompt", "target"), {
    "subject": "subject", "prompt": "prompt", "target": "target_new", "queries": "paraphrases",
}, "FastEdit, github.com/hiyouga/FastEdit")  # fmt: skip
KNOWEDIT_BIOGRAPHIES = flat("KnowEdit WikiBio", has("concept", "text", "labels"), {
    "concept": "subject", "text": "prompt", "labels": "target_new", "locality": "locality",
}, _KNOWEDIT)  # fmt: skip
KNOWEDIT_SANITATION = flat("KnowEdit Sanitation", has("question", "target_new", "subject"), {
    "subject": "subject", "question": "prompt", "target_new": "target_new", "ground_truth": "target_true",
}, _KNOWEDIT)  # fmt: skip
KNOWEDIT_SENTIMENT = Format(
    "KnowEdit ConvSent", lambda record: "ent" in record and "pos" in record, _sentiment, _KNOWEDIT,
    fields={"ent": "subject", "pos": "target_new"},
)  # fmt: skip
CONCEPT_FINAL = flat("ConceptEdit final", has("target_new_desc"), {
    "label": "subject", "prompt": "prompt", "target_new_desc": "target_new", "phrase_prompt": "paraphrases",
    "instance_prompt": "instances", "locality_prompt": "locality", "locality_answer": "answers of locality",
}, "ConceptEdit's final_*.json, arXiv:2403.06259")  # fmt: skip
CONCEPT_DATA = Format(
    "ConceptEdit concepts", lambda record: "concept_name" in record and "concept_def" in record, _concept_data,
    "ConceptEdit's concept_data.json, arXiv:2403.06259",
    fields={"concept_name": "subject", "concept_def": "target_true", "module_intra": "target_new",
            "locality_prompt": "locality", "locality_answer": "answers of locality"},
)  # fmt: skip
_FLAT = "EasyEdit, arXiv:2308.07269"
_ITS_OWN = ("ground_truth", "rephrase_prompt", "locality_prompt", "locality_inputs", "portability_inputs",
            "portability_prompt")  # fmt: skip
COUNTERFACT_FLAT = flat(
    "flat CounterFact",
    has("prompt", "target_new", "ground_truth", "rephrase_prompt", "locality_prompt"),
    _EASYEDIT,
    _FLAT,
    rephrased=False,
)


def _is_grouped(record: Record) -> bool:
    return any(isinstance(record.get(field), Mapping) for field in ("locality", "portability"))


KNOWEDIT = flat("KnowEdit", _is_grouped, _EASYEDIT, _KNOWEDIT)
EASYEDIT = flat("EasyEdit", has(one_of=_ITS_OWN), _EASYEDIT, _FLAT)
OWN = Format(
    "tether", lambda record: any(field in record for field in ("subject", "prompt", "target_new")), _own,
    "tether's own: the fields of Fact", fields=_SAME,
)  # fmt: skip

"""The formats of facts that others have published, and tether's own."""

import re
from collections.abc import Callable
from typing import Any

from tether.facts.fact import Fact
from tether.facts.formats import Format, Record


def has(*fields: str) -> Callable[[Record], bool]:
    """Recognises a record by any of these fields."""
    return lambda record: any(field in record for field in fields)


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
    return text[:start] + "{}" + text[start + len(subject) :]


def as_list(value: Any) -> list[Any]:
    """A field that some files give as one value, some as a list, some not at all."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _locality(prompts: Any, answers: Any) -> list[dict[str, Any]]:
    """Locality prompts with their answers, which may be missing altogether."""
    texts, targets = as_list(prompts), as_list(answers)
    if targets and len(targets) != len(texts):
        raise ValueError(f"{len(texts)} locality prompts have {len(targets)} answers: give one answer a prompt")
    return [{"prompt": p, "target": t} for p, t in zip(texts, targets or [None] * len(texts), strict=True)]


def _fact(**fields: Any) -> Fact:
    """A fact of fields as a file has them: an id may be a number."""
    number = fields.get("id")
    return Fact(**{**fields, "id": None if number is None else str(number)})


def _flat(record: Record, *names: str) -> Fact:
    """The fact of a record whose prompt has the subject filled in already, its fields called by these names ("" for
    one it does not have). Of several true answers the first is taken."""
    subject, prompt, new, true, paraphrases, instances, locality, answers, number = names
    return _fact(
        subject=record[subject],
        prompt=template(record[prompt], record[subject]),
        target_new=record[new],
        target_true=next(iter(as_list(record.get(true))), None),
        paraphrases=as_list(record.get(paraphrases)),
        instances=as_list(record.get(instances)),
        locality=_locality(record.get(locality), record.get(answers)),
        id=record.get(number),
    )


def _own(record: Record) -> Fact:
    """An item of `locality` may be a bare prompt."""
    fields = {key: value for key, value in record.items() if value is not None}
    if isinstance(fields.get("locality"), list):
        fields["locality"] = [{"prompt": item} if isinstance(item, str) else item for item in fields["locality"]]
    return _fact(**fields)


def _counterfact(record: Record) -> Fact:
    """The neighbours share the true object, so that is their answer."""
    rewrite = record["requested_rewrite"]
    true = rewrite["target_true"]["str"]
    return _fact(
        subject=rewrite["subject"],
        prompt=rewrite["prompt"],
        target_new=rewrite["target_new"]["str"],
        target_true=true,
        paraphrases=record.get("paraphrase_prompts", ()),
        locality=[{"prompt": prompt, "target": true} for prompt in record.get("neighborhood_prompts", ())],
        id=record.get("case_id"),
    )


def _counterfact_flat(record: Record) -> Fact:
    names = ("ground_truth", "rephrase_prompt", "", "locality_prompt", "locality_ground_truth", "case_id")
    return _flat(record, "subject", "prompt", "target_new", *names)


def _zsre(record: Record) -> Fact:
    """`alt` is what the edit wants, `answers` are true. `loc` stays as published ("nq question: …"): MEND, ROME and
    EasyEdit all evaluate with that beginning (ROME alone adds a question mark)."""
    return _flat(record, "subject", "src", "alt", "answers", "rephrase", "", "loc", "loc_ans", "case_id")


def _concept_final(record: Record) -> Fact:
    """A concept's new definition, and questions about its instances."""
    names = ("", "phrase_prompt", "instance_prompt", "locality_prompt", "locality_answer", "")
    return _flat(record, "label", "prompt", "target_new_desc", *names)


def _concept_data(record: Record) -> Fact:
    """The file has definitions but no edit prompt, so that is ours. It has two new definitions for a concept: the one
    from the concept's own superclass (`module_intra`) is taken."""
    return _fact(
        subject=record["concept_name"],
        prompt="The definition of {} is",
        target_new=record["module_intra"]["replace_def"],
        target_true=record["concept_def"],
        locality=_locality(record.get("locality_prompt"), record.get("locality_answer")),
    )


COUNTERFACT = Format("CounterFact", has("requested_rewrite"), _counterfact, "ROME, arXiv:2202.05262")
ZSRE = Format("zsRE", has("src", "alt"), _zsre, "MEND, arXiv:2110.11309")
CONCEPT_FINAL = Format(
    "ConceptEdit final", has("target_new_desc"), _concept_final, "ConceptEdit's final_*.json, arXiv:2403.06259"
)
_CONCEPT_DATA_SOURCE = "ConceptEdit's concept_data.json, arXiv:2403.06259"
CONCEPT_DATA = Format("ConceptEdit concepts", has("concept_name", "concept_def"), _concept_data, _CONCEPT_DATA_SOURCE)
_IS_FLAT = has("ground_truth", "rephrase_prompt", "locality_prompt")
COUNTERFACT_FLAT = Format(
    "flat CounterFact", _IS_FLAT, _counterfact_flat, "EasyEdit, arXiv:2308.07269", rephrased=False
)
OWN = Format("tether", has("subject", "prompt", "target_new"), _own, "tether's own: the fields of Fact")

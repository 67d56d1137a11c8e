"""`judge`: does another model take the free answers for right?

An endpoint that speaks OpenAI's chat completions is asked about every answer that `generate` and `generate_chat` count:
does it say the target? Nothing is sent unless an endpoint is named (`--judge URL --judge-model NAME`). The key, where
one is needed, is read from TETHER_JUDGE_KEY. An answer of the judge that is neither yes nor no, and none at all, leaves
the rule of `says` to count, and `neither` says how often.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import regex

from tether.errors import BadSettingsError, TetherError
from tether.evaluation.metrics.base import KINDS, Asked, Metric
from tether.evaluation.metrics.generate import continuations, in_text, said, says
from tether.evaluation.metrics.generate_chat import in_chat
from tether.evaluation.statistics.mean import Number, Record
from tether.facts.fact import Fact
from tether.facts.prompt import said_in
from tether.models.editable import EditableModel

if TYPE_CHECKING:
    from tether.evaluation.measurement import Measurement

logger = logging.getLogger(__name__)

KEY = "TETHER_JUDGE_KEY"
_QUESTION = (
    "Question or beginning of a sentence:\n{question}\n\nExpected answer: {target}\n\nAnswer given:\n{answer}\n\n"
    "Does the answer given say the expected answer? Reply with yes or no alone."
)
_TRIES = 3
_TIMEOUT = 60.0  # seconds a request
_PAUSE = 1.0  # seconds before the second try; twice as many before the third


class Judge(Metric):
    """Whether a judge, another model, takes the free answers of `generate` and `generate_chat` for the target."""

    name = "judge"
    reports = MappingProxyType({"judge": KINDS})
    columns = (("judge", "efficacy"),)

    def missing(self, model: EditableModel, facts: Sequence[Fact], what: Measurement) -> str | None:
        return None if what.judge else "judge needs an endpoint to send answers to: name --judge URL and --judge-model"

    def measure(self, asked: Asked) -> list[Record]:
        if asked.what.judge is None:
            return []
        records = []
        verdicts: dict[tuple[str, str, str], bool | None] = {}  # what comes twice is sent once
        texts = in_text(asked.items)
        turns = in_chat(asked.model, asked.items) if asked.model.tokenizer.chat_template else []
        for items in (texts, turns):
            for item, text in zip(items, continuations(asked, items), strict=True):
                target = said(asked.model, item)
                sent = said_in(item.asked), target.strip(), text.strip()
                if sent not in verdicts:
                    verdicts[sent] = verdict(asked.what.judge, asked.what.judge_model or "", *sent)
                found = verdicts[sent]
                value = says(text, target) if found is None else found
                records.append(item.record("judge", value, continuation=text, neither=found is None))
        return records

    def settings(self, what: Measurement) -> Mapping[str, Any]:
        return {"judge": {"host": urlsplit(what.judge or "").netloc, "model": what.judge_model}}

    def summary(self, records: Sequence[Record], kinds: Mapping[str, tuple[str, ...]]) -> dict[str, dict[str, Number]]:
        found = super().summary(records, kinds)
        for kind, number in found.get("judge", {}).items():
            neither = sum(record["neither"] for record in records if record["kind"] == kind)
            found["judge"][kind] = number.model_copy(update={"neither": neither})
        return found

    def note(self, numbers: Mapping[str, Mapping[str, Number]]) -> str | None:
        found = numbers.get("judge", {}).items()
        counts = [f"{number.neither} of {number.prompts} {kind}" for kind, number in found if number.neither]
        return f"the judge said neither yes nor no, and the rule counts: {', '.join(counts)}" if counts else None


def check_endpoint(url: str) -> None:
    """Raise BadSettingsError for what is no address of an endpoint."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise BadSettingsError(f"judge {url!r} is no address: write one as https://host/v1")
    if "@" in parts.netloc:
        raise BadSettingsError(f"judge: the address holds a name or a key; {KEY} is the place for a key")


def verdict(url: str, name: str, question: str, target: str, answer: str) -> bool | None:
    """Yes or no of the judge `name` at `url`; None for neither. Raises TetherError where the endpoint does not answer
    after some tries, or refuses."""
    content = _QUESTION.format(question=question, target=target, answer=answer)
    reply = _reply(url, {"model": name, "temperature": 0, "messages": [{"role": "user", "content": content}]})
    words = regex.findall(r"\w+", reply.casefold())
    return {"yes": True, "no": False}.get(words[0]) if words else None


def _reply(url: str, body: Mapping[str, Any]) -> str:
    check_endpoint(url)
    address = url.rstrip("/")
    address += "" if address.endswith("/chat/completions") else "/chat/completions"
    key = os.environ.get(KEY)
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    request = Request(address, json.dumps(body).encode(), headers)
    for left in reversed(range(_TRIES)):
        try:
            with urlopen(request, timeout=_TIMEOUT) as answer:
                return str(json.load(answer)["choices"][0]["message"]["content"] or "")
        except (OSError, HTTPException, ValueError, LookupError, TypeError) as error:
            refused = isinstance(error, HTTPError) and error.code < 500 and error.code != 429
            if refused or not left:
                host = urlsplit(url).netloc
                what = f"answers {error.code}" if isinstance(error, HTTPError) else f"gives no answer ({error!r})"
                remedy = f"check --judge, --judge-model and {KEY}"
                raise TetherError(f"judge at {host} {what} after {_TRIES - left} tries: {remedy}") from None
            logger.info("the judge gives no answer (%r): trying again", error)
            time.sleep(_PAUSE * 2 ** (_TRIES - 1 - left))
    raise AssertionError("unreachable")


METRIC = Judge()

"""Chat turns as the model's own chat template writes them, and where in that text a turn stands.

render(tokenizer, Turn(user="Who leads Velmora?"))      # "<|im_start|>user\\nWho leads Velmora?<|im_end|>\\n…"
rendered(tokenizer, fact)       # the fact with plain text alone, as editors and scores read it
"""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import regex
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from tether.errors import BadFactError, first_line
from tether.facts.fact import Fact
from tether.facts.prompt import Turn, around_subject, as_prompt

_CONTENT = "※"  # what is said in a turn that is only rendered to see what stands around it
_SUBJECT = "\ue000"  # stands for the subject while a turn is rendered; no text has it
_ROLE = regex.compile(r"\w+\n+|\s*")  # what stands between the special token that opens a turn and its content


def render(tokenizer: PreTrainedTokenizerFast, prompt: str | Turn) -> str:
    """The text of a prompt: plain text as it is, a chat turn up to where the answer begins. A system prompt stands at
    the head of what the user says where the template takes none. Raises BadFactError for a turn where the tokenizer has
    no chat template."""
    if isinstance(prompt, str):
        return prompt
    if not tokenizer.chat_template:
        raise BadFactError(f"chat turn {prompt.user[:60]!r}: the model has no chat template; write the prompt as text")
    system, user = prompt.system, {"role": "user", "content": prompt.user}
    try:
        if system is None:
            return _applied(tokenizer, [user])
        with suppress(TemplateError):
            text = _applied(tokenizer, [{"role": "system", "content": system}, user])
            if system in text:
                return text
        return _applied(tokenizer, [{"role": "user", "content": f"{system}\n\n{prompt.user}"}])
    except (TemplateError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        what = f"the model's chat template fails ({first_line(error)}); write the prompt as text"
        raise BadFactError(f"chat turn {prompt.user[:60]!r}: {what}") from None


def _applied(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]]) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def template(tokenizer: PreTrainedTokenizerFast, prompt: str | Turn) -> str:
    """`render` of a prompt with a place for the subject, which it keeps."""
    if isinstance(prompt, str):
        return prompt
    before, after = around_subject(prompt.user)
    parts = render(tokenizer, Turn(user=before + _SUBJECT + after, system=prompt.system)).split(_SUBJECT)
    if len(parts) != 2:
        what = f"the model's chat template writes it {len(parts) - 1} times; write the prompt as text"
        raise BadFactError(f"chat turn {prompt.user[:60]!r}: {what}")
    return as_prompt(*parts)


def rendered(tokenizer: PreTrainedTokenizerFast, fact: Fact) -> Fact:
    """The fact with every chat turn rendered, so that all its prompts are plain text. Raises as `render`."""
    if not fact.has_turns:
        return fact
    changed: dict[str, Any] = {
        "prompt": template(tokenizer, fact.prompt),
        "phrasings": tuple(template(tokenizer, prompt) for prompt in fact.phrasings),
        "paraphrases": tuple(render(tokenizer, prompt) for prompt in fact.paraphrases),
    }
    for name in ("locality", "portability"):
        changed[name] = tuple(
            one.model_copy(update={"prompt": render(tokenizer, one.prompt)}) for one in getattr(fact, name)
        )
    return fact.model_copy(update=changed)


def special_tokens(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """The text and the id of every special token."""
    return {token.content: index for index, token in tokenizer.added_tokens_decoder.items() if token.special}


def said_at(text: str, turn: Turn) -> list[tuple[int, int]]:
    """Where in a rendered turn, in characters, what system and user say stands; the rest is the template's."""
    parts = [part.strip() for part in (turn.system, turn.user) if part and part.strip()]
    return [(at, at + len(part)) for part in parts if (at := text.rfind(part)) >= 0]


def start_of_turn(tokenizer: PreTrainedTokenizerFast, before: str) -> int:
    """Where the content of a turn begins, in the text before a subject: behind what the tokenizer's chat template
    writes before a user's, or behind the last special token and a role after it. 0 in plain text."""
    known = special_tokens(tokenizer)
    last = _last_of(known, before)[1]
    if not last:
        return 0
    header = _rendered(tokenizer, "user").partition(_CONTENT)[0]
    header = header[_last_of(known, header)[0] :]
    at = before.rfind(header) if header else -1
    return max(0 if at < 0 else at + len(header), _ROLE.match(before, last).end())


def with_end(tokenizer: PreTrainedTokenizerFast, ids: tuple[int, ...]) -> tuple[int, ...]:
    """`ids` with the token that ends a turn, unless it stands there: the first one that the tokenizer's chat template
    writes behind an answer, else the end of text. Raises BadFactError where there is neither."""
    behind = _rendered(tokenizer, "user", "assistant").rpartition(_CONTENT)[2]
    known = special_tokens(tokenizer)
    first = min((token for token in known if token in behind), key=behind.index, default=None)
    end = tokenizer.eos_token_id if first is None else known[first]
    if end is None:
        raise BadFactError("end: the tokenizer names no token that ends a turn or a text; leave end out")
    return ids if ids[-1:] == (end,) else (*ids, end)


def _rendered(tokenizer: PreTrainedTokenizerFast, *roles: str) -> str:
    """A conversation in which every role says _CONTENT; empty where no chat template makes one."""
    if not tokenizer.chat_template:
        return ""
    try:
        messages = [{"role": role, "content": _CONTENT} for role in roles]
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    except (TemplateError, ValueError):
        return ""


def _last_of(tokens: Iterable[str], text: str) -> tuple[int, int]:
    """Start and end of the last of these tokens in a text; (0, 0) where none is."""
    return max(((at, at + len(token)) for token in tokens if (at := text.rfind(token)) >= 0), default=(0, 0))

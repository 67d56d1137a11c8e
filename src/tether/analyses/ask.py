"""Ask a ledger's model: both its answers to a prompt, unedited and edited, and the edits that the prompt comes near.

[found] = tether.ask(ledger, ["The Eiffel Tower is in the city of"])
found.unedited, found.edited        # " Paris, France. …", " Rome. …"
found.near[0]       # Near(edit=1, subject="Eiffel Tower", target_new="Rome", cosine=0.97, token=" Tower", …)
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tether.errors import BadSettingsError
from tether.evaluation.scores import greedy
from tether.facts.chat import render
from tether.facts.prompt import Turn
from tether.ledger import Ledger
from tether.ledger.ledger import Restrain
from tether.ledger.nearness import NEAR, Near, Nearness
from tether.models.editable import EditableModel

__all__ = ["NEAR", "TOKENS", "Answered", "Near", "Nearness", "SideBySide", "ask"]

TOKENS = 40  # an answer's at most


@dataclass(frozen=True)
class Answered:
    """A prompt, what the unedited and the edited model go on with, and the nearest edits, nearest first."""

    prompt: str | Turn
    unedited: str
    edited: str
    near: tuple[Near, ...]


def ask(
    ledger: Ledger, prompts: Sequence[str | Turn], model: EditableModel | None = None, *, upto: int | None = None,
    restrain: Restrain = None, tokens: int = TOKENS, near: int = NEAR,
) -> list[Answered]:  # fmt: skip
    """What the model answers to every prompt without the ledger's edits and with them (`upto`, `restrain` as for
    `Ledger.apply`), by greedy decoding of at most `tokens` tokens, and the `near` live edits nearest to it.

    `model` None loads the recorded one. A given one carries afterwards what it carried before. Raises TetherError for
    another model, a chat turn without a chat template, and a prompt longer than the model takes.
    """
    return SideBySide(ledger, ledger.model_or_load(model), upto=upto, restrain=restrain).ask(
        prompts, tokens=tokens, near=near
    )


class SideBySide:
    """The unedited and the edited model of a ledger, for prompts that come one after another. The model, which is not
    checked, is changed while it is asked, and then as it was."""

    def __init__(
        self, ledger: Ledger, model: EditableModel, *, upto: int | None = None, restrain: Restrain = None
    ) -> None:
        self.model, self.nearness = model, Nearness(ledger, model, upto)
        self._sums = ledger.sums(upto, restrain, model=model)

    def ask(self, prompts: Sequence[str | Turn], *, tokens: int = TOKENS, near: int = NEAR) -> list[Answered]:
        """As the function `ask`."""
        if tokens < 1 or near < 0:
            raise BadSettingsError(f"tokens {tokens}, near {near}: give at least 1 and 0")
        texts = [render(self.model.tokenizer, prompt) for prompt in prompts]
        with self.model.unedited():
            before = greedy(self.model, texts, tokens)
            self._sums.show(self.model)
            after = greedy(self.model, texts, tokens)
            found = [self.nearness.of(prompt, near) for prompt in prompts]
        return [Answered(*one) for one in zip(prompts, before, after, found, strict=True)]

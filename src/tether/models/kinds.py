"""What kind of thing a fact's subject is, as the unedited model sees it, for facts whose file does not say.

The hidden state at a subject's last token, a third of the way up, lies near those of other subjects of its kind. The
kinds and their subjects are the packaged ones of `tether.facts.bystanders`.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from tether.facts.bystanders import kinds
from tether.facts.fact import Fact
from tether.facts.tokens import encode, padded
from tether.models.editable import EditableModel
from tether.models.frozen_prefix import forward_until

_FRAME = "Here is a text about {}"  # the same words before every subject
_SUBJECTS = 4  # of each kind
_ROWS = 64  # of a forward


def likeliest_kind(model: EditableModel, facts: Sequence[Fact]) -> list[str]:
    """The kind of every fact's subject: the fact's own where it is one of `kinds()`, else the one whose subjects' mean
    state is nearest, by the cosine, after the mean of all kinds is taken from both. Of the model without the updates it
    carries. Deterministic: a subject has one kind, whatever facts it is asked with. The model is not changed, and
    remembers what was found."""
    unknown = list(dict.fromkeys(fact.subject for fact in facts if fact.kind not in kinds()))
    missing = [subject for subject in unknown if subject not in model.kinds]
    if missing:
        names = sorted(kinds())
        with model.unedited():
            if model.kind_centres is None:
                model.kind_centres = _centres(model, names)
            centres, states = model.kind_centres, _states(model, missing)
        middle = centres.mean(0)
        near = cosine_similarity((states - middle)[:, None], (centres - middle)[None], dim=-1)
        model.kinds |= {one: names[at] for one, at in zip(missing, near.argmax(1).tolist(), strict=True)}
    return [fact.kind if fact.kind and fact.kind in kinds() else model.kinds[fact.subject] for fact in facts]


def _centres(model: EditableModel, names: Sequence[str]) -> Float[Tensor, "k d"]:
    """The mean state of some subjects of every kind; of those that hold edits back, none that measures them."""
    every = kinds()
    subjects = [subject for name in names for subject in every[name][::2][:_SUBJECTS]]
    states = iter(_states(model, subjects).split([len(every[name][::2][:_SUBJECTS]) for name in names]))
    return torch.stack([of_kind.mean(0) for of_kind in states])


def _states(model: EditableModel, subjects: Sequence[str]) -> Float[Tensor, "n d"]:
    """The output of a block at the last token of every subject, float32 on the CPU."""
    rows = [encode(model.tokenizer, _FRAME, subject) for subject in subjects]
    block = model.block(model.n_layers // 3)
    found = []
    for first in range(0, len(rows), _ROWS):
        batch = rows[first : first + _ROWS]
        ids, mask = padded([row.ids for row in batch], model.device)
        hidden = forward_until(model, block, input_ids=ids, attention_mask=mask)
        found.append(hidden[range(len(batch)), [row.subject_last for row in batch]].float().cpu())
    return torch.cat(found)

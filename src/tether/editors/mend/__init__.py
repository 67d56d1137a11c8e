"""MEND: a network that is trained once for a model turns the gradient of a fact into an edit."""

from tether.editors.base import Method
from tether.editors.mend.file import open_trained
from tether.editors.mend.network import Mend, MendHparams
from tether.editors.mend.train import Training, TrainingProgress, train_mend

MEND = Method(
    name="mend",
    editor=Mend,
    settings=MendHparams,
    paper="Fast Model Editing at Scale (https://arxiv.org/abs/2110.11309)",
    summary="one fact at a time by a network trained for the model, one backward pass",
    open_trained=open_trained,
)

__all__ = ["MEND", "Training", "TrainingProgress", "train_mend"]

"""Training editors that need it."""

from tether.editors.mend.train import Training, TrainingProgress, train_mend

__all__ = ["Training", "TrainingProgress", "train_mend"]

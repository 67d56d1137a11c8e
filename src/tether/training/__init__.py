"""Training editors that need it."""

from tether.training.mend import Training, TrainingProgress, train_mend

__all__ = ["Training", "TrainingProgress", "train_mend"]

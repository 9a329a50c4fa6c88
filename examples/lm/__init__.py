"""A byte-level Transformer language model: the parts that `train_lm.py` puts together."""


class UsageError(ValueError):
    """A setting that cannot work; the message names it, its value and the remedy."""


class DivergedError(UsageError):
    """A loss that is no longer a finite number."""

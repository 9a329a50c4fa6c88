"""The settings of a run."""

import dataclasses
import math
from pathlib import Path
from typing import Any, Self

from lm import UsageError
from lm.optimizers import tuning

NOT_PART_OF_THE_RUN = frozenset({"text", "out", "resume", "overwrite"})


@dataclasses.dataclass(frozen=True)
class Settings:
    """Trains a byte-level Transformer language model with any optimizer of the zoo or of Optax."""

    optimizer: str = "lion"
    """Name of the optimizer, looked up in optax_zoo first, then in optax."""
    compare: str = ""
    """Names such as lion,adamw,lamb: trains each from the same start and draws one picture."""
    learning_rate: float | None = None
    """Peak learning rate; without it the optimizer's tuned value."""
    weight_decay: float | None = None
    """Decay of the matrices, where the optimizer takes one; without it the tuned value."""
    clip_norm: float | None = None
    """Global norm to which gradients are clipped; without it they are not."""
    steps: int = 1200
    """Number of training steps."""
    warmup: int | None = None
    """Steps of linear warm-up before the cosine; without it a tenth of all steps."""
    eval_every: int | None = None
    """Steps between held-out evaluations and checkpoints; without it a tenth of all steps."""
    eval_windows: int = 256
    """Held-out windows per evaluation."""
    batch: int = 4
    """Windows per step."""
    context: int = 128
    """Bytes per window."""
    width: int = 256
    """Width of the residual stream."""
    layers: int = 2
    """Transformer blocks."""
    heads: int = 4
    """Attention heads; each has width / heads features, an even number."""
    seed: int = 0
    """Seed of the initial parameters and of the data order."""
    text: Path | None = None
    """File or folder to learn from; without it the source of Python's standard library."""
    out: Path = Path("runs/train_lm")
    """Folder for metrics, checkpoints and the picture."""
    resume: bool = False
    """Continue the run in the out folder, bit for bit as if it had never stopped."""
    overwrite: bool = False
    """Replace the run in the out folder."""

    def check(self) -> None:
        """Raises a UsageError for values that cannot work."""
        for name in ("steps", "eval_windows", "batch", "context", "width", "layers", "heads"):
            _at_least(self, name, 1)
        for name in ("warmup", "seed", "weight_decay"):
            _at_least(self, name, 0)
        _at_least(self, "eval_every", 1)
        for name in ("learning_rate", "clip_norm"):
            _positive(self, name)
        if self.width % (2 * self.heads):
            raise UsageError(
                f"--heads {self.heads}: width / heads must be an even number, and the width is "
                f"{self.width}; change one of them"
            )
        if self.warmup is not None and self.warmup >= self.steps:
            raise UsageError(
                f"--warmup {self.warmup}: must be below the {self.steps} steps; "
                "lower it or raise --steps"
            )
        if self.seed >= 2**31:
            raise UsageError(f"--seed {self.seed}: must be below {2**31}")
        if self.resume and self.overwrite:
            raise UsageError("--resume --overwrite: one keeps the run, one replaces it; choose one")
        names = self.compared()
        if len(set(names)) < len(names) or "" in names:
            raise UsageError(
                f"--compare {self.compare}: name each optimizer once, as in lion,adamw"
            )

    def compared(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.compare.split(",")) if self.compare else ()

    def member(self, optimizer: str) -> Self:
        """The settings of one run of a comparison."""
        return dataclasses.replace(self, optimizer=optimizer, compare="", out=self.out / optimizer)

    def resolved(self) -> Self:
        """Fills in what was left open, with the tuned values and with shares of the steps."""
        tuned = tuning(self.optimizer)
        defaults = {
            "learning_rate": tuned.learning_rate,
            "weight_decay": tuned.weight_decay,
            "warmup": self.steps // 10,
            "eval_every": max(10, self.steps // 10),
        }
        left_open = {key: value for key, value in defaults.items() if getattr(self, key) is None}
        return dataclasses.replace(self, **left_open)

    def identity(self) -> dict[str, Any]:
        """What must be the same for one run to continue another."""
        return {
            key: value
            for key, value in dataclasses.asdict(self).items()
            if key not in NOT_PART_OF_THE_RUN
        }


def _at_least(settings: Settings, name: str, least: int) -> None:
    value = getattr(settings, name)
    if value is not None and not least <= value < math.inf:
        raise UsageError(f"{_flag(name)} {value}: must be a finite number of at least {least}")


def _positive(settings: Settings, name: str) -> None:
    value = getattr(settings, name)
    if value is not None and not 0 < value < math.inf:
        raise UsageError(f"{_flag(name)} {value}: must be a finite number above 0")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")

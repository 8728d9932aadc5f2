"""Settings of a training and their defaults, without torch, so that the help of the command can state them."""

from __future__ import annotations

import math
from dataclasses import dataclass

WEIGHTINGS = ("min-snr", "layout")  # of the loss by noise level, see `training.losses.DiffusionLoss`
MAX_LAYOUT_FACTOR = 50.0  # times the weight of min-snr, at most
WARM_UP_STEPS = 100  # steps
DECAY_SHARE = 0.4  # the last share of the steps, in which the rate falls to zero


@dataclass(frozen=True)
class TrainingSchedule:
    """Length and learning rate of a training.

    accumulation_steps: batches in each step.
    ema_decay: decay of the averaged weights.
    evaluation_interval: steps between evaluations, each with a checkpoint.
    max_minutes: minutes after which the run stops at a checkpoint.

    Raises ValueError for numbers out of range.
    """

    steps: int
    learning_rate: float = 1e-3
    accumulation_steps: int = 1
    ema_decay: float = 0.999
    weight_decay: float = 0.01
    evaluation_interval: int = 250
    max_minutes: float = math.inf

    def __post_init__(self) -> None:
        positive = {
            "steps": self.steps,
            "accumulate": self.accumulation_steps,
            "every": self.evaluation_interval,
            "rate": self.learning_rate,
            "minutes": self.max_minutes,
        }
        for name, number in positive.items():
            if not number > 0:  # NaN neither
                raise ValueError(f"{name} {number} of the training, expected more than 0")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay {self.ema_decay} of the training is outside 0..1")

    def learning_rate_at(self, step: int) -> float:
        """Return the rate of a step: it rises over 100 steps, stays level, and falls to zero over the last 40 %."""
        return self.learning_rate * min(
            1.0, (step + 1) / WARM_UP_STEPS, (self.steps - step) / (DECAY_SHARE * self.steps)
        )

"""Settings of a training and their defaults, without torch, so that the help of the command can state them."""

from __future__ import annotations

import math
from dataclasses import dataclass

WEIGHTINGS = (
    "min-snr",
    "layout",
    "debiased",
    "none",
)  # of the loss by noise level, see `training.losses.DiffusionLoss`
MAX_LAYOUT_FACTOR = 50.0  # times the weight of min-snr, at most
LOSSES = ("l2", "huber", "smooth-l1")
HUBER_SCHEDULES = ("constant", "exponential", "snr")
REWARDS = ("canny", "lineart_standard", "hed", "lineart")  # preprocessors with a form that has gradients
REWARD_TIMESTEPS = 200  # noise levels, the least noise first, as in ControlNet++
WARM_UP_STEPS = 100  # steps
DECAY_SHARE = 0.4  # the last share of the steps, in which the rate falls to zero
PRECISIONS = ("bf16", "fp16", "fp32")
OPTIMIZERS = ("adamw", "adamw8bit", "adafactor", "prodigy")
LEARNING_RATES = {"prodigy": 1.0}  # of the command by optimizer; of Prodigy a factor of the rate that it finds
DEFAULT_LEARNING_RATE = 1e-4
CACHES = ("memory", "disk", "none")  # of latents and text states
CAPTION_DROPOUT = 0.1  # share of captions that are empty
TOLERANCE = 0.01  # share of examples that may be broken
VALIDATION_SHARE = "0.1"  # of the different images, as text: the flag may name data instead


@dataclass(frozen=True)
class RewardSettings:
    """A loss of the image that a prediction would draw, seen through an annotator, see `training.reward.Reward`.

    name: one of `REWARDS`.
    weight: factor of that loss, which is added to that of the prediction.
    timesteps: number of noise levels that have it, from the least noise on.

    Raises ValueError for values out of range.
    """

    name: str
    weight: float
    timesteps: int = REWARD_TIMESTEPS

    def __post_init__(self) -> None:
        _check_choice("reward", self.name, REWARDS)
        if not 0 < self.weight < math.inf:
            raise ValueError(f"weight {self.weight:g} of the reward {self.name}, expected more than 0")
        if self.timesteps < 1:
            raise ValueError(f"reward-timesteps {self.timesteps} of the training, expected at least 1")


@dataclass(frozen=True)
class LossSettings:
    """The loss of a diffusion model's prediction, and the noise that it learns from.

    weighting: weights of noise levels, one of `WEIGHTINGS`.
    snr_gamma: signal-to-noise ratio above which `min-snr` and `layout` weigh levels less.
    kind: loss of a difference, one of `LOSSES`.
    huber_c: difference at which `huber` and `smooth-l1` turn from squares to absolute values, at much noise.
    huber_schedule: how that difference depends on the noise level, one of `HUBER_SCHEDULES`.
    noise_offset: standard deviation of a shift of the noise of each channel of each image.
    timesteps: first noise level that is trained, and the one after the last; None trains all.
    reward: a loss of the image that is predicted, beside that of the prediction; None for none.

    Raises ValueError for values out of range.
    """

    weighting: str = "min-snr"
    snr_gamma: float = 5.0
    kind: str = "l2"
    huber_c: float = 0.1
    huber_schedule: str = "snr"
    noise_offset: float = 0.0
    timesteps: tuple[int, int] | None = None
    reward: RewardSettings | None = None

    def __post_init__(self) -> None:
        _check_choice("weighting", self.weighting, WEIGHTINGS)
        _check_choice("loss", self.kind, LOSSES)
        _check_choice("Huber schedule", self.huber_schedule, HUBER_SCHEDULES)
        if not 0 < self.snr_gamma < math.inf:
            raise ValueError(f"SNR gamma {self.snr_gamma:g} of the training, expected more than 0")
        if not 0 < self.huber_c <= 1:
            raise ValueError(f"Huber c {self.huber_c:g} of the training, expected above 0 and up to 1")
        if not 0 <= self.noise_offset <= 1:
            raise ValueError(f"noise offset {self.noise_offset:g} of the training is outside 0..1")
        if self.timesteps is not None and not 0 <= self.timesteps[0] < self.timesteps[1]:
            first, end = self.timesteps
            raise ValueError(f"timesteps {first}..{end} of the training hold none, expected such as 0..1000")
        if self.timesteps is not None and self.reward is not None and self.timesteps[0] >= self.reward.timesteps:
            raise ValueError(
                f"timesteps {self.timesteps[0]}..{self.timesteps[1]} of the training have no reward, which ends at "
                f"{self.reward.timesteps}: choose more --reward-timesteps, or leave out --reward"
            )


@dataclass(frozen=True)
class TrainingSchedule:
    """Length and learning rate of a training.

    accumulation_steps: batches in each step.
    ema_decay: decay of the averaged weights; 0 averages none, and needs no memory for them.
    evaluation_interval: steps between evaluations, each with a checkpoint.
    max_minutes: minutes after which the run stops at a checkpoint.
    warm_up_steps: steps in which the learning rate rises.
    decay_share: share of the steps, the last ones, in which the learning rate falls to zero.

    Raises ValueError for numbers out of range.
    """

    steps: int
    learning_rate: float = 1e-3
    accumulation_steps: int = 1
    ema_decay: float = 0.999
    weight_decay: float = 0.01
    evaluation_interval: int = 250
    max_minutes: float = math.inf
    warm_up_steps: int = WARM_UP_STEPS
    decay_share: float = DECAY_SHARE

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
        if self.warm_up_steps < 0 or not self.weight_decay >= 0:
            raise ValueError(
                f"warm-up {self.warm_up_steps}, weight decay {self.weight_decay} of the training, expected 0 or more"
            )
        if not 0 <= self.decay_share <= 1:
            raise ValueError(f"decay {self.decay_share} of the training is outside 0..1")

    def learning_rate_at(self, step: int) -> float:
        """Return the rate of a step: it rises over the warm-up, stays level, and falls to zero at the end."""
        rise = 1.0 if self.warm_up_steps == 0 else (step + 1) / self.warm_up_steps
        fall = 1.0 if self.decay_share == 0 else (self.steps - step) / (self.decay_share * self.steps)
        return self.learning_rate * min(1.0, rise, fall)


@dataclass(frozen=True)
class Execution:
    """Precision, optimizer and memory of a training.

    precision: of forward passes, one of `PRECISIONS`; weights that learn are in float32.
    optimizer: one of `OPTIMIZERS`.
    has_checkpointing: whether activations of the network and of the decoder are computed twice instead of stored.
    is_compiled: whether torch.compile compiles the network and the UNet, once their gradients are found equal.

    Raises ValueError for an unknown precision or optimizer.
    """

    precision: str = "bf16"
    optimizer: str = "adamw"
    has_checkpointing: bool = False
    is_compiled: bool = False

    def __post_init__(self) -> None:
        _check_choice("precision", self.precision, PRECISIONS)
        _check_choice("optimizer", self.optimizer, OPTIMIZERS)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} {value!r} of the training, expected one of {', '.join(choices)}")

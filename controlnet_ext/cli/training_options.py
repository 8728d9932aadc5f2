"""The flags of `controlnet-ext train` on the loss, and on how long and how it computes, and the settings they mean."""

from __future__ import annotations

import math
import re
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from ..training.config import (
    DEFAULT_LEARNING_RATE,
    HUBER_SCHEDULES,
    LEARNING_RATES,
    LOSSES,
    MAX_LAYOUT_FACTOR,
    OPTIMIZERS,
    PRECISIONS,
    REWARD_TIMESTEPS,
    REWARDS,
    WEIGHTINGS,
    Execution,
    LossSettings,
    RewardSettings,
    TrainingSchedule,
)
from ..training.optimizers import PACKAGES as OPTIMIZER_PACKAGES
from ..training.optimizers import check_optimizer
from .common import list_changed_flags


def add_loss_flags(parser: ArgumentParser) -> None:
    """Declare the loss and its noise."""
    default = LossSettings()
    parser.add_argument(
        "--weighting",
        metavar="W",
        default=default.weighting,
        help=f"weights of the loss by noise level, one of: {', '.join(WEIGHTINGS)}. layout weights high noise levels, "
        f"which decide the places of colors, up to {MAX_LAYOUT_FACTOR:g} times more (default: {default.weighting})",
    )
    parser.add_argument(
        "--snr-gamma",
        metavar="G",
        type=float,
        default=default.snr_gamma,
        help=f"signal-to-noise ratio above which min-snr and layout weigh levels less (default: {default.snr_gamma:g})",
    )
    parser.add_argument(
        "--loss",
        metavar="L",
        default=default.kind,
        help=f"loss of a difference, one of: {', '.join(LOSSES)} (default: {default.kind})",
    )
    parser.add_argument(
        "--huber-c",
        metavar="C",
        type=float,
        default=default.huber_c,
        help="difference from which on huber and smooth-l1 count absolute values instead of squares "
        f"(default: {default.huber_c:g})",
    )
    parser.add_argument(
        "--huber-schedule",
        metavar="S",
        default=default.huber_schedule,
        help=f"how that difference falls from 1 at little noise to C, one of: {', '.join(HUBER_SCHEDULES)} "
        f"(default: {default.huber_schedule})",
    )
    parser.add_argument(
        "--noise-offset",
        metavar="N",
        type=float,
        default=default.noise_offset,
        help="standard deviation of a shift of the noise of each channel, such as 0.05 (default: 0)",
    )
    parser.add_argument(
        "--timesteps", metavar="A..B", help="noise levels to train, A up to but not B (default: all, such as 0..1000)"
    )
    _add_reward_flags(parser)
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="seed of noise and order")


def _add_reward_flags(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--reward",
        metavar="NAME:WEIGHT",
        help="add WEIGHT times the difference between edges or lines of the predicted image and of the example, by one "
        f"of: {', '.join(REWARDS)}; such as canny:0.5",
    )
    parser.add_argument(
        "--reward-timesteps",
        metavar="N",
        type=int,
        help=f"noise levels with that reward, the least noise first (default: {REWARD_TIMESTEPS})",
    )


def add_run_flags(parser: ArgumentParser) -> None:
    """Declare how long the training runs, how fast it learns, and how it computes."""
    _add_schedule_flags(parser)
    _add_execution_flags(parser)


def _add_schedule_flags(parser: ArgumentParser) -> None:
    default = TrainingSchedule(1)
    parser.add_argument("--steps", metavar="N", type=int, default=10_000, help="optimizer steps")
    parser.add_argument("--batch", metavar="B", type=int, default=8, help="images in a batch")
    parser.add_argument("--accumulate", metavar="K", type=int, default=1, help="batches in each step")
    parser.add_argument(
        "--rate",
        metavar="R",
        type=float,
        help=f"learning rate (default: {DEFAULT_LEARNING_RATE:g}; "
        + ", ".join(f"of {name} {rate:g}, a factor of the rate that it finds" for name, rate in LEARNING_RATES.items())
        + ")",
    )
    parser.add_argument(
        "--warm-up",
        metavar="N",
        type=int,
        default=default.warm_up_steps,
        help=f"steps in which the learning rate rises (default: {default.warm_up_steps})",
    )
    parser.add_argument(
        "--decay",
        metavar="SHARE",
        type=float,
        default=default.decay_share,
        help="share of the steps, the last ones, in which the learning rate falls to zero (default: "
        f"{default.decay_share:g}; 0: it stays)",
    )
    parser.add_argument(
        "--weight-decay",
        metavar="D",
        type=float,
        default=default.weight_decay,
        help=f"weight decay (default: {default.weight_decay:g})",
    )
    parser.add_argument(
        "--ema",
        metavar="D",
        type=float,
        default=default.ema_decay,
        help=f"decay of the averaged weights, which are measured and written (default: {default.ema_decay:g}; 0: none "
        "are averaged, which saves their memory)",
    )
    parser.add_argument(
        "--minutes", metavar="M", type=float, default=math.inf, help="stop after M minutes, at a checkpoint"
    )
    parser.add_argument("--work", metavar="FOLDER", type=Path, help="checkpoint and log (default: OUT.training)")


def _add_execution_flags(parser: ArgumentParser) -> None:
    execution = Execution()
    parser.add_argument(
        "--optimizer",
        metavar="O",
        default=execution.optimizer,
        help=f"one of: {', '.join(OPTIMIZERS)}; "
        + ", ".join(f"{name} needs {package}" for name, package in OPTIMIZER_PACKAGES.items())
        + f" (default: {execution.optimizer})",
    )
    parser.add_argument(
        "--precision",
        metavar="P",
        default=execution.precision,
        help=f"precision of forward passes, one of: {', '.join(PRECISIONS)}; fp16 needs a GPU (default: "
        f"{execution.precision})",
    )
    parser.add_argument(
        "--checkpointing",
        action="store_true",
        help="compute activations of the network and the decoder twice instead of storing them: slower, less memory",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="torch.compile, after a check that it gives the gradients that are computed without it",
    )


def read_loss_settings(options: Namespace) -> LossSettings:
    """Return the loss that the flags mean. Raises ValueError for values out of range."""
    timesteps = None
    if options.timesteps is not None:
        ends = re.fullmatch(r"(\d{1,6})\.\.(\d{1,6})", options.timesteps)
        if ends is None:
            raise ValueError(f"timesteps {options.timesteps!r:.80}: expected FIRST..END, such as 0..1000")
        timesteps = int(ends[1]), int(ends[2])
    return LossSettings(
        options.weighting,
        options.snr_gamma,
        options.loss,
        options.huber_c,
        options.huber_schedule,
        options.noise_offset,
        timesteps,
        _read_reward(options),
    )


def _read_reward(options: Namespace) -> RewardSettings | None:
    if options.reward is None:
        if options.reward_timesteps is not None:
            raise ValueError(f"reward-timesteps {options.reward_timesteps} without --reward, such as canny:0.5")
        return None
    name, _, text = options.reward.partition(":")
    try:
        weight = float(text)
    except ValueError:
        raise ValueError(f"reward {options.reward!r:.80}: expected NAME:WEIGHT, such as canny:0.5") from None
    levels = options.reward_timesteps
    return RewardSettings(name, weight, REWARD_TIMESTEPS if levels is None else levels)


def read_schedule(options: Namespace) -> TrainingSchedule:
    """Return the length and the learning rate that the flags mean. Raises ValueError for numbers out of range."""
    return TrainingSchedule(
        options.steps,
        read_rate(options),
        options.accumulate,
        options.ema,
        options.weight_decay,
        options.every,
        options.minutes,
        options.warm_up,
        options.decay,
    )


def read_rate(options: Namespace) -> float:
    """Return the learning rate that the flags mean; without one, that of the optimizer."""
    rate: float | None = options.rate
    return LEARNING_RATES.get(options.optimizer, DEFAULT_LEARNING_RATE) if rate is None else rate


def read_execution(options: Namespace) -> Execution:
    """Return the precision, the optimizer and the memory that the flags mean.

    Raises ValueError where an unknown one is asked for, or one whose library or device is not there.
    """
    execution = Execution(options.precision, options.optimizer, options.checkpointing, options.compile)
    check_optimizer(execution.optimizer)
    if execution.precision == "fp16":
        import torch

        if not torch.cuda.is_available():
            raise ValueError("precision fp16 needs a GPU, which is not there: --precision bf16 or fp32")
    return execution


def list_changed_settings(options: Namespace) -> dict[str, Any]:
    """Return those flags of the loss and of the run that change its result and differ from their defaults.

    Weighting, steps, batch, accumulation and rate are left out.
    """
    names = ("weighting", "seed", "steps", "batch", "accumulate", "rate")
    left_out = (*names, "minutes", "work", "checkpointing", "compile")
    return {
        name: value
        for add_flags in (add_loss_flags, add_run_flags)
        for name, value in list_changed_flags(options, add_flags, left_out).items()
    }

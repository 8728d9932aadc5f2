"""What the log of a training says of over- and underfitting."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .config import WARM_UP_STEPS

MIN_VERDICT_STEPS = WARM_UP_STEPS  # before, the rate has not risen to its value yet
SIGNIFICANT_CHANGE = 0.02  # share of a loss that the verdict calls a change
MIN_SHARED_GAIN = 0.5  # share of the gain on training images that must hold for others


def describe_fit(rows: Sequence[dict[str, float]]) -> str:
    """Return a sentence on overfitting or underfitting from the log of a training, or that it is too short to tell.

    Each row has `step`, the fixed losses `training` and `held_out`, and those of the model without control,
    `training_unguided` and `held_out_unguided`.
    """
    last, lowest = rows[-1], min(rows, key=lambda row: row["held_out"])
    gained = {side: last[f"{side}_unguided"] - last[side] for side in ("training", "held_out")}
    earlier = next(row for row in rows if row["step"] >= 0.75 * last["step"])
    figures = (
        f"held-out loss {last['held_out']:.4g} ({last['held_out_unguided']:.4g} without control), "
        f"training loss {last['training']:.4g} ({last['training_unguided']:.4g})"
    )
    if last["step"] < MIN_VERDICT_STEPS:
        return f"too few steps to tell, {last['step']:.0f} of at least {MIN_VERDICT_STEPS}; {figures}: more steps"
    if last["held_out"] > (1 + SIGNIFICANT_CHANGE) * lowest["held_out"]:
        where = f"the held-out loss was lowest, {lowest['held_out']:.4g}, after {lowest['step']:.0f} steps"
        return f"overfits: {where}; {figures}: more images, or fewer steps"
    if gained["training"] > 0 and gained["held_out"] < MIN_SHARED_GAIN * gained["training"]:
        share = math.floor(100 * gained["held_out"] / gained["training"])
        return f"overfits: {share} % of what control gains on training images holds for others; {figures}: more images"
    if gained["held_out"] <= 0 or last["held_out"] < (1 - SIGNIFICANT_CHANGE) * earlier["held_out"]:
        return f"underfits: the held-out loss still falls, or control does not help yet; {figures}: more steps"
    if earlier is last:
        return f"too few measurements to tell whether the loss still falls; {figures}: a smaller --every"
    return f"fits: neither over- nor underfits; {figures}"

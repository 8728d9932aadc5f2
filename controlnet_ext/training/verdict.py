"""What the log of a training says of over- and underfitting: functions of its rows alone.

Bias and variance as textbooks name them: with high bias both errors are high, with high variance there is a gap between
the error on training images and that on held-out ones.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from .config import WARM_UP_STEPS
from .stopping import Row, has_learnt

MIN_VERDICT_STEPS = WARM_UP_STEPS  # before, the rate has not risen to its value yet
SIGNIFICANT_CHANGE = 0.02  # share of a loss that the verdict calls a change, in two measurements in succession
MAX_LOST_GAIN = 0.2  # share of the gain whose loss is a change too
CHANCE_FACTOR = 5.0  # times so large, one measurement shows a change
SIGNIFICANT_GAP = 0.05  # share of the gain on training images by which the gap grows where a network overfits
MIN_SHARED_GAIN = 0.5  # share of the gain on training images that must hold for others

OVERFITS, DIVERGES, UNDERFITS, FITS, UNKNOWN = "overfits", "diverges", "underfits", "fits", "unknown"
BIAS_AND_VARIANCE = {
    OVERFITS: "high variance: held-out images are predicted worse than training images",
    DIVERGES: "both errors rise",
    UNDERFITS: "high bias: both errors are high",
    FITS: "neither high bias nor high variance",
}
EVENTS = {OVERFITS: "overfitting", DIVERGES: "diverging", UNDERFITS: "underfitting", FITS: "fitting"}


@dataclass(frozen=True)
class Fit:
    """State of a network after a row of the log: whether it over- or underfits its data.

    status: `OVERFITS`, `DIVERGES`, `UNDERFITS`, `FITS` or `UNKNOWN`. finding: what shows it. advice: what to do, "" for
    nothing. trend: words on how the held-out loss moves.
    """

    status: str
    finding: str
    advice: str = ""
    trend: str = ""


def describe_fit(rows: Sequence[Row]) -> str:
    """Return a sentence on overfitting or underfitting from the log of a training, or that it is too short to tell.

    Each row has `step`, the fixed losses `training` and `held_out`, and those of the model without control,
    `training_unguided` and `held_out_unguided`.
    """
    last, fit = rows[-1], classify_fit(rows)
    if not has_losses(last):
        return fit.finding
    figures = (
        f"held-out loss {last['held_out']:.4g} ({last['held_out_unguided']:.4g} without control), "
        f"training loss {last['training']:.4g} ({last['training_unguided']:.4g})"
    )
    term = f"; {BIAS_AND_VARIANCE[fit.status]}" if fit.status in BIAS_AND_VARIANCE else ""
    return f"{fit.finding}; {figures}{term}{f': {fit.advice}' if fit.advice else ''}"


def classify_fit(rows: Sequence[Row]) -> Fit:
    """Return the state after the last of these rows, see `describe_fit`."""
    return _classify(rows, [row["step"] for row in rows], len(rows) - 1, min(rows, key=_read_held_out))


def _read_held_out(row: Row) -> float:
    return row.get("held_out", math.inf)


def _choose_lower(a: Row, b: Row) -> Row:
    return b if _read_held_out(b) < _read_held_out(a) else a


def _classify(rows: Sequence[Row], steps: Sequence[float], i: int, lowest: Row) -> Fit:
    """Return the state after row i, of the steps `steps`, where `lowest` has the lowest held-out loss up to it."""
    last = rows[i]
    if not has_losses(last) or not has_losses(lowest):
        return Fit(UNKNOWN, "the losses with and without control were not measured")
    gains = {side: last[f"{side}_unguided"] - last[side] for side in ("training", "held_out")}
    before = bisect.bisect_right(steps, 0.75 * last["step"], 0, i + 1) - 1
    earlier = rows[before] if before >= 0 else last
    if last["step"] < MIN_VERDICT_STEPS:
        few = f"too few steps to tell, {last['step']:.0f} of at least {MIN_VERDICT_STEPS}"
        return Fit(UNKNOWN, few, "more steps")
    if _has_risen(rows, i, lowest):
        where = f"the held-out loss was lowest, {lowest['held_out']:.4g}, after {lowest['step']:.0f} steps"
        if last["training"] > (1 + SIGNIFICANT_CHANGE) * lowest["training"]:
            return Fit(DIVERGES, f"diverges: {where}, and both losses rise", "a lower --rate", "rising like it")
        if compute_gap(last) - compute_gap(lowest) > SIGNIFICANT_GAP * max(gains["training"], 0):
            trend = "rising" if i == 0 or last["held_out"] >= rows[i - 1]["held_out"] else "above its lowest"
            return Fit(OVERFITS, f"overfits: {where}", "more images, or fewer steps", trend)
    if has_learnt(last) and gains["held_out"] < MIN_SHARED_GAIN * gains["training"]:
        share = math.floor(100 * gains["held_out"] / gains["training"])
        what = f"overfits: {share} % of what control gains on training images holds for others"
        return Fit(OVERFITS, what, "more images", f"with {share} % of the gain on training images")
    if gains["held_out"] <= 0:
        finding = "underfits: control does not help yet"
        return Fit(UNDERFITS, finding, "more steps", "no better than without control")
    if last["held_out"] < (1 - SIGNIFICANT_CHANGE) * earlier["held_out"]:
        return Fit(UNDERFITS, "underfits: the held-out loss still falls", "more steps", "still falling")
    if earlier is last:
        return Fit(UNKNOWN, "too few measurements to tell whether the loss still falls", "a smaller --every")
    return Fit(FITS, "fits: neither over- nor underfits", "", "level")


def _has_risen(rows: Sequence[Row], i: int, lowest: Row) -> bool:
    """Return True if the held-out loss of row i, and that of the row before, lie clearly above the lowest.

    Clearly means by 2 % of the loss, or where control gains little, by a fifth of its gain. One measurement alone may
    do so by chance, unless it lies five times as far above.
    """
    gain = lowest["held_out_unguided"] - lowest["held_out"]
    clear = SIGNIFICANT_CHANGE * lowest["held_out"]
    clear = min(clear, MAX_LOST_GAIN * gain) if gain > 0 else clear
    rises = [row["held_out"] - lowest["held_out"] for row in rows[max(i - 1, 0) : i + 1]]
    return min(rises) > clear or rises[-1] > CHANCE_FACTOR * clear


def compute_gap(row: Row) -> float:
    """Return the gain on training images minus the gain on held-out ones: 0 where one holds for the other."""
    return (row["training_unguided"] - row["training"]) - (row["held_out_unguided"] - row["held_out"])


def has_losses(row: Row) -> bool:
    """Return True if a row has the losses with and without control of both sets of images."""
    return {"training", "held_out", "training_unguided", "held_out_unguided"} <= row.keys()


def find_state_start(rows: Sequence[Row]) -> int:
    """Return the index of the row since which the state has been that after the last row, without a break.

    Overfitting by a rise of the held-out loss began with the measurement after the lowest, which is seen only later.
    """
    steps, lowest = [row["step"] for row in rows], list(accumulate(rows, _choose_lower))
    last = len(rows) - 1
    status = _classify(rows, steps, last, lowest[last]).status
    since = last
    while since and _classify(rows, steps, since - 1, lowest[since - 1]).status == status:
        since -= 1
    if status in (OVERFITS, DIVERGES):
        after = next(i for i in range(len(rows)) if rows[i] is lowest[last]) + 1
        since = min(since, after) if after <= last else since
    return since


def describe_state(rows: Sequence[Row], best_step: float) -> str | None:
    """Return a line such as "overfitting since step 1,400: training 0.031, held-out 0.058 and rising; best was step
    1,200" on the state after the last row; None where it is unknown. `best_step` is that of the best measurement."""
    last, fit = rows[-1], classify_fit(rows)
    if fit.status not in EVENTS:
        return None
    since = rows[find_state_start(rows)]["step"]
    return (
        f"{EVENTS[fit.status]} since step {since:,.0f}: training {last['training']:.4g}, held-out "
        f"{last['held_out']:.4g} and {fit.trend}; best was step {best_step:,.0f}"
    )


def describe_change(rows: Sequence[Row], best_step: float) -> str | None:
    """Return `describe_state` if the last row changed the state, None if it did not."""
    before = classify_fit(rows[:-1]).status if len(rows) > 1 else UNKNOWN
    return describe_state(rows, best_step) if classify_fit(rows).status != before else None

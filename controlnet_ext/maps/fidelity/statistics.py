"""What scores of many images say: the share between floor and ceiling, and the interval of a mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_RESAMPLES_AT_ONCE = 2**20  # numbers drawn at once: 8 MiB


def compute_share(score: float, floor: float, ceiling: float) -> float:
    """Return (score - floor) / (ceiling - floor): 0 at the floor, what an unguided image of the same seed scores, and
    1 at the ceiling, what the source image scores; below 0 and above 1 where a score lies beyond them.

    It reads the same for measures of either direction. NaN where one of the three is not finite, or floor and ceiling
    are equal: nothing lies between them."""
    if not np.isfinite([score, floor, ceiling]).all() or floor == ceiling:
        return float("nan")
    return (score - floor) / (ceiling - floor)


class Interval(NamedTuple):
    """A mean and the bounds of its confidence interval; `used` scores are in it, `left_out` were not finite."""

    mean: float
    low: float
    high: float
    used: int
    left_out: int


def bootstrap_interval(scores: Sequence[float], level: float = 0.95, samples: int = 2000, seed: int = 0) -> Interval:
    """Return the mean of scores and its percentile bootstrap interval (Efron, 1979): images are drawn with replacement
    `samples` times, and `level` of the means lie within. The same scores and seed give the same bounds.

    Scores that are not finite are left out. Of none all is NaN; of one, or of equal ones, the bounds are the mean.
    Raises ValueError for a level outside 0..1 or less than one sample."""
    if not 0 < level < 1:
        raise ValueError(f"level {level} of an interval is not between 0 and 1")
    if samples < 1:
        raise ValueError(f"{samples} samples of a bootstrap, expected at least 1")
    values = np.asarray(scores, np.float64).reshape(-1)
    finite = values[np.isfinite(values)]
    count, left_out = len(finite), len(values) - len(finite)
    if not count:
        return Interval(float("nan"), float("nan"), float("nan"), 0, left_out)
    numbers, means = np.random.default_rng(seed), []
    step = max(1, _RESAMPLES_AT_ONCE // count)
    for start in range(0, samples, step):
        resamples = numbers.integers(0, count, (min(step, samples - start), count))
        means.append(finite[resamples].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(finite.mean()), float(low), float(high), count, left_out)

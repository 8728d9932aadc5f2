"""When a training stops, and which of its weights are the best: a function of the rows of its log.

A rule sees nothing else, so a training that was killed and started again decides as one that was not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

Row = Mapping[str, float]

LEARNT_SHARE = 0.01  # of the loss without control, below it the training has learnt something: patience begins
DEFAULT_PATIENCE = 5  # measurements
NO_STOP = "none"


@dataclass(frozen=True)
class Decision:
    """The conclusion of a stop rule from a log.

    best_step: step of the row whose averaged weights are kept beside the last ones; None keeps none.
    message: sentence to print beside the last row; None says nothing.
    reason: sentence on why the training stops at the last row; None goes on.
    """

    best_step: float | None = None
    message: str | None = None
    reason: str | None = None


class StopRule(Protocol):
    """A pure function of the rows of a log, in order of their steps, of which the last is new."""

    def __call__(self, rows: Sequence[Row]) -> Decision: ...


def run_all_steps(rows: Sequence[Row]) -> Decision:
    """Go on to the last step, and keep no best weights."""
    return Decision()


@dataclass(frozen=True)
class StopFigure:
    """A figure of the log that a training can be stopped by.

    key: its name in the rows. is_better_higher: its direction. title: what it is, for people.
    """

    key: str
    is_better_higher: bool
    title: str

    def score(self, row: Row) -> float:
        """Return the figure of a row so that more is better; minus infinity where it is missing or NaN."""
        value = row.get(self.key, math.nan)
        if math.isnan(value):
            return -math.inf
        return value if self.is_better_higher else -value


STOP_FIGURES = {
    "gain": StopFigure("relative_gain", True, "gain of control on held-out images"),
    "fidelity": StopFigure("fidelity_share", True, "fidelity of generated held-out images"),
    "loss": StopFigure("held_out", False, "held-out loss"),
}


@dataclass(frozen=True)
class PatienceRule:
    """Stop when `figure`, a name of `STOP_FIGURES`, has not improved in `patience` measurements; None: never.

    The best measurement is also known without a patience. Patience begins when the loss on training images shows that
    something was learnt: ControlNets converge suddenly, after thousands of steps in which nothing improves.
    """

    figure: str = "gain"
    patience: int | None = None

    @classmethod
    def parse(cls, text: str) -> PatienceRule:
        """Return the rule of "gain:5", "fidelity:5", "loss:5" or "none"; without a number the patience is 5.

        Raises ValueError for other texts.
        """
        if text == NO_STOP:
            return cls()
        match = re.fullmatch(r"(\w+)(?::(\d{1,6}))?", text)
        if match is None or match[1] not in STOP_FIGURES or (match[2] is not None and int(match[2]) == 0):
            raise ValueError(
                f"stop {text!r:.40}: expected none, or FIGURE:PATIENCE with a figure of {', '.join(STOP_FIGURES)} and "
                "a number of measurements from 1 on, such as gain:5"
            )
        return cls(match[1], DEFAULT_PATIENCE if match[2] is None else int(match[2]))

    def __call__(self, rows: Sequence[Row]) -> Decision:
        """Return the best step and why the training stops, without a message."""
        figure = STOP_FIGURES[self.figure]
        scores = [figure.score(row) for row in rows]
        if max(scores) == -math.inf:  # a training that was begun without the figure
            return Decision(rows[-1]["step"])
        best = max(range(len(rows)), key=lambda i: (scores[i], -i))
        first = next((i for i, row in enumerate(rows) if has_learnt(row)), len(rows))
        count = len(rows) - 1 - max(best, first)
        if self.patience is None or count < self.patience:
            return Decision(rows[best]["step"])
        reason = (
            f"stopped after step {rows[-1]['step']:,.0f}: the {figure.title} has not improved in {count} "
            f"measurements; it was best, {rows[best][figure.key]:.4g}, after step {rows[best]['step']:,.0f}"
        )
        return Decision(rows[best]["step"], reason=reason)


def has_learnt(row: Row) -> bool:
    """Return True if the loss on training images is lower with control than without, by more than 1 %.

    Also True for rows of trainings that do not measure the latter.
    """
    unguided_loss = row.get("training_unguided", math.nan)
    return math.isnan(unguided_loss) or row["training"] < (1 - LEARNT_SHARE) * unguided_loss

"""Residuals that serve several steps of a run: less work, less exact (figures in docs/steering.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .contract import Residuals, Step

if TYPE_CHECKING:
    from torch import Tensor


class Reuse:
    """What a unit's calls gave, before weights, for up to `steps` steps of the run, and only while x has changed by no
    more than `drift` of its norm since. Rows of other pictures, with or without the prompt, or with another prompt have
    residuals of their own."""

    def __init__(self, steps: int, drift: float | None):
        self._steps, self._drift = steps, drift
        self._kept: dict[tuple[Any, ...], tuple[int, Step, list[Residuals]]] = {}

    def find(self, step: Step, index: int) -> list[Residuals] | None:
        """What may serve in this step, the run's `index`-th, from 0."""
        made, then, residuals = self._kept.get(self._key(step), (index, None, None))
        if then is None or not 0 < index - made < self._steps:
            return None
        same = _equal(step.context, then.context) and _equal(step.added, then.added)
        if same and self._drift is not None:
            same = bool((step.x - then.x).norm() <= self._drift * then.x.norm())
        return residuals if same else None

    def keep(self, step: Step, index: int, residuals: list[Residuals]) -> None:
        self._kept[self._key(step)] = index, step, residuals

    def _key(self, step: Step) -> tuple[Any, ...]:
        if step.positive is None or step.samples is None:
            raise ValueError("residuals are reused by row, and the host cannot tell whose row is whose")
        return (*step.x.shape, *step.positive.tolist(), *step.samples.tolist())


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    import torch

    return a is b if a is None or b is None else torch.equal(a, b)

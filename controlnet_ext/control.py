"""What a guided step is made of: plain values, no torch needed to import them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Span(NamedTuple):
    """Where one step lies in its run, as fractions 0..1: it begins and ends."""

    begins: float
    ends: float


@dataclass(frozen=True, eq=False)
class Step:
    """One UNet call as the host saw it.

    `x (B, C, h, w)`, `t (B,)` timesteps, `context (B, T, D)` prompt embeddings. `positive (B,)` is True on the prompt's rows,
    None when the host cannot tell. `added (B, 2816)` is SDXL's vector (ldm's `y`). `samples (B,)` is the index of the picture
    each row belongs to. With `frames` > 1 the batch is flattened video, B = pictures x frames.
    """

    x: Tensor
    t: Tensor
    context: Tensor
    span: Span
    positive: Tensor | None = None
    added: Tensor | None = None
    samples: Tensor | None = None
    frames: int = 1


@dataclass(frozen=True, eq=False)
class Residuals:
    """What a control model adds to a UNet: one tensor per skip (first encoder block first), one for the middle block, and what
    T2I-Adapters add inside the encoder. Values are never changed in place."""

    skips: tuple[Tensor, ...] = ()
    middle: Tensor | None = None
    encoder: tuple[Tensor, ...] = ()

    def map(self, f: Callable[[Tensor, int], Tensor]) -> Residuals:
        """Residuals with `f(tensor, depth)` applied; depth counts skips from 0, the middle block comes after the last skip."""
        return Residuals(
            tuple(f(r, i) for i, r in enumerate(self.skips)),
            None if self.middle is None else f(self.middle, len(self.skips)),
            tuple(f(r, i) for i, r in enumerate(self.encoder)),
        )

    def __add__(self, other: Residuals) -> Residuals:
        return Residuals(
            _sum(self.skips, other.skips), _plus(self.middle, other.middle), _sum(self.encoder, other.encoder)
        )


def _plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _sum(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x + y for x, y in zip(a, b, strict=True)) if a and b else a or b

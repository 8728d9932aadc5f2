"""What a UNet's output says of the picture behind the noise, and the output that says another picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

PREDICTIONS = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True, eq=False)
class Noise:
    """One UNet call's x is `signal` times the clean latents plus `noise` times Gaussian noise, squares of which add up
    to 1; both are floats, or `(B, 1, 1, 1)`. `prediction` is what the UNet was trained to give: that noise, the
    velocity signal * noise - noise * clean (Salimans and Ho 2022), or the clean latents. ValueError on another."""

    prediction: str
    signal: float | Tensor
    noise: float | Tensor

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"prediction type {self.prediction!r} is none of: {', '.join(PREDICTIONS)}")

    def noisy(self, clean: Tensor, gauss: Tensor) -> Tensor:
        """x of clean latents."""
        return self.signal * clean + self.noise * gauss

    def clean(self, x: Tensor, out: Tensor) -> Tensor:
        """The clean latents that the output means."""
        if self.prediction == "epsilon":
            return (x - self.noise * out) / self.signal
        return out if self.prediction == "sample" else self.signal * x - self.noise * out

    def moved(self, out: Tensor, change: Tensor) -> Tensor:
        """The output that means clean latents changed by this: all three are linear in them, so that a change of 0 is
        none to the bit."""
        if self.prediction == "sample":
            return out + change
        return out - change * ((self.signal if self.prediction == "epsilon" else 1) / self.noise)

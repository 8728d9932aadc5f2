"""What units do after the UNet's call to the picture that it sees behind the noise: inpaint_only and tile_colorfix.

The formulas are sd-webui-controlnet's (@ 56cec5b). There they act in all steps and passes and take every model for one
that predicts noise; here as the unit says, and by the model's own prediction.

What a UNet's output says of the picture behind the noise, and the output that says another picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import check_choice
from .contract import ControlModel, Step

if TYPE_CHECKING:
    from torch import Tensor

    from ..preprocessors.registry import Preprocessor


class PostStep(ControlModel):
    """A change of the latents after each step: `Unit.after`, or `Unit.model` if the unit does nothing else.

    `architecture` is the name of the preprocessor in sd-webui-controlnet.
    """

    family = "every"
    makes_residuals = False
    needs_mask: ClassVar[bool] = False
    """The unit must have an `inpaint` mask."""

    def apply_to_latents(self, x0: Tensor, step: Step, image_latents: Tensor, latent_mask: Tensor | None) -> Tensor:
        """Return the clean latents `(B, C, h, w)` to use in place of the prediction `x0`.

        `image_latents` `(1, C, h, w)` or `(B, C, h, w)` belong to the unit's image; `latent_mask` `(1, 1, h, w)` is 1
        where its inpaint mask is white, else 0, None without a mask.
        """
        raise NotImplementedError(f"{type(self).__name__} has no apply_to_latents()")


@dataclass(frozen=True)
class InpaintRestore(PostStep):
    """inpaint_only: where nothing is to be repainted the latents are the picture's."""

    architecture = "inpaint_only"
    needs_mask = True

    def apply_to_latents(self, x0: Tensor, step: Step, image_latents: Tensor, latent_mask: Tensor | None) -> Tensor:
        assert latent_mask is not None
        return x0 * latent_mask + image_latents * (1 - latent_mask)


@dataclass(frozen=True)
class ColorFix(PostStep):
    """tile_colorfix: colours are the picture's, details those of the step, divided by a box of 2 `variation` + 1
    latents. With `sharpness`, 0..2, the rows without the prompt are blurred by as many hundredths, from which guidance
    leads away. TypeError or ValueError on other numbers."""

    variation: int = 8
    sharpness: float = 0.0
    architecture = "tile_colorfix"

    def __post_init__(self) -> None:
        if type(self.variation) is not int or not isinstance(self.sharpness, int | float):
            raise TypeError(f"variation {self.variation!r} and sharpness {self.sharpness!r}: expected whole and number")
        if self.variation < 1 or not 0 <= self.sharpness <= 2:
            raise ValueError(f"variation {self.variation}, sharpness {self.sharpness}: expected from 1, and 0..2")

    def apply_to_latents(self, x0: Tensor, step: Step, image_latents: Tensor, latent_mask: Tensor | None) -> Tensor:
        fixed = x0 - box_blur(x0, self.variation) + box_blur(image_latents, self.variation)
        if not self.sharpness:
            return fixed
        if step.positive is None:
            raise ValueError("sharpness blurs the rows without the prompt, and the host cannot tell which those are")
        part = (~step.positive).to(fixed)[:, None, None, None] * (self.sharpness / 100)
        return fixed + part * (box_blur(fixed, self.variation) - fixed)


def post_step_for(spec: Preprocessor | None, parameters: Mapping[str, Any]) -> PostStep | None:
    """Return what units of this preprocessor do after each step by its traits, None for most. `parameters` are values
    by name; those that are absent have the preprocessor's defaults."""
    if spec is None:
        return None
    if spec.traits.restores_unmasked:
        return InpaintRestore()
    if spec.traits.fixes_colors:
        values = {p.name: p.default for p in spec.parameters} | dict(parameters)
        return ColorFix(values["variation"], values.get("sharpness", 0.0))
    return None


def box_blur(x: Tensor, radius: int) -> Tensor:
    """The mean over boxes of 2 radius + 1, the border continued."""
    from torch.nn.functional import avg_pool2d, pad

    return avg_pool2d(pad(x, (radius,) * 4, mode="replicate"), 2 * radius + 1, stride=1)


def downscale_mask(mask: Tensor, factor: int) -> Tensor:
    """A mask `(H, W)` of pixels as one of latents, `(1, 1, H / factor, W / factor)`: 1 for each whose pixels, or a
    pixel beside those, are white."""
    from torch.nn.functional import max_pool2d

    return max_pool2d(mask[None, None].float(), factor + 2, stride=factor, padding=1)


PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True, eq=False)
class NoiseLevel:
    """One UNet call's x is `signal` times the clean latents plus `noise` times Gaussian noise, squares of which add up
    to 1; both are floats, or `(B, 1, 1, 1)`. `prediction` is what the UNet was trained to give: that noise, the
    velocity signal * noise - noise * clean (Salimans and Ho 2022), or the clean latents. ValueError on another."""

    prediction_type: str
    signal: float | Tensor
    noise: float | Tensor

    def __post_init__(self) -> None:
        check_choice("prediction type", self.prediction_type, PREDICTION_TYPES)

    def add_noise(self, x0: Tensor, gaussian_noise: Tensor) -> Tensor:
        """x of clean latents."""
        return self.signal * x0 + self.noise * gaussian_noise

    def predict_x0(self, x: Tensor, out: Tensor) -> Tensor:
        """The clean latents that the output means."""
        if self.prediction_type == "epsilon":
            return (x - self.noise * out) / self.signal
        return out if self.prediction_type == "sample" else self.signal * x - self.noise * out

    def output_for_x0_shift(self, out: Tensor, x0_shift: Tensor) -> Tensor:
        """The output that means clean latents changed by this: all three are linear in them, so that a change of 0 is
        none to the bit."""
        if self.prediction_type == "sample":
            return out + x0_shift
        return out - x0_shift * ((self.signal if self.prediction_type == "epsilon" else 1) / self.noise)

"""Changes of the latents after a UNet call (inpaint_only and tile_colorfix), and the noise level of a call.

The formulas are those of sd-webui-controlnet (@ 56cec5b). There they act in all steps and passes and treat every model
as one that predicts noise; here they act as the unit states, and by the model's own prediction type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import check_choice, quote_value
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
    """inpaint_only: restore the latents of the image wherever the inpaint mask is black."""

    architecture = "inpaint_only"
    needs_mask = True

    def apply_to_latents(self, x0: Tensor, step: Step, image_latents: Tensor, latent_mask: Tensor | None) -> Tensor:
        """Return `x0` `(B, C, h, w)` where the mask is white, else the image's latents."""
        assert latent_mask is not None
        return x0 * latent_mask + image_latents * (1 - latent_mask)


MAX_VARIATION = 64  # twice what the preprocessors take, for a second pass of twice the size


@dataclass(frozen=True)
class ColorFix(PostStep):
    """tile_colorfix: take the colors of the image and the details of the step.

    Colors are the mean over a box of 2 `variation` + 1 latents, 1..64. With `sharpness`, 0..2, the rows without the
    prompt are blurred by as many hundredths, which guidance turns into sharper rows with it. Raises TypeError or
    ValueError on other numbers.
    """

    variation: int = 8
    sharpness: float = 0.0
    architecture = "tile_colorfix"

    def __post_init__(self) -> None:
        if type(self.variation) is not int or not isinstance(self.sharpness, int | float):
            raise TypeError(f"variation {self.variation!r} and sharpness {self.sharpness!r}: expected whole and number")
        if not 1 <= self.variation <= MAX_VARIATION or not 0 <= self.sharpness <= 2:
            raise ValueError(
                f"variation {quote_value(self.variation)}, sharpness {quote_value(self.sharpness)}: expected "
                f"1..{MAX_VARIATION}, and 0..2"
            )

    def apply_to_latents(self, x0: Tensor, step: Step, image_latents: Tensor, latent_mask: Tensor | None) -> Tensor:
        """Return `x0` `(B, C, h, w)` with the colors of `image_latents`.

        Raises ValueError if `sharpness` is set and the host cannot tell the rows without the prompt.
        """
        new_x0 = x0 - box_blur(x0, self.variation) + box_blur(image_latents, self.variation)
        if not self.sharpness:
            return new_x0
        if step.positive is None:
            raise ValueError("sharpness blurs the rows without the prompt, and the host cannot tell which those are")
        part = (~step.positive).to(new_x0)[:, None, None, None] * (self.sharpness / 100)
        return new_x0 + part * (box_blur(new_x0, self.variation) - new_x0)


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
    """Return the mean of `x` `(B, C, h, w)` over boxes of 2 `radius` + 1, with the border continued."""
    from torch.nn.functional import avg_pool2d, pad

    return avg_pool2d(pad(x, (radius,) * 4, mode="replicate"), 2 * radius + 1, stride=1)


def downscale_mask(mask: Tensor, factor: int) -> Tensor:
    """Return a mask of pixels `(H, W)` as one of latents, `(1, 1, H / factor, W / factor)`.

    A latent is 1 if one of its pixels, or a pixel next to them, is white.
    """
    from torch.nn.functional import max_pool2d

    return max_pool2d(mask[None, None].float(), factor + 2, stride=factor, padding=1)


PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True, eq=False)
class NoiseLevel:
    """The noise in the input of one UNet call: x = signal * x0 + noise * Gaussian noise.

    `signal` and `noise` are floats or `(B, 1, 1, 1)`; their squares add up to 1. `prediction_type` is what the UNet
    predicts: the noise, the velocity signal * noise - noise * x0 (Salimans and Ho 2022), or x0. Raises ValueError on
    another.
    """

    prediction_type: str
    signal: float | Tensor
    noise: float | Tensor

    def __post_init__(self) -> None:
        check_choice("prediction type", self.prediction_type, PREDICTION_TYPES)

    def add_noise(self, x0: Tensor, gaussian_noise: Tensor) -> Tensor:
        """Return x `(B, C, h, w)` for clean latents `(B, C, h, w)`."""
        return self.signal * x0 + self.noise * gaussian_noise

    def predict_x0(self, x: Tensor, out: Tensor) -> Tensor:
        """Return the clean latents `(B, C, h, w)` that the UNet's output `out` `(B, C, h, w)` for `x` means."""
        if self.prediction_type == "epsilon":
            return (x - self.noise * out) / self.signal
        return out if self.prediction_type == "sample" else self.signal * x - self.noise * out

    def output_for_x0_shift(self, out: Tensor, x0_shift: Tensor) -> Tensor:
        """Return the output `(B, C, h, w)` for which the predicted x0 is shifted by `x0_shift` `(B, C, h, w)`.

        All prediction types are linear in x0, so a shift of 0 changes no bit.
        """
        if self.prediction_type == "sample":
            return out + x0_shift
        return out - x0_shift * ((self.signal if self.prediction_type == "epsilon" else 1) / self.noise)

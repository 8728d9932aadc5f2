"""The strength of residuals: over the run, over the UNet's layers, over the image, and on the rows of the batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING, Any

from .contract import Crop, Residuals, Step
from .schedule import Span, Window

if TYPE_CHECKING:
    from torch import Tensor

WEIGHT_MODES = ("balanced", "prompt", "control")
MAX_WEIGHT = 2  # weights are -2..2
SOFT_WEIGHT_DECAY = 0.825  # lllyasviel/ControlNet @ ed85cd1, gradio_canny2image.py: strength * 0.825 ** (12 - i)
T2I_SOFT_WEIGHTS = (0.25, 0.62, 0.825, 1.0)  # sd-webui-controlnet @ 56cec5b: soft weights of a T2I-Adapter's four


@dataclass(frozen=True)
class WeightSchedule:
    """A weight over a run: linear between `points` (fraction of the run, weight), constant outside them."""

    points: tuple[tuple[float, float], ...]

    @classmethod
    def parse(cls, text: str) -> WeightSchedule:
        """Return the schedule written as weights at fractions: "0.2@0, 1@0.3, 0@0.8".

        Raises ValueError on other text.
        """
        points: list[tuple[float, float]] = []
        for part in text.split(","):
            try:
                weight, fraction = map(float, part.split("@"))
            except ValueError:
                raise ValueError(f'weight {text!r}: expected "weight@fraction, …" such as "0.2@0, 1@0.3"') from None
            if not 0 <= fraction <= 1:
                raise ValueError(f"weight {text!r}: fraction {fraction:g} is outside 0..1")
            if points and fraction <= points[-1][0]:
                raise ValueError(f"weight {text!r}: fractions must rise, {fraction:g} follows {points[-1][0]:g}")
            points.append((fraction, check_weight(weight)))
        return cls(tuple(points))

    def __call__(self, fraction: float) -> float:
        if fraction <= self.points[0][0]:
            return self.points[0][1]
        for (a, low), (b, high) in zip(self.points, self.points[1:], strict=False):
            if fraction < b:
                return low + (high - low) * (fraction - a) / (b - a)
        return self.points[-1][1]


def check_weight(weight: object) -> float:
    """Return the weight as a float. Raises TypeError if it is no number, ValueError if it is outside -2..2."""
    if not isinstance(weight, Real) or isinstance(weight, bool):
        raise TypeError(f"weight {weight!r} is {type(weight).__name__}, expected a number -{MAX_WEIGHT}..{MAX_WEIGHT}")
    if not -MAX_WEIGHT <= float(weight) <= MAX_WEIGHT:  # NaN neither
        raise ValueError(f"weight {weight} is outside -{MAX_WEIGHT}..{MAX_WEIGHT}")
    return float(weight)


def make_weight_schedule(weight: float | str | Callable[[float], float]) -> Callable[[float], float]:
    """Return a unit's weight as a function of the fraction of the run at which a step begins.

    The values of a given function are checked when it is called.
    """
    if isinstance(weight, str):
        return WeightSchedule.parse(weight)
    if callable(weight):
        return lambda fraction: check_weight(weight(fraction))
    constant = check_weight(weight)
    return lambda _: constant


def compute_step_weights(
    name: str, weight: float | str | Callable[[float], float], window: Window, spans: Sequence[Span]
) -> dict[Span, float]:
    """Return the weight of the unit `name` in each step of a run, 0 outside its window.

    Raises ValueError where the weight is not 0 and the unit acts in no step."""
    weights = dict.fromkeys(spans, 0.0)
    if weight == 0:
        return weights
    inner_spans = [span for span in spans if window.contains(span)]
    if not inner_spans:
        raise ValueError(f"window {window} of {name} holds none of {len(spans)} steps")
    schedule = make_weight_schedule(weight)
    try:
        weights |= {span: schedule(span.start) for span in inner_spans}
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error
    if not any(weights.values()):
        raise ValueError(f"the weight of {name} is 0 in all {len(inner_spans)} steps that its window {window} holds")
    return weights


def layer_scales(
    weight: float, mode: str, layers: Sequence[float] | None, skip_count: int, encoder_count: int
) -> tuple[list[float], ...]:
    """A factor for each skip and the middle block, and one for each of `encoder`.

    Soft weights ("prompt", "control") fall by 0.825 a layer from 1.0 on the middle block outwards, so that SD1.5's 13
    are 0.825^12..1; for SDXL sd-webui-controlnet cuts that list off and ends at 0.825^3, which is not followed.
    ValueError when `layers` has another length."""
    outer = [1.0] * (skip_count + 1) if skip_count or not encoder_count else []
    inner = [1.0] * encoder_count
    if mode != "balanced":
        outer = [SOFT_WEIGHT_DECAY ** (skip_count - depth) for depth, _ in enumerate(outer)]
        inner = (
            list(T2I_SOFT_WEIGHTS)
            if encoder_count == len(T2I_SOFT_WEIGHTS)
            else [SOFT_WEIGHT_DECAY ** (encoder_count - 1 - i) for i in range(encoder_count)]
        )
    if layers is not None:
        if len(layers) != (len(outer) or len(inner)):
            raise ValueError(f"layers has {len(layers)} entries, but the model has {len(outer) or len(inner)}")
        outer = [a * b for a, b in zip(outer, layers, strict=False)]
        inner = [a * b for a, b in zip(inner, layers, strict=False)]
    return [weight * factor for factor in outer], [weight * factor for factor in inner]


class RegionMask:
    """A mask `(1, 1, H, W)`, or `(B, 1, H, W)` with one for each row, in 0..1, stretched over what a UNet call shows,
    at the size of any layer (bilinear)."""

    def __init__(self, mask: Tensor):
        self.mask = mask  # (1, 1, H, W) or (B, 1, H, W) float
        self._resized: dict[tuple[Any, ...], Tensor] = {}

    def crop(self, crops: Sequence[Crop]) -> RegionMask:
        """Return the mask of rows that show these parts of the image, `(B, 1, H, W)`, or `(1, 1, H, W)` if all show
        one part."""
        import torch

        if len(set(crops)) == 1:
            return RegionMask(self._crop(crops[0]))
        parts = {crop: resize_mask(self._crop(crop), crop.size) for crop in set(crops)}
        return RegionMask(torch.cat([parts[crop] for crop in crops]))

    def _crop(self, crop: Crop) -> Tensor:
        from torch.nn.functional import pad

        (left, top, right, bottom), (x, y, x_end, y_end) = crop.box, crop.placement
        part = resize_mask(self.mask, crop.image_size)[..., top:bottom, left:right]
        if crop.target is None:
            return part  # stretched over the call as a mask of its own would be
        part = resize_mask(part, (y_end - y, x_end - x))
        return pad(part, (x, crop.size[1] - x_end, y, crop.size[0] - y_end), mode="replicate")

    def resize_like(self, h: Tensor) -> Tensor:
        """The mask `(1, 1, h, w)` or `(B, 1, h, w)` for a layer `(B, C, h, w)`, in its dtype and on its device."""
        key = (*h.shape[-2:], h.dtype, h.device)
        if key not in self._resized:
            self._resized[key] = resize_mask(self.mask, h.shape[-2:]).to(h)
        return self._resized[key]


def resize_mask(mask: Tensor, size: Sequence[int]) -> Tensor:
    """Return a mask `(B, 1, H, W)` at `size` (height, width), by bilinear interpolation."""
    from torch.nn.functional import interpolate

    return interpolate(mask, tuple(size), mode="bilinear", align_corners=False)


def apply_weight(
    residuals: Residuals, weight: float, mode: str, layers: Sequence[float] | None, region: RegionMask | None
) -> Residuals:
    """Return residuals multiplied by the factors of their layer, the mode and the region.

    In balanced mode that is one multiplication, as in diffusers, and none at weight 1.
    """
    outer, inner = layer_scales(weight, mode, layers, len(residuals.skips), len(residuals.encoder))

    def times(h: Tensor, factor: float) -> Tensor:
        h = h if factor == 1 else h * factor
        return h if region is None else h * region.resize_like(h)

    middle = residuals.middle
    return Residuals(
        tuple(times(h, factor) for h, factor in zip(residuals.skips, outer, strict=False)),
        None if middle is None else times(middle, outer[-1]),
        tuple(times(h, factor) for h, factor in zip(residuals.encoder, inner, strict=True)),
    )


def select_rows(step: Step, rows: Tensor | None) -> Step:
    """Return the step with the rows at these indices `(n,)` only; None means all."""
    if rows is None:
        return step

    def pick(value: Tensor | None) -> Tensor | None:
        return None if value is None else value[rows]

    return replace(
        step,
        x=step.x[rows],
        t=step.t[rows],
        context=step.context[rows],
        positive=pick(step.positive),
        added=pick(step.added),
        samples=pick(step.samples),
        crops=tuple(step.crops[i] for i in rows.tolist()) if step.crops else step.crops,
    )


def scatter_rows(residuals: Residuals, rows: Tensor | None, batch_size: int) -> Residuals:
    """Return residuals of the rows at these indices `(n,)` as residuals of a batch of `batch_size`, 0 on other rows."""
    if rows is None:
        return residuals

    def place(h: Tensor, _: int) -> Tensor:
        whole = h.new_zeros((batch_size, *h.shape[1:]))
        whole[rows] = h
        return whole

    return residuals.map(place)


def all_finite(tensors: Sequence[Tensor], total: Tensor | None = None) -> bool:
    """Return True if all values of tensors of any shape are finite, waiting once for the device.

    It tests `total`, which is `total_sum(tensors)`, and looks at single tensors only where that overflows.
    """
    if not tensors:
        return True
    total = total_sum(tensors) if total is None else total
    return math.isfinite(total.item()) or all(bool(h.isfinite().all()) for h in tensors)


def total_sum(tensors: Sequence[Tensor]) -> Tensor:
    """Return the sum `()` of all values of tensors of any shape, without waiting for the device."""
    import torch

    # torch adds up bfloat16 in float32 unasked, in half the time on a CPU as when asked; float16's sums would overflow
    sums = [h.sum(dtype=torch.float32 if h.dtype == torch.float16 else None) for h in tensors]
    return torch.stack(sums).sum() if sums else torch.zeros(())

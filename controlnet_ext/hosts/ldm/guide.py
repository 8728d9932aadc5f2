"""Units on an ldm UNet, as stable-diffusion-webui has it: hooks only, no `forward` is replaced.

Residuals are added where ldm's UNet has them (lllyasviel/ControlNet, cldm/cldm.py, ControlledUnetModel): to the middle
block's output, and to the skips, which are the last channels of an output block's input `[h, skip]`; those of
T2I-Adapters to the output of the encoder block that ends each level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...guidance.contract import Crop, Residuals, Step
from ...guidance.schedule import Span
from ...guidance.unit import Unit
from ..session import (
    PLACE_ADVICE,
    Box,
    GuidedUNet,
    GuideSession,
    check_feature_shape,
    find_announced_crops,
    guide_context,
)
from .host import VAE_SCALE_FACTOR, LdmHost
from .unet_view import LdmUNetView, adapter_block_indices


@dataclass(frozen=True)
class BatchRows:
    """The rows that the host's denoiser is about to send through the UNet in one step, in however many calls.

    For each row, in order: the index of its image, and whether it has the prompt. `span` is the step, `latent_size`
    height and width of the latents of the whole image, None for those of the run. Raises ValueError if the first two
    have different lengths.
    """

    span: Span
    image_indices: Sequence[int]
    has_prompt: Sequence[bool]
    latent_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if len(self.image_indices) != len(self.has_prompt):
            raise ValueError(
                f"{len(self.image_indices)} images and {len(self.has_prompt)} marks of rows: one of each a row"
            )


@guide_context
def guide_ldm(
    unet: nn.Module,
    units: Iterable[Unit],
    model: nn.Module | None = None,
    find_tiles: Callable[[], Sequence[Box]] | None = None,
) -> Iterator[LdmGuide]:
    """Guide the UNet by `units` in this context; afterwards it is as before, to the bit.

    `model` is the LatentDiffusion of the UNet: units that act after a step need its alphas_cumprod, its
    parameterization and its VAE. The host calls `LdmGuide.begin` when a run begins and `LdmGuide.announce_step` before
    each step. A host that draws an image in tiles gives `find_tiles`, which returns the boxes (left, top, right,
    bottom) in pixels of the tiles in the present UNet call, each of which has equally many rows, or nothing if the
    call shows the whole image; `crop_maps` around the calls does the same.

    Raises ValueError, TypeError or FileNotFoundError for what cannot act, as `controlnet_ext.guide`, also for rows
    that were not announced and for a part of the image whose place is not known; RuntimeError when the UNet is called
    in another thread or task or outside of an announced step, or is guided already.
    """
    guide = LdmGuide(unet, units, model, find_tiles)
    with guide.enter(unet, lambda: LdmHooks(unet, guide)):
        yield guide


class LdmGuide(GuideSession):
    """The units of one guided UNet, and the run that they are in."""

    def __init__(
        self,
        unet: nn.Module,
        units: Iterable[Unit],
        model: nn.Module | None = None,
        find_tiles: Callable[[], Sequence[Box]] | None = None,
    ):
        self._unet_view, self._model, self._find_tiles = LdmUNetView(unet), model, find_tiles
        super().__init__(units, self._unet_view)
        self.guided_calls = 0
        """The number of UNet calls that were guided."""
        self._host = LdmHost(self._unet_view, model)
        self._rows: BatchRows | None = None
        self._seen_rows: dict[Crop | None, int] = {}  # of the present step, by the part that they show
        self._row_tensors: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}  # the same in each step

    def begin(self, spans: Sequence[Span], pass_index: int) -> None:
        """Begin a run of these steps; `pass_index` counts the runs of an image from 0 (hires fix: the second is 1).

        Raises ValueError if a unit would act in none of the steps.
        """
        self._host, self._rows = LdmHost(self._unet_view, self._model), None
        self.begin_run(spans, self._host, pass_index)

    def announce_step(self, rows: BatchRows) -> None:
        """State the rows of the next step, before the UNet is called for it."""
        self._rows, self._seen_rows = rows, {}
        if rows.latent_size is not None:
            height, width = rows.latent_size
            self._image_size = height * VAE_SCALE_FACTOR, width * VAE_SCALE_FACTOR

    @property
    def is_step_announced(self) -> bool:
        """True if a run has begun and its step is announced."""
        return self.is_running and self._rows is not None

    def guide_call(self, step: Step) -> Iterator[Residuals]:
        """Return an iterator over the residuals of each unit in this UNet call."""
        self._host.step = step
        self.guided_calls += 1
        return self.compute_residuals(step, self._host.compute_noise_level)

    def build_step(
        self, x: Tensor, timesteps: Tensor | float, context: Any = None, y: Tensor | None = None, **_: object
    ) -> Step:
        """Return the step of a UNet call, given the arguments of ldm's `UNetModel.forward`: x `(B, C, h, w)` first.

        Each part of the image has all announced rows, in their order, in one call or several. Raises ValueError if
        rows of the whole image were not announced.
        """
        assert self._rows is not None
        rows, crops = self._rows, self._find_crops(x)
        places = [self._count_row(crop) for crop in crops or (None,) * len(x)]
        t = torch.as_tensor(timesteps, device=x.device).reshape(-1).float()
        t = t.expand(len(x)) if len(t) == 1 else t
        has_prompt, image_indices = ([each[i] for i in places] for each in (rows.has_prompt, rows.image_indices))
        key = *has_prompt, *image_indices, x.device
        if key not in self._row_tensors:
            self._row_tensors[key] = (
                torch.tensor(has_prompt, device=x.device),
                torch.tensor(image_indices, device=x.device),
            )
        positive, samples = self._row_tensors[key]
        return Step(
            x, t, context, rows.span, positive, y, samples, image_count=max(rows.image_indices) + 1, crops=crops
        )

    def _find_crops(self, x: Tensor) -> tuple[Crop, ...]:
        """Return the part of the image that each row shows, nothing for the whole image."""
        size = x.shape[-2] * VAE_SCALE_FACTOR, x.shape[-1] * VAE_SCALE_FACTOR
        crops = find_announced_crops(len(x), size)
        tiles = self._find_tiles() if self._find_tiles is not None and not crops else ()
        if not tiles or size == self._image_size:
            return crops
        times, odd = divmod(len(x), len(tiles))
        sizes = {(bottom - top, right - left) for left, top, right, bottom in tiles}
        if odd or self._image_size is None or sizes != {size}:
            raise ValueError(
                f"the host tells the places of {len(tiles)} tiles, none of which fits a UNet call of {len(x)} rows of "
                f"{size[1]}x{size[0]} pixels"
            )
        return tuple(crop for box in tiles for crop in (Crop(self._image_size, box, size),) * times)

    def _count_row(self, crop: Crop | None) -> int:
        """Return the place of a row among those announced, given the part that it shows."""
        assert self._rows is not None
        count, seen = len(self._rows.image_indices), self._seen_rows.get(crop, 0)
        self._seen_rows[crop] = seen + 1
        if crop is None and seen >= count:
            raise ValueError(
                f"the UNet is called with more rows than the {count} that the host announced for the step, as by an "
                f"extension that draws tiles or calls it once more; {PLACE_ADVICE}, or switch that off"
            )
        return seen % count


class LdmHooks(GuidedUNet):
    """The hooks on an ldm UNet, and the residuals of the present call."""

    def __init__(self, unet: nn.Module, guide: LdmGuide):
        super().__init__(unet)
        self._guide = guide
        self._residuals: Residuals | None = None
        self._adapter_blocks = adapter_block_indices(cast(Any, unet).input_blocks)

    def install(self) -> None:
        """Install the hooks."""
        super().install()
        unet: Any = self.unet  # has ldm's attributes
        undo, blocks = self.undo, list(unet.input_blocks)
        undo.register_forward_pre_hook(unet, self._before_call, with_kwargs=True)
        undo.register_forward_hook(unet, lambda *call: self._after_call(call[-1]), always_call=True)
        for place, end in enumerate(self._adapter_blocks):
            undo.register_forward_hook(blocks[end], lambda _, __, h, place=place: self._add_to_encoder(h, place))
        undo.register_forward_hook(unet.middle_block, lambda _, __, h: self._add_to_middle(h))
        for i, block in enumerate(unet.output_blocks):
            place = len(blocks) - 1 - i
            undo.register_forward_pre_hook(block, lambda _, args, place=place: self._add_to_skip(args, place))

    def _before_call(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.claim_call()
        if not self._guide.is_step_announced:
            raise RuntimeError(
                "the UNet is called outside of a step that the host announced, as by noise inversion or a script that "
                "prepares the noise; no unit can act there, so switch that off"
            )
        step = self._guide.build_step(*args, **kwargs)
        self.start_call(step.x, is_new_run=False, crops=step.crops)  # `LdmGuide.begin` has restored the attention
        self._residuals = self.sum_residuals([self._guide.guide_call(step)], step.x.device)

    def _after_call(self, out: Tensor | None) -> Tensor | None:
        """Return the output as the units want it; `out` is None if the call failed."""
        if not self.is_in_call:
            return out  # of a refused call
        self._residuals = None
        try:
            self.wait()
            return None if out is None else self.finish_call(out)
        finally:
            self.end_call()

    def _add_to_encoder(self, h: Tensor, index: int) -> Tensor | None:
        if self._residuals is None or index >= len(self._residuals.encoder) or not self.is_in_call:
            return None
        self.wait()
        added = self._residuals.encoder[index]
        check_feature_shape("the encoder", h, added)
        return h + added

    def _add_to_middle(self, h: Tensor) -> Tensor | None:
        last = self._add_to_encoder(h, len(self._adapter_blocks))
        if self._residuals is None or self._residuals.middle is None or not self.is_in_call:
            return last
        self.wait()
        check_feature_shape("the middle block", h, self._residuals.middle)
        return (h if last is None else last) + self._residuals.middle

    def _add_to_skip(self, args: tuple[Any, ...], index: int) -> tuple[Any, ...] | None:
        if self._residuals is None or not self._residuals.skips or not self.is_in_call:
            return None
        self.wait()
        added, h = self._residuals.skips[index], args[0].clone()
        check_feature_shape(f"skip {index + 1}", h, added)
        h[:, -added.shape[1] :] += added
        return h, *args[1:]

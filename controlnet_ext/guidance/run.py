"""One run of a host, from noise to image: units and a step in, residuals out.

`GuidanceRun` has all units of a guide; `UnitRun` brings together the weights, rows, hints and model of one of them;
`AttachmentStack` has the units that are attached to the attention of one UNet; `ResidualCache` reuses residuals in
several steps (figures in docs/evidence).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import error_prefix
from .after_steps import NoiseLevel
from .contract import Activation, AttentionModel, ControlModel, Crop, Host, Residuals, Step, UndoStack, UNet
from .hints import HintImages
from .schedule import Span
from .unit import PerSample, Unit
from .weighting import RegionMask, all_finite, apply_weight, compute_step_weights, scatter_rows, select_rows, total_sum

if TYPE_CHECKING:
    from torch import Tensor

MAX_PART_PIXELS = 2**25  # of the hints of parts of images that a unit keeps: 32 megapixels
MAX_PART_LATENTS = 1024  # entries; latents of a part are small


class ResidualCache:
    """A cache of a unit's residuals of weight 1, for up to `max_steps` steps of the run.

    With `tolerance` they serve only while x has changed by no more than that part of its norm since. Rows of other
    images or parts of them, with or without the prompt, or with another prompt have entries of their own.
    """

    def __init__(self, max_steps: int, tolerance: float | None):
        self._max_steps, self._tolerance = max_steps, tolerance
        self._entries: dict[tuple[Any, ...], tuple[int, Step, list[Residuals]]] = {}

    def find(self, step: Step, index: int) -> list[Residuals] | None:
        """Return the residuals that may serve in step number `index` of the run, from 0; None if there are none."""
        then_index, then, residuals = self._entries.get(self._make_key(step), (index, None, None))
        if then is None or not 0 < index - then_index < self._max_steps:
            return None
        same = _is_equal(step.context, then.context) and _is_equal(step.added, then.added)
        if same and self._tolerance is not None:
            same = bool((step.x - then.x).norm() <= self._tolerance * then.x.norm())
        return residuals if same else None

    def store(self, step: Step, index: int, residuals: list[Residuals]) -> None:
        """Store the residuals of this step."""
        self._entries[self._make_key(step)] = index, step, residuals

    def _make_key(self, step: Step) -> tuple[Any, ...]:
        if step.positive is None or step.samples is None:
            raise ValueError("residuals are reused by row, and the host cannot tell whose row is whose")
        return (*step.x.shape, *step.positive.tolist(), *step.samples.tolist(), step.crops)


def _is_equal(a: Tensor | None, b: Tensor | None) -> bool:
    import torch

    return a is b if a is None or b is None else torch.equal(a, b)


class AttachmentStack:
    """The units that are attached to the attention of one UNet, of all its guides, and how to detach them.

    A place is (number of the guide, number of the unit). Units are attached in the order of places, and detached in
    reverse: each wraps what those before it made of the attention. So before a unit attaches that begins later, those
    behind it are detached; they attach again when they act next, which is in the same step. Before an attention module
    is copied or pickled, `prepare_copy()` is called, which detaches all.
    """

    def __init__(self, prepare_copy: Callable[[], None] | None = None) -> None:
        self._undo = UndoStack()
        self._prepare_copy = self.close if prepare_copy is None else prepare_copy
        self._heights: dict[tuple[int, int], int] = {}  # of the undo stack below each unit

    def __contains__(self, place: tuple[int, int]) -> bool:
        return place in self._heights

    def __len__(self) -> int:
        return len(self._heights)

    def attach(self, place: tuple[int, int], unet: UNet, contexts: Iterable[AbstractContextManager[None]]) -> None:
        """Attach a unit to a UNet, by entering these contexts in turn."""
        self.detach_from(place)
        height = len(self._undo)
        self._undo.push(lambda: self._heights.pop(place, None))
        self._heights[place] = height
        for _, module in unet.named_modules():
            if hasattr(module, "processor"):
                self._undo.make_copies_plain(module, self._prepare_copy)
        for context in contexts:
            self._undo.enter_context(context)

    def detach_from(self, place: tuple[int, int]) -> None:
        """Detach the units from this place on."""
        heights = [height for other, height in self._heights.items() if other >= place]
        if heights:
            self._undo.close(keep=min(heights))

    def close(self) -> None:
        """Detach all units. After an interrupt a further call detaches the others."""
        self._undo.close()


class UnitRun:
    """One unit in one run: its weight in each step, its hints for each size, and the calls of its model.

    `GuidanceRun` calls, in each step, `compute_residuals`, then `check_finite`, then `apply_post_step`.
    """

    def __init__(
        self,
        name: str,
        unit: Unit,
        hint_images: HintImages,
        spans: Sequence[Span],
        host: Host,
        pass_index: int,
        attachments: AttachmentStack,
        place: tuple[int, int],
    ):
        self.name, self._unit, self._hint_images, self._host, self._pass_index = (
            name,
            unit,
            hint_images,
            host,
            pass_index,
        )
        self._attachments, self._place = attachments, place
        self._model = hint_images.configure_model(unit.model)
        self._weights = _compute_weights(name, unit, spans, pass_index)
        self._is_prompt_only = unit.mode == "control" or self._model.prompt_rows_only
        self._region: RegionMask | None = None
        self._cropped_region: tuple[tuple[Crop, ...], RegionMask] | None = None
        self._hints: dict[tuple[Any, ...], list[Any]] = {}
        self._part_pixels = 0  # of the hints that belong to parts of images
        self._cached_rows: tuple[Tensor | None, Tensor | None] = (None, None)  # step.positive, and what follows from it
        self._residual_cache = None if unit.reuse == 1 else ResidualCache(unit.reuse, unit.reuse_tolerance)
        self._latents: dict[tuple[Any, ...], tuple[Tensor, Tensor | None]] = {}
        self._activation: Activation | None = None
        self._unconfirmed: list[tuple[Sequence[Tensor], Tensor, str]] = []  # what was made in this step, sums, where

    @property
    def is_active(self) -> bool:
        """True if the unit acts in one of the steps."""
        return any(self._weights.values())

    def compute_residuals(self, step: Step) -> Residuals | None:
        """Return the residuals of this unit in the step; None if it does not act, or acts inside the attention."""
        self._activation = None
        self._unconfirmed.clear()
        weight = self._weights[step.span]
        if weight == 0:
            return None
        region = self._unit.region
        if isinstance(region, np.ndarray) and self._region is None:  # which Unit makes of every mask
            self._region = RegionMask(torch.from_numpy(region)[None, None].to(step.x.device))
        if self._unit.after is not None:
            self._get_latents(step)  # now: under offload the VAE would push the UNet out that is at work
        if self._unit.low_vram and self._model.stream_device != step.x.device:
            self._model = self._model.stream_to(step.x.device)
        if isinstance(self._model, AttentionModel):
            with on_device(self._model, step.x.device):
                self._attach(self._model, step, weight, self._get_hints(step))
            return None
        rows = self._find_active_rows(step)
        if not self._model.makes_residuals or (rows is not None and not len(rows)):
            return None
        part, total = replace(select_rows(step, rows), weight=weight), Residuals()
        parts = (
            self._call_model(part) if self._residual_cache is None else self._reuse_or_call(part, self._residual_cache)
        )
        mask = self._get_region(part)
        for residuals in parts:
            total += self._apply_weight(residuals, weight / len(parts), mask)
        return scatter_rows(total, rows, len(step.x))

    def check_finite(self) -> None:
        """Raise ValueError if the last residuals are not finite. A step of its own, because it waits for the device."""
        unsure, self._unconfirmed = self._unconfirmed, []
        for tensors, total, place in unsure:
            if not all_finite(tensors, total):
                raise ValueError(f"the residuals of {self.name} are not finite in {place}")

    def has_post_step(self, step: Step) -> bool:
        """Return True if the unit changes the latents after this step."""
        own = self._unit.after is not None or self._model.acts_after_step
        return own and self._weights[step.span] != 0

    def apply_post_step(self, x0: Tensor, step: Step) -> Tensor:
        """Return the clean latents `(B, C, h, w)` after this unit, whose weight and region give its share.

        Raises ValueError if they are not finite.
        """
        new_x0 = x0
        if self._model.acts_after_step:
            new_x0 = self._model.after_step(new_x0, step)
        if self._unit.after is not None:
            new_x0 = self._unit.after.apply_to_latents(new_x0, step, *self._get_latents(step))
        if not all_finite([new_x0]):
            raise ValueError(f"the latents of {self.name} are not finite after {self._describe_step(step)}")
        share = min(max(self._weights[step.span], 0.0), 1.0)
        change, region = (new_x0 - x0) * share, self._get_region(step)
        return x0 + (change if region is None else change * region.resize_like(change))

    def _get_latents(self, step: Step) -> tuple[Tensor, Tensor | None]:
        """Return the latents of the unit's image and its mask, each with one row for all of x's or one for each."""
        parts = tuple(dict.fromkeys(step.crops or (None,)))
        key = self._host.pixel_size, parts
        if key not in self._latents:
            if len(self._latents) >= MAX_PART_LATENTS:
                self._latents.clear()
            pairs = [self._hint_images.encode_latents(self._host, crop) for crop in parts]
            masks = [mask for _, mask in pairs if mask is not None]
            self._latents[key] = torch.cat([latents for latents, _ in pairs]), torch.cat(masks) if masks else None
        latents, mask = self._latents[key]
        count = len(latents) // len(parts)  # maps of each part
        rows = [0] * len(step.x)
        if count > 1:
            rows = self._match_maps_to_rows(count, step, self._get_image_indices(step))
        if len(parts) == 1:
            return (latents[rows] if count > 1 else latents), mask
        places = [parts.index(crop) for crop in step.crops or ()]
        latents = latents[[place * count + row for place, row in zip(places, rows, strict=True)]]
        return latents, None if mask is None else mask[places]

    def _get_region(self, step: Step) -> RegionMask | None:
        """Return the region mask of the step's rows, None without a region."""
        if self._region is None or not step.crops:
            return self._region
        if self._cropped_region is None or self._cropped_region[0] != step.crops:
            self._cropped_region = step.crops, self._region.crop(step.crops)
        return self._cropped_region[1]

    def _describe_step(self, step: Step) -> str:
        steps = list(self._weights)
        return f"step {steps.index(step.span) + 1} of {len(steps)}"

    def _reuse_or_call(self, step: Step, cache: ResidualCache) -> list[Residuals]:
        index = list(self._weights).index(step.span)
        with error_prefix(self.name):
            residuals = cache.find(step, index)
        if residuals is None:
            residuals = self._call_model(step)
            cache.store(step, index, residuals)
        return residuals

    def _call_model(self, step: Step) -> list[Residuals]:
        """Return the residuals of weight 1 of each call of the model."""
        residual_list = []
        with on_device(self._model, step.x.device):
            unit_hints = self._get_hints(step)
            hints = [unit_hints] if self._model.multi_hint else unit_hints
            step = replace(step, weight=step.weight / len(hints))
            for hint in hints:
                residuals: Residuals = self._model(step, hint).map(lambda h, _: h.to(step.x))
                self._unconfirmed.append((residuals.tensors, total_sum(residuals.tensors), self._describe_step(step)))
                residual_list.append(residuals)
        return residual_list

    def _apply_weight(self, residuals: Residuals, weight: float, region: RegionMask | None) -> Residuals:
        with error_prefix(self.name):
            return apply_weight(residuals, weight, self._unit.mode, self._unit.layers, region)

    def _find_active_rows(self, step: Step) -> Tensor | None:
        """Return the indices of the rows on which the unit acts, None for all."""
        if not self._is_prompt_only:
            return None
        if step.positive is None:
            raise ValueError(f"{self.name} acts on the prompt's rows only, and the host cannot tell which those are")
        if self._cached_rows[0] is not step.positive:
            index = step.positive.nonzero()[:, 0]
            self._cached_rows = step.positive, None if len(index) == len(step.positive) else index
        return self._cached_rows[1]

    def _get_hints(self, step: Step) -> list[Any]:
        """Return the hints, one for each image of the unit, made once for a size, its rows and what they show."""
        size, own = self._host.pixel_size, [isinstance(a, PerSample) for a in self._unit.images]
        image_indices = self._get_image_indices(step) if any(own) else ()
        key = *size, len(step.x), image_indices, step.crops
        if key not in self._hints:
            is_embedding = self._model.hint_input == "embedding"
            parts = (None,) if is_embedding else tuple(dict.fromkeys(step.crops or (None,)))
            arrays = (
                [self._hint_images.stack_values()]
                if is_embedding
                else [self._hint_images.fit_to_size(*size, crop) for crop in parts]
            )
            hints = []
            for has_own, maps in zip(own, zip(*arrays, strict=True), strict=True):
                rows = self._match_maps_to_rows(len(maps[0]), step, image_indices) if has_own else [0] * len(step.x)
                if len(parts) > 1:
                    places = [parts.index(crop) for crop in step.crops or ()]
                    hint = np.stack([maps[place][row] for place, row in zip(places, rows, strict=True)])
                else:
                    hint = maps[0][rows] if has_own else maps[0]
                hints.append(self._embed_hint(hint, step))
            if step.crops:
                self._part_pixels += len(step.x) * size[0] * size[1]
                if self._part_pixels > MAX_PART_PIXELS:  # the first parts stay: a loop over parts begins with them
                    return hints
            self._hints[key] = hints
        return self._hints[key]

    def _get_image_indices(self, step: Step) -> tuple[int, ...]:
        if step.samples is None:
            raise ValueError(f"{self.name} has a map for each image, and the host cannot tell whose row is whose")
        return tuple(step.samples.tolist())

    def _match_maps_to_rows(self, map_count: int, step: Step, image_indices: tuple[int, ...]) -> list[int]:
        """Return for each row the index of its map."""
        count = step.image_count or max(image_indices) + 1
        if map_count == count:
            return list(image_indices)
        if map_count == count * step.frames:  # rows are whole videos
            return [image * step.frames + row % step.frames for row, image in enumerate(image_indices)]
        if map_count * step.images_per_prompt in (count, count * step.frames):  # one of each prompt, as diffusers does
            image_indices = tuple(index // step.images_per_prompt for index in image_indices)
            return self._match_maps_to_rows(
                map_count,
                replace(step, image_count=count // step.images_per_prompt, images_per_prompt=1),
                image_indices,
            )
        videos = f" of {step.frames} frames" if step.frames > 1 else ""
        raise ValueError(f"{self.name} has {map_count} maps for {count} images{videos}")

    def _embed_hint(self, maps: np.ndarray, step: Step) -> Any:
        if self._model.hint_input == "latents":
            if maps.dtype != np.uint8:
                raise ValueError(f"{self.name} reads latents of an image, which an inpaint mask does not change")
            return self._model.hint(self._host.encode(maps, self._model.needs_vae_shift))
        # A row of its own for each of x's, although they are often equal: convolutions of one row and of several differ
        # in their last bits, and diffusers' pipelines have several.
        rows = np.array(np.broadcast_to(maps, (len(step.x), *maps.shape[1:])))
        hint = self._model.hint(torch.from_numpy(rows) if rows.dtype == np.float32 else rows)
        if isinstance(hint, Tensor) and not all_finite([hint]):
            raise ValueError(f"the hint of {self.name} is not finite")
        return hint

    def _attach(self, model: AttentionModel, step: Step, weight: float, hints: list[Any]) -> None:
        strength = torch.full((len(step.x),), weight / len(hints), device=step.x.device)
        rows = self._find_active_rows(step)
        if rows is not None:
            strength = torch.zeros_like(strength).index_copy(0, rows, strength[rows])
        mask = self._get_region(step)
        region = None if mask is None else mask.mask
        self._activation = Activation(step, strength, self._unit.layers, region, self._pass_index)
        if self._place not in self._attachments:
            own = threading.get_ident()

            def now() -> Activation | None:
                """None to another thread too, whose call was under way when this one attached."""
                return self._activation if threading.get_ident() == own else None

            contexts = (model.attach(self._host, hint, now) for hint in hints)
            self._attachments.attach(self._place, self._host.unet, contexts)


def _compute_weights(name: str, unit: Unit, spans: Sequence[Span], pass_index: int) -> dict[Span, float]:
    """Return the unit's weight in each step."""
    if unit.hires == ("high" if pass_index == 0 else "low"):
        return dict.fromkeys(spans, 0.0)
    return compute_step_weights(name, unit.weight, unit.window, spans)


class GuidanceRun:
    """All units of a guide in one run whose steps are `spans`.

    `hint_images` belong to `units`; `pass_index` counts the runs of a host from 0. Units are named by their place,
    from 1. `attachments` is what all guides of the UNet share; `guide_number` is the place of this one among them.
    Raises ValueError if a unit of a weight other than 0 would act in no step.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        hint_images: Sequence[HintImages],
        spans: Sequence[Span],
        host: Host,
        pass_index: int = 0,
        attachments: AttachmentStack | None = None,
        guide_number: int = 0,
    ):
        attachments = AttachmentStack() if attachments is None else attachments  # an empty one is false
        self._unit_runs = [
            UnitRun(f"unit {i}", unit, its, spans, host, pass_index, attachments, (guide_number, i))
            for i, (unit, its) in enumerate(zip(units, hint_images, strict=True), 1)
        ]

    @property
    def has_active_units(self) -> bool:
        """True if a unit acts in one of the steps."""
        return any(acting.is_active for acting in self._unit_runs)

    def compute_residuals(self, step: Step) -> Iterator[Residuals]:
        """Yield the residuals of each unit that acts in this step outside of the attention, in their order."""
        for acting in self._unit_runs:
            residuals = acting.compute_residuals(step)
            if residuals is not None:
                yield residuals

    def check_finite(self) -> None:
        """Raise ValueError if residuals of the last step are not finite; to be called after the UNet."""
        for acting in self._unit_runs:
            acting.check_finite()

    def has_post_step(self, step: Step) -> bool:
        """Return True if a unit changes the latents after this step."""
        return any(acting.has_post_step(step) for acting in self._unit_runs)

    def apply_post_steps(self, step: Step, out: Tensor, noise_level: NoiseLevel) -> Tensor:
        """Return the UNet's output `(B, C, h, w)` for the step, changed by the units that act after it."""
        x, outs = step.x[:, : out.shape[1]].float(), out.float()
        before = x0 = noise_level.predict_x0(x, outs)
        for acting in self._unit_runs:
            if acting.has_post_step(step):
                x0 = acting.apply_post_step(x0, step)
        return noise_level.output_for_x0_shift(outs, x0 - before).to(out)


@contextmanager
def on_device(model: ControlModel, device: torch.device) -> Iterator[None]:
    """Place the model on this device in this context, and afterwards back where it was."""
    undo = UndoStack()
    try:
        try:
            move_to_device(model, device, undo)
            yield
        finally:
            undo.close()
    finally:
        undo.close()


def move_to_device(model: ControlModel, device: torch.device, undo: UndoStack) -> None:
    """Move the model to this device; `undo` moves it back where it was.

    Models that accelerate or diffusers moves (offloading), that have no weights, or that stream them to a device stay
    where they are.
    """
    if not isinstance(model, torch.nn.Module) or model.stream_device is not None:
        return
    module: torch.nn.Module = model
    home = next((parameter.device for parameter in module.parameters()), device)
    if home != device and not any(map(_is_offloaded, module.modules())):
        undo.push(lambda: module.to(home))
        module.to(device)


def _is_offloaded(module: torch.nn.Module) -> bool:
    """Return True if accelerate's hooks, or diffusers' for groups of layers, place the weights of a module."""
    registry: Any = getattr(module, "_diffusers_hook", None)
    return hasattr(module, "_hf_hook") or (registry is not None and registry.get_hook("group_offloading") is not None)

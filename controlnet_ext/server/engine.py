"""The pipeline that makes a server's images, one at a time."""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import one_line
from ..generation.pipeline_folder import PipelineFolder, silence_libraries
from ..generation.recipe import GuidanceSetup
from ..generation.render import count_steps, render
from ..sdwebui.build import BuiltUnit, HostInputs, InpaintCrop, Loader, UnitBuilder, find_initial_noise_image
from ..sdwebui.catalog import ModelCatalog
from ..sdwebui.images import encode_png_base64
from ..sdwebui.infotext import format_infotext
from ..sdwebui.requests import WebuiRequest, create_scheduler
from .worker import GenerationProgress, check_abandoned

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from torch import Tensor

PACKAGE_FOLDER = Path(__file__).parents[1]
PREVIEW_LATENT_SIDE = 32  # latents on a side at most, of which a preview is decoded


class GenerationEngine:
    """A pipeline `name` (a folder, or "embedded") in memory. Not for several threads at once, but for `progress`."""

    def __init__(
        self,
        checkpoint_name: str,
        catalog: ModelCatalog,
        load_preprocessor: Loader,
        device: str,
        dtype: str,
    ):
        import torch

        self.checkpoint_name, self.progress = checkpoint_name, GenerationProgress()
        torch_dtype = getattr(torch, dtype)
        with silence_libraries():
            self._folder = PipelineFolder.find(checkpoint_name)
            self._pipe = self._folder.load(torch_dtype, self._folder.make_scheduler(None)).to(device)
        self._pipe.set_progress_bar_config(disable=True)
        self.size = self._folder.size
        self.unit_builder = UnitBuilder(catalog, load_preprocessor, device, torch_dtype, self._pipe.unet)

    def generate(self, request: WebuiRequest, stop_event: threading.Event | None = None) -> dict[str, Any]:
        """Return the webui's answer: images, then the maps of their units, as PNGs in base64, and `info` about them.

        Raises ValueError, TypeError or FileNotFoundError where the request cannot be, RuntimeError where it failed on
        the way, RequestAbandoned at the next step once `stop_event` is set.
        """
        progress = GenerationProgress(request.image_count)
        self.progress = progress
        try:
            with record_warnings() as warnings:
                return self._generate(request, progress, stop_event, warnings)
        finally:
            self.progress = GenerationProgress()

    def _generate(
        self,
        request: WebuiRequest,
        progress: GenerationProgress,
        stop_event: threading.Event | None,
        warnings: Sequence[str],
    ) -> dict[str, Any]:
        if request.checkpoint is not None and request.checkpoint.rpartition(" [")[0].casefold() not in (
            "",
            self.checkpoint_name.casefold(),
        ):
            raise ValueError(
                f"the checkpoint {request.checkpoint!r:.80} is not loaded, this server has "
                f"{self.checkpoint_name!r} only"
            )
        with silence_libraries():
            scheduler, sampler_label = create_scheduler(self._folder, request.sampler_name, request.noise_schedule)
        inputs = _get_host_inputs(request)
        units = []
        for number, unit in request.units:
            check_abandoned(stop_event)
            units.append(self.unit_builder.build(number, unit, inputs))
        guidance = _make_guidance_setup(units, request.hires_fix is not None)
        models = {place: each.model_name for (place, _), each in zip(request.units, units, strict=True)}
        progress.total_steps = count_steps(request)
        images, texts = [], []
        for k in range(request.image_count):
            if progress.stop_requested.is_set():
                break
            check_abandoned(stop_event)
            progress.begin_image(k)
            one = replace(request, seed=request.seed + k)
            (pixels,) = render(self._pipe, one, guidance, scheduler, partial(_observe_step, progress, stop_event))
            texts.append(format_infotext(request, request.seed + k, sampler_label, self.checkpoint_name, models))
            images.append(encode_png_base64(pixels, {"parameters": texts[-1]}))
        maps = [
            encode_png_base64(pixels)
            for (_, unit), each in zip(request.units, units, strict=True)
            if unit.returns_map
            for pixels in each.list_pass_maps()
        ]
        unknown = self._folder.describe_unknown_words(*request.prompts, negative=request.negative_prompt)
        notes = dict.fromkeys((*request.warnings, *([unknown] if unknown else []), *warnings))
        info = _build_info(request, texts, sampler_label, self.checkpoint_name, list(notes))
        return {"images": images + maps if request.returns_images else [], "info": json.dumps(info)}


@contextmanager
def record_warnings() -> Iterator[list[str]]:
    """Yield a list that gets the texts of this package's own warnings in the block; others are shown as ever."""
    texts: list[str] = []
    with warnings.catch_warnings():
        show = warnings.showwarning

        def record(message: Warning | str, category: type[Warning], filename: str, *place: Any) -> None:
            if category is UserWarning and Path(filename).is_relative_to(PACKAGE_FOLDER):
                texts.append(one_line(str(message)))
            else:
                show(message, category, filename, *place)

        warnings.showwarning = record  # type: ignore[assignment]
        warnings.filterwarnings("always", category=UserWarning)
        yield texts


def _make_guidance_setup(built_units: Sequence[BuiltUnit], has_hires_pass: bool) -> GuidanceSetup:
    return GuidanceSetup(
        tuple(unit for each in built_units for unit in each.split_by_pass(has_hires_pass)),
        tuple(each.finish for each in built_units if each.finish is not None),
        find_initial_noise_image(built_units, has_hires_pass),
    )


def _observe_step(
    progress: GenerationProgress,
    stop_event: threading.Event | None,
    pipe: DiffusionPipeline,
    step: int,
    timestep: object,
    values: dict[str, Any],
) -> dict[str, Any]:
    """Count the step, render a preview if one is requested, and stop the run if that is requested: diffusers'
    `callback_on_step_end`. Raises RequestAbandoned where nobody waits for the images."""
    check_abandoned(stop_event)
    progress.step += 1
    if progress.preview_requested.is_set():
        progress.preview_requested.clear()
        progress.preview = _render_preview(pipe, values["latents"])
    stops = progress.stop_requested.is_set() or progress.skip_requested.is_set()
    pipe._interrupt = stops  # diffusers' flag: the remaining steps do nothing
    return values


def _render_preview(pipe: DiffusionPipeline, latents: Tensor) -> str:
    """Return a small preview of noisy latents (B, C, h, w), scaled to unit variance, as PNG in base64."""
    import torch

    x = latents[:1] / latents[:1].std().clamp(min=1e-6)
    share = min(PREVIEW_LATENT_SIDE / max(x.shape[-2:]), 1)
    size = [max(round(side * share), 1) for side in x.shape[-2:]]
    x = torch.nn.functional.interpolate(x.float(), size, mode="area").to(pipe.vae.dtype)
    with torch.no_grad():
        pixels = pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample[0].float().cpu().permute(1, 2, 0).numpy()
    return encode_png_base64((np.nan_to_num(pixels) * 127.5 + 127.5).clip(0, 255).astype(np.uint8))


def _get_host_inputs(request: WebuiRequest) -> HostInputs:
    area, crop = request.inpaint_area, None
    if area is not None and area.only_masked:
        height, width = area.canvas.shape[:2]
        crop = InpaintCrop(height, width, area.crop_box)
    return HostInputs(
        (request.height, request.width),
        None if request.hires_fix is None else request.hires_fix.size,
        request.init_source,
        request.fit,
        restores_unmasked=area is not None,
        crop=crop,
    )


def _build_info(
    request: WebuiRequest, infotexts: list[str], sampler_name: str, model_name: str, notes: Sequence[str]
) -> dict[str, Any]:
    n = len(infotexts)
    return {
        "prompt": request.prompt,
        "all_prompts": [request.prompt] * n,
        "negative_prompt": request.negative_prompt,
        "all_negative_prompts": [request.negative_prompt] * n,
        "seed": request.seed,
        "all_seeds": [request.seed + k for k in range(n)],
        "width": request.width,
        "height": request.height,
        "sampler_name": sampler_name,
        "cfg_scale": request.guidance_scale,
        "steps": request.steps,
        "batch_size": request.batch_size,
        "denoising_strength": request.denoising_strength,
        "sd_model_name": model_name,
        "clip_skip": request.clip_skip + 1,
        "index_of_first_image": 0,
        "infotexts": infotexts,
        **({"warnings": list(notes)} if notes else {}),
    }

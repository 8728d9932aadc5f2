"""The pipeline that makes a server's pictures, one at a time."""

from __future__ import annotations

import json
from typing import Any

from ..generation.pipeline_folder import PipelineFolder, silence_libraries
from ..sdwebui.build import HostInputs, InpaintCrop, Loader, UnitBuilder
from ..sdwebui.catalog import ModelCatalog
from ..sdwebui.infotext import format_infotext
from ..sdwebui.pictures import encode_png_base64
from ..sdwebui.requests import GenerationRequest
from ..sdwebui.samplers import create_scheduler
from .passes import PipelineRun
from .worker import GenerationProgress


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

    def generate(self, request: GenerationRequest) -> dict[str, Any]:
        """The webui's answer: pictures, then the maps of their units, as PNGs in base64, and `info` about them.
        ValueError, TypeError or FileNotFoundError: the request cannot be; RuntimeError: it failed on the way."""
        if request.checkpoint is not None and request.checkpoint.rpartition(" [")[0].casefold() not in (
            "",
            self.checkpoint_name.casefold(),
        ):
            raise ValueError(
                f"the checkpoint {request.checkpoint!r:.80} is not loaded, this server has "
                f"{self.checkpoint_name!r} only"
            )
        with silence_libraries():
            scheduler, sampled = create_scheduler(self._folder, request.sampler_name, request.noise_schedule)
        inputs = _get_host_inputs(request)
        units = [self.unit_builder.build(number, unit, inputs) for number, unit in request.units]
        progress = GenerationProgress(request.image_count)
        passes = PipelineRun(self._pipe, scheduler, request, units, progress)
        models = {place: each.model_name for (place, _), each in zip(request.units, units, strict=True)}
        progress.total_steps, self.progress = passes.total_steps, progress
        images, texts = [], []
        try:
            for k in range(request.image_count):
                if progress.stop_requested.is_set():
                    break
                progress.begin_image(k)
                pixels = passes.generate_image(request.seed + k)
                texts.append(format_infotext(request, request.seed + k, sampled, self.checkpoint_name, models))
                images.append(encode_png_base64(pixels, {"parameters": texts[-1]}))
        finally:
            self.progress = GenerationProgress()
        maps = [
            encode_png_base64(g.map_image)
            for (_, unit), g in zip(request.units, units, strict=True)
            if unit.returns_map
        ]
        info = _build_info(request, texts, sampled, self.checkpoint_name)
        return {"images": images + maps if request.returns_images else [], "info": json.dumps(info)}


def _get_host_inputs(request: GenerationRequest) -> HostInputs:
    area, crop = request.inpaint_area, None
    if area is not None and area.only_masked:
        height, width = area.canvas.shape[:2]
        crop = InpaintCrop(height, width, area.crop_box)
    return HostInputs(
        (request.height, request.width),
        request.init_source,
        request.fit,
        restores_unmasked=area is not None,
        crop=crop,
    )


def _build_info(request: GenerationRequest, infotexts: list[str], sampler_name: str, model_name: str) -> dict[str, Any]:
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
    }

"""The pipeline that makes a server's pictures, one at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..generation.pipeline_folder import PipelineFolder, quiet
from ..guidance.unit import named
from ..preprocessors.registry import Ready
from ..sdwebui.build import Guided, guided
from ..sdwebui.catalog import Shelf
from ..sdwebui.infotext import infotext
from ..sdwebui.pictures import encoded
from ..sdwebui.requests import Generation, Repaint
from ..sdwebui.samplers import sampler
from ..sdwebui.units import WebuiUnit, beside_mask
from .passes import Passes
from .worker import Progress


class Engine:
    """A pipeline `name` (a folder, or "embedded") in memory. Not for several threads at once, but for `progress`."""

    def __init__(self, name: str, shelf: Shelf, ready: Callable[[str], Ready], device: str, dtype: str):
        import torch

        self.name, self.shelf, self._ready, self.progress = name, shelf, ready, Progress()
        self._device, self._dtype = device, getattr(torch, dtype)
        with quiet():
            self._folder = PipelineFolder.find(name)
            self._pipe = self._folder.load(self._dtype, self._folder.scheduler(None)).to(device)
        self._pipe.set_progress_bar_config(disable=True)
        self.size = self._folder.size

    def make(self, asked: Generation) -> dict[str, Any]:
        """The webui's answer: pictures, then the maps of their units, as PNGs in base64, and `info` about them.
        ValueError, TypeError or FileNotFoundError: the request cannot be; RuntimeError: it failed on the way."""
        if asked.model is not None and asked.model.rpartition(" [")[0].casefold() not in ("", self.name.casefold()):
            raise ValueError(f"the checkpoint {asked.model!r:.80} is not loaded, this server has {self.name!r} only")
        with quiet():
            scheduler, sampled = sampler(self._folder, asked.sampler, asked.spacing)
        units = [self._guided(place, unit, asked) for place, unit in asked.units]
        progress = Progress(asked.count)
        passes = Passes(self._pipe, scheduler, asked, units, progress)
        models = {place: each.model for (place, _), each in zip(asked.units, units, strict=True)}
        progress.steps, self.progress = passes.steps, progress
        images, texts = [], []
        try:
            for k in range(asked.count):
                if progress.stop.is_set():
                    break
                progress.begin(k)
                pixels = passes.picture(asked.seed + k)
                texts.append(infotext(asked, asked.seed + k, sampled, self.name, models))
                images.append(encoded(pixels, {"parameters": texts[-1]}))
        finally:
            self.progress = Progress()
        maps = [encoded(g.map) for (_, unit), g in zip(asked.units, units, strict=True) if unit.shows_map]
        info = _info(asked, texts, sampled, self.name)
        return {"images": images + maps if asked.sends_images else [], "info": json.dumps(info)}

    def _guided(self, place: int, unit: WebuiUnit, asked: Generation) -> Guided:
        with named(f"unit {place}"):
            if not unit.images:
                if asked.source is None:
                    raise ValueError("it is on and has no image")
                image, mask = asked.source  # which other modules would take for a scribble
                inpaints = unit.module is not None and unit.module.makes == "inpaint"
                unit = replace(unit, images=((image, mask if inpaints else None),), fit=asked.fit)
            if asked.repaint is not None:
                unit = beside_mask(unit)
            if asked.repaint is not None and asked.repaint.only_masked and unit.crops:
                unit = _part(unit, asked.repaint)
            if unit.model is None:
                raise ValueError("it is on and has no model; /controlnet/model_list names those there are")
            model = self.shelf.find(unit.model)
            net: Any = self.shelf.load(model, self._device, self._dtype)
            if hasattr(net, "settle"):
                net.settle(self._pipe.unet)
            return guided(unit, model, net, self._ready, (asked.height, asked.width))


def _part(unit: WebuiUnit, repaint: Repaint) -> WebuiUnit:
    """The unit with that part of its images that is repainted."""
    images = tuple(
        (repaint.part(image, unit.fit), None if mask is None else repaint.part(mask, unit.fit))
        for image, mask in unit.images
    )
    return replace(unit, images=images, fit="fill")


def _info(asked: Generation, texts: list[str], sampled: str, model: str) -> dict[str, Any]:
    n = len(texts)
    return {
        "prompt": asked.prompt,
        "all_prompts": [asked.prompt] * n,
        "negative_prompt": asked.negative,
        "all_negative_prompts": [asked.negative] * n,
        "seed": asked.seed,
        "all_seeds": [asked.seed + k for k in range(n)],
        "width": asked.width,
        "height": asked.height,
        "sampler_name": sampled,
        "cfg_scale": asked.guidance,
        "steps": asked.steps,
        "batch_size": asked.batch,
        "denoising_strength": asked.denoising,
        "sd_model_name": model,
        "clip_skip": asked.clip_skip + 1,
        "index_of_first_image": 0,
        "infotexts": texts,
    }

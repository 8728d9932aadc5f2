"""The pipeline that makes a server's pictures, one at a time."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np

from preprocessors.registry import Ready

from ..pipeline import PipelineFolder, quiet
from ..unit import named
from .generation import Generation
from .guided import Guided, guided
from .infotext import infotext
from .pictures import encoded
from .samplers import sampler
from .shelf import Shelf
from .webui_unit import WebuiUnit


@dataclass
class Progress:
    """How far the request at work is; read by other threads."""

    count: int = 0
    picture: int = 0
    step: int = 0
    steps: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def fraction(self) -> float:
        return (self.picture + self.step / max(self.steps, 1)) / self.count if self.count else 0.0


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
        pipe = self._pipe_for(asked, scheduler)
        models = {place: each.model for (place, _), each in zip(asked.units, units, strict=True)}
        self.progress = Progress(asked.count, steps=asked.steps)
        images, texts = [], []
        try:
            for k in range(asked.count):
                if self.progress.stop.is_set():
                    break
                self.progress.picture, self.progress.step = k, 0
                pixels = self._picture(pipe, asked, asked.seed + k, units)
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
                unit = replace(unit, images=(asked.source,), fit=asked.fit)
            if unit.model is None:
                raise ValueError("it is on and has no model; /controlnet/model_list names those there are")
            model = self.shelf.find(unit.model)
            net: Any = self.shelf.load(model, self._device, self._dtype)
            if hasattr(net, "settle"):
                net.settle(self._pipe.unet)
            return guided(unit, model, net, self._ready, (asked.height, asked.width))

    def _pipe_for(self, asked: Generation, scheduler: Any) -> Any:
        """A pipeline on the same networks, with a scheduler of its own."""
        import diffusers

        kind = type(self._pipe).__name__
        if asked.init is not None:
            kind = kind.replace("Pipeline", "Img2ImgPipeline" if asked.mask is None else "InpaintPipeline")
            if int(asked.steps * asked.strength) < 1:
                raise ValueError(f"{asked.steps} steps at denoising_strength {asked.strength:g} are none")
        parts = {**self._pipe.components, "scheduler": scheduler}
        known = {"requires_safety_checker": False} if "safety_checker" in parts else {}
        with quiet():
            pipe = getattr(diffusers, kind)(**parts, **known)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def _picture(self, pipe: Any, asked: Generation, seed: int, units: list[Guided]) -> np.ndarray:
        """(H, W, 3) uint8."""
        import torch

        from ..hosts.diffusers import guide

        progress = self.progress

        def stepped(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
            progress.step = step + 1
            pipe._interrupt = progress.stop.is_set()  # the pipelines' own word for it: the remaining steps do nothing
            return values

        given: dict[str, Any] = {"height": asked.height, "width": asked.width}
        if asked.init is not None:
            given = {"image": _tensor(asked.init), "strength": asked.strength}
        if asked.mask is not None:
            given |= {"mask_image": _tensor(asked.mask)[:, :1], "height": asked.height, "width": asked.width}
        with guide(pipe, [each.unit for each in units]):
            result = pipe(
                asked.prompt,
                negative_prompt=asked.negative or None,
                num_inference_steps=asked.steps,
                guidance_scale=asked.guidance,
                generator=torch.Generator().manual_seed(seed % 2**63),
                clip_skip=asked.clip_skip or None,
                output_type="np",
                callback_on_step_end=stepped,
                **given,
            )
        if any(getattr(result, "nsfw_content_detected", None) or ()):
            raise RuntimeError("the model's safety checker withheld the picture; try another seed or prompt")
        if not np.isfinite(result.images[0]).all():
            raise RuntimeError("the picture holds NaN: the model overflows, serve it with --dtype float32")
        pixels = (result.images[0] * 255).round().astype(np.uint8)
        if asked.init is None or asked.mask is None:
            return pixels
        kept = cv2.subtract(np.full_like(asked.mask, 255), asked.mask).astype(np.float32) / 255
        return np.rint(pixels * (1 - kept) + asked.init * kept).astype(np.uint8)


def _tensor(pixels: np.ndarray) -> Any:
    """(1, 3, H, W) in 0..1, which the pipelines take as it is."""
    import torch

    return torch.from_numpy(pixels.transpose(2, 0, 1)[None].astype(np.float32) / 255)


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
        "denoising_strength": asked.strength if asked.init is not None else None,
        "sd_model_name": model,
        "clip_skip": asked.clip_skip + 1,
        "index_of_first_image": 0,
        "infotexts": texts,
    }

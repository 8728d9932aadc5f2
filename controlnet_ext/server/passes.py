"""The runs of a pipeline that make one picture: of a text, of an image, of its masked part, and hires fix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np

from ..generation.inpainting import beginning
from ..generation.pipeline_folder import quiet
from ..guidance.unit import Unit
from ..sdwebui.build import Guided, beginning_of
from ..sdwebui.pictures import encoded
from ..sdwebui.requests import LATENT, PIXELS, Generation, SecondPass
from .worker import Progress

PREVIEW = 32  # latents on a side at most, that a preview is decoded of
RESIZE = {"lanczos": cv2.INTER_LANCZOS4, "nearest": cv2.INTER_NEAREST}


class Passes:
    """`asked` with a scheduler of its own on the networks of `pipe`, guided by `guides`. ValueError: a pass has no
    steps, or the text encoder fewer layers than it is to skip."""

    def __init__(self, pipe: Any, scheduler: Any, asked: Generation, guides: Sequence[Guided], progress: Progress):
        self._pipe, self._scheduler, self._asked, self._progress = pipe, scheduler, asked, progress
        units = [unit for each in guides for unit in each.units(asked.second is not None)]
        self._finishes = [each.finish for each in guides if each.finish is not None]
        self._begins = beginning_of(guides, asked.second is not None)
        self._first, self._second = list(units), list[Unit]()
        if asked.second is not None:
            self._first = [replace(unit, passes="both") for unit in units if unit.passes != "second"]
            self._second = [replace(unit, passes="both") for unit in units if unit.passes != "first"]
        else:
            self._first = [replace(unit, passes="both") for unit in units]
        self._said = _said(pipe, asked)
        parts = [(asked.steps, asked.strength if asked.init is not None else 1.0)]
        if asked.second is not None:
            parts.append((asked.second.steps, asked.second.strength))
        counts = [min(int(steps * strength), steps) for steps, strength in parts]
        for (steps, strength), count in zip(parts, counts, strict=True):
            if count < 1:
                raise ValueError(f"{steps} steps at denoising_strength {strength:g} are none")
        self.steps = sum(counts)

    def picture(self, seed: int) -> np.ndarray:
        """(H, W, 3) uint8. RuntimeError: it holds NaN, or the model's safety checker withheld it."""
        pixels = _pixels(self._images(seed))
        for finish in self._finishes:
            pixels = finish(pixels)
        return pixels if self._asked.repaint is None else self._asked.repaint.pasted(pixels)

    def _images(self, seed: int) -> Any:
        asked = self._asked
        if asked.repaint is not None:
            return self._repainted(seed)
        if asked.init is not None:
            given = {"image": _tensor(asked.init), "strength": asked.strength}
            return self._run("Img2Img", self._first, asked.steps, seed, "np", given)
        begins: dict[str, Any] = {"height": asked.height, "width": asked.width}
        generator = _generator(seed)
        if self._begins is not None:
            pipe = self._pipe_of("")
            begins["latents"] = beginning(pipe, self._begins, asked.height, asked.width, generator)
        begins["generator"] = generator
        if asked.second is None:
            return self._run("", self._first, asked.steps, seed, "np", begins)
        output = "latent" if asked.second.upscaler in LATENT else "np"
        small = self._run("", self._first, asked.steps, seed, output, begins)
        given = {"image": _enlarged(small, asked.second, self._pipe), "strength": asked.second.strength}
        return self._run("Img2Img", self._second, asked.second.steps, seed, "np", given)

    def _repainted(self, seed: int) -> Any:
        import torch

        from ..hosts.diffusers.host import encoded as latents_of

        asked, repaint, factor = self._asked, self._asked.repaint, self._pipe.vae_scale_factor
        assert repaint is not None
        sides = asked.width // factor, asked.height // factor
        small = np.where(
            cv2.resize(repaint.mask, sides, interpolation=cv2.INTER_AREA) > 127, np.float32(1), np.float32(0)
        )
        mask = torch.from_numpy(small)[None, None]
        given: dict[str, Any] = {
            "image": _tensor(repaint.image),
            "mask_image": mask.repeat_interleave(factor, 2).repeat_interleave(factor, 3),
            "height": asked.height,
            "width": asked.width,
            "strength": asked.strength,
        }
        if repaint.content in ("noise", "nothing"):
            latents = latents_of(self._pipe.vae, repaint.image, self._pipe.device).float().cpu()
            noise = torch.randn(latents.shape, generator=_generator(seed))
            begins = latents * (1 - mask) + (noise * mask if repaint.content == "noise" else 0)
            given |= {"image": begins, "masked_image_latents": latents * (1 - mask)}
        return self._run("Inpaint", self._first, asked.steps, seed, "np", given)

    def _run(self, kind: str, units: Sequence[Unit], steps: int, seed: int, output: str, given: dict[str, Any]) -> Any:
        """The images of a pipeline of that kind."""
        from ..hosts.diffusers.guide import guide

        progress, pipe = self._progress, self._pipe_of(kind)

        def stepped(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
            progress.step += 1
            if progress.wanted.is_set():
                progress.wanted.clear()
                progress.image = _preview(pipe, values["latents"])
            pipe._interrupt = progress.stop.is_set()  # the pipelines' own word for it: the remaining steps do nothing
            return values

        with guide(pipe, units):
            result = pipe(
                **self._said,
                num_inference_steps=steps,
                guidance_scale=self._asked.guidance,
                output_type=output,
                callback_on_step_end=stepped,
                **{"generator": _generator(seed), **given},
            )
        if any(getattr(result, "nsfw_content_detected", None) or ()):
            raise RuntimeError("the model's safety checker withheld the picture; try another seed or prompt")
        return result.images

    def _pipe_of(self, kind: str) -> Any:
        """A pipeline on the same networks, with the scheduler."""
        import diffusers

        parts = {**self._pipe.components, "scheduler": self._scheduler}
        known = {"requires_safety_checker": False} if "safety_checker" in parts else {}
        with quiet():
            pipe = getattr(diffusers, type(self._pipe).__name__.replace("Pipeline", f"{kind}Pipeline"))(
                **parts, **known
            )
        pipe.set_progress_bar_config(disable=True)
        return pipe


def _said(pipe: Any, asked: Generation) -> dict[str, Any]:
    """The prompts; where layers are skipped, as what one text encoder makes of them (diffusers 0.42 looks for a norm
    where transformers 5 has none)."""
    import torch

    words = {"prompt": asked.prompt, "negative_prompt": asked.negative}
    if not asked.clip_skip:
        return {**words, "negative_prompt": asked.negative or None}
    layers = pipe.text_encoder.config.num_hidden_layers
    if asked.clip_skip >= layers:
        raise ValueError(f"CLIP_stop_at_last_layers is {asked.clip_skip + 1}, expected up to {layers}")
    if hasattr(pipe, "text_encoder_2"):
        return {**words, "clip_skip": asked.clip_skip}
    norm = getattr(pipe.text_encoder, "text_model", pipe.text_encoder).final_layer_norm
    found = {}
    for name, text in words.items():
        tokens = pipe.tokenizer(
            text, padding="max_length", max_length=pipe.tokenizer.model_max_length, truncation=True, return_tensors="pt"
        )
        with torch.no_grad():
            hidden = pipe.text_encoder(tokens.input_ids.to(pipe.device), output_hidden_states=True).hidden_states
            found[f"{name}_embeds"] = norm(hidden[-1 - asked.clip_skip])
    return found


def _enlarged(small: Any, second: SecondPass, pipe: Any) -> Any:
    """Latents (1, C, h, w), or pixels (1, 3, H, W) in 0..1, cut to the size of the second pass."""
    import torch

    factor = pipe.vae_scale_factor if second.upscaler in LATENT else 1
    (height, width), (over_h, over_w) = ([side // factor for side in size] for size in (second.size, second.over))
    top, left = (over_h - height) // 2, (over_w - width) // 2
    if second.upscaler in LATENT:
        mode, antialias = LATENT[second.upscaler]
        large = torch.nn.functional.interpolate(small, (over_h, over_w), mode=mode, antialias=antialias)
        return large[..., top : top + height, left : left + width]
    pixels = cv2.resize(_pixels(small), (over_w, over_h), interpolation=RESIZE[PIXELS[second.upscaler]])
    return _tensor(np.ascontiguousarray(pixels[top : top + height, left : left + width]))


def _preview(pipe: Any, latents: Any) -> str:
    """The latents as they are, noise and all, of the strength of a picture's, and small."""
    import torch

    x = latents[:1] / latents[:1].std().clamp(min=1e-6)
    share = min(PREVIEW / max(x.shape[-2:]), 1)
    size = [max(round(side * share), 1) for side in x.shape[-2:]]
    x = torch.nn.functional.interpolate(x.float(), size, mode="area").to(pipe.vae.dtype)
    with torch.no_grad():
        pixels = pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample[0].float().cpu().permute(1, 2, 0).numpy()
    return encoded((np.nan_to_num(pixels) * 127.5 + 127.5).clip(0, 255).astype(np.uint8))


def _pixels(images: Any) -> np.ndarray:
    if not np.isfinite(images[0]).all():
        raise RuntimeError("the picture holds NaN: the model overflows, serve it with --dtype float32")
    return (images[0] * 255).round().astype(np.uint8)


def _generator(seed: int) -> Any:
    import torch

    return torch.Generator().manual_seed(seed % 2**63)


def _tensor(pixels: np.ndarray) -> Any:
    """(1, 3, H, W) in 0..1, which the pipelines take as it is."""
    import torch

    return torch.from_numpy(pixels.transpose(2, 0, 1)[None].astype(np.float32) / 255)

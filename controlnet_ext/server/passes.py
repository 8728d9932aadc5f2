"""The runs of a pipeline that make one picture: of a text, of an image, of its masked part, and hires fix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np

from ..generation.inpainting import make_initial_latents
from ..generation.pipeline_folder import silence_libraries
from ..guidance.unit import Unit
from ..sdwebui.build import BuiltUnit, find_initial_noise_image
from ..sdwebui.pictures import encode_png_base64
from ..sdwebui.requests import LATENT_UPSCALERS, PIXEL_UPSCALERS, GenerationRequest, HiresFix
from .worker import GenerationProgress

PREVIEW_LATENT_SIDE = 32  # latents on a side at most, that a preview is decoded of
RESIZE_INTERPOLATIONS = {"lanczos": cv2.INTER_LANCZOS4, "nearest": cv2.INTER_NEAREST}


class PipelineRun:
    """`asked` with a scheduler of its own on the networks of `pipe`, guided by `guides`. ValueError: a pass has no
    steps, or the text encoder fewer layers than it is to skip."""

    def __init__(
        self,
        pipe: Any,
        scheduler: Any,
        request: GenerationRequest,
        built_units: Sequence[BuiltUnit],
        progress: GenerationProgress,
    ):
        self._pipe, self._scheduler, self._request, self._progress = pipe, scheduler, request, progress
        units = [unit for each in built_units for unit in each.split_by_pass(request.hires_fix is not None)]
        self._finishes = [each.finish for each in built_units if each.finish is not None]
        self._initial_noise_image = find_initial_noise_image(built_units, request.hires_fix is not None)
        self._first_pass_units, self._second_pass_units = list(units), list[Unit]()
        if request.hires_fix is not None:
            self._first_pass_units = [replace(unit, passes="both") for unit in units if unit.passes != "second"]
            self._second_pass_units = [replace(unit, passes="both") for unit in units if unit.passes != "first"]
        else:
            self._first_pass_units = [replace(unit, passes="both") for unit in units]
        self._prompt_arguments = _encode_prompts(pipe, request)
        parts = [(request.steps, request.strength if request.init_image is not None else 1.0)]
        if request.hires_fix is not None:
            parts.append((request.hires_fix.steps, request.hires_fix.strength))
        counts = [min(int(steps * strength), steps) for steps, strength in parts]
        for (steps, strength), count in zip(parts, counts, strict=True):
            if count < 1:
                raise ValueError(f"{steps} steps at denoising_strength {strength:g} are none")
        self.total_steps = sum(counts)

    def generate_image(self, seed: int) -> np.ndarray:
        """(H, W, 3) uint8. RuntimeError: it holds NaN, or the model's safety checker withheld it."""
        pixels = _to_uint8(self._run_passes(seed))
        for finish in self._finishes:
            pixels = finish(pixels)
        return pixels if self._request.inpaint_area is None else self._request.inpaint_area.paste_into_canvas(pixels)

    def _run_passes(self, seed: int) -> Any:
        asked = self._request
        if asked.inpaint_area is not None:
            return self._run_inpaint(seed)
        if asked.init_image is not None:
            given = {"image": _to_image_tensor(asked.init_image), "strength": asked.strength}
            return self._run_pipeline("Img2Img", self._first_pass_units, asked.steps, seed, "np", given)
        begins: dict[str, Any] = {"height": asked.height, "width": asked.width}
        generator = _create_generator(seed)
        if self._initial_noise_image is not None:
            pipe = self._create_pipeline("")
            begins["latents"] = make_initial_latents(
                pipe, self._initial_noise_image, asked.height, asked.width, generator
            )
        begins["generator"] = generator
        if asked.hires_fix is None:
            return self._run_pipeline("", self._first_pass_units, asked.steps, seed, "np", begins)
        output = "latent" if asked.hires_fix.upscaler in LATENT_UPSCALERS else "np"
        small = self._run_pipeline("", self._first_pass_units, asked.steps, seed, output, begins)
        given = {"image": _upscale(small, asked.hires_fix, self._pipe), "strength": asked.hires_fix.strength}
        return self._run_pipeline("Img2Img", self._second_pass_units, asked.hires_fix.steps, seed, "np", given)

    def _run_inpaint(self, seed: int) -> Any:
        import torch

        from ..hosts.diffusers.host import encode_vae_image as latents_of

        asked, repaint, factor = self._request, self._request.inpaint_area, self._pipe.vae_scale_factor
        assert repaint is not None
        sides = asked.width // factor, asked.height // factor
        small = np.where(
            cv2.resize(repaint.mask, sides, interpolation=cv2.INTER_AREA) > 127, np.float32(1), np.float32(0)
        )
        mask = torch.from_numpy(small)[None, None]
        given: dict[str, Any] = {
            "image": _to_image_tensor(repaint.image),
            "mask_image": mask.repeat_interleave(factor, 2).repeat_interleave(factor, 3),
            "height": asked.height,
            "width": asked.width,
            "strength": asked.strength,
        }
        if repaint.masked_content in ("noise", "nothing"):
            latents = latents_of(self._pipe.vae, repaint.image, self._pipe.device).float().cpu()
            noise = torch.randn(latents.shape, generator=_create_generator(seed))
            begins = latents * (1 - mask) + (noise * mask if repaint.masked_content == "noise" else 0)
            given |= {"image": begins, "masked_image_latents": latents * (1 - mask)}
        return self._run_pipeline("Inpaint", self._first_pass_units, asked.steps, seed, "np", given)

    def _run_pipeline(
        self,
        pipeline_kind: str,
        units: Sequence[Unit],
        steps: int,
        seed: int,
        output_type: str,
        arguments: dict[str, Any],
    ) -> Any:
        """The images of a pipeline of that kind."""
        from ..hosts.diffusers.guide import guide

        progress, pipe = self._progress, self._create_pipeline(pipeline_kind)

        def stepped(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
            progress.step += 1
            if progress.preview_requested.is_set():
                progress.preview_requested.clear()
                progress.preview = _render_preview(pipe, values["latents"])
            pipe._interrupt = (
                progress.stop_requested.is_set()
            )  # the pipelines' own word for it: the remaining steps do nothing
            return values

        with guide(pipe, units):
            result = pipe(
                **self._prompt_arguments,
                num_inference_steps=steps,
                guidance_scale=self._request.guidance_scale,
                output_type=output_type,
                callback_on_step_end=stepped,
                **{"generator": _create_generator(seed), **arguments},
            )
        if any(getattr(result, "nsfw_content_detected", None) or ()):
            raise RuntimeError("the model's safety checker withheld the picture; try another seed or prompt")
        return result.images

    def _create_pipeline(self, pipeline_kind: str) -> Any:
        """A pipeline on the same networks, with the scheduler."""
        import diffusers

        parts = {**self._pipe.components, "scheduler": self._scheduler}
        known = {"requires_safety_checker": False} if "safety_checker" in parts else {}
        with silence_libraries():
            pipe = getattr(diffusers, type(self._pipe).__name__.replace("Pipeline", f"{pipeline_kind}Pipeline"))(
                **parts, **known
            )
        pipe.set_progress_bar_config(disable=True)
        return pipe


def _encode_prompts(pipe: Any, request: GenerationRequest) -> dict[str, Any]:
    """The prompts; where layers are skipped, as what one text encoder makes of them (diffusers 0.42 looks for a norm
    where transformers 5 has none)."""
    import torch

    words = {"prompt": request.prompt, "negative_prompt": request.negative_prompt}
    if not request.clip_skip:
        return {**words, "negative_prompt": request.negative_prompt or None}
    layers = pipe.text_encoder.config.num_hidden_layers
    if request.clip_skip >= layers:
        raise ValueError(f"CLIP_stop_at_last_layers is {request.clip_skip + 1}, expected up to {layers}")
    if hasattr(pipe, "text_encoder_2"):
        return {**words, "clip_skip": request.clip_skip}
    norm = getattr(pipe.text_encoder, "text_model", pipe.text_encoder).final_layer_norm
    found = {}
    for name, text in words.items():
        tokens = pipe.tokenizer(
            text, padding="max_length", max_length=pipe.tokenizer.model_max_length, truncation=True, return_tensors="pt"
        )
        with torch.no_grad():
            hidden = pipe.text_encoder(tokens.input_ids.to(pipe.device), output_hidden_states=True).hidden_states
            found[f"{name}_embeds"] = norm(hidden[-1 - request.clip_skip])
    return found


def _upscale(images: Any, hires_fix: HiresFix, pipe: Any) -> Any:
    """Latents (1, C, h, w), or pixels (1, 3, H, W) in 0..1, cut to the size of the second pass."""
    import torch

    factor = pipe.vae_scale_factor if hires_fix.upscaler in LATENT_UPSCALERS else 1
    (height, width), (over_h, over_w) = (
        [side // factor for side in size] for size in (hires_fix.size, hires_fix.canvas_size)
    )
    top, left = (over_h - height) // 2, (over_w - width) // 2
    if hires_fix.upscaler in LATENT_UPSCALERS:
        mode, antialias = LATENT_UPSCALERS[hires_fix.upscaler]
        large = torch.nn.functional.interpolate(images, (over_h, over_w), mode=mode, antialias=antialias)
        return large[..., top : top + height, left : left + width]
    pixels = cv2.resize(
        _to_uint8(images), (over_w, over_h), interpolation=RESIZE_INTERPOLATIONS[PIXEL_UPSCALERS[hires_fix.upscaler]]
    )
    return _to_image_tensor(np.ascontiguousarray(pixels[top : top + height, left : left + width]))


def _render_preview(pipe: Any, latents: Any) -> str:
    """The latents as they are, noise and all, of the strength of a picture's, and small."""
    import torch

    x = latents[:1] / latents[:1].std().clamp(min=1e-6)
    share = min(PREVIEW_LATENT_SIDE / max(x.shape[-2:]), 1)
    size = [max(round(side * share), 1) for side in x.shape[-2:]]
    x = torch.nn.functional.interpolate(x.float(), size, mode="area").to(pipe.vae.dtype)
    with torch.no_grad():
        pixels = pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample[0].float().cpu().permute(1, 2, 0).numpy()
    return encode_png_base64((np.nan_to_num(pixels) * 127.5 + 127.5).clip(0, 255).astype(np.uint8))


def _to_uint8(images: Any) -> np.ndarray:
    if not np.isfinite(images[0]).all():
        raise RuntimeError("the picture holds NaN: the model overflows, serve it with --dtype float32")
    return (images[0] * 255).round().astype(np.uint8)


def _create_generator(seed: int) -> Any:
    import torch

    return torch.Generator().manual_seed(seed % 2**63)


def _to_image_tensor(pixels: np.ndarray) -> Any:
    """(1, 3, H, W) in 0..1, which the pipelines take as it is."""
    import torch

    return torch.from_numpy(pixels.transpose(2, 0, 1)[None].astype(np.float32) / 255)

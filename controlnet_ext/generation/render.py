"""Run a request on a pipeline of diffusers: the one place that calls a pipeline for an image.

`render` serves the command `generate`, the demo and the HTTP server. Loading lies in `prepare.py`, the values in
`request.py`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from ..errors import one_line
from ..guidance.unit import Unit
from .inpainting import InpaintArea, make_initial_latents
from .pipeline_folder import silence_libraries
from .recipe import LATENT_UPSCALERS, PIXEL_UPSCALERS, GenerationRequest, GuidanceSetup, HiresFix

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from torch import Tensor

    from ..hosts.diffusers.host import Scheduler
    from .prepare import LoadedRecipe

StepCallback = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]  # diffusers' `callback_on_step_end`
RESIZE_INTERPOLATIONS = {"lanczos": cv2.INTER_LANCZOS4, "nearest": cv2.INTER_NEAREST}


def render_recipe(loaded_recipe: LoadedRecipe) -> np.ndarray:
    """Return the image (H, W, 3) uint8 RGB of a recipe, with the recipe's number of torch threads and deterministic
    algorithms. Raises RuntimeError in one line where the run fails."""
    with deterministic_torch(loaded_recipe.recipe.threads, loaded_recipe.recipe.device):
        try:
            (pixels,) = render(loaded_recipe.pipe, loaded_recipe.recipe, loaded_recipe.guidance)
        except (ValueError, TypeError, RuntimeError) as error:  # what could be refused was refused when it was loaded
            raise RuntimeError(one_line(error, 500)) from error
    return pixels


def render(
    pipe: DiffusionPipeline,
    request: GenerationRequest,
    guidance: GuidanceSetup,
    scheduler: Scheduler | None = None,
    on_step_end: StepCallback | None = None,
) -> list[np.ndarray]:
    """Return the images of a request, each (H, W, 3) uint8 RGB.

    `pipe` is a StableDiffusionPipeline or StableDiffusionXLPipeline; `scheduler` replaces its own. `on_step_end` is
    called after each step of each pass.

    Raises ValueError or TypeError where units cannot act on the model or the text encoder has no layer left to skip,
    RuntimeError where an image is not finite or the model's safety checker withholds it."""
    images = _run_passes(_PipelineRunner(pipe, scheduler, request, on_step_end), request, guidance)
    return [_postprocess(_to_uint8(image, pipe), request, guidance) for image in images]


def count_steps(request: GenerationRequest) -> int:
    """Return the number of denoising steps in all passes. Raises ValueError where a pass has none."""
    passes = [(request.steps, request.strength if request.init_image is not None else 1.0)]
    if request.hires_fix is not None:
        passes.append((request.hires_fix.steps, request.hires_fix.strength))
    counts = [min(int(steps * strength), steps) for steps, strength in passes]
    for (steps, strength), count in zip(passes, counts, strict=True):
        if count < 1:
            raise ValueError(f"{steps} steps at denoising_strength {strength:g} are none")
    return sum(counts)


class _PipelineRunner:
    """Calls pipelines of several kinds on the same networks with the arguments that all passes of a request share."""

    def __init__(
        self,
        pipe: DiffusionPipeline,
        scheduler: Scheduler | None,
        request: GenerationRequest,
        on_step_end: StepCallback | None,
    ):
        self.pipe, self._scheduler = pipe, pipe.scheduler if scheduler is None else scheduler
        self.seed = request.seed % 2**63
        self._arguments = {**_encode_prompts(pipe, request), "guidance_scale": request.guidance_scale}
        if on_step_end is not None:
            self._arguments["callback_on_step_end"] = on_step_end

    def create_pipeline(self, kind: str) -> Any:
        """Return a pipeline of a kind ("", "Img2Img" or "Inpaint") on the same networks with the request's
        scheduler."""
        import diffusers

        if not kind and self._scheduler is self.pipe.scheduler:
            return self.pipe
        parts = {**self.pipe.components, "scheduler": self._scheduler}
        checker = {"requires_safety_checker": False} if "safety_checker" in parts else {}
        name = type(self.pipe).__name__.replace("Pipeline", f"{kind}Pipeline")
        with silence_libraries():
            pipe = getattr(diffusers, name)(**parts, **checker)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def run(self, kind: str, units: Sequence[Unit], steps: int, arguments: Mapping[str, Any]) -> Any:
        """Return the images of one guided call: float arrays (N, H, W, 3) in 0..1, or latents."""
        from ..hosts.diffusers.guide import guide

        pipe = self.create_pipeline(kind)
        call_arguments = {"generator": self.create_generator(), "output_type": "np", **self._arguments, **arguments}
        with guide(pipe, units):
            result = pipe(num_inference_steps=steps, **call_arguments)
        if any(result.get("nsfw_content_detected") or ()):
            raise RuntimeError("the model's safety checker withheld the image; try another seed or prompt")
        return result.images

    def create_generator(self) -> Any:
        """Return a new random generator on the CPU with the request's seed."""
        import torch

        return torch.Generator().manual_seed(self.seed)


def _run_passes(runner: _PipelineRunner, request: GenerationRequest, guidance: GuidanceSetup) -> Any:
    low, high = _split_units(guidance.units, request.hires_fix is not None)
    if request.inpaint_area is not None:
        arguments = _make_inpaint_arguments(runner, request, request.inpaint_area)
        return runner.run("Inpaint", low, request.steps, arguments)
    if request.init_image is not None:
        arguments = {"image": _to_image_tensor(request.init_image), "strength": request.strength}
        return runner.run("Img2Img", low, request.steps, arguments)
    arguments = {"height": request.height, "width": request.width}
    if len(request.prompts) > 1:
        arguments["latents"] = _make_shared_noise(runner, request)
    if guidance.initial_noise_image is not None:
        generator, pipe = runner.create_generator(), runner.create_pipeline("")
        arguments["generator"] = generator  # which the run goes on with
        arguments["latents"] = make_initial_latents(
            pipe, guidance.initial_noise_image, request.height, request.width, generator
        )
    hires = request.hires_fix
    if hires is None:
        return runner.run("", low, request.steps, arguments)
    arguments["output_type"] = "latent" if hires.upscaler in LATENT_UPSCALERS else "np"
    small = runner.run("", low, request.steps, arguments)
    arguments = {"image": _upscale(small, hires, runner.pipe), "strength": hires.strength}
    return runner.run("Img2Img", high, hires.steps, arguments)


def _split_units(units: Sequence[Unit], has_hires_pass: bool) -> tuple[list[Unit], list[Unit]]:
    """Return the units of the first and of the second pass. Each pass is a run of its own, in which its units act."""
    if not has_hires_pass:
        return [replace(unit, hires="both") if unit.hires != "both" else unit for unit in units], []
    low = [replace(unit, hires="both") for unit in units if unit.hires != "high"]
    return low, [replace(unit, hires="both") for unit in units if unit.hires != "low"]


def _make_shared_noise(runner: _PipelineRunner, request: GenerationRequest) -> Tensor:
    """Return noise (N, C, h, w) with equal rows: that of a single image from the same seed."""
    import torch

    channels, factor = runner.pipe.unet.config["in_channels"], runner.pipe.vae_scale_factor
    size = request.height // factor, request.width // factor
    noise = torch.randn((1, channels, *size), generator=runner.create_generator())
    return noise.repeat(len(request.prompts), 1, 1, 1)


def _make_inpaint_arguments(runner: _PipelineRunner, request: GenerationRequest, area: InpaintArea) -> dict[str, Any]:
    import torch

    from ..hosts.diffusers.host import encode_vae_image

    pipe, factor = runner.pipe, runner.pipe.vae_scale_factor
    sides = request.width // factor, request.height // factor
    small = np.where(cv2.resize(area.mask, sides, interpolation=cv2.INTER_AREA) > 127, np.float32(1), np.float32(0))
    mask = torch.from_numpy(small)[None, None]
    arguments: dict[str, Any] = {
        "image": _to_image_tensor(area.image),
        "mask_image": mask.repeat_interleave(factor, 2).repeat_interleave(factor, 3),
        "height": request.height,
        "width": request.width,
        "strength": request.strength,
    }
    if area.masked_content in ("noise", "nothing"):
        latents = encode_vae_image(pipe.vae, area.image, pipe.device).float().cpu()
        noise = torch.randn(latents.shape, generator=runner.create_generator())
        initial = latents * (1 - mask) + (noise * mask if area.masked_content == "noise" else 0)
        arguments |= {"image": initial, "masked_image_latents": latents * (1 - mask)}
    return arguments


def _encode_prompts(pipe: DiffusionPipeline, request: GenerationRequest) -> dict[str, Any]:
    """Return the pipeline's arguments for the prompts: text, or embeddings where layers of a single text encoder are
    skipped (diffusers 0.42 looks for a norm where transformers 5 has none)."""
    import torch

    prompt: str | list[str] = request.prompt if isinstance(request.prompt, str) else list(request.prompt)
    texts: dict[str, Any] = {"prompt": prompt, "negative_prompt": request.negative_prompt or None}
    if request.images_per_prompt > 1:
        texts["num_images_per_prompt"] = request.images_per_prompt
    if not request.clip_skip:
        return texts
    layers = pipe.text_encoder.config.num_hidden_layers
    if request.clip_skip >= layers:  # named as clients of the server set it
        raise ValueError(f"CLIP_stop_at_last_layers is {request.clip_skip + 1}, expected up to {layers}")
    if "text_encoder_2" in pipe.components:
        return {**texts, "negative_prompt": request.negative_prompt, "clip_skip": request.clip_skip}
    norm = getattr(pipe.text_encoder, "text_model", pipe.text_encoder).final_layer_norm  # transformers 5 has no model
    embeddings = {}
    for name, text in (("prompt", prompt), ("negative_prompt", request.negative_prompt)):
        tokens = pipe.tokenizer(
            text, padding="max_length", max_length=pipe.tokenizer.model_max_length, truncation=True, return_tensors="pt"
        )
        with torch.no_grad():
            hidden = pipe.text_encoder(tokens.input_ids.to(pipe.device), output_hidden_states=True).hidden_states
            embeddings[f"{name}_embeds"] = norm(hidden[-1 - request.clip_skip])
    return embeddings


def _upscale(images: Any, hires: HiresFix, pipe: DiffusionPipeline) -> Tensor:
    """Return latents (1, C, h, w), or pixels (1, 3, H, W) in 0..1, cut to the size of the second pass."""
    import torch

    is_latent = hires.upscaler in LATENT_UPSCALERS
    factor = pipe.vae_scale_factor if is_latent else 1
    (height, width), (over_height, over_width) = (
        [side // factor for side in size] for size in (hires.size, hires.canvas_size)
    )
    top, left = (over_height - height) // 2, (over_width - width) // 2
    if is_latent:
        mode, antialias = LATENT_UPSCALERS[hires.upscaler]
        large = torch.nn.functional.interpolate(images, (over_height, over_width), mode=mode, antialias=antialias)
        return large[..., top : top + height, left : left + width]
    interpolation = RESIZE_INTERPOLATIONS[PIXEL_UPSCALERS[hires.upscaler]]
    pixels = cv2.resize(_to_uint8(images[0], pipe), (over_width, over_height), interpolation=interpolation)
    return _to_image_tensor(np.ascontiguousarray(pixels[top : top + height, left : left + width]))


def _to_uint8(image: np.ndarray, pipe: DiffusionPipeline) -> np.ndarray:
    if not np.isfinite(image).all():
        dtype = str(pipe.dtype).removeprefix("torch.")
        raise RuntimeError(f"the image holds NaN: the model overflows in {dtype}, try --dtype float32")
    return (image * 255).round().astype(np.uint8)  # as diffusers does it


def _to_image_tensor(pixels: np.ndarray) -> Tensor:
    """Return RGB uint8 (H, W, 3) as (1, 3, H, W) in 0..1, which the pipelines do not resize."""
    import torch

    return torch.from_numpy(pixels.transpose(2, 0, 1)[None].astype(np.float32) / 255)


def _postprocess(pixels: np.ndarray, request: GenerationRequest, guidance: GuidanceSetup) -> np.ndarray:
    for step in guidance.postprocess:
        pixels = step(pixels)
    return pixels if request.inpaint_area is None else request.inpaint_area.paste_into_canvas(pixels)


@contextmanager
def deterministic_torch(threads: int, device: str) -> Iterator[None]:
    """Set what the last bits of a result depend on in torch, within the context: threads, deterministic algorithms."""
    import torch

    own_threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    is_changed = device != "cpu"  # on a CPU all that a pipeline does is, and this would also fill fresh memory
    torch.set_num_threads(threads)
    if is_changed:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts; torch asks for it
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        if is_changed:  # the call imports torch._inductor, half a second
            torch.use_deterministic_algorithms(strict, warn_only=warn_only)
        torch.set_num_threads(own_threads)

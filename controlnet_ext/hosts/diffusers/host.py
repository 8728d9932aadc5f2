"""A diffusers pipeline as the host of a run: sizes, latents, attention modules, noise levels; and calls of its UNet:
their arguments, their step in the run, and the image that each row belongs to."""

from __future__ import annotations

import inspect
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from ...guidance.after_steps import PREDICTION_TYPES, NoiseLevel
from ...guidance.contract import Crop, Residuals, Step, UndoStack, UNet
from ...guidance.schedule import Span
from ...models.base_unet import strip_wrappers
from ..side_stream import LazyResiduals, SideStream

if TYPE_CHECKING:
    from diffusers.models.modeling_utils import ModelMixin
    from diffusers.modular_pipelines.modular_pipeline import ModularPipeline
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

Pipeline: TypeAlias = "DiffusionPipeline | ModularPipeline"
SKIPS_ARGUMENT, MIDDLE_ARGUMENT = "down_block_additional_residuals", "mid_block_additional_residual"
ENCODER_ARGUMENT = "down_intrablock_additional_residuals"
SHARED_UNET_ADVICE = "another pipeline that shares the UNet needs a guide of its own"


class Scheduler(Protocol):
    """A scheduler of diffusers. Its other members differ from class to class."""

    timesteps: Tensor

    @property
    def config(self) -> Any:
        """The settings by name."""

    def __getattr__(self, name: str) -> Any: ...


class DenoiserCall:
    """The arguments of a call of a UNet or transformer, however they are passed."""

    shares_residuals: bool = False
    """Several calls of one step share the residuals of the first."""
    is_prompt_first: bool = False
    """In a batch of rows with the prompt and without, the former come first."""
    frames: int = 1
    x: Tensor

    def __init__(self, unet: ModelMixin, args: tuple[Any, ...], kwargs: dict[str, Any]):
        self._names = list(inspect.signature(type(unet).forward).parameters)[1:]
        self._args, self._kwargs = args, kwargs
        self.unet = unet
        self.arguments = dict(zip(self._names, args, strict=False)) | kwargs

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of the latents."""
        return self.x.shape[-2], self.x.shape[-1]

    @property
    def pipeline_residuals(self) -> Residuals | None:
        """The residuals that the pipeline passes itself, None without any."""
        raise NotImplementedError

    def find_timestep(self, scheduler: Scheduler) -> Tensor:
        """Return the scheduler's timestep `(1,)` or `(B,)` of this call."""
        raise NotImplementedError

    def build_step(self, span: Span, positive: Tensor | None, samples: Tensor | None) -> Step:
        """Return the step of this call; `positive` and `samples` are `(B,)` or None."""
        raise NotImplementedError

    def add_residuals(
        self, residuals: Residuals, side_stream: SideStream | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of the call with these residuals, for which `side_stream` must be waited for."""
        raise NotImplementedError

    def _replace_arguments(self, changed: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments as they were passed, with these values by name."""
        args, kwargs = list(self._args), dict(self._kwargs)
        for name, value in changed.items():
            if name in self._names[: len(args)]:
                args[self._names.index(name)] = value
            else:
                kwargs[name] = value
        return tuple(args), kwargs


class UNetCall(DenoiserCall):
    """The arguments of a UNet call."""

    def __init__(self, unet: ModelMixin, args: tuple[Any, ...], kwargs: dict[str, Any]):
        super().__init__(unet, args, kwargs)
        arguments = self.arguments
        x, t, context = arguments["sample"], arguments["timestep"], arguments["encoder_hidden_states"]
        self.frames = x.shape[2] if x.ndim == 5 else 1
        self.x = x.transpose(1, 2).flatten(0, 1) if x.ndim == 5 else x  # (B, C, F, h, w) to (B F, C, h, w)
        self.t = torch.as_tensor(t, device=x.device).reshape(-1)
        self.context = context

    def find_timestep(self, scheduler: Scheduler) -> Tensor:
        """Return the scheduler's timestep `(1,)` or `(B,)` of this call."""
        return self.t

    def build_step(self, span: Span, positive: Tensor | None, samples: Tensor | None) -> Step:
        """Return the step of this call; `positive` and `samples` are `(B,)` or None."""
        t, context, added = (self._expand_rows(value) for value in (self.t, self.context, self._build_added_vector()))
        return Step(self.x, t, context, span, positive, added, samples, self.frames)

    def _build_added_vector(self) -> Tensor | None:
        """SDXL's vector, as the UNet makes it (diffusers 0.42, unet_2d_condition.py, get_aug_embed)."""
        conditions = self.arguments.get("added_cond_kwargs")
        if self.unet.config["addition_embed_type"] != "text_time" or not conditions:
            return None
        pooled, sizes = conditions["text_embeds"], conditions["time_ids"]
        return torch.cat([pooled, self.unet.add_time_proj(sizes.flatten()).reshape(len(pooled), -1)], dim=-1)

    def _expand_rows(self, value: Any) -> Any:
        """Return one entry for each row of x, given one for all, one for each video or one for each row."""
        rows = len(self.x)
        if value is None or len(value) == rows:
            return value
        return value.expand(rows, *value.shape[1:]) if len(value) == 1 else value.repeat_interleave(self.frames, dim=0)

    @property
    def pipeline_residuals(self) -> Residuals | None:
        """The residuals that the pipeline passes itself, None without any.

        Skips without a middle block are those of a T2I-Adapter, as in diffusers.
        """
        skips, middle, encoder = (
            self.arguments.get(name) for name in (SKIPS_ARGUMENT, MIDDLE_ARGUMENT, ENCODER_ARGUMENT)
        )
        if skips is None and middle is None and encoder is None:
            return None
        if middle is None and encoder is None and ENCODER_ARGUMENT in self._names:
            skips, encoder = None, skips
        return Residuals(tuple(skips or ()), middle, tuple(encoder or ()))

    def add_residuals(
        self, residuals: Residuals, side_stream: SideStream | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of the call with these residuals.

        Skips and middle block are always passed together, because skips alone are taken for a T2I-Adapter's. The
        residuals inside the encoder are a new list, because the UNet empties it. The UNet reads the skips first and
        then waits for `side_stream`. Raises ValueError if their number does not fit the UNet, or it takes none inside
        the encoder.
        """
        zero, count = self.x.new_zeros(()), _count_skips(self.unet)
        if residuals.skips and len(residuals.skips) != count:
            raise ValueError(f"residuals for {len(residuals.skips)} skips, but the UNet has {count}")
        if residuals.encoder and ENCODER_ARGUMENT not in self._names:
            raise ValueError(f"residuals inside the encoder, which {type(self.unet).__name__} does not take")
        changed: dict[str, Any] = {ENCODER_ARGUMENT: list(residuals.encoder)} if residuals.encoder else {}
        if residuals.skips or residuals.middle is not None:
            skips = residuals.skips or (zero,) * count
            changed[SKIPS_ARGUMENT] = skips if side_stream is None else LazyResiduals(skips, side_stream.wait)
            changed[MIDDLE_ARGUMENT] = zero if residuals.middle is None else residuals.middle
        elif residuals.encoder:
            changed[SKIPS_ARGUMENT] = None
        return self._replace_arguments(changed)


# packages whose functions call a UNet as the pipeline meant it
TRUSTED_PACKAGES = frozenset({"accelerate", "contextlib", "diffusers", "functools", "peft", "torch"})


@dataclass(frozen=True, eq=False)
class PipelineCall:
    """The call of a pipeline that is under way: its variables by name.

    `is_plain` is True if nothing but diffusers and torch lies between the pipeline and its UNet, so that each UNet call
    shows all that the pipeline draws. A loop of somebody's own is no such call.
    """

    variables: Mapping[str, Any] = field(default_factory=dict)
    is_plain: bool = False

    @classmethod
    def find(cls, pipe: Any) -> PipelineCall:
        """Return the innermost call on the stack of `pipe`, or of a pipeline that shares its UNet or transformer; else
        a call without variables."""
        frame, is_plain = sys._getframe(1), True
        own = __name__.partition(".")[0]
        while frame is not None:
            package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
            is_plain &= package == own or package in TRUSTED_PACKAGES
            if frame.f_code.co_name == "__call__" and _has_denoiser_of((variables := frame.f_locals).get("self"), pipe):
                state = variables.get("state")  # of modular pipelines
                return cls(getattr(state, "values", None) or dict(variables), is_plain)
            frame = frame.f_back  # type: ignore[assignment]
        return cls()

    @property
    def images_per_prompt(self) -> int:
        """The number of images, or of videos, that the pipeline makes of each prompt."""
        counts = (self.variables.get(f"num_{kind}_per_prompt") for kind in ("images", "videos"))
        return next((count for count in counts if count is not None), 1)

    def locate(self, row_count: int, size: tuple[int, int]) -> tuple[Crop, ...] | None:
        """Return `Step.crops` for a UNet call of this many rows and pixels.

        The pipeline itself crops with `padding_mask_crop`, to the surroundings of an inpaint mask, which it fits into
        the size that it draws (diffusers 0.42, image_processor.py, _resize_and_fill). Raises ValueError if it does
        not tell which part that is.
        """
        box = self.variables.get("crops_coords")
        if self.variables.get("padding_mask_crop") is None and box is None:
            return () if self.is_plain else None
        images = self.variables.get("original_image", self.variables.get("image"))
        image = images[0] if isinstance(images, list | tuple) and images else images
        if box is None or not hasattr(image, "getbands"):
            raise ValueError("the pipeline crops the image by padding_mask_crop, and does not tell where")
        left, top, right, bottom = map(int, box)
        (height, width), (rows, columns) = size, (bottom - top, right - left)
        if columns * height > width * rows:
            columns, rows = width, rows * width // columns
        else:
            columns, rows = columns * height // rows, height
        x, y = width // 2 - columns // 2, height // 2 - rows // 2
        target = None if (columns, rows) == (width, height) else (x, y, x + columns, y + rows)
        return (Crop((image.height, image.width), (left, top, right, bottom), size, target),) * row_count


def _has_denoiser_of(owner: object, pipe: Pipeline) -> bool:
    networks = ((getattr(each, name, None) for each in (owner, pipe)) for name in ("unet", "transformer"))
    return owner is pipe or any(one is not None and one is other for one, other in networks)


class StepCounter:
    """The place of a UNet call in its run, which begins when the scheduler's timesteps are a new tensor.

    `is_last_step` is True in the last step; `has_repeated_steps` after a step with several calls, which nothing tells
    apart.
    """

    def __init__(self, pipe: Pipeline, t: Tensor):
        self.scheduler, self.timesteps = pipe.scheduler, pipe.scheduler.timesteps
        self.is_last_step = self.has_repeated_steps = False
        self._pipe, self._call_count, self._index = pipe, 0, -1
        self._t: tuple[int, float] | None = None  # of the last call
        self._begin_index: int | None = None
        count, total = _count_steps(pipe, t.flatten()[0].item(), self.timesteps.tolist())
        self.spans = [Span(i / total, (i + 1) / total) for i in range(count)]

    def advance(self, t: Tensor) -> Span:
        """Return the span of the present call, at timestep `t` `(1,)`; to be called once for each call.

        The place of t in the timesteps would be wrong: PNDM and Heun repeat them. Schedulers of higher order call the
        UNet several times, and each call counts as a step, as in diffusers; the calls of a guider are one step, and so
        are calls at one timestep with a scheduler that has it once. Raises ValueError if there are more calls than
        steps.
        """
        index, state = self._index, get_guider_state(self._pipe)
        if state is not None:
            index = state["step"]
        elif hasattr(self.scheduler, "step_index"):  # DDIM and PNDM have none
            at = self.scheduler.step_index
            if self._begin_index is None and at is not None:
                begin = getattr(self.scheduler, "begin_index", None)
                self._begin_index = begin if begin is not None else at - (self._call_count > 0)
            index = 0 if at is None else at - self._begin_index
        elif hasattr(self.scheduler, "counter"):  # PNDM's steps so far
            index = self.scheduler.counter
        else:
            before, self._t = self._t, self._identify(t.flatten()[0])
            index += self._t != before
        self.has_repeated_steps |= state is None and index == self._index
        self._call_count, self._index = self._call_count + 1, index
        if not 0 <= index < len(self.spans):
            kind = type(self._pipe).__name__
            raise ValueError(
                f"UNet call {index + 1} in a run of {len(self.spans)} steps: {kind} calls it several times a step, "
                f"which cannot be guided with this scheduler, or {SHARED_UNET_ADVICE}"
            )
        self.is_last_step = index == len(self.spans) - 1
        return self.spans[index]

    def _identify(self, t: Tensor) -> tuple[int, float]:
        """Return what tells a timestep from the others: its place in memory if it is one of the scheduler's, so that
        nobody has to wait for its value on a device; else its value."""
        if t.untyped_storage().data_ptr() == self.timesteps.untyped_storage().data_ptr():
            return int(t.storage_offset()), 0.0
        return -1, float(t.item())


def _count_steps(pipe: Pipeline, t: float, timesteps: list[float]) -> tuple[int, int]:
    """Return the number of steps of the run that begins at `t`, and how many there would be without `denoising_end`.

    Windows are fractions of the latter, as in diffusers' ControlNet pipelines (0.42, pipeline_controlnet_sd_xl.py).
    """
    places = [place for place, value in enumerate(timesteps) if value == t]
    if not places:
        raise ValueError(f"timestep {t:g} is none of the scheduler's of {type(pipe).__name__}; {SHARED_UNET_ADVICE}")
    left = len(timesteps) - places[0]
    state = get_guider_state(pipe)
    # a few pipelines do not tell it, and none of those ends early
    count = getattr(pipe, "num_timesteps", left) if state is None else state["num_inference_steps"]
    if count > left:
        raise ValueError(
            f"{type(pipe).__name__} has {count} steps, but from timestep {t:g} there are {left}; {SHARED_UNET_ADVICE}"
        )
    end = getattr(pipe, "denoising_end", None)
    return count, left if isinstance(end, float) and 0 < end < 1 else count


def get_guider_state(pipe: Pipeline) -> dict[str, Any] | None:
    """Return the state of a modular pipeline's guider (diffusers 0.42, guider_utils.py).

    None without a guider, or while it prepares no call.
    """
    guider: Any = getattr(pipe, "guider", None)
    state = guider.get_state() if hasattr(guider, "get_state") else None
    return state if state is not None and state.get("step") is not None and state["count_prepared"] else None


def find_prompted_copies(pipe: Pipeline) -> tuple[bool, ...] | None:
    """Return for each copy of the images that the pipeline stacks in a batch, True if it has the prompt.

    With guidance the first copy has not; with perturbed attention guidance there is one more that has (diffusers 0.42,
    pag_utils.py, _prepare_perturbed_attention_guidance). A modular pipeline's guider has one call for each kind of
    row. None if the pipeline does not tell.
    """
    if get_guider_state(pipe) is not None:
        conditional = getattr(pipe.guider, "is_conditional", None)  # some of 0.42 fail there
        return None if conditional is None else (bool(conditional),)
    guidance = getattr(pipe, "do_classifier_free_guidance", None)
    if guidance is None:
        return None
    return (False,) * bool(guidance) + (True,) + (True,) * bool(getattr(pipe, "do_perturbed_attention_guidance", False))


def identify_rows(copies: tuple[bool, ...] | None, call: DenoiserCall) -> tuple[Tensor | None, Tensor | None]:
    """Return `Step.positive` and `Step.samples`, both `(B,)`, for a batch of such copies.

    Both are None if the copies are unknown, or the batch does not consist of them.
    """
    if copies is None or len(call.x) % (len(copies) * call.frames):
        return None, None
    first, *others = call.x.chunk(len(copies))
    if not all(torch.equal(first, other) for other in others):
        return None, None
    device, image_count = call.x.device, len(first) // call.frames
    positive = torch.tensor(copies[::-1] if call.is_prompt_first else copies, device=device).repeat_interleave(
        len(first)
    )
    samples = torch.arange(image_count, device=device).repeat_interleave(call.frames).repeat(len(copies))
    return positive, samples


def _count_skips(unet: UNet) -> int:
    return 1 + sum(len(level.resnets) + bool(level.downsamplers) for level in unet.down_blocks)


class DiffusersHost:
    """The pipeline and its UNet during one run; the `Host` of `controlnet_ext.guidance.contract`."""

    def __init__(self, pipe: Pipeline, unet: UNet):
        self.unet = unet
        self._pipe = pipe
        self._call: DenoiserCall | None = None
        self._generator: torch.Generator | None = None

    def observe(self, call: DenoiserCall, is_new_run: bool) -> None:
        """Take note of a UNet call, with which a run begins or not."""
        self._call = call
        if is_new_run:
            self._generator = None

    @property
    def call(self) -> DenoiserCall:
        """The present UNet call. Raises ValueError before the first."""
        if self._call is None:
            raise ValueError("the host has no size, device or numbers before the UNet's first call")
        return self._call

    @property
    def pixel_size(self) -> tuple[int, int]:
        """Height and width in pixels of the image that is being generated."""
        height, width = self.call.latent_size
        return height * self._pipe.vae_scale_factor, width * self._pipe.vae_scale_factor

    @property
    def generator(self) -> torch.Generator:
        """A generator on the CPU, seeded by the latents of the call in which a run first asks for it."""
        if self._generator is None:
            latents = self.call.x.detach().cpu().contiguous().view(torch.uint8)
            self._generator = torch.Generator().manual_seed(zlib.crc32(latents.numpy().tobytes()))
        return self._generator

    def encode(self, image: np.ndarray, apply_vae_shift: bool = True) -> Tensor:
        """Return the VAE's mode, not a sample, `(B, C, h, w)` for RGB uint8 `(H, W, 3)` or `(B, H, W, 3)`.

        `apply_vae_shift` False leaves out the shift that the VAEs of SD3 and Flux have.
        """
        return encode_vae_image(self._pipe.vae, image, self.call.x.device, apply_vae_shift).to(self.call.x.dtype)

    def iter_attentions(self) -> Iterator[tuple[str, Any, str]]:
        """Yield (name, module, place) of all attention modules but motion modules, whose tokens are frames."""
        for place, block in (("input", "down_blocks"), ("middle", "mid_block"), ("output", "up_blocks")):
            for name, module in getattr(self.unet, block).named_modules(prefix=block):
                if isinstance(module, Attention) and ".motion_modules." not in name:
                    yield strip_wrappers(name), module, place


@torch.no_grad()
def encode_vae_image(vae: ModelMixin, image: np.ndarray, device: torch.device, apply_vae_shift: bool = True) -> Tensor:
    """Return the VAE's mode `(B, C, h, w)`, scaled as the UNet sees it, of RGB uint8 `(H, W, 3)` or `(B, H, W, 3)`."""
    pixels = torch.from_numpy(image.reshape(-1, *image.shape[-3:])).permute(0, 3, 1, 2).to(device)
    video = "temperal_downsample" in vae.config  # Qwen-Image's VAE is one of videos; an image is a frame
    with _upcast_vae(vae):
        pixels = pixels.to(vae.dtype) / 127.5 - 1
        encoding = vae.encode(pixels[:, :, None] if video else pixels)
    latents: Tensor = encoding.latents if hasattr(encoding, "latents") else encoding.latent_dist.mode()
    if video:
        mean, std = (latents.new_tensor(vae.config[f"latents_{name}"])[:, None, None] for name in ("mean", "std"))
        return (latents[:, :, 0] - mean) / std
    shift = vae.config.get("shift_factor") if apply_vae_shift else None
    scale: float = vae.config["scaling_factor"]
    return (latents if shift is None else latents - shift) * scale


@contextmanager
def _upcast_vae(vae: Any) -> Iterator[None]:
    """SDXL's VAE overflows in fp16; fp16 to fp32 and back is exact."""
    if vae.dtype != torch.float16 or not vae.config.get("force_upcast"):
        yield
        return
    undo = UndoStack()
    try:
        try:
            undo.push(lambda: vae.to(torch.float16))
            vae.to(torch.float32)
            yield
        finally:
            undo.close()
    finally:
        undo.close()


def read_noise_level(scheduler: Scheduler, t: float) -> NoiseLevel:
    """Return the noise level of the UNet call at timestep `t`. Raises ValueError for other models of noise."""
    name, config = type(scheduler).__name__, scheduler.config
    if config.get("prediction_type", "epsilon") not in PREDICTION_TYPES:
        raise ValueError(
            f"{name} predicts {config['prediction_type']!r}; latents are changed after a step only where a model "
            f"predicts one of: {', '.join(PREDICTION_TYPES)}"
        )
    if not hasattr(scheduler, "alphas_cumprod") or "sigma_data" in config:
        raise ValueError(f"{name} has no cumulated alphas, by which latents are changed after a step")
    signal = _compute_signal(scheduler, t)
    return NoiseLevel(config.get("prediction_type", "epsilon"), signal, max(1 - signal**2, 0.0) ** 0.5)


def _compute_signal(scheduler: Scheduler, t: float) -> float:
    scale = float(scheduler.scale_model_input(torch.ones(()), t))  # 1 / sqrt(1 + sigma^2) where it scales at all
    if scale != 1:
        return scale
    sigmas = getattr(scheduler, "sigmas", None)
    signal: float
    if sigmas is None:
        signal = float(scheduler.alphas_cumprod[int(t)]) ** 0.5
        return signal
    index = scheduler.step_index if scheduler.step_index is not None else scheduler.index_for_timestep(t)
    signal = (1 + float(sigmas[index]) ** 2) ** -0.5
    return signal

"""One call of a diffusers UNet: its arguments, its step in the run, and the image that each row belongs to."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from ...guidance.contract import Residuals, Step
from ...guidance.schedule import Span
from ..side_stream import LazyResiduals, SideStream

SKIPS_ARGUMENT, MIDDLE_ARGUMENT = "down_block_additional_residuals", "mid_block_additional_residual"
ENCODER_ARGUMENT = "down_intrablock_additional_residuals"
SHARED_UNET_ADVICE = "another pipeline that shares the UNet needs a guide of its own"


class DenoiserCall:
    """The arguments of a call of a UNet or transformer, however they are passed."""

    shares_residuals: bool = False
    """Several calls of one step share the residuals of the first."""
    is_prompt_first: bool = False
    """In a batch of rows with the prompt and without, the former come first."""
    frames: int = 1
    x: Tensor

    def __init__(self, unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]):
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

    def find_timestep(self, scheduler: Any) -> Tensor:
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

    def __init__(self, unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]):
        super().__init__(unet, args, kwargs)
        given = self.arguments
        x, t, context = given["sample"], given["timestep"], given["encoder_hidden_states"]
        self.frames = x.shape[2] if x.ndim == 5 else 1
        self.x = x.transpose(1, 2).flatten(0, 1) if x.ndim == 5 else x  # (B, C, F, h, w) to (B F, C, h, w)
        self.t = torch.as_tensor(t, device=x.device).reshape(-1)
        self.context = context

    def find_timestep(self, scheduler: Any) -> Tensor:
        """Return the scheduler's timestep `(1,)` or `(B,)` of this call."""
        return self.t

    def build_step(self, span: Span, positive: Tensor | None, samples: Tensor | None) -> Step:
        """Return the step of this call; `positive` and `samples` are `(B,)` or None."""
        t, context, added = (self._expand_rows(value) for value in (self.t, self.context, self._build_added_vector()))
        return Step(self.x, t, context, span, positive, added, samples, self.frames)

    def _build_added_vector(self) -> Tensor | None:
        """SDXL's vector, as the UNet makes it (diffusers 0.42, unet_2d_condition.py, get_aug_embed)."""
        given = self.arguments.get("added_cond_kwargs")
        if self.unet.config["addition_embed_type"] != "text_time" or not given:
            return None
        pooled, sizes = given["text_embeds"], given["time_ids"]
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


class StepCounter:
    """The place of a UNet call in its run, which begins when the scheduler's timesteps are a new tensor.

    `is_last_step` is True in the last step; `has_repeated_steps` after a step with several calls, which nothing tells
    apart.
    """

    def __init__(self, pipe: Any, t: Tensor):
        self.scheduler, self.timesteps = pipe.scheduler, pipe.scheduler.timesteps
        self.is_last_step = self.has_repeated_steps = False
        self._pipe, self._call_count, self._index = pipe, 0, -1
        self._begin_index: int | None = None
        count = _count_steps(pipe, t.flatten()[0].item(), self.timesteps.tolist())
        self.spans = [Span(i / count, (i + 1) / count) for i in range(count)]

    def advance(self) -> Span:
        """Return the span of the present call; to be called once for each call.

        The place of t in the timesteps would be wrong: PNDM and Heun repeat them. Schedulers of higher order call the
        UNet several times, and each call counts as a step, as in diffusers; the calls of a guider are one step. Raises
        ValueError if there are more calls than steps.
        """
        index = self._call_count
        state = get_guider_state(self._pipe)
        if state is not None:
            index = state["step"]
        elif hasattr(self.scheduler, "step_index"):  # DDIM and PNDM have none
            at = self.scheduler.step_index
            if self._begin_index is None and at is not None:
                begin = getattr(self.scheduler, "begin_index", None)
                self._begin_index = begin if begin is not None else at - (self._call_count > 0)
            index = 0 if at is None else at - self._begin_index
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


def _count_steps(pipe: Any, t: float, timesteps: list[float]) -> int:
    """Return the number of steps of the run that begins at `t`."""
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
    return count


def get_guider_state(pipe: Any) -> dict[str, Any] | None:
    """Return the state of a modular pipeline's guider (diffusers 0.42, guider_utils.py).

    None without a guider, or while it prepares no call.
    """
    guider: Any = getattr(pipe, "guider", None)
    state = guider.get_state() if hasattr(guider, "get_state") else None
    return state if state is not None and state.get("step") is not None and state["count_prepared"] else None


def find_prompted_copies(pipe: Any) -> tuple[bool, ...] | None:
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
    device, pictures = call.x.device, len(first) // call.frames
    positive = torch.tensor(copies[::-1] if call.is_prompt_first else copies, device=device).repeat_interleave(
        len(first)
    )
    samples = torch.arange(pictures, device=device).repeat_interleave(call.frames).repeat(len(copies))
    return positive, samples


def _count_skips(unet: Any) -> int:
    return 1 + sum(len(level.resnets) + bool(level.downsamplers) for level in unet.down_blocks)

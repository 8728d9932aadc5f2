"""One call of a transformer of diffusers, as `unet_calls.Call` is one of a UNet."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...guidance.contract import Residuals, Span
from ...models.kinds.transformer import TransformerStep, spread
from ..side_stream import Beside

PATCH = 2  # latents of a side of one token


class TransformerCall:
    """The arguments of a transformer's call, however they were passed; this one is SD3's."""

    frames = 1
    shares = True  # several calls of a step have the residuals of the first, as in diffusers: true guidance
    prompt_first = False  # in a batch of rows with the prompt and without

    family = "sd3"
    READ: ClassVar[tuple[str, ...]] = ("timestep", "pooled_projections", "encoder_hidden_states")  # by networks
    X, TIME, LORAS = "hidden_states", "timestep", "joint_attention_kwargs"
    BLOCKS, SINGLES = "block_controlnet_hidden_states", ""
    REPEATED = ""

    def __init__(self, transformer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]):
        self._names = list(inspect.signature(type(transformer).forward).parameters)[1:]
        self._args, self._kwargs = args, kwargs
        self.unet = transformer
        self.given = dict(zip(self._names, args, strict=False)) | kwargs
        self.x: Tensor = self._rows()

    def time(self, scheduler: Any) -> Tensor:
        """The scheduler's timestep of this call."""
        return self._t.float().to(scheduler.timesteps.device)

    @property
    def _t(self) -> Tensor:
        return torch.as_tensor(self.given[self.TIME]).reshape(-1)[:1]

    def _rows(self) -> Tensor:
        return self.given[self.X]

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of the latents."""
        return self.x.shape[-2], self.x.shape[-1]

    def step(self, span: Span, positive: Tensor | None, samples: Tensor | None) -> TransformerStep:
        t = torch.as_tensor(self.given[self.TIME], device=self.x.device).reshape(-1).expand(len(self.x))
        given = {name: self.given[name] for name in (self.X, *self.READ) if name in self.given}
        given |= {"joint_attention_kwargs": self.given.get(self.LORAS)}
        return TransformerStep(self.x, t, self._context(), span, positive, None, samples, given=given)

    def _context(self) -> Tensor:
        return self.given["encoder_hidden_states"]

    @property
    def residuals(self) -> Residuals | None:
        """Those that the pipeline passes itself. ValueError on XLabs' for Flux, which are spread in another way."""
        blocks, singles = self.given.get(self.BLOCKS), self.given.get(self.SINGLES)
        if blocks is None and singles is None:
            return None
        if self.given.get(self.REPEATED):
            raise ValueError("the pipeline's own ControlNet is XLabs', whose residuals cannot be added to others")
        singly = spread(singles or (), len(getattr(self.unet, "single_transformer_blocks", ())), self.family)
        return Residuals(self._spread(blocks or ()), None, singly)

    def _spread(self, blocks: Any) -> tuple[Tensor, ...]:
        return spread(blocks, len(self.unet.transformer_blocks), self.family)

    def passing(self, total: Residuals, own: Beside | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the call with these residuals. A transformer reads them from its first block on."""
        if own is not None:
            own.wait()
        args, kwargs = list(self._args), dict(self._kwargs)
        for name, value in self._changed(total).items():
            if name in self._names[: len(args)]:
                args[self._names.index(name)] = value
            else:
                kwargs[name] = value
        return tuple(args), kwargs

    def _changed(self, total: Residuals) -> dict[str, Any]:
        return {self.BLOCKS: list(total.skips) or None}


class FluxCall(TransformerCall):
    """x is `(B, tokens, C)`, and its places are known from `img_ids`."""

    family = "flux"
    READ: ClassVar[tuple[str, ...]] = (
        "timestep",
        "guidance",
        "pooled_projections",
        "encoder_hidden_states",
        "txt_ids",
        "img_ids",
    )
    BLOCKS, SINGLES = "controlnet_block_samples", "controlnet_single_block_samples"
    REPEATED = "controlnet_blocks_repeat"

    def time(self, scheduler: Any) -> Tensor:
        """It is called with a thousandth of the scheduler's, in the latents' dtype."""
        return _nearest(scheduler, 1000 * self._t)

    @property
    def latent_size(self) -> tuple[int, int]:
        ids = self.given["img_ids"].reshape(-1, 3)
        return PATCH * (int(ids[:, 1].max()) + 1), PATCH * (int(ids[:, 2].max()) + 1)

    def _changed(self, total: Residuals) -> dict[str, Any]:
        return {self.BLOCKS: list(total.skips) or None, self.SINGLES: list(total.encoder) or None}


class QwenImageCall(FluxCall):
    """x is `(B, tokens, C)`, and its sides are known from `img_shapes`."""

    family = "qwen-image"
    READ: ClassVar[tuple[str, ...]] = ("timestep", "encoder_hidden_states", "encoder_hidden_states_mask", "img_shapes")
    LORAS = "attention_kwargs"
    SINGLES = REPEATED = ""

    @property
    def latent_size(self) -> tuple[int, int]:
        """ValueError where x is of several pictures, as in pipelines that edit one."""
        shape = self.given["img_shapes"][0]
        shapes = [shape] if isinstance(shape[0], int) else shape
        if len(shapes) != 1 or shapes[0][0] != 1:
            raise ValueError("the pipeline gives Qwen-Image several pictures at once, which is not guided")
        return PATCH * shapes[0][1], PATCH * shapes[0][2]

    def _changed(self, total: Residuals) -> dict[str, Any]:
        return {self.BLOCKS: list(total.skips) or None}


class ZImageCall(TransformerCall):
    """x is a list of `(C, 1, h, w)`, and residuals are known by their layers."""

    family = "z-image"
    prompt_first = True
    READ: ClassVar[tuple[str, ...]] = ("t", "cap_feats", "patch_size", "f_patch_size")
    X, TIME = "x", "t"
    BLOCKS = "controlnet_block_samples"

    def time(self, scheduler: Any) -> Tensor:
        """It is called with 1 - t / 1000."""
        return _nearest(scheduler, 1000 * (1 - self._t))

    def _rows(self) -> Tensor:
        """`(B, C, h, w)`. ValueError where a row is of several pictures, as in pipelines that edit some."""
        rows = self.given["x"]
        if not all(isinstance(row, Tensor) and row.shape[1] == 1 for row in rows):
            raise ValueError("the pipeline gives Z-Image several pictures at once, which is not guided")
        return torch.stack(list(rows)).squeeze(2)

    def _context(self) -> Tensor:
        return pad_sequence(list(self.given["cap_feats"]), batch_first=True)

    def _spread(self, blocks: Any) -> tuple[Tensor, ...]:
        zero = self.x.new_zeros(())
        return tuple(blocks.get(layer, zero) for layer in range(len(self.unet.layers))) if blocks else ()

    def _changed(self, total: Residuals) -> dict[str, Any]:
        return {self.BLOCKS: {layer: h for layer, h in enumerate(total.skips) if h.ndim} or None}


def _nearest(scheduler: Any, t: Tensor) -> Tensor:
    """The scheduler's timestep that is rounded to t."""
    near = (scheduler.timesteps - t.float().to(scheduler.timesteps.device)).abs().argmin()
    return scheduler.timesteps[near].reshape(1)


CALLS = {
    "FluxTransformer2DModel": FluxCall,
    "SD3Transformer2DModel": TransformerCall,
    "QwenImageTransformer2DModel": QwenImageCall,
    "ZImageTransformer2DModel": ZImageCall,
}
KINDS = tuple(CALLS)

"""One call of a transformer of diffusers, SD3's or Flux's, as `unet_calls.Call` is one of a UNet."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from ..control import Residuals, Span
from ..models.transformer_controls import TransformerStep, spread
from .beside import Beside

FLUX = "FluxTransformer2DModel"
KINDS = (FLUX, "SD3Transformer2DModel")
PATCH = 2  # latents of a side of one of Flux's tokens
SD3_BLOCKS = "block_controlnet_hidden_states"
FLUX_BLOCKS, FLUX_SINGLES = "controlnet_block_samples", "controlnet_single_block_samples"
REPEATED = "controlnet_blocks_repeat"
READ = {  # what networks are given of a transformer's arguments
    FLUX: ("timestep", "guidance", "pooled_projections", "encoder_hidden_states", "txt_ids", "img_ids"),
    "SD3Transformer2DModel": ("timestep", "pooled_projections", "encoder_hidden_states"),
}


class TransformerCall:
    """The arguments of a transformer's call, however they were passed."""

    frames = 1
    shares = True  # several calls of a step have the residuals of the first, as in diffusers: Flux's true guidance

    def __init__(self, transformer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]):
        self._names = list(inspect.signature(type(transformer).forward).parameters)[1:]
        self._args, self._kwargs = args, kwargs
        self.unet, self._kind = transformer, type(transformer).__name__
        self.given = dict(zip(self._names, args, strict=False)) | kwargs
        self.x: Tensor = self.given["hidden_states"]

    def time(self, scheduler: Any) -> Tensor:
        """The scheduler's timestep of this call. Flux is called with a thousandth of it, in the latents' dtype."""
        t = torch.as_tensor(self.given["timestep"]).reshape(-1)[:1].float().to(scheduler.timesteps.device)
        if self._kind != FLUX:
            return t
        return scheduler.timesteps[(scheduler.timesteps - 1000 * t).abs().argmin()].reshape(1)

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of the latents; Flux's tokens know their places."""
        if self._kind != FLUX:
            return self.x.shape[-2], self.x.shape[-1]
        ids = self.given["img_ids"].reshape(-1, 3)
        return PATCH * (int(ids[:, 1].max()) + 1), PATCH * (int(ids[:, 2].max()) + 1)

    def step(self, span: Span, positive: Tensor | None, samples: Tensor | None) -> TransformerStep:
        context = self.given["encoder_hidden_states"]
        t = torch.as_tensor(self.given["timestep"], device=self.x.device).reshape(-1).expand(len(self.x))
        given = {name: self.given.get(name) for name in READ[self._kind]}
        given |= {"hidden_states": self.x, "joint_attention_kwargs": self.given.get("joint_attention_kwargs")}
        return TransformerStep(self.x, t, context, span, positive, None, samples, given=given)

    @property
    def residuals(self) -> Residuals | None:
        """Those that the pipeline passes itself. ValueError on XLabs' for Flux, which are spread in another way."""
        blocks, singles = self.given.get(SD3_BLOCKS) or self.given.get(FLUX_BLOCKS), self.given.get(FLUX_SINGLES)
        if blocks is None and singles is None:
            return None
        if self.given.get(REPEATED):
            raise ValueError("the pipeline's own ControlNet is XLabs', whose residuals cannot be added to others")
        base, family = self.unet, "flux" if self._kind == FLUX else "sd3"
        singly = spread(singles or (), len(getattr(base, "single_transformer_blocks", ())), family)
        return Residuals(spread(blocks or (), len(base.transformer_blocks), family), None, singly)

    def passing(self, total: Residuals, own: Beside | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the call with these residuals. A transformer reads them from its first block on."""
        if own is not None:
            own.wait()
        blocks, singles = list(total.skips) or None, list(total.encoder) or None
        changed = {SD3_BLOCKS: blocks} if self._kind != FLUX else {FLUX_BLOCKS: blocks, FLUX_SINGLES: singles}
        args, kwargs = list(self._args), dict(self._kwargs)
        for name, value in changed.items():
            if name in self._names[: len(args)]:
                args[self._names.index(name)] = value
            else:
                kwargs[name] = value
        return tuple(args), kwargs

"""ControlNets of bases that are transformers, SD3 and Flux: diffusers' own networks, through the same units."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from ..control import Residuals, Step
from .strict import fill

# By base: names that all begin some of a file's, the network in diffusers (0.42), and the transformer that it guides
BASES = {
    "flux": (
        ("controlnet_blocks.", "controlnet_x_embedder.", "x_embedder."),
        "FluxControlNetModel",
        "FluxTransformer2DModel",
    ),
    "sd3": (
        ("controlnet_blocks.", "pos_embed_input.", "transformer_blocks."),
        "SD3ControlNetModel",
        "SD3Transformer2DModel",
    ),
}
NOT = ("txt_norm.",)  # Qwen-Image's


@dataclass(frozen=True, eq=False)
class TransformerStep(Step):
    """One call of a transformer: `given` is what it was called with, by its names. Flux's x is `(B, tokens, C)`."""

    given: Mapping[str, Any] = field(default_factory=dict)


class TransformerControl(nn.Module):
    """A ControlNet `net` of diffusers for the base `family`. Its residuals are those of the blocks as `skips`, those of
    Flux's single blocks as `encoder`, with weight 1."""

    architecture = "controlnet"
    reads_latents = True

    def __init__(self, net: Any, family: str):
        super().__init__()
        self.net, self.family = net, family
        self._compiled = False
        self._counts = 0, 0  # blocks and single blocks of the transformer
        # instantx's SD3 networks were trained without the VAE's shift (pipeline_stable_diffusion_3_controlnet.py)
        self.shifted = not getattr(net.config, "force_zeros_for_pooled_projection", False)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """`net` runs through torch.compile with these arguments, as `ControlNet.compile` has it."""
        self.net.compile(*args, **kwargs)
        self._compiled = True

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    def settle(self, base: Any) -> None:
        """ValueError unless it is for that transformer."""
        kind, wanted = type(base).__name__, BASES[self.family][2]
        if kind != wanted:
            raise ValueError(f"a ControlNet for {self.family} guides a {wanted}, but the model is a {kind}")
        width = "joint_attention_dim"
        theirs, own = base.config[width], self.net.config[width]
        if own is not None and theirs != own:
            raise ValueError(f"the ControlNet reads prompts of width {own}, but the model's have {theirs}")
        self._counts = len(base.transformer_blocks), len(getattr(base, "single_transformer_blocks", ()))
        if self.family == "sd3" and self.net.pos_embed is None:  # SD3.5's large ones have the base's
            self.net.pos_embed = self.net._get_pos_embed_from_transformer(base).to(self.device, self.net.dtype)

    def hint(self, latents: Tensor) -> Tensor:
        """What the network reads of a map's latents `(B, C, h, w)`: for Flux packed, `(B, h w / 4, 4 C)`."""
        like = next(self.net.parameters())
        latents = latents.to(like)
        return packed(latents) if self.family == "flux" else latents

    def forward(self, step: TransformerStep, hint: Tensor) -> Residuals:
        """Residuals of weight 1. A row for each of x's, or one for all, is asked of the hint."""
        like = next(self.net.parameters())
        given = {name: value.to(like) if _floats(value) else value for name, value in step.given.items()}
        if self.family == "sd3" and not self.shifted:
            given["pooled_projections"] = torch.zeros_like(given["pooled_projections"])
        if self.net.config["joint_attention_dim"] is None:
            given["encoder_hidden_states"] = None
        if self.family == "flux" and not self.net.config.guidance_embeds:
            given["guidance"] = None
        elif self.family == "flux" and given.get("guidance") is None:
            raise ValueError("the ControlNet reads the scale of guidance, and the base is not called with one")
        hint = hint.expand(len(step.x), *hint.shape[1:]) if len(hint) == 1 else hint
        made = self.net(controlnet_cond=hint, conditioning_scale=1.0, return_dict=False, **given)
        if self._compiled:  # the next replay of CUDA graphs writes over its results
            made = tuple(None if each is None else [h.clone() for h in each] for each in made)
        blocks, singles = (
            spread(each or (), count, self.family) for each, count in zip((*made, ())[:2], self._counts, strict=True)
        )
        return Residuals(blocks, None, singles)

    def details(self) -> dict[str, Any]:
        """For `controlnet-ext inspect`."""
        return {"network": f"diffusers.{type(self.net).__name__}"}


def spread(samples: Sequence[Tensor], blocks: int, family: str) -> tuple[Tensor, ...]:
    """One for each of the transformer's blocks, of networks that have one for several in a row: which, as the
    transformers themselves have it (diffusers 0.42, transformer_flux.py, transformer_sd3.py)."""
    if not samples:
        return ()
    ratio = blocks / len(samples)
    return tuple(samples[int(i // ceil(ratio) if family == "flux" else i / ratio)] for i in range(blocks))


def packed(latents: Tensor) -> Tensor:
    """Latents `(B, C, h, w)` as Flux's tokens `(B, h w / 4, 4 C)`, each two by two pixels (pipeline_flux.py,
    _pack_latents)."""
    batch, channels, height, width = latents.shape
    tokens = latents.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return tokens.reshape(batch, height * width // 4, 4 * channels)


def detect(names: Collection[str]) -> bool:
    """Whether these are the names of such a network's tensors."""
    return _base(names) is not None


def load(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> TransformerControl:
    """The network with these tensors, which it shares. ValueError without diffusers' config, on a union network, whose
    mode cannot be stated, and on tensors that are missing, unknown, misshapen or not finite."""
    import diffusers

    family = _base(tensors)
    assert family is not None
    name = BASES[family][1]
    if config.get("_class_name") != name:
        raise ValueError(f"needs diffusers' config.json of a {name} beside it: its tensors do not show all settings")
    if config.get("num_mode"):
        raise ValueError("is a union network for Flux, whose kind of map a unit cannot state yet")
    try:
        with torch.device("meta"):
            net = getattr(diffusers, name).from_config(dict(config))
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"config.json makes no {name}: {error}") from error
    if net.config.get("extra_conditioning_channels"):
        raise ValueError("reads a mask beside the picture, which a unit does not give")
    if getattr(net, "input_hint_block", None) is not None:
        raise ValueError("reads the picture itself, in XLabs' way, which nothing here runs")
    fill(net, tensors)
    return TransformerControl(net.eval(), family)


def _base(names: Collection[str]) -> str | None:
    """The base whose network has such names."""
    if any(name.startswith(NOT) for name in names):
        return None
    found = (base for base, (marks, _, _) in BASES.items() if all(any(n.startswith(m) for n in names) for m in marks))
    return next(found, None)


def _floats(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()

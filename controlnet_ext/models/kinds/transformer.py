"""ControlNets for SD3, Flux and Qwen-Image, which are transformers: diffusers' own networks, through the same units."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...errors import one_line
from ...guidance.contract import ControlModel, Residuals, Step
from ..state_dict.strict import load_strict


@dataclass(frozen=True)
class BaseModelSpec:
    """What a base's networks are told by: names that all begin some of a file's. `network` and `transformer` are
    diffusers' (0.42). `packs`: latents are read as tokens."""

    key_prefixes: tuple[str, ...]
    controlnet_class: str
    transformer_class: str
    has_packed_latents: bool


BASE_MODELS = {
    "flux": BaseModelSpec(
        ("controlnet_blocks.", "controlnet_x_embedder.", "x_embedder."),
        "FluxControlNetModel",
        "FluxTransformer2DModel",
        has_packed_latents=True,
    ),
    "sd3": BaseModelSpec(
        ("controlnet_blocks.", "pos_embed_input.", "transformer_blocks."),
        "SD3ControlNetModel",
        "SD3Transformer2DModel",
        has_packed_latents=False,
    ),
    "qwen-image": BaseModelSpec(
        ("controlnet_blocks.", "controlnet_x_embedder.", "txt_norm."),
        "QwenImageControlNetModel",
        "QwenImageTransformer2DModel",
        has_packed_latents=True,
    ),
}
UNION_MARKER_KEY = "controlnet_mode_embedder.weight"  # a tensor of union networks for Flux: flux_union.py


@dataclass(frozen=True, eq=False)
class TransformerStep(Step):
    """One call of a transformer: `given` is what it was called with, by its names. Flux's x is `(B, tokens, C)`."""

    arguments: Mapping[str, Any] = field(default_factory=dict)


class TransformerControlNet(nn.Module, ControlModel):
    """A ControlNet `net` of diffusers for the base `family`. Its residuals are those of the blocks as `skips`, those of
    Flux's single blocks as `encoder`, with weight 1."""

    architecture = "controlnet"
    hint_input: Literal["latents"] = "latents"

    def __init__(self, net: Any, family: str):
        super().__init__()
        self.net, self.family = net, family
        self._is_net_compiled = False
        self._block_counts = 0, 0  # blocks and single blocks of the transformer
        # instantx's SD3 networks were trained without the VAE's shift (pipeline_stable_diffusion_3_controlnet.py)
        self.needs_vae_shift = not getattr(net.config, "force_zeros_for_pooled_projection", False)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """`net` runs through torch.compile with these arguments, as `ControlNet.compile` has it."""
        self.net.compile(*args, **kwargs)
        self._is_net_compiled = True

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    def bind(self, base: Any) -> None:
        """ValueError unless it is for that transformer."""
        check_transformer(self.family, BASE_MODELS[self.family].transformer_class, base)
        theirs, own = base.config["joint_attention_dim"], self.net.config["joint_attention_dim"]
        if own is not None and theirs != own:
            raise ValueError(f"the ControlNet reads prompts of width {own}, but the model's have {theirs}")
        theirs, own = _get_width(base), _get_width(self.net)
        if theirs != own:
            raise ValueError(f"the ControlNet is {own} numbers wide, but the model {theirs}")
        self._block_counts = len(base.transformer_blocks), len(getattr(base, "single_transformer_blocks", ()))
        if self.family == "sd3" and self.net.pos_embed is None:  # SD3.5's large ones have the base's
            self.net.pos_embed = self.net._get_pos_embed_from_transformer(base).to(self.device, self.net.dtype)

    def hint(self, latents: Tensor) -> Tensor:
        """What the network reads of a map's latents `(B, C, h, w)`: of tokens packed, `(B, h w / 4, 4 C)`."""
        like = next(self.net.parameters())
        latents = latents.to(like)
        return pack_latents(latents) if BASE_MODELS[self.family].has_packed_latents else latents

    def forward(self, step: TransformerStep, hint: Tensor) -> Residuals:
        """Residuals of weight 1. A row for each of x's, or one for all, is asked of the hint."""
        return self.compute_residuals(step, hint)

    def compute_residuals(self, step: TransformerStep, hint: Tensor, **extra_arguments: Any) -> Residuals:
        """As `forward`; `more` is what the network is given beside."""
        hint = hint.expand(len(step.x), *hint.shape[1:]) if len(hint) == 1 else hint
        made = self.net(
            controlnet_cond=hint,
            conditioning_scale=1.0,
            return_dict=False,
            **self._build_arguments(step),
            **extra_arguments,
        )
        made = (made,) if self.family == "qwen-image" else made  # one list, for it has no single blocks
        if self._is_net_compiled:  # the next replay of CUDA graphs writes over its results
            made = tuple(None if each is None else [h.clone() for h in each] for each in made)
        blocks, singles = (
            expand_to_blocks(each or (), count, self.family)
            for each, count in zip((*made, ())[:2], self._block_counts, strict=True)
        )
        return Residuals(blocks, None, singles)

    def _build_arguments(self, step: TransformerStep) -> dict[str, Any]:
        """What the network is called with, but for the hint."""
        like = next(self.net.parameters())
        given = {name: value.to(like) if _is_float_tensor(value) else value for name, value in step.arguments.items()}
        if self.family == "sd3" and not self.needs_vae_shift:
            given["pooled_projections"] = torch.zeros_like(given["pooled_projections"])
        if self.net.config["joint_attention_dim"] is None:
            given["encoder_hidden_states"] = None
        if self.family == "flux" and not self.net.config.guidance_embeds:
            given["guidance"] = None
        elif self.family == "flux" and given.get("guidance") is None:
            raise ValueError("the ControlNet reads the scale of guidance, and the base is not called with one")
        return given

    def details(self) -> dict[str, Any]:
        """For `controlnet-ext inspect`."""
        return {"network": f"diffusers.{type(self.net).__name__}"}


def check_transformer(family: str, expected: str, base: Any) -> None:
    """ValueError unless `base` is the transformer of that family's networks."""
    kind = type(base).__name__
    if kind != expected:
        raise ValueError(f"a ControlNet for {family} guides a {expected}, but the model is a {kind}")


def expand_to_blocks(samples: Sequence[Tensor], blocks: int, family: str) -> tuple[Tensor, ...]:
    """One for each of the transformer's blocks, of networks that have one for several in a row: which, as the
    transformers themselves have it (diffusers 0.42, models/transformers)."""
    if not samples:
        return ()
    ratio = blocks / len(samples)
    return tuple(samples[int(i / ratio if family == "sd3" else i // ceil(ratio))] for i in range(blocks))


def pack_latents(latents: Tensor) -> Tensor:
    """Latents `(B, C, h, w)` as tokens `(B, h w / 4, 4 C)` of Flux and Qwen-Image, each two by two pixels
    (pipeline_flux.py, _pack_latents)."""
    batch, channels, height, width = latents.shape
    tokens = latents.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return tokens.reshape(batch, height * width // 4, 4 * channels)


def detect(names: Collection[str]) -> bool:
    """Whether these are the names of such a network's tensors, and of no union's."""
    return _find_base(names) is not None and UNION_MARKER_KEY not in names


def load(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> TransformerControlNet:
    """The network with these tensors, which it shares. ValueError without diffusers' config, and on tensors that are
    missing, unknown, misshapen or not finite."""
    family = _find_base(tensors)
    assert family is not None
    return TransformerControlNet(load_network(tensors, config, family), family)


def load_network(tensors: Mapping[str, Tensor], config: Mapping[str, Any], family: str) -> Any:
    """diffusers' network with these tensors. ValueError as `load`."""
    net = build_network(BASE_MODELS[family].controlnet_class, config, len(tensors))
    if any(net.config.get(name) for name in ("extra_conditioning_channels", "extra_condition_channels")):
        raise ValueError("reads a mask beside the picture, which a unit does not give")
    if getattr(net, "input_hint_block", None) is not None:
        raise ValueError("reads the picture itself, in XLabs' way, which nothing here runs")
    load_strict(net, tensors)
    if family == "qwen-image":  # its positions are no weights, and were made without numbers
        axes = list(net.config["axes_dims_rope"])
        net.pos_embed = type(net.pos_embed)(theta=10000, axes_dim=axes, scale_rope=True)
    return net.eval()


def build_network(name: str, config: Mapping[str, Any], tensor_count: int) -> Any:
    """diffusers' network of that name without its weights, which are so many tensors. ValueError when the config makes
    none."""
    import diffusers

    if config.get("_class_name") != name:
        raise ValueError(f"needs diffusers' config.json of a {name} beside it: its tensors do not show all settings")
    layers = [value for key, value in config.items() if key.endswith("layers") and isinstance(value, int)]
    if any(value > tensor_count for value in layers):
        raise ValueError(f"config.json says {max(layers)} layers, but there are {tensor_count} tensors")
    try:
        with torch.device("meta"):
            return getattr(diffusers, name).from_config(dict(config))
    except (TypeError, ValueError, KeyError, AssertionError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"config.json makes no {name}: {one_line(error, 200)}") from error


def _find_base(names: Collection[str]) -> str | None:
    """The base whose network has such names."""
    found = (
        base for base, its in BASE_MODELS.items() if all(any(n.startswith(m) for n in names) for m in its.key_prefixes)
    )
    return next(found, None)


def _get_width(net: Any) -> int:
    return net.config["num_attention_heads"] * net.config["attention_head_dim"]


def _is_float_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()

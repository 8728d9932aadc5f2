"""ControlNets for SD3, Flux and Qwen-Image, which are transformers: diffusers' own networks as control models."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from operator import attrgetter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import one_line
from ...guidance.contract import ControlModel, Residuals, Step, UNet
from .. import KeyMarkers, ModelKind
from ..base_unet import read_tensor
from ..state_dict.strict import load_strict

if TYPE_CHECKING:
    from diffusers.models.modeling_utils import ModelMixin


@dataclass(frozen=True)
class BaseModelSpec:
    """The networks of one base model.

    `key_prefixes` are beginnings of tensor names, all of which occur in its files. `controlnet_class` and
    `transformer_class` are diffusers' (0.42). With `has_packed_latents` latents are read as tokens.
    """

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
    """One call of a transformer; `arguments` are those of the call by name. x of Flux is `(B, tokens, C)`."""

    arguments: Mapping[str, Any] = field(default_factory=dict)


class TransformerControlNet(nn.Module, ControlModel):
    """A ControlNet `net` of diffusers for the base `family`.

    Its residuals have weight 1: those of the blocks are `skips`, those of Flux's single blocks `encoder`.
    """

    architecture = "controlnet"
    hint_input: Literal["latents"] = "latents"

    def __init__(self, net: ModelMixin, family: str):
        super().__init__()
        self.net, self.family = net, family
        self._is_net_compiled = False
        self._block_counts = 0, 0  # blocks and single blocks of the transformer
        # instantx's SD3 networks were trained without the VAE's shift (pipeline_stable_diffusion_3_controlnet.py)
        self.needs_vae_shift = not getattr(net.config, "force_zeros_for_pooled_projection", False)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Run `net` through torch.compile with these arguments, like `ControlNet.compile`."""
        self.net.compile(*args, **kwargs)
        self._is_net_compiled = True

    @property
    def device(self) -> torch.device:
        """The device on which it computes, wherever its weights are offloaded."""
        return self.net.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which it computes, whatever its weights are stored in (layerwise casting, quantization)."""
        return self.net.dtype

    def bind(self, base: UNet) -> None:
        """Bind to a transformer. Raises ValueError if the network is for another one."""
        transformer = check_transformer(self.family, BASE_MODELS[self.family].transformer_class, base)
        theirs, own = transformer.config["joint_attention_dim"], self.net.config["joint_attention_dim"]
        if own is not None and theirs != own:
            raise ValueError(f"the ControlNet reads prompts of width {own}, but the model's have {theirs}")
        theirs, own = _get_width(transformer), _get_width(self.net)
        if theirs != own:
            raise ValueError(f"the ControlNet is {own} numbers wide, but the model {theirs}")
        self._block_counts = (
            len(transformer.transformer_blocks),
            len(getattr(transformer, "single_transformer_blocks", ())),
        )
        if self.family == "sd3" and self.net.pos_embed is None:  # SD3.5's large ones have the base's
            self.net.pos_embed = self._copy_pos_embed(transformer)

    def _copy_pos_embed(self, transformer: Any) -> Any:
        """Return a copy of SD3's embedding of patches, whose layer may be quantized."""
        own = transformer.pos_embed
        tensors = {name: tensor for name, tensor in own.state_dict().items() if not name.startswith("proj.")}
        tensors |= {f"proj.{part}": read_tensor(own.proj, part) for part in ("weight", "bias")}
        plain = SimpleNamespace(
            config=transformer.config,
            inner_dim=transformer.inner_dim,
            pos_embed=SimpleNamespace(state_dict=lambda: tensors),
        )
        return self.net._get_pos_embed_from_transformer(plain).to(self.device, self.dtype)

    def hint(self, image: np.ndarray | Tensor) -> Tensor:
        """Return the network's input for a map's latents `(B, C, h, w)`; packed as tokens, `(B, h w / 4, 4 C)`."""
        latents = torch.as_tensor(image).to(self.device, self.dtype)
        return pack_latents(latents) if BASE_MODELS[self.family].has_packed_latents else latents

    def forward(self, step: TransformerStep, hint: Tensor) -> Residuals:
        """Return residuals of weight 1; the hint has a row for each of x's, or one for all."""
        return self.compute_residuals(step, hint)

    def compute_residuals(self, step: TransformerStep, hint: Tensor, **extra_arguments: Any) -> Residuals:
        """Return residuals for a hint `(B, ...)`, with `extra_arguments` for the network."""
        hint = hint.expand(len(step.x), *hint.shape[1:]) if len(hint) == 1 else hint
        outputs = self.net(
            controlnet_cond=hint,
            conditioning_scale=1.0,
            return_dict=False,
            **self._build_arguments(step),
            **extra_arguments,
        )
        outputs = (outputs,) if self.family == "qwen-image" else outputs  # one list, for it has no single blocks
        if self._is_net_compiled:  # the next replay of CUDA graphs writes over its results
            outputs = tuple(None if each is None else [h.clone() for h in each] for each in outputs)
        blocks, singles = (
            expand_to_blocks(each or (), count, self.family)
            for each, count in zip((*outputs, ())[:2], self._block_counts, strict=True)
        )
        return Residuals(blocks, None, singles)

    def _build_arguments(self, step: TransformerStep) -> dict[str, Any]:
        """Return the arguments of the network, except for the hint."""
        device, dtype = self.device, self.dtype
        arguments = {
            name: value.to(device, dtype) if _is_float_tensor(value) else value
            for name, value in step.arguments.items()
        }
        if self.family == "sd3" and not self.needs_vae_shift:
            arguments["pooled_projections"] = torch.zeros_like(arguments["pooled_projections"])
        if self.net.config["joint_attention_dim"] is None:
            arguments["encoder_hidden_states"] = None
        if self.family == "flux" and not self.net.config.guidance_embeds:
            arguments["guidance"] = None
        elif self.family == "flux" and arguments.get("guidance") is None:
            raise ValueError("the ControlNet reads the scale of guidance, and the base is not called with one")
        return arguments

    def details(self) -> dict[str, Any]:
        """Return the facts for `controlnet-ext inspect`."""
        return {"network": f"diffusers.{type(self.net).__name__}"}


def check_transformer(family: str, expected: str, base: UNet) -> ModelMixin:
    """Return `base`, the transformer of that family's networks. Raises ValueError if it is none."""
    kind = type(base).__name__
    if kind != expected:
        raise ValueError(f"a ControlNet for {family} guides a {expected}, but the model is a {kind}")
    return cast("ModelMixin", base)


def expand_to_blocks(samples: Sequence[Tensor], blocks: int, family: str) -> tuple[Tensor, ...]:
    """Return one residual for each block of the transformer, given one for several blocks in a row.

    The mapping is that of the transformers themselves (diffusers 0.42, models/transformers).
    """
    if not samples:
        return ()
    ratio = blocks / len(samples)
    return tuple(samples[int(i / ratio if family == "sd3" else i // ceil(ratio))] for i in range(blocks))


def pack_latents(latents: Tensor) -> Tensor:
    """Return latents `(B, C, h, w)` as tokens `(B, h w / 4, 4 C)` of Flux and Qwen-Image, each of 2x2 latents.

    Source: diffusers 0.42, pipeline_flux.py, _pack_latents.
    """
    batch, channels, height, width = latents.shape
    tokens = latents.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return tokens.reshape(batch, height * width // 4, 4 * channels)


detect = KeyMarkers.from_prefixes(map(attrgetter("key_prefixes"), BASE_MODELS.values()), none_of=UNION_MARKER_KEY)


def load(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> TransformerControlNet:
    """Return the network with these tensors, which it shares.

    Raises ValueError without diffusers' config, and on tensors that are missing, unknown, misshapen or not finite.
    """
    family = _find_base(tensors)
    assert family is not None
    return TransformerControlNet(load_network(tensors, config, family), family)


KIND = ModelKind("transformer", detect, load)


def load_network(tensors: Mapping[str, Tensor], config: Mapping[str, Any], family: str) -> Any:
    """Return diffusers' network with these tensors. Raises ValueError like `load`."""
    net = build_network(BASE_MODELS[family].controlnet_class, config, len(tensors))
    if any(net.config.get(name) for name in ("extra_conditioning_channels", "extra_condition_channels")):
        raise ValueError("reads a mask beside the image, which a unit does not give")
    if getattr(net, "input_hint_block", None) is not None:
        raise ValueError("reads the image itself, in XLabs' way, which nothing here runs")
    load_strict(net, tensors)
    if family == "qwen-image":  # its positions are no weights, and were made without numbers
        axes = list(net.config["axes_dims_rope"])
        net.pos_embed = type(net.pos_embed)(theta=10000, axes_dim=axes, scale_rope=True)
    return net.eval()


def build_network(name: str, config: Mapping[str, Any], tensor_count: int) -> Any:
    """Return diffusers' network of that name without its weights, which are `tensor_count` tensors.

    Raises ValueError if the config makes none.
    """
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
    """Return the base model whose networks have such names."""
    bases = (
        base for base, its in BASE_MODELS.items() if all(any(n.startswith(m) for n in names) for m in its.key_prefixes)
    )
    return next(bases, None)


def _get_width(net: ModelMixin) -> int:
    return int(net.config["num_attention_heads"] * net.config["attention_head_dim"])


def _is_float_tensor(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()

"""Control-LoRA (Stability AI): a ControlNet stored as low-rank differences from the encoder of the UNet it guides.

The UNet's weights are shared with it, not copied; its own tensors are those of the file.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import copy
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ...guidance.contract import Residuals, Step, UNet
from .. import KeyMarkers, ModelKind
from .. import base_unet as source
from ..nn.blocks import apply_layer, cast_like
from ..nn.execution import CompilableBlocks, with_pooling_for
from ..state_dict import ldm_keys
from ..state_dict.architecture import ControlNetConfig
from ..state_dict.compatibility import UNetSignature, incompatibility
from ..state_dict.ldm_keys import CONTROL_MODEL_PREFIX, DIFFUSERS_MARKER_KEY
from ..state_dict.strict import check_names, check_values
from .controlnet import ControlNet, create_hint_tensors

MARKER_KEY = "lora_controlnet"  # an empty tensor in every such file
LAYER_PARTS = ("weight", "bias", "up", "down")
CONTROL_PREFIXES = (
    "controlnet_cond_embedding.",
    "controlnet_down_blocks.",
    "controlnet_mid_block.",
)  # what UNets have not


TENSORS_PREFIX = "tensors."  # of all names in the state dict


def to_file_keys(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a network's state dict under the names of Stability's files, which are ldm's."""
    tensors_by_name = {name.removeprefix(TENSORS_PREFIX).replace("/", "."): tensor for name, tensor in tensors.items()}
    return {**ldm_keys.to_ldm_keys(tensors_by_name), MARKER_KEY: torch.zeros(0)}


class ControlLora(CompilableBlocks):
    """A ControlNet whose weights are W + up·down, with W of the UNet, computed layer by layer when they are needed.

    The memory it needs beyond the file is one layer's weights. `bind(unet)` selects the UNet; LoRAs on it are left
    out. W follows to the device of x where the UNet is offloaded as a whole. It computes in the dtype of the file.
    """

    architecture = "control-lora"
    LAYOUTS: ClassVar[Mapping[str, Callable[[Mapping[str, Tensor]], dict[str, Tensor]]]] = {"ldm": to_file_keys}

    def __init__(self, tensors: Mapping[str, Tensor], config: Mapping[str, Any]):
        super().__init__()
        self._parameter_keys = {name: name.replace(".", "/") for name in tensors}  # which torch allows
        self.tensors = nn.ParameterDict(
            {self._parameter_keys[name]: nn.Parameter(t, False) for name, t in tensors.items()}
        )
        self.unet_signature = _infer_signature(tensors)
        self.family = self.unet_signature.family
        self._stated_config = dict(config)
        self.global_average_pooling = config.get("global_pool_conditions")
        self._built: tuple[Callable[[], Any], ControlNet] | None = None  # for which UNet

    @classmethod
    def from_unet(cls, unet: UNet, rank: int, in_channels: int | None = None) -> ControlLora:
        """Return the Control-LoRA to train beside a diffusers UNet, in float32; it is not bound yet.

        It stands for `ControlNet.from_unet`: up is zero and all residuals are exactly 0. As in Stability's files, the
        matrices of the UNet have factors of `rank`, or of their smaller side (ComfyUI, ControlLoraSave); all else is
        whole. `down` and the hint encoder are drawn from torch's global generator. `in_channels` of x are read, by
        default all. Raises ValueError where the UNet's weights cannot be read.
        """
        tensors: dict[str, Tensor] = {}
        for name, tensor in source.get_encoder_tensors(unet).items():
            tensor = tensor[:, :in_channels] if name == "conv_in.weight" else tensor
            tensors |= _create_factors(name, tensor, rank)
        like = torch.zeros(unet.config["block_out_channels"][0], device=tensors["conv_in.down"].device)
        signature = UNetSignature.from_unet(unet)
        zeros = {f"controlnet_down_blocks.{i}": width for i, width in enumerate(signature.skip_channels)}
        for name, width in {**zeros, "controlnet_mid_block": signature.middle_channels}.items():
            tensors |= {f"{name}.weight": like.new_zeros(width, width, 1, 1), f"{name}.bias": like.new_zeros(width)}
        return cls({**tensors, **create_hint_tensors(like)}, {}).eval()

    def bind(self, unet: UNet) -> None:
        """Build the network on this diffusers UNet's weights, unless that is done or the UNet has none.

        Raises ValueError if it does not fit, or tensors of the file are missing or unknown.
        """
        unet = getattr(unet, "_orig_mod", unet)
        reason = incompatibility(self.unet_signature, UNetSignature.from_unet(unet))
        if reason:
            raise ValueError(reason)
        if source.is_empty(unet):
            return
        # also where it is built already: a LoRA may have been fused since
        encoder_shapes = source.get_encoder_shapes(unet)
        first = source.get_layer(unet, "conv_in")  # tells UNets apart, whatever shows them
        if self._built is None or self._built[0]() is not first:
            self._built = weakref.ref(first), self._build(unet, encoder_shapes)

    def check_compatible(self, unet: UNet) -> None:
        """Check that this network fits a UNet, building nothing. Raises ValueError if it does not."""
        if reason := incompatibility(self.unet_signature, UNetSignature.from_unet(unet)):
            raise ValueError(reason)

    def _build(self, unet: UNet, encoder_shapes: dict[str, Tensor]) -> ControlNet:
        own = {name: self.tensors[key] for name, key in self._parameter_keys.items()}
        encoder_shapes["conv_in.weight"] = encoder_shapes["conv_in.weight"][
            :, : self.unet_signature.in_channels
        ]  # of an inpainting UNet
        config = {**source.get_unet_config(unet), **self._stated_config, "num_attention_heads": None}
        config["attention_head_dim"] = source.get_heads(unet)
        whole = {name: tensor for name, tensor in own.items() if not name.endswith((".up", ".down"))}
        with torch.device("meta"):
            net = ControlNet(ControlNetConfig.from_tensors({**whole, **encoder_shapes}, config)).eval()
        missing, used = [], set()
        for name, layer in [(name, module) for name, module in net.named_modules() if module._parameters]:
            parts = {part: own[f"{name}.{part}"] for part in LAYER_PARTS if f"{name}.{part}" in own}
            used |= {f"{name}.{part}" for part in parts}
            lacking = [part for part, _ in layer.named_parameters() if part not in parts]
            missing += [f"{name}.{part}" for part in lacking if f"{name}.{part}" not in encoder_shapes]
            if not missing:
                _check_shapes(name, layer, parts)
                parent, _, last = name.rpartition(".")
                base = source.get_layer(unet, name) if lacking else None
                setattr(net.get_submodule(parent), last, LoraLayer(layer, base, parts))
        check_names(missing, [name for name in own if name not in used])
        return net

    def for_map_types(self, kinds: Sequence[str | None]) -> ControlLora:
        """Return this network for maps of these kinds, like `ControlNet.for_map_types`."""
        return with_pooling_for(self, kinds)

    def hint(self, image: np.ndarray | Tensor) -> Tensor:
        """Return the embedded hint `(B, C, H/8, W/8)` of an image, like `ControlNet.hint`."""
        net = self._get_net()
        return (net if self.stream_device is None else net.stream_to(self.stream_device)).hint(image)

    def forward(self, step: Step, hint: Tensor) -> Residuals:
        """Return residuals, like `ControlNet.forward`.

        Raises ValueError if the UNet is gone, or its weights are offloaded piece by piece.
        """
        net = copy(self._get_net())
        net.block_runner = self.block_runner
        net.global_average_pooling = self.global_average_pooling
        residuals: Residuals = net(step, hint)
        return residuals

    def iter_parts(self) -> Iterator[nn.Module]:
        """Yield the modules that compute: those of the network that was built on a UNet."""
        yield from self._get_net().modules()

    def _get_net(self) -> ControlNet:
        if self._built is None:
            raise ValueError("a Control-LoRA works on the weights of a UNet: bind(unet) comes first")
        return self._built[1]

    def details(self) -> dict[str, Any]:
        """Return the facts for `controlnet-ext inspect`."""
        ranks = [self.tensors[key].shape[0] for name, key in self._parameter_keys.items() if name.endswith(".down")]
        return {
            "base": self.unet_signature.label,
            "rank": max(ranks, default=0),
            "needs": "the encoder of the UNet it guides",
        }


class LoraLayer(nn.Module):
    """A layer with the `weight` and `bias` of the file, or the UNet's where it has none, and up·down added."""

    def __init__(self, layer: nn.Module, base: nn.Module | None, parts: Mapping[str, Tensor]):
        super().__init__()
        self.layer = layer  # without weights: on torch's meta device
        self.weight, self.bias = parts.get("weight"), parts.get("bias")
        self.up, self.down = parts.get("up"), parts.get("down")
        self._base = None if base is None else weakref.ref(base)
        self._has_bias = layer.bias is not None

    def forward(self, x: Tensor) -> Tensor:
        weight = self._get_tensor("weight", x)
        if self.up is not None and self.down is not None:
            up, down = cast_like(self.up, x).flatten(1), cast_like(self.down, x).flatten(1)
            weight = torch.addmm(cast_like(weight, x).flatten(1), up, down).reshape(weight.shape)
        return apply_layer(self.layer, x, weight, self._get_tensor("bias", x) if self._has_bias else None)

    def _get_tensor(self, part: str, x: Tensor) -> Tensor:
        own: Tensor | None = getattr(self, part)
        if own is not None:
            return own
        base = self._base and self._base()
        if base is None:
            raise ValueError("the UNet that the Control-LoRA was settled on is gone")
        tensor = source.read_tensor(base, part)
        if part == "weight" and isinstance(self.layer, nn.Conv2d):
            tensor = tensor[:, : self.layer.in_channels]
        return cast_like(tensor, x)


def _create_factors(name: str, weight: Tensor, rank: int) -> dict[str, Tensor]:
    """Return what a fresh Control-LoRA has of a tensor of the UNet: factors of zero for a matrix, else a copy."""
    if weight.ndim < 2:
        return {name: weight.detach().to(torch.float32, copy=True)}
    stem, like = name.removesuffix(".weight"), weight.new_empty(0, dtype=torch.float32)
    rank = min(rank, *weight.shape[:2])
    down = like.new_empty(rank, *weight.shape[1:])
    nn.init.kaiming_uniform_(down, a=5**0.5)  # as peft and torch.nn.Linear
    return {f"{stem}.up": like.new_zeros(weight.shape[0], rank, *[1] * (weight.ndim - 2)), f"{stem}.down": down}


def _check_shapes(name: str, layer: nn.Module, parts: Mapping[str, Tensor]) -> None:
    for part, parameter in layer.named_parameters():
        if part in parts and parts[part].shape != parameter.shape:
            raise ValueError(f"tensor {name}.{part} is {list(parts[part].shape)}, expected {list(parameter.shape)}")
        if part == "weight" and "up" in parts:
            sizes = [parts["up"].shape[0], parts["down"][0].numel()]
            if sizes != [parameter.shape[0], parameter[0].numel()]:
                raise ValueError(f"tensors {name}.up and .down make {sizes} of {list(parameter.shape)}")


detect = KeyMarkers(((re.escape(MARKER_KEY),),))


def layout(names: Collection[str]) -> str:
    """Return the layout of these names, "diffusers" or "ldm"; Control-LoRAs are published in ldm's."""
    return "diffusers" if DIFFUSERS_MARKER_KEY in names else "ldm"


def load(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> ControlLora:
    """Return the Control-LoRA with these tensors, which it shares.

    Raises ValueError if factors do not belong together, or values are not finite.
    """
    tensors = {
        name.removeprefix(CONTROL_MODEL_PREFIX): tensor for name, tensor in tensors.items() if name != MARKER_KEY
    }
    if DIFFUSERS_MARKER_KEY not in tensors:
        tensors = ldm_keys.to_diffusers_keys(tensors)
    check_names([], [name for name in tensors if not name.startswith((*source.ENCODER_PREFIXES, *CONTROL_PREFIXES))])
    for name, tensor in tensors.items():
        check_values(name, tensor)
    for name in [name for name in tensors if name.endswith((".up", ".down"))]:
        stem = name.rpartition(".")[0]
        up, down = tensors.get(f"{stem}.up"), tensors.get(f"{stem}.down")
        if up is None or down is None:
            raise ValueError(f"tensor {name} has no counterpart")
        if up.ndim < 2 or down.ndim < 2 or up[0].numel() != down.shape[0]:
            raise ValueError(f"tensors {stem}.up {list(up.shape)} and .down {list(down.shape)} are no factors")
    return ControlLora(tensors, config).eval()


KIND = ModelKind("control_lora", detect, load, layout)


def _infer_signature(tensors: Mapping[str, Tensor]) -> UNetSignature:
    """Return the shapes of the UNet it is made for, as far as the file shows them."""

    def width(name: str | None, axis: int = 1) -> int | None:
        tensor = next((tensors[f"{name}.{part}"] for part in ("down", "weight") if f"{name}.{part}" in tensors), None)
        return None if tensor is None or tensor.ndim <= axis else tensor.shape[axis]

    zeros = [name for name in tensors if name.startswith("controlnet_down_blocks.") and name.endswith(".weight")]
    skips = [width(f"controlnet_down_blocks.{i}", 0) for i in range(len(zeros))]
    channels, middle = width("conv_in"), width("controlnet_mid_block", 0)
    if channels is None or middle is None or not skips or None in skips:
        raise ValueError("tensors of the first layer or of the zero convolutions are missing")
    attention = next((name.rpartition(".")[0] for name in tensors if ".attn2.to_k." in name), None)
    return UNetSignature(
        in_channels=channels,
        context_width=width(attention),
        added_width=width("add_embedding.linear_1"),
        skip_channels=tuple(skip for skip in skips if skip is not None),
        middle_channels=middle,
    )

"""ControlNet (Zhang et al., arXiv:2302.05543): a copy of the UNet's encoder that reads a map and adds to the skips.

Also the copy of a UNet with which training begins, and ControlNets stored as the difference from their UNet.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ...guidance.contract import Residuals, Step, UNet
from .. import KeyMarkers, ModelKind
from .. import base_unet as source
from ..nn.blocks import BlockDims, Conv2d, EncoderLevel, MiddleBlock
from ..nn.embeddings import (
    HintEncoder,
    TimestepEmbedding,
    check_hint_size,
    expand_hint,
    expand_rows,
    get_timestep_embedding,
    to_hint_channels,
)
from ..nn.execution import CompilableBlocks, with_pooling_for
from ..state_dict import ldm_keys
from ..state_dict.architecture import ControlNetConfig, apply_unet_heads
from ..state_dict.compatibility import UNetSignature, incompatibility
from ..state_dict.ldm_keys import CONTROL_MODEL_PREFIX, DIFFUSERS_MARKER_KEY, LDM_MARKER_KEY, ZERO_CONV_KEYS
from ..state_dict.strict import FLOAT8_DTYPES, load_strict


def copy_encoder_tensors(unet: UNet, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Return copies of the encoder's tensors in `dtype`, and those of a new hint encoder.

    None means their own dtype, or float32 for those that are stored in float8, in which nothing is trained.

    The hint encoder is drawn from torch's global generator, its last layer is zero.
    """
    tensors = {}
    for name, t in source.get_encoder_tensors(unet).items():
        own = torch.float32 if t.dtype in FLOAT8_DTYPES else t.dtype
        tensors[name] = t.detach().to(dtype or own, copy=True)
    return tensors | create_hint_tensors(tensors["conv_in.weight"])


def create_hint_tensors(like: Tensor) -> dict[str, Tensor]:
    """Return the tensors of a new hint encoder, on the device and in the dtype of a UNet's first weight `(C, …)`.

    They are drawn from torch's global generator, the last layer is zero.
    """
    hint = HintEncoder((3, 16, 32, 96, 256), like.shape[0])
    for parameter in hint.conv_out.parameters():
        nn.init.zeros_(parameter)
    return {f"controlnet_cond_embedding.{name}": t.to(like) for name, t in hint.state_dict().items()}


DIFFERENCE_KEY = (
    "difference"  # a tensor that marks such files (sd-webui-controlnet @ 56cec5b, extract_controlnet_diff.py)
)


class WeightDifference:
    """The state of a ControlNet whose weights are a difference, to which a UNet's must be added once."""

    def __init__(self) -> None:
        self._bound_unet: Callable[[], Any] | None = None

    def check_bound(self) -> None:
        """Raise ValueError if the UNet's weights are not added yet."""
        if self._bound_unet is None:
            raise ValueError("holds a ControlNet minus a UNet; the weights of the UNet it was made from are missing")

    @torch.no_grad()
    def bind(self, net: ControlNet, unet: UNet) -> None:
        """Add the UNet's weights to those of the network with the same names, in float32.

        Raises ValueError if another UNet's are added already, or the UNet lacks some or cannot give them.
        """
        first = source.get_layer(unet, "conv_in")  # tells UNets apart, whatever shows them
        if self._bound_unet is not None:
            if self._bound_unet() is not first:
                raise ValueError("a difference that was added to another model's weights; load it once more for this")
            return
        own = {name: p for name, p in net.named_parameters() if name.startswith(source.ENCODER_PREFIXES)}
        tensors = source.get_encoder_tensors(unet)
        missing = [name for name in own if name not in tensors]
        if missing:
            raise ValueError(f"the UNet has no {missing[0]} to which the difference could be added")
        self._bound_unet = lambda: None  # what is interrupted here has to be loaded once more
        for name, parameter in own.items():
            tensor = tensors[name]
            if name == "conv_in.weight":
                tensor = tensor[:, : net.net_config.in_channels]  # of an inpainting UNet
            parameter.data = (parameter.float() + tensor.to(parameter.device).float()).to(parameter.dtype)
        self._bound_unet = weakref.ref(first)


class ControlNet(CompilableBlocks):
    """Residuals for each skip and the middle block of a frozen UNet, from x, the prompt and a map.

    It is equal to the bit to `diffusers.ControlNetModel`, and has the same names of submodules.

    Weights do not show the number of attention heads. Without a config, `bind` takes it from the UNet; until then it
    is that of the published models (`ControlNetConfig.default_heads`). Nor do they show `global_average_pooling`,
    which the published shuffle ControlNet needs: None, if no file states it, turns it on for maps of the kind
    "shuffle".

    The weights of a `difference` file are added to the UNet's by `bind`, once.

    Weights stored in float8 stay so; they compute in the dtype of x, others in their own.
    """

    architecture = "controlnet"
    LAYOUTS: ClassVar[Mapping[str, Callable[[Mapping[str, Tensor]], dict[str, Tensor]]]] = {
        "diffusers": dict,
        "ldm": ldm_keys.to_ldm_keys,
    }

    def __init__(self, net_config: ControlNetConfig):
        super().__init__()
        self.net_config = net_config
        self.unet_signature = net_config.unet_signature
        self.family = self.unet_signature.family
        self.global_average_pooling = net_config.global_average_pooling
        self._has_borrowed_heads = False  # whether plan.heads and plan.groups come from a UNet
        self.difference: WeightDifference | None = None
        first, last = net_config.widths[0], len(net_config.widths) - 1
        common = BlockDims(
            4 * first, net_config.context_width or 1, net_config.norm_groups, net_config.has_linear_projection
        )
        heads = net_config.heads or net_config.default_heads
        self.conv_in = Conv2d(net_config.in_channels, first, 3, padding=1)
        self.time_embedding = TimestepEmbedding(first, common.time_width)
        self.add_embedding = (
            None if net_config.added_width is None else TimestepEmbedding(net_config.added_width, common.time_width)
        )
        self.controlnet_cond_embedding: nn.Module = HintEncoder(net_config.hint_channels, first)
        self.down_blocks = nn.ModuleList()
        for i, (width, resnets) in enumerate(zip(net_config.widths, net_config.resnets_per_level, strict=True)):
            widths = [net_config.widths[max(i - 1, 0)]] + [width] * resnets
            self.down_blocks.append(
                EncoderLevel(widths, net_config.transformer_depths[i], heads[i], common, is_last=i == last)
            )
        self.mid_block = MiddleBlock(net_config.widths[-1], net_config.middle_depth, heads[-1], common)
        self.controlnet_down_blocks = nn.ModuleList(Conv2d(c, c, 1) for c in self.unet_signature.skip_channels)
        self.controlnet_mid_block = Conv2d(self.unet_signature.middle_channels, self.unet_signature.middle_channels, 1)

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> ControlNet:
        """Return the ControlNet with these tensors, which it shares.

        They are in ldm's layout (with or without `control_model.`) or diffusers'. `config`, in diffusers' words,
        states settings that tensors do not show. Raises ValueError on tensors that are missing, unknown, misshapen or
        not finite.
        """
        difference = WeightDifference() if DIFFERENCE_KEY in tensors else None
        tensors = {name: tensor for name, tensor in ldm_keys.strip_prefix(tensors).items() if name != DIFFERENCE_KEY}
        ldm = DIFFUSERS_MARKER_KEY not in tensors
        if ldm:
            tensors = ldm_keys.to_diffusers_keys(tensors)
        with torch.device("meta"):
            net = cls(ControlNetConfig.from_tensors(tensors, config or {}))
        load_strict(
            net,
            tensors,
            dict(zip(net.state_dict(), ldm_keys.to_ldm_keys(net.state_dict()), strict=True)) if ldm else {},
        )
        net.difference = difference
        return net.eval()

    @classmethod
    def from_unet(cls, unet: UNet, dtype: torch.dtype | None = None, in_channels: int | None = None) -> ControlNet:
        """Return the ControlNet to train beside a diffusers UNet.

        It is a copy of the encoder, with a hint encoder drawn from torch's global generator and zero convolutions, so
        that all residuals are exactly 0. Weights under a LoRA are the base's. `dtype` None keeps the UNet's, and makes
        float8 float32. `in_channels` of x are read, by default all. Raises ValueError on a UNet with settings that
        ControlNets do not have, or with a fused LoRA.
        """
        tensors = copy_encoder_tensors(unet, dtype)
        like = tensors["conv_in.weight"] = tensors["conv_in.weight"][:, :in_channels].contiguous()
        with torch.device("meta"):
            net = cls(ControlNetConfig.from_tensors(tensors, source.get_unet_config(unet)))
        for name, t in net.state_dict().items():
            if name.startswith(("controlnet_down_blocks.", "controlnet_mid_block.")):
                tensors[name] = torch.zeros(t.shape, dtype=like.dtype, device=like.device)
        load_strict(net, tensors)
        return net

    @property
    def device(self) -> torch.device:
        """The device on which it computes."""
        return self.stream_device or self.controlnet_mid_block.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its weights."""
        return self.controlnet_mid_block.weight.dtype

    def bind(self, unet: UNet) -> None:
        """Check that this network fits a diffusers UNet, and take from it what the file does not state.

        That is heads and groups without a config, and the weights of a difference file. Binding again to a UNet of the
        same shape changes nothing. Raises ValueError with the reason if it does not fit.
        """
        reason = incompatibility(self.unet_signature, UNetSignature.from_unet(unet))
        if reason:
            raise ValueError(reason)
        if self.net_config.heads is None or self._has_borrowed_heads:
            self.net_config = apply_unet_heads(self, unet, is_rebind=self._has_borrowed_heads)
            self._has_borrowed_heads = True
        if self.difference is not None and not source.is_empty(unet):
            self.difference.bind(self, getattr(unet, "_orig_mod", unet))

    def check_compatible(self, unet: UNet) -> None:
        """Check that this network fits a UNet, adding nothing to the weights. Raises ValueError if it does not."""
        if self.difference is None:
            self.bind(unet)
        elif reason := incompatibility(self.unet_signature, UNetSignature.from_unet(unet)):
            raise ValueError(reason)

    def for_map_types(self, kinds: Sequence[str | None]) -> ControlNet:
        """Return this network for maps of these kinds (None: unknown).

        Residuals are averaged for maps of the kind "shuffle" if `global_average_pooling` is None.
        """
        return with_pooling_for(self, kinds)

    def hint(self, image: np.ndarray | Tensor) -> Tensor:
        """Return the embedded hint `(B, C, H/8, W/8)` of an RGB image at the size of the output.

        `image` is uint8 `(H, W, 3)` or `(B, H, W, 3)`, or float `(B, 3, H, W)` in 0..1 (inpainting ControlNets: -1
        where to repaint). A network that reads 4 channels takes the latter as colors, black where to repaint, and a
        mask, 1 there; or float `(B, 4, H, W)` as it is. Nothing is resized: raises ValueError unless both sides are
        multiples of 8.
        """
        pixels = to_hint_channels(image, self.net_config.hint_channels[0])
        check_hint_size(pixels, 2 ** (len(self.net_config.hint_channels) - 2))
        dtype = torch.float32 if self.dtype in FLOAT8_DTYPES else self.dtype
        out: Tensor = self.controlnet_cond_embedding(pixels.to(self.device, dtype))
        return out

    def forward(self, step: Step, hint: Tensor) -> Residuals:
        """Return residuals of weight 1 in the dtype of `step.x`, for a `hint` that `hint()` made.

        The hint has one entry for all rows of x, one for each image or one for each row. Of an inpainting UNet's x the
        first channels, which are the latents, are read.
        """
        return self.encode(step, lambda x: x + expand_hint(hint, x, step))

    def encode(
        self, step: Step, add_hint: Callable[[Tensor], Tensor], extra_embedding: Tensor | None = None
    ) -> Residuals:
        """Return residuals for an embedded x to which `add_hint` adds the map.

        `extra_embedding` `(B, C)` is added to the time embedding. Raises ValueError if the step lacks the added vector
        of SDXL, or the UNet's weights are not added to those of a difference file.
        """
        if self.difference is not None:
            self.difference.check_bound()
        dtype = step.x.dtype if self.dtype in FLOAT8_DTYPES else self.dtype
        context = expand_rows("prompts", step.context.to(dtype), step)
        time = get_timestep_embedding(expand_rows("timesteps", step.t, step), self.net_config.widths[0])
        time = self.time_embedding(time.to(dtype))
        time = time if extra_embedding is None else time + extra_embedding.to(dtype)
        if self.add_embedding is not None:
            if step.added is None:
                raise ValueError("an SDXL ControlNet needs the step's added vector (pooled prompt and sizes)")
            time = time + self.add_embedding(expand_rows("added vectors", step.added.to(dtype), step))
        x = add_hint(self.conv_in(step.x[:, : self.net_config.in_channels].to(dtype)))
        outputs = self.block_runner(self, x, time, context, step.frames)
        if self.global_average_pooling:
            outputs = [output.mean(dim=(2, 3), keepdim=True) for output in outputs]
        *skips, middle = (output.to(step.x.dtype) for output in outputs)
        return Residuals(tuple(skips), middle)

    def config(self) -> dict[str, Any]:
        """Return the config of the same `diffusers.ControlNetModel`. Raises ValueError if that class cannot be it."""
        return self._current_config().config()

    def unstored_config(self) -> dict[str, Any]:
        """Return the settings that its tensors do not show, in diffusers' words."""
        return self._current_config().unstored_config()

    def details(self) -> dict[str, Any]:
        """Return the facts for `controlnet-ext inspect`."""
        plan, is_pooled = self.net_config, self.global_average_pooling
        return {
            "base": self.unet_signature.label,
            "transformer blocks": " ".join(
                map(str, (*(max(level, default=0) for level in plan.transformer_depths), plan.middle_depth))
            ),
            "heads": " ".join(map(str, plan.heads or plan.default_heads))
            + (" (stated)" if plan.heads else " (likely)"),
            "hint channels": plan.hint_channels[0],
            "global average pooling": {True: "on", False: "off", None: "unstated, on for shuffle maps"}[is_pooled],
        } | ({"difference": "to be added to the UNet it was made from"} if self.difference is not None else {})

    def _current_config(self) -> ControlNetConfig:
        """Return the config with the one setting that may be changed on the network, which has all its weights."""
        if self.difference is not None:
            self.difference.check_bound()
        return replace(self.net_config, global_average_pooling=self.global_average_pooling)


# Control-LoRAs, unions and SparseCtrl have the same hint encoder
detect = KeyMarkers(
    (
        (
            f"({re.escape(CONTROL_MODEL_PREFIX)})?({re.escape(LDM_MARKER_KEY)}|{re.escape(DIFFUSERS_MARKER_KEY)})",
            f"({re.escape(CONTROL_MODEL_PREFIX)})?({'|'.join(map(re.escape, ZERO_CONV_KEYS))})",
        ),
    ),
    none_of=rf"({re.escape(CONTROL_MODEL_PREFIX)})?(task_embedding|lora_controlnet)|.*\.motion_modules\..*",
)


def layout(names: Collection[str]) -> str:
    """Return the layout of these names, "diffusers" or "ldm"."""
    return "diffusers" if DIFFUSERS_MARKER_KEY in names else "ldm"


load = ControlNet.load
KIND = ModelKind("controlnet", detect, load, layout)

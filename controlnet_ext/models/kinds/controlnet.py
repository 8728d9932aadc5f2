"""ControlNet (Zhang et al., arXiv:2302.05543): a trainable copy of a UNet's encoder that reads a map and adds to the
UNet's skips.

What a ControlNet that is to be trained takes from its UNet.

ControlNets kept as what is added to the UNet that they were made from.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ...guidance.contract import Residuals, Step
from .. import base_unet as source
from ..nn.blocks import BlockDims, EncoderLevel, MiddleBlock
from ..nn.embeddings import HintEncoder, TimestepEmbedding, get_timestep_embedding
from ..nn.execution import CompilableBlocks, with_global_average_pooling
from ..nn.hints import check_hint_size, expand_hint, expand_rows, to_hint_channels
from ..nn.layers import Conv2d
from ..state_dict import ldm_keys
from ..state_dict.architecture import ControlNetConfig, apply_unet_heads
from ..state_dict.compatibility import UNetSignature, incompatibility
from ..state_dict.ldm_keys import CONTROL_MODEL_PREFIX, DIFFUSERS_MARKER_KEY, LDM_MARKER_KEY, ZERO_CONV_KEYS
from ..state_dict.strict import FLOAT8_DTYPES, load_strict


def copy_encoder_tensors(unet: Any, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Copies of the encoder's tensors in `dtype` (None: their own), and a hint encoder drawn from torch's global
    generator, whose last layer is zero."""
    tensors = {name: t.detach().to(dtype or t.dtype, copy=True) for name, t in source.get_encoder_tensors(unet).items()}
    like = tensors["conv_in.weight"]
    hint = HintEncoder((3, 16, 32, 96, 256), like.shape[0])
    for parameter in hint.conv_out.parameters():
        nn.init.zeros_(parameter)
    return tensors | {f"controlnet_cond_embedding.{name}": t.to(like) for name, t in hint.state_dict().items()}


DIFFERENCE_KEY = (
    "difference"  # a tensor that marks such files (sd-webui-controlnet @ 56cec5b, extract_controlnet_diff.py)
)


class WeightDifference:
    """What is still to be done to a ControlNet whose weights are a difference: be added to a UNet's, once."""

    def __init__(self) -> None:
        self._bound_unet: Callable[[], Any] | None = None

    def check_bound(self) -> None:
        """ValueError as long as the UNet's weights were not added."""
        if self._bound_unet is None:
            raise ValueError("holds a ControlNet minus a UNet; the weights of the UNet it was made from are missing")

    @torch.no_grad()
    def bind(self, net: Any, unet: Any) -> None:
        """Add the UNet's weights to all of the network's that have their names, in float32. ValueError when that was
        done with another UNet."""
        first = source.get_layer(unet, "conv_in")  # tells UNets apart, whatever shows them
        if self._bound_unet is not None:
            if self._bound_unet() is not first:
                raise ValueError("a difference that was added to another model's weights; load it once more for this")
            return
        self._bound_unet = lambda: None  # what is interrupted here has to be loaded once more
        own = dict(net.named_parameters())
        for name, tensor in source.get_encoder_tensors(unet).items():
            if name in own:
                if name == "conv_in.weight":
                    tensor = tensor[:, : net.net_config.in_channels]  # of an inpainting UNet
                own[name].data = (own[name].float() + tensor.to(own[name].device).float()).to(own[name].dtype)
        self._bound_unet = weakref.ref(first)


class ControlNet(CompilableBlocks):
    """Residuals for each skip and the middle block of a frozen UNet, from x, the prompt and a map. Equal to the bit
    to `diffusers.ControlNetModel`, under the same names of submodules.

    Weights do not show how many attention heads there are. Where no config states it, `settle` takes it from the
    UNet; until then it is as in the published models (`ControlNetConfig.default_heads`). Nor do they show
    `global_average_pooling`, which the published shuffle ControlNet needs: None means that nobody stated it, and then
    it is on for maps of the kind "shuffle".

    Of a `difference` file the weights are what is added to the UNet's; `settle` adds them up, once.

    Weights stored in float8 stay so; they compute in x's dtype, other ones in their own.
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
        """The ControlNet with these tensors, which it shares, in ldm's layout (with or without `control_model.`) or
        diffusers'. `config` in diffusers' words states what tensors do not show. ValueError on tensors that are
        missing, unknown, misshapen or not finite."""
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
    def from_unet(cls, unet: Any, dtype: torch.dtype | None = None) -> ControlNet:
        """The ControlNet to train beside a diffusers UNet: a copy of its encoder, a hint encoder drawn from torch's
        global generator, and zero convolutions, so that all residuals are exactly 0. Weights under a LoRA are the
        base's. `dtype` None keeps the UNet's. ValueError on a UNet with settings that ControlNets do not have, or
        with a fused LoRA."""
        tensors = copy_encoder_tensors(unet, dtype)
        like = tensors["conv_in.weight"]
        with torch.device("meta"):
            net = cls(ControlNetConfig.from_tensors(tensors, source.get_unet_config(unet)))
        for name, t in net.state_dict().items():
            if name.startswith(("controlnet_down_blocks.", "controlnet_mid_block.")):
                tensors[name] = torch.zeros(t.shape, dtype=like.dtype, device=like.device)
        load_strict(net, tensors)
        return net

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.stream_device or self.controlnet_mid_block.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.controlnet_mid_block.weight.dtype

    def bind(self, unet: Any) -> None:
        """Make sure that this network fits a diffusers UNet; where no config stated heads and groups, take the
        UNet's; add the UNet's weights to those of a difference file. Settling again on a UNet of the same shape changes
        nothing. ValueError says why it does not fit."""
        reason = incompatibility(self.unet_signature, UNetSignature.from_unet(unet))
        if reason:
            raise ValueError(reason)
        if self.net_config.heads is None or self._has_borrowed_heads:
            self.net_config = apply_unet_heads(self, unet, is_rebind=self._has_borrowed_heads)
            self._has_borrowed_heads = True
        if self.difference is not None and not source.is_empty(unet):
            self.difference.bind(self, getattr(unet, "_orig_mod", unet))

    def check_compatible(self, unet: Any) -> None:
        """Check that this network fits a UNet, adding nothing to the weights. Raises ValueError if it does not."""
        if self.difference is None:
            self.bind(unet)
        elif reason := incompatibility(self.unet_signature, UNetSignature.from_unet(unet)):
            raise ValueError(reason)

    def for_map_types(self, kinds: Sequence[str | None]) -> ControlNet:
        """This network, to read maps of these kinds (None: unknown): with its residuals pooled if they are for
        shuffling and nobody stated whether they should be."""
        return (
            with_global_average_pooling(self)
            if self.global_average_pooling is None and set(kinds) == {"shuffle"}
            else self
        )

    def hint(self, image: np.ndarray | Tensor) -> Tensor:
        """The embedded hint `(B, C, H/8, W/8)` of an RGB picture at the size of the output: uint8 array `(H, W, 3)`
        or `(B, H, W, 3)`, or float tensor `(B, 3, H, W)` in 0..1 (inpainting ControlNets: -1 where to repaint). A
        network that reads 4 channels takes the latter as colours, black where to repaint, and a mask, 1 there; or a
        float tensor `(B, 4, H, W)` as it is. Nothing is resized: ValueError unless both sides are multiples of 8."""
        pixels = to_hint_channels(image, self.net_config.hint_channels[0])
        check_hint_size(pixels, 2 ** (len(self.net_config.hint_channels) - 2))
        dtype = torch.float32 if self.dtype in FLOAT8_DTYPES else self.dtype
        return self.controlnet_cond_embedding(pixels.to(self.device, dtype))

    def forward(self, step: Step, hint: Tensor) -> Residuals:
        """Residuals of weight 1 in the dtype of `step.x`, for a `hint` that `hint()` made: one for all rows of x, one
        a picture or one a row. Of an inpainting UNet's x the first channels, which are the latents, are read."""
        return self.encode(step, lambda x: x + expand_hint(hint, x, step))

    def encode(
        self, step: Step, add_hint: Callable[[Tensor], Tensor], extra_embedding: Tensor | None = None
    ) -> Residuals:
        """Residuals for an embedded x to which `read` adds what the map says; `more (B, C)` is added to the time
        embedding. Its dtype is that of the embedded x."""
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
        """The config of the same network as a `diffusers.ControlNetModel`; ValueError when that class cannot be it."""
        return self._current_config().config()

    def unstored_config(self) -> dict[str, Any]:
        """What its tensors do not show, in diffusers' words."""
        return self._current_config().unstored_config()

    def details(self) -> dict[str, Any]:
        """For `controlnet-ext inspect`."""
        plan, pooled = self.net_config, self.global_average_pooling
        return {
            "base": self.unet_signature.label,
            "transformer blocks": " ".join(
                map(str, (*(max(level, default=0) for level in plan.transformer_depths), plan.middle_depth))
            ),
            "heads": " ".join(map(str, plan.heads or plan.default_heads))
            + (" (stated)" if plan.heads else " (likely)"),
            "hint channels": plan.hint_channels[0],
            "global average pooling": {True: "on", False: "off", None: "unstated, on for shuffle maps"}[pooled],
        } | ({"difference": "to be added to the UNet it was made from"} if self.difference is not None else {})

    def _current_config(self) -> ControlNetConfig:
        """The plan with the one setting that may be changed on the network, which has all its weights."""
        if self.difference is not None:
            self.difference.check_bound()
        return replace(self.net_config, global_average_pooling=self.global_average_pooling)


def detect(names: Collection[str]) -> bool:
    """Whether these are the names of a ControlNet's tensors, not of a kind with the same hint encoder."""
    plain = {name.removeprefix(CONTROL_MODEL_PREFIX) for name in names}
    others = not plain.isdisjoint(("task_embedding", "lora_controlnet")) or any(".motion_modules." in n for n in plain)
    return (
        not plain.isdisjoint((LDM_MARKER_KEY, DIFFUSERS_MARKER_KEY))
        and not plain.isdisjoint(ZERO_CONV_KEYS)
        and not others
    )


def layout(names: Collection[str]) -> str:
    """The layout of these names of a ControlNet's tensors."""
    return "diffusers" if DIFFUSERS_MARKER_KEY in names else "ldm"


load = ControlNet.load

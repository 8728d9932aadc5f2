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
from ..nn.blocks import Common, Level, Middle
from ..nn.embeddings import Embedding, HintEncoder, sinusoid
from ..nn.execution import Running, pooling
from ..nn.hints import channels_of, check_size, fitting, rows
from ..nn.layers import Conv2d
from ..state_dict import ldm_keys
from ..state_dict.architecture import Plan, borrowed
from ..state_dict.compatibility import Layout, misfit
from ..state_dict.ldm_keys import DIFFUSERS, LDM, PREFIX, ZEROS
from ..state_dict.strict import SMALL, fill


def copied(unet: Any, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Copies of the encoder's tensors in `dtype` (None: their own), and a hint encoder drawn from torch's global
    generator, whose last layer is zero."""
    tensors = {name: t.detach().to(dtype or t.dtype, copy=True) for name, t in source.encoder(unet).items()}
    like = tensors["conv_in.weight"]
    hint = HintEncoder((3, 16, 32, 96, 256), like.shape[0])
    for parameter in hint.conv_out.parameters():
        nn.init.zeros_(parameter)
    return tensors | {f"controlnet_cond_embedding.{name}": t.to(like) for name, t in hint.state_dict().items()}


DIFFERENCE = "difference"  # a tensor that marks such files (sd-webui-controlnet @ 56cec5b, extract_controlnet_diff.py)


class Difference:
    """What is still to be done to a ControlNet whose weights are a difference: be added to a UNet's, once."""

    def __init__(self) -> None:
        self._unet: Callable[[], Any] | None = None

    def check(self) -> None:
        """ValueError as long as the UNet's weights were not added."""
        if self._unet is None:
            raise ValueError("holds a ControlNet minus a UNet; the weights of the UNet it was made from are missing")

    @torch.no_grad()
    def settle(self, net: Any, unet: Any) -> None:
        """Add the UNet's weights to all of the network's that have their names, in float32. ValueError when that was
        done with another UNet."""
        first = source.layer(unet, "conv_in")  # tells UNets apart, whatever shows them
        if self._unet is not None:
            if self._unet() is not first:
                raise ValueError("a difference that was added to another model's weights; load it once more for this")
            return
        self._unet = lambda: None  # what is interrupted here has to be loaded once more
        own = dict(net.named_parameters())
        for name, tensor in source.encoder(unet).items():
            if name in own:
                if name == "conv_in.weight":
                    tensor = tensor[:, : net.plan.channels]  # of an inpainting UNet
                own[name].data = (own[name].float() + tensor.to(own[name].device).float()).to(own[name].dtype)
        self._unet = weakref.ref(first)


class ControlNet(Running):
    """Residuals for each skip and the middle block of a frozen UNet, from x, the prompt and a map. Equal to the bit
    to `diffusers.ControlNetModel`, under the same names of submodules.

    Weights do not show how many attention heads there are. Where no config states it, `settle` takes it from the
    UNet; until then it is as in the published models (`Plan.likely_heads`). Nor do they show
    `global_average_pooling`, which the published shuffle ControlNet needs: None means that nobody stated it, and then
    it is on for maps of the kind "shuffle".

    Of a `difference` file the weights are what is added to the UNet's; `settle` adds them up, once.

    Weights stored in float8 stay so; they compute in x's dtype, other ones in their own.
    """

    architecture = "controlnet"
    LAYOUTS: ClassVar[Mapping[str, Callable[[Mapping[str, Tensor]], dict[str, Tensor]]]] = {
        "diffusers": dict,
        "ldm": ldm_keys.to_ldm,
    }

    def __init__(self, plan: Plan):
        super().__init__()
        self.plan = plan
        self.layout = plan.layout
        self.family = self.layout.family
        self.global_average_pooling = plan.pooled
        self._borrowed = False  # whether plan.heads and plan.groups come from a UNet
        self.difference: Difference | None = None
        first, last = plan.widths[0], len(plan.widths) - 1
        common = Common(4 * first, plan.context or 1, plan.groups, plan.linear)
        heads = plan.heads or plan.likely_heads
        self.conv_in = Conv2d(plan.channels, first, 3, padding=1)
        self.time_embedding = Embedding(first, common.time)
        self.add_embedding = None if plan.added is None else Embedding(plan.added, common.time)
        self.controlnet_cond_embedding: nn.Module = HintEncoder(plan.hint, first)
        self.down_blocks = nn.ModuleList()
        for i, (width, resnets) in enumerate(zip(plan.widths, plan.resnets, strict=True)):
            widths = [plan.widths[max(i - 1, 0)]] + [width] * resnets
            self.down_blocks.append(Level(widths, plan.depths[i], heads[i], common, last=i == last))
        self.mid_block = Middle(plan.widths[-1], plan.middle, heads[-1], common)
        self.controlnet_down_blocks = nn.ModuleList(Conv2d(c, c, 1) for c in self.layout.skips)
        self.controlnet_mid_block = Conv2d(self.layout.middle, self.layout.middle, 1)

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> ControlNet:
        """The ControlNet with these tensors, which it shares, in ldm's layout (with or without `control_model.`) or
        diffusers'. `config` in diffusers' words states what tensors do not show. ValueError on tensors that are
        missing, unknown, misshapen or not finite."""
        difference = Difference() if DIFFERENCE in tensors else None
        tensors = {name: tensor for name, tensor in ldm_keys.inside(tensors).items() if name != DIFFERENCE}
        ldm = DIFFUSERS not in tensors
        if ldm:
            tensors = ldm_keys.to_diffusers(tensors)
        with torch.device("meta"):
            net = cls(Plan.read(tensors, config or {}))
        fill(net, tensors, dict(zip(net.state_dict(), ldm_keys.to_ldm(net.state_dict()), strict=True)) if ldm else {})
        net.difference = difference
        return net.eval()

    @classmethod
    def copy_of(cls, unet: Any, dtype: torch.dtype | None = None) -> ControlNet:
        """The ControlNet to train beside a diffusers UNet: a copy of its encoder, a hint encoder drawn from torch's
        global generator, and zero convolutions, so that all residuals are exactly 0. Weights under a LoRA are the
        base's. `dtype` None keeps the UNet's. ValueError on a UNet with settings that ControlNets do not have, or
        with a fused LoRA."""
        tensors = copied(unet, dtype)
        like = tensors["conv_in.weight"]
        with torch.device("meta"):
            net = cls(Plan.read(tensors, source.settings(unet)))
        for name, t in net.state_dict().items():
            if name.startswith(("controlnet_down_blocks.", "controlnet_mid_block.")):
                tensors[name] = torch.zeros(t.shape, dtype=like.dtype, device=like.device)
        fill(net, tensors)
        return net

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.streams_to or self.controlnet_mid_block.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.controlnet_mid_block.weight.dtype

    def settle(self, unet: Any) -> None:
        """Make sure that this network fits a diffusers UNet; where no config stated heads and groups, take the
        UNet's; add the UNet's weights to those of a difference file. Settling again on a UNet of the same shape changes
        nothing. ValueError says why it does not fit."""
        reason = misfit(self.layout, Layout.of(unet))
        if reason:
            raise ValueError(reason)
        if self.plan.heads is None or self._borrowed:
            self.plan = borrowed(self, unet, again=self._borrowed)
            self._borrowed = True
        if self.difference is not None and not source.is_empty(unet):
            self.difference.settle(self, getattr(unet, "_orig_mod", unet))

    def reads(self, kinds: Sequence[str | None]) -> ControlNet:
        """This network, to read maps of these kinds (None: unknown): with its residuals pooled if they are for
        shuffling and nobody stated whether they should be."""
        return pooling(self) if self.global_average_pooling is None and set(kinds) == {"shuffle"} else self

    def hint(self, image: np.ndarray | Tensor) -> Tensor:
        """The embedded hint `(B, C, H/8, W/8)` of an RGB picture at the size of the output: uint8 array `(H, W, 3)`
        or `(B, H, W, 3)`, or float tensor `(B, 3, H, W)` in 0..1 (inpainting ControlNets: -1 where to repaint). A
        network that reads 4 channels takes the latter as colours, black where to repaint, and a mask, 1 there; or a
        float tensor `(B, 4, H, W)` as it is. Nothing is resized: ValueError unless both sides are multiples of 8."""
        pixels = channels_of(image, self.plan.hint[0])
        check_size(pixels, 2 ** (len(self.plan.hint) - 2))
        dtype = torch.float32 if self.dtype in SMALL else self.dtype
        return self.controlnet_cond_embedding(pixels.to(self.device, dtype))

    def forward(self, step: Step, hint: Tensor) -> Residuals:
        """Residuals of weight 1 in the dtype of `step.x`, for a `hint` that `hint()` made: one for all rows of x, one
        a picture or one a row. Of an inpainting UNet's x the first channels, which are the latents, are read."""
        return self.encode(step, lambda x: x + fitting(hint, x, step))

    def encode(self, step: Step, read: Callable[[Tensor], Tensor], more: Tensor | None = None) -> Residuals:
        """Residuals for an embedded x to which `read` adds what the map says; `more (B, C)` is added to the time
        embedding. Its dtype is that of the embedded x."""
        if self.difference is not None:
            self.difference.check()
        dtype = step.x.dtype if self.dtype in SMALL else self.dtype
        context = rows("prompts", step.context.to(dtype), step)
        time = sinusoid(rows("timesteps", step.t, step), self.plan.widths[0])
        time = self.time_embedding(time.to(dtype))
        time = time if more is None else time + more.to(dtype)
        if self.add_embedding is not None:
            if step.added is None:
                raise ValueError("an SDXL ControlNet needs the step's added vector (pooled prompt and sizes)")
            time = time + self.add_embedding(rows("added vectors", step.added.to(dtype), step))
        x = read(self.conv_in(step.x[:, : self.plan.channels].to(dtype)))
        outputs = self.blocks(self, x, time, context, step.frames)
        if self.global_average_pooling:
            outputs = [output.mean(dim=(2, 3), keepdim=True) for output in outputs]
        *skips, middle = (output.to(step.x.dtype) for output in outputs)
        return Residuals(tuple(skips), middle)

    def config(self) -> dict[str, Any]:
        """The config of the same network as a `diffusers.ControlNetModel`; ValueError when that class cannot be it."""
        return self._whole().config()

    def unseen(self) -> dict[str, Any]:
        """What its tensors do not show, in diffusers' words."""
        return self._whole().unseen()

    def details(self) -> dict[str, Any]:
        """For `controlnet-ext inspect`."""
        plan, pooled = self.plan, self.global_average_pooling
        return {
            "base": self.layout.words,
            "transformer blocks": " ".join(map(str, (*(max(level, default=0) for level in plan.depths), plan.middle))),
            "heads": " ".join(map(str, plan.heads or plan.likely_heads)) + (" (stated)" if plan.heads else " (likely)"),
            "hint channels": plan.hint[0],
            "global average pooling": {True: "on", False: "off", None: "unstated, on for shuffle maps"}[pooled],
        } | ({"difference": "to be added to the UNet it was made from"} if self.difference is not None else {})

    def _whole(self) -> Plan:
        """The plan with the one setting that may be changed on the network, which has all its weights."""
        if self.difference is not None:
            self.difference.check()
        return replace(self.plan, pooled=self.global_average_pooling)


def detect(names: Collection[str]) -> bool:
    """Whether these are the names of a ControlNet's tensors, not of a kind with the same hint encoder."""
    plain = {name.removeprefix(PREFIX) for name in names}
    others = not plain.isdisjoint(("task_embedding", "lora_controlnet")) or any(".motion_modules." in n for n in plain)
    return not plain.isdisjoint((LDM, DIFFUSERS)) and not plain.isdisjoint(ZEROS) and not others


def layout(names: Collection[str]) -> str:
    """The layout of these names of a ControlNet's tensors."""
    return "diffusers" if DIFFUSERS in names else "ldm"


load = ControlNet.load

"""T2I-Adapter (Mou et al., arXiv:2302.08453): features of a map, added inside the UNet's encoder where a level ends.
They do not depend on the step, so that the network runs once a run. Full, light and SDXL adapters are one network here;
the colour adapter is a light one.

Names of a T2I-Adapter's tensors in TencentARC's layout and in diffusers'.

What a T2I-Adapter is built from, and how its tensors show it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...guidance.contract import Residuals, Step
from ..nn.execution import Streaming
from ..nn.hints import check_size, pixels_of, rows
from ..nn.layers import Conv2d
from ..state_dict.ldm_keys import renamed
from ..state_dict.strict import SMALL, fill

PREFIX = "adapter."  # of all names in diffusers' layout
LIMIT = 64  # levels, and resnets in each; the published ones have four of two or four


def original(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An adapter's tensors under TencentARC's names, where the resnets of all levels are numbered through."""
    light = "conv_in.weight" not in tensors
    per = 1 + max(int(name.split(".")[3]) for name in tensors if ".resnets." in name)
    found = {}
    for name, tensor in tensors.items():
        match name.split("."):
            case ["body", level, "resnets", place, *rest]:
                where = f"body.{level}.body.{place}" if light else f"body.{int(level) * per + int(place)}"
                name = ".".join([where, *rest])
            case ["body", level, "downsample", *rest]:
                name = ".".join([f"body.{level if light else int(level) * per}.down_opt.op", *rest])
            case ["body", level, "in_conv", *rest] if not light:
                name = ".".join([f"body.{int(level) * per}.in_conv", *rest])
        found[name] = tensor
    return found


def names(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Our module names for TencentARC's."""
    if "conv_in.weight" not in tensors:
        places = range(count("body.0.body.{}.block1.weight", tensors))
        levels = range(count("body.{}.in_conv.weight", tensors))
        return {f"body.{i}.body.{j}": f"body.{i}.resnets.{j}" for i in levels for j in places}
    blocks = count("body.{}.block1.weight", tensors)
    # A level begins with the block that changes the width; where none does there are four
    per = next((i for i in range(1, blocks) if f"body.{i}.in_conv.weight" in tensors), max(blocks // 4, 1))
    table = {}
    for block in range(blocks):
        level, place = divmod(block, per)
        table[f"body.{block}.down_opt.op"] = f"body.{level}.downsample"
        table[f"body.{block}.in_conv"] = f"body.{level}.in_conv"
        table |= {f"body.{block}.block{k}": f"body.{level}.resnets.{place}.block{k}" for k in (1, 2)}
    return table


def count(pattern: str, tensors: Mapping[str, Tensor]) -> int:
    """How many of the names that `pattern` gives for 0, 1, 2 … there are before the first that is missing."""
    return next((n for n in range(LIMIT) if pattern.format(n) not in tensors), LIMIT)


@dataclass(frozen=True)
class Shape:
    """What an adapter is built from: `channels` of the map, `factor` by which pixels are unshuffled, output `widths` of
    the levels, number of `resnets` in each, `kind` in diffusers' words, and which levels have a convolution for their
    downsampling (`convolved`) and for their width (`widened`), whose kernels have side `kernel`."""

    channels: int
    factor: int
    widths: tuple[int, ...]
    resnets: int
    kind: str
    kernel: int = 1
    convolved: frozenset[int] = frozenset()
    widened: frozenset[int] = frozenset()

    @property
    def light(self) -> bool:
        return self.kind == "light_adapter"

    def halves(self, level: int) -> bool:
        """Whether this level begins by halving height and width."""
        return level == 2 if self.kind == "full_adapter_xl" else level > 0


def read(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Shape:
    """The shape of an adapter with our names. What the config states and tensors do not show is believed."""
    light = "conv_in.weight" not in tensors
    first = tensor("body.0.in_conv.weight" if light else "conv_in.weight", tensors)
    levels = count("body.{}.resnets.0.block1.weight", tensors)
    ends = "body.{}.out_conv.weight" if light else "body.{}.resnets.0.block2.weight"
    widths = tuple(tensor(ends.format(i), tensors).shape[0] for i in range(levels))
    stated = config.get("adapter_type")
    factor = config.get("downscale_factor", 16 if not light and first.shape[1] % 256 == 0 else 8)
    if factor not in (8, 16):
        raise ValueError(f"downscale_factor is {factor!r:.40}, expected 8 or 16")
    kind = "light_adapter" if light else "full_adapter_xl" if factor == 16 else "full_adapter"
    if stated not in (None, kind):
        raise ValueError(f"adapter_type is {stated!r:.40}, but the tensors are those of a {kind}")
    channels = first.shape[1] // factor**2
    if channels not in (1, 3) or channels * factor**2 != first.shape[1]:
        raise ValueError(f"it reads {first.shape[1]} channels, expected {factor**2} for each of 1 or 3 of a picture")
    if not levels or min(widths) < 4:
        raise ValueError("the tensors have no levels, or one of less than 4 channels")
    return Shape(
        channels,
        factor,
        widths,
        count("body.0.resnets.{}.block1.weight", tensors),
        kind,
        1 if light else tensor("body.0.resnets.0.block2.weight", tensors).shape[-1],
        frozenset(i for i in range(levels) if f"body.{i}.downsample.weight" in tensors),
        frozenset(i for i in range(levels) if f"body.{i}.in_conv.weight" in tensors),
    )


def tensor(name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    if name not in tensors:
        raise ValueError(f"tensor {name} is missing")
    if tensors[name].ndim != 4:
        raise ValueError(f"tensor {name} has {tensors[name].ndim} dimensions, expected 4")
    return tensors[name]


WIDTHS = (320, 640, 1280, 1280)  # of the published adapters


class Resnet(nn.Module):
    def __init__(self, width: int, kernel: int):
        super().__init__()
        self.block1 = Conv2d(width, width, 3, padding=1)
        self.block2 = Conv2d(width, width, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.block2(F.relu(self.block1(x))) + x


class Level(nn.Module):
    """One resolution. Averages of odd sizes round up, as the UNet's own downsampling does (and diffusers' adapters;
    TencentARC's rounds down, which fits sizes in multiples of 64 only)."""

    def __init__(self, shape: Shape, level: int, width: int):
        super().__init__()
        out, kernel = shape.widths[level], shape.kernel
        inner = out // 4 if shape.light else out
        self.halves = shape.halves(level)
        self.downsample = Conv2d(width, width, 3, stride=2, padding=1) if level in shape.convolved else None
        widened = shape.light or level in shape.widened
        self.in_conv = Conv2d(width, inner, kernel, padding=kernel // 2) if widened else None
        self.resnets = nn.Sequential(*(Resnet(inner, 3 if shape.light else kernel) for _ in range(shape.resnets)))
        self.out_conv = Conv2d(inner, out, 1) if shape.light else None

    def forward(self, x: Tensor) -> Tensor:
        if self.downsample is not None:
            x = self.downsample(x)
        elif self.halves:
            x = F.avg_pool2d(x, 2, ceil_mode=True)
        x = x if self.in_conv is None else self.in_conv(x)
        x = self.resnets(x)
        return x if self.out_conv is None else self.out_conv(x)


class T2IAdapter(Streaming):
    """Residuals inside the encoder, the same in all steps. Equal to the bit to `diffusers.T2IAdapter`."""

    architecture = "t2i-adapter"
    LAYOUTS: ClassVar[Mapping[str, Callable[[Mapping[str, Tensor]], dict[str, Tensor]]]] = {
        "diffusers": lambda tensors: {PREFIX + name: tensor for name, tensor in tensors.items()},
        "ldm": original,
    }

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        published = shape.widths == WIDTHS
        self.family = "sd" if not published else "sdxl" if shape.kind == "full_adapter_xl" else "sd15"
        pixels = shape.channels * shape.factor**2
        self.conv_in = None if shape.light else Conv2d(pixels, shape.widths[0], 3, padding=1)
        inputs = (pixels if shape.light else shape.widths[0], *shape.widths[:-1])
        self.body = nn.ModuleList(Level(shape, i, width) for i, width in enumerate(inputs))

    def settle(self, unet: Any) -> None:
        """ValueError unless it fits a diffusers UNet: its levels have these widths, and the first ends at the size of
        the first features (SDXL's first level has no attention; there features come in behind the downsampling)."""
        if "motion_max_seq_length" in unet.config:
            raise ValueError("a T2I-Adapter acts inside the encoder, where a UNet with motion modules takes nothing")
        widths, levels = self.shape.widths, tuple(unet.config["block_out_channels"])
        fit = (levels, (*levels, levels[-1]))  # with features for the middle block, as SDXL's adapters have
        if widths not in fit:
            own, theirs = ("-".join(map(str, some)) for some in (widths, levels))
            raise ValueError(f"the T2I-Adapter has widths {own}, but the model has {theirs}")
        factor = 8 if getattr(unet.down_blocks[0], "has_cross_attention", False) else 16
        if factor != self.shape.factor:
            raise ValueError(
                f"the T2I-Adapter's first features are {self.shape.factor} times smaller than the picture, but the "
                f"model takes them {factor} times smaller"
            )

    def hint(self, image: np.ndarray | Tensor) -> tuple[Tensor, ...]:
        """The features of an RGB picture as `ControlNet.hint` takes it; what is to be repainted is black. An adapter of
        one channel reads the brightest. Pictures at no multiple of SDXL's 16 are continued by their border."""
        pixels = pixels_of(image).clamp(min=0)
        height, width = pixels.shape[-2:]
        check_size(pixels, 8)
        count = len(pixels)
        if bool((pixels == pixels[:1]).all()):
            pixels = pixels[:1]
        if self.shape.channels == 1:
            pixels = pixels.amax(dim=1, keepdim=True)
        factor, like = self.shape.factor, next(self.parameters())
        dtype = torch.float32 if like.dtype in SMALL else like.dtype
        padding = (0, -width % factor, 0, -height % factor)
        x = F.pad(pixels.to(self.streams_to or like.device, dtype), padding, mode="replicate")
        # In memory as in diffusers' pipelines: another order has other last bits
        x = F.pixel_unshuffle(x, factor).contiguous(memory_format=torch.channels_last)
        x = x if self.conv_in is None else self.conv_in(x)
        features = []
        for level in self.body:
            x = level(x)
            features.append(x)
        return tuple(h.expand(count, *h.shape[1:]) for h in features)

    def forward(self, step: Step, hint: tuple[Tensor, ...]) -> Residuals:
        """The features that `hint()` made, in the dtype of `step.x`."""
        return Residuals(encoder=tuple(rows("hints", h.to(step.x), step) for h in hint))

    def config(self) -> dict[str, Any]:
        """The config of the same network as a `diffusers.T2IAdapter`; ValueError when that class cannot be it."""
        shape = self.shape
        if shape.convolved or shape.kernel != 1:
            raise ValueError("diffusers' T2IAdapter has no downsampling convolutions and no 3x3 ones in its shortcuts")
        if shape.light and (len(shape.widths) < 2 or shape.widths[-1] != shape.widths[-2]):
            raise ValueError("diffusers' light T2IAdapter needs the last two levels of one width")
        return {
            "_class_name": "T2IAdapter",
            "adapter_type": shape.kind,
            "channels": list(shape.widths[:-1] if shape.light else shape.widths),
            "downscale_factor": shape.factor,
            "in_channels": shape.channels,
            "num_res_blocks": shape.resnets,
        }

    def unseen(self) -> dict[str, Any]:
        """What its tensors do not show, in diffusers' words."""
        return {"adapter_type": self.shape.kind, "downscale_factor": self.shape.factor}

    def details(self) -> dict[str, Any]:
        """For `controlnet-ext inspect`."""
        return {
            "type": self.shape.kind,
            "hint channels": self.shape.channels,
            "widths": "-".join(map(str, self.shape.widths)),
        }


def detect(names: Collection[str]) -> bool:
    """Whether these are the names of a T2I-Adapter's tensors (the style adapter is a kind of its own)."""
    plain = {name.removeprefix(PREFIX) for name in names}
    full = "conv_in.weight" in plain and not plain.isdisjoint(
        ("body.0.block1.weight", "body.0.resnets.0.block1.weight")
    )
    light = "body.0.in_conv.weight" in plain and "body.0.out_conv.weight" in plain
    return full or light


def layout(names: Collection[str]) -> str:
    """The layout of these names of a T2I-Adapter's tensors."""
    plain = {name.removeprefix(PREFIX) for name in names}
    return "diffusers" if "body.0.resnets.0.block1.weight" in plain else "ldm"


def load(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> T2IAdapter:
    """The adapter with these tensors, which it shares, in TencentARC's layout or diffusers'. ValueError on tensors that
    are missing, unknown, misshapen or not finite, and on a config that contradicts them."""
    called = {name.removeprefix(PREFIX): name for name in tensors}
    if len(called) != len(tensors):
        raise ValueError(f"holds one tensor twice, with and without {PREFIX!r}")
    plain = {name: tensors[own] for name, own in called.items()}
    if layout(plain) == "ldm":
        table = names(plain)
        called = {new: called[own] for own, new in zip(plain, renamed(dict.fromkeys(plain), table), strict=True)}
        plain = renamed(plain, table)
    with torch.device("meta"):
        net = T2IAdapter(read(plain, config))
    fill(net, plain, called)
    return net.eval()

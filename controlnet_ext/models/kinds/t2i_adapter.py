"""T2I-Adapter (Mou et al., arXiv:2302.08453): features of a map, added inside the UNet's encoder where a level ends.

They do not depend on the step, so the network runs once a run. Full, light and SDXL adapters are one network here; the
color adapter is a light one. Also here: its tensors' names in TencentARC's layout and in diffusers', and the
configuration that the tensors show. The style adapter is another kind (style_adapter.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...guidance.contract import Residuals, Step, UNet
from .. import KeyMarkers, ModelKind
from ..nn.blocks import Conv2d
from ..nn.embeddings import check_hint_size, expand_rows, to_hint_pixels
from ..nn.execution import LayerwiseOffload
from ..state_dict.ldm_keys import rename_keys
from ..state_dict.strict import FLOAT8_DTYPES, load_strict

T2I_PREFIX = "adapter."  # of all names in diffusers' layout
MAX_LEVELS = 64  # levels, and resnets in each; the published ones have four of two or four


def to_tencent_keys(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an adapter's tensors under TencentARC's names, which number the resnets of all levels through."""
    light = "conv_in.weight" not in tensors
    per = 1 + max(int(name.split(".")[3]) for name in tensors if ".resnets." in name)
    result = {}
    for name, tensor in tensors.items():
        match name.split("."):
            case ["body", level, "resnets", place, *rest]:
                where = f"body.{level}.body.{place}" if light else f"body.{int(level) * per + int(place)}"
                name = ".".join([where, *rest])
            case ["body", level, "downsample", *rest]:
                name = ".".join([f"body.{level if light else int(level) * per}.down_opt.op", *rest])
            case ["body", level, "in_conv", *rest] if not light:
                name = ".".join([f"body.{int(level) * per}.in_conv", *rest])
        result[name] = tensor
    return result


def build_t2i_key_table(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return our module names by TencentARC's."""
    if "conv_in.weight" not in tensors:
        places = range(count_consecutive("body.0.body.{}.block1.weight", tensors))
        levels = range(count_consecutive("body.{}.in_conv.weight", tensors))
        return {f"body.{i}.body.{j}": f"body.{i}.resnets.{j}" for i in levels for j in places}
    blocks = count_consecutive("body.{}.block1.weight", tensors)
    # A level begins with the block that changes the width; where none does there are four
    per = next((i for i in range(1, blocks) if f"body.{i}.in_conv.weight" in tensors), max(blocks // 4, 1))
    table = {}
    for block in range(blocks):
        level, place = divmod(block, per)
        table[f"body.{block}.down_opt.op"] = f"body.{level}.downsample"
        table[f"body.{block}.in_conv"] = f"body.{level}.in_conv"
        table |= {f"body.{block}.block{k}": f"body.{level}.resnets.{place}.block{k}" for k in (1, 2)}
    return table


def count_consecutive(pattern: str, tensors: Mapping[str, Tensor]) -> int:
    """Return the number of names `pattern.format(0)`, `pattern.format(1)`, … before the first that is missing."""
    return next((n for n in range(MAX_LEVELS) if pattern.format(n) not in tensors), MAX_LEVELS)


@dataclass(frozen=True)
class T2IAdapterConfig:
    """The settings of an adapter.

    `downscale_factor` is that of the pixel unshuffle; `widths` are the output channels of the levels; `adapter_type`
    is diffusers' word. Levels in `conv_downsampled_levels` and `widened_levels` have a convolution for their
    downsampling or their width, with kernels of side `kernel_size`.
    """

    hint_channels: int
    downscale_factor: int
    widths: tuple[int, ...]
    resnets_per_level: int
    adapter_type: str
    kernel_size: int = 1
    conv_downsampled_levels: frozenset[int] = frozenset()
    widened_levels: frozenset[int] = frozenset()

    @property
    def is_light(self) -> bool:
        """True for a light adapter."""
        return self.adapter_type == "light_adapter"

    def is_halved(self, level: int) -> bool:
        """Return True if this level begins by halving height and width."""
        return level == 2 if self.adapter_type == "full_adapter_xl" else level > 0


def read_t2i_config(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> T2IAdapterConfig:
    """Return the config of an adapter with our names; the stated config decides what tensors do not show.

    Raises ValueError if config and tensors contradict each other, or there are no levels.
    """
    light = "conv_in.weight" not in tensors
    first = get_conv_tensor("body.0.in_conv.weight" if light else "conv_in.weight", tensors)
    levels = count_consecutive("body.{}.resnets.0.block1.weight", tensors)
    ends = "body.{}.out_conv.weight" if light else "body.{}.resnets.0.block2.weight"
    widths = tuple(get_conv_tensor(ends.format(i), tensors).shape[0] for i in range(levels))
    adapter_type = config.get("adapter_type")
    factor = config.get("downscale_factor", 16 if not light and first.shape[1] % 256 == 0 else 8)
    if factor not in (8, 16):
        raise ValueError(f"downscale_factor is {factor!r:.40}, expected 8 or 16")
    kind = "light_adapter" if light else "full_adapter_xl" if factor == 16 else "full_adapter"
    if adapter_type not in (None, kind):
        raise ValueError(f"adapter_type is {adapter_type!r:.40}, but the tensors are those of a {kind}")
    channels = first.shape[1] // factor**2
    if channels not in (1, 3) or channels * factor**2 != first.shape[1]:
        raise ValueError(f"it reads {first.shape[1]} channels, expected {factor**2} for each of 1 or 3 of an image")
    if not levels or min(widths) < 4:
        raise ValueError("the tensors have no levels, or one of less than 4 channels")
    return T2IAdapterConfig(
        channels,
        factor,
        widths,
        count_consecutive("body.0.resnets.{}.block1.weight", tensors),
        kind,
        1 if light else get_conv_tensor("body.0.resnets.0.block2.weight", tensors).shape[-1],
        frozenset(i for i in range(levels) if f"body.{i}.downsample.weight" in tensors),
        frozenset(i for i in range(levels) if f"body.{i}.in_conv.weight" in tensors),
    )


def get_conv_tensor(name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the weight `(out, in, h, w)` of this name. Raises ValueError if it is missing or has another shape."""
    if name not in tensors:
        raise ValueError(f"tensor {name} is missing")
    if tensors[name].ndim != 4:
        raise ValueError(f"tensor {name} has {tensors[name].ndim} dimensions, expected 4")
    return tensors[name]


def get_downscale_factor(unet: UNet) -> int:
    """Return how many times smaller than the image a UNet's first features are, where adapters add theirs.

    The first level of SDXL has no attention; there they are added after the downsampling.
    """
    return 8 if getattr(unet.down_blocks[0], "has_cross_attention", False) else 16


PUBLISHED_WIDTHS = (320, 640, 1280, 1280)  # of the published adapters


class AdapterResnet(nn.Module):
    """Two convolutions with a residual connection."""

    def __init__(self, width: int, kernel: int):
        super().__init__()
        self.block1 = Conv2d(width, width, 3, padding=1)
        self.block2 = Conv2d(width, width, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block2(F.relu(self.block1(x))) + x
        return out


class AdapterLevel(nn.Module):
    """One resolution.

    Averages of odd sizes round up, as the UNet's own downsampling and diffusers' adapters do; TencentARC's round down,
    which fits sizes in multiples of 64 only.
    """

    def __init__(self, adapter_config: T2IAdapterConfig, level: int, width: int):
        super().__init__()
        out, kernel = adapter_config.widths[level], adapter_config.kernel_size
        inner = out // 4 if adapter_config.is_light else out
        self.is_halved = adapter_config.is_halved(level)
        self.downsample = (
            Conv2d(width, width, 3, stride=2, padding=1) if level in adapter_config.conv_downsampled_levels else None
        )
        is_wider = adapter_config.is_light or level in adapter_config.widened_levels
        self.in_conv = Conv2d(width, inner, kernel, padding=kernel // 2) if is_wider else None
        self.resnets = nn.Sequential(
            *(
                AdapterResnet(inner, 3 if adapter_config.is_light else kernel)
                for _ in range(adapter_config.resnets_per_level)
            )
        )
        self.out_conv = Conv2d(inner, out, 1) if adapter_config.is_light else None

    def forward(self, x: Tensor) -> Tensor:
        if self.downsample is not None:
            x = self.downsample(x)
        elif self.is_halved:
            x = F.avg_pool2d(x, 2, ceil_mode=True)
        x = x if self.in_conv is None else self.in_conv(x)
        x = self.resnets(x)
        return x if self.out_conv is None else self.out_conv(x)


class T2IAdapter(LayerwiseOffload):
    """Residuals inside the encoder, the same in all steps. Equal to the bit to `diffusers.T2IAdapter`."""

    architecture = "t2i-adapter"
    LAYOUTS: ClassVar[Mapping[str, Callable[[Mapping[str, Tensor]], dict[str, Tensor]]]] = {
        "diffusers": lambda tensors: {T2I_PREFIX + name: tensor for name, tensor in tensors.items()},
        "ldm": to_tencent_keys,
    }

    def __init__(self, adapter_config: T2IAdapterConfig):
        super().__init__()
        self.adapter_config = adapter_config
        is_published = adapter_config.widths == PUBLISHED_WIDTHS
        self.family = (
            "sd" if not is_published else "sdxl" if adapter_config.adapter_type == "full_adapter_xl" else "sd15"
        )
        pixels = adapter_config.hint_channels * adapter_config.downscale_factor**2
        self.conv_in = None if adapter_config.is_light else Conv2d(pixels, adapter_config.widths[0], 3, padding=1)
        inputs = (pixels if adapter_config.is_light else adapter_config.widths[0], *adapter_config.widths[:-1])
        self.body = nn.ModuleList(AdapterLevel(adapter_config, i, width) for i, width in enumerate(inputs))

    def bind(self, unet: UNet) -> None:
        """Check that it fits a diffusers UNet. Raises ValueError if not.

        Its levels must have the UNet's widths, and the first must end at the size of the first features.
        """
        if "motion_max_seq_length" in unet.config:
            raise ValueError("a T2I-Adapter acts inside the encoder, where a UNet with motion modules takes nothing")
        widths, levels = self.adapter_config.widths, tuple(unet.config["block_out_channels"])
        fit = (levels, (*levels, levels[-1]))  # with features for the middle block, as SDXL's adapters have
        if widths not in fit:
            own, theirs = ("-".join(map(str, some)) for some in (widths, levels))
            raise ValueError(f"the T2I-Adapter has widths {own}, but the model has {theirs}")
        factor = get_downscale_factor(unet)
        if factor != self.adapter_config.downscale_factor:
            raise ValueError(
                f"the T2I-Adapter's first features are {self.adapter_config.downscale_factor} times smaller than "
                "the image, but the "
                f"model takes them {factor} times smaller"
            )

    def hint(self, image: np.ndarray | Tensor) -> tuple[Tensor, ...]:
        """Return the features `(B, C, h, w)` of each level for an RGB image as `ControlNet.hint` takes it.

        Black replaces -1 where to repaint. An adapter of one channel reads the brightest. Images whose sides are no
        multiple of SDXL's 16 are continued by their border.
        """
        pixels = to_hint_pixels(image).clamp(min=0)
        height, width = pixels.shape[-2:]
        check_hint_size(pixels, 8)
        count = len(pixels)
        if bool((pixels == pixels[:1]).all()):
            pixels = pixels[:1]
        if self.adapter_config.hint_channels == 1:
            pixels = pixels.amax(dim=1, keepdim=True)
        factor, like = self.adapter_config.downscale_factor, next(self.parameters())
        dtype = torch.float32 if like.dtype in FLOAT8_DTYPES else like.dtype
        padding = (0, -width % factor, 0, -height % factor)
        x = F.pad(pixels.to(self.stream_device or like.device, dtype), padding, mode="replicate")
        # In memory as in diffusers' pipelines: another order has other last bits
        x = F.pixel_unshuffle(x, factor).contiguous(memory_format=torch.channels_last)
        x = x if self.conv_in is None else self.conv_in(x)
        features = []
        for level in self.body:
            x = level(x)
            features.append(x)
        return tuple(h.expand(count, *h.shape[1:]) for h in features)

    def forward(self, step: Step, hint: tuple[Tensor, ...]) -> Residuals:
        """Return the features that `hint()` made, in the dtype of `step.x`."""
        return Residuals(encoder=tuple(expand_rows("hints", h.to(step.x), step) for h in hint))

    def config(self) -> dict[str, Any]:
        """Return the config of the same `diffusers.T2IAdapter`. Raises ValueError if that class cannot be it."""
        shape = self.adapter_config
        if shape.conv_downsampled_levels or shape.kernel_size != 1:
            raise ValueError("diffusers' T2IAdapter has no downsampling convolutions and no 3x3 ones in its shortcuts")
        if shape.is_light and (len(shape.widths) < 2 or shape.widths[-1] != shape.widths[-2]):
            raise ValueError("diffusers' light T2IAdapter needs the last two levels of one width")
        return {
            "_class_name": "T2IAdapter",
            "adapter_type": shape.adapter_type,
            "channels": list(shape.widths[:-1] if shape.is_light else shape.widths),
            "downscale_factor": shape.downscale_factor,
            "in_channels": shape.hint_channels,
            "num_res_blocks": shape.resnets_per_level,
        }

    def unstored_config(self) -> dict[str, Any]:
        """Return the settings that its tensors do not show, in diffusers' words."""
        return {
            "adapter_type": self.adapter_config.adapter_type,
            "downscale_factor": self.adapter_config.downscale_factor,
        }

    def details(self) -> dict[str, Any]:
        """Return the facts for `controlnet-ext inspect`."""
        return {
            "type": self.adapter_config.adapter_type,
            "hint channels": self.adapter_config.hint_channels,
            "widths": "-".join(map(str, self.adapter_config.widths)),
        }


# full adapters and light ones; the style adapter is a kind of its own
detect = KeyMarkers(
    (
        (
            rf"({re.escape(T2I_PREFIX)})?conv_in\.weight",
            rf"({re.escape(T2I_PREFIX)})?body\.0\.(resnets\.0\.)?block1\.weight",
        ),
        (
            rf"({re.escape(T2I_PREFIX)})?body\.0\.in_conv\.weight",
            rf"({re.escape(T2I_PREFIX)})?body\.0\.out_conv\.weight",
        ),
    )
)


def layout(names: Collection[str]) -> str:
    """Return the layout of these names, "diffusers" or "ldm" (TencentARC's)."""
    plain = {name.removeprefix(T2I_PREFIX) for name in names}
    return "diffusers" if "body.0.resnets.0.block1.weight" in plain else "ldm"


def load(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> T2IAdapter:
    """Return the adapter with these tensors, which it shares, in TencentARC's layout or diffusers'.

    Raises ValueError on tensors that are missing, unknown, misshapen or not finite, and on a config that contradicts
    them.
    """
    stored_names = {name.removeprefix(T2I_PREFIX): name for name in tensors}
    if len(stored_names) != len(tensors):
        raise ValueError(f"holds one tensor twice, with and without {T2I_PREFIX!r}")
    plain = {name: tensors[own] for name, own in stored_names.items()}
    if layout(plain) == "ldm":
        table = build_t2i_key_table(plain)
        stored_names = {
            new: stored_names[own] for own, new in zip(plain, rename_keys(dict.fromkeys(plain), table), strict=True)
        }
        plain = rename_keys(plain, table)
    with torch.device("meta"):
        net = T2IAdapter(read_t2i_config(plain, config))
    load_strict(net, plain, stored_names)
    return net.eval()


KIND = ModelKind("t2i_adapter", detect, load, layout)

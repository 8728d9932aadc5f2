"""What a T2I-Adapter is built from, and how its tensors show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .t2i_names import count


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

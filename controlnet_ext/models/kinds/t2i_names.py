"""Names of a T2I-Adapter's tensors in TencentARC's layout and in diffusers'."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

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

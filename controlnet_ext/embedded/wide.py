"""Networks laid into wider ones of the same function, for hosts whose code has 32 groups in every GroupNorm.

In four times (`factor`) the channels, 32 groups have as many channels each as 8 groups had. The narrow network's
channels come first and zeros follow, part by part where parts are joined (a skip to what comes from below, heads). Two
exceptions: LayerNorm takes its mean over all channels, so inside a transformer they are repeated four times, and only
the first copy is read; and of the wider network's sinusoids of the timestep, every fourth is the narrow one's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

LDM_GROUPS = (
    32  # ldm/modules/attention.py, ldm/modules/diffusionmodules/{util,model}.py of Stability-AI/stablediffusion
)

# Where the rows and columns of a module's tensors go, by its name in diffusers; the first that matches the whole name.
CHANNEL_RULES = (
    (r"time_embedding\.linear_1", "first", "every"),
    (r"controlnet_cond_embedding\.conv_out", "first", "kept"),
    (r"controlnet_cond_embedding\..*|(post_)?quant_conv", "kept", "kept"),
    (r"(.*\.)?conv_in", "first", "kept"),
    (r"(.*\.)?conv_out", "kept", "first"),
    (r"up_blocks\.\d+\.resnets\.\d+\.norm1", "halves", ""),
    (r"up_blocks\.\d+\.resnets\.\d+\.(conv1|conv_shortcut)", "first", "halves"),
    (r".*\.attn2\.to_[kv]", "heads", "kept"),
    (r".*\.attn[12]\.to_[qkv]", "heads", "first"),
    (r".*\.attn[12]\.to_out\.0", "repeated", "heads"),
    (r".*\.ff\.net\.0\.proj", "halves", "first"),  # values and gates
    (r".*\.ff\.net\.2|.*\.proj_in", "repeated", "first"),
    (r".*", "first", "first"),
)


def compute_width_factor(groups: int) -> int:
    """Return how many times wider the network of the same function is.

    Raises ValueError when 32 groups cannot stand for `groups`."""
    if LDM_GROUPS % groups:
        raise ValueError(f"{groups} groups: expected a divisor of the {LDM_GROUPS} that ldm's code has")
    return LDM_GROUPS // groups


def widen_state_dict(tensors: Mapping[str, Tensor], factor: int, heads: int = 1) -> dict[str, Tensor]:
    """The tensors of the wider network from those of a diffusers UNet2DConditionModel, ControlNetModel or
    AutoencoderKL, under the same names. All levels of the first two are of one width and have `heads` heads."""
    return {name: _widen_tensor(name, tensor, factor, heads) for name, tensor in tensors.items()}


def _widen_tensor(name: str, tensor: Tensor, factor: int, heads: int) -> Tensor:
    module = name.rpartition(".")[0]
    kinds = next(kinds for pattern, *kinds in CHANNEL_RULES if re.fullmatch(pattern, module))
    for axis, kind in enumerate(kinds[: tensor.ndim]):
        zero = torch.zeros_like(tensor.narrow(axis, 0, 1))
        places = _source_channels(kind, tensor.shape[axis], factor, heads)
        tensor = torch.cat([tensor, zero], axis).index_select(axis, places.to(tensor.device))
    return tensor * factor**0.5 if module.endswith(".to_q") else tensor  # for heads wider than they need to be


def _source_channels(rule: str, size: int, factor: int, heads: int) -> Tensor:
    """For each channel of the wider axis the narrow one that lies there; `size` for zero."""
    if rule == "kept":
        return torch.arange(size)
    wide = torch.arange(factor * size)
    if rule == "repeated":
        return wide % size
    if rule == "every":
        return torch.where(wide % factor == 0, wide // factor, size)
    part = size // {"first": 1, "halves": 2, "heads": heads}[rule]
    number, place = wide // (factor * part), wide % (factor * part)
    return torch.where(place < part, number * part + place, size)

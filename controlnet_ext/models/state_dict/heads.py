"""What a ControlNet's weights do not show and the UNet does: attention heads, and the groups of normalisations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from .. import base_unet as source
from ..nn.blocks import Attention
from .architecture import Plan


def borrowed(net: Any, unet: Any, again: bool) -> Plan:
    """The network's plan with the UNet's heads and groups, which are set in its blocks. ValueError when it has borrowed
    `again`, and they are others."""
    heads = source.heads(unet)
    sizes = unet.config["addition_time_embed_dim"] or net.plan.time_ids
    plan = replace(net.plan, heads=heads, groups=unet.config["norm_num_groups"], time_ids=sizes)
    if again and plan != net.plan:
        raise ValueError(
            f"the ControlNet's file states no attention heads and it took {net.plan.heads} from another model; "
            f"load it once more for this one, which has {heads}"
        )
    for n, block in zip((*heads, heads[-1]), (*net.down_blocks, net.mid_block), strict=True):
        for module in block.modules():
            if isinstance(module, Attention):
                module.heads = n
            elif isinstance(module, nn.GroupNorm):
                module.num_groups = plan.groups
    return plan

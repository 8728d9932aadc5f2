"""The configuration of a ControlNet, from its tensors, from a config in diffusers' words and from its UNet.

Nearly everything shows in the tensors. Attention heads and the groups of normalizations do not: these come from a
config or from the UNet. `strict` loads the tensors, `ldm_keys` renames them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any

from torch import nn

from .. import base_unet as source
from ..nn.blocks import Attention
from .compatibility import UNetSignature

if TYPE_CHECKING:
    from torch import Tensor


# Settings of diffusers that change what a network computes but no tensor's name, and the values that ours has.
SUPPORTED_SETTINGS: dict[str, tuple[object, ...]] = {
    "act_fn": ("silu", "swish"),
    "addition_embed_type": (None, "text_time"),
    "attention_type": ("default",),
    "class_embed_type": (None,),
    "controlnet_conditioning_channel_order": ("rgb",),
    "conv_in_kernel": (3,),
    "cross_attention_norm": (None,),
    "downsample_padding": (1,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim_type": (None, "ip_image_proj"),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_scale_factor": (1,),
    "norm_eps": (1e-5,),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "resnet_out_scale_factor": (1,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}
MAX_WIDTH = 2**16  # a hundred times wider than any published network; a file of empty tensors may claim anything


@dataclass(frozen=True)
class ControlNetConfig:
    """The shape of a ControlNet. One entry a level, outermost first: `widths` in channels, number of `resnets`, and
    `depths`, how many transformer blocks follow each resnet (empty: there are no transformers). `middle` is the depth
    of the middle transformer, None where the middle block is a lone resnet. `hint` holds the hint's own channels,
    then those of its encoder's scales.

    Not shown by tensors: `heads` (one number a level, the last also the middle's; None: nobody stated it), `groups`
    of the normalisations, whether residuals are `pooled` to one value a channel (None: nobody stated it), and
    `time_ids`, the width of each of SDXL's six sizes in `added`, which only diffusers' config needs.
    """

    in_channels: int
    widths: tuple[int, ...]
    resnets_per_level: tuple[int, ...]
    transformer_depths: tuple[tuple[int, ...], ...]
    middle_depth: int | None
    context_width: int | None
    added_width: int | None
    has_linear_projection: bool
    hint_channels: tuple[int, ...]
    heads: tuple[int, ...] | None = None
    norm_groups: int = 32
    global_average_pooling: bool | None = None
    time_id_width: int = 256

    def __post_init__(self) -> None:
        sizes = (self.in_channels, self.context_width or 1, self.added_width or 1, *self.widths, *self.hint_channels)
        if not self.widths or not all(1 <= size <= MAX_WIDTH for size in sizes):
            raise ValueError(f"the tensors have no levels, or widths outside 1..{MAX_WIDTH}")
        for width, heads in zip(self.widths, self.heads or self.default_heads, strict=True):
            if width % self.norm_groups or width % heads or width % 2:
                raise ValueError(
                    f"width {width} is odd or not a multiple of {self.norm_groups} groups and of {heads} heads"
                )
        if any(
            depths and len(depths) != n
            for depths, n in zip(self.transformer_depths, self.resnets_per_level, strict=True)
        ):
            raise ValueError("a level has transformers behind some of its resnets only")

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> ControlNetConfig:
        """The plan of a ControlNet in diffusers' layout. `config` may be empty or partial. ValueError when the
        tensors cannot be a ControlNet, the config asks for what this network does not have, or the two contradict
        each other."""
        for setting, choices in SUPPORTED_SETTINGS.items():
            value = config.get(setting, choices[0])
            if any(v not in choices for v in (value if isinstance(value, list | tuple) else [value])):
                raise ValueError(f"{setting} is {value!r}, only {' or '.join(map(repr, choices))} is supported")
        levels = range(_count_tensors("down_blocks.{}.resnets.0.conv1.weight", tensors))
        widths = [_get_size(f"down_blocks.{i}.resnets.0.conv1.weight", 0, tensors) for i in levels]
        config_widths = config.get("block_out_channels", widths)
        if not isinstance(config_widths, list | tuple) or list(config_widths) != widths:
            raise ValueError(f"the config states widths {config_widths!r}, but the tensors have {widths}")
        encoder = "controlnet_cond_embedding"
        blocks = range(1, _count_tensors(encoder + ".blocks.{}.weight", tensors), 2)
        attention = next((name for name in tensors if name.endswith("attn2.to_k.weight")), None)
        embedding_key = "add_embedding.linear_1.weight"
        return cls(
            in_channels=_get_size("conv_in.weight", 1, tensors),
            widths=tuple(widths),
            resnets_per_level=tuple(
                _count_tensors(f"down_blocks.{i}.resnets.{{}}.conv1.weight", tensors) for i in levels
            ),
            transformer_depths=tuple(_read_depths(f"down_blocks.{i}", tensors) for i in levels),
            middle_depth=next(iter(_read_depths("mid_block", tensors)), None),
            context_width=_get_size(attention, 1, tensors) if attention else None,
            added_width=_get_size(embedding_key, 1, tensors) if embedding_key in tensors else None,
            has_linear_projection=any(
                tensor.ndim == 2 for name, tensor in tensors.items() if name.endswith("proj_in.weight")
            ),
            hint_channels=(
                _get_size(f"{encoder}.conv_in.weight", 1, tensors),
                _get_size(f"{encoder}.conv_in.weight", 0, tensors),
                *(_get_size(f"{encoder}.blocks.{k}.weight", 0, tensors) for k in blocks),
            ),
            heads=_read_heads(config, len(levels)),
            norm_groups=_check_positive("norm_num_groups", config.get("norm_num_groups", 32)),
            global_average_pooling=_read_flag("global_pool_conditions", config),
            time_id_width=_check_positive("addition_time_embed_dim", config.get("addition_time_embed_dim") or 256),
        )

    @property
    def default_heads(self) -> tuple[int, ...]:
        """Heads where nobody states them: 8 for SD1.5's prompts, otherwise as many as give 64 channels each, as SD2.1
        and SDXL have."""
        likely = [8 if self.context_width == 768 else max(1, width // 64) for width in self.widths]
        return tuple(n if width % n == 0 else 1 for n, width in zip(likely, self.widths, strict=True))

    @property
    def unet_signature(self) -> UNetSignature:
        """The numbers of the UNet that this network fits."""
        skips = [self.widths[0]]
        for width, resnets in zip(self.widths, self.resnets_per_level, strict=True):
            skips += [width] * (resnets + 1)
        return UNetSignature(self.in_channels, self.context_width, self.added_width, tuple(skips[:-1]), self.widths[-1])

    def unstored_config(self) -> dict[str, Any]:
        """Return what is known of this network and not shown by its tensors, in the words of diffusers' config.json."""
        heads = (
            {} if self.heads is None else {"attention_head_dim": list(self.heads), "norm_num_groups": self.norm_groups}
        )
        pooling = {} if self.global_average_pooling is None else {"global_pool_conditions": self.global_average_pooling}
        return heads | {"addition_time_embed_dim": self.time_id_width} | pooling

    def config(self) -> dict[str, Any]:
        """The config of the same network as a `diffusers.ControlNetModel`; ValueError when that class cannot be it."""
        depths = [max(level, default=1) for level in self.transformer_depths]
        if not self.transformer_depths[-1] and self.middle_depth is not None:
            depths[-1] = self.middle_depth
        alike = all(set(level) <= {depth} for level, depth in zip(self.transformer_depths, depths, strict=True))
        if not alike or len(set(self.resnets_per_level)) > 1 or self.middle_depth not in (None, depths[-1]):
            raise ValueError("diffusers' ControlNetModel needs equal resnets in all levels and one depth in each level")
        return {
            "_class_name": "ControlNetModel",
            "act_fn": "silu",
            "addition_embed_type": None if self.added_width is None else "text_time",
            "addition_time_embed_dim": None if self.added_width is None else self.time_id_width,
            "attention_head_dim": list(self.heads or self.default_heads),  # diffusers' name for the number of heads
            "block_out_channels": list(self.widths),
            "conditioning_channels": self.hint_channels[0],
            "conditioning_embedding_out_channels": list(self.hint_channels[1:]),
            "controlnet_conditioning_channel_order": "rgb",
            "cross_attention_dim": self.context_width or 1,
            "down_block_types": [
                "CrossAttnDownBlock2D" if level else "DownBlock2D" for level in self.transformer_depths
            ],
            "flip_sin_to_cos": True,
            "freq_shift": 0,
            "global_pool_conditions": bool(self.global_average_pooling),
            "in_channels": self.in_channels,
            "layers_per_block": self.resnets_per_level[0],
            "mid_block_type": "UNetMidBlock2D" if self.middle_depth is None else "UNetMidBlock2DCrossAttn",
            "norm_eps": 1e-5,
            "norm_num_groups": self.norm_groups,
            "projection_class_embeddings_input_dim": self.added_width,
            "transformer_layers_per_block": depths,
            "use_linear_projection": self.has_linear_projection,
        }


def _count_tensors(pattern: str, tensors: Mapping[str, Tensor]) -> int:
    """Count the names that `pattern` gives for 0, 1, 2 … up to the first that is missing."""
    return next(n for n in count() if pattern.format(n) not in tensors)


def _get_size(name: str, axis: int, tensors: Mapping[str, Tensor]) -> int:
    if name not in tensors:
        raise ValueError(f"tensor {name} is missing")
    shape = tensors[name].shape
    if axis >= len(shape):
        raise ValueError(f"tensor {name} has shape {list(shape)}, which is too few dimensions")
    return shape[axis]


def _read_depths(block: str, tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    transformers = range(_count_tensors(f"{block}.attentions.{{}}.norm.weight", tensors))
    blocks = "{}.attentions.{}.transformer_blocks.{{}}.norm1.weight"
    return tuple(_count_tensors(blocks.format(block, j), tensors) for j in transformers)


def _read_heads(config: Mapping[str, Any], levels: int) -> tuple[int, ...] | None:
    """Stated heads; diffusers calls their number attention_head_dim for historic reasons (its issue 2011)."""
    setting = config.get("num_attention_heads") or config.get("attention_head_dim")
    if setting is None:
        return None
    heads = setting if isinstance(setting, list | tuple) else [setting] * levels
    if len(heads) != levels:
        raise ValueError(f"the config states heads for {len(heads)} levels, but the tensors have {levels}")
    return tuple(_check_positive("attention_head_dim", n) for n in heads)


def _read_flag(setting: str, config: Mapping[str, Any]) -> bool | None:
    value = config.get(setting)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{setting} is {value!r:.40}, expected true or false")
    return value


def _check_positive(setting: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{setting} is {value!r}, expected a whole number from 1")
    return value


def apply_unet_heads(net: Any, unet: Any, is_rebind: bool) -> ControlNetConfig:
    """The network's plan with the UNet's heads and groups, which are set in its blocks. ValueError when it has borrowed
    `again`, and they are others."""
    heads = source.get_heads(unet)
    sizes = unet.config["addition_time_embed_dim"] or net.net_config.time_id_width
    plan: ControlNetConfig = replace(
        net.net_config, heads=heads, norm_groups=unet.config["norm_num_groups"], time_id_width=sizes
    )
    if is_rebind and plan != net.net_config:
        raise ValueError(
            f"the ControlNet's file states no attention heads and it took {net.net_config.heads} from another model; "
            f"load it once more for this one, which has {heads}"
        )
    for n, block in zip((*heads, heads[-1]), (*net.down_blocks, net.mid_block), strict=True):
        for module in block.modules():
            if isinstance(module, Attention):
                module.heads = n
            elif isinstance(module, nn.GroupNorm):
                module.num_groups = plan.norm_groups
    return plan

"""Reading a diffusers UNet for a ControlNet: weights below any LoRA, and settings that weights do not show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from ..guidance.contract import UNet

ENCODER_PREFIXES = ("conv_in.", "time_embedding.", "add_embedding.", "class_embedding.", "down_blocks.", "mid_block.")


def get_encoder_tensors(unet: UNet) -> dict[str, Tensor]:
    """Return the UNet's own tensors up to its middle block.

    LoRA layers (peft keeps the weights below them as `base_layer`), motion modules and attention processors are left
    out. Raises ValueError if a LoRA is fused into the weights, they are offloaded, or there is no middle block.
    """
    unet = getattr(unet, "_orig_mod", unet)  # below torch.compile(unet), which puts this into all names
    if unet.mid_block is None:
        raise ValueError("the UNet has no middle block, which a ControlNet is a copy of too")
    wrapped = {name: module for name, module in unet.named_modules() if hasattr(module, "base_layer")}
    if any(getattr(module, "merged", False) for module in wrapped.values()):
        raise ValueError("a LoRA is fused into the UNet's weights; unfuse it first (pipe.unfuse_lora())")
    added = tuple(f"{name}." for name in wrapped)
    tensors = {}
    for name, tensor in unet.state_dict().items():
        if not name.startswith(ENCODER_PREFIXES) or ".motion_modules." in name or ".processor." in name:
            continue
        if ".base_layer." in name or not name.startswith(added):
            tensors[name.replace(".base_layer.", ".")] = tensor
    if any(tensor.is_meta for tensor in tensors.values()):
        raise ValueError("the UNet's weights are offloaded; copy it before sequential offloading is switched on")
    return tensors


def get_layer(unet: UNet, name: str) -> Any:
    """Return the layer of this name, below any LoRA."""
    module = unet.get_submodule(name)
    return getattr(module, "base_layer", module)


def is_empty(unet: UNet) -> bool:
    """Return True if the UNet has no weights at all: on the meta device, and not offloaded by accelerate."""
    first = get_layer(unet, "conv_in")
    return bool(first.weight.is_meta) and not hasattr(first, "_hf_hook")


def get_heads(unet: UNet) -> tuple[int, ...]:
    """Return the attention heads of each level, the middle block's in place of the last; 1 without attention."""
    levels = [_get_block_heads(block) for block in unet.down_blocks]
    levels[-1] = _get_block_heads(unet.mid_block) or levels[-1]
    return tuple(n or 1 for n in levels)


def get_unet_config(unet: UNet) -> dict[str, Any]:
    """Return the UNet's config, with its heads under the name that diffusers gives their number."""
    return {**unet.config, "num_attention_heads": None, "attention_head_dim": get_heads(unet)}


def _get_block_heads(block: object) -> int | None:
    transformers = getattr(block, "attentions", ())
    return next((b.attn1.heads for t in transformers for b in getattr(t, "transformer_blocks", ())), None)

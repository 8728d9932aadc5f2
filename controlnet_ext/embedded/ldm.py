"""Names of a Stable Diffusion's tensors in ldm's layout: one file for UNet, VAE and text encoder."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ..models.state_dict.ldm_keys import modules, renamed, resnet

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
AUTOENCODER = (
    (r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2"),
    (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
    (r"up_blocks\.(\d+)\.resnets\.(\d+)", r"up.\1.block.\2"),
    (r"up_blocks\.(\d+)\.upsamplers\.0", r"up.\1.upsample"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"attn_1\.group_norm", "attn_1.norm"),
    (r"attn_1\.to_([qkv])", r"attn_1.\1"),
    (r"attn_1\.to_out\.0", "attn_1.proj_out"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
)


def unet(tensors: Mapping[str, Tensor], levels: int, resnets: int) -> dict[str, Tensor]:
    """A UNet2DConditionModel's tensors under ldm's names; `resnets` in each of its `levels`, of which only the
    innermost has no transformers."""
    table = modules([resnets] * levels, scales=1) | {"conv_norm_out": "out.0", "conv_out": "out.2"}
    for level in range(levels):
        blocks = range(level * (resnets + 1), (level + 1) * (resnets + 1))
        for j, block in enumerate(blocks):
            table |= resnet(f"up_blocks.{level}.resnets.{j}", f"output_blocks.{block}.0")
            table[f"up_blocks.{level}.attentions.{j}"] = f"output_blocks.{block}.1"
        place = 1 if level == 0 else 2  # behind the transformer
        table[f"up_blocks.{level}.upsamplers.0"] = f"output_blocks.{blocks[-1]}.{place}"
    return {UNET + name: tensor for name, tensor in renamed(tensors, table).items()}


def vae(tensors: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """An AutoencoderKL's tensors in ldm's layout, where attention's linear layers are convolutions and the decoder's
    levels are numbered from the outside."""
    found = {}
    for name, tensor in tensors.items():
        name = re.sub(r"(?<=up_blocks\.)\d+", lambda level: str(levels - 1 - int(level[0])), name)
        for pattern, ldm in AUTOENCODER:
            name = re.sub(pattern, ldm, name)
        pointwise = ".attn_1." in name and tensor.ndim == 2
        found[VAE + name] = tensor[:, :, None, None] if pointwise else tensor
    return found


def text_encoder(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A CLIPTextModel's tensors under the names that transformers before 5 have too, with the positions that it kept
    among them before 4.31."""
    found = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in tensors.items()}
    positions = len(found["text_model.embeddings.position_embedding.weight"])
    return found | {"text_model.embeddings.position_ids": torch.arange(positions)[None]}

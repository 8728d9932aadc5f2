"""What a ControlNet that is to be trained takes from its UNet."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import base_unet as source
from ..nn.embeddings import HintEncoder


def copied(unet: Any, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Copies of the encoder's tensors in `dtype` (None: their own), and a hint encoder drawn from torch's global
    generator, whose last layer is zero."""
    tensors = {name: t.detach().to(dtype or t.dtype, copy=True) for name, t in source.encoder(unet).items()}
    like = tensors["conv_in.weight"]
    hint = HintEncoder((3, 16, 32, 96, 256), like.shape[0])
    for parameter in hint.conv_out.parameters():
        nn.init.zeros_(parameter)
    return tensors | {f"controlnet_cond_embedding.{name}": t.to(like) for name, t in hint.state_dict().items()}

"""A stand-in for ldm's UNetModel over the modules of a diffusers UNet: the same weights, ldm's blocks and ldm's way
through them (CompVis/stable-diffusion, openaimodel.py), so that both hosts can be compared to the bit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Resnet(nn.Module):
    """ldm's names for what control models look for; diffusers' module does the work."""

    def __init__(self, resnet: Any):
        super().__init__()
        self.out_channels, self.in_layers = resnet.out_channels, [resnet.norm1, nn.SiLU(), resnet.conv1]
        self.inner = resnet


class Transformer(nn.Module):
    def __init__(self, transformer: Any):
        super().__init__()
        self.transformer_blocks, self.inner = transformer.transformer_blocks, transformer


class Block(nn.Sequential):
    """ldm's TimestepEmbedSequential."""

    def forward(self, h: Tensor, emb: Tensor, context: Tensor | None = None) -> Tensor:
        for part in self:
            if isinstance(part, Resnet):
                h = part.inner(h, emb)
            elif isinstance(part, Transformer):
                h = part.inner(h, encoder_hidden_states=context).sample
            else:
                h = part(h)
        return h


class UNetModel(nn.Module):
    def __init__(self, unet: Any):
        super().__init__()
        self.inner, self.time_embed = [unet], unet.time_embedding
        encoder, decoder = [Block(unet.conv_in)], []
        for level in unet.down_blocks:
            encoder += _blocks(level)
            encoder += [Block(part) for part in level.downsamplers or ()]
        for level in unet.up_blocks:
            blocks = _blocks(level)
            for part in level.upsamplers or ():
                blocks[-1].append(part)
            decoder += blocks
        self.input_blocks, self.output_blocks = nn.ModuleList(encoder), nn.ModuleList(decoder)
        middle = unet.mid_block
        self.middle_block = Block(
            Resnet(middle.resnets[0]), Transformer(middle.attentions[0]), Resnet(middle.resnets[1])
        )
        if getattr(unet, "add_embedding", None) is not None:
            self.label_emb = nn.Sequential(nn.Sequential(unet.add_embedding.linear_1))

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor, y: Tensor | None = None) -> Tensor:
        (unet,) = self.inner
        emb = self.time_embed(unet.time_proj(timesteps).to(x))
        if y is not None:
            emb = emb + unet.add_embedding(y)
        h, skips = x, []
        for block in self.input_blocks:
            h = block(h, emb, context)
            skips.append(h)
        h = self.middle_block(h, emb, context)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb, context)
        return unet.conv_out(unet.conv_act(unet.conv_norm_out(h)))


def _blocks(level: Any) -> list[Block]:
    attentions = getattr(level, "attentions", [None] * len(level.resnets))
    return [
        Block(Resnet(resnet), *([] if attention is None else [Transformer(attention)]))
        for resnet, attention in zip(level.resnets, attentions, strict=True)
    ]

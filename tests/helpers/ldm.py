"""A stand-in for ldm's UNetModel over the modules of a diffusers UNet: the same weights under ldm's names, ldm's blocks
and its way through them (CompVis/stable-diffusion, openaimodel.py), so that both hosts can be compared to the bit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Resnet(nn.Module):
    """ldm's names for a resnet's layers; diffusers' module does the work."""

    def __init__(self, resnet: Any):
        super().__init__()
        self.out_channels, self.inner = resnet.out_channels, [resnet]  # in a list: it is no module of this one
        self.in_layers = nn.Sequential(resnet.norm1, nn.SiLU(), resnet.conv1)
        self.emb_layers = nn.Sequential(nn.SiLU(), resnet.time_emb_proj)
        self.out_layers = nn.Sequential(resnet.norm2, nn.SiLU(), nn.Dropout(0), resnet.conv2)
        self.skip_connection = nn.Identity() if resnet.conv_shortcut is None else resnet.conv_shortcut


class Transformer(nn.Module):
    def __init__(self, transformer: Any):
        super().__init__()
        self.inner = [transformer]
        self.norm, self.proj_in = transformer.norm, transformer.proj_in
        self.transformer_blocks, self.proj_out = transformer.transformer_blocks, transformer.proj_out


class Downsample(nn.Module):
    def __init__(self, downsampler: Any):
        super().__init__()
        self.op, self.inner = downsampler.conv, [downsampler]

    def forward(self, h: Tensor) -> Tensor:
        down: Tensor = self.inner[0](h)
        return down


class Block(nn.Sequential):
    """ldm's TimestepEmbedSequential."""

    def forward(self, h: Tensor, emb: Tensor, context: Tensor | None = None) -> Tensor:
        for part in self:
            if isinstance(part, Resnet):
                h = part.inner[0](h, emb)
            elif isinstance(part, Transformer):
                h = part.inner[0](h, encoder_hidden_states=context).sample
            else:
                h = part(h)
        return h


class UNetModel(nn.Module):
    def __init__(self, unet: Any):
        super().__init__()
        self.inner, embedding = [unet], unet.time_embedding
        self.time_embed = nn.Sequential(embedding.linear_1, nn.SiLU(), embedding.linear_2)
        encoder, decoder = [Block(unet.conv_in)], []
        for level in unet.down_blocks:
            encoder += _blocks(level)
            encoder += [Block(Downsample(part)) for part in level.downsamplers or ()]
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
            added = unet.add_embedding
            self.label_emb = nn.Sequential(nn.Sequential(added.linear_1, nn.SiLU(), added.linear_2))

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

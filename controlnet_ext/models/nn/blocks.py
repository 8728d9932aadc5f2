"""The blocks of Stable Diffusion's encoder in plain torch; what enters them is in embeddings.py.

Submodules bear diffusers' names, so that its state dicts load strictly, and operations keep its order (diffusers
0.42, models/resnet.py, models/attention.py, models/transformers/transformer_2d.py), so that results are equal to the
bit. Operations that do nothing there (dropout 0, division by 1) are left out.

Layers compute in their input's dtype, whatever their weights are stored in (float8, in which nothing computes), and on
its device, wherever the weights are. Where both are the same nothing is copied. On torch's meta device, where a network
waits for its weights, they are not initialized first: that would take 0.1 s a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F


class Linear(nn.Linear):
    """`nn.Linear` that computes in its input's dtype, on its device."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        return apply_layer(self, x, self.weight, self.bias)


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` that computes in its input's dtype, on its device."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        return apply_layer(self, x, self.weight, self.bias)


class GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` that computes in its input's dtype, on its device."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        return apply_layer(self, x, self.weight, self.bias)


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` that computes in its input's dtype, on its device."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        return apply_layer(self, x, self.weight, self.bias)


def cast_like(tensor: Tensor, x: Tensor) -> Tensor:
    """Return the tensor, of any shape, on x's device and in its dtype; the dtype changes there, so that float8 is
    copied as float8."""
    if tensor.device != x.device:
        tensor = tensor.to(x.device, non_blocking=True)
    return tensor.to(x.dtype)


def apply_layer(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute the layer on x, of a shape that it takes, with these weights instead of its own. TypeError for a layer of
    another class."""
    weight, bias = cast_like(weight, x), None if bias is None else cast_like(bias, x)
    match layer:
        case nn.Linear():
            return F.linear(x, weight, bias)
        case nn.Conv2d():
            return F.conv2d(x, weight, bias, layer.stride, layer.padding)
        case nn.GroupNorm():
            return F.group_norm(x, layer.num_groups, weight, bias, layer.eps)
        case nn.LayerNorm():
            return F.layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)
    raise TypeError(f"a {type(layer).__name__} is no layer of a ControlNet")


@dataclass(frozen=True)
class BlockDims:
    """Dimensions that all blocks of a network share: widths of the `time` embedding and of the prompt's `context`,
    groups of the normalizations, and whether the transformers' projections are linear (SD2.1, SDXL) or 1x1
    convolutions."""

    time_width: int
    context_width: int
    norm_groups: int
    has_linear_projection: bool


class ResnetBlock(nn.Module):
    """Two convolutions around a shortcut; the time embedding is added between them."""

    def __init__(self, in_channels: int, out_channels: int, dims: BlockDims):
        super().__init__()
        self.norm1 = GroupNorm(dims.norm_groups, in_channels, eps=1e-5)
        self.conv1 = Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = Linear(dims.time_width, out_channels)
        self.norm2 = GroupNorm(dims.norm_groups, out_channels, eps=1e-5)
        self.conv2 = Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time_emb_proj(F.silu(time))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        out: Tensor = (x if self.conv_shortcut is None else self.conv_shortcut(x)) + h
        return out


class Attention(nn.Module):
    """Attention of tokens `(B, N, C)` over `(B, T, D)`. `heads` is not in the weights: it may be set after they are
    loaded."""

    def __init__(self, width: int, context: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = Linear(width, width, bias=False)
        self.to_k = Linear(context, width, bias=False)
        self.to_v = Linear(context, width, bias=False)
        self.to_out = nn.Sequential(Linear(width, width))

    def forward(self, h: Tensor, context: Tensor) -> Tensor:
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, tokens, C / heads)
            for y in (self.to_q(h), self.to_k(context), self.to_v(context))
        )
        out: Tensor = self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class GEGLU(nn.Module):
    """A gated GELU over tokens `(B, T, C)` (Shazeer, arXiv:2002.05202)."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.proj = Linear(width, 2 * inner)

    def forward(self, h: Tensor) -> Tensor:
        value, gate = self.proj(h).chunk(2, dim=-1)
        out: Tensor = value * F.gelu(gate)
        return out


class FeedForward(nn.Module):
    """The feed-forward layer of a transformer block, over tokens `(B, T, C)`."""

    def __init__(self, width: int):
        super().__init__()
        # the Identity stands where diffusers has a dropout, so that the last layer is net.2
        self.net = nn.Sequential(GEGLU(width, 4 * width), nn.Identity(), Linear(4 * width, width))

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.net(h)
        return out


class TransformerBlock(nn.Module):
    """Tokens look at each other, then at the prompt, then think: `(B, N, C)` to the same."""

    def __init__(self, width: int, context: int, heads: int):
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.attn1 = Attention(width, width, heads)
        self.norm2 = LayerNorm(width)
        self.attn2 = Attention(width, context, heads)
        self.norm3 = LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(self, h: Tensor, context: Tensor) -> Tensor:
        x = self.norm1(h)
        h = self.attn1(x, x) + h
        h = self.attn2(self.norm2(h), context) + h
        out: Tensor = self.ff(self.norm3(h)) + h
        return out


class SpatialTransformer(nn.Module):
    """`depth` transformer blocks over the pixels of `(B, C, h, w)`, with a shortcut around them."""

    def __init__(self, width: int, depth: int, heads: int, dims: BlockDims):
        super().__init__()
        self.has_linear_projection = dims.has_linear_projection
        self.norm = GroupNorm(dims.norm_groups, width, eps=1e-6)
        self.proj_in = Linear(width, width) if self.has_linear_projection else Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(width, dims.context_width, heads) for _ in range(depth)
        )
        self.proj_out = Linear(width, width) if self.has_linear_projection else Conv2d(width, width, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        h = self.norm(x)
        if not self.has_linear_projection:
            h = self.proj_in(h)
        h = h.permute(0, 2, 3, 1).flatten(1, 2)  # (B, h w, C)
        if self.has_linear_projection:
            h = self.proj_in(h)
        for block in self.transformer_blocks:
            h = block(h, context)
        if self.has_linear_projection:
            h = self.proj_out(h)
        h = h.unflatten(1, (height, width)).permute(0, 3, 1, 2).contiguous()
        out: Tensor = (h if self.has_linear_projection else self.proj_out(h)) + x
        return out


class Downsample(nn.Module):
    """A convolution with a stride of 2: `(B, C, h, w)` to `(B, C, h/2, w/2)`."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class EncoderLevel(nn.Module):
    """One resolution of the encoder: a resnet from each of `widths` to the next, a transformer behind each where
    `depths` has its depth (empty: there are none), and a downsampling unless it is the last level."""

    def __init__(self, widths: Sequence[int], depths: Sequence[int], heads: int, dims: BlockDims, *, is_last: bool):
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(a, b, dims) for a, b in pairwise(widths))
        self.attentions = nn.ModuleList(SpatialTransformer(widths[-1], depth, heads, dims) for depth in depths)
        self.motion_modules = nn.ModuleList()  # of networks for videos: one behind each resnet and its transformer
        self.downsamplers = nn.ModuleList([] if is_last else [Downsample(widths[-1])])

    def forward(self, x: Tensor, time: Tensor, context: Tensor, frames: int = 1) -> list[Tensor]:
        """All outputs in order: the skips of this level, of which the last is what the next level starts from."""
        skips = []
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, time)
            if self.attentions:
                x = self.attentions[i](x, context)
            if self.motion_modules:
                x = self.motion_modules[i](x, frames)
            skips.append(x)
        for downsampler in self.downsamplers:
            skips.append(downsampler(x))
        return skips


class MiddleBlock(nn.Module):
    """The middle block: a resnet, and unless `depth` is None a transformer of that depth and a second resnet."""

    def __init__(self, width: int, depth: int | None, heads: int, dims: BlockDims):
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(width, width, dims) for _ in range(1 if depth is None else 2))
        self.attentions = nn.ModuleList([] if depth is None else [SpatialTransformer(width, depth, heads, dims)])

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        x = self.resnets[0](x, time)
        for attention, resnet in zip(self.attentions, self.resnets[1:], strict=True):
            x = resnet(attention(x, context), time)
        return x

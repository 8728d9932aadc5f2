"""Swin Transformer (Liu et al., arXiv 2103.14030) as a pyramid of features: attention within windows, every second time
within windows shifted by half.

With the names of weights of microsoft/Swin-Transformer's code for detection, which BiRefNet uses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SwinTransformer(nn.Module):
    """Features (B, width * 2^i, H / 4 / 2^i, W / 4 / 2^i) of images (B, 3, H, W), one for each of `depths`, sizes
    rounded up. `heads` of attention likewise; windows are of `window` squared."""

    def __init__(self, width: int, depths: Sequence[int], heads: Sequence[int], window: int):
        super().__init__()
        self.patch_embed = _PatchEmbed(width)
        self.layers = nn.ModuleList(
            _Stage(width << i, depth, count, window, i + 1 < len(depths))
            for i, (depth, count) in enumerate(zip(depths, heads, strict=True))
        )
        for i in range(len(depths)):
            setattr(self, f"norm{i}", nn.LayerNorm(width << i))

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.patch_embed(images)
        features = []
        for i, stage in enumerate(self.layers):
            x = stage(x if i == 0 else self.layers[i - 1].downsample(x))  # type: ignore[operator]  # it is a module
            features.append(getattr(self, f"norm{i}")(x).permute(0, 3, 1, 2))
        return features


class _PatchEmbed(nn.Module):
    """(B, H, W, width) of squares of 4 pixels."""

    def __init__(self, channels: int):
        super().__init__()
        self.proj = nn.Conv2d(3, channels, 4, 4)
        self.norm = nn.LayerNorm(channels)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        return self.norm(self.proj(F.pad(images, (0, -width % 4, 0, -height % 4))).permute(0, 2, 3, 1))


class _Stage(nn.Module):
    def __init__(self, channels: int, depth: int, heads: int, window: int, downsamples: bool):
        super().__init__()
        self.window = window
        self.blocks = nn.ModuleList(_SwinBlock(channels, heads, window, window // 2 * (i % 2)) for i in range(depth))
        if downsamples:
            self.downsample = _PatchMerging(channels)

    def forward(self, x: Tensor) -> Tensor:
        apart = _make_shift_mask(x, self.window)
        for block in self.blocks:
            x = block(x, apart)
        return x


def _make_shift_mask(x: Tensor, window: int) -> Tensor:
    """Return the mask `(windows, 1, window^2, window^2)` that is added to the attention in shifted windows of x `(B, H,
    W, C)`: 0, or -inf between places that only the shift has brought together."""
    height, width = x.shape[1:3]
    region = torch.zeros(1, height + -height % window, width + -width % window, 1)
    parts = (slice(-window), slice(-window, -(window // 2)), slice(-(window // 2), None))
    for i, rows in enumerate(parts):
        for j, columns in enumerate(parts):
            region[:, rows, columns] = 3 * i + j
    flat = _partition_windows(region, window)[..., 0]  # (windows, window^2)
    differs = flat[:, None, :] != flat[:, :, None]
    return torch.zeros(differs.shape).masked_fill(differs, float("-inf"))[:, None].to(x)


def _partition_windows(x: Tensor, window: int) -> Tensor:
    """(B * windows, window^2, C) of (B, H, W, C)."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // window, window, w // window, window, c).transpose(2, 3)
    return x.reshape(-1, window**2, c)


def _merge_windows(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """(B, height, width, C) of (B * windows, window^2, C)."""
    x = windows.reshape(-1, height // window, width // window, window, window, windows.shape[2]).transpose(2, 3)
    return x.reshape(-1, height, width, windows.shape[2])


class _SwinBlock(nn.Module):
    def __init__(self, channels: int, heads: int, window: int, shift: int):
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(channels)
        self.attn = _WindowAttention(channels, heads, window)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = _Mlp(channels)

    def forward(self, x: Tensor, shift_mask: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        windows_input = F.pad(self.norm1(x), (0, 0, 0, -width % self.window, 0, -height % self.window))
        size = windows_input.shape[1:3]
        shift_input = windows_input.roll((-self.shift, -self.shift), (1, 2))
        attention = self.attn(_partition_windows(shift_input, self.window), shift_mask if self.shift else None)
        back = _merge_windows(attention, self.window, *size).roll((self.shift, self.shift), (1, 2))
        x = x + back[:, :height, :width]
        return x + self.mlp(self.norm2(x))


class _WindowAttention(nn.Module):
    def __init__(self, channels: int, heads: int, window: int):
        super().__init__()
        self.heads, self.window = heads, window
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, shift_mask: Tensor | None) -> Tensor:
        count, length, width = x.shape
        q, k, v = self.qkv(x).reshape(count, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        places = _compute_relative_position_index(self.window).to(x.device)
        bias = self.relative_position_bias_table[places].permute(2, 0, 1)[None]  # 1, heads, window^2, window^2
        if shift_mask is not None:
            bias = bias + shift_mask.repeat(count // len(shift_mask), 1, 1, 1)
        return self.proj(F.scaled_dot_product_attention(q, k, v, bias).transpose(1, 2).reshape(count, length, width))


def _compute_relative_position_index(window: int) -> Tensor:
    """Return the index `(window^2, window^2)` into the table of biases for each pair of places in a window."""
    rows, columns = (side.flatten() for side in torch.meshgrid(*[torch.arange(window)] * 2, indexing="ij"))
    down, right = (side[:, None] - side[None] + window - 1 for side in (rows, columns))
    return down * (2 * window - 1) + right


class _Mlp(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.fc2 = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _PatchMerging(nn.Module):
    """Half as high and wide: of each square of four places their features side by side."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        four = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(four, dim=3)))

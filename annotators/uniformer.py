"""UniFormer-S with an UPerNet head, which tells the 150 classes of ADE20K apart (Li et al., arXiv 2201.09450; Xiao et
al., Unified Perceptual Parsing, arXiv 1807.10221).

Written after Sense-X/UniFormer's UniFormer and open-mmlab/mmsegmentation's UPerHead, with their names of weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

UNIFORMER_WIDTHS, UNIFORMER_DEPTHS, ATTENTION_HEAD_DIM = (64, 128, 320, 512), (3, 4, 8, 3), 64
DECODER_CHANNELS, ADE20K_CLASSES, PYRAMID_POOL_SIZES = 512, 150, (1, 2, 3, 6)


class UperNet(nn.Module):
    """Scores of classes (B, 150, ⌊H/4⌋, ⌊W/4⌋) of images (B, 3, H, W), RGB by ImageNet's mean and deviation, H and W
    from 32 on."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = UniFormer()
        self.decode_head = _UperHead()

    def forward(self, x: Tensor) -> Tensor:
        return self.decode_head(self.backbone(x))


class UniFormer(nn.Module):
    """Features of four depths (B, 64, H/4, W/4), (B, 128, H/8, W/8), (B, 320, H/16, W/16) and (B, 512, H/32, W/32)."""

    def __init__(self) -> None:
        super().__init__()
        for i, (width, depth) in enumerate(zip(UNIFORMER_WIDTHS, UNIFORMER_DEPTHS, strict=True), 1):
            before, size, block = (
                (3, 4, _LocalBlock) if i == 1 else (UNIFORMER_WIDTHS[i - 2], 2, _LocalBlock if i == 2 else _GlobalBlock)
            )
            setattr(self, f"patch_embed{i}", _PatchEmbed(before, width, size))
            setattr(self, f"blocks{i}", nn.Sequential(*(block(width) for _ in range(depth))))
            setattr(self, f"norm{i}", nn.LayerNorm(width, eps=1e-6))

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for i in range(1, 5):
            x = getattr(self, f"blocks{i}")(getattr(self, f"patch_embed{i}")(x))
            features.append(_norm_channels(getattr(self, f"norm{i}"), x))
        return features


def _norm_channels(norm: nn.Module, x: Tensor) -> Tensor:
    """A normalisation of the last axis, of the channels of x (B, C, H, W)."""
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _PatchEmbed(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, patch_size: int):
        super().__init__()
        self.norm = nn.LayerNorm(out_channels)
        self.proj = nn.Conv2d(in_channels, out_channels, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return _norm_channels(self.norm, self.proj(x))


class _LocalBlock(nn.Module):
    """A block whose pixels look at 5x5 others."""

    def __init__(self, channels: int):
        super().__init__()
        self.pos_embed = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 1)
        self.conv2 = nn.Conv2d(channels, channels, 1)
        self.attn = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.norm2 = nn.BatchNorm2d(channels)
        self.mlp = _Mlp(channels, lambda before, after: nn.Conv2d(before, after, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pos_embed(x)
        x = x + self.conv2(self.attn(self.conv1(self.norm1(x))))
        return x + self.mlp(self.norm2(x))


class _GlobalBlock(nn.Module):
    """A block whose pixels look at all others."""

    def __init__(self, channels: int):
        super().__init__()
        self.pos_embed = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = _SelfAttention(channels)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = _Mlp(channels, nn.Linear)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pos_embed(x)
        rows = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)  # (B, H W, C)
        x = x + self.attn(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return x.transpose(1, 2).unflatten(2, rows)


class _SelfAttention(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            self.qkv(x).unflatten(2, (3, -1, ATTENTION_HEAD_DIM)).permute(2, 0, 3, 1, 4)
        )  # each (B, heads, H W, 64)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, channels: int, make_layer: Callable[[int, int], nn.Module]):
        super().__init__()
        self.fc1 = make_layer(channels, 4 * channels)
        self.fc2 = make_layer(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _UperHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_seg = nn.Conv2d(DECODER_CHANNELS, ADE20K_CLASSES, 1)
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(size), _ConvBnRelu(UNIFORMER_WIDTHS[-1], 1))
            for size in PYRAMID_POOL_SIZES
        )
        self.bottleneck = _ConvBnRelu(UNIFORMER_WIDTHS[-1] + len(PYRAMID_POOL_SIZES) * DECODER_CHANNELS, 3)
        self.lateral_convs = nn.ModuleList(_ConvBnRelu(width, 1) for width in UNIFORMER_WIDTHS[:-1])
        self.fpn_convs = nn.ModuleList(_ConvBnRelu(DECODER_CHANNELS, 3) for _ in UNIFORMER_WIDTHS[:-1])
        self.fpn_bottleneck = _ConvBnRelu(len(UNIFORMER_WIDTHS) * DECODER_CHANNELS, 3)

    def forward(self, features: list[Tensor]) -> Tensor:
        deepest = features[-1]
        pyramid = [_resize_like(pool(deepest), deepest) for pool in self.psp_modules]
        x = self.bottleneck(torch.cat([deepest, *pyramid], dim=1))
        levels = [x]
        for lateral, convolution, feature in reversed(
            list(zip(self.lateral_convs, self.fpn_convs, features[:-1], strict=True))
        ):
            side = lateral(feature)
            x = side + _resize_like(x, side)
            levels.append(convolution(x))
        levels = [_resize_like(one, levels[-1]) for one in reversed(levels)]
        return self.conv_seg(self.fpn_bottleneck(torch.cat(levels, dim=1)))


class _ConvBnRelu(nn.Module):
    def __init__(self, in_channels: int, kernel_size: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, DECODER_CHANNELS, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(DECODER_CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def _resize_like(x: Tensor, reference: Tensor) -> Tensor:
    return F.interpolate(x, reference.shape[2:], mode="bilinear", align_corners=False)


def load(tensors: dict[str, Tensor]) -> UperNet:
    """The network of the published file's tensors, all of them and no others but those of the head that only training
    needs, auxiliary_head. Raises RuntimeError otherwise."""
    with torch.device("meta"):  # no time is lost on values that are replaced
        net = UperNet().to_empty(device="cpu")
    net.load_state_dict({key: tensor for key, tensor in tensors.items() if not key.startswith("auxiliary_head.")})
    return net

"""BiRefNet (Zheng et al., Bilateral Reference for High-Resolution Dichotomous Image Segmentation, arXiv 2401.03407):
what stands out in an image, by a Swin Transformer on the image and on its half, and a decoder that looks at the
image again at each step.

Written after ZhengPeng7/BiRefNet @ 25cb9309bacf, models/, with its names of weights, without what only training needs.
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .swin import SwinTransformer

_BLOCK_CHANNELS, _BRANCH_CHANNELS = 64, 256  # channels of every decoder block, of each of its parallel convolutions
# of published files: heads for training, and tables that are computed from sizes
_UNUSED_KEYS = re.compile(r"decoder\.(conv_ms_spvn|gdt_convs_pred)_\d\.|.*\.relative_position_index$")
_WRAPPER_PREFIX = re.compile(r"^((module|_orig_mod)\.)+")  # of training on several devices, and compiled


class BiRefNet(nn.Module):
    """Logits (B, 1, H, W) of what stands out in images (B, 3, H, W), RGB by ImageNet's mean and deviation, of sides
    that are multiples of 64."""

    def __init__(self, bb: SwinTransformer, width: int):
        super().__init__()
        widths = [2 * width << i for i in (3, 2, 1, 0)]  # of the image's features and its half's, the deepest first
        self.bb = bb
        self.squeeze_module = nn.Sequential(_DecoderBlock(sum(widths), widths[0]))
        self.decoder = _Decoder(widths)

    def forward(self, images: Tensor) -> Tensor:
        halves = F.interpolate(images, scale_factor=0.5, mode="bilinear", align_corners=True)
        pairs = zip(self.bb(images), self.bb(halves), strict=True)
        features = [torch.cat([whole, _resize_like(half, whole)], dim=1) for whole, half in pairs]
        deepest = torch.cat([_resize_like(feature, features[-1]) for feature in features], dim=1)
        return self.decoder(images, [*features[:-1], self.squeeze_module(deepest)])


class _Decoder(nn.Module):
    def __init__(self, widths: list[int]):
        super().__init__()
        after = [*widths[1:], widths[-1] // 2]
        patch_widths = [widths[0] // 8, *(width // 8 for width in widths)]  # of the image itself
        for i, n in enumerate((4, 3, 2, 1)):
            setattr(self, f"ipt_blk{n + 1}", _SimpleConvs(3 * 4 ** (n + 1), patch_widths[i]))
            setattr(self, f"decoder_block{n}", _DecoderBlock(widths[i] + patch_widths[i], after[i]))
            if n > 1:
                setattr(self, f"lateral_block{n}", _LateralBlock(widths[i + 1], after[i]))
                setattr(self, f"gdt_convs_{n}", nn.Sequential(nn.Conv2d(after[i], 16, 3, 1, 1), nn.BatchNorm2d(16)))
                setattr(self, f"gdt_convs_attn_{n}", nn.Sequential(nn.Conv2d(16, 1, 1)))
        self.ipt_blk1 = _SimpleConvs(3, patch_widths[4])
        self.conv_out1 = nn.Sequential(nn.Conv2d(after[3] + patch_widths[4], 1, 1))

    def forward(self, images: Tensor, features: list[Tensor]) -> Tensor:
        x = features[-1]
        for n in (4, 3, 2, 1):
            x = torch.cat([x, getattr(self, f"ipt_blk{n + 1}")(_split_into_channels(images, x))], dim=1)
            x = getattr(self, f"decoder_block{n}")(x)
            if n > 1:
                edges = F.relu(getattr(self, f"gdt_convs_{n}")(x))
                x = x * getattr(self, f"gdt_convs_attn_{n}")(edges).sigmoid()
                x = _resize_like(x, features[n - 2]) + getattr(self, f"lateral_block{n}")(features[n - 2])
        x = torch.cat([_resize_like(x, images), self.ipt_blk1(images)], dim=1)
        return self.conv_out1(x)


class _DecoderBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, _BLOCK_CHANNELS, 3, padding=1)
        self.bn_in = nn.BatchNorm2d(_BLOCK_CHANNELS)
        self.dec_att = _DeformableASPP()
        self.conv_out = nn.Conv2d(_BLOCK_CHANNELS, out_channels, 3, padding=1)
        self.bn_out = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn_out(self.conv_out(self.dec_att(F.relu(self.bn_in(self.conv_in(x))))))


class _DeformableASPP(nn.Module):
    """Deformable convolutions of several sizes, and the mean of all, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.aspp1 = _DeformableConvBnRelu(1)
        self.aspp_deforms = nn.ModuleList(_DeformableConvBnRelu(size) for size in (1, 3, 7))
        self.global_avg_pool = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(_BLOCK_CHANNELS, _BRANCH_CHANNELS, 1, bias=False),
            nn.BatchNorm2d(_BRANCH_CHANNELS),
            nn.ReLU(),
        )
        self.conv1 = nn.Conv2d(5 * _BRANCH_CHANNELS, _BLOCK_CHANNELS, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_BLOCK_CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        branches = [self.aspp1(x), *(each(x) for each in self.aspp_deforms)]
        mean = self.global_avg_pool(x).expand(-1, -1, *x.shape[2:])
        return F.relu(self.bn1(self.conv1(torch.cat([*branches, mean], dim=1))))


class _DeformableConvBnRelu(nn.Module):
    def __init__(self, kernel_size: int):
        super().__init__()
        self.atrous_conv = DeformableConv2d(_BLOCK_CHANNELS, _BRANCH_CHANNELS, kernel_size)
        self.bn = nn.BatchNorm2d(_BRANCH_CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.atrous_conv(x)))


class DeformableConv2d(nn.Module):
    """A convolution that looks, and how strongly, where two others say (Zhu et al., Deformable ConvNets v2,
    arXiv 1811.11168), as torchvision.ops.deform_conv2d computes it. One place of the kernel after the other, so that
    its 49 need no memory at once."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__()
        self.kernel_size = kernel_size
        self.offset_conv = nn.Conv2d(in_channels, 2 * kernel_size**2, kernel_size, padding=kernel_size // 2)
        self.modulator_conv = nn.Conv2d(in_channels, kernel_size**2, kernel_size, padding=kernel_size // 2)
        self.regular_conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        offsets = self.offset_conv(x).float().unflatten(1, (-1, 2)).permute(1, 0, 3, 4, 2)  # places, B, H, W, (y, x)
        strengths = 2 * self.modulator_conv(x).sigmoid().transpose(0, 1)[:, :, None]  # places, B, 1, H, W
        rows, columns = (torch.arange(side, device=x.device) - self.kernel_size // 2 for side in (height, width))
        image, sides = x.float(), torch.tensor([width, height], device=x.device)
        total = x.new_zeros(())
        for i, (offset, strength) in enumerate(zip(offsets, strengths, strict=True)):
            y = offset[..., 0] + (rows + i // self.kernel_size)[:, None]
            there = torch.stack([offset[..., 1] + columns + i % self.kernel_size, y], dim=-1)
            grid = (2 * there + 1) / sides - 1
            samples = F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
            weight = self.regular_conv.weight[:, :, i // self.kernel_size, i % self.kernel_size, None, None]
            total = total + F.conv2d(samples.to(x.dtype) * strength, weight)
        return total


class _SimpleConvs(nn.Module):
    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1)
        self.conv_out = nn.Conv2d(64, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(self.conv1(x))


class _LateralBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def _resize_like(x: Tensor, reference: Tensor) -> Tensor:
    return F.interpolate(x, reference.shape[2:], mode="bilinear", align_corners=True)


def _split_into_channels(images: Tensor, reference: Tensor) -> Tensor:
    """The tiles of images, each as large as `like`, as channels."""
    height, width = reference.shape[2:]
    tiles = images.unflatten(3, (-1, width)).unflatten(2, (-1, height))  # B, 3, down, height, right, width
    return tiles.transpose(3, 4).flatten(1, 3)


def load(tensors: dict[str, Tensor]) -> BiRefNet:
    """The network of a published file's tensors, of the size that their shapes say: all of them and no others but what
    only training needs. Raises RuntimeError otherwise, ValueError where they are not those of BiRefNet on Swin."""
    tensors_by_name = {_WRAPPER_PREFIX.sub("", key): tensor for key, tensor in tensors.items()}
    tensors = {key: tensor for key, tensor in tensors_by_name.items() if not _UNUSED_KEYS.match(key)}
    width = _get_dimension(tensors, "bb.patch_embed.proj.weight", 0)
    stages = [f"bb.layers.{i}.blocks." for i in range(4)]
    tables = [f"{stage}0.attn.relative_position_bias_table" for stage in stages]
    depths = [sum(key.startswith(stage) and key.endswith(".norm1.weight") for key in tensors) for stage in stages]
    heads = [_get_dimension(tensors, table, 1) for table in tables]
    window = (math.isqrt(_get_dimension(tensors, tables[0], 0)) + 1) // 2
    with torch.device("meta"):  # no time is lost on values that are replaced
        net = BiRefNet(SwinTransformer(width, depths, heads, window), width).to_empty(device="cpu")
    net.load_state_dict(tensors)
    return net


def _get_dimension(tensors: dict[str, Tensor], key: str, axis: int) -> int:
    if key not in tensors or tensors[key].ndim <= axis or 0 in tensors[key].shape:
        raise ValueError(f"no tensor {key!r} of a BiRefNet on a Swin Transformer")
    return tensors[key].shape[axis]

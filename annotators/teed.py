"""TEED: edges in 58,910 parameters (Soria et al., Tiny and Efficient Model for the Edge Detection Generalization,
ICCV workshops 2023). MTEED, Anyline's, is the same network with other weights.

Written after the paper and xavysp/TEED (MIT), with its names of weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def smish(x: Tensor) -> Tensor:
    """Compute x tanh(ln(1 + s)) with s = sigmoid(x), for x of any shape, by tanh(ln u) = (u^2 - 1) / (u^2 + 1)."""
    s = x.sigmoid()
    s = s.mul_(s + 2)  # (1 + s)^2 - 1
    return s.div_(s + 2).mul_(x)


class Smish(nn.Module):
    """`smish` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return smish(x)


class TEED(nn.Module):
    """Edges of images (B, 3, H, W), RGB in 0..255, H and W multiples of 4: four maps (B, 1, H, W) of logits, of three
    stages, then of all together."""

    def __init__(self) -> None:
        super().__init__()
        self.block_1 = _DoubleConvBlock(3, 16, stride=2)
        self.block_2 = _DoubleConvBlock(16, 32, has_final_activation=False)
        self.dblock_3 = nn.ModuleDict({"denselayer1": _DenseLayer(32, 48)})
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.side_1 = _SingleConvBlock(16, 32, stride=2)
        self.pre_dense_3 = _SingleConvBlock(32, 48)
        self.up_block_1 = _UpConvBlock(16, 1)
        self.up_block_2 = _UpConvBlock(32, 1)
        self.up_block_3 = _UpConvBlock(48, 2)
        self.block_cat = _DoubleFusion()

    def forward(self, x: Tensor) -> list[Tensor]:
        one = self.block_1(x)  # (B, 16, H/2, W/2)
        two = self.block_2(one)  # (B, 32, H/2, W/2)
        half = self.maxpool(two)
        three = self.dblock_3["denselayer1"](half + self.side_1(one), self.pre_dense_3(half))  # (B, 48, H/4, W/4)
        edges = [self.up_block_1(one), self.up_block_2(two), self.up_block_3(three)]
        return [*edges, self.block_cat(torch.cat(edges, dim=1))]


class _DoubleConvBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, has_final_activation: bool = True):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.has_final_activation = has_final_activation  # whether it ends in an activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(smish(self.conv1(x)))
        return smish(x) if self.has_final_activation else x


class _SingleConvBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class _DenseLayer(nn.Module):
    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=2)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return 0.5 * (self.conv2(smish(self.conv1(smish(x)))) + skip)


class _UpConvBlock(nn.Module):
    """Doubles the size `times` times, down to one channel."""

    def __init__(self, in_channels: int, times: int):
        super().__init__()
        size, padding = {1: (2, 0), 2: (4, 1)}[times]
        layers: list[nn.Module] = []
        for i in range(times):
            width = 1 if i == times - 1 else 16
            layers += [nn.Conv2d(in_channels, width, 1), Smish()]
            layers += [nn.ConvTranspose2d(width, width, size, stride=2, padding=padding)]
            in_channels = width
        self.features = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)


class _DoubleFusion(nn.Module):
    """The paper's double fusion of the three stages' maps."""

    def __init__(self) -> None:
        super().__init__()
        self.DWconv1 = nn.Conv2d(3, 24, 3, padding=1, groups=3)
        self.DWconv2 = nn.Conv2d(24, 24, 3, padding=1, groups=24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.DWconv1(smish(x))
        return smish((x + self.DWconv2(smish(x))).sum(dim=1, keepdim=True))


def load(tensors: dict[str, Tensor]) -> TEED:
    """The network of a published file's tensors, all of them and no others. Raises RuntimeError otherwise."""
    net = TEED()
    net.load_state_dict(tensors)
    return net

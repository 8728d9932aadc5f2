"""HED as ControlNet retrained it for RGB: edges from five depths of a VGG (after Xie and Tu, Holistically-Nested Edge
Detection, ICCV 2015).

Written after lllyasviel/ControlNet-v1-1-nightly's ControlNetHED_Apache2 (Apache-2.0), with its names of weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class HED(nn.Module):
    """Edges of images (B, 3, H, W), RGB in 0..255: five maps of logits (B, 1, H, W), (B, 1, H/2, W/2) and so on to a
    sixteenth, sizes cut to whole numbers, H and W from 16 on."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Parameter(torch.zeros(1, 3, 1, 1))
        self.block1 = _DoubleConvBlock(3, 64, 2)
        self.block2 = _DoubleConvBlock(64, 128, 2)
        self.block3 = _DoubleConvBlock(128, 256, 3)
        self.block4 = _DoubleConvBlock(256, 512, 3)
        self.block5 = _DoubleConvBlock(512, 512, 3)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.block1(x - self.norm)
        edges = [self.block1.projection(x)]
        for block in (self.block2, self.block3, self.block4, self.block5):
            x = block(F.max_pool2d(x, 2))
            edges.append(block.projection(x))
        return edges


class _DoubleConvBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, conv_count: int):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(out_channels if i else in_channels, out_channels, 3, padding=1) for i in range(conv_count)
        )
        self.projection = nn.Conv2d(out_channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        for convolution in self.convs:
            x = convolution(x).relu_()
        return x


def fuse_side_outputs(edges: list[Tensor]) -> Tensor:
    """The mean of the maps' logits at the size of the first, as (B, 1, H, W) in 0..1."""
    size = edges[0].shape[2:]
    larger = [F.interpolate(edge, size, mode="bilinear", align_corners=False) for edge in edges[1:]]
    return (sum(larger, edges[0]) / len(edges)).sigmoid()


def load(tensors: dict[str, Tensor]) -> HED:
    """The network of the published file's tensors, all of them and no others, as float32 whatever the file has.
    Raises RuntimeError otherwise."""
    with torch.device("meta"):  # no time is lost on values that are replaced
        net = HED().to_empty(device="cpu")
    net.load_state_dict(tensors)
    return net

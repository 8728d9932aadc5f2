"""Line drawings of photographs, fine and coarse (Chan et al., Learning to Generate Line Drawings that Convey Geometry
and Semantics, CVPR 2022).

Written after the paper and carolineec/informative-drawings @ 213b24cc5dac, model.py (MIT), with its names of weights.
"""

from __future__ import annotations

from torch import Tensor, nn


class LineartGenerator(nn.Module):
    """Drawings (B, 1, H, W) of images (B, 3, H, W), RGB, in 0..1, 1 the paper, H and W multiples of 4 from 8 on."""

    def __init__(self, blocks: int = 3):
        super().__init__()
        self.model0 = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(3, 64, 7), *_make_norm_relu(64))
        self.model1 = nn.Sequential(*_make_downsampling(64), *_make_downsampling(128))
        self.model2 = nn.Sequential(*(_ResidualBlock(256) for _ in range(blocks)))
        self.model3 = nn.Sequential(*_make_upsampling(256), *_make_upsampling(128))
        self.model4 = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(64, 1, 7), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return self.model4(self.model3(self.model2(self.model1(self.model0(x)))))


def _make_norm_relu(channels: int) -> list[nn.Module]:
    return [nn.InstanceNorm2d(channels), nn.ReLU(inplace=True)]


def _make_downsampling(in_channels: int) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, 2 * in_channels, 3, stride=2, padding=1), *_make_norm_relu(2 * in_channels)]


def _make_upsampling(in_channels: int) -> list[nn.Module]:
    up = nn.ConvTranspose2d(in_channels, in_channels // 2, 3, stride=2, padding=1, output_padding=1)
    return [up, *_make_norm_relu(in_channels // 2)]


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        first, second = ([nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3)] for _ in range(2))
        self.conv_block = nn.Sequential(*first, *_make_norm_relu(channels), *second, nn.InstanceNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


def load(tensors: dict[str, Tensor]) -> LineartGenerator:
    """The network of a published file's tensors, all of them and no others. Raises RuntimeError otherwise."""
    net = LineartGenerator()
    net.load_state_dict(tensors)
    return net

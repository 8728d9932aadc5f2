"""Structural lines of manga, without screen tones (Li et al., Deep Extraction of Manga Structural Lines, SIGGRAPH
2017).

Written after the paper and ljsabc/MangaLineExtraction_PyTorch @ 738ffab9ca4d (MIT), with its names of weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MangaLineNetwork(nn.Module):
    """Drawings (B, 1, H, W), about 0..255, 255 the paper, of grey images (B, 1, H, W) in 0..255, H and W multiples of
    16."""

    def __init__(self) -> None:
        super().__init__()
        self.block0 = _make_down_stage(1, 24, 2, stride=1)
        self.block1 = _make_down_stage(24, 48, 3)
        self.block2 = _make_down_stage(48, 96, 5)
        self.block3 = _make_down_stage(96, 192, 7)
        self.block4 = _make_down_stage(192, 384, 12)
        self.block5 = _make_up_stage(384, 192, 7)
        self.block6 = _make_up_stage(192, 96, 5)
        self.block7 = _make_up_stage(96, 48, 3)
        self.block8 = _make_up_stage(48, 24, 2)
        self.block9 = _make_down_stage(24, 16, 2, stride=1)
        self.conv15 = _BnReluConv(16, 1, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        zero = self.block0(x)
        one = self.block1(zero)
        two = self.block2(one)
        three = self.block3(two)
        x = self.block5(self.block4(three)) + three
        x = self.block6(x) + two
        x = self.block7(x) + one
        x = self.block8(x) + zero
        return self.conv15(self.block9(x))


class _BnReluConv(nn.Module):
    """Normalise, activate, convolve."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1, upsample: bool = False
    ):
        super().__init__()
        self.model = nn.Sequential(
            nn.BatchNorm2d(in_channels, eps=1e-3),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2),
            *([nn.Upsample(scale_factor=2, mode="nearest")] if upsample else []),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class _Shortcut(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int, upsample: bool):
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, stride),
            *([nn.Upsample(scale_factor=2, mode="nearest")] if upsample else []),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class _ResidualBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, upsample: bool = False):
        super().__init__()
        self.conv1 = _BnReluConv(in_channels, out_channels, stride=stride, upsample=upsample)
        self.residual = _BnReluConv(out_channels, out_channels)
        same = in_channels == out_channels and stride == 1 and not upsample
        self.shortcut = nn.Identity() if same else _Shortcut(in_channels, out_channels, stride, upsample)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.residual(self.conv1(x))


class _ResidualStage(nn.Module):
    def __init__(self, blocks: list[_ResidualBlock]):
        super().__init__()
        self.model = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def _make_down_stage(in_channels: int, out_channels: int, count: int, stride: int = 2) -> _ResidualStage:
    """Blocks, of which the last has the stride."""
    last = count - 1
    return _ResidualStage(
        [
            _ResidualBlock(out_channels if i else in_channels, out_channels, stride if i == last else 1)
            for i in range(count)
        ]
    )


def _make_up_stage(in_channels: int, out_channels: int, count: int) -> _ResidualStage:
    """Blocks, of which the first doubles the size."""
    return _ResidualStage(
        [_ResidualBlock(out_channels if i else in_channels, out_channels, upsample=i == 0) for i in range(count)]
    )


def load(tensors: dict[str, Tensor]) -> MangaLineNetwork:
    """The network of the published file's tensors, all of them and no others. Raises RuntimeError otherwise."""
    with torch.device("meta"):  # no time is lost on values that are replaced
        net = MangaLineNetwork().to_empty(device="cpu")
    net.load_state_dict(tensors)
    return net

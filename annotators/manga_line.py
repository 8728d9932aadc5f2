"""Structural lines of manga, without screen tones (Li et al., Deep Extraction of Manga Structural Lines, SIGGRAPH
2017).

Written after the paper and ljsabc/MangaLineExtraction_PyTorch @ 738ffab9ca4d (MIT), with its names of weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MangaLine(nn.Module):
    """Drawings (B, 1, H, W), about 0..255, 255 the paper, of grey pictures (B, 1, H, W) in 0..255, H and W multiples of
    16."""

    def __init__(self) -> None:
        super().__init__()
        self.block0 = _down(1, 24, 2, stride=1)
        self.block1 = _down(24, 48, 3)
        self.block2 = _down(48, 96, 5)
        self.block3 = _down(96, 192, 7)
        self.block4 = _down(192, 384, 12)
        self.block5 = _up(384, 192, 7)
        self.block6 = _up(192, 96, 5)
        self.block7 = _up(96, 48, 3)
        self.block8 = _up(48, 24, 2)
        self.block9 = _down(24, 16, 2, stride=1)
        self.conv15 = _Layer(16, 1, size=1)

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


class _Layer(nn.Module):
    """Normalise, activate, convolve."""

    def __init__(self, before: int, width: int, size: int = 3, stride: int = 1, larger: bool = False):
        super().__init__()
        self.model = nn.Sequential(
            nn.BatchNorm2d(before, eps=1e-3),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(before, width, size, stride, padding=size // 2),
            *([nn.Upsample(scale_factor=2, mode="nearest")] if larger else []),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class _Shortcut(nn.Module):
    def __init__(self, before: int, width: int, stride: int, larger: bool):
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv2d(before, width, 1, stride),
            *([nn.Upsample(scale_factor=2, mode="nearest")] if larger else []),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class _Block(nn.Module):
    def __init__(self, before: int, width: int, stride: int = 1, larger: bool = False):
        super().__init__()
        self.conv1 = _Layer(before, width, stride=stride, larger=larger)
        self.residual = _Layer(width, width)
        same = before == width and stride == 1 and not larger
        self.shortcut = nn.Identity() if same else _Shortcut(before, width, stride, larger)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.residual(self.conv1(x))


class _Blocks(nn.Module):
    def __init__(self, blocks: list[_Block]):
        super().__init__()
        self.model = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def _down(before: int, width: int, count: int, stride: int = 2) -> _Blocks:
    """Blocks, of which the last has the stride."""
    last = count - 1
    return _Blocks([_Block(width if i else before, width, stride if i == last else 1) for i in range(count)])


def _up(before: int, width: int, count: int) -> _Blocks:
    """Blocks, of which the first doubles the size."""
    return _Blocks([_Block(width if i else before, width, larger=i == 0) for i in range(count)])


def load(tensors: dict[str, Tensor]) -> MangaLine:
    """The network of the published file's tensors, all of them and no others. Raises RuntimeError otherwise."""
    with torch.device("meta"):  # no time is lost on values that are replaced
        net = MangaLine().to_empty(device="cpu")
    net.load_state_dict(tensors)
    return net

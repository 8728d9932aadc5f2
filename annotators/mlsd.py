"""M-LSD: straight lines of a picture (Gu et al., Towards Light-weight and Real-time Line Segment Detection, AAAI
2022), in its sizes large and tiny.

Written after the paper and lhwcv/mlsd_pytorch @ 2312205254e6 (Apache-2.0), with its names of weights."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

MOST = 200  # lines of a picture
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
)  # MobileNetV2's, up to a sixteenth
_ENDS = (1, 3, 6, 10, 13)  # the last layer of each


class Large(nn.Module):
    """Centres and displacements (B, 9, H/2, W/2) of pictures (B, 4, H, W): RGB and a channel of ones, x / 127.5 - 1,
    H and W multiples of 16. Channel 0 is the logit of a line's centre, 1 to 4 are x and y from there to its start and
    its end in pixels of the map."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = _Backbone(5)
        self.block15 = _Merge(64, 96, 64, larger=False)
        self.block16 = _Mix(128, 64)
        self.block17 = _Merge(32, 64, 64)
        self.block18 = _Mix(128, 64)
        self.block19 = _Merge(24, 64, 64)
        self.block20 = _Mix(128, 64)
        self.block21 = _Merge(16, 64, 64)
        self.block22 = _Mix(128, 64)
        self.block23 = _Head(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        one, two, three, four, x = self.backbone(x)
        x = self.block16(self.block15(four, x))
        x = self.block18(self.block17(three, x))
        x = self.block20(self.block19(two, x))
        x = self.block22(self.block21(one, x))
        return self.block23(x)[:, 7:]


class Tiny(nn.Module):
    """The same as `Large` gives, from a quarter of the size."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = _Backbone(4)
        self.block12 = _Merge(32, 64, 64)
        self.block13 = _Mix(128, 64)
        self.block14 = _Merge(24, 64, 32)
        self.block15 = _Mix(64, 64)
        self.block16 = _Head(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        _, two, three, x = self.backbone(x)
        x = self.block13(self.block12(three, x))
        x = self.block15(self.block14(two, x))
        return _larger(self.block16(x)[:, 7:])


class _Backbone(nn.Module):
    """MobileNetV2 with four channels in, padded as TensorFlow Lite does."""

    def __init__(self, stages: int):
        super().__init__()
        layers: list[nn.Module] = [_convolution(4, 32, 3, 2)]
        before = 32
        for wider, width, count, stride in _STAGES[:stages]:
            for i in range(count):
                layers.append(_Inverted(before, width, stride if i == 0 else 1, wider))
                before = width
        self.features = nn.Sequential(*layers)
        self.ends = _ENDS[:stages]

    def forward(self, x: Tensor) -> list[Tensor]:
        ends = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.ends:
                ends.append(x)
        return ends


class _Right(nn.Conv2d):
    """A convolution that halves the size and sees one row and column more, of zeros, on the right and below only."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)))


def _convolution(before: int, width: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    kind, padding = (_Right, 0) if stride == 2 else (nn.Conv2d, size // 2)
    return nn.Sequential(
        kind(before, width, size, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU6(inplace=True),
    )


class _Inverted(nn.Module):
    """MobileNetV2's inverted residual."""

    def __init__(self, before: int, width: int, stride: int, wider: int):
        super().__init__()
        inner = before * wider
        self.conv = nn.Sequential(
            *([] if wider == 1 else [_convolution(before, inner, 1)]),
            _convolution(inner, inner, 3, stride, groups=inner),
            nn.Conv2d(inner, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.residual = stride == 1 and before == width

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).add_(x) if self.residual else self.conv(x)


class _Merge(nn.Module):
    """A finer stage beside a coarser one, which is brought to its size."""

    def __init__(self, fine: int, coarse: int, width: int, larger: bool = True):
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(coarse, width, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.conv2 = nn.Sequential(nn.Conv2d(fine, width, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.larger = larger

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        coarse = self.conv1(coarse)
        return torch.cat([self.conv2(fine), _larger(coarse) if self.larger else coarse], dim=1)


class _Mix(nn.Module):
    def __init__(self, before: int, width: int):
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv2d(before, before, 3, padding=1), nn.BatchNorm2d(before), nn.ReLU(inplace=True)
        )
        self.conv2 = nn.Sequential(nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x).add_(x))


class _Head(nn.Module):
    def __init__(self, before: int, width: int):
        super().__init__()
        dilated = nn.Conv2d(before, before, 3, padding=5, dilation=5)
        self.conv1 = nn.Sequential(dilated, nn.BatchNorm2d(before), nn.ReLU(inplace=True))
        self.conv2 = nn.Sequential(
            nn.Conv2d(before, before, 3, padding=1), nn.BatchNorm2d(before), nn.ReLU(inplace=True)
        )
        self.conv3 = nn.Conv2d(before, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(self.conv2(self.conv1(x)))


def _larger(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)


def load(tensors: dict[str, Tensor]) -> Large | Tiny:
    """The network of a published file's tensors, all of them and no others, in evaluation mode; its size is read off
    their names. Normalisations become part of the convolutions before them. Raises RuntimeError otherwise."""
    net = Large() if any(key.startswith("block23.") for key in tensors) else Tiny()
    net.load_state_dict(tensors)
    for layers in net.eval().modules():
        if isinstance(layers, nn.Sequential):
            for i, (layer, norm) in enumerate(pairwise(layers)):
                if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    layers[i], layers[i + 1] = fuse_conv_bn_eval(layer, norm), nn.Identity()
    return net


def segments(found: Tensor, score: float, length: float) -> list[Tensor]:
    """The lines in a network's result (B, 9, h, w), for each picture (N, 4) as x and y of start and end in pixels of
    the picture, which is twice as large, the surest first.

    Of the 200 surest centres that are highest among their eight neighbours those are lines whose probability is over
    `score` and whose length is over `length` pixels of the map."""
    centres = found[:, 0].sigmoid()
    centres = centres * (F.max_pool2d(centres, 3, stride=1, padding=1) == centres)
    scores, places = centres.flatten(1).topk(min(MOST, centres[0].numel()))
    lines = []
    for sure, place, displacement in zip(scores, places, found[:, 1:5].flatten(2), strict=True):
        x, y = place % found.shape[3], place // found.shape[3]
        ends = displacement[:, place].T + torch.stack([x, y, x, y], dim=1)
        long = (ends[:, :2] - ends[:, 2:]).norm(dim=1) > length
        lines.append(2 * ends[(sure > score) & long])
    return lines

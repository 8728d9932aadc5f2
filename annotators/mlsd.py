"""M-LSD: straight lines of an image (Gu et al., Towards Light-weight and Real-time Line Segment Detection, AAAI
2022), in its sizes large and tiny.

Written after the paper and lhwcv/mlsd_pytorch @ 2312205254e6 (Apache-2.0), with its names of weights."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

MAX_LINES = 200  # lines of an image
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
)  # MobileNetV2's, up to a sixteenth
_STAGE_END_LAYERS = (1, 3, 6, 10, 13)  # the last layer of each


class MlsdLarge(nn.Module):
    """Centres and displacements (B, 9, H/2, W/2) of images (B, 4, H, W): RGB and a channel of ones, x / 127.5 - 1,
    H and W multiples of 16. Channel 0 is the logit of a line's centre, 1 to 4 are x and y from there to its start and
    its end in pixels of the map."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = _Backbone(5)
        self.block15 = _SkipFusion(64, 96, 64, upsample=False)
        self.block16 = _ResidualConvBlock(128, 64)
        self.block17 = _SkipFusion(32, 64, 64)
        self.block18 = _ResidualConvBlock(128, 64)
        self.block19 = _SkipFusion(24, 64, 64)
        self.block20 = _ResidualConvBlock(128, 64)
        self.block21 = _SkipFusion(16, 64, 64)
        self.block22 = _ResidualConvBlock(128, 64)
        self.block23 = _DilatedHead(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        one, two, three, four, x = self.backbone(x)
        x = self.block16(self.block15(four, x))
        x = self.block18(self.block17(three, x))
        x = self.block20(self.block19(two, x))
        x = self.block22(self.block21(one, x))
        return self.block23(x)[:, 7:]


class MlsdTiny(nn.Module):
    """The same as `Large` gives, from a quarter of the size."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = _Backbone(4)
        self.block12 = _SkipFusion(32, 64, 64)
        self.block13 = _ResidualConvBlock(128, 64)
        self.block14 = _SkipFusion(24, 64, 32)
        self.block15 = _ResidualConvBlock(64, 64)
        self.block16 = _DilatedHead(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        _, two, three, x = self.backbone(x)
        x = self.block13(self.block12(three, x))
        x = self.block15(self.block14(two, x))
        return _upsample_twice(self.block16(x)[:, 7:])


class _Backbone(nn.Module):
    """MobileNetV2 with four channels in, padded as TensorFlow Lite does."""

    def __init__(self, stage_count: int):
        super().__init__()
        layers: list[nn.Module] = [_make_conv_bn_relu(4, 32, 3, 2)]
        before = 32
        for wider, width, count, stride in _STAGES[:stage_count]:
            for i in range(count):
                layers.append(_InvertedResidual(before, width, stride if i == 0 else 1, wider))
                before = width
        self.features = nn.Sequential(*layers)
        self.end_layers = _STAGE_END_LAYERS[:stage_count]

    def forward(self, x: Tensor) -> list[Tensor]:
        ends = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.end_layers:
                ends.append(x)
        return ends


class _BottomRightPaddedConv2d(nn.Conv2d):
    """A convolution that halves the size and sees one row and column more, of zeros, on the right and below only."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)))


def _make_conv_bn_relu(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    kind, padding = (_BottomRightPaddedConv2d, 0) if stride == 2 else (nn.Conv2d, kernel_size // 2)
    return nn.Sequential(
        kind(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU6(inplace=True),
    )


class _InvertedResidual(nn.Module):
    """MobileNetV2's inverted residual."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expand_ratio: int):
        super().__init__()
        inner = in_channels * expand_ratio
        self.conv = nn.Sequential(
            *([] if expand_ratio == 1 else [_make_conv_bn_relu(in_channels, inner, 1)]),
            _make_conv_bn_relu(inner, inner, 3, stride, groups=inner),
            nn.Conv2d(inner, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.has_residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).add_(x) if self.has_residual else self.conv(x)


class _SkipFusion(nn.Module):
    """A finer stage beside a coarser one, which is brought to its size."""

    def __init__(self, fine_channels: int, coarse_channels: int, out_channels: int, upsample: bool = True):
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv2d(coarse_channels, out_channels, 1), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)
        )
        self.conv2 = nn.Sequential(
            nn.Conv2d(fine_channels, out_channels, 1), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)
        )
        self.upsample = upsample

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        coarse = self.conv1(coarse)
        return torch.cat([self.conv2(fine), _upsample_twice(coarse) if self.upsample else coarse], dim=1)


class _ResidualConvBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv2d(in_channels, in_channels, 3, padding=1), nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True)
        )
        self.conv2 = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x).add_(x))


class _DilatedHead(nn.Module):
    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        wide_conv = nn.Conv2d(in_channels, in_channels, 3, padding=5, dilation=5)
        self.conv1 = nn.Sequential(wide_conv, nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True))
        self.conv2 = nn.Sequential(
            nn.Conv2d(in_channels, in_channels, 3, padding=1), nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True)
        )
        self.conv3 = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(self.conv2(self.conv1(x)))


def _upsample_twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)


def load(tensors: dict[str, Tensor]) -> MlsdLarge | MlsdTiny:
    """The network of a published file's tensors, all of them and no others, in evaluation mode; its size is read off
    their names. Normalisations become part of the convolutions before them. Raises RuntimeError otherwise."""
    net = MlsdLarge() if any(key.startswith("block23.") for key in tensors) else MlsdTiny()
    net.load_state_dict(tensors)
    for layers in net.eval().modules():
        if isinstance(layers, nn.Sequential):
            for i, (layer, norm) in enumerate(pairwise(layers)):
                if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    layers[i], layers[i + 1] = fuse_conv_bn_eval(layer, norm), nn.Identity()
    return net


def decode_segments(output: Tensor, min_score: float, min_length: float) -> list[Tensor]:
    """The lines in a network's result (B, 9, h, w), for each image (N, 4) as x and y of start and end in pixels of
    the image, which is twice as large, the surest first.

    Of the 200 surest centres that are highest among their eight neighbours those are lines whose probability is over
    `score` and whose length is over `length` pixels of the map."""
    centers = output[:, 0].sigmoid()
    centers = centers * (F.max_pool2d(centers, 3, stride=1, padding=1) == centers)
    scores, places = centers.flatten(1).topk(min(MAX_LINES, centers[0].numel()))
    lines = []
    for sure, place, displacement in zip(scores, places, output[:, 1:5].flatten(2), strict=True):
        x, y = place % output.shape[3], place // output.shape[3]
        ends = displacement[:, place].T + torch.stack([x, y, x, y], dim=1)
        long = (ends[:, :2] - ends[:, 2:]).norm(dim=1) > min_length
        lines.append(2 * ends[(sure > min_score) & long])
    return lines

"""The trunk of EfficientNet-B5 (Tan and Le, arXiv 1905.11946), what NormalBae and DSINE see with, as TensorFlow pads.

Written after the paper and rwightman/gen-efficientnet-pytorch (Apache-2.0), with its names of weights."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

# Of each stage: blocks, kernel, stride, how much wider the middle is, channels; B0's times 2.2 in depth, 1.6 in width
_EARLY_STAGES = ((3, 3, 1, 1, 24), (5, 3, 2, 6, 40), (5, 5, 2, 6, 64), (7, 3, 2, 6, 128))
_STAGES = (*_EARLY_STAGES, (7, 5, 1, 6, 176), (9, 5, 2, 6, 304), (3, 3, 1, 6, 512))


class EfficientNetB5(nn.Module):
    """Of images (B, 3, H, W), of ImageNet's mean and deviation: features at 1/2, 1/4, 1/8, 1/16 (24, 40, 64 and 176
    channels) and 1/32 (2048, before their normalisation); sizes round up. `bn2` is in the files, and not used."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = _Conv2dSame(3, 48, 3, 2)
        self.bn1 = _make_batch_norm(48)
        before, stages = 48, []
        for count, size, stride, factor, width in _STAGES:
            blocks = []
            for i in range(count):
                shape = (before, width, size, 1 if i else stride)
                blocks.append(_DepthwiseSeparableConv(*shape) if factor == 1 else _InvertedResidual(*shape, factor))
                before = width
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.conv_head = nn.Conv2d(512, 2048, 1, bias=False)
        self.bn2 = _make_batch_norm(2048)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.silu(self.bn1(self.conv_stem(x)), inplace=True)
        features = []
        for i, stage in enumerate(self.blocks):
            x = stage(x)
            if i in (0, 1, 2, 4):
                features.append(x)
        return [*features, self.conv_head(x)]


class _Conv2dSame(nn.Conv2d):
    """A convolution without bias, padded so that the size is divided by the stride and rounded up; what is odd of the
    padding is right and below."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, groups: int = 1):
        super().__init__(in_channels, out_channels, kernel_size, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        size, stride = self.kernel_size[0], self.stride[0]
        down, right = (max((-(-side // stride) - 1) * stride + size - side, 0) for side in x.shape[2:])
        return super().forward(F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2)))


class _SqueezeExcite(nn.Module):
    """Channels weighed by what all of the image holds."""

    def __init__(self, channels: int, reduced_channels: int):
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, reduced_channels, 1)
        self.conv_expand = nn.Conv2d(reduced_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.conv_reduce(x.mean((2, 3), keepdim=True)))
        return x * self.conv_expand(y).sigmoid()


class _DepthwiseSeparableConv(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int):
        super().__init__()
        self.has_residual = stride == 1 and in_channels == out_channels
        self.conv_dw = _Conv2dSame(in_channels, in_channels, kernel_size, stride, groups=in_channels)
        self.bn1 = _make_batch_norm(in_channels)
        self.se = _SqueezeExcite(in_channels, in_channels // 4)
        self.conv_pw = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn2 = _make_batch_norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.se(F.silu(self.bn1(self.conv_dw(x)), inplace=True))
        y = self.bn2(self.conv_pw(y))
        return y + x if self.has_residual else y


class _InvertedResidual(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, expand_ratio: int):
        super().__init__()
        self.has_residual = stride == 1 and in_channels == out_channels
        middle = in_channels * expand_ratio
        self.conv_pw = nn.Conv2d(in_channels, middle, 1, bias=False)
        self.bn1 = _make_batch_norm(middle)
        self.conv_dw = _Conv2dSame(middle, middle, kernel_size, stride, groups=middle)
        self.bn2 = _make_batch_norm(middle)
        self.se = _SqueezeExcite(middle, in_channels // 4)
        self.conv_pwl = nn.Conv2d(middle, out_channels, 1, bias=False)
        self.bn3 = _make_batch_norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.bn1(self.conv_pw(x)), inplace=True)
        y = self.se(F.silu(self.bn2(self.conv_dw(y)), inplace=True))
        y = self.bn3(self.conv_pwl(y))
        return y + x if self.has_residual else y


def _make_batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)  # TensorFlow's

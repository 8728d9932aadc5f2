"""IS-Net (Qin et al., Highly Accurate Dichotomous Image Segmentation, arXiv 2203.03041): what stands out in an image,
on U-Nets nested in a U-Net (U²-Net, arXiv 2005.09007).

Written after xuebinqin/DIS's ISNetDIS, with its names of weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# height of the inner U-Net (0: dilated instead of pooled), channels before, within, after
_ENCODER_STAGES = (
    (7, 64, 32, 64),
    (6, 64, 32, 128),
    (5, 128, 64, 256),
    (4, 256, 128, 512),
    (0, 512, 256, 512),
    (0, 512, 256, 512),
)
_DECODER_STAGES = ((7, 128, 16, 64), (6, 256, 32, 64), (5, 512, 64, 128), (4, 1024, 128, 256), (0, 1024, 256, 512))


class IsNet(nn.Module):
    """Logits (B, 1, H, W) of what stands out in images (B, 3, H, W), RGB in -0.5..0.5 or 0..1 as the weights want
    it, of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, 64, 3, 2, 1)
        for i, sizes in enumerate(_ENCODER_STAGES, 1):
            setattr(self, f"stage{i}", _make_stage(*sizes))
        for i, sizes in enumerate(_DECODER_STAGES, 1):
            setattr(self, f"stage{i}d", _make_stage(*sizes))
        self.side1 = nn.Conv2d(64, 1, 3, padding=1)
        for i, sizes in enumerate((*_DECODER_STAGES[1:], _ENCODER_STAGES[-1]), 2):  # for training
            setattr(self, f"side{i}", nn.Conv2d(sizes[3], 1, 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        features: list[Tensor] = []
        for i in range(1, 7):
            x = _downsample(features[-1]) if features else self.conv_in(images)
            features.append(getattr(self, f"stage{i}")(x))
        x = features.pop()
        for i in range(5, 0, -1):
            feature = features.pop()
            x = getattr(self, f"stage{i}d")(torch.cat([_resize_like(x, feature), feature], dim=1))
        return _resize_like(self.side1(x), images)


def _make_stage(height: int, in_channels: int, hidden_channels: int, out_channels: int) -> nn.Module:
    return (
        _RSU(height, in_channels, hidden_channels, out_channels)
        if height
        else _DilatedRSU(in_channels, hidden_channels, out_channels)
    )


class _RSU(nn.Module):
    """A U-Net: `height` convolutions down, the last dilated, and all but that again up."""

    def __init__(self, height: int, in_channels: int, hidden_channels: int, out_channels: int):
        super().__init__()
        self.height = height
        self.rebnconvin = _ConvBnRelu(in_channels, out_channels)
        for i in range(1, height + 1):
            setattr(
                self,
                f"rebnconv{i}",
                _ConvBnRelu(out_channels if i == 1 else hidden_channels, hidden_channels, 2 if i == height else 1),
            )
        for i in range(1, height):
            setattr(
                self, f"rebnconv{i}d", _ConvBnRelu(2 * hidden_channels, out_channels if i == 1 else hidden_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        whole = self.rebnconvin(x)
        outputs: list[Tensor] = []
        for i in range(1, self.height):
            x = _downsample(outputs[-1]) if outputs else whole
            outputs.append(getattr(self, f"rebnconv{i}")(x))
        x = getattr(self, f"rebnconv{self.height}")(outputs[-1])
        for i in range(self.height - 1, 0, -1):
            side = outputs.pop()
            x = getattr(self, f"rebnconv{i}d")(torch.cat([_resize_like(x, side), side], dim=1))
        return x + whole


class _DilatedRSU(nn.Module):
    def __init__(self, in_channels: int, hidden_channels: int, out_channels: int):
        super().__init__()
        self.rebnconvin = _ConvBnRelu(in_channels, out_channels)
        self.rebnconv1 = _ConvBnRelu(out_channels, hidden_channels)
        self.rebnconv2 = _ConvBnRelu(hidden_channels, hidden_channels, 2)
        self.rebnconv3 = _ConvBnRelu(hidden_channels, hidden_channels, 4)
        self.rebnconv4 = _ConvBnRelu(hidden_channels, hidden_channels, 8)
        self.rebnconv3d = _ConvBnRelu(2 * hidden_channels, hidden_channels, 4)
        self.rebnconv2d = _ConvBnRelu(2 * hidden_channels, hidden_channels, 2)
        self.rebnconv1d = _ConvBnRelu(2 * hidden_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        whole = self.rebnconvin(x)
        first = self.rebnconv1(whole)
        second = self.rebnconv2(first)
        third = self.rebnconv3(second)
        x = self.rebnconv3d(torch.cat([self.rebnconv4(third), third], dim=1))
        x = self.rebnconv2d(torch.cat([x, second], dim=1))
        return self.rebnconv1d(torch.cat([x, first], dim=1)) + whole


class _ConvBnRelu(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, dilation: int = 1):
        super().__init__()
        self.conv_s1 = nn.Conv2d(in_channels, out_channels, 3, padding=dilation, dilation=dilation)
        self.bn_s1 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn_s1(self.conv_s1(x)))


def _downsample(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2, ceil_mode=True)


def _resize_like(x: Tensor, reference: Tensor) -> Tensor:
    return F.interpolate(x, reference.shape[2:], mode="bilinear", align_corners=False)


def load(tensors: dict[str, Tensor]) -> IsNet:
    """The network of a published file's tensors, all of them and no others. Of a file of skytnt/anime-seg those below
    "net."; its gt_encoder is for training. Raises RuntimeError otherwise."""
    if any(key.startswith("gt_encoder.") for key in tensors):
        tensors = {key[len("net.") :]: tensor for key, tensor in tensors.items() if key.startswith("net.")}
    with torch.device("meta"):  # no time is lost on values that are replaced
        net = IsNet().to_empty(device="cpu")
    net.load_state_dict(tensors)
    return net

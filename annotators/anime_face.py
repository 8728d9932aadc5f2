"""What a pixel of an anime face is, by a U-Net on MobileNetV2 (Sandler et al., arXiv 1801.04381).

Written after siyeong0/Anime-Face-Segmentation's UNet and torchvision's MobileNetV2, with their names of weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FACE_CLASSES = 7
# Residual blocks by depth of the encoder: how much wider within, channels after, how many, stride of the first
_ENCODER_STAGES = (
    ((1, 16, 1, 1),),
    ((6, 24, 2, 2),),
    ((6, 32, 3, 2),),
    ((6, 64, 4, 2), (6, 96, 3, 1)),
    ((6, 160, 3, 2),),
)
_DECODER_CHANNELS = ((160, 96), (192, 32), (64, 24), (48, 16))  # channels of the decoder, the deepest first


class AnimeFace(nn.Module):
    """Scores (B, 7, H, W) of background, hair, eye, mouth, face, skin and clothes of images (B, 3, H, W), RGB in
    0..1, H and W from 33 on; odd ones get one more row or column."""

    def __init__(self) -> None:
        super().__init__()
        before = 32
        for i, groups in enumerate(_ENCODER_STAGES):
            blocks: list[nn.Module] = [] if i else [_make_conv_bn_relu(3, before, stride=2)]
            for wider, after, count, stride in groups:
                for n in range(count):
                    blocks.append(_InvertedResidual(before, wider * before, after, 1 if n else stride))
                    before = after
            setattr(self, f"en_block{i}", nn.Sequential(*blocks))
        for i, (before, after) in zip((4, 3, 2, 1), _DECODER_CHANNELS, strict=True):
            block = nn.Sequential(
                nn.UpsamplingNearest2d(scale_factor=2),
                nn.Conv2d(before, after, 3, padding=1),
                nn.InstanceNorm2d(after),
                nn.LeakyReLU(0.1),
            )
            setattr(self, f"de_block{i}", block)
        self.de_block0 = nn.Sequential(
            nn.UpsamplingNearest2d(scale_factor=2), nn.Conv2d(32, FACE_CLASSES, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        features = []
        for i in range(5):
            x = getattr(self, f"en_block{i}")(x)
            features.append(x)
        x = features.pop()
        for i in range(4, 0, -1):
            feature = features.pop()
            x = getattr(self, f"de_block{i}")(x)
            x = F.interpolate(x, feature.shape[2:], mode="bilinear", align_corners=True)
            x = torch.cat([x, feature], dim=1)
        return self.de_block0(x)


class _InvertedResidual(nn.Module):
    def __init__(self, in_channels: int, hidden_channels: int, out_channels: int, stride: int):
        super().__init__()
        widening = (
            [] if hidden_channels == in_channels else [_make_conv_bn_relu(in_channels, hidden_channels, kernel_size=1)]
        )
        depth = _make_conv_bn_relu(hidden_channels, hidden_channels, stride=stride, groups=hidden_channels)
        self.conv = nn.Sequential(
            *widening, depth, nn.Conv2d(hidden_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
        )
        self.has_residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.has_residual else self.conv(x)


def _make_conv_bn_relu(
    in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1, groups: int = 1
) -> nn.Module:
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU6())


def load(tensors: dict[str, Tensor]) -> AnimeFace:
    """The network of the published file's tensors, all of them and no others, whose names may begin with "module.".
    Raises RuntimeError otherwise."""
    with torch.device("meta"):  # no time is lost on values that are replaced
        net = AnimeFace().to_empty(device="cpu")
    net.load_state_dict({key.removeprefix("module."): tensor for key, tensor in tensors.items()})
    return net

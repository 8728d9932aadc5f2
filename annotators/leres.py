"""LeReS: depth up to scale and offset (Yin et al., Learning to Recover 3D Scene Shape from a Single Image, CVPR 2021),
by a ResNeXt-101 32x8d and a decoder that goes back up.

Written after the paper and aim-uofa/AdelaiDepth @ 31afb6f, LeReS (whose LICENSE there is Adobe Research's, for
noncommercial purposes), with its names of weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

RESNEXT101_BLOCKS = (3, 4, 23, 3)  # of the four stages


class LeReS(nn.Module):
    """Depth (B, 1, H, W), more is farther, of images (B, 3, H, W), H and W multiples of 32."""

    def __init__(self, blocks: tuple[int, ...] = RESNEXT101_BLOCKS):
        super().__init__()
        self.depth_model = nn.Module()
        self.depth_model.encoder_modules = nn.Module()
        self.depth_model.encoder_modules.encoder = _ResNeXt(blocks)
        self.depth_model.decoder_modules = _Decoder()

    def forward(self, x: Tensor) -> Tensor:
        features = self.get_submodule("depth_model.encoder_modules.encoder")(x)
        return self.get_submodule("depth_model.decoder_modules")(features)


class _ResNeXt(nn.Module):
    def __init__(self, blocks: tuple[int, ...]):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        before = 64
        for i, count in enumerate(blocks):
            width = 256 * 2**i
            stage = [_Bottleneck(before if j == 0 else width, width, 2 if i and j == 0 else 1) for j in range(count)]
            self.add_module(f"layer{i + 1}", nn.Sequential(*stage))
            before = width

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.max_pool2d(self.bn1(self.conv1(x)).relu_(), 3, stride=2, padding=1)
        features = []
        for i in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{i}")(x)
            features.append(x)
        return features  # 1/4, 1/8, 1/16, 1/32


class _Bottleneck(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, stride=stride, padding=1, groups=32, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv3 = nn.Conv2d(out_channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = None
        if in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu_()
        y = self.bn2(self.conv2(y)).relu_()
        y = self.bn3(self.conv3(y))
        return (y + (self.downsample(x) if self.downsample else x)).relu_()


class _Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = _FeatureTransferBlock(2048, 512)
        self.conv1 = nn.Conv2d(512, 256, 3, padding=1)
        self.ffm2 = _FeatureFusionModule(1024)
        self.ffm1 = _FeatureFusionModule(512)
        self.ffm0 = _FeatureFusionModule(256)
        self.outconv = _OutputHead()

    def forward(self, features: list[Tensor]) -> Tensor:
        x = _upsample_twice(self.conv1(self.conv(features[3])))
        for fuse, skip in zip((self.ffm2, self.ffm1, self.ffm0), features[2::-1], strict=True):
            x = fuse(skip, x)
        return self.outconv(x)


class _FeatureTransferBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv_branch = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).relu_()  # for the sum too: the original's first ReLU works in place
        return (x + self.conv_branch(x)).relu_()


class _FeatureFusionModule(nn.Module):
    def __init__(self, in_channels: int):
        super().__init__()
        self.ftb1 = _FeatureTransferBlock(in_channels, 256)
        self.ftb2 = _FeatureTransferBlock(256, 256)

    def forward(self, skip: Tensor, x: Tensor) -> Tensor:
        return _upsample_twice(self.ftb2(self.ftb1(skip) + x))


class _OutputHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.adapt_conv = nn.Sequential(
            nn.Conv2d(256, 128, 3, padding=1), nn.BatchNorm2d(128), nn.ReLU(), nn.Conv2d(128, 1, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return _upsample_twice(self.adapt_conv(x))


def _upsample_twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


def load(tensors: dict[str, Tensor]) -> LeReS:
    """The network of the published file's tensors, "module." before each name or not, all of them and no others; how
    many blocks its stages have is read off them. Raises RuntimeError otherwise."""
    tensors = {key.removeprefix("module."): tensor for key, tensor in tensors.items()}
    stages = [f"depth_model.encoder_modules.encoder.layer{i}." for i in (1, 2, 3, 4)]
    counts = [len({key[len(stage) :].split(".")[0] for key in tensors if key.startswith(stage)}) for stage in stages]
    with torch.device("meta"):
        net = LeReS(tuple(counts) if all(counts) else RESNEXT101_BLOCKS).to_empty(device="cpu")
    net.load_state_dict(tensors)
    return net

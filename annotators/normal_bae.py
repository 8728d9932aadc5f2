"""Normals with their uncertainty (Bae, Budvytis and Cipolla, Estimating and Exploiting the Aleatoric Uncertainty in
Surface Normal Estimation, ICCV 2021), from coarse to fine.

Written after the paper and baegwangbin/surface_normal_uncertainty (MIT), with its names of weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .efficientnet import EfficientNetB5


class NormalBaeNetwork(nn.Module):
    """Of images (B, 3, H, W), RGB of ImageNet's mean and deviation, H and W multiples of 8: maps (B, 4, h, w) at an
    eighth, a quarter, half and all of the size. Three channels are the unit normal, left, up and to the viewer, the
    fourth is how sure it is, from 0.01 on."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.original_model = EfficientNetB5()
        self.decoder = _Decoder()

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.decoder(self.get_submodule("encoder.original_model")(x))


class _Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv2 = nn.Conv2d(2048, 2048, 1)
        self.up1 = _UpBlock(2048 + 176, 1024)
        self.up2 = _UpBlock(1024 + 64, 512)
        self.up3 = _UpBlock(512 + 40, 256)
        self.up4 = _UpBlock(256 + 24, 128)
        self.out_conv_res8 = nn.Conv2d(512, 4, 3, padding=1)
        self.out_conv_res4 = _make_pixelwise_mlp(512 + 4)
        self.out_conv_res2 = _make_pixelwise_mlp(256 + 4)
        self.out_conv_res1 = _make_pixelwise_mlp(128 + 4)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        half, quarter, eighth, sixteenth, x = features
        x8 = self.up2(self.up1(self.conv2(x), sixteenth), eighth)
        x4 = self.up3(x8, quarter)
        x2 = self.up4(x4, half)
        maps = [_normalize_normal_kappa(self.out_conv_res8(x8))]
        for x, head in ((x8, self.out_conv_res4), (x4, self.out_conv_res2), (x2, self.out_conv_res1)):
            maps.append(_normalize_normal_kappa(_apply_head_upsampled(head, torch.cat([x, maps[-1]], dim=1))))
        return maps


class _UpBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self._net = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.LeakyReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.LeakyReLU(inplace=True),
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = F.interpolate(x, skip.shape[2:], mode="bilinear", align_corners=True)
        return self._net(torch.cat([x, skip], dim=1))


def _make_pixelwise_mlp(in_channels: int) -> nn.Sequential:
    """Convolutions of one pixel, one-dimensional in the files."""
    return nn.Sequential(
        nn.Conv1d(in_channels, 128, 1),
        nn.ReLU(),
        nn.Conv1d(128, 128, 1),
        nn.ReLU(),
        nn.Conv1d(128, 128, 1),
        nn.ReLU(),
        nn.Conv1d(128, 4, 1),
    )


def _apply_head_upsampled(head: nn.Sequential, x: Tensor) -> Tensor:
    """The head at twice the size of x (B, C, h, w). Its first convolution, which is linear in the pixel, comes before
    the enlargement, at a quarter of the work."""
    y = head[0](x.flatten(2)).unflatten(2, x.shape[2:])
    y = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=True)
    return head[1:](y.flatten(2)).unflatten(2, y.shape[2:])


def _normalize_normal_kappa(x: Tensor) -> Tensor:
    n, kappa = x[:, :3], x[:, 3:]
    return torch.cat([n / (n.square().sum(dim=1, keepdim=True).sqrt() + 1e-10), F.elu(kappa) + 1.01], dim=1)


def load(tensors: dict[str, Tensor]) -> NormalBaeNetwork:
    """The network of the published file's tensors, "module." before each name or not, all of them and no others.
    Raises RuntimeError otherwise."""
    with torch.device("meta"):
        net = NormalBaeNetwork().to_empty(device="cpu")
    net.load_state_dict({key.removeprefix("module."): tensor for key, tensor in tensors.items()})
    return net

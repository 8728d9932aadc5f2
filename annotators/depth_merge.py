"""The U-Net that puts the detail of one depth map into another (pix2pix, Isola et al., CVPR 2017, as Miangoleh et al.,
Boosting Monocular Depth Estimation Models to High-Resolution, CVPR 2021, trained it), without normalisation.

Written after the papers and controlnet_aux 0.0.10 (Apache-2.0), with its names of weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DepthMergeNetwork(nn.Module):
    """Depth (B, 1, H, W) of the coarse and the detailed (B, 2, H, W), all in -1..1; H and W are 1024, which ten
    downsamplings make 1, or more generally multiples of 2 ** `downsamplings`."""

    def __init__(self, downsamplings: int = 10, width: int = 64):
        super().__init__()
        w = width
        inside = _UNetLevel(8 * w, 8 * w, None)
        for outer, inner in ((8 * w, 8 * w),) * (downsamplings - 5) + ((4 * w, 8 * w), (2 * w, 4 * w), (w, 2 * w)):
            inside = _UNetLevel(outer, inner, inside)
        self.model = nn.Module()
        self.model.model = nn.Sequential(
            _make_downsampling(2, w), inside, nn.ReLU(), nn.ConvTranspose2d(2 * w, 1, 4, stride=2, padding=1), nn.Tanh()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.get_submodule("model.model")(x)


class _UNetLevel(nn.Module):
    """At half the size what is inside, beside the input."""

    def __init__(self, outer: int, inner: int, submodule: nn.Module | None):
        super().__init__()
        middle = [nn.Identity(), submodule] if submodule else []  # where the files count a normalisation
        self.model = nn.Sequential(
            nn.LeakyReLU(0.2),
            _make_downsampling(outer, inner),
            *middle,
            nn.ReLU(),
            nn.ConvTranspose2d(2 * inner if submodule else inner, outer, 4, stride=2, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.model(x)], dim=1)


def _make_downsampling(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 4, stride=2, padding=1, bias=False)


def load(tensors: dict[str, Tensor]) -> DepthMergeNetwork:
    """The network of the published file's tensors, all of them and no others. Raises RuntimeError otherwise."""
    with torch.device("meta"):
        net = DepthMergeNetwork().to_empty(device="cpu")
    net.load_state_dict(tensors)
    return net

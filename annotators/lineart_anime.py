"""Line drawings of anime: Anime2Sketch, pix2pix's U-Net eight halvings deep.

Written after Mukosame/Anime2Sketch @ a13592f53403, model.py (MIT), with its names of weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AnimeLineartUNet(nn.Module):
    """Drawings (B, 1, H, W) of images (B, 3, H, W), RGB, both in -1..1, 1 the paper, H and W multiples of 256."""

    def __init__(self) -> None:
        super().__init__()
        level = _UNetLevel(512, 512)
        for _ in range(3):
            level = _UNetLevel(512, 512, level)
        level = _UNetLevel(256, 512, level)
        level = _UNetLevel(128, 256, level)
        level = _UNetLevel(64, 128, level)
        # pix2pix nests the levels, each the "model" of a block: names such as model.model.1.model.1.weight
        self.model = nn.ModuleDict(
            {
                "model": nn.Sequential(
                    nn.Conv2d(3, 64, 4, stride=2, padding=1),
                    level,
                    nn.ReLU(inplace=True),
                    nn.ConvTranspose2d(128, 1, 4, stride=2, padding=1),
                    nn.Tanh(),
                )
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.model["model"](x)


class _UNetLevel(nn.Module):
    """One halving, what is below it, and back, beside the input. The lowest is not normalised on its way down."""

    def __init__(self, outer: int, inner: int, submodule: _UNetLevel | None = None):
        super().__init__()
        down: list[nn.Module] = [nn.LeakyReLU(0.2), nn.Conv2d(outer, inner, 4, stride=2, padding=1)]
        if submodule is not None:
            down += [nn.InstanceNorm2d(inner), submodule]
        up = nn.ConvTranspose2d(inner if submodule is None else 2 * inner, outer, 4, stride=2, padding=1)
        self.model = nn.Sequential(*down, nn.ReLU(inplace=True), up, nn.InstanceNorm2d(outer))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.model(x)], dim=1)


def load(tensors: dict[str, Tensor]) -> AnimeLineartUNet:
    """The network of the published file's tensors, "module." before each name or not, all of them and no others.
    Raises RuntimeError otherwise."""
    with torch.device("meta"):  # no time is lost on values that are replaced
        net = AnimeLineartUNet().to_empty(device="cpu")
    net.load_state_dict({key.replace("module.", ""): tensor for key, tensor in tensors.items()})
    return net

"""DSINE: normals from the direction of each pixel's ray and from how neighbouring normals are turned (Bae and Davison,
Rethinking Inductive Biases for Surface Normal Estimation, CVPR 2024).

Written after the paper, with the names and shapes of the weights of its first release (baegwangbin/DSINE @ dd85d6f,
non-commercial)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .efficientnet import EfficientNetB5

_SIDE = 5  # of a pixel's neighbourhood
_FINE = 8  # results are so many times finer than what is refined
_LEAST = 0.01  # cosine between a normal and its pixel's ray


class DSINE(nn.Module):
    """Unit normals (B, 3, H, W), left, up and to the viewer, of pictures (B, 3, H, W), RGB of ImageNet's mean and
    deviation, H and W multiples of 32. `camera` (3,) is the focal length and the column and row of the middle, in
    pixels from the left and upper edge. There is a result for each of `iterations` and one before them."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.original_model = EfficientNetB5()
        self.decoder = _Decoder()
        self.gru = _GRU(64, 64 + 2)
        self.prob_head = _head(64 + 2, 64, _SIDE**2)
        self.xy_head = _head(64 + 2, 64, 2 * _SIDE**2)
        self.angle_head = _head(64 + 2, 64, _SIDE**2)
        self.up_prob_head = _head(64 + 2, 64, 9 * _FINE**2)

    def forward(self, x: Tensor, camera: Tensor, iterations: int | Tensor = 5) -> list[Tensor]:
        *_, eighth, sixteenth, deep = self.get_submodule("encoder.original_model")(x)
        directions = [_directions(y, camera, scale) for y, scale in ((deep, 32), (sixteenth, 16), (eighth, 8))]
        uv = directions[-1]  # (B, 2, h, w)
        rays = F.normalize(F.pad(uv, (0, 0, 0, 0, 0, 1), value=1), dim=1)
        n, features, h = self.decoder([deep, sixteenth, eighth], directions)
        n = _visible(n, rays)
        features = torch.cat([features, uv], dim=1)
        results = [self._finer(h, n, uv)]
        for _ in range(int(iterations)):
            h = self.gru(h, features)
            n = self._refined(h, n, uv, rays, camera[0] / _FINE)
            results.append(self._finer(h, n, uv))
        return results

    def _refined(self, h: Tensor, n: Tensor, uv: Tensor, rays: Tensor, focal: Tensor) -> Tensor:
        """Each normal as the mean of its neighbours, turned around a line in their own plane."""
        x = torch.cat([h, uv], dim=1)
        weights = self.prob_head(x).sigmoid()[:, None]  # (B, 1, 25, h, w)
        steps = F.normalize(self.xy_head(x).unflatten(1, (2, _SIDE**2)), dim=1) / focal  # (B, 2, 25, h, w)
        angles = self.angle_head(x).sigmoid()[:, None] * math.pi
        around = _neighbours(n)  # (B, 3, 25, h, w)
        turned = F.normalize(_turned(around, _axes(around, steps, _neighbours(uv)), angles), dim=1)
        return F.normalize((weights * _visible(turned, rays[:, :, None])).sum(dim=2), dim=1)

    def _finer(self, h: Tensor, n: Tensor, uv: Tensor) -> Tensor:
        """The normals eight times finer: means of the 3x3 around, with weights for each fine pixel."""
        height, width = n.shape[2:]
        weights = self.up_prob_head(torch.cat([h, uv], dim=1)).unflatten(1, (1, 9, _FINE, _FINE)).softmax(dim=2)
        around = F.unfold(F.pad(n, (1, 1, 1, 1), mode="replicate"), 3).unflatten(1, (3, 9, 1, 1))
        fine = (weights * around.unflatten(-1, (height, width))).sum(dim=2)  # (B, 3, 8, 8, h, w)
        return F.normalize(fine.permute(0, 1, 4, 2, 5, 3).flatten(4).flatten(2, 3), dim=1)


class _Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv2 = nn.Conv2d(2048 + 2, 2048, 1)
        self.up1 = _Up(2048 + 176 + 2, 1024)
        self.up2 = _Up(1024 + 64 + 2, 512)
        self.normal_head = _head(512 + 2, 128, 3)
        self.feature_head = _head(512 + 2, 128, 64)
        self.hidden_head = _head(512 + 2, 128, 64)

    def forward(self, features: list[Tensor], directions: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        deep, sixteenth, eighth = (torch.cat(pair, dim=1) for pair in zip(features, directions, strict=True))
        x = torch.cat([self.up2(self.up1(self.conv2(deep), sixteenth), eighth), directions[-1]], dim=1)
        return F.normalize(self.normal_head(x), dim=1), self.feature_head(x), self.hidden_head(x)


class _Up(nn.Module):
    def __init__(self, before: int, width: int):
        super().__init__()
        self._net = nn.Sequential(
            _Standard(before, width, 3, padding=1),
            nn.GroupNorm(8, width),
            nn.LeakyReLU(inplace=True),
            _Standard(width, width, 3, padding=1),
            nn.GroupNorm(8, width),
            nn.LeakyReLU(inplace=True),
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = F.interpolate(x, skip.shape[2:], mode="bilinear", align_corners=False)
        return self._net(torch.cat([x, skip], dim=1))


class _Standard(nn.Conv2d):
    """A convolution whose weights have mean 0 and deviation 1; `load` has made them so."""


class _GRU(nn.Module):
    def __init__(self, width: int, before: int):
        super().__init__()
        self.convz = nn.Conv2d(width + before, width, _SIDE, padding=_SIDE // 2)
        self.convr = nn.Conv2d(width + before, width, _SIDE, padding=_SIDE // 2)
        self.convq = nn.Conv2d(width + before, width, _SIDE, padding=_SIDE // 2)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        hx = torch.cat([h, x], dim=1)
        z, r = self.convz(hx).sigmoid(), self.convr(hx).sigmoid()
        return (1 - z) * h + z * self.convq(torch.cat([r * h, x], dim=1)).tanh()


def _head(before: int, width: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, width, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 1),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, after, 1),
    )


def _directions(x: Tensor, camera: Tensor, scale: int) -> Tensor:
    """Where the rays of pixels `scale` times coarser than the picture go: right and down (B, 2, h, w), forward 1."""
    height, width = x.shape[2:]
    columns = torch.arange(width, device=x.device, dtype=x.dtype)
    rows = torch.arange(height, device=x.device, dtype=x.dtype)
    u = ((columns + 0.5) * scale - camera[1]) / camera[0]
    v = ((rows + 0.5) * scale - camera[2]) / camera[0]
    return torch.stack([u.expand(height, width), v[:, None].expand(height, width)]).expand(len(x), 2, height, width)


def _visible(n: Tensor, rays: Tensor) -> Tensor:
    """The normals, those that point away from the viewer moved along their ray until they do not."""
    cosine = (n * rays).sum(dim=1, keepdim=True)
    return F.normalize(n + rays * (_LEAST - cosine).relu(), dim=1)


def _neighbours(x: Tensor) -> Tensor:
    """(B, C, 25, h, w): the pixels around each, beyond the border those at it."""
    around = F.unfold(F.pad(x, (_SIDE // 2,) * 4, mode="replicate"), _SIDE)
    return around.unflatten(1, (-1, _SIDE**2)).unflatten(-1, x.shape[2:])


def _axes(n: Tensor, steps: Tensor, uv: Tensor) -> Tensor:
    """Unit directions in the planes with normals n, seen from their pixels as the steps (right, down). Points
    (u, v, 1) Z stay in the plane when Z grows by -(n . step) / (n . (u + du, v + dv, 1)) of itself."""
    ahead = F.pad(uv + steps, (0, 0, 0, 0, 0, 0, 0, 1), value=1)
    step = F.pad(steps, (0, 0, 0, 0, 0, 0, 0, 1))
    along = (n * ahead).sum(dim=1, keepdim=True)
    along = torch.where(along.abs() < 1e-8, along.sign() * 1e-8, along)
    axes = F.normalize(step - (n * step).sum(dim=1, keepdim=True) / along * ahead, dim=1)
    return torch.where(axes.isfinite().all(dim=1, keepdim=True), axes, 0)


def _turned(n: Tensor, axes: Tensor, angles: Tensor) -> Tensor:
    """Vectors turned around unit axes by angles (Rodrigues); around a zero axis they stay."""
    along = (n * axes).sum(dim=1, keepdim=True)
    angles = torch.where(axes.any(dim=1, keepdim=True), angles, 0)
    return n * angles.cos() + torch.linalg.cross(axes, n, dim=1) * angles.sin() + axes * along * (1 - angles.cos())


def load(tensors: dict[str, Tensor]) -> DSINE:
    """The network of the published file's tensors, "module." before each name or not, all of them and no others; the
    weights of its standardised convolutions are computed here, once. Raises RuntimeError otherwise."""
    with torch.device("meta"):
        net = DSINE().to_empty(device="cpu")
    net.load_state_dict({key.removeprefix("module."): tensor for key, tensor in tensors.items()})
    for module in net.modules():
        if isinstance(module, _Standard):
            w = module.weight.data.flatten(1)
            w = w - w.mean(dim=1, keepdim=True)
            module.weight.data = (w / (w.std(dim=1, keepdim=True) + 1e-5)).unflatten(1, module.weight.shape[1:])
    return net

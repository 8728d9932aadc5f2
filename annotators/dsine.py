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

_WINDOW = 5  # of a pixel's neighbourhood
_UPSAMPLING = 8  # results are so many times finer than what is refined
_MIN_COSINE = 0.01  # cosine between a normal and its pixel's ray


class DSINE(nn.Module):
    """Unit normals (B, 3, H, W), left, up and to the viewer, of images (B, 3, H, W), RGB of ImageNet's mean and
    deviation, H and W multiples of 32. `camera` (3,) is the focal length and the column and row of the middle, in
    pixels from the left and upper edge. There is a result for each of `iterations` and one before them."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.original_model = EfficientNetB5()
        self.decoder = _Decoder()
        self.gru = _ConvGRU(64, 64 + 2)
        self.prob_head = _make_head(64 + 2, 64, _WINDOW**2)
        self.xy_head = _make_head(64 + 2, 64, 2 * _WINDOW**2)
        self.angle_head = _make_head(64 + 2, 64, _WINDOW**2)
        self.up_prob_head = _make_head(64 + 2, 64, 9 * _UPSAMPLING**2)

    def forward(self, x: Tensor, camera: Tensor, iterations: int | Tensor = 5) -> list[Tensor]:
        *_, eighth, sixteenth, deep = self.get_submodule("encoder.original_model")(x)
        directions = [
            _compute_ray_directions(y, camera, scale) for y, scale in ((deep, 32), (sixteenth, 16), (eighth, 8))
        ]
        uv = directions[-1]  # (B, 2, h, w)
        rays = F.normalize(F.pad(uv, (0, 0, 0, 0, 0, 1), value=1), dim=1)
        n, features, h = self.decoder([deep, sixteenth, eighth], directions)
        n = _clamp_to_visible(n, rays)
        features = torch.cat([features, uv], dim=1)
        results = [self._upsample(h, n, uv)]
        for _ in range(int(iterations)):
            h = self.gru(h, features)
            n = self._refine(h, n, uv, rays, camera[0] / _UPSAMPLING)
            results.append(self._upsample(h, n, uv))
        return results

    def _refine(self, hidden: Tensor, normals: Tensor, uv: Tensor, rays: Tensor, focal: Tensor) -> Tensor:
        """Each normal as the mean of its neighbours, turned around a line in their own plane."""
        x = torch.cat([hidden, uv], dim=1)
        weights = self.prob_head(x).sigmoid()[:, None]  # (B, 1, 25, h, w)
        steps = F.normalize(self.xy_head(x).unflatten(1, (2, _WINDOW**2)), dim=1) / focal  # (B, 2, 25, h, w)
        angles = self.angle_head(x).sigmoid()[:, None] * math.pi
        around = _gather_neighbors(normals)  # (B, 3, 25, h, w)
        rotation = F.normalize(
            _rotate_normals(around, _compute_rotation_axes(around, steps, _gather_neighbors(uv)), angles), dim=1
        )
        return F.normalize((weights * _clamp_to_visible(rotation, rays[:, :, None])).sum(dim=2), dim=1)

    def _upsample(self, hidden: Tensor, normals: Tensor, uv: Tensor) -> Tensor:
        """The normals eight times finer: means of the 3x3 around, with weights for each fine pixel."""
        height, width = normals.shape[2:]
        weights = (
            self.up_prob_head(torch.cat([hidden, uv], dim=1))
            .unflatten(1, (1, 9, _UPSAMPLING, _UPSAMPLING))
            .softmax(dim=2)
        )
        around = F.unfold(F.pad(normals, (1, 1, 1, 1), mode="replicate"), 3).unflatten(1, (3, 9, 1, 1))
        fine = (weights * around.unflatten(-1, (height, width))).sum(dim=2)  # (B, 3, 8, 8, h, w)
        return F.normalize(fine.permute(0, 1, 4, 2, 5, 3).flatten(4).flatten(2, 3), dim=1)


class _Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv2 = nn.Conv2d(2048 + 2, 2048, 1)
        self.up1 = _UpBlock(2048 + 176 + 2, 1024)
        self.up2 = _UpBlock(1024 + 64 + 2, 512)
        self.normal_head = _make_head(512 + 2, 128, 3)
        self.feature_head = _make_head(512 + 2, 128, 64)
        self.hidden_head = _make_head(512 + 2, 128, 64)

    def forward(self, features: list[Tensor], directions: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        deep, sixteenth, eighth = (torch.cat(pair, dim=1) for pair in zip(features, directions, strict=True))
        x = torch.cat([self.up2(self.up1(self.conv2(deep), sixteenth), eighth), directions[-1]], dim=1)
        return F.normalize(self.normal_head(x), dim=1), self.feature_head(x), self.hidden_head(x)


class _UpBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self._net = nn.Sequential(
            _StandardizedConv2d(in_channels, out_channels, 3, padding=1),
            nn.GroupNorm(8, out_channels),
            nn.LeakyReLU(inplace=True),
            _StandardizedConv2d(out_channels, out_channels, 3, padding=1),
            nn.GroupNorm(8, out_channels),
            nn.LeakyReLU(inplace=True),
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = F.interpolate(x, skip.shape[2:], mode="bilinear", align_corners=False)
        return self._net(torch.cat([x, skip], dim=1))


class _StandardizedConv2d(nn.Conv2d):
    """A convolution whose weights have mean 0 and deviation 1; `load` has made them so."""


class _ConvGRU(nn.Module):
    def __init__(self, hidden_channels: int, in_channels: int):
        super().__init__()
        self.convz = nn.Conv2d(hidden_channels + in_channels, hidden_channels, _WINDOW, padding=_WINDOW // 2)
        self.convr = nn.Conv2d(hidden_channels + in_channels, hidden_channels, _WINDOW, padding=_WINDOW // 2)
        self.convq = nn.Conv2d(hidden_channels + in_channels, hidden_channels, _WINDOW, padding=_WINDOW // 2)

    def forward(self, hidden: Tensor, x: Tensor) -> Tensor:
        hx = torch.cat([hidden, x], dim=1)
        z, r = self.convz(hx).sigmoid(), self.convr(hx).sigmoid()
        return (1 - z) * hidden + z * self.convq(torch.cat([r * hidden, x], dim=1)).tanh()


def _make_head(in_channels: int, hidden_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, hidden_channels, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(hidden_channels, hidden_channels, 1),
        nn.ReLU(inplace=True),
        nn.Conv2d(hidden_channels, out_channels, 1),
    )


def _compute_ray_directions(x: Tensor, camera: Tensor, stride: int) -> Tensor:
    """Return the directions of the rays of a map `stride` times coarser than the image: right and down `(B, 2, h, w)`,
    for a forward component of 1."""
    height, width = x.shape[2:]
    columns = torch.arange(width, device=x.device, dtype=x.dtype)
    rows = torch.arange(height, device=x.device, dtype=x.dtype)
    u = ((columns + 0.5) * stride - camera[1]) / camera[0]
    v = ((rows + 0.5) * stride - camera[2]) / camera[0]
    return torch.stack([u.expand(height, width), v[:, None].expand(height, width)]).expand(len(x), 2, height, width)


def _clamp_to_visible(normals: Tensor, rays: Tensor) -> Tensor:
    """The normals, those that point away from the viewer moved along their ray until they do not."""
    cosine = (normals * rays).sum(dim=1, keepdim=True)
    return F.normalize(normals + rays * (_MIN_COSINE - cosine).relu(), dim=1)


def _gather_neighbors(x: Tensor) -> Tensor:
    """(B, C, 25, h, w): the pixels around each, beyond the border those at it."""
    around = F.unfold(F.pad(x, (_WINDOW // 2,) * 4, mode="replicate"), _WINDOW)
    return around.unflatten(1, (-1, _WINDOW**2)).unflatten(-1, x.shape[2:])


def _compute_rotation_axes(normals: Tensor, steps: Tensor, uv: Tensor) -> Tensor:
    """Unit directions in the planes with normals n, seen from their pixels as the steps (right, down). Points
    (u, v, 1) Z stay in the plane when Z grows by -(n . step) / (n . (u + du, v + dv, 1)) of itself."""
    ahead = F.pad(uv + steps, (0, 0, 0, 0, 0, 0, 0, 1), value=1)
    step = F.pad(steps, (0, 0, 0, 0, 0, 0, 0, 1))
    along = (normals * ahead).sum(dim=1, keepdim=True)
    along = torch.where(along.abs() < 1e-8, along.sign() * 1e-8, along)
    axes = F.normalize(step - (normals * step).sum(dim=1, keepdim=True) / along * ahead, dim=1)
    return torch.where(axes.isfinite().all(dim=1, keepdim=True), axes, 0)


def _rotate_normals(normals: Tensor, axes: Tensor, angles: Tensor) -> Tensor:
    """Vectors turned around unit axes by angles (Rodrigues); around a zero axis they stay."""
    along = (normals * axes).sum(dim=1, keepdim=True)
    angles = torch.where(axes.any(dim=1, keepdim=True), angles, 0)
    return (
        normals * angles.cos()
        + torch.linalg.cross(axes, normals, dim=1) * angles.sin()
        + axes * along * (1 - angles.cos())
    )


def load(tensors: dict[str, Tensor]) -> DSINE:
    """The network of the published file's tensors, "module." before each name or not, all of them and no others; the
    weights of its standardised convolutions are computed here, once. Raises RuntimeError otherwise."""
    with torch.device("meta"):
        net = DSINE().to_empty(device="cpu")
    net.load_state_dict({key.removeprefix("module."): tensor for key, tensor in tensors.items()})
    for module in net.modules():
        if isinstance(module, _StandardizedConv2d):
            w = module.weight.data.flatten(1)
            w = w - w.mean(dim=1, keepdim=True)
            module.weight.data = (w / (w.std(dim=1, keepdim=True) + 1e-5)).unflatten(1, module.weight.shape[1:])
    return net

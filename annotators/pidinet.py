"""PiDiNet: edges by convolutions over differences of pixels (Su et al., Pixel Difference Networks for Efficient Edge
Detection, ICCV 2021), in its sizes full, small and tiny with spatial attention and dilation ("table5").

Written after the paper and hellozhuo/pidinet @ 36f6506df68e (research purpose only), with its names of weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Which difference each convolution takes, in order, from the first to block4_4: central, angular, radial, none (its
# configuration "carv4", the one that is published).
_DIFFERENCE_KINDS = "carv" * 4
_BLOCK_NAMES = ("1_1", "1_2", "1_3", *(f"{stage}_{i}" for stage in (2, 3, 4) for i in (1, 2, 3, 4)))
_ANGULAR_INDICES = [3, 0, 1, 6, 4, 2, 7, 8, 5]  # each of the 3x3 its neighbour counter-clockwise, the middle itself
_RADIAL_OUTER, _RADIAL_INNER = [0, 2, 4, 10, 14, 20, 22, 24], [6, 7, 8, 11, 13, 16, 17, 18]  # rings of 5x5


class PiDiNet(nn.Module):
    """Edges of images (B, 3, H, W), BGR in 0..1 as ControlNet feeds it: five maps (B, 1, H, W) in 0..1, of the four
    stages, then of all together. H and W from 8 on."""

    def __init__(self, channels: int = 60, reduced_channels: int = 24):
        super().__init__()
        c = channels
        widths = [c, 2 * c, 4 * c, 4 * c]
        self.init_block = nn.Conv2d(3, c, 3, padding=1, bias=False)
        before = c
        for name, kind in zip(_BLOCK_NAMES, _DIFFERENCE_KINDS[1:], strict=True):
            width = widths[int(name[0]) - 1]
            self.add_module(
                f"block{name}", _PixelDifferenceBlock(kind, before, width, downsamples=name in ("2_1", "3_1", "4_1"))
            )
            before = width
        self.dilations = nn.ModuleList(_DilationModule(width, reduced_channels) for width in widths)
        self.attentions = nn.ModuleList(_SpatialAttention(reduced_channels) for _ in widths)
        self.conv_reduces = nn.ModuleList(_ChannelReduction(reduced_channels) for _ in widths)
        self.classifier = nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        size = x.shape[2:]
        x = self.init_block(x)
        ends = []
        for name in _BLOCK_NAMES:
            x = self.get_submodule(f"block{name}")(x)
            if name in ("1_3", "2_4", "3_4", "4_4"):
                ends.append(x)
        edges = []
        for x, widen, attend, reduce in zip(ends, self.dilations, self.attentions, self.conv_reduces, strict=True):
            edges.append(F.interpolate(reduce(attend(widen(x))), size, mode="bilinear", align_corners=False))
        edges.append(self.classifier(torch.cat(edges, dim=1)))
        return [edge.sigmoid() for edge in edges]


class _PixelDifferenceBlock(nn.Module):
    def __init__(self, kind: str, in_channels: int, out_channels: int, downsamples: bool):
        super().__init__()
        self.downsamples = downsamples  # of its stage: at half the size of the one before
        if downsamples:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1)
        size = 5 if kind == "r" else 3
        self.conv1 = nn.Conv2d(in_channels, in_channels, size, padding=size // 2, groups=in_channels, bias=False)
        self.conv2 = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.downsamples:
            x = F.max_pool2d(x, 2)
        y = self.conv2(self.conv1(x).relu_())
        return y.add_(self.shortcut(x) if self.downsamples else x)


class _DilationModule(nn.Module):
    """The paper's compact dilation convolution module."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 1)
        self.conv2_1 = nn.Conv2d(out_channels, out_channels, 3, dilation=5, padding=5, bias=False)
        self.conv2_2 = nn.Conv2d(out_channels, out_channels, 3, dilation=7, padding=7, bias=False)
        self.conv2_3 = nn.Conv2d(out_channels, out_channels, 3, dilation=9, padding=9, bias=False)
        self.conv2_4 = nn.Conv2d(out_channels, out_channels, 3, dilation=11, padding=11, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(F.relu(x))
        return self.conv2_1(x).add_(self.conv2_2(x)).add_(self.conv2_3(x)).add_(self.conv2_4(x))


class _SpatialAttention(nn.Module):
    """The paper's compact spatial attention module."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 4, 1)
        self.conv2 = nn.Conv2d(4, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(F.relu(x))).sigmoid_() * x


class _ChannelReduction(nn.Module):
    def __init__(self, in_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def load(tensors: dict[str, Tensor]) -> PiDiNet:
    """The network of a published file's tensors, "module." before each name or not; its sizes are read off them.

    Differences of pixels are convolutions whose weights are differences: these are computed here, once, unless the
    file holds them already. Raises ValueError or RuntimeError when the tensors are not those of a PiDiNet with
    attention and dilation."""
    tensors = {key.removeprefix("module."): tensor for key, tensor in tensors.items()}
    keys = ["init_block.weight", *(f"block{name}.conv1.weight" for name in _BLOCK_NAMES)]
    for key in (*keys, "dilations.0.conv1.weight"):
        if key not in tensors or tensors[key].ndim != 4:
            raise ValueError(f"no PiDiNet with attention and dilation: it has no {key} (N, C, h, w)")
    net = PiDiNet(len(tensors[keys[0]]), len(tensors["dilations.0.conv1.weight"]))
    if all(tensors[key].shape[2:] == (3, 3) for key in keys):  # otherwise radial ones have become 5x5
        tensors |= {
            key: _to_plain_weight(tensors[key], kind) for key, kind in zip(keys, _DIFFERENCE_KINDS, strict=True)
        }
    net.load_state_dict(tensors)
    return net


def _to_plain_weight(weight: Tensor, kind: str) -> Tensor:
    """The weights (N, C, 3, 3) of a convolution over differences as those of one over pixels; radial ones become
    (N, C, 5, 5). Equations 4 to 6 of the paper."""
    w = weight.flatten(2)
    if kind == "c":
        w = w - F.one_hot(torch.tensor(4), 9) * w.sum(dim=2, keepdim=True)
    elif kind == "a":
        w = w - w[:, :, _ANGULAR_INDICES]
    elif kind == "r":
        ring = w.new_zeros(*w.shape[:2], 25)
        ring[:, :, _RADIAL_OUTER], ring[:, :, _RADIAL_INNER] = w[:, :, 1:], -w[:, :, 1:]
        return ring.unflatten(2, (5, 5))
    return w.unflatten(2, (3, 3))

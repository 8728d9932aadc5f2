"""LaMa: what could be where an image is masked (Suvorov et al., Resolution-robust Large Mask Inpainting with Fourier
Convolutions, WACV 2022), in the size big-lama.

Written after the paper and advimman/lama @ 786f5936b27f (Apache-2.0), with its names of weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

BIG_LAMA_WIDTH, BIG_LAMA_BLOCKS = 64, 18
# Parts of a checkpoint of its training that fill nothing
_TRAINING_PREFIXES = ("discriminator.", "loss_", "val_evaluator.", "test_evaluator.", "extra_evaluators.")


class LaMa(nn.Module):
    """Images (B, 3, H, W) in 0..1, RGB, filled where the mask (B, 1, H, W) is 1 and not 0; elsewhere they are
    redrawn, much alike. H and W are multiples of 8, from 16."""

    def __init__(self, width: int = BIG_LAMA_WIDTH, blocks: int = BIG_LAMA_BLOCKS):
        super().__init__()
        widths = [width, 2 * width, 4 * width, 8 * width]
        layers = [
            nn.ReflectionPad2d(3),
            _FourierConvBnRelu((4, 0), (width, 0), 7, padding=0),
            _FourierConvBnRelu((widths[0], 0), (widths[1], 0), stride=2),
            _FourierConvBnRelu((widths[1], 0), (widths[2], 0), stride=2),
            _FourierConvBnRelu((widths[2], 0), _split_channels(widths[3]), stride=2),
            *(_FourierResidualBlock(_split_channels(widths[3])) for _ in range(blocks)),
            _ConcatLocalGlobal(),
        ]
        for many, few in zip(widths[:0:-1], widths[2::-1], strict=True):
            layers += [nn.ConvTranspose2d(many, few, 3, 2, padding=1, output_padding=1), nn.BatchNorm2d(few), nn.ReLU()]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Sigmoid()]
        self.model = nn.Sequential(*layers)

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        return self.model(torch.cat([images * (1 - mask), mask], dim=1))


ChannelSplit = tuple[int, int]  # channels that see their surroundings, and those that see the whole image


def _split_channels(width: int) -> ChannelSplit:
    return width - width * 3 // 4, width * 3 // 4


class _FourierUnit(nn.Module):
    """A convolution of one pixel in the image's spectrum; real and imaginary parts are neighbours."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv_layer = nn.Conv2d(2 * channels, 2 * channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        waves = torch.fft.rfft2(x.float().contiguous(), norm="ortho")  # of no narrower numbers on a CPU
        flat = torch.stack([waves.real, waves.imag], dim=2).flatten(1, 2)  # (B, 2 C, H, W / 2 + 1)
        flat = self.bn(self.conv_layer(flat.to(x.dtype))).relu_().float()
        real, imaginary = flat.unflatten(1, (-1, 2)).unbind(2)
        waves = torch.complex(real.contiguous(), imaginary.contiguous())
        return torch.fft.irfft2(waves, s=x.shape[-2:], norm="ortho").to(x.dtype)


class _SpectralTransform(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Sequential(nn.Conv2d(channels, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU())
        self.fu = _FourierUnit(half)
        self.conv2 = nn.Conv2d(half, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return self.conv2(x + self.fu(x))


class _FastFourierConv(nn.Module):
    """A fast Fourier convolution: both parts give to both, the whole to the whole in the spectrum."""

    def __init__(
        self, in_channels: ChannelSplit, out_channels: ChannelSplit, kernel_size: int, stride: int, padding: int
    ):
        super().__init__()

        def conv(i: int, o: int) -> nn.Module:
            return nn.Conv2d(i, o, kernel_size, stride, padding, bias=False, padding_mode="reflect")

        self.convl2l = conv(in_channels[0], out_channels[0])
        if out_channels[1]:
            self.convl2g = conv(in_channels[0], out_channels[1])
        if in_channels[1]:
            self.convg2l = conv(in_channels[1], out_channels[0])
            self.convg2g = _SpectralTransform(out_channels[1])
        self.in_channels, self.out_channels = in_channels, out_channels

    def forward(self, local_features: Tensor, global_features: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x, y = self.convl2l(local_features), self.convl2g(local_features) if self.out_channels[1] else None
        if global_features is None:
            return x, y
        return x + self.convg2l(global_features), y + self.convg2g(global_features)


class _FourierConvBnRelu(nn.Module):
    def __init__(
        self,
        in_channels: ChannelSplit,
        out_channels: ChannelSplit,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int = 1,
    ):
        super().__init__()
        self.ffc = _FastFourierConv(in_channels, out_channels, kernel_size, stride, padding)
        self.bn_l = nn.BatchNorm2d(out_channels[0])
        if out_channels[1]:
            self.bn_g = nn.BatchNorm2d(out_channels[1])

    def forward(self, x: Tensor | tuple[Tensor, Tensor]) -> Tensor | tuple[Tensor, Tensor]:
        near, whole = self.ffc(*(x if isinstance(x, tuple) else (x, None)))
        near = self.bn_l(near).relu_()
        return near if whole is None else (near, self.bn_g(whole).relu_())


class _FourierResidualBlock(nn.Module):
    def __init__(self, channels: ChannelSplit):
        super().__init__()
        self.conv1 = _FourierConvBnRelu(channels, channels)
        self.conv2 = _FourierConvBnRelu(channels, channels)

    def forward(self, x: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        near, whole = self.conv2(self.conv1(x))
        return x[0] + near, x[1] + whole


class _ConcatLocalGlobal(nn.Module):
    def forward(self, x: tuple[Tensor, Tensor]) -> Tensor:
        return torch.cat(x, dim=1)


def load(tensors: dict[str, Tensor]) -> LaMa:
    """The network of the published file's tensors, "generator." before each name or not, all of them and no others but
    those of its training; its width and how many blocks it has are read off them. Raises RuntimeError otherwise."""
    tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(_TRAINING_PREFIXES)}
    tensors = {key.removeprefix("generator."): tensor for key, tensor in tensors.items()}
    first = tensors.get("model.1.bn_l.weight")
    blocks = len({key.split(".")[1] for key in tensors if key.endswith("conv1.bn_l.weight")})
    width = BIG_LAMA_WIDTH if first is None else len(first)
    with torch.device("meta"):
        net = LaMa(width, blocks or BIG_LAMA_BLOCKS).to_empty(device="cpu")
    net.load_state_dict(tensors)
    return net

"""LaMa: what could be where a picture is masked (Suvorov et al., Resolution-robust Large Mask Inpainting with Fourier
Convolutions, WACV 2022), in the size big-lama.

Written after the paper and advimman/lama @ 786f5936b27f (Apache-2.0), with its names of weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH, BLOCKS = 64, 18
# Parts of a checkpoint of its training that fill nothing
_TRAINING = ("discriminator.", "loss_", "val_evaluator.", "test_evaluator.", "extra_evaluators.")


class LaMa(nn.Module):
    """Pictures (B, 3, H, W) in 0..1, RGB, filled where the mask (B, 1, H, W) is 1 and not 0; elsewhere they are
    redrawn, much alike. H and W are multiples of 8, from 16."""

    def __init__(self, width: int = WIDTH, blocks: int = BLOCKS):
        super().__init__()
        widths = [width, 2 * width, 4 * width, 8 * width]
        layers = [
            nn.ReflectionPad2d(3),
            _Layer((4, 0), (width, 0), 7, padding=0),
            _Layer((widths[0], 0), (widths[1], 0), stride=2),
            _Layer((widths[1], 0), (widths[2], 0), stride=2),
            _Layer((widths[2], 0), _parts(widths[3]), stride=2),
            *(_Block(_parts(widths[3])) for _ in range(blocks)),
            _Together(),
        ]
        for many, few in zip(widths[:0:-1], widths[2::-1], strict=True):
            layers += [nn.ConvTranspose2d(many, few, 3, 2, padding=1, output_padding=1), nn.BatchNorm2d(few), nn.ReLU()]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Sigmoid()]
        self.model = nn.Sequential(*layers)

    def forward(self, pictures: Tensor, mask: Tensor) -> Tensor:
        return self.model(torch.cat([pictures * (1 - mask), mask], dim=1))


Parts = tuple[int, int]  # channels that see their surroundings, and those that see the whole picture


def _parts(width: int) -> Parts:
    return width - width * 3 // 4, width * 3 // 4


class _Fourier(nn.Module):
    """A convolution of one pixel in the picture's spectrum; real and imaginary parts are neighbours."""

    def __init__(self, width: int):
        super().__init__()
        self.conv_layer = nn.Conv2d(2 * width, 2 * width, 1, bias=False)
        self.bn = nn.BatchNorm2d(2 * width)

    def forward(self, x: Tensor) -> Tensor:
        waves = torch.fft.rfft2(x.float().contiguous(), norm="ortho")  # of no narrower numbers on a CPU
        flat = torch.stack([waves.real, waves.imag], dim=2).flatten(1, 2)  # (B, 2 C, H, W / 2 + 1)
        flat = self.bn(self.conv_layer(flat.to(x.dtype))).relu_().float()
        real, imaginary = flat.unflatten(1, (-1, 2)).unbind(2)
        waves = torch.complex(real.contiguous(), imaginary.contiguous())
        return torch.fft.irfft2(waves, s=x.shape[-2:], norm="ortho").to(x.dtype)


class _Spectral(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        half = width // 2
        self.conv1 = nn.Sequential(nn.Conv2d(width, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU())
        self.fu = _Fourier(half)
        self.conv2 = nn.Conv2d(half, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return self.conv2(x + self.fu(x))


class _Convolution(nn.Module):
    """A fast Fourier convolution: both parts give to both, the whole to the whole in the spectrum."""

    def __init__(self, before: Parts, after: Parts, size: int, stride: int, padding: int):
        super().__init__()

        def conv(i: int, o: int) -> nn.Module:
            return nn.Conv2d(i, o, size, stride, padding, bias=False, padding_mode="reflect")

        self.convl2l = conv(before[0], after[0])
        if after[1]:
            self.convl2g = conv(before[0], after[1])
        if before[1]:
            self.convg2l = conv(before[1], after[0])
            self.convg2g = _Spectral(after[1])
        self.before, self.after = before, after

    def forward(self, near: Tensor, whole: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x, y = self.convl2l(near), self.convl2g(near) if self.after[1] else None
        if whole is None:
            return x, y
        return x + self.convg2l(whole), y + self.convg2g(whole)


class _Layer(nn.Module):
    def __init__(self, before: Parts, after: Parts, size: int = 3, stride: int = 1, padding: int = 1):
        super().__init__()
        self.ffc = _Convolution(before, after, size, stride, padding)
        self.bn_l = nn.BatchNorm2d(after[0])
        if after[1]:
            self.bn_g = nn.BatchNorm2d(after[1])

    def forward(self, x: Tensor | tuple[Tensor, Tensor]) -> Tensor | tuple[Tensor, Tensor]:
        near, whole = self.ffc(*(x if isinstance(x, tuple) else (x, None)))
        near = self.bn_l(near).relu_()
        return near if whole is None else (near, self.bn_g(whole).relu_())


class _Block(nn.Module):
    def __init__(self, parts: Parts):
        super().__init__()
        self.conv1 = _Layer(parts, parts)
        self.conv2 = _Layer(parts, parts)

    def forward(self, x: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        near, whole = self.conv2(self.conv1(x))
        return x[0] + near, x[1] + whole


class _Together(nn.Module):
    def forward(self, x: tuple[Tensor, Tensor]) -> Tensor:
        return torch.cat(x, dim=1)


def load(tensors: dict[str, Tensor]) -> LaMa:
    """The network of the published file's tensors, "generator." before each name or not, all of them and no others but
    those of its training; its width and how many blocks it has are read off them. Raises RuntimeError otherwise."""
    tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(_TRAINING)}
    tensors = {key.removeprefix("generator."): tensor for key, tensor in tensors.items()}
    first = tensors.get("model.1.bn_l.weight")
    blocks = len({key.split(".")[1] for key in tensors if key.endswith("conv1.bn_l.weight")})
    width = WIDTH if first is None else len(first)
    with torch.device("meta"):
        net = LaMa(width, blocks or BLOCKS).to_empty(device="cpu")
    net.load_state_dict(tensors)
    return net

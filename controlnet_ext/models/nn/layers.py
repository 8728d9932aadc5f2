"""torch's layers, computing in their input's dtype whatever their weights are stored in: float8, which nothing computes
in, or another net's; and on its device, wherever they lie. Where both are the same nothing is copied. On torch's meta
device, where a network waits for its weights, nothing is drawn for them first: that would take 0.1 s a network."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Linear(nn.Linear):
    """`nn.Linear` that computes in its input's dtype, on its device."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        return apply_layer(self, x, self.weight, self.bias)


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` that computes in its input's dtype, on its device."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        return apply_layer(self, x, self.weight, self.bias)


class GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` that computes in its input's dtype, on its device."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        return apply_layer(self, x, self.weight, self.bias)


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` that computes in its input's dtype, on its device."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        return apply_layer(self, x, self.weight, self.bias)


def cast_like(tensor: Tensor, x: Tensor) -> Tensor:
    """Return the tensor, of any shape, on x's device and in its dtype; the dtype changes there, so that float8 is
    copied as float8."""
    if tensor.device != x.device:
        tensor = tensor.to(x.device, non_blocking=True)
    return tensor.to(x.dtype)


def apply_layer(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute the layer on x, of a shape that it takes, with these weights instead of its own. TypeError for a layer of
    another class."""
    weight, bias = cast_like(weight, x), None if bias is None else cast_like(bias, x)
    match layer:
        case nn.Linear():
            return F.linear(x, weight, bias)
        case nn.Conv2d():
            return F.conv2d(x, weight, bias, layer.stride, layer.padding)
        case nn.GroupNorm():
            return F.group_norm(x, layer.num_groups, weight, bias, layer.eps)
        case nn.LayerNorm():
            return F.layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)
    raise TypeError(f"a {type(layer).__name__} is no layer of a ControlNet")

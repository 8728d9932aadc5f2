"""How a ControlNet runs: its blocks, which take nearly all of the time, through torch.compile; or all of it on another
device than its weights are.

Models on the same weights that do something else with them.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

Blocks = Callable[[Any, Tensor, Tensor, Tensor, int], list[Tensor]]


def blocks(net: Any, x: Tensor, time: Tensor, context: Tensor, frames: int) -> list[Tensor]:
    """What comes out of a ControlNet behind each skip and the middle block for an embedded x with its map."""
    skips = [x]
    for level in net.down_blocks:
        skips += level(skips[-1], time, context, frames)
    middle = net.mid_block(skips[-1], time, context)
    outputs = [zero(skip) for zero, skip in zip(net.controlnet_down_blocks, skips, strict=True)]
    return [*outputs, net.controlnet_mid_block(middle)]


class Compiled:
    """`blocks` through torch.compile with these arguments. Results are copies: the next replay of CUDA graphs writes
    over its own. It holds no network, so that copies of one share it, whatever they do with its weights."""

    def __init__(self, *args: Any, **kwargs: Any):
        self._how = args, kwargs
        self._blocks = torch.compile(blocks, *args, **kwargs)

    def __call__(self, net: Any, x: Tensor, time: Tensor, context: Tensor, frames: int) -> list[Tensor]:
        return [output.clone() for output in self._blocks(net, x, time, context, frames)]

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, self._how


def _again(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Compiled:
    """One that was pickled."""
    return Compiled(*args, **kwargs)


class Streaming(nn.Module):
    """A network of `layers`, which compute on their input's device wherever their weights are."""

    def __init__(self) -> None:
        super().__init__()
        self.streams_to: torch.device | None = None

    def on(self, device: torch.device) -> Any:
        """This network computing on `device` with the same weights, which stay where they are: each layer's are copied
        there when it is called, and forgotten."""
        streamed = copy(self)
        streamed.streams_to = device
        return streamed


class Running(Streaming):
    """What runs `blocks`."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks: Blocks = blocks

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """From now on blocks run through torch.compile with these arguments, of copies of this network too; with mode
        "reduce-overhead" as CUDA graphs on a GPU. Other results than before by rounding."""
        self.blocks = Compiled(*args, **kwargs)

    def on(self, device: torch.device) -> Any:
        """ValueError if it is compiled: that would copy all weights at once."""
        if self.blocks is not blocks:
            raise ValueError("a compiled network cannot have low_vram: its weights would not go layer by layer")
        return super().on(device)


class Around(nn.Module):
    """A model around a ControlNet, its `net`, which does nearly all of its work."""

    net: Any

    def on(self, device: torch.device) -> Any:
        """As `ControlNet.on`."""
        moved: Any = copy(self)
        moved.streams_to = device
        moved._modules = {**self._modules, "net": self.net.on(device)}
        return moved

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """As `ControlNet.compile`."""
        self.net.compile(*args, **kwargs)


def pooling(model: Any) -> Any:
    """The model with its residuals averaged over the picture."""
    pooled = copy(model)
    pooled.global_average_pooling = True
    return pooled

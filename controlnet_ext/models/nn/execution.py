"""How a ControlNet runs: its blocks, which take nearly all of the time, through torch.compile; or the whole network on
another device than that of its weights. And base classes of models that wrap a ControlNet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ...guidance.contract import ControlModel
from ..state_dict.compatibility import UNetSignature

NET_PREFIX = "net."  # of the tensors of the ControlNet in the state dict of a `ControlNetWrapper`
BlockRunner = Callable[["ControlNetBlocks", Tensor, Tensor, Tensor, int], list[Tensor]]


class ControlNetBlocks(Protocol):
    """The blocks of a ControlNet, all but those that read the map, the timestep and x."""

    down_blocks: nn.ModuleList
    controlnet_down_blocks: nn.ModuleList

    @property
    def mid_block(self) -> nn.Module:
        """The middle block."""

    @property
    def controlnet_mid_block(self) -> nn.Module:
        """The zero convolution behind the middle block."""


def run_blocks(net: ControlNetBlocks, x: Tensor, time: Tensor, context: Tensor, frames: int) -> list[Tensor]:
    """Compute a ControlNet's outputs behind each skip and the middle block, `(B, C, h, w)` each, for an embedded x `(B,
    C, h, w)` to which the map is added, the time embedding `(B, T)` and the prompt `(B, L, D)`."""
    skips = [x]
    for level in net.down_blocks:
        skips += level(skips[-1], time, context, frames)
    middle = net.mid_block(skips[-1], time, context)
    outputs = [zero(skip) for zero, skip in zip(net.controlnet_down_blocks, skips, strict=True)]
    return [*outputs, net.controlnet_mid_block(middle)]


class CompiledBlocks:
    """`blocks` through torch.compile with these arguments. Results are copies: the next replay of CUDA graphs writes
    over its own. It holds no network, so that copies of one share it, whatever they do with its weights."""

    def __init__(self, *args: Any, **kwargs: Any):
        self._compile_arguments = args, kwargs
        self._compiled_blocks = torch.compile(run_blocks, *args, **kwargs)

    def __call__(self, net: ControlNetBlocks, x: Tensor, time: Tensor, context: Tensor, frames: int) -> list[Tensor]:
        return [output.clone() for output in self._compiled_blocks(net, x, time, context, frames)]

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_compiled, self._compile_arguments


def _rebuild_compiled(args: tuple[Any, ...], kwargs: dict[str, Any]) -> CompiledBlocks:
    """Rebuild a pickled `CompiledBlocks`."""
    return CompiledBlocks(*args, **kwargs)


class LayerwiseOffload(nn.Module, ControlModel):
    """A network of `layers`, which compute on their input's device wherever their weights are."""

    def __init__(self) -> None:
        super().__init__()
        self.stream_device: torch.device | None = None

    def stream_to(self, device: torch.device) -> Any:
        """Return this network computing on `device` with the same weights, which stay where they are: each layer's are
        copied there when it is called, and freed afterwards."""
        other = copy(self)
        other.stream_device = device
        return other

    def iter_parts(self) -> Iterator[nn.Module]:
        """Yield the modules that compute, those of other networks that it is made of too."""
        yield from self.modules()


class CompilableBlocks(LayerwiseOffload):
    """A network whose `block_runner` computes its blocks, compiled or not."""

    global_average_pooling: bool | None = None

    def __init__(self) -> None:
        super().__init__()
        self.block_runner: BlockRunner = run_blocks

    unet_signature: UNetSignature

    @property
    def skip_count(self) -> int:
        """The number of skips of the UNet it was made for."""
        return len(self.unet_signature.skip_channels)

    @property
    def prompt_rows_only(self) -> bool:
        """True if residuals are averaged over the image, as those of the shuffle ControlNet."""
        return self.global_average_pooling is True

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """From now on blocks run through torch.compile with these arguments, of copies of this network too; with mode
        "reduce-overhead" as CUDA graphs on a GPU. Other results than before by rounding."""
        self.block_runner = CompiledBlocks(*args, **kwargs)

    def stream_to(self, device: torch.device) -> Any:
        """Return this network computing on `device`, as `LayerwiseOffload.stream_to`. ValueError if it is compiled,
        which would copy all weights at once."""
        if self.block_runner is not run_blocks:
            raise ValueError("a compiled network cannot have low_vram: its weights would not go layer by layer")
        return super().stream_to(device)


class ControlNetWrapper(nn.Module, ControlModel):
    """A model around a ControlNet, its `net`, which does nearly all of its work."""

    net: Any

    @property
    def skip_count(self) -> int:
        """The number of skips of the UNet that the ControlNet was made for."""
        return int(self.net.skip_count)

    def stream_to(self, device: torch.device) -> Any:
        """Return this model computing on `device`, as `LayerwiseOffload.stream_to`."""
        other: Any = copy(self)
        other.stream_device = device
        other._modules = {**self._modules, "net": self.net.stream_to(device)}
        return other

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the ControlNet's blocks, as `CompilableBlocks.compile`."""
        self.net.compile(*args, **kwargs)


PooledModel = TypeVar("PooledModel", bound=CompilableBlocks)


def with_global_average_pooling(model: PooledModel) -> PooledModel:
    """The model with its residuals averaged over the image."""
    other = copy(model)
    other.global_average_pooling = True
    return other


def with_pooling_for(model: PooledModel, kinds: Sequence[str | None]) -> PooledModel:
    """The model for maps of these kinds (None: unknown): pooled if all are "shuffle" and its config states nothing."""
    has_default = model.global_average_pooling is None and set(kinds) == {"shuffle"}
    return with_global_average_pooling(model) if has_default else model

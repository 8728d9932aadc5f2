"""Memory and speed of the trained network: activations that are computed again, and torch.compile with a check."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..models.nn.blocks import ResnetBlock, SpatialTransformer
from ..models.nn.execution import LayerwiseOffload

CHECKPOINTED_BLOCKS = (ResnetBlock, SpatialTransformer)
MAX_DIFFERENCE = 0.1  # of a tensor's gradient from that without torch.compile, as a share of its norm; bf16 gives 0.02
MIN_SHARE = 1e-3  # of the norm of all gradients, under which a tensor's difference does not count
PROBE_SCALE = 0.02  # standard deviation of the weights that replace those of a tensor of zeros


@contextmanager
def checkpoint_activations(network: nn.Module) -> Iterator[None]:
    """Compute the blocks of a network again in backward passes within the context, instead of storing activations."""
    modules = network.iter_parts() if isinstance(network, LayerwiseOffload) else network.modules()
    blocks = [module for module in modules if isinstance(module, CHECKPOINTED_BLOCKS)]
    for block in blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def compile_network(network: nn.Module) -> None:
    """Compile a network in place, with the defaults of torch.compile."""
    network.compile()


def compile_with_check(network: nn.Module, loss: Callable[[], Tensor], compile_parts: Callable[[], None]) -> None:
    """Call `compile_parts()`, and check that `loss()`, of shape (), has the gradients that it had before.

    Raises ValueError where those of a tensor differ by over 10 %. Compiled backward passes have given zeros behind the
    first upsampler of a UNet on a CPU (torch 2.13), which no loss shows. Tensors of zeros, behind which a fresh
    ControlNet has no gradients, are random while it is checked; weights and gradients are then as before.
    """
    with _without_zeros(network):
        expected = _compute_gradients(network, loss)
        compile_parts()
        actual = _compute_gradients(network, loss)
    scale = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    for name, gradient in expected.items():
        difference = (actual[name] - gradient).norm()
        if not difference <= MAX_DIFFERENCE * gradient.norm() + MIN_SHARE * scale:  # NaN neither
            share = (difference / gradient.norm()).item()
            raise ValueError(
                f"torch.compile gives {name} another gradient, off by {100 * share:.3g} %: train without --compile, or "
                f"with another PyTorch than {torch.__version__}"
            )


def _compute_gradients(network: nn.Module, loss: Callable[[], Tensor]) -> dict[str, Tensor]:
    network.zero_grad()
    loss().backward()
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in network.named_parameters()
        if p.requires_grad
    }
    network.zero_grad()
    return gradients


@contextmanager
def _without_zeros(network: nn.Module) -> Iterator[None]:
    """Replace tensors of zeros by random ones within the context."""
    zeros = [p for p in network.parameters() if p.requires_grad and not p.any()]
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in zeros:
            parameter.copy_(torch.randn(parameter.shape, generator=rng) * PROBE_SCALE)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter in zeros:
                parameter.zero_()

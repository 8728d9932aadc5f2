"""Activations that are computed again, and the check of torch.compile."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from controlnet_ext.models.nn.blocks import BlockDims, ResnetBlock
from controlnet_ext.training.config import Execution, TrainingSchedule
from controlnet_ext.training.loop import train
from controlnet_ext.training.memory import checkpoint_activations, compile_with_check


class Blocks(nn.Module):
    """Two blocks of a ControlNet and a convolution of zeros, as a fresh one has."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(ResnetBlock(4, 4, BlockDims(8, 8, 2, False)) for _ in range(2))
        self.zero = nn.Conv2d(4, 4, 1)
        nn.init.zeros_(self.zero.weight)
        nn.init.zeros_(self.zero.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x, torch.ones(len(x), 8))
        return self.zero(x)


def compute_loss(network: nn.Module) -> torch.Tensor:
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    return (network(x) - x).square().mean()


def compute_gradients(network: nn.Module) -> list[torch.Tensor]:
    network.zero_grad()
    compute_loss(network).backward()
    return [p.grad.clone() for p in network.parameters()]


def test_activations_that_are_computed_again_give_the_same_gradients_to_the_bit():
    network, calls = Blocks(), []
    nn.init.ones_(network.zero.weight)
    network.blocks[0].conv1.register_forward_hook(lambda *_: calls.append(1))
    expected = compute_gradients(network)
    assert len(calls) == 1
    with checkpoint_activations(network):
        found = compute_gradients(network)
    assert len(calls) == 3 and all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    compute_gradients(network)
    assert len(calls) == 4 and "forward" not in vars(network.blocks[0])


def test_a_training_computes_activations_again_if_it_is_told_to(tmp_path):
    counts = []
    for has_checkpointing in (False, True):
        network, calls = Blocks(), []
        network.blocks[0].conv1.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        trained = train(
            network,
            lambda net, step, part: compute_loss(net),
            lambda *_: {},
            TrainingSchedule(2),
            tmp_path / str(has_checkpointing),
            execution=Execution("fp32", has_checkpointing=has_checkpointing),
        )
        counts.append(len(calls))
        assert "forward" not in vars(trained.blocks[0]) and "forward" not in vars(network.blocks[0])
    assert counts == [2, 4]


def cut(network: nn.Module) -> None:
    """Do what torch.compile once did: behind the first block there is no gradient."""
    network.blocks[0].register_forward_hook(lambda module, args, output: output.detach())


def scale(network: nn.Module) -> None:
    """Give gradients that are wrong by a factor."""
    network.blocks[1].register_full_backward_hook(lambda module, before, after: (1.5 * before[0], before[1]))


@pytest.mark.parametrize(("defect", "off"), [(cut, "off by 100 %"), (scale, "off by 50 %")])
def test_a_compiled_network_whose_gradients_differ_is_refused_and_left_as_it_was(defect, off):
    network = Blocks()
    before = [p.clone() for p in network.parameters()]
    with pytest.raises(ValueError, match=f"torch.compile gives blocks.0.* another gradient, {off}.*without --compile"):
        compile_with_check(network, lambda: compute_loss(network), lambda: defect(network))
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert all(p.grad is None for p in network.parameters())


def test_a_compiled_network_with_equal_gradients_is_taken(tmp_path):
    compiled = []
    network = train(
        Blocks(),
        lambda net, step, part: compute_loss(net),
        lambda *_: {},
        TrainingSchedule(2),
        tmp_path,
        execution=Execution(is_compiled=True),
        compile_parts=compiled.append,
    )
    assert len(compiled) == 1 and network is not None


def test_a_training_with_a_compiler_that_cuts_gradients_is_refused(tmp_path):
    with pytest.raises(ValueError, match="train without --compile"):
        train(
            Blocks(),
            lambda net, step, part: compute_loss(net),
            lambda *_: {},
            TrainingSchedule(2),
            tmp_path,
            execution=Execution(is_compiled=True),
            compile_parts=cut,
        )
    assert not list(tmp_path.iterdir())

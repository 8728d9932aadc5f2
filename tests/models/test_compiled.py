"""ControlNets through torch.compile: the same guidance, few graphs, and nothing read that CUDA graphs write over."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import test_control_lora
import test_sparsectrl
import test_transformer_controls as transformers
import test_union
import tiny
import torch
from fakes import run, state
from networks import all_of, ours, random_image, randomised, reference, step_for, unet
from test_guide_histories import PIPE

from controlnet_ext import Unit, Window, guide
from controlnet_ext.models.kinds import control_lora
from controlnet_ext.models.kinds.controlnet import ControlNet
from controlnet_ext.models.nn.execution import with_global_average_pooling


class Replays:
    """A backend of torch.compile whose results of one shape are in the same memory in each call, as CUDA graphs' are:
    those of the call before are written over. It counts graphs and calls."""

    def __init__(self, fails_at: int | None = None):
        self.graphs = self.calls = 0
        self.fails_at = fails_at

    def __call__(self, graph: Callable[..., Any], _: Any) -> Callable[..., Any]:
        self.graphs += 1
        memory: dict[tuple[Any, ...], torch.Tensor] = {}

        def replay(*args: Any) -> tuple[Any, ...]:
            self.calls += 1
            if self.calls == self.fails_at:
                raise KeyError("the graph fails")
            made = graph(*args)
            return tuple(memory.setdefault((i, h.shape), h.clone()).copy_(h) for i, h in enumerate(made))

        return replay


@pytest.fixture(autouse=True)
def anew() -> None:
    torch._dynamo.reset()


def net_for(pipe: Any, seed: int = 2) -> Any:
    return randomised(ControlNet.from_unet(pipe.unet), seed)


def small() -> Any:
    tensors = ours(reference("SDXL small")).state_dict()
    theirs = reference("SDXL small").config
    return ControlNet.load({n: t.to(torch.float8_e4m3fn) if t.ndim > 1 else t for n, t in tensors.items()}, theirs)


def union() -> Any:
    return test_union.ours(test_union.theirs(6, tiny_one=True)).with_types("depth")


def lora() -> Any:
    file, _ = test_control_lora.parts(reference("SDXL small"), BASE)
    found = control_lora.load(file | test_control_lora.MARK, {})
    found.bind(BASE)
    return found


LONGER = union, lora, test_sparsectrl.ours
BASE = unet("SDXL small")  # which the Control-LoRA refers to, and does not keep


def equal(made: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))


def test_a_run_is_the_same_and_makes_few_graphs() -> None:
    pipe = PIPE
    nets = [net_for(PIPE, seed) for seed in (2, 3)]
    units = [
        Unit(nets[0], tiny.random_image(), weight="1@0, 0.2@1"),
        Unit(
            nets[0], tiny.random_image(1), weight=0.6, reuse=2
        ),  # whose first residuals outlast the next call of the net
        Unit(nets[1], tiny.random_image(2), mode="prompt", window=Window(0.25, 0.8)),
    ]

    def guided() -> torch.Tensor:
        with guide(pipe, units):
            return run(pipe, steps=6)

    plain, expected = run(pipe, steps=6), guided()
    before, replays = state(pipe), Replays()
    for net in nets:
        net.compile(backend=replays)
    assert torch.equal(guided(), expected) and not torch.equal(expected, plain)
    calls = 6 + 3 + 2  # of the schedule, of reuse, in the window
    assert (replays.graphs, replays.calls) == (1, calls)  # nets of one shape share it: weights are its inputs
    assert torch.equal(guided(), expected)
    assert (replays.graphs, replays.calls) == (1, 2 * calls)
    assert state(pipe) == before and torch.equal(run(pipe, steps=6), plain)


def test_a_graph_that_fails_leaves_nothing() -> None:
    pipe = PIPE
    net = net_for(PIPE)
    unit = Unit(net, tiny.random_image())
    with guide(pipe, [unit]):
        expected = run(pipe)
    plain, before = run(pipe), state(pipe)
    net.compile(backend=Replays(fails_at=3))
    with pytest.raises(KeyError, match="the graph fails"), guide(pipe, [unit]):
        run(pipe)
    assert state(pipe) == before and torch.equal(run(pipe), plain)
    with guide(pipe, [unit]):
        assert torch.equal(run(pipe), expected)


@torch.no_grad()
@pytest.mark.parametrize("make", [small, *(pytest.param(make, marks=pytest.mark.long) for make in LONGER)])
def test_all_kinds_of_control_nets_compile_whole(make: Any) -> None:
    net, many = make(), make in (union, test_sparsectrl.ours)
    step = test_sparsectrl.step() if make is test_sparsectrl.ours else step_for(net)
    hint = [net.hint(random_image())] if many else net.hint(random_image())
    steps = [replace(step, x=step.x * scale, t=step.t - 20, span=step.span) for scale in (1, 0.9)]
    expected = [all_of(net(each, hint)) for each in steps]
    replays = Replays()
    net.compile(backend=replays, fullgraph=True)
    made = [all_of(net(each, hint)) for each in steps]
    assert all(map(equal, made, expected)) and (replays.graphs, replays.calls) == (1, 2)
    with pytest.raises(ValueError, match="a compiled network cannot have low_vram"):
        net.stream_to(torch.device("cpu"))


@torch.no_grad()
def test_other_sizes_and_copies_of_a_net_take_few_graphs() -> None:
    net = net_for(PIPE)
    replays = Replays()
    sizes = [(2, 8, 8), (1, 16, 8), (3, 24, 16), (4, 8, 24)]
    cases = [(step_for(net, *size), net.hint(random_image(8 * size[1], 8 * size[2]))) for size in sizes]
    expected = [h for each in (net, with_global_average_pooling(net)) for case in cases for h in all_of(each(*case))]
    net.compile(backend=replays)
    made = [h for each in (net, with_global_average_pooling(net)) for case in cases for h in all_of(each(*case))]
    for a, b in zip(made, expected, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()  # a graph for any size may add up in another order
    assert replays.calls == 8 and replays.graphs <= 3


@pytest.mark.long
@pytest.mark.parametrize("base", transformers.PIPES)
def test_networks_of_transformers_compile_too(base: str) -> None:
    net, pipe = transformers.ours(base, transformers.control(base)), transformers.pipeline(base)
    units = [Unit(net, tiny.random_image(), weight=0.7), Unit(net, tiny.random_image(1), weight=0.5)]
    made = []
    for replays in (None, Replays()):
        if replays is not None:
            net.compile(backend=replays)
        with guide(pipe, units):
            made.append(transformers.run(pipe, base))
    assert replays is not None and replays.calls >= 8
    assert transformers.near(*reversed(made))


def test_a_pickled_net_is_compiled_the_same_way() -> None:
    net = ours(reference("SDXL small"))
    net.compile(backend="eager")
    step = step_for(net)
    again = pickle.loads(pickle.dumps(net))
    assert type(again.block_runner) is type(net.block_runner)
    assert equal(all_of(again(step, again.hint(random_image()))), all_of(net(step, net.hint(random_image()))))


def test_what_compiles_nothing_that_units_call_is_refused() -> None:
    net = ours(reference("SDXL small"))
    with pytest.raises(ValueError, match=r"the controlnet is compiled around what a unit calls.*net\.compile"):
        Unit(torch.compile(net), random_image())  # type: ignore[arg-type]
    torch.nn.Module.compile(net)
    with pytest.raises(ValueError, match="the controlnet is compiled around what a unit calls"):
        Unit(net, random_image())


@torch.no_grad()
@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_torchs_own_backend_gives_the_residuals_to_rounding() -> None:
    """Of float32, whose sums it takes in another order: 1e-5 of the largest."""
    net = ours(reference("SDXL small"))
    step = step_for(net)
    expected = all_of(net(step, net.hint(random_image())))
    net.compile()
    for a, b in zip(all_of(net(step, net.hint(random_image()))), expected, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()

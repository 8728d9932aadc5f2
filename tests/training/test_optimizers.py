"""Optimizers of a training: what they learn lies in the checkpoint to the bit; a library that is missing is named."""

from __future__ import annotations

import json
import sys
import types

import pytest
import torch
from torch import nn

from controlnet_ext.training.config import OPTIMIZERS, Execution, TrainingSchedule
from controlnet_ext.training.loop import train
from controlnet_ext.training.optimizers import PACKAGES, OptimizerState, check_optimizer, make_optimizer


class StandIn(torch.optim.Optimizer):
    """An optimizer of a library that may not be installed: with state in numbers, in nested mappings, and in groups."""

    def __init__(self, parameters, lr, **more):
        super().__init__(parameters, {"lr": lr, "d": 1e-6, "k": 0, **more})

    def step(self, closure=None):
        for group in self.param_groups:
            group["k"] += 1
            group["d"] *= 1.1
            for p in group["params"]:
                state = self.state[p]
                state["step"] = state.get("step", 0) + 1
                inner = state.setdefault("quantized", {"m": torch.zeros(p.shape, dtype=torch.uint8)})
                inner["m"] = (inner["m"] + (p.grad > 0).to(torch.uint8)).clone()
                p.data.add_((inner["m"].float() + group["d"] + group["k"]) * -group["lr"] * 1e-3)

    def load_state_dict(self, state):
        state = {**state, "state": {i: dict(each) for i, each in state["state"].items()}}
        inner = {i: each.pop("quantized") for i, each in state["state"].items()}
        super().load_state_dict(state)
        for i, p in enumerate(self.param_groups[0]["params"]):
            if i in inner:
                self.state[p]["quantized"] = inner[i]


@pytest.fixture
def libraries(monkeypatch):
    """The real libraries where they are installed, stand-ins elsewhere."""
    for name in PACKAGES.values():
        try:
            __import__(name)
        except ImportError:
            module = types.ModuleType(name)
            module.Prodigy, module.optim = StandIn, types.SimpleNamespace(AdamW8bit=StandIn)
            monkeypatch.setitem(sys.modules, name, module)


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(4, 64), nn.SiLU(), nn.Linear(64, 80), nn.SiLU(), nn.Linear(80, 1)
    return nn.Sequential(*layers)  # the second is large enough for 8 bits


def loss(network, step, part):
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
    return (network(x).float() - x.sum(1, keepdim=True)).square().mean()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_training_with_any_optimizer_goes_on_to_the_same_bits(name, libraries, tmp_path):
    schedule = TrainingSchedule(6, 1e-2, evaluation_interval=3)

    def run(folder, dies_at=None):
        def failing(network, step, part):
            if step == dies_at:
                raise RuntimeError("killed")
            return loss(network, step, part)

        return train(net(), failing, lambda *_: {}, schedule, tmp_path / folder, execution=Execution(optimizer=name))

    whole = run("whole")
    with pytest.raises(RuntimeError, match="killed"):
        run("cut", dies_at=4)
    resumed = run("cut")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    files = [tmp_path / folder / "checkpoint.safetensors" for folder in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not torch.equal(next(whole.parameters()), next(net().parameters()))


def test_state_of_any_form_is_restored(tmp_path):
    networks = [net(), net()]
    first, second = (StandIn(each.parameters(), 1.0) for each in networks)
    for p in networks[0].parameters():
        p.grad = torch.ones_like(p)
    one, other = OptimizerState(first), OptimizerState(second)
    first.step()
    tensors, values = one.read()
    assert set(values) == {*(f"{i}.step" for i in range(6)), "group.0.d", "group.0.k"}
    assert {t.dtype for t in tensors.values()} == {torch.uint8}
    other.restore(tensors, json.loads(json.dumps(values)))
    again = other.read()
    assert again[1] == values and all(torch.equal(again[0][name], t) for name, t in tensors.items())
    assert second.param_groups[0]["d"] == first.param_groups[0]["d"] == 1.1e-6


def test_adamw_stores_tensors_only():
    network = net()
    optimizer = make_optimizer("adamw", network.parameters(), 1e-3, 0.01)
    state = OptimizerState(optimizer)
    loss(network, 0, 0).backward()
    optimizer.step()
    assert state.read()[1] == {}


def test_adamw_in_one_kernel_is_that_of_pytorch():
    networks = [net(), net()]
    first = make_optimizer("adamw", networks[0].parameters(), 1e-2, 0.1)
    second = torch.optim.AdamW(networks[1].parameters(), 1e-2, (0.9, 0.98), weight_decay=0.1, foreach=False)
    for step in range(5):
        for network, optimizer in zip(networks, (first, second), strict=True):
            optimizer.zero_grad()
            loss(network, step, 0).backward()
            optimizer.step()
    for a, b in zip(*(network.parameters() for network in networks), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)  # order of rounding


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_library_is_named_with_its_command(name, monkeypatch):
    monkeypatch.setitem(sys.modules, PACKAGES[name], None)
    with pytest.raises(ValueError, match=f"optimizer {name} needs {PACKAGES[name]}: pip install {PACKAGES[name]}"):
        check_optimizer(name)
    check_optimizer("adamw")
    check_optimizer("adafactor")

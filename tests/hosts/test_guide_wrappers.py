"""What people do to a pipeline around or inside a guide: copies, split inference, offloading, casting."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import fakes
import pytest
import test_lllite
import tiny
import torch
from diffusers import StableDiffusionPipeline
from fakes import GREY, Plus, Pushes, state
from ldm import UNetModel
from test_guide_histories import SKIPS, pipeline
from test_guide_leaving import ldm_inputs

from controlnet_ext import Span, Unit, guide
from controlnet_ext.guidance.contract import ModuleHook
from controlnet_ext.hosts.ldm.guide import BatchRows, guide_ldm
from controlnet_ext.models.kinds import lllite

# Copies


def save_and_load(unet: Any) -> Any:
    file = io.BytesIO()
    torch.save(unet, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda unet: pickle.loads(pickle.dumps(unet)),
    "torch.save": save_and_load,
}


def is_plain(unet: Any) -> bool:
    """No module has anything of a guide: a hook, an attribute, or a function as its processor."""
    modules = list(unet.modules())
    hooks = [h for m in modules for table in (m._forward_hooks, m._forward_pre_hooks) for h in table.values()]
    processors = [m.processor for m in modules if hasattr(m, "processor")]
    return not (
        any(isinstance(hook, ModuleHook) for hook in hooks)
        or any("__getstate__" in vars(m) for m in modules)
        or any(m._forward_hooks_always_called or m._forward_pre_hooks_with_kwargs for m in modules)
        or any(type(p).__name__ == "function" for p in processors)
    )


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_of_a_guided_unet_is_plain(way: str) -> None:
    pipe = pipeline()
    plain, copies = fakes.run(pipe), []
    before = state(pipe)
    own = pipe.unet.register_forward_pre_hook(users_hook)
    units = [Unit(Plus(skips=SKIPS), GREY), Unit(Pushes(skips=SKIPS), GREY)]
    with guide(pipe, units):
        expected = fakes.run(pipe)

    def make_copy(*_: Any) -> dict[str, Any]:
        copies.append(COPIES[way](pipe.unet))
        return {}

    with guide(pipe, units):
        make_copy()
        assert torch.equal(fakes.run(pipe, callback_on_step_end=make_copy), expected)
        make_copy()
    assert len(copies) == 6
    for unet in copies:
        assert is_plain(unet)
        assert list(unet._forward_pre_hooks.values()) == [users_hook]  # others' stay
    for unet in (copies[0], copies[2], copies[-1]):
        assert torch.equal(fakes.run(tiny.pipeline(StableDiffusionPipeline, unet=unet)), plain)
    own.remove()
    assert state(pipe) == before


def users_hook(*_: Any) -> None:
    """A hook of the user's."""


def test_a_copied_pipeline_can_be_guided_beside_the_first() -> None:
    pipe = pipeline()
    unit = Unit(Pushes(skips=SKIPS), GREY)
    plain = fakes.run(pipe)
    with guide(pipe, [unit]):
        expected = fakes.run(pipe)
        other = copy.deepcopy(pipe)
        assert torch.equal(fakes.run(other), plain)
        with guide(other, [unit]):
            assert torch.equal(fakes.run(other), expected)
            assert torch.equal(fakes.run(pipe), expected)
    assert torch.equal(fakes.run(other), plain)


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_copy_of_a_guided_ldm_unet_is_plain(way: str) -> None:
    unet = UNetModel(tiny.unet("SDXL"))
    names = [name for name in test_lllite.weights() if "middle" in name and "attn1" in name]
    net = lllite.load({name: test_lllite.weights()[name] for name in names}, {})
    call = ldm_inputs()
    with torch.no_grad():
        plain = unet(*call)
        with guide_ldm(unet, [Unit(net, GREY), Unit(Pushes(skips=9), GREY)]) as guiding:
            guiding.begin([Span(0, 1)], 0)
            guiding.announce_step(BatchRows(Span(0, 1), [0, 0], [True, False]))
            expected = unet(*call)
            part = COPIES[way](unet.middle_block)
            copied = COPIES[way](unet)
            guiding.announce_step(BatchRows(Span(0, 1), [0, 0], [True, False]))
            assert torch.equal(unet(*call), expected)
        assert is_plain(copied) and is_plain(part)
        assert torch.equal(copied(*call), plain) and not torch.equal(expected, plain)


def test_a_compiled_unet_is_copied_without_its_guide() -> None:
    pipe = pipeline()
    plain = fakes.run(pipe)
    pipe.unet.compile(backend="eager")
    with guide(pipe, [Unit(Pushes(skips=SKIPS), GREY)]):
        copied = copy.deepcopy(pipe.unet)
    assert copied._compiled_call_impl is None and is_plain(copied)
    assert torch.equal(fakes.run(tiny.pipeline(StableDiffusionPipeline, unet=copied)), plain)


def test_a_copy_in_the_middle_of_a_call_is_refused_as_it_would_take_units_out() -> None:
    pipe = pipeline()
    before = state(pipe)
    handle = pipe.unet.mid_block.register_forward_pre_hook(lambda *_: copy.deepcopy(pipe.unet) and None)
    with (
        pytest.raises(RuntimeError, match="copied during its call"),
        guide(pipe, [Unit(Plus(skips=SKIPS), GREY)]),
    ):
        fakes.run(pipe)
    handle.remove()
    fakes.run(pipe)
    after = state(SimpleNamespace(unet=pipe.unet))
    assert after == {key: before[key] for key in after}

"""Networks that compute elsewhere than their weights are: layer by layer. torch's meta device stands for a GPU here; on
one, tests/test_guide_gpu.py looks at the numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import test_control_lora
import test_lllite
import test_sparsectrl
import test_style
import test_t2i_adapter
import test_union
import tiny
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from fakes import run
from networks import all_of, ours, random_image, reference, step_for, unet

from controlnet_ext import Unit, guide
from controlnet_ext.guidance.contract import Step
from controlnet_ext.models.kinds import control_lora, lllite, t2i_adapter
from controlnet_ext.models.kinds.controlnet import ControlNet
from controlnet_ext.models.kinds.instantid import InstantID
from controlnet_ext.models.nn.blocks import cast_like

META = torch.device("meta")


def plain() -> Any:
    return ours(reference("SDXL"))


def small() -> Any:
    theirs = reference("SD1.5")
    tensors = {n: t.to(torch.float8_e4m3fn) if t.ndim > 1 else t for n, t in theirs.state_dict().items()}
    return ControlNet.load(tensors, theirs.config)


def union() -> Any:
    return test_union.ours(test_union.theirs(8)).with_types("depth")


def lora() -> Any:
    file, _ = test_control_lora.parts(reference("SD1.5"), BASE)
    found = control_lora.load(file | test_control_lora.MARK, {})
    found.bind(BASE)
    return found


BASE = unet("SD1.5")  # which the Control-LoRA refers to, and does not keep


def elsewhere(step: Step) -> Step:
    moved = {name: value.to(META) for name, value in vars(step).items() if isinstance(value, torch.Tensor)}
    return replace(step, **moved)


@torch.no_grad()
@pytest.mark.parametrize("make", [plain, small, union, lora])
def test_a_network_computes_on_another_device_than_its_weights(make: Any) -> None:
    net = make()

    def residuals(of: Any, at: Step) -> list[torch.Tensor]:
        hint = of.hint(random_image())
        return all_of(of(at, [hint] if make is union else hint))

    step = step_for(net)
    expected = residuals(net, step)
    before = {name: (tensor.data_ptr(), tensor.device) for name, tensor in net.state_dict().items()}
    made = residuals(net.stream_to(META), elsewhere(step))
    assert net.stream_to(META).hint(random_image()).device == META and [h.shape for h in made] == [
        h.shape for h in expected
    ]
    assert all(h.device == META and h.dtype == e.dtype for h, e in zip(made, expected, strict=True))
    assert {name: (tensor.data_ptr(), tensor.device) for name, tensor in net.state_dict().items()} == before
    # the network itself computes where it did
    assert all(torch.equal(a, b) for a, b in zip(residuals(net, step), expected, strict=True))


@torch.no_grad()
def test_so_do_those_for_faces_and_videos() -> None:
    net = InstantID(plain(), torch.ones(3, 64))
    step = step_for(net)
    assert net.stream_to(META)(elsewhere(step), net.stream_to(META).hint(random_image())).middle.device == META  # type: ignore[union-attr]
    for kind, image in (("scribble", random_image()), ("rgb", torch.ones(1, 4, 8, 8))):
        sparse = test_sparsectrl.ours(kind)
        far = sparse.at_frames(0, 2).stream_to(META)
        made = far(elsewhere(test_sparsectrl.step()), [far.hint(image)])
        assert (far.frames, made.skips[0].device, sparse.net.device.type) == ((0, 2), META, "cpu")


@torch.no_grad()
def test_so_do_adapters_and_what_acts_inside_the_attention() -> None:
    adapter = t2i_adapter.load(test_t2i_adapter.theirs("light").state_dict(), {})
    features = adapter.stream_to(META).hint(random_image())
    assert [h.device for h in features] == [META] * len(features)
    assert [h.shape for h in features] == [h.shape for h in adapter.hint(random_image())]
    style = test_style.ours()
    states = torch.from_numpy(test_style.states())[None]
    assert style.stream_to(META).hint(states).device == META and style.hint(states).device.type == "cpu"
    lite = next(iter(lllite.load(test_lllite.weights(), {}).lites.values()))
    look = lite.encode_map(torch.zeros(1, 3, 64, 64, device=META))
    assert lite(torch.zeros(2, look[0, 0].numel(), lite.width, device=META), look.expand(2, -1, -1, -1)).device == META
    assert all(p.device.type == "cpu" for net in (adapter, style, lite) for p in net.parameters())


def test_what_is_stored_in_float8_travels_so() -> None:
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = call(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                seen.append((result.device.type, result.dtype))
            return result

    weight = torch.ones(4).to(torch.float8_e4m3fn)
    with Watch():
        assert cast_like(weight, torch.zeros(1, device=META)).dtype == torch.float32
    assert ("meta", torch.float8_e4m3fn) in seen and ("cpu", torch.float32) not in seen


def test_low_vram_changes_no_bit() -> None:
    pipe = tiny.pipeline(StableDiffusionPipeline)
    theirs = tiny.control()
    net = ControlNet.load(theirs.state_dict(), theirs.config)
    made = []
    for low in (False, True):
        with guide(pipe, [Unit(net, tiny.random_image(), low_vram=low)]):
            made.append(run(pipe, steps=2))
    assert torch.equal(*made) and net.stream_device is None


def test_low_vram_changes_no_bit_of_adapters_and_attention() -> None:
    plain, xl = tiny.pipeline(StableDiffusionPipeline), tiny.pipeline(StableDiffusionXLPipeline, "SDXL")
    adapter = t2i_adapter.load(test_t2i_adapter.theirs("full").state_dict(), {})
    for pipe, net, image in (
        (plain, adapter, tiny.random_image()),
        (plain, test_style.ours(), test_style.seen()),
        (xl, lllite.load(test_lllite.weights(), {}), tiny.random_image()),
    ):
        made = []
        for low in (False, True):
            with guide(pipe, [Unit(net, image, low_vram=low)]):
                made.append(run(pipe, steps=2))
        assert torch.equal(*made) and net.stream_device is None

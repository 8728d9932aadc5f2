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
import test_transformer_controls as transformers
import tiny
import torch
from diffusers import (
    AnimateDiffControlNetPipeline,
    AnimateDiffPipeline,
    DDIMScheduler,
    MotionAdapter,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    UNetMotionModel,
)
from diffusers.hooks import apply_group_offloading, apply_layerwise_casting
from fakes import GREY, Plus, Pushes, state
from ldm import UNetModel
from networks import randomised
from test_guide_histories import SKIPS, pipeline
from test_guide_leaving import ldm_inputs

from controlnet_ext import PerSample, Span, Unit, guide
from controlnet_ext.guidance.contract import ModuleHook
from controlnet_ext.hosts.ldm.guide import BatchRows, guide_ldm
from controlnet_ext.models import base_unet
from controlnet_ext.models.kinds import lllite
from controlnet_ext.models.kinds.controlnet import ControlNet
from controlnet_ext.models.kinds.flux_union import FluxUnion

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


def test_a_copy_of_a_part_of_a_guided_unet_is_plain() -> None:
    pipe, copies = pipeline(), []
    units = [Unit(Plus(skips=SKIPS), GREY), Unit(Plus(skips=SKIPS), GREY)]
    with guide(pipe, units):
        expected = fakes.run(pipe)
    fakes.run(pipe)
    before = state(pipe)

    def make_copy(*_: Any) -> dict[str, Any]:
        copies.append(copy.deepcopy(pipe.unet.down_blocks))
        return {}

    with guide(pipe, units):
        assert torch.equal(fakes.run(pipe, callback_on_step_end=make_copy), expected)
    assert len(copies) == 4 and all(map(is_plain, copies)) and state(pipe) == before


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


@pytest.mark.parametrize("way", ["compile(unet)", "unet.compile()"])
def test_a_compiled_unet_is_copied_without_its_guide(way: str) -> None:
    pipe = pipeline()
    plain = fakes.run(pipe)
    if way == "unet.compile()":
        pipe.unet.compile(backend="eager")
    else:
        pipe.unet = torch.compile(pipe.unet, backend="eager")
    with guide(pipe, [Unit(Pushes(skips=SKIPS), GREY)]):
        copied = copy.deepcopy(pipe.unet)
    assert copied._compiled_call_impl is None and is_plain(copied)
    copied = copied if way == "unet.compile()" else copied._orig_mod
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


# Split inference of videos


def animate_diff(theirs: Any = None) -> Any:
    adapter = MotionAdapter(
        block_out_channels=(32, 64, 64, 64), motion_layers_per_block=2, motion_num_attention_heads=2
    )
    moving = UNetMotionModel.from_unet2d(tiny.unet(), randomised(adapter, seed=6))
    parts = {k: v for k, v in tiny.parts().items() if k not in ("safety_checker", "unet")}
    parts |= {"unet": moving, "motion_adapter": adapter, "scheduler": DDIMScheduler(**tiny.DDIM), "image_encoder": None}
    pipe = AnimateDiffPipeline(**parts) if theirs is None else AnimateDiffControlNetPipeline(**parts, controlnet=theirs)
    pipe.set_progress_bar_config(disable=True)
    pipe.enable_free_noise(context_length=4, context_stride=2)
    pipe.enable_free_noise_split_inference(spatial_split_size=4096, temporal_split_size=2)
    return pipe


def animate(pipe: Any, **given: Any) -> torch.Tensor:
    call = {"num_frames": 4, "num_inference_steps": 2, "height": tiny.SIZE, "width": tiny.SIZE, "output_type": "latent"}
    return pipe("a cat", generator=torch.Generator().manual_seed(5), **call, **given).frames


def test_free_noise_split_inference_is_guided_as_diffusers_does() -> None:
    theirs = tiny.control()
    net = ControlNet.load(theirs.state_dict())  # without a config: heads come from the UNet
    frames = [tiny.random_image(seed) for seed in range(4)]
    expected = animate(animate_diff(theirs), conditioning_frames=frames)
    pipe = animate_diff()
    with guide(pipe, [Unit(net, PerSample(frames))]):
        assert torch.equal(animate(pipe), expected)
    assert base_unet.get_heads(pipe.unet) == (8, 8, 8, 8)


def test_weights_under_split_inference_are_read_by_their_names() -> None:
    split, plain = animate_diff().unet, tiny.unet()
    ours, theirs = (base_unet.get_encoder_tensors(unet) for unet in (split, plain))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    layer = "down_blocks.0.resnets.1.conv1"
    assert torch.equal(base_unet.get_layer(split, layer).weight, plain.get_submodule(layer).weight)


# Offloading and casting


def offload(way: str, *networks: Any) -> None:
    for net in networks:
        if way == "casting":
            apply_layerwise_casting(net, storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
            continue
        level = {"leaf": {}, "block": {"num_blocks_per_group": 1}}[way]
        apply_group_offloading(net, torch.device("cpu"), offload_type=f"{way}_level", **level)


@pytest.mark.parametrize("way", ["leaf", "block", "casting"])
@pytest.mark.parametrize("with_net", [False, True], ids=["the UNet", "both"])
def test_offloaded_and_cast_networks_are_guided_as_diffusers_does(way: str, with_net: bool) -> None:
    theirs = tiny.control()
    net = ControlNet.load(theirs.state_dict(), theirs.config)
    pipes = [
        tiny.pipeline(StableDiffusionPipeline, unet=tiny.unet()),
        tiny.pipeline(StableDiffusionControlNetPipeline, unet=tiny.unet(), controlnet=theirs),
    ]
    for pipe in pipes:
        offload(way, pipe.unet)
    if with_net:
        offload(way, net, theirs)
    expected = fakes.run(pipes[1], steps=2, image=tiny.random_image(), height=tiny.SIZE, width=tiny.SIZE)
    with guide(pipes[0], [Unit(net, tiny.random_image())]):
        found = fakes.run(pipes[0], steps=2)
    # a cast network computes in float32 what float8 stores; norms, which diffusers does not cast, are the same
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("way", ["leaf", "block"])
def test_attention_units_act_in_an_offloaded_unet(way: str) -> None:
    pipes = [pipeline(), pipeline()]
    offload(way, pipes[0].unet)
    fakes.run(pipes[0])
    before = state(pipes[0])
    found = []
    for pipe in pipes:
        with guide(pipe, [Unit(Plus(skips=SKIPS), GREY), Unit(Pushes(skips=SKIPS), GREY)]):
            found.append(fakes.run(pipe))
    assert torch.equal(*found) and state(pipes[0]) == before


@pytest.mark.parametrize("base", transformers.PIPES)
def test_cast_transformer_networks_are_guided_as_diffusers_does(base: str) -> None:
    """`net.enable_layerwise_casting`, on the network and on the base."""
    theirs, own = transformers.control(base), transformers.control(base)
    for net in (theirs, own):  # before there is a pipeline: Z-Image's networks share modules of the base
        net.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    pipes = [transformers.pipeline(base), transformers.pipeline(base, theirs)]
    for pipe in pipes:
        pipe.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    expected = transformers.run(pipes[1], base, control_image=tiny.random_image(), controlnet_conditioning_scale=1.0)
    with guide(pipes[0], [Unit(transformers.ours(base, own), tiny.random_image())]):
        found = transformers.run(pipes[0], base)
    assert transformers.near(found, expected)
    assert (found - transformers.run(pipes[0], base)).abs().max() > 1e-3


def test_a_cast_flux_union_reads_its_kind() -> None:
    net = transformers.control("flux", num_mode=10)
    net.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    pipe = transformers.pipeline("flux")
    with guide(pipe, [Unit(FluxUnion(net).with_types("depth"), tiny.random_image())]):
        found = transformers.run(pipe, "flux")
    assert found.isfinite().all() and (found - transformers.run(pipe, "flux")).abs().max() > 1e-3

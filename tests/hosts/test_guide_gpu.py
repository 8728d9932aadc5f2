"""What a guide does only where there is a GPU: offloaded pipelines, models that wait on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from diffusers import StableDiffusionControlNetPipeline, StableDiffusionPipeline
from fakes import run

from controlnet_ext import Unit, guide
from controlnet_ext.hosts import session
from controlnet_ext.models.kinds.controlnet import ControlNet

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


def fresh(kind: type, **others: Any) -> Any:
    tiny.parts.cache_clear()  # offloading leaves hooks on the parts
    return tiny.pipeline(kind, unet=tiny.unet(), **others)


@pytest.mark.parametrize("way", ["to", "enable_model_cpu_offload", "enable_sequential_cpu_offload"])
@pytest.mark.parametrize("low_vram", [False, True])
def test_offloaded_pipelines_are_guided_and_models_go_back(way: str, low_vram: bool) -> None:
    theirs = tiny.control()
    net = ControlNet.load({name: t.clone() for name, t in theirs.state_dict().items()}, theirs.config)
    controlled = fresh(StableDiffusionControlNetPipeline, controlnet=theirs.cuda()).to("cuda")
    expected = run(controlled, image=tiny.random_image())
    pipe = fresh(StableDiffusionPipeline)
    getattr(pipe, way)(*(["cuda"] if way == "to" else []))
    plain = run(pipe)
    with guide(pipe, [Unit(net, tiny.random_image(), low_vram=low_vram)]):
        guided = run(pipe)
        assert net.device.type == ("cpu" if low_vram else "cuda")
    # kernels are chosen by the device, not by offloading; last bits may differ
    assert torch.allclose(guided, expected, rtol=0, atol=1e-3)
    assert net.device.type == "cpu" and torch.equal(run(pipe), plain)
    assert (guided - plain).abs().max() > 1e-3


def test_of_a_model_with_low_vram_only_single_layers_are_on_the_gpu() -> None:
    theirs = tiny.control()
    net = ControlNet.load({name: t.clone() for name, t in theirs.state_dict().items()}, theirs.config)
    pipe = fresh(StableDiffusionPipeline).to("cuda")
    with guide(pipe, [Unit(net, tiny.random_image())]):
        expected = run(pipe)
    held = torch.cuda.memory_allocated()
    with guide(pipe, [Unit(net, tiny.random_image(), low_vram=True)]):
        assert torch.allclose(run(pipe), expected, rtol=0, atol=1e-3)
        assert torch.cuda.memory_allocated() - held < 0.2 * sum(p.nbytes for p in net.parameters())


def test_on_a_stream_of_its_own_the_net_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    nets = [ControlNet.load(theirs.state_dict(), theirs.config) for theirs in map(tiny.control, ["SD1.5"] * 2, [2, 3])]
    pipe = fresh(StableDiffusionPipeline).to("cuda")
    units = [Unit(net, tiny.random_image(), mode=mode) for net, mode in zip(nets, ["balanced", "control"], strict=True)]

    def guided() -> torch.Tensor:
        with guide(pipe, units):
            return run(pipe, steps=12)

    apart = [guided() for _ in range(8)]
    monkeypatch.setattr(session, "open_side_stream", lambda device: None)
    plain = guided()
    assert all(torch.equal(each, plain) for each in apart)


@pytest.mark.parametrize("compiled_unet", [False, True])
def test_cuda_graphs_of_two_nets_give_the_same_guidance(compiled_unet: bool) -> None:
    nets = [ControlNet.load(theirs.state_dict(), theirs.config) for theirs in map(tiny.control, ["SD1.5"] * 2, [2, 3])]
    pipe = fresh(StableDiffusionPipeline).to("cuda")
    for net in nets:
        net.to("cuda")
    units = [
        Unit(nets[0], tiny.random_image(), weight="1@0, 0.2@1"),
        Unit(nets[0], tiny.random_image(1), weight=0.6, reuse=2),
        Unit(nets[1], tiny.random_image(2), mode="control"),
    ]

    def guided() -> torch.Tensor:
        with guide(pipe, units):
            return run(pipe, steps=8)

    plain, expected = run(pipe, steps=8), guided()
    for net in nets:
        net.compile(mode="reduce-overhead")
    if compiled_unet:
        pipe.unet.compile(mode="reduce-overhead")
    for _ in range(3):  # compiled, recorded, replayed
        assert torch.allclose(guided(), expected, rtol=0, atol=2e-3)
    assert (expected - plain).abs().max() > 1e-2

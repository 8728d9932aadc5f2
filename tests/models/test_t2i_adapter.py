"""T2I-Adapters: equal to diffusers' network and pipelines to the last bit, in both layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import fakes
import numpy as np
import pytest
import tiny
import torch
from diffusers import StableDiffusionAdapterPipeline, StableDiffusionPipeline, StableDiffusionXLAdapterPipeline
from networks import random_image, randomised

from controlnet_ext import Unit, Window, guide, models
from controlnet_ext.files.safetensors import write_weights
from controlnet_ext.guidance.contract import Step
from controlnet_ext.guidance.schedule import Span
from controlnet_ext.guidance.weighting import T2I_SOFT_WEIGHTS
from controlnet_ext.models.kinds.controlnet import ControlNet
from controlnet_ext.models.kinds.t2i_adapter import T2IAdapter, load, to_tencent_keys
from controlnet_ext.models.state_dict.saving import convert_model, save_diffusers

SHAPES: dict[str, dict[str, Any]] = {
    "full": {"channels": [32, 64, 64, 64]},
    "full grey": {"channels": [32, 64, 64, 64], "in_channels": 1},
    "light": {"channels": [32, 64, 64], "num_res_blocks": 4, "adapter_type": "light_adapter"},
    "xl": {"channels": [32, 64, 64, 64], "downscale_factor": 16, "adapter_type": "full_adapter_xl"},
}


def theirs(shape: str) -> diffusers.T2IAdapter:
    return randomised(diffusers.T2IAdapter(**SHAPES[shape]), seed=3)


def step(rows: int, size: int = 8) -> Step:
    x = torch.zeros(rows, 4, size, size)
    return Step(x, torch.zeros(rows), torch.zeros(rows, 1, 1), Span(0, 1))


@torch.no_grad()
def features(net: diffusers.T2IAdapter, pixels: np.ndarray) -> list[torch.Tensor]:
    read = np.ascontiguousarray(pixels[None, ..., : net.config.in_channels]).astype(np.float32) / 255
    return net(torch.from_numpy(read.transpose(0, 3, 1, 2)))  # in memory as in diffusers' pipelines


def grey(pixels: np.ndarray) -> np.ndarray:
    return np.repeat(pixels[..., :1], 3, axis=2)


@pytest.mark.parametrize("layout", ["diffusers", "original"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [(64, 64), (80, 112)])
def test_features_are_equal_in_both_layouts(shape: str, layout: str, size: tuple[int, int]) -> None:
    net, pixels = theirs(shape), grey(random_image(*size))
    tensors = net.state_dict()
    if layout == "original":
        tensors = to_tencent_keys({name.removeprefix("adapter."): tensor for name, tensor in tensors.items()})
        assert not any("resnets" in name for name in tensors)
    adapter = load(tensors, {})
    with torch.no_grad():
        made = adapter(step(2), adapter.hint(pixels)).encoder
    for a, b in zip(made, features(net, pixels), strict=True):
        assert torch.equal(a, b.expand_as(a))


def test_tencentarcs_names_are_those_of_its_code() -> None:
    """The names that Adapter(sk=True, ksize=1, use_conv=False) of TencentARC/T2I-Adapter gives its modules."""
    blocks = [f"body.{i}.block{k}" for i in range(8) for k in (1, 2)]
    names = {
        f"{module}.{p}"
        for module in ("conv_in", "body.2.in_conv", "body.4.in_conv", *blocks)
        for p in ("weight", "bias")
    }
    shape = {"channels": [4, 8, 16, 16]}
    net = diffusers.T2IAdapter(**shape)
    assert set(to_tencent_keys({n.removeprefix("adapter."): t for n, t in net.state_dict().items()})) == names


def test_convolved_downsampling_is_the_formula() -> None:
    """TencentARC's first adapters downsample by convolutions and have 3x3 kernels throughout."""
    draw = torch.Generator().manual_seed(0)
    width, tensors = (8, 16), {}

    def conv(name: str, a: int, b: int, k: int) -> None:
        tensors[f"{name}.weight"] = torch.randn(b, a, k, k, generator=draw) / (a * k * k) ** 0.5
        tensors[f"{name}.bias"] = torch.randn(b, generator=draw)

    conv("conv_in", 64 * 3, 8, 3)
    for i in range(4):
        out = width[i // 2]
        if i == 2:
            conv("body.2.down_opt.op", 8, 8, 3)
            conv("body.2.in_conv", 8, 16, 3)
        conv(f"body.{i}.block1", out, out, 3)
        conv(f"body.{i}.block2", out, out, 3)
    adapter, pixels = load(tensors, {}), random_image(64, 64)

    def apply(name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        w, b = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        return torch.nn.functional.conv2d(x, w, b, stride=stride, padding=1)

    x = torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)[None]
    x, expected = apply("conv_in", torch.nn.functional.pixel_unshuffle(x, 8)), []
    for i in range(4):
        if i == 2:
            x = apply("body.2.in_conv", apply("body.2.down_opt.op", x, stride=2))
        x = x + apply(f"body.{i}.block2", apply(f"body.{i}.block1", x).relu())
        if i % 2:
            expected.append(x)
    for a, b in zip(adapter(step(1), adapter.hint(pixels)).encoder, expected, strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(ValueError, match="no downsampling convolutions"):
        adapter.config()


def adapter_run(kind: type, shape: str, net: Any, **given: Any) -> torch.Tensor:
    pipe = tiny.pipeline(kind, shape, adapter=net)
    return fakes.run(pipe, image=tiny.random_image(), height=tiny.SIZE, width=tiny.SIZE, **given)


@pytest.mark.parametrize("shape", ["full", "light"])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_latents_are_equal_to_diffusers(shape: str, guidance: float) -> None:
    net = theirs(shape)
    given = {"guidance_scale": guidance}
    expected = adapter_run(StableDiffusionAdapterPipeline, "SD1.5", net, adapter_conditioning_scale=0.7, **given)
    plain = tiny.pipeline(StableDiffusionPipeline)
    unguided = fakes.run(plain, **given)
    before = fakes.state(plain)
    with guide(plain, [Unit(load(net.state_dict(), net.config), tiny.random_image(), weight=0.7)]):
        made = fakes.run(plain, **given)
    assert torch.equal(made, expected)
    assert fakes.state(plain) == before
    assert not torch.equal(made, unguided)


@pytest.mark.parametrize("factor", [0.5, 1.0])
def test_sdxl_latents_are_equal_to_diffusers(factor: float) -> None:
    """adapter_conditioning_factor f acts in the first f of the steps, which is the window 0..f."""
    net = theirs("xl")
    expected = adapter_run(
        StableDiffusionXLAdapterPipeline,
        "SDXL",
        net,
        adapter_conditioning_scale=0.7,
        adapter_conditioning_factor=factor,
    )
    plain = tiny.pipeline(diffusers.StableDiffusionXLPipeline, "SDXL")
    with guide(plain, [Unit(load(net.state_dict(), {}), tiny.random_image(), weight=0.7, window=Window(0, factor))]):
        assert torch.equal(fakes.run(plain), expected)


def test_adapters_and_controlnets_act_together() -> None:
    """What the UNet is called with is what the units say, in both places."""
    net, control = theirs("full"), tiny.control()
    second = ControlNet.load(control.state_dict(), control.config)
    units = [Unit(load(net.state_dict(), {}), tiny.random_image()), Unit(second, tiny.random_image(1), weight=0.5)]
    pipe = tiny.pipeline(StableDiffusionPipeline)
    with guide(pipe, units):
        both = fakes.run(pipe)
    # by hand: diffusers' ControlNet pipeline, whose UNet gets the adapter's features in each call
    made = [v.repeat(2, 1, 1, 1) for v in features(net, np.asarray(tiny.random_image()))]
    theirs_pipe = tiny.pipeline(diffusers.StableDiffusionControlNetPipeline, controlnet=control)

    def put(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, kwargs | {"down_intrablock_additional_residuals": list(made)}

    handle = theirs_pipe.unet.register_forward_pre_hook(put, with_kwargs=True)
    try:
        expected = fakes.run(
            theirs_pipe, image=tiny.random_image(1), controlnet_conditioning_scale=0.5, height=64, width=64
        )
    finally:
        handle.remove()
    assert torch.equal(both, expected)


class Spy:
    """An adapter that hands on what another makes, and notes what enters the UNet."""

    def __init__(self, pipe: Any):
        self.calls: list[list[torch.Tensor] | None] = []
        self.handle = pipe.unet.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, _: Any, __: Any, kwargs: dict[str, Any]) -> None:
        given = kwargs.get("down_intrablock_additional_residuals")
        self.calls.append(None if given is None else list(given))


@pytest.mark.parametrize("mode", ["balanced", "prompt", "control"])
def test_weights_modes_layers_and_regions_multiply_the_features(mode: Any) -> None:
    net, pipe = load(theirs("full").state_dict(), {}), tiny.pipeline(StableDiffusionPipeline)
    region = np.zeros((64, 64), np.float32)
    region[:, :32] = 1
    layers = (1, 0.5, 0.25, 2)
    unit = Unit(net, tiny.random_image(), weight=0.8, mode=mode, layers=layers, region=region, window=Window(0, 0.5))
    with guide(pipe, [unit]):
        spy = Spy(pipe)
        try:
            fakes.run(pipe)
        finally:
            spy.handle.remove()
    soft = (1,) * 4 if mode == "balanced" else T2I_SOFT_WEIGHTS
    plain = net.hint(np.asarray(tiny.random_image()))
    assert [call is not None for call in spy.calls] == [True, True, False, False]
    for i, h in enumerate(spy.calls[0] or ()):
        half = h.shape[-1] // 2
        expected = plain[i] * (0.8 * soft[i] * layers[i])
        torch.testing.assert_close(h[1:, :, :, :half][..., :1], expected[..., :half][..., :1])
        rest = h[..., half:] if h.shape[-1] > 2 else h[..., :0]
        assert not rest[..., 1:].any()  # bilinear at the border
        assert torch.equal(h[0].bool(), torch.zeros_like(h[0]).bool()) == (mode == "control")


@pytest.mark.parametrize("kind", ["full", "xl"])
def test_features_fit_the_unet_at_sizes_that_are_no_multiples(kind: str) -> None:
    """From 512 to 1536 by 8 they have the sizes of a UNet whose downsampling is a 3x3 convolution of stride 2."""
    small = SHAPES[kind] | {"channels": [4, 4, 4, 4], "num_res_blocks": 1}
    adapter = load(diffusers.T2IAdapter(**small).state_dict(), small)
    for side in range(512, 1537, 8):
        latents = side // 8
        half = (latents + 1) // 2
        quarter, eighth = (half + 1) // 2, ((half + 1) // 2 + 1) // 2
        sizes = [latents, half, quarter, eighth] if kind == "full" else [half, half, quarter, quarter]
        made = adapter.hint(np.zeros((side, 64, 3), np.uint8))
        assert [h.shape[-2] for h in made] == sizes


@pytest.mark.parametrize("shape", SHAPES)
def test_files_go_there_and_back(shape: str, tmp_path: Path) -> None:
    net = theirs(shape)
    adapter = load(net.state_dict(), net.config)
    save_diffusers(adapter, tmp_path / "folder")
    again = diffusers.T2IAdapter.from_pretrained(tmp_path / "folder")
    assert all(torch.equal(t, net.state_dict()[name]) for name, t in again.state_dict().items())
    convert_model(tmp_path / "folder", tmp_path / "one.safetensors", "ldm")
    found: Any = models.load(tmp_path / "one.safetensors")
    assert isinstance(found, T2IAdapter) and found.adapter_config == adapter.adapter_config
    assert all(torch.equal(t, found.state_dict()[name]) for name, t in adapter.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"body.0.resnets.0.block1.bias": None}, "body.0.resnets.0.block1.bias missing"),
        ({"body.0.skep.weight": torch.zeros(4, 4, 3, 3)}, "adapter.body.0.skep.weight unknown"),
        ({"conv_in.weight": torch.zeros(32, 65, 3, 3)}, "it reads 65 channels"),
        ({"conv_in.weight": torch.zeros(3)}, "conv_in.weight has 1 dimensions, expected 4"),
        ({"conv_in.bias": torch.full((32,), float("nan"))}, "conv_in.bias holds values that are not finite"),
    ],
)
def test_wrong_tensors_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    tensors = theirs("full").state_dict() | {f"adapter.{name}": t for name, t in change.items()}
    write_weights(tmp_path / "a.safetensors", {name: t for name, t in tensors.items() if t is not None}, {})
    with pytest.raises(ValueError, match=message):
        models.load(tmp_path / "a.safetensors")


def test_misfits_are_refused() -> None:
    xl, wide = load(theirs("xl").state_dict(), {}), diffusers.T2IAdapter(channels=[64, 64, 64, 64])
    pipe = tiny.pipeline(StableDiffusionPipeline)
    for net, message in ((xl, "16 times smaller"), (load(wide.state_dict(), {}), "widths 64-64-64-64")):
        with (
            pytest.raises(ValueError, match=f"unit 1: the T2I-Adapter.*{message}"),
            guide(pipe, [Unit(net, tiny.random_image())]),
        ):
            pass
    with pytest.raises(ValueError, match="multiples of 8"):
        xl.hint(np.zeros((60, 64, 3), np.uint8))
    with pytest.raises(ValueError, match="adapter_type is 'light_adapter'"):
        load(theirs("full").state_dict(), {"adapter_type": "light_adapter"})

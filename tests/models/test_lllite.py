"""ControlLLLite: the formula of kohya-ss/sd-scripts (networks/control_net_lllite.py), typed out, in each layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from torch.nn import functional as F

from controlnet_ext import Unit, Window, guide, models
from controlnet_ext.files.safetensors import write_weights
from controlnet_ext.models.kinds.lllite import ControlLLLite, load

INNER, LOOK = 6, 8
# ldm's names of SDXL's attention, diffusers', and the kernels of the convolutions over the map
PLACES = {
    "input_blocks_4_1": ("down_blocks.1.attentions.0", (4, 4)),
    "input_blocks_5_1": ("down_blocks.1.attentions.1", (4, 4)),
    "input_blocks_8_1": ("down_blocks.2.attentions.1", (4, 4, 2)),
    "middle_block_1": ("mid_block.attentions.0", (4, 4, 2)),
    "output_blocks_1_1": ("up_blocks.0.attentions.1", (4, 4, 2)),
    "output_blocks_3_1": ("up_blocks.1.attentions.0", (4, 4)),
}
LAYERS = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn2.to_q")


def weights(layout: str = "ldm") -> dict[str, torch.Tensor]:
    draw, unet, tensors = torch.Generator().manual_seed(0), tiny.parts("SDXL")["unet"], {}

    def put(name: str, *shape: int) -> None:
        tensors[f"{name}.weight"] = torch.randn(shape, generator=draw) / np.prod(shape[1:]) ** 0.5
        tensors[f"{name}.bias"] = 0.3 * torch.randn(shape[0], generator=draw)

    for ldm, (place, sides) in PLACES.items():
        for layer in LAYERS:
            inside = f"transformer_blocks.0.{layer}"
            name = f"{ldm}_{inside}" if layout == "ldm" else f"{place}.{inside}"
            name = "lllite_unet_" + name.replace(".", "_")
            width = unet.get_submodule(f"{place}.{inside}").in_features
            channels = [3, *[LOOK // 2] * (len(sides) - 1), LOOK]
            for i, side in enumerate(sides):
                put(f"{name}.conditioning1.{2 * i}", channels[i + 1], channels[i], side, side)
            put(f"{name}.down.0", INNER, width)
            put(f"{name}.mid.0", INNER, INNER + LOOK)
            put(f"{name}.up.0", width, INNER)
    return tensors


@contextmanager
def by_hand(pipe: Any, tensors: dict[str, torch.Tensor], image: np.ndarray, weight: float) -> Iterator[None]:
    """What sd-scripts' LLLiteModule.forward does, in place of each layer's forward."""
    pixels = torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1)[None] * 2 - 1
    changed = []
    for ldm, (place, sides) in PLACES.items():
        for layer in LAYERS:
            name = "lllite_unet_" + f"{ldm}_transformer_blocks_0_{layer}".replace(".", "_")
            module = pipe.unet.get_submodule(f"{place}.transformer_blocks.0.{layer}")

            def get(part: str, name: str = name) -> tuple[torch.Tensor, torch.Tensor]:
                return tensors[f"{name}.{part}.weight"], tensors[f"{name}.{part}.bias"]

            look = pixels
            for i, side in enumerate(sides):
                look = F.conv2d(look if i == 0 else look.relu(), *get(f"conditioning1.{2 * i}"), stride=side)
            look = look.view(1, LOOK, -1).permute(0, 2, 1)

            def forward(x: torch.Tensor, look: Any = look, get: Any = get, old: Any = module.forward) -> torch.Tensor:
                both = torch.cat([look.repeat(len(x), 1, 1), F.linear(x, *get("down.0")).relu()], dim=2)
                more = F.linear(F.linear(both, *get("mid.0")).relu(), *get("up.0")) * weight
                return old(x + more)

            module.forward = forward
            changed.append(module)
    try:
        yield
    finally:
        for module in changed:
            del module.forward


@pytest.fixture
def pipe() -> Any:
    return tiny.pipeline(StableDiffusionXLPipeline, "SDXL")


@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
def test_latents_are_those_of_the_formula(pipe: Any, layout: str) -> None:
    """Within 1e-4 of the latents' largest value: the map is looked at once for both rows, not once for each."""
    plain, image = fakes.run(pipe), np.asarray(tiny.random_image())
    before = fakes.state(pipe)
    with torch.no_grad(), by_hand(pipe, weights(), image, 0.6):
        expected = fakes.run(pipe)
    net = load(weights(layout), {})
    with guide(pipe, [Unit(net, tiny.random_image(), weight=0.6)]):
        made = fakes.run(pipe)
    assert (made - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (made - plain).abs().max() > 1e-2 * plain.abs().max()
    assert fakes.state(pipe) == before
    assert torch.equal(fakes.run(pipe), plain)


class Inputs:
    """What one layer is given, in each call."""

    def __init__(self, pipe: Any, name: str):
        self.seen: list[torch.Tensor] = []
        module = pipe.unet.get_submodule(name)
        old = module.forward

        def forward(x: torch.Tensor) -> torch.Tensor:
            self.seen.append(x.clone())
            return old(x)

        module.forward = forward
        self.undo = lambda: delattr(module, "forward")


@pytest.mark.parametrize("mode", ["balanced", "control"])
def test_windows_modes_and_regions_bound_what_is_added(pipe: Any, mode: Any) -> None:
    """In front of the first layer that a file changes, x changes in the rows, place and steps that act."""
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors = {n: t for n, t in weights().items() if "input_blocks_4_1_transformer_blocks_0_attn1_to_q" in n}
    region = np.zeros((64, 64), np.float32)
    region[:32] = 1
    inputs = Inputs(pipe, name)
    try:
        fakes.run(pipe, steps=2)
        with guide(
            pipe, [Unit(load(tensors, {}), tiny.random_image(), mode=mode, region=region, window=Window(0.5, 1))]
        ):
            fakes.run(pipe, steps=2)
    finally:
        inputs.undo()
    plain_first, plain, first, second = inputs.seen
    assert torch.equal(first, plain_first)
    changed = (second - plain).abs().amax(dim=2).reshape(2, 4, 4)  # 4x4 pixels
    assert (changed[1, :1] > 0).all() and not changed[1, 3:].any()
    assert bool(changed[0].any()) == (mode == "balanced")


def test_sizes_that_are_no_multiples_fit(pipe: Any) -> None:
    with guide(pipe, [Unit(load(weights(), {}), tiny.random_image())]):
        pipe("a", height=72, width=88, num_inference_steps=1, output_type="latent")


def test_files_load_by_content(tmp_path: Path) -> None:
    write_weights(tmp_path / "a.safetensors", weights(), {})
    net: Any = models.load(tmp_path / "a.safetensors")
    assert isinstance(net, ControlLLLite) and net.details() == {"layers changed": 24}


def test_misfits_are_refused(pipe: Any) -> None:
    net = load(weights(), {})
    with (
        pytest.raises(ValueError, match="unit 1: the ControlLLLite"),
        guide(tiny.pipeline(StableDiffusionPipeline), [Unit(net, tiny.random_image())]),
    ):
        pass
    with (
        guide(pipe, [Unit(net, tiny.random_image(), layers=[1] * 10)]),
        pytest.raises(ValueError, match="takes no layers"),
    ):
        fakes.run(pipe)
    first = "lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    for change, message in (
        ({f"{first}.down.0.weight": torch.zeros(6, 64, 1, 1)}, "belongs to a convolution"),
        ({f"{first}.mid.0.weight": torch.zeros(6, 6)}, "expected more than 6"),
        ({f"{first}.conditioning1.0.weight": torch.zeros(3)}, "is missing, or no convolution"),
        ({f"{first}.other": torch.zeros(1)}, "unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            load(weights() | change, {})

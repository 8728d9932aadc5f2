"""What transformers are called with besides latents of the whole image: wider, longer, cropped, or with fewer rows."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from networks import randomised
from PIL import Image
from test_transformer_controls import BASES, NOTHING, SHAPES, control, ours, pipeline, run, vae
from torch import Tensor

from controlnet_ext import Unit, crop_maps, guide

PROMPT = {
    "prompt_embeds": torch.ones(1, 7, 32),
    "pooled_prompt_embeds": torch.ones(1, 32),
    "height": 64,
    "width": 64,
    "num_inference_steps": 3,
    "guidance_scale": 2.5,
}


def build(kind: Any, base: str = "flux", net: Any = None, **changes: Any) -> Any:
    parts: dict[str, Any] = {name: None for name in NOTHING if name in kind._get_signature_keys(kind)[0]}
    parts |= {} if net is None else {"controlnet": net}
    pipe = kind(
        vae=vae(base),
        transformer=randomised(BASES[base](**SHAPES[base] | changes), 1),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        **parts,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def last_latents(pipe: Any, **given: Any) -> Tensor:
    kept: list[Tensor] = []

    def keep(_: Any, __: int, ___: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
        kept.append(values["latents"])
        return {}

    known = inspect.signature(pipe.__call__).parameters
    prompt = {name: value for name, value in PROMPT.items() if name in known}
    pipe(**prompt | given, generator=torch.Generator().manual_seed(3), callback_on_step_end=keep)
    return kept[-1]


def mask(box: tuple[int, int, int, int], size: int) -> Image.Image:
    drawn = Image.new("L", (size, size))
    drawn.paste(255, box)
    return drawn


FILL = {"image": tiny.random_image(3), "mask_image": mask((16, 16, 48, 48), 64)}
WIDE = [
    ("FluxFillPipeline", {"in_channels": 16 + 16 + 4 * 64, "out_channels": 16}, FILL),
    ("FluxControlPipeline", {"in_channels": 32, "out_channels": 16}, {"control_image": tiny.random_image(3)}),
    (
        "FluxControlImg2ImgPipeline",
        {"in_channels": 32, "out_channels": 16},
        {"image": tiny.random_image(4), "control_image": tiny.random_image(3), "strength": 0.7},
    ),
]


@pytest.mark.parametrize(("name", "changes", "given"), WIDE, ids=[name for name, *_ in WIDE])
def test_a_network_reads_the_latents_of_a_wider_x(name: str, changes: dict[str, Any], given: dict[str, Any]) -> None:
    """Its residuals are those of diffusers' network for the latents alone."""
    pipe, net = build(getattr(diffusers, name), **changes), control("flux")
    plain = last_latents(pipe, **given)
    calls: list[tuple[dict[str, Any], Any]] = []
    handle = net.register_forward_hook(lambda _, __, kwargs, out: calls.append((kwargs, out)), with_kwargs=True)
    seen: list[dict[str, Any]] = []
    with guide(pipe, [Unit(ours("flux", net), tiny.random_image())]):
        watch = pipe.transformer.register_forward_pre_hook(lambda _, __, kwargs: seen.append(kwargs), with_kwargs=True)
        guided = last_latents(pipe, **given)
        watch.remove()
    handle.remove()
    assert (guided - plain).abs().max() > 1e-2 * plain.abs().max()
    assert len(calls) == len(seen)
    for (kwargs, made), call in zip(calls, seen, strict=True):
        assert torch.equal(kwargs["hidden_states"], call["hidden_states"][..., :16])
        expected = net(**kwargs)
        assert torch.equal(made[0][0], expected[0][0])
        assert torch.equal(call["controlnet_block_samples"][0], expected[0][0])


def test_an_image_beside_the_one_that_is_drawn_is_refused() -> None:
    net = ours("flux", control("flux"))
    pipe = build(diffusers.FluxKontextPipeline)
    given: dict[str, Any] = {"image": tiny.random_image(3), "_auto_resize": False, "max_area": 64 * 64}
    with (
        guide(pipe, [Unit(net, tiny.random_image())]),
        pytest.raises(ValueError, match=r"\(Flux Kontext\), which is not"),
    ):
        last_latents(pipe, **given)
    with guide(pipe, [Unit(net, tiny.random_image(), weight=0)]):
        last_latents(pipe, **given)


def sixteen_channels() -> Any:
    """A VAE as SD3's, which its inpaint pipeline demands."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    net = diffusers.AutoencoderKL(
        **blocks, block_out_channels=(8,) * 4, norm_num_groups=4, latent_channels=16, shift_factor=0.1
    )
    return randomised(net, 3)


@pytest.mark.parametrize("base", ["flux", "sd3", "qwen-image"])
def test_inpainting_crops_the_map_with_the_image(base: str) -> None:
    """As by hand; diffusers 0.42's own pipeline of Flux with a ControlNet squeezes the whole map into the part."""
    photo, map_ = tiny.random_image(1, 128), tiny.random_image(2, 128)
    box, painted = (32, 16, 96, 80), mask((40, 24, 88, 72), 128)
    given: dict[str, Any] = {"strength": 0.9}
    if base == "flux":
        pipe, theirs = build(diffusers.FluxInpaintPipeline), control("flux")
    elif base == "qwen-image":
        pipe, theirs = build(diffusers.QwenImageInpaintPipeline, base), control(base)
        given |= {"prompt_embeds_mask": torch.ones(1, 7), "true_cfg_scale": 1.0}
    else:
        pipe = build(diffusers.StableDiffusion3InpaintPipeline, "sd3", in_channels=16, out_channels=16)
        pipe.register_modules(vae=sixteen_channels())
        theirs = control("sd3", in_channels=16)
        given |= {"negative_prompt_embeds": torch.zeros(1, 7, 32), "negative_pooled_prompt_embeds": torch.zeros(1, 32)}
    net = ours(base, theirs)
    with guide(pipe, [Unit(net, map_)]):
        found = last_latents(pipe, image=photo, mask_image=painted, padding_mask_crop=8, **given)
    with guide(pipe, [Unit(net, map_.crop(box))]):
        expected = last_latents(pipe, image=photo.crop(box), mask_image=painted.crop(box), **given)
    assert torch.equal(found, expected)
    plain = last_latents(pipe, image=photo, mask_image=painted, padding_mask_crop=8, **given)
    assert (found - plain).abs().max() > 1e-2 * plain.abs().max()


def test_skip_layer_guidance_has_the_residuals_of_its_rows() -> None:
    """SD3.5's: a second call of the step, for the rows with the prompt."""
    pipe, net, seen = pipeline("sd3"), ours("sd3", control("sd3")), []

    def see(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
        seen.append((len(kwargs["hidden_states"]), kwargs["block_controlnet_hidden_states"]))

    with guide(pipe, [Unit(net, tiny.random_image())]):
        handle = pipe.transformer.register_forward_pre_hook(see, with_kwargs=True)
        run(pipe, "sd3", skip_guidance_layers=[1], skip_layer_guidance_start=-0.1, skip_layer_guidance_stop=1.0)
        handle.remove()
    assert [rows for rows, _ in seen] == [2, 1] * 4
    for (_, both), (_, own) in zip(seen[::2], seen[1::2], strict=True):
        for whole, part in zip(both, own, strict=True):
            torch.testing.assert_close(whole[1:], part, rtol=1e-4, atol=1e-5)  # batches of two and of one


@torch.no_grad()
def test_a_loop_over_tiles_of_a_transformer_is_refused_unless_it_tells_their_places() -> None:
    pipe, net, whole = pipeline("sd3"), ours("sd3", control("sd3")), np.asarray(tiny.random_image(2, 128))[:64]
    tiles = {left: torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(left)) for left in (0, 64)}
    pipe.scheduler.set_timesteps(3)
    t = pipe.scheduler.timesteps[:1]
    prompt = {"encoder_hidden_states": torch.ones(1, 7, 32), "pooled_projections": torch.ones(1, 32)}
    with guide(pipe, [Unit(net, whole)]), pytest.raises(ValueError, match="as in a loop over tiles"):
        for x in tiles.values():
            pipe.transformer(hidden_states=x, timestep=t, **prompt)
    with guide(pipe, [Unit(net, whole)]):
        found = []
        for left, x in tiles.items():
            with crop_maps((left, 0, left + 64, 64), (128, 64)):
                found.append(pipe.transformer(hidden_states=x, timestep=t, **prompt).sample)
    for (left, x), out in zip(tiles.items(), found, strict=True):
        with guide(pipe, [Unit(net, np.ascontiguousarray(whole[:, left : left + 64]))]):
            assert torch.equal(pipe.transformer(hidden_states=x, timestep=t, **prompt).sample, out)

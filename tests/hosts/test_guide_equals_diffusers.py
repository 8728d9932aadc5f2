"""In balanced mode guide's latents are those of diffusers' own ControlNet pipelines, to the last bit: no tolerance."""

from __future__ import annotations

import functools
from typing import Any

import diffusers
import pytest
import tiny
import torch
from diffusers import MotionAdapter, UNetMotionModel
from networks import randomised
from PIL import Image

from controlnet_ext import PerSample, Unit, Window, guide
from controlnet_ext.models.kinds.controlnet import ControlNet

SCHEDULERS = {
    "DDIM": diffusers.DDIMScheduler,
    "PNDM": diffusers.PNDMScheduler,
    "Euler": diffusers.EulerDiscreteScheduler,
    "Heun": diffusers.HeunDiscreteScheduler,
    "KDPM2 ancestral": diffusers.KDPM2AncestralDiscreteScheduler,
    "UniPC": diffusers.UniPCMultistepScheduler,
    "DPM++": diffusers.DPMSolverMultistepScheduler,
}
WINDOWS = [(0.0, 1.0), (0.0, 0.5), (0.3, 0.8)]
MASK = Image.new("L", (tiny.SIZE, tiny.SIZE))
MASK.paste(255, (16, 16, 48, 56))
INIT = tiny.random_image(seed=9)

HALF = {"image": INIT, "strength": 0.5, "num_inference_steps": 6}

# Task: its plain and its ControlNet pipeline without prefixes, what both are called with, and the UNet's channels.
TASKS: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "text": ("Pipeline", "ControlNetPipeline", {}, 4),
    "image at 0.5": (
        "Img2ImgPipeline",
        "ControlNetImg2ImgPipeline",
        HALF,
        4,
    ),
    "image at 1": ("Img2ImgPipeline", "ControlNetImg2ImgPipeline", {"image": INIT, "strength": 1.0}, 4),
    "inpaint 4": (
        "InpaintPipeline",
        "ControlNetInpaintPipeline",
        {"image": INIT, "mask_image": MASK, "strength": 0.8},
        4,
    ),
    "inpaint 9": (
        "InpaintPipeline",
        "ControlNetInpaintPipeline",
        {"image": INIT, "mask_image": MASK, "strength": 1.0},
        9,
    ),
}
CASES = [
    *(
        # every scheduler with the tasks that begin at the first step and in the middle; the others with three each
        pytest.param(
            *(task, scheduler, WINDOWS[(i + j // 3) % 3], "SD1.5"),
            marks=[] if i < 2 or (i + j) % 3 == 0 else pytest.mark.long,
        )
        for i, task in enumerate(TASKS)
        for j, scheduler in enumerate(SCHEDULERS)
    ),
    *((task, "Euler", window, "SDXL") for task in ("text", "image at 0.5", "inpaint 4") for window in WINDOWS[1:]),
    *(("text", scheduler, (0.25, 1.0), "SD2.1") for scheduler in ("DDIM", "PNDM")),
]


@functools.cache
def nets(shape: str, seed: int = 2, **changes: Any) -> tuple[Any, ControlNet]:
    """diffusers' ControlNet, and ours with its weights."""
    theirs = tiny.control(shape, seed, **changes)
    return theirs, ControlNet.load(theirs.state_dict(), theirs.config)


def latents(pipe: Any, **given: Any) -> torch.Tensor:
    call = {"prompt": "a cat", "guidance_scale": 5.0, "num_inference_steps": 4, "output_type": "latent"}
    call |= {"height": tiny.SIZE, "width": tiny.SIZE}
    return pipe(**{**call, **given}, generator=torch.Generator().manual_seed(5)).images


def pipelines(task: str, shape: str, scheduler: str, control: Any) -> tuple[Any, Any]:
    """The plain pipeline and the one with a ControlNet."""
    prefix = "StableDiffusionXL" if shape == "SDXL" else "StableDiffusion"
    made = []
    for name, others in zip(TASKS[task][:2], ({}, {"controlnet": control}), strict=True):
        step = SCHEDULERS[scheduler].from_config(diffusers.DDIMScheduler(**tiny.DDIM).config, skip_prk_steps=True)
        made.append(tiny.pipeline(getattr(diffusers, prefix + name), shape, TASKS[task][3], scheduler=step, **others))
    return made[0], made[1]


def arguments(task: str, scheduler: str) -> dict[str, Any]:
    """What both pipelines are called with; schedulers that call the UNet twice a step have fewer steps."""
    given = TASKS[task][2]
    if scheduler not in ("Heun", "KDPM2 ancestral"):
        return given
    return given | {"num_inference_steps": given.get("num_inference_steps", 5) - 2}


@functools.cache
def unguided(task: str, scheduler: str, shape: str) -> torch.Tensor:
    plain, _ = pipelines(task, shape, scheduler, nets(shape)[0])
    return latents(plain, **arguments(task, scheduler))


@pytest.mark.parametrize(("task", "scheduler", "window", "shape"), CASES, ids=lambda value: str(value))
def test_latents_are_equal(task: str, scheduler: str, window: tuple[float, float], shape: str) -> None:
    theirs, ours = nets(shape)
    plain, controlled = pipelines(task, shape, scheduler, theirs)
    given, map_ = arguments(task, scheduler), tiny.random_image()
    where = {"image": map_} if task == "text" else {"control_image": map_}
    start, end = window
    expected = latents(
        controlled,
        **given,
        **where,
        controlnet_conditioning_scale=0.8,
        control_guidance_start=start,
        control_guidance_end=end,
    )
    with guide(plain, [Unit(ours, map_, weight=0.8, window=Window(start, end))]):
        assert torch.equal(latents(plain, **given), expected)
    if scheduler == "DDIM":
        assert (expected - unguided(task, scheduler, shape)).abs().max() >= 1e-3


def equal(plain: Any, controlled: Any, units: list[Unit], where: dict[str, Any], **given: Any) -> None:
    """The controlled pipeline with the arguments `where` gives what the plain one gives in a guide with the units."""
    expected = latents(controlled, **where, **given)
    with guide(plain, units):
        assert torch.equal(latents(plain, **given), expected)
    assert (expected - latents(plain, **given)).abs().max() >= 1e-3


def test_two_nets_with_windows_of_their_own_are_equal() -> None:
    first, second = nets("SD1.5"), nets("SD1.5", 3)
    plain, controlled = pipelines("text", "SD1.5", "Euler", [first[0], second[0]])
    maps = [tiny.random_image(1), tiny.random_image(2)]
    units = [Unit(first[1], maps[0], 0.7, Window(0, 0.5)), Unit(second[1], maps[1], 1.2, Window(0.3, 1))]
    where = {"image": maps, "controlnet_conditioning_scale": [0.7, 1.2]}
    equal(
        plain,
        controlled,
        units,
        where | {"control_guidance_start": [0.0, 0.3], "control_guidance_end": [0.5, 1.0]},
    )


@pytest.mark.parametrize("shape", ["SD1.5", "SDXL"])
@pytest.mark.parametrize("given", [{"guidance_scale": 1.0}, {"num_images_per_prompt": 2}], ids=str)
def test_without_guidance_and_with_several_images_latents_are_equal(shape: str, given: dict[str, Any]) -> None:
    theirs, ours = nets(shape)
    plain, controlled = pipelines("text", shape, "DDIM", theirs)
    equal(plain, controlled, [Unit(ours, tiny.random_image())], {"image": tiny.random_image()}, **given)


def test_a_map_for_each_image_is_equal() -> None:
    theirs, ours = nets("SD1.5")
    plain, controlled = pipelines("text", "SD1.5", "DDIM", theirs)
    maps = [tiny.random_image(1), tiny.random_image(2)]
    equal(plain, controlled, [Unit(ours, PerSample(maps))], {"image": maps}, prompt=["a cat", "a dog"])


@pytest.mark.parametrize("scale", [5.0, 1.0])
def test_a_net_that_pools_globally_is_equal(scale: float) -> None:
    theirs, ours = nets("SD1.5", global_pool_conditions=True)
    plain, controlled = pipelines("text", "SD1.5", "DDIM", theirs)
    # at another weight the last bit differs: diffusers multiplies before it takes the mean
    equal(plain, controlled, [Unit(ours, tiny.random_image())], {"image": tiny.random_image()}, guidance_scale=scale)


def test_a_video_is_equal() -> None:
    theirs, ours = nets("SD1.5")
    adapter = MotionAdapter(
        block_out_channels=(32, 64, 64, 64), motion_layers_per_block=2, motion_num_attention_heads=2
    )
    moving = UNetMotionModel.from_unet2d(tiny.unet(), randomised(adapter, seed=6))
    frames = [tiny.random_image(seed) for seed in range(3)]
    made = []
    for kind, others in (("AnimateDiffPipeline", {}), ("AnimateDiffControlNetPipeline", {"controlnet": theirs})):
        parts = {k: v for k, v in tiny.parts().items() if k not in ("safety_checker", "unet")}
        scheduler = diffusers.DDIMScheduler(**tiny.DDIM)
        pipe = getattr(diffusers, kind)(
            **parts, unet=moving, motion_adapter=adapter, scheduler=scheduler, image_encoder=None, **others
        )
        pipe.set_progress_bar_config(disable=True)
        made.append(pipe)

    def video(pipe: Any, **given: Any) -> torch.Tensor:
        call = {"num_frames": 3, "num_inference_steps": 3, "height": tiny.SIZE, "width": tiny.SIZE}
        seed = torch.Generator().manual_seed(5)
        return pipe("a cat", output_type="latent", generator=seed, **call, **given).frames

    expected = video(made[1], conditioning_frames=frames)
    with guide(made[0], [Unit(ours, PerSample(frames))]):
        assert torch.equal(video(made[0]), expected)
    assert (expected - video(made[0])).abs().max() >= 1e-3

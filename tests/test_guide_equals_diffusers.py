"""In balanced mode guide's latents are those of diffusers' own ControlNet pipelines, to the last bit: no tolerance."""

from __future__ import annotations

import functools
from typing import Any

import diffusers
import pytest
import tiny
import torch
from PIL import Image

from controlnet_ext import Unit, Window, guide
from controlnet_ext.models.controlnet import ControlNet

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
INIT = tiny.picture(seed=9)

# Task: its plain and its ControlNet pipeline without prefixes, what both are called with, and the UNet's channels.
TASKS: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "text": ("Pipeline", "ControlNetPipeline", {}, 4),
    "image at 0.5": ("Img2ImgPipeline", "ControlNetImg2ImgPipeline", {"image": INIT, "strength": 0.5}, 4),
    "image at 1": ("Img2ImgPipeline", "ControlNetImg2ImgPipeline", {"image": INIT, "strength": 1.0}, 4),
    "inpaint 4": (
        "InpaintPipeline",
        "ControlNetInpaintPipeline",
        {"image": INIT, "mask_image": MASK, "strength": 0.7},
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
        (task, scheduler, WINDOWS[(i + j) % 3], "SD1.5")
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
    call = {"prompt": "a cat", "guidance_scale": 5.0, "num_inference_steps": 6, "output_type": "latent"}
    if "image" not in given or "control_image" not in given:
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


@functools.cache
def unguided(task: str, scheduler: str, shape: str) -> torch.Tensor:
    plain, _ = pipelines(task, shape, scheduler, nets(shape)[0])
    return latents(plain, **TASKS[task][2])


@pytest.mark.parametrize(("task", "scheduler", "window", "shape"), CASES, ids=lambda value: str(value))
def test_latents_are_equal(task: str, scheduler: str, window: tuple[float, float], shape: str) -> None:
    theirs, ours = nets(shape)
    plain, controlled = pipelines(task, shape, scheduler, theirs)
    given, map_ = TASKS[task][2], tiny.picture()
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
    assert (expected - unguided(task, scheduler, shape)).abs().max() >= 1e-3

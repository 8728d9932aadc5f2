"""What diffusers' ControlNet pipelines take, `guide` takes: maps of prompts with several images, and runs that end
early."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import tiny
import torch
from fakes import GREY, Pushes, run
from test_guide_equals_diffusers import latents, nets, pipelines

from controlnet_ext import PerSample, Unit, Window, guide

MAPS = [tiny.random_image(1), tiny.random_image(2)]


@pytest.mark.parametrize("count", [1, 3])
def test_a_map_of_each_prompt_serves_all_of_its_images(count: int) -> None:
    """mmagic #1927, diffusers #2704: diffusers repeats them in a row."""
    theirs, ours = nets("SD1.5")
    plain, controlled = pipelines("text", "SD1.5", "DDIM", theirs)
    given = {"prompt": ["a cat", "a dog"], "num_images_per_prompt": count}
    expected = latents(controlled, image=MAPS, **given)
    with guide(plain, [Unit(ours, PerSample(MAPS))]):
        assert torch.equal(latents(plain, **given), expected)
    with guide(plain, [Unit(ours, PerSample([each for each in MAPS for _ in range(count)]))]):
        assert torch.equal(latents(plain, **given), expected)


def test_maps_that_are_neither_for_prompts_nor_for_images_are_refused() -> None:
    pipe = tiny.pipeline(diffusers.StableDiffusionPipeline)
    for prompts, count in ((["a cat"] * 4, 1), (["a cat"], 4), (["a cat"] * 4, 2)):
        with guide(pipe, [Unit(Pushes(), PerSample(MAPS))]), pytest.raises(ValueError, match="has 2 maps for"):
            latents(pipe, prompt=prompts, num_images_per_prompt=count)


@pytest.mark.parametrize("window", [(0.0, 0.5), (0.25, 0.75)])
@pytest.mark.parametrize("task", ["text", "inpaint 4"])
def test_a_window_is_a_fraction_of_the_schedule_that_denoising_end_cuts(task: str, window: tuple[float, float]) -> None:
    theirs, ours = nets("SDXL")
    plain, controlled = pipelines(task, "SDXL", "Euler", theirs)
    start, end = window
    given: dict[str, Any] = {"num_inference_steps": 8, "denoising_end": 0.7}
    if task != "text":
        mask = tiny.Image.new("L", (tiny.SIZE, tiny.SIZE), 255)
        given |= {"image": tiny.random_image(9), "mask_image": mask, "strength": 0.99}
    where = {"image": MAPS[0]} if task == "text" else {"control_image": MAPS[0]}
    expected = latents(
        controlled,
        **given | where,
        controlnet_conditioning_scale=0.8,
        control_guidance_start=start,
        control_guidance_end=end,
    )
    with guide(plain, [Unit(ours, MAPS[0], 0.8, Window(start, end))]):
        assert torch.equal(latents(plain, **given), expected)
    assert not torch.equal(latents(plain, **given), expected)


def test_a_window_behind_denoising_end_is_refused() -> None:
    pipe = tiny.pipeline(diffusers.StableDiffusionXLPipeline, "SDXL")
    with (
        guide(pipe, [Unit(Pushes(skips=9), GREY, window=Window(0.8, 1))]),
        pytest.raises(ValueError, match=r"window 0.8..1 of unit 1 holds none of 3 steps"),
    ):
        run(pipe, steps=5, denoising_end=0.6)


def test_a_strength_that_leaves_no_step_is_named() -> None:
    """diffusers #1867, #11092: the image comes out as it was."""
    pipe = tiny.pipeline(diffusers.StableDiffusionImg2ImgPipeline)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    with (
        pytest.raises(RuntimeError, match="had no step that a unit could guide: raise strength or num_inference_steps"),
        guide(pipe, [Unit(Pushes(), GREY)]),
    ):
        run(pipe, image=tiny.random_image(), strength=0.1, steps=4)

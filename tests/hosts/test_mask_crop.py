"""`padding_mask_crop` of diffusers' inpaint pipelines: maps, regions and masks are cropped with the image."""

from __future__ import annotations

import functools
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny
import torch
from diffusers.image_processor import VaeImageProcessor
from fakes import Pushes
from PIL import Image, ImageFilter
from torch import Tensor

from controlnet_ext import Unit, crop_maps, guide
from controlnet_ext.guidance.after_steps import InpaintRestore
from controlnet_ext.hosts.diffusers.host import PipelineCall
from controlnet_ext.models.kinds.controlnet import ControlNet

PHOTO, MAP = tiny.random_image(1, 128), tiny.random_image(2, 128)
PAD = 8


def mask(box: tuple[int, int, int, int], size: tuple[int, int] = (128, 128)) -> Image.Image:
    drawn = Image.new("L", size)
    drawn.paste(255, box)
    return drawn


MASK = mask((40, 24, 88, 72))  # with the padding 64x64, the size at which it is drawn
BOX = (32, 16, 96, 80)


@functools.cache
def nets(shape: str) -> tuple[Any, ControlNet]:
    theirs = tiny.control(shape)
    return theirs, ControlNet.load(theirs.state_dict(), theirs.config)


def latents(pipe: Any, **given: Any) -> Tensor:
    """The latents after the last step: the pipelines allow images only where they crop."""
    kept: list[Tensor] = []

    def keep(_: Any, __: int, ___: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
        kept.append(values["latents"])
        return {}

    call = {"prompt": "a cat", "image": PHOTO, "mask_image": MASK, "padding_mask_crop": PAD, "strength": 0.9}
    call |= {"height": 64, "width": 64, "num_inference_steps": 4, "guidance_scale": 5.0}
    pipe(**call | given, generator=torch.Generator().manual_seed(3), callback_on_step_end=keep)
    return kept[-1]


CASES = [
    ("StableDiffusion", "SD1.5", 4),
    ("StableDiffusion", "SD1.5", 9),
    ("StableDiffusionXL", "SDXL", 4),
]


@pytest.mark.parametrize(("prefix", "shape", "channels"), CASES)
def test_the_map_is_cropped_as_the_controlnet_pipelines_crop_it(prefix: str, shape: str, channels: int) -> None:
    theirs, ours = nets(shape)
    pipe = tiny.pipeline(getattr(diffusers, prefix + "InpaintPipeline"), shape, channels)
    oracle = tiny.pipeline(getattr(diffusers, prefix + "ControlNetInpaintPipeline"), shape, channels, controlnet=theirs)
    expected = latents(oracle, control_image=MAP, controlnet_conditioning_scale=0.8)
    with guide(pipe, [Unit(ours, MAP, weight=0.8)]):
        assert torch.equal(latents(pipe), expected)
    assert (expected - latents(pipe)).abs().max() > 1e-2


class Reads(Pushes):
    """A model that keeps the hints it is given."""

    def hint(self, image: Any) -> Tensor:
        self.image = image
        return super().hint(image)


@pytest.mark.parametrize(
    ("box", "size", "drawn"),
    [
        ((40, 24, 72, 56), (128, 128), (64, 64)),  # enlarged
        ((8, 0, 120, 128), (128, 128), (64, 64)),  # shrunk
        ((40, 4, 60, 94), (128, 96), (64, 64)),  # higher than the image is wide at that place: a border is added
        ((2, 40, 126, 50), (128, 96), (64, 128)),
    ],
)
def test_the_part_lies_where_diffusers_puts_it(
    box: tuple[int, int, int, int], size: tuple[int, int], drawn: tuple[int, int]
) -> None:
    pipe = tiny.pipeline(diffusers.StableDiffusionInpaintPipeline)
    smooth = tiny.random_image(4, 128).resize(size).filter(ImageFilter.GaussianBlur(6))
    painted, model = mask(box, size), Reads()
    width, height = drawn
    with guide(pipe, [Unit(model, smooth)]):
        latents(pipe, image=PHOTO.resize(size), mask_image=painted, width=width, height=height)
    processor = VaeImageProcessor(vae_scale_factor=8, do_normalize=False)
    crop = processor.get_crop_region(painted, width, height, pad=PAD)
    theirs = processor.preprocess(smooth, height, width, resize_mode="fill", crops_coords=crop)
    expected = (theirs[0].permute(1, 2, 0) * 255).numpy()
    assert model.image.shape[1:3] == (height, width)
    # filters for resizing differ; a map of the whole image is 20 to 40 off
    assert np.abs(model.image[0].astype(float) - expected).mean() < 2


def test_region_and_masks_are_cropped_too() -> None:
    """As by the same unit of the image that is cropped by hand, without `padding_mask_crop`."""
    _, ours = nets("SD1.5")
    region = np.random.default_rng(0).random((128, 128)).astype(np.float32)
    left, top, right, bottom = BOX
    repaint = MASK.convert("RGB")

    def units(whole: bool) -> list[Unit]:
        image, painted = (MAP, repaint) if whole else (MAP.crop(BOX), repaint.crop(BOX))
        part = region if whole else region[top:bottom, left:right]
        return [Unit(ours, image, region=part, weight=0.7), Unit(InpaintRestore(), image, inpaint=painted)]

    pipe = tiny.pipeline(diffusers.StableDiffusionInpaintPipeline)
    with guide(pipe, units(True)):
        found = latents(pipe)
    with guide(pipe, units(False)):
        expected = latents(pipe, image=PHOTO.crop(BOX), mask_image=MASK.crop(BOX), padding_mask_crop=None)
    assert torch.equal(found, expected)


def test_two_tellers_of_a_place_are_refused() -> None:
    pipe = tiny.pipeline(diffusers.StableDiffusionInpaintPipeline)
    with (
        guide(pipe, [Unit(Pushes(), MAP)]),
        crop_maps((0, 0, 64, 64), (128, 128)),
        pytest.raises(ValueError, match="a call that the pipeline crops itself"),
    ):
        latents(pipe)


def test_a_pipeline_that_shares_the_unet_crops_the_map_too() -> None:
    pipe, model = tiny.pipeline(diffusers.StableDiffusionPipeline), Reads()
    other = diffusers.StableDiffusionInpaintPipeline(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    with guide(pipe, [Unit(model, MAP)]):
        latents(other)
    assert np.array_equal(model.image[0], np.asarray(MAP.crop(BOX)))


def test_modular_pipelines_crop_the_map_too() -> None:
    pipe = diffusers.StableDiffusionXLAutoBlocks().init_pipeline()
    guider = diffusers.ClassifierFreeGuidance(guidance_scale=4.0)
    pipe.update_components(**tiny.parts("SDXL"), scheduler=diffusers.DDIMScheduler(**tiny.DDIM), guider=guider)
    pipe.set_progress_bar_config(disable=True)
    model = Reads(skips=9)
    given = {"prompt": "a", "image": PHOTO, "mask_image": MASK, "padding_mask_crop": PAD, "strength": 0.9}
    with guide(pipe, [Unit(model, MAP)]):
        pipe(**given, height=64, width=64, num_inference_steps=2, output="images")
    assert np.array_equal(model.image[0], np.asarray(MAP.crop(BOX)))


@pytest.mark.parametrize("name", ["crops_coords", "original_image"])
def test_a_pipeline_that_crops_and_does_not_tell_where_is_refused(name: str) -> None:
    """As one that names its variables otherwise: a crop is never guessed."""
    call = PipelineCall({"padding_mask_crop": 8, "crops_coords": BOX, "original_image": PHOTO} | {name: None}, True)
    with pytest.raises(ValueError, match="crops the image by padding_mask_crop, and does not tell where"):
        call.locate(2, (64, 64))

"""Repainting part of an image: what is kept is kept, in the noise, in each step, and in the pixels."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline
from fakes import Pushes
from PIL import Image

from controlnet_ext import Unit, guide, load
from controlnet_ext.embedded import EMBEDDED_FOLDER
from controlnet_ext.embedded.scenes import draw_scene
from controlnet_ext.generation.inpainting import composite, make_initial_latents
from controlnet_ext.generation.pipeline_folder import PipelineFolder
from controlnet_ext.guidance.after_steps import ColorFix, InpaintRestore
from controlnet_ext.maps.resize import fit

MASK = np.zeros((128, 128, 3), np.uint8)
MASK[32:96, 56:] = 255


@pytest.fixture(scope="module")
def embedded() -> Any:
    if not (EMBEDDED_FOLDER / "model_index.json").exists():
        pytest.skip("the embedded model's weights are not there")
    folder = PipelineFolder.find("embedded")
    pipe = folder.load(torch.float32, folder.make_scheduler(None))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(pipe: Any, units: list[Unit], **given: Any) -> np.ndarray:
    call = {"num_inference_steps": 6, "guidance_scale": 4.0, "output_type": "np", **given}
    if "latents" not in call:
        call["generator"] = torch.Generator().manual_seed(1)
    with guide(pipe, units):
        return (pipe("a green star on a blue ground", **call).images[0] * 255).round().astype(np.uint8)


def test_outside_of_the_mask_the_embedded_models_image_is_the_photo(embedded: Any) -> None:
    photo = draw_scene(10_500_000).pixels
    net = load(str(EMBEDDED_FOLDER / "controlnet_canny"))
    units = [
        Unit(net, photo, preprocessor="canny", region=MASK[..., 0] / 255),
        Unit(InpaintRestore(), photo, inpaint=MASK),
    ]
    kept, free = drawn(embedded, units), drawn(embedded, units[:1])
    far = np.ones((128, 128), bool)
    far[16:112, 40:] = False  # what decodes a latent sees two latents around
    with torch.no_grad():
        ceiling = embedded.vae.decode(encoded(embedded, photo) / embedded.vae.config.scaling_factor).sample
    through = ((ceiling[0].permute(1, 2, 0).numpy().clip(-1, 1) + 1) * 127.5).round()
    # measured 3.7: the scheduler ends with 3 % of noise, and the decoder's norms and attention see the whole image
    assert np.abs(kept.astype(float) - through)[far].mean() < 5
    assert np.abs(free.astype(float) - through)[far].mean() > 25
    assert np.abs(kept.astype(float) - photo)[48:80, 72:].mean() > 10  # and inside it is another
    whole = composite(kept, photo, MASK)
    border = np.zeros((128, 128), bool)
    border[32 - 7 : 96 + 7, 56 - 7 :] = True
    np.testing.assert_array_equal(whole[~border], photo[~border])
    np.testing.assert_array_equal(whole[40:88, 64:], kept[40:88, 64:])


def encoded(pipe: Any, photo: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        pixels = torch.from_numpy(photo)[None].permute(0, 3, 1, 2) / 127.5 - 1
        return pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor


def test_the_embedded_models_colours_are_the_photos(embedded: Any) -> None:
    photo = draw_scene(10_500_001).pixels
    fixed, free = (drawn(embedded, units) for units in ([Unit(ColorFix(3), photo)], []))
    means = [x.reshape(2, 64, 2, 64, 3).mean(axis=(1, 3)) for x in (photo.astype(float), fixed, free)]
    assert np.abs(means[1] - means[0]).mean() < 0.5 * np.abs(means[2] - means[0]).mean()


def test_the_beginning_is_the_filled_image_in_noise() -> None:
    pipe = tiny.pipeline(StableDiffusionPipeline)
    filled = np.asarray(tiny.random_image(3, 96))
    found = make_initial_latents(pipe, filled, 64, 48, torch.Generator().manual_seed(7))
    noise = torch.randn(1, 4, 8, 6, generator=torch.Generator().manual_seed(7))
    image = encoded(pipe, fit(filled, 64, 48, "crop"))
    alpha = pipe.scheduler.alphas_cumprod[999]
    torch.testing.assert_close(found, alpha**0.5 * image + (1 - alpha) ** 0.5 * noise)


def test_a_run_may_begin_with_it() -> None:
    """Where the UNet predicts nothing but that, the image is what was filled in."""
    pipe = tiny.pipeline(StableDiffusionPipeline)
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    latents = make_initial_latents(pipe, tiny.random_image(3), 64, 64, torch.Generator().manual_seed(7))
    with guide(pipe, [Unit(InpaintRestore(), tiny.random_image(3), inpaint=np.zeros((64, 64, 3), np.uint8))]):
        found = pipe("a", latents=latents, num_inference_steps=3, output_type="latent").images
    torch.testing.assert_close(found, encoded(pipe, np.asarray(tiny.random_image(3))), rtol=0, atol=2e-4)


def test_pixels_are_mixed_over_the_masks_border() -> None:
    """In one row: the mask is white from column 8 on; dilated by 1 and averaged over 3, columns 6, 7 mix."""
    original, image = np.zeros((5, 16, 3), np.uint8), np.full((5, 16, 3), 240, np.uint8)
    mask = np.zeros((5, 16, 3), np.uint8)
    mask[:, 8:] = 255
    expected = [0] * 6 + [80, 160] + [240] * 8
    assert composite(image, original, mask, blur=3)[2, :, 0].tolist() == expected
    assert composite(Image.fromarray(image), original, mask, blur=0)[2, :, 0].tolist() == [0] * 8 + [240] * 8


def test_what_cannot_be_pasted_is_refused() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="the mask is 4x8 pixels, but the image 8x8"):
        composite(image, image, image[:, :4])
    with pytest.raises(ValueError, match=r"blur 65, expected a whole number 0\.\.64"):
        composite(image, image, image, blur=65)


def test_restoring_needs_no_network() -> None:
    unit = Unit(InpaintRestore(), tiny.random_image(3), inpaint=np.zeros((64, 64, 3), np.uint8))
    assert unit.after is unit.model
    with pytest.raises(ValueError, match="inpaint_only changes what an inpaint mask covers"):
        Unit(InpaintRestore(), tiny.random_image(3))
    assert Unit(Pushes(), tiny.random_image(3)).after is None

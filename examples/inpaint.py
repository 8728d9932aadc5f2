"""Repaint the middle of a photo: python examples/inpaint.py

A unit restores the photo around the mask after each step; the last line puts the photo's own pixels back. Writes
inpainted.png.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from controlnet_ext import Unit, guide, load
from controlnet_ext.embedded import EMBEDDED_FOLDER
from controlnet_ext.generation.inpainting import composite, make_initial_latents
from controlnet_ext.guidance.after_steps import InpaintRestore

PHOTO = Path(__file__).parent / "coffee.jpg"

photo = np.asarray(Image.open(PHOTO).convert("RGB").resize((192, 128)))[:, 32:160]
mask = np.zeros_like(photo)
mask[32:96, 32:96] = 255  # white: repaint
pipe = StableDiffusionPipeline.from_pretrained(EMBEDDED_FOLDER)
units = [
    Unit(InpaintRestore(), photo, inpaint=mask),
    Unit(load("embedded/canny"), photo, preprocessor="canny", parameters={"resolution": "match"}),
]
with guide(pipe, units):
    latents = make_initial_latents(pipe, photo, 128, 128, torch.Generator().manual_seed(0))
    image = pipe("a red circle on a green ground", num_inference_steps=10, guidance_scale=4, latents=latents).images[0]
Image.fromarray(composite(image, photo, mask)).save("inpainted.png")

"""Two units, each in its own half of the image: python examples/regions.py

The left half follows the photo's edges, the right half those of the mirrored photo, more weakly and only in the first
half of the run. Writes regions.png.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from controlnet_ext import ControlMap, Unit, Window, guide, load, preprocess
from controlnet_ext.embedded import EMBEDDED_FOLDER

PHOTO = Path(__file__).parent / "coffee.jpg"

pipe = StableDiffusionPipeline.from_pretrained(EMBEDDED_FOLDER)
canny = load("embedded/canny")
edges = preprocess("canny", PHOTO, resolution=128)
mirrored = ControlMap(np.ascontiguousarray(edges.pixels[:, ::-1]), "edges")
left = np.zeros((128, 128), bool)
left[:, :64] = True
units = [
    Unit(canny, edges, region=left),
    Unit(canny, mirrored, region=~left, weight=0.6, window=Window(0.0, 0.5)),
]
with guide(pipe, units):
    noise = torch.Generator().manual_seed(0)
    image = pipe("a green blob on a blue ground", num_inference_steps=10, guidance_scale=2, generator=noise).images[0]
image.save("regions.png")

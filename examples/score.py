"""A folder of photos to a scored report: python examples/score.py [STEPS]

Draws an image by the edges of each photo, and an unguided one from the same noise, and writes report.html, which says
how well the images obey. `controlnet-ext score` finds what belongs together in pairs/: files of one name in images/,
maps/, sources/ and unguided/. Images of `controlnet-ext generate` hold their maps, and need no such folders.
"""

import sys
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageOps

from controlnet_ext import PerSample, Unit, guide, load, preprocess
from controlnet_ext.cli import main
from controlnet_ext.embedded import EMBEDDED_FOLDER

PROMPTS = ["a blue blob and a yellow curve on a red ground", "a green blob and a white curve on a brown ground"]
STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 10  # with 20 the images obey better

photo = Image.open(Path(__file__).parent / "coffee.jpg")
photos = [ImageOps.fit(photo, (128, 128), centering=(x, 0.5)) for x in (0.2, 0.8)]  # two parts of it
maps = [preprocess("canny", each) for each in photos]
pipe = StableDiffusionPipeline.from_pretrained(EMBEDDED_FOLDER)


def draw() -> list[Image.Image]:
    noise = [torch.Generator().manual_seed(seed) for seed in range(len(photos))]
    return pipe(PROMPTS, generator=noise, num_inference_steps=STEPS, guidance_scale=2).images


unguided = draw()
with guide(pipe, [Unit(load("embedded/canny"), PerSample(maps))]):
    images = draw()
folders = {"images": images, "unguided": unguided, "sources": photos, "maps": [each.image for each in maps]}
for folder, files in folders.items():
    Path("pairs", folder).mkdir(parents=True, exist_ok=True)
    for i, file in enumerate(files):
        file.save(f"pairs/{folder}/{i}.png")
main(["score", "pairs", "--control", "canny", "--report", "report.html", "--overwrite"])

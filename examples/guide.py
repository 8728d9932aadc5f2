"""A photo's edges guide a picture: python examples/guide.py MODEL CONTROLNET PHOTO "a prompt" OUT.png

MODEL is a folder that diffusers saved, CONTROLNET a canny ControlNet in any layout (.pth, .safetensors, folder).
"""

import sys

from diffusers import StableDiffusionPipeline

from controlnet_ext import Unit, Window, guide, load, preprocess
from controlnet_ext.files.image_reader import read_image

model, controlnet, photo, prompt, out = sys.argv[1:]
pipe = StableDiffusionPipeline.from_pretrained(model, local_files_only=True)
edges = preprocess("canny", read_image(photo), low=80, high=180)
unit = Unit(load(controlnet), edges, weight=0.9, window=Window(0.0, 0.8))
with guide(pipe, [unit]):
    pipe(prompt).images[0].save(out)

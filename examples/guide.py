"""A photo's edges guide an image: python examples/guide.py

Writes guided.png and unguided.png, drawn from the same noise. For another model, give from_pretrained a folder that
diffusers saved, and load a ControlNet file in any layout.
"""

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from controlnet_ext import Unit, Window, guide, load
from controlnet_ext.embedded import EMBEDDED_FOLDER

PHOTO = Path(__file__).parent / "coffee.jpg"
PROMPT = "a blue blob, an orange star and a yellow curve on a dotted red ground"

pipe = StableDiffusionPipeline.from_pretrained(EMBEDDED_FOLDER)
canny = load("embedded/canny")
unit = Unit(canny, PHOTO, preprocessor="canny", parameters={"resolution": "match"}, window=Window(0.0, 0.9))
settings = {"num_inference_steps": 10, "guidance_scale": 2}
pipe(PROMPT, generator=torch.Generator().manual_seed(0), **settings).images[0].save("unguided.png")
with guide(pipe, [unit]):
    pipe(PROMPT, generator=torch.Generator().manual_seed(0), **settings).images[0].save("guided.png")

"""The examples run as they stand, on the tiny random models."""

import runpy
import sys
from pathlib import Path

import tiny
from diffusers import StableDiffusionPipeline
from PIL import Image

from controlnet_ext.models.kinds.controlnet import ControlNet
from controlnet_ext.models.state_dict.saving import save_ldm

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_guide_makes_a_picture_from_a_photo(tmp_path, monkeypatch):
    tiny.pipeline(StableDiffusionPipeline).save_pretrained(tmp_path / "model")
    save_ldm(ControlNet.from_unet(tiny.unet()), tmp_path / "canny.safetensors")
    words = [tmp_path / "model", tmp_path / "canny.safetensors", EXAMPLES / "coffee.jpg", "a cup", tmp_path / "out.png"]
    monkeypatch.setattr(sys, "argv", ["guide.py", *map(str, words)])
    runpy.run_path(str(EXAMPLES / "guide.py"))
    assert Image.open(tmp_path / "out.png").size == (tiny.SIZE, tiny.SIZE)

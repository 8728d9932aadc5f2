"""How many files of the project `guide` and `load` run through, counted with sys.setprofile in a process of its own."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COUNT = """
import sys
files = set()
root = {root!r}
def profile(frame, event, argument):
    name = frame.f_code.co_filename
    if event == "call" and name.startswith(root) and "/tests/" not in name:
        files.add(name[len(root) + 1 :])
"""
GUIDE = """
import torch
from diffusers import StableDiffusionPipeline
from controlnet_ext import Unit, guide, load
import numpy
from controlnet_ext.embedded import EMBEDDED_FOLDER
photo = numpy.random.default_rng(0).integers(0, 256, (64, 64, 3), numpy.uint8)
pipe = StableDiffusionPipeline.from_pretrained(EMBEDDED_FOLDER, local_files_only=True)
pipe.set_progress_bar_config(disable=True)
model = load("embedded/canny")
with guide(pipe, [Unit(model, photo, preprocessor="canny")]):  # once, for what is imported late
    pipe("a red circle", num_inference_steps=1, height=64, width=64, output_type="latent")
sys.setprofile(profile)
with guide(pipe, [Unit(model, photo, preprocessor="canny")]):
    pipe("a red circle", num_inference_steps=1, height=64, width=64, output_type="latent")
sys.setprofile(None)
"""
LOAD = """
from controlnet_ext import load
load("embedded/canny")
sys.setprofile(profile)
load("embedded/canny")
sys.setprofile(None)
"""


@pytest.mark.parametrize(("flow", "limit"), [(GUIDE, 22), (LOAD, 14)], ids=["guide and one call", "load"])
def test_files_on_the_flow_are_few(flow: str, limit: int, warm_python: str) -> None:
    code = COUNT.format(root=str(ROOT)) + flow + "print(*sorted(files), sep='\\n')"
    done = subprocess.run([warm_python, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    files = done.stdout.split()
    assert len(files) <= limit, files

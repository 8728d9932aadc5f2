"""What `controlnet-ext generate` does once, and in how many files of the project it runs."""

import json

from flows import count_calls

SETUP = """
import collections, pathlib, tempfile
import torch, transformers
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from controlnet_ext.cli import main
from controlnet_ext.embedded import SAMPLE_PHOTO

out = pathlib.Path(tempfile.mkdtemp()) / "image.png"
opened = collections.Counter()


def count_opened(event, arguments):
    # arguments: path, mode, flags; within open() there is an os.open(), which has no mode
    if event == "open" and arguments[1] and str(arguments[0]).endswith(".safetensors"):
        opened["/".join(pathlib.Path(arguments[0]).parts[-2:])] += 1


sys.addaudithook(count_opened)
"""
FLOW = """
control = ["--image", str(SAMPLE_PHOTO), "--control", "canny,resolution=match"]
assert main(["generate", "a red circle", *control, "--seed", "3", "--steps", "1", "-o", str(out)]) == 0
ran["opened"] = dict(opened)
"""
MAX_FILES = 40  # that draw; 63 before the house was rebuilt
SCORE_FOLDERS = ("controlnet_ext/scoring/", "controlnet_ext/maps/fidelity/")  # run when the image is drawn
MAX_SCORE_FILES = 4  # the score of units; what a measure is, which one it is, and that of edges


def test_generate_builds_and_reads_each_thing_once(warm_python: str) -> None:
    calls = count_calls(warm_python, SETUP, FLOW)
    opened = calls.pop("opened")
    scoring = sorted(name for name in calls if name.startswith(SCORE_FOLDERS))
    assert len(calls) - len(scoring) <= MAX_FILES, sorted(calls)
    assert 0 < len(scoring) <= MAX_SCORE_FILES, scoring
    assert calls["controlnet_ext/guidance/unit.py"]["Unit.__post_init__"] == 1
    assert (
        calls["controlnet_ext/embedded/__init__.py"]["resolve_embedded"] == 3
    )  # the model; its ControlNet, looked for and loaded
    assert calls["controlnet_ext/generation/pipeline_folder.py"]["PipelineFolder.find"] == 1
    assert opened.pop("controlnet_canny/diffusion_pytorch_model.safetensors") == 1
    assert opened.pop("text_encoder/model.safetensors") == 3  # its tensors too, which diffusers maps into memory
    assert set(opened.values()) == {2}, json.dumps(opened)  # parts of the pipeline: once the header, once the hash

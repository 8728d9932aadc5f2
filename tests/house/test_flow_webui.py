"""A request in the webui passes through few files of the project."""

from flows import count_calls

SETUP = """
import pathlib, tempfile
from types import SimpleNamespace
import numpy as np
from pytest import MonkeyPatch
from ldm import UNetModel
from tiny import control, random_image, unet
from webui_host import Request, install

place = pathlib.Path(tempfile.mkdtemp())
folder = place / "models" / "ControlNet"
folder.mkdir(parents=True)
control().save_pretrained(folder / "net")
host = install(MonkeyPatch(), place, UNetModel(unet()))
from controlnet_ext.sdwebui.images import encode_png_base64
from controlnet_ext.webui.script import ControlNetScript

image = encode_png_base64(np.asarray(random_image()))
unit = {"module": "canny", "model": "diffusion_pytorch_model", "image": image, "processor_res": 64}
request = Request(host, host.model.model.diffusion_model, saves=False)
script, shown = ControlNetScript(), SimpleNamespace(images=[])
"""
FLOW = """
script.before_process(request, unit)
script.process(request, unit)
request.sample()
script.postprocess(request, shown)
assert len(shown.images) == 1
"""
MAX_FILES = 43  # 71 before the house was rebuilt


def test_a_request_of_the_webui_runs_through_few_files_and_makes_each_thing_once(warm_python: str) -> None:
    calls = count_calls(warm_python, SETUP, FLOW)
    assert len(calls) <= MAX_FILES, sorted(calls)
    assert calls["controlnet_ext/sdwebui/build.py"]["build_unit"] == 1
    assert calls["controlnet_ext/guidance/unit.py"]["Unit.__post_init__"] == 1
    assert calls["preprocessors/edges/canny.py"]["canny"] == 1

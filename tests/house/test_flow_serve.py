"""A txt2img request with a unit passes through few files of the project."""

import pytest
from flows import count_calls

pytest.importorskip("starlette", reason="needs controlnet-ext[serve]")
pytest.importorskip("uvicorn", reason="needs controlnet-ext[serve]")
SETUP = """
import serving

host = serving.served()
client, service = host.__enter__()
unit = {"image": serving.photo(), "module": "canny", "model": serving.CANNY, "processor_res": 64}
client.images(width=64, height=64)  # imports what a request needs
args = {"ControlNet": {"args": [unit]}}
body = {"prompt": "a red circle", "steps": 1, "width": 64, "height": 64, "alwayson_scripts": args}
"""
FLOW = """
assert len(service.generate(body, from_image=False)["images"]) == 2
host.__exit__(None, None, None)
"""
MAX_FILES = 45  # 68 before the house was rebuilt


def test_a_request_of_a_client_runs_through_few_files_and_makes_each_thing_once(warm_python: str) -> None:
    calls = count_calls(warm_python, SETUP, FLOW)
    assert len(calls) <= MAX_FILES, sorted(calls)
    assert calls["controlnet_ext/generation/render.py"]["render"] == 1
    assert calls["controlnet_ext/sdwebui/build.py"]["build_unit"] == 1
    assert calls["preprocessors/edges/canny.py"]["canny"] == 1

"""Requests of eight clients with the fields that each sends, and webuiapi itself, against the server over the
loopback."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import serving
from serving import Client, photo

from controlnet_ext.files.image_reader import read_image

pytest.importorskip("starlette", reason="needs controlnet-ext[serve]")
pytest.importorskip("uvicorn", reason="needs controlnet-ext[serve]")

HOME = {"width": 128, "height": 128, "steps": 2, "seed": 3, "prompt": "a red circle"}
URL = "data:image/jpeg;base64," + photo()
WINDOW = {"guidance_start": 0, "guidance_end": 1}
THRESHOLDS = {"threshold_a": 64, "threshold_b": 64}


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with serving.served() as (found, _):
        yield found


def photoshop(model: str) -> tuple[str, dict[str, Any]]:
    unit = {"enabled": True, "input_image": photo(), "mask": "", "module": "canny", "model": model, "weight": 1}
    unit |= {"resize_mode": "Crop and Resize", "lowvram": False, "processor_res": 512, **THRESHOLDS, **WINDOW}
    unit |= {"control_mode": "Balanced", "pixel_perfect": True}
    return "txt2img", {"alwayson_scripts": {"controlnet": {"args": [unit]}}, "controlnet_units": [unit]}


def open_outpaint(model: str) -> tuple[str, dict[str, Any]]:
    unit = {"enabled": True, "module": "canny", "model": model, "control_mode": "ControlNet is more important"}
    unit |= {"image": URL, "mask": "data:image/png;base64," + serving.white(128, 128), "processor_res": 64}
    unit |= {"resize_mode": "Resize and Fill"}
    return "txt2img", {"alwayson_scripts": {"controlnet": {"args": [unit]}}}


def controlnet_render(model: str) -> tuple[str, dict[str, Any]]:
    unit = {"input_image": photo(), "model": model, "module": "none", "weight": 1, **WINDOW, "control_mode": 0}
    return "txt2img", {"alwayson_scripts": {"controlnet": {"args": [unit]}}}


def blender_controlnet(model: str) -> tuple[str, dict[str, Any]]:
    unit = {"mask": "", "module": "none", "model": model, "weight": 1, "resize_mode": "Scale to Fit (Inner Fit)"}
    unit |= {"lowvram": False, "processor_res": 64, **THRESHOLDS, "guidance": 1, **WINDOW, "guessmode": False}
    return "txt2img", {"alwayson_scripts": {"controlnet": {"args": [unit | {"input_image": photo()}]}}}


def ai_render(model: str) -> tuple[str, dict[str, Any]]:
    unit = {"weight": 1, "module": "canny", "model": model}
    more = {"init_images": [URL], "denoising_strength": 1.0}
    return "img2img", {**more, "alwayson_scripts": {"controlnet": {"args": [unit]}}}


def intra_paint(model: str) -> tuple[str, dict[str, Any]]:
    unit = {"use_preview_as_input": False, "enabled": True, "pixel_perfect": False, "low_vram": False}
    unit |= {"module": "canny", "model": model, "weight": 1.0, "image": photo(), "resize_mode": "Just Resize"}
    unit |= {**WINDOW, "control_mode": "My prompt is more important", "processor_res": 512, **THRESHOLDS}
    return "txt2img", {"alwayson_scripts": {"controlNet": {"args": [unit]}}}


def home_made(model: str) -> tuple[str, dict[str, Any]]:
    unit = {"image": [photo(), serving.white(64, 64)], "module": "canny", "model": model, "weight": 1, "enabled": True}
    unit |= {"resize_mode": 1, "lowvram": True, "processor_res": 512, **THRESHOLDS, **WINDOW, "control_mode": 2}
    return "txt2img", {"alwayson_scripts": {"ControlNet": {"args": [unit]}}}


CLIENTS = (photoshop, open_outpaint, controlnet_render, blender_controlnet, ai_render, intra_paint, home_made)


@pytest.mark.parametrize("sent", CLIENTS, ids=[sent.__name__ for sent in CLIENTS])
def test_the_requests_of_clients_give_guided_images(client: Client, sent: Any) -> None:
    (model,) = client("/controlnet/model_list")[1]["model_list"]
    path, more = sent(model)
    plain = {name: value for name, value in more.items() if not name.startswith(("alwayson", "controlnet"))}
    images = []
    for asked in (more, plain):
        status, answer = client(f"/sdapi/v1/{path}", {**HOME, **asked})
        assert status == 200, answer
        assert not any("is no field" in text for text in json.loads(answer["info"]).get("warnings", ()))
        images.append([serving.pixels(image) for image in answer["images"]])
    (guided, shown), (unguided,) = images
    assert np.abs(guided.astype(int) - unguided).max() > 5
    assert shown.shape == guided.shape


def test_webuiapi_makes_images_of_text_and_images_with_one_unit_and_with_two(client: Client) -> None:
    webuiapi = pytest.importorskip("webuiapi", reason="needs webuiapi from PyPI")
    from PIL import Image

    from controlnet_ext.embedded import SAMPLE_PHOTO

    api = webuiapi.WebUIApi(host="127.0.0.1", port=client.port, steps=2)
    assert api.has_controlnet
    image = Image.open(SAMPLE_PHOTO).convert("RGB")
    interface = webuiapi.ControlNetInterface(api)
    unit = webuiapi.ControlNetUnit(image=image, module="canny", model=interface.model_list()[0])
    size = {"width": 128, "height": 128, "seed": 3}
    made = [api.txt2img(prompt="a red circle", controlnet_units=[unit] * n, **size) for n in range(3)]
    assert [len(result.images) for result in made] == [1, 2, 3]
    assert not any("warnings" in result.info for result in made)
    for one, other in itertools.combinations([read_image(result.image) for result in made], 2):
        assert np.abs(one.astype(int) - other).max() > 5
    changed = api.img2img(images=[image], prompt="a red circle", denoising_strength=1, controlnet_units=[unit], **size)
    assert len(changed.images) == 2 and changed.info["seed"] == 3
    assert read_image(api.controlnet_detect([image], module="canny", processor_res=128).image).any()
    assert "canny" in api.controlnet_module_list()
    assert api.get_progress()["progress"] == 0
    assert api.util_get_current_model() == "embedded"
    assert "Euler a" in api.util_get_sampler_names()
    api.util_set_model("embedded")


EMPTY_LISTS = ("sd_vae", "loras", "hypernetworks", "face_restorers", "realesrgan_models", "prompt_styles", "artists")
ANSWERED = {  # methods of webuiapi without arguments, and what they return
    **{f"get_{name}": [] for name in (*EMPTY_LISTS, "artist_categories")},
    "get_embeddings": {"loaded": {}, "skipped": {}},
    "get_cmd_flags": {},
    "refresh_checkpoints": None,
    "interrupt": {},
    "skip": {},
    "controlnet_version": 3,
}
LISTED = {"get_samplers", "get_schedulers", "get_upscalers", "get_latent_upscale_modes", "get_sd_models"}
LISTED |= {"controlnet_model_list", "controlnet_module_list", "util_get_model_names", "util_get_sampler_names"}
LISTED |= {"util_get_scheduler_names"}
OTHERS = {"txt2img", "img2img", "controlnet_detect", "get_progress", "get_options", "set_options", "get_scripts"}
OTHERS |= {"util_get_current_model", "util_set_model", "util_wait_for_ready", "get_memory", "check_extensions"}
OTHERS |= {"set_auth", "get_endpoint", "custom_get", "custom_post", "post_and_get_api_result", "async_post"}
REFUSED = {
    "extra_single_image",
    "extra_batch_images",
    "png_info",
    "interrogate",
    "list_prompt_gen_models",
    "prompt_gen",
}


@pytest.fixture(scope="module")
def api(client: Client) -> Any:
    webuiapi = pytest.importorskip("webuiapi", reason="needs webuiapi from PyPI")
    return webuiapi.WebUIApi(host="127.0.0.1", port=client.port, steps=1)


def test_every_method_of_webuiapi_is_tried(api: Any) -> None:
    methods = {name for name in dir(type(api)) if not name.startswith("_") and callable(getattr(api, name))}
    assert methods == set(ANSWERED) | LISTED | OTHERS | REFUSED


@pytest.mark.parametrize("name", sorted(ANSWERED))
def test_what_the_server_has_none_of_is_an_empty_answer(api: Any, name: str) -> None:
    assert getattr(api, name)() == ANSWERED[name]


@pytest.mark.parametrize("name", sorted(LISTED))
def test_what_the_server_has_is_a_list_with_entries(api: Any, name: str) -> None:
    found = getattr(api, name)()
    assert isinstance(found, list) and found


def test_other_methods_of_webuiapi_answer_as_with_the_webui(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(api.get_memory()) == {"ram", "cuda"}
    assert api.get_scripts()["txt2img"] == ["controlnet", "controlnet m2m"]
    assert api.get_options()["sd_model_checkpoint"] == api.util_get_current_model() == "embedded"
    assert api.set_options({"sd_model_checkpoint": "embedded"}) is None
    api.util_set_model("embeded")
    assert "model changed to embedded" in capsys.readouterr().out
    api.util_wait_for_ready()
    api.set_auth("any", "secret")
    assert {each["name"] for each in api.custom_get("script-info", baseurl=True)} == {"controlnet", "controlnet m2m"}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_the_server_does_not_do_is_said_in_json(api: Any, name: str) -> None:
    from PIL import Image

    image = Image.new("RGB", (8, 8))
    given = {"extra_batch_images": [[image]], "list_prompt_gen_models": [], "prompt_gen": []}.get(name, [image])
    if name == "list_prompt_gen_models":
        assert api.custom_get("promptgen/list_models")["detail"].startswith("this server has no GET ")
        return
    with pytest.raises(RuntimeError) as caught:
        getattr(api, name)(*given)
    status, text = caught.value.args
    assert status == 404 and text.startswith('{"detail":"this server has no POST ')


@pytest.mark.parametrize(
    "path",
    [
        *("model_keyword/get_keywords", "instruct-pix2pix/img2img", "rembg", "controlnet/txt2img", "sam/heartbeat"),
        *("sam/sam-predict", "tagger/v1/interrogate", "tagger/v1/interrogators", "favicon.ico", "sdapi/v1", "x" * 999),
    ],
)
def test_every_other_path_is_answered_in_json(client: Client, path: str) -> None:
    for body in (None, {}):
        status, answer = client(f"/{path}", body)
        assert status == 404 and ", the nearest are: /" in answer["detail"] and len(answer["detail"]) <= 500


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_browser_finds_a_page_with_every_route(client: Client, path: str) -> None:
    status, page = client(path)
    assert status == 200 and page.startswith("<!DOCTYPE html>") and "<script" not in page
    paths = client("/openapi.json")[1]["paths"]
    assert all(f"<code>{each}</code>" in page for each in paths)


SMALL = {"prompt": "a red circle", "steps": 1, "width": 64, "height": 64, "seed": 3}
BLACK = serving.white(64, 64)
POSE = {"people": [{"pose_keypoints_2d": [0.5, 0.5, 0.7] * 18}], "canvas_width": 64, "canvas_height": 64}
BODIES: dict[str, Any] = {  # a small request for each route that reads one
    "/controlnet/detect": {"controlnet_module": "canny", "controlnet_input_images": [BLACK], "no_field": 1},
    "/controlnet/render_openpose_json": [POSE],
    "/sdapi/v1/txt2img": {**SMALL, "no_field": 1},
    "/sdapi/v1/img2img": {**SMALL, "init_images": [BLACK], "denoising_strength": 1},
    "/sdapi/v1/options": {"sd_model_checkpoint": "embedded"},
}


def closed(schema: Any) -> Any:
    """A schema in which objects whose members are declared have no others."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    copy = {key: closed(each) for key, each in schema.items()}
    return {**copy, "additionalProperties": False} if isinstance(schema.get("properties"), dict) else copy


def test_every_answer_has_the_members_of_its_schema_and_no_others(client: Client) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema from PyPI")
    document = client("/openapi.json")[1]
    components, count = closed(document["components"]), 0
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            body = BODIES[path] if "requestBody" in operation else None if method == "get" else b""
            status, answer = client(path, body)
            assert status == 200, answer
            schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
            jsonschema.validate(answer, {**schema, "components": components})
            count += 1
    assert count > 30


def test_the_json_of_poses_has_the_members_of_its_schema_and_no_others() -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema from PyPI")
    from controlnet_ext.preprocessors.poses.json import POSES_SCHEMA, encode_poses
    from controlnet_ext.preprocessors.poses.key_points import Animal, KeyPoint, Person, Poses

    points = (KeyPoint(0.5, 0.5, 0.7),) * 18
    hand = (KeyPoint(0.5, 0.5, 0.7),) * 21
    poses = Poses((Person(points, hand),), (Animal(points[:17]),), 64, 64)
    value = encode_poses(poses)
    assert {"people", "animals", "animal_confidences"} < value.keys() and len(value["people"][0]) > 4
    jsonschema.validate(value, closed(POSES_SCHEMA))

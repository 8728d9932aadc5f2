"""The HTTP API over the loopback, with the embedded model: units as clients send them, and what is refused."""

from __future__ import annotations

import base64
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import serving
from controlnet_ext.preprocessors import preprocess
from limits import wait_until
from serving import CANNY, Client, photo, white

from controlnet_ext.embedded import SAMPLE_PHOTO
from controlnet_ext.files.image_reader import read_image
from controlnet_ext.files.image_writer import read_png_text
from controlnet_ext.maps.resize import fit
from controlnet_ext.server.service import Service

pytest.importorskip("starlette", reason="needs controlnet-ext[serve]")
pytest.importorskip("uvicorn", reason="needs controlnet-ext[serve]")
UNIT = {"image": photo(), "module": "canny", "model": CANNY}


@pytest.fixture(scope="module")
def plain(server: tuple[Client, Service]) -> np.ndarray:
    return server[0].images()[0]


@pytest.fixture(scope="module")
def guided(server: tuple[Client, Service]) -> np.ndarray:
    return server[0].images(UNIT)[0]


def test_a_unit_guides_the_image_and_its_map_comes_after_it(client: Client, plain: np.ndarray) -> None:
    image, shown = client.images({**UNIT, "threshold_a": 100, "threshold_b": 200})
    assert image.shape == shown.shape == (128, 128, 3)
    assert np.abs(image.astype(int) - plain).max() > 20
    assert set(np.unique(shown)) == {0, 255}
    assert len(client.images({**UNIT, "save_detected_map": False})) == 1


def test_weight_0_is_no_guidance_to_the_bit(client: Client, plain: np.ndarray) -> None:
    assert np.array_equal(client.images({**UNIT, "weight": 0})[0], plain)


@pytest.mark.parametrize(
    ("title", "unit"),
    [
        ("controlnet", {"enabled": "true"}),
        ("controlNet", {"model": "Embedded/CANNY [00000000]", "module": "Canny"}),
        ("controlnet m2m", {"guidance": 1, "lowvram": True, "resize_mode": 1, "control_mode": "0"}),
        ("ControlNet", {"image": None, "input_image": "data:image/jpeg;base64," + photo(), "mask": ""}),
        ("ControlNet", {"image": {"image": photo(), "mask": None}, "resize_mode": "Scale to Fit (Inner Fit)"}),
        ("ControlNet", {"image": [photo(), serving.white(9, 9)]}),
        ("ControlNet", {"image": [{"image": photo(), "mask": "None"}], "control_mode": "balanced"}),
    ],
)
def test_every_way_to_say_a_unit_gives_the_same_image(
    client: Client, guided: np.ndarray, title: str, unit: dict[str, Any]
) -> None:
    assert np.array_equal(client.images({**UNIT, **unit}, title=title)[0], guided)


def test_units_that_are_off_or_say_nothing_do_nothing(client: Client, plain: np.ndarray) -> None:
    off = [{**UNIT, "enabled": False, "image": "no image"}, {}, {"module": "none", "model": "None", "image": ""}]
    assert np.array_equal(client.images(*off)[0], plain)


def test_a_window_holds_the_steps_that_begin_in_it(client: Client, plain: np.ndarray, guided: np.ndarray) -> None:
    first, second = (client.images({**UNIT, "guidance_start": s, "guidance_end": e})[0] for s, e in ((0, 0), (0.5, 1)))
    assert not np.array_equal(first, plain) and not np.array_equal(first, guided)
    assert not np.array_equal(second, plain) and not np.array_equal(second, first)
    assert np.array_equal(client.images({**UNIT, "guidance_end": 0.5})[0], guided)  # 2 steps begin at 0 and 0.5
    status, answer = client.draw({**UNIT, "guidance_start": 0.9})
    assert status == 422 and "0.9..1 of unit 1 holds none of 2 steps" in answer["detail"]


def test_advanced_weighting_replaces_weight_and_soft_weights(client: Client) -> None:
    ones = {**UNIT, "advanced_weighting": [1.0] * 13}
    for mode in (0, 1):
        both = client.images({**ones, "weight": 0.3, "control_mode": mode})[0], client.images(UNIT)[0]
        assert np.array_equal(*both)
    soft = [0.825 ** (12 - i) for i in range(13)]
    replaced = client.images({**UNIT, "advanced_weighting": soft, "control_mode": 2})[0].astype(int)
    assert np.abs(replaced - client.images({**UNIT, "control_mode": 2})[0]).max() <= 1  # divided and multiplied


def test_a_batch_is_its_images_one_by_one(client: Client) -> None:
    batch = client.images(UNIT, batch_size=2)
    assert len(batch) == 3
    assert np.array_equal(batch[1], client.images(UNIT, seed=4)[0])


def test_a_png_tells_what_it_was_made_from(client: Client, tmp_path: Path) -> None:
    _, answer = client.draw(UNIT, negative_prompt="blue", sampler_name="DPM++ 2M Karras")
    (tmp_path / "p.png").write_bytes(base64.b64decode(answer["images"][0]))
    text = read_png_text(tmp_path / "p.png")["parameters"]
    assert text == json.loads(answer["info"])["infotexts"][0]
    assert text.startswith("a red circle\nNegative prompt: blue\nSteps: 2, Sampler: DPM++ 2M Karras, CFG scale: 7, Se")
    assert 'ControlNet 0: "Module: canny, Model: embedded/canny [' in text


def test_an_image_to_image_unit_without_image_looks_at_the_initial_one(client: Client) -> None:
    more = {"path": "img2img", "init_images": [photo()], "denoising_strength": 1, "resize_mode": 1}
    image, shown = client.images({"module": "canny", "model": CANNY, "weight": 1}, **more)
    assert np.array_equal(client.images(UNIT, **more)[0], image)
    assert shown.any()


def test_inpaint_only_without_a_model_keeps_what_is_around(client: Client) -> None:
    shape = {"image": photo(), "mask": white(400, 600, slice(150, 450)), "weight": 1, "resize_mode": "Just Resize"}
    unit = {**shape, "module": "inpaint_only", "model": "None"}
    status, answer = client.draw(unit)
    assert status == 200, answer
    original = fit(read_image(SAMPLE_PHOTO), 128, 128, "stretch")
    drawn = serving.pixels(answer["images"][0])
    assert (drawn[:, :20] == original[:, :20]).all() and (drawn[:, 108:] == original[:, 108:]).all()
    assert (drawn[:, 50:80] != original[:, 50:80]).mean() > 0.5
    text = json.loads(answer["info"])["infotexts"][0]
    assert "Module: inpaint_only, Model: None" in text
    for other in ("canny", "none", "recolor_luminance"):
        status, answer = client.draw({**shape, "module": other, "model": "None", "enabled": True})
        assert status == 422 and answer["detail"].startswith("unit 1: it is on and has no model"), answer


def test_detect_gives_the_map_that_preprocess_gives(client: Client) -> None:
    asked = {"controlnet_module": "canny", "controlnet_threshold_a": 50, "controlnet_threshold_b": 9999}
    for name in ("controlnet_input_images", "controlnet_images"):
        status, answer = client("/controlnet/detect", {**asked, name: [photo()], "controlnet_processor_res": 256})
        assert status == 200 and answer["info"] == "Success"
        expected = preprocess("canny", base64.b64decode(photo()), low=50, resolution=256).pixels
        assert np.array_equal(serving.pixels(answer["images"][0]), expected)


def test_poses_of_people_and_of_animals_are_rendered(client: Client) -> None:
    canvas = {"canvas_width": 64, "canvas_height": 48}
    person = {"people": [{"pose_keypoints_2d": [0.5, 0.5, 1] * 18}], **canvas}
    animal = {"people": [], "animals": [[20, 20, 1, 40, 30, 1] + [0] * 45], **canvas}
    status, answer = client("/controlnet/render_openpose_json", [person, animal])
    assert status == 200
    for image in map(serving.pixels, answer["images"]):
        assert image.shape == (48, 64, 3) and image.any()
    openpose = {"people": [{"pose_keypoints_2d": [20, 20, 0.9] * 25, "face_keypoints_2d": [], "person_id": [-1]}]}
    status, answer = client("/controlnet/render_openpose_json", {"poses": [openpose], **canvas})
    assert status == 200 and serving.pixels(answer["images"][0]).shape == (48, 64, 3)
    assert client("/controlnet/render_openpose_json", person)[0] == 200
    for lacking in ([openpose], openpose, {"poses": [openpose]}, {"poses": [openpose], "canvas_width": 9}):
        status, answer = client("/controlnet/render_openpose_json", lacking)
        assert status == 422 and "canvas" in answer["detail"]
    assert client("/controlnet/render_openpose_json", []) == (200, {"info": "No pose data detected."})
    assert client("/controlnet/render_openpose_json", [{"people": 3, **canvas}])[0] == 422


def test_lists_have_what_clients_look_for(client: Client) -> None:
    def listed(path: str) -> Any:
        status, answer = client(path)
        assert status == 200
        return answer

    assert listed("/controlnet/version") == {"version": 3}
    (model,) = listed("/controlnet/model_list?update=true")["model_list"]
    assert model.startswith("embedded/canny [")
    assert listed("/controlnet/settings") == {"control_net_unit_count": 3, "control_net_max_models_num": 3}
    names = listed("/controlnet/module_list")
    assert names["module_list"][0] == "none" and {"canny", "hed"} <= set(names["module_list"])
    sliders = names["module_detail"]["canny"]["sliders"]
    assert [slider["value"] for slider in sliders] == [512, 100, 200]
    assert "softedge_hed" in listed("/controlnet/module_list?alias_names=true")["module_list"]
    canny = listed("/controlnet/control_types")["control_types"]["Canny"]
    assert (canny["default_option"], canny["default_model"], canny["model_list"]) == ("canny", model, ["None", model])
    assert "controlnet m2m" in listed("/sdapi/v1/scripts")["txt2img"]
    assert listed("/sdapi/v1/sd-models")[0]["title"] == listed("/sdapi/v1/options")["sd_model_checkpoint"] == "embedded"
    assert "Euler a" in [sampler["name"] for sampler in listed("/sdapi/v1/samplers")]
    assert client("/sdapi/v1/options", {"sd_model_checkpoint": "embedded"}) == (200, None)
    assert client("/sdapi/v1/options", {"sd_model_checkpoint": "other"})[0] == 422


def test_what_inpaints_is_not_detected_without_a_mask(client: Client) -> None:
    for module in ("inpaint", "inpaint_only", "inpaint_only+lama"):
        asked = {"controlnet_module": module, "controlnet_input_images": [photo()]}
        status, answer = client("/controlnet/detect", asked)
        assert status == 422 and "needs to know where to paint: give a mask for each image" in answer["detail"]
    asked = {"controlnet_module": "inpaint", "controlnet_input_images": [photo()], "controlnet_masks": [photo()]}
    assert client("/controlnet/detect", asked)[0] == 200


def test_control_types_of_the_webui_are_all_listed_and_what_is_not_there_yet_is_refused_by_name(client: Client) -> None:
    status, answer = client("/controlnet/control_types")
    types = answer["control_types"]
    asked = "All Canny Depth IP-Adapter Inpaint Instant-ID InstructP2P Lineart MLSD NormalMap OpenPose Recolor"
    asked += " Reference Revision Scribble Segmentation Shuffle SoftEdge SparseCtrl T2I-Adapter Tile"
    assert status == 200 and set(types) == set(asked.split())
    assert types["InstructP2P"]["module_list"] == types["Reference"]["module_list"] == ["none"]
    assert types["SparseCtrl"] == {**types["Scribble"], "model_list": ["None"], "default_model": "None"}
    for module, control_type in (
        ("ip-adapter_clip_sd15", "IP-Adapter"),
        ("ip-adapter-auto", "IP-Adapter"),
        ("instant_id_face_keypoints", "Instant-ID"),
        ("Reference_Only", "Reference"),
        ("revision_clipvision", "Revision"),
        ("clip_vision", "T2I-Adapter"),
    ):
        sentence = f"preprocessor {module!r} of control type {control_type} is not supported yet: choose another"
        status, answer = client.draw({**UNIT, "module": module})
        assert status == 422 and sentence in answer["detail"]
        detected = {"controlnet_module": module, "controlnet_input_images": [photo()]}
        status, answer = client("/controlnet/detect", detected)
        assert status == 422 and sentence in answer["detail"]


def test_models_are_listed_under_types_by_words_of_their_names() -> None:
    from controlnet_ext.sdwebui.control_types import list_control_types

    names = ["control_v11e_sd15_ip2p [1]", "v3_sd15_sparsectrl_scribble [2]", "control_v11p_sd15_canny [3]"]
    types = list_control_types(names)
    assert types["InstructP2P"]["model_list"] == ["None", names[0]]
    assert types["InstructP2P"]["default_model"] == names[0]
    assert types["SparseCtrl"]["model_list"] == ["None", names[1]]
    assert types["Canny"]["default_model"] == names[2] and types["All"]["model_list"] == ["None", *names]


def test_paths_and_addresses_are_refused_alike_whether_there_is_something_or_not(client: Client) -> None:
    hostile = [__file__, "/etc/passwd", "/etc/passwd2", "file:///etc/passwd", "..", "C:\\a.png", "\\\\host\\share\\a"]
    hostile += [f"http://127.0.0.1:{client.port}/health", "https://example.org/a.png", "ftp://h/a", "gopher://h/a"]
    asked: list[dict[str, Any]] = [{"image": h} for h in hostile]
    asked += [{"image": {"image": photo(), "mask": h}} for h in hostile]
    answers = set()
    for unit in asked:
        status, answer = client.draw({**UNIT, **unit})
        assert status == 422
        answers.add(answer["detail"])
    assert answers == {
        f"unit 1: {name} is no image in base64; paths and URLs are not read" for name in ("image", "mask")
    }
    for h in hostile:
        assert client.draw(path="img2img", init_images=[h])[0] == 422
        assert client("/controlnet/detect", {"controlnet_module": "canny", "controlnet_input_images": [h]})[0] == 422


@pytest.mark.parametrize(
    ("unit", "words"),
    [
        ({"weight": 3}, "unit 1: weight is 3, expected a number 0..2"),
        ({"weight": "heavy"}, "unit 1: weight is 'heavy', expected a number 0..2"),
        ({"model": "nowhere"}, "unit 1: unknown control model 'nowhere', the nearest are: embedded/canny ["),
        (
            {"model": "None"},
            "unit 1: it is on and has no model; choose one of /controlnet/model_list, or switch it off",
        ),
        ({"module": "cany"}, "unit 1: unknown preprocessor 'cany', the nearest are: canny"),
        ({"image": ""}, "unit 1: it is on and has no image"),
        ({"resize_mode": "sideways"}, "unit 1: resize_mode is 'sideways', expected one of 'Just Resize', "),
        ({"guidance_start": 0.9, "guidance_end": 0.1}, "unit 1: window start 0.9 lies behind its end 0.1"),
        ({"ipadapter_input": ["gASV"]}, "unit 1: ipadapter_input holds serialised objects, which are not decoded"),
        ({"advanced_weighting": [1, 2]}, "unit 1: layers has 2 entries, but the model has 13"),
        ({"input_image": "other"}, "unit 1: image and input_image are one field and differ"),
    ],
)
def test_what_a_unit_cannot_be_is_said_in_one_sentence(client: Client, unit: dict[str, Any], words: str) -> None:
    status, answer = client.draw({**UNIT, **unit})
    assert (status, answer["detail"][: len(words)]) == (422, words)


def test_what_a_request_cannot_be_is_said_in_one_sentence(client: Client) -> None:
    for more, words in (
        ({"width": 63}, "the request: width is 63, expected a"),
        ({"tiling": True}, "the request: tiling is not offered by this server"),
        ({"sampler_name": "Eulr"}, "unknown sampler 'Eulr', the nearest are: Euler"),
        ({"alwayson_scripts": {"ADetailer": {"args": []}}}, "alwayson_scripts: always on script 'ADetailer' not found"),
        ({"prompt": 5}, "prompt is int, expected text"),
        ({"batch_size": 17}, "the request: batch_size is 17, expected a number 1..16"),
    ):
        status, answer = client.draw(**more)
        assert (status, answer["detail"][: len(words)]) == (422, words)
    status, answer = client.draw(UNIT, UNIT, UNIT, UNIT)
    assert (status, answer["detail"]) == (422, "4 units, expected up to 3")
    assert client("/sdapi/v1/txt2img", b"{")[0] == 422
    assert client("/sdapi/v1/txt2img", b"{}", Content_Type="text/plain")[0] == 415
    assert client("/health", Host="evil.example")[0] == 400


def test_an_image_can_be_interrupted_and_health_answers_meanwhile(server: tuple[Client, Service]) -> None:
    client, _ = server
    answers: list[tuple[int, Any]] = []
    thread = threading.Thread(target=lambda: answers.append(client.draw(UNIT, steps=150, batch_size=16)))
    thread.start()
    wait_until(lambda: client("/sdapi/v1/progress")[1]["state"]["sampling_step"] >= 1)
    status, health = client("/health")
    assert (status, health["waiting"]) == (200, 1)
    assert client("/sdapi/v1/interrupt", {}) == (200, {})
    thread.join()
    ((status, answer),) = answers
    assert status == 200 and len(answer["images"]) == 2
    assert client("/sdapi/v1/progress")[1]["progress"] == 0


def test_clients_at_once_get_the_answers_of_one_alone(client: Client) -> None:
    detection = {"controlnet_module": "canny", "controlnet_input_images": [photo()], "controlnet_processor_res": 64}
    drawn = {"prompt": "a red circle", "steps": 1, "width": 64, "height": 64}
    unit = {"alwayson_scripts": {"ControlNet": {"args": [{**UNIT, "processor_res": 64}]}}}
    asked = [("/sdapi/v1/txt2img", {**drawn, "seed": seed, **(unit if seed % 2 else {})}) for seed in range(4)]
    asked += [("/controlnet/detect", {**detection, "controlnet_threshold_a": low}) for low in (20, 90)]
    alone = [client(path, body) for path, body in asked]
    with ThreadPoolExecutor(6) as threads:
        together = list(threads.map(lambda i: client(*asked[i % 6]), range(18)))
    assert together == alone * 3 and {status for status, _ in together} == {200}
    assert len({str(answer) for _, answer in alone}) == 6


def test_a_full_queue_and_a_missing_token_are_turned_away() -> None:
    with serving.served(queue=1, token="secret") as (client, _):
        assert client("/health")[0] == 200
        assert client("/controlnet/version")[0] == 401
        basic = "Basic " + base64.b64encode(b"anyone:secret").decode()
        assert client("/controlnet/version", Authorization="Basic x")[0] == 401
        assert client("/controlnet/version", Authorization=basic)[0] == 200
        body = {"steps": 150, "batch_size": 16, "width": 128, "height": 128}

        def draw() -> int:
            return client("/sdapi/v1/txt2img", body, Authorization="Bearer secret")[0]

        with ThreadPoolExecutor(1) as thread:
            first = thread.submit(draw)
            wait_until(lambda: client("/health")[1]["waiting"] == 1)
            assert draw() == 429
            wait_until(lambda: client("/sdapi/v1/interrupt", {}, Authorization="Bearer secret") and first.done())
            assert first.result() == 200


def test_sides_are_cut_to_multiples_of_8_as_the_webui_cuts_them(client: Client) -> None:
    cut, whole = (client.images(UNIT, width=width, height=height) for width, height in ((135, 129), (128, 128)))
    assert all(np.array_equal(one, other) for one, other in zip(cut, whole, strict=True))


def test_a_field_that_is_none_is_named_with_the_nearest_in_info(client: Client) -> None:
    unit = {**UNIT, "wieght": 0.3, "is_ui": False}
    more = {"promt": "a cat", "override_settings": {"CLIP_stop_at_last_layer": 2}, "subseed": 3, "eta": 0}
    status, answer = client.draw(unit, **more, steps=1)
    assert status == 200
    first, settings, third = json.loads(answer["info"])["warnings"]
    assert first.startswith("the request: 'promt' is no field and was ignored, the nearest are: prompt, ")
    assert settings.startswith(
        "override_settings: 'CLIP_stop_at_last_layer' is no field and was ignored, the nearest a"
    )
    assert third.startswith("unit 1: 'wieght' is no field and was ignored, the nearest are: weight, ")
    _, answer = client.draw(UNIT, steps=1)
    assert "warnings" not in json.loads(answer["info"])
    detected = client("/controlnet/detect", {"controlnet_module": "canny", "controlnet_images": [photo()], "module": 1})
    assert detected[1]["warnings"][0].startswith("the request: 'module' is no field")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            {"alwayson_scripts": {"ControlNet": {"arg": [UNIT]}}},
            "alwayson_scripts: ControlNet has no args, expected {'a",
        ),
        ({"alwayson_scripts": {"ControlNet": UNIT}}, "alwayson_scripts: ControlNet has no args, expected {'args': [un"),
        (
            {"alwayson_scripts": {"ControlNet": [{"modell": CANNY, "weight": 1}]}},
            "unit 1: 'modell' is no field and so the unit would do nothing, the nearest are: model, ",
        ),
    ],
)
def test_units_that_would_silently_do_nothing_are_refused(client: Client, more: dict[str, Any], words: str) -> None:
    status, answer = client.draw(steps=1, **more)
    assert (status, answer["detail"][: len(words)]) == (422, words)


def test_a_photo_that_is_taken_for_a_map_is_named_in_info(client: Client) -> None:
    _, answer = client.draw({**UNIT, "module": "none"}, steps=1, batch_size=2)
    (text,) = json.loads(answer["info"])["warnings"]
    assert text.startswith("the image that is taken for a map has colors, which maps of edges have not")


def test_units_in_two_places_that_differ_are_named_in_info(client: Client) -> None:
    for units, warned in (([UNIT], False), ([{**UNIT, "weight": 0.5}], True)):
        status, answer = client.draw(UNIT, steps=1, controlnet_units=units)
        assert status == 200 and ("warnings" in json.loads(answer["info"])) == warned


def test_a_run_whose_client_leaves_ends_at_its_next_step(client: Client, server: tuple[Client, Service]) -> None:
    engine = server[1].engine
    body = json.dumps({"prompt": "a red circle", "steps": 150}).encode()
    head = f"POST /sdapi/v1/txt2img HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
    with socket.create_connection(("127.0.0.1", client.port)) as leaving:
        leaving.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        wait_until(lambda: engine.progress.step)
        progress = engine.progress
    wait_until(lambda: client("/health")[1]["waiting"] == 0)
    assert 0 < progress.step < 150
    assert client.draw(steps=1)[0] == 200


def test_skip_ends_an_image_and_the_next_is_made(client: Client, server: tuple[Client, Service]) -> None:
    engine, answers = server[1].engine, list[Any]()
    thread = threading.Thread(target=lambda: answers.append(client.draw(steps=150, batch_size=2)))
    thread.start()
    wait_until(lambda: engine.progress.step)
    progress = engine.progress
    assert client("/sdapi/v1/skip", b"")[:2] == (200, {})
    wait_until(lambda: progress.image_index == 1)
    assert client("/sdapi/v1/interrupt", b"")[:2] == (200, {})
    thread.join()
    assert len(answers[0][1]["images"]) == 2

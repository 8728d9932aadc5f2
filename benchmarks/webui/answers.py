"""What the webui answers: refusals, PNG info, and the routes under /controlnet/."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from controlnet_ext.sdwebui.infotext import parse_unit_text

from .calls import IMAGE, REQUEST, Check, Webui, apart, pixels

REFUSALS: tuple[tuple[dict[str, Any], str], ...] = (
    ({"model": "absent"}, "unit 1: unknown control model 'absent'"),
    ({"model": None}, "unit 1: it is on and has no model"),
    ({"image": None}, "unit 1: it is on and has no image"),
    ({"image": "/etc/passwd"}, "unit 1: image is no image in base64"),
    ({"module": "cany"}, "unit 1: unknown preprocessor 'cany'"),
    ({"weight": 3}, "unit 1: weight is 3, expected a number 0..2"),
    ({"control_mode": "strict"}, "unit 1: control_mode is 'strict'"),
    ({"guidance_start": 0.99}, "window 0.99..1 of unit 1 holds none of 4 steps"),
    ({"advanced_weighting": [1, 1]}, "unit 1"),
    ({"ipadapter_input": "gASV"}, "unit 1: ipadapter_input holds serialised objects"),
)
UNIT_FIELDS: dict[str, Any] = {
    "weight": 0.6,
    "control_mode": "My prompt is more important",
    "hr_option": "Low res only",
    "guidance_end": 0.75,
    "resize_mode": "Resize and Fill",
    "threshold_a": 50,
    "threshold_b": 150,
}


def refusals(webui: Webui) -> Iterator[Check]:
    plain = webui.draw().first
    wrong = []
    for unit, words in REFUSALS:
        status, answer = webui.post_units(unit)
        message = str(answer.get("detail") or answer.get("errors"))
        if status != 422 or not message.startswith(f"ControlNet: {words}"):
            wrong.append(f"{unit}: {status} {message}"[:200])
    status, _ = webui.post_units({}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {})
    wrong += [] if status == 422 else [f"11 units: {status}"]
    count = len(REFUSALS) + 1
    yield Check(
        f"{count} requests that cannot be: 422 with the sentence", "; ".join(wrong) or f"{count} of {count}", not wrong
    )
    far = apart(plain, webui.draw().first)
    yield Check("plain after them", "equal" if far == 0 else f"{far} of 255 apart", far == 0)


def texts(webui: Webui) -> Iterator[Check]:
    """PNG info there and back."""
    guided = webui.draw(UNIT_FIELDS)
    _, answer = webui.post("/sdapi/v1/png-info", {"image": guided.png})
    text = answer["parameters"].get("ControlNet 0", "")
    fields = parse_unit_text(text)
    missing = [key for key, value in UNIT_FIELDS.items() if fields.get(key) != value]
    yield Check(
        "/sdapi/v1/png-info: the unit's fields",
        f"lost: {', '.join(missing)}" if missing else f"{len(UNIT_FIELDS)} of {len(UNIT_FIELDS)}",
        not missing,
    )
    start = {
        "init_images": [IMAGE],
        "denoising_strength": 0.9,
    }  # a request's text brings no image: this is the unit's
    expected = webui.draw({**UNIT_FIELDS, "image": None}, **start)
    status, answer = webui.post("/sdapi/v1/img2img", {**REQUEST, "infotext": expected.text, **start})
    again = [pixels(each) for each in answer.get("images", [])]
    same = status == 200 and apart(again[0], expected.first) == 0 and apart(again[1], expected.maps[0]) == 0
    yield Check(
        "a request of nothing but the infotext and an image", "equal" if same else f"{status}: {answer}"[:200], same
    )


def routes(webui: Webui) -> Iterator[Check]:
    models = webui.get("/controlnet/model_list?update=true")["model_list"]
    yield Check("/controlnet/model_list", ", ".join(models), bool(models))
    names = [webui.get(f"/controlnet/module_list?alias_names={word}")["module_list"] for word in ("false", "true")]
    yield Check(
        "/controlnet/module_list: names, labels",
        f"{len(names[0])}, {len(names[1])}",
        len(names[0]) == len(names[1]) > 70,
    )
    types = webui.get("/controlnet/control_types")["control_types"]
    yield Check(
        "/controlnet/control_types",
        f"{len(types)}; Canny offers {types['Canny']['default_model']}",
        types["Canny"]["default_model"] in models,
    )
    version_and_count = (
        webui.get("/controlnet/version")["version"],
        webui.get("/controlnet/settings")["control_net_unit_count"],
    )
    yield Check(
        "/controlnet/version, units of /controlnet/settings",
        f"{version_and_count[0]}, {version_and_count[1]}",
        version_and_count[0] == 3,
    )
    body = {"controlnet_module": "canny", "controlnet_input_images": [IMAGE], "controlnet_processor_res": 128}
    status, answer = webui.post("/controlnet/detect", body)
    yield Check("/controlnet/detect", f"{status}, a map of {pixels(answer['images'][0]).shape[:2]}", status == 200)
    pose = {"people": [{"pose_keypoints_2d": [32, 32, 1] * 18}], "canvas_width": 64, "canvas_height": 96}
    status, answer = webui.post("/controlnet/render_openpose_json", [pose])
    yield Check("/controlnet/render_openpose_json", f"{status}, {pixels(answer['images'][0]).shape[:2]}", status == 200)
    paths = [path for path in webui.get("/openapi.json")["paths"] if path.startswith("/controlnet/")]
    yield Check("our routes in the host's /openapi.json", f"{len(paths)} of 7", len(paths) == 7)

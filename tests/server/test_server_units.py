"""What a client's unit says, read without a server: values in every spelling, and what names stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from controlnet_ext.preprocessors.registry import find, list_preprocessors
from fakes import Pushes
from serving import photo, white

from controlnet_ext.guidance.after_steps import ColorFix, InpaintRestore
from controlnet_ext.guidance.schedule import Span
from controlnet_ext.sdwebui.build import build_unit
from controlnet_ext.sdwebui.catalog import ModelCatalog
from controlnet_ext.sdwebui.modules import describe_sliders, find_module, parameters_from_sliders
from controlnet_ext.sdwebui.units import WebuiUnit, parse_webui_unit

UNIT = {"image": white(8, 8), "module": "canny", "model": "m"}


def unit(**more: Any) -> WebuiUnit:
    found = parse_webui_unit({**UNIT, **more}, "unit 1")
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("field", "value", "name", "meant"),
    [
        ("control_mode", 2, "mode", "control"),
        ("control_mode", "1", "mode", "prompt"),
        ("control_mode", "my prompt is MORE important", "mode", "prompt"),
        ("control_mode", "", "mode", "balanced"),
        ("guessmode", True, "mode", "control"),
        ("resize_mode", 0, "fit", "stretch"),
        ("resize_mode", "Envelope (Outer Fit)", "fit", "fill"),
        ("resize_mode", "inner fit (scale to fit)", "fit", "crop"),
        ("hr_option", "High res only", "hires", "high"),
        ("union_control_type", "Hard Edge", "union_type", "edges"),
        ("union_control_type", "Unknown", "union_type", None),
        ("union_control_type", 4, "union_type", "normals"),
        ("control_mode", 2.0, "mode", "control"),
        ("control_mode", "CONTROLNET IS MORE IMPORTANT", "mode", "control"),
        ("control_mode", None, "mode", "balanced"),
        ("resize_mode", "2", "fit", "fill"),
        ("resize_mode", "Scale to Fit (Inner Fit)", "fit", "crop"),
        ("resize_mode", "Outer Fit (Shrink to Fit)", "fit", "fill"),
        ("resize_mode", "just resize", "fit", "stretch"),
        ("resize_mode", "null", "fit", "crop"),
        ("hr_option", 1, "hires", "low"),
        ("hr_option", "BOTH", "hires", "both"),
        ("enabled", "True", "model", "m"),
        ("enabled", 1, "model", "m"),
        ("module", "null", "module", None),
        ("model", "", "model", None),
        ("model", None, "model", None),
        ("processor_res", "512", "resolution", 512),
        ("pixel_perfect", "false", "pixel_perfect", False),
        ("save_detected_map", 0, "returns_map", False),
        ("weight", "0.5", "weight", 0.5),
        ("weight", None, "weight", 1),
        ("threshold_a", -1, "threshold_a", -1),
        ("lowvram", "true", "low_vram", True),
        ("low_vram", 1, "low_vram", True),
        ("model", "None", "model", None),
        ("advanced_weighting", ["1", 0.5], "layer_scales", (1.0, 0.5)),
        ("unheard_of", {"a": 1}, "weight", 1),
    ],
)
def test_values_mean_the_same_in_every_spelling(field: str, value: Any, name: str, meant: Any) -> None:
    assert getattr(unit(**{field: value}), name) == meant


@pytest.mark.parametrize("nothing", [None, "", "None", "none", "null", [], {"image": ""}, [{"image": None}]])
def test_a_unit_that_says_nothing_is_off_unless_it_says_that_it_is_on(nothing: Any) -> None:
    silent = {"image": nothing, "module": "none", "model": "None"}
    assert parse_webui_unit(silent, "unit 1") is None
    assert parse_webui_unit({**silent, "module": "canny"}, "unit 1") is not None
    assert parse_webui_unit({**silent, "enabled": True}, "unit 1") is not None
    assert parse_webui_unit({**UNIT, "enabled": False}, "unit 1") is None


def test_images_come_as_text_with_masks_in_objects_in_pairs_and_several_at_once() -> None:
    ways = [{"image": white(8, 8), "mask": white(8, 8, slice(4))}, [white(8, 8), white(8, 8, slice(4))]]
    for way in (*ways, [ways[0]]):
        ((image, mask),) = unit(image=way).images
        assert mask is not None and mask[:, :4].all() and not mask[:, 4:].any() and not image.any()
    ((_, mask),) = unit(mask_image=white(8, 8, slice(8))).images
    assert mask is not None and mask.all()
    assert len(unit(image=[{"image": photo()}, {"image": white(8, 8)}]).images) == 2


@pytest.mark.parametrize(
    "image", [5, True, ["a", "b", "c"], {"image": 5}, "a" * 5, "aGVsbG8=", "data:text/html;base64,aGVsbG8="]
)
def test_what_is_no_image_is_refused(image: Any) -> None:
    with pytest.raises(ValueError, match=r"^unit 1: image is no image in base64; paths and URLs are not read$"):
        unit(image=image)


def test_steps_act_that_begin_in_the_window_with_both_ends() -> None:
    def steps(start: float, end: float) -> list[int]:
        window = unit(guidance_start=start, guidance_end=end).window
        return [i for i in range(20) if window.contains(Span(i / 20, (i + 1) / 20))]

    assert steps(0, 1) == list(range(20))
    assert steps(0.2, 0.8) == list(range(4, 17))
    assert steps(0, 0) == [0]
    assert steps(1, 1) == []


@pytest.mark.parametrize(
    ("name", "found"),
    [("softedge_hed", "hed"), ("Depth", "depth_midas"), ("fake_scribble", "scribble_hed"), ("CANNY", "canny")],
)
def test_modules_are_found_by_name_label_and_old_name(name: str, found: str) -> None:
    entry = find_module(name)
    assert entry is not None and entry.name == found
    assert find_module("None") is None


def test_sliders_set_parameters_and_outside_of_their_range_leave_the_default() -> None:
    canny, invert = find_module("canny"), find_module("invert")
    assert canny and invert
    assert parameters_from_sliders(canny, 256, 50.4, 9999) == {"resolution": 256, "low": 50}
    assert parameters_from_sliders(canny, -1, -1, -1) == {"resolution": 512}
    assert parameters_from_sliders(canny, 256, 200, 100) == {"resolution": 256, "low": 100, "high": 200}
    assert parameters_from_sliders(canny, 256, 250, -1) == {"resolution": 256, "low": 200, "high": 250}
    assert parameters_from_sliders(invert, 256, 1, 1) == {}
    assert [slider["name"] for slider in describe_sliders(canny)] == ["Resolution", "Low", "High"]


def test_a_slider_that_is_outside_of_its_range_is_logged_unless_it_is_left_to_the_preprocessor(caplog: Any) -> None:
    canny = find_module("canny")
    assert canny
    parameters_from_sliders(canny, -1, -1, 100)
    assert not caplog.records
    parameters_from_sliders(canny, -100, -100.0, 1e9)
    assert caplog.messages == [
        "[canny.processor_res] Invalid value(-100), using default value 512.",
        "[canny.threshold_a] Invalid value(-100.0), using default value 100.",
        "[canny.threshold_b] Invalid value(1000000000.0), using default value 200.",
    ]


def test_every_slider_stands_at_a_number_in_its_range() -> None:
    for entry in list_preprocessors():
        for slider in describe_sliders(entry):
            assert slider["min"] <= slider["value"] <= slider["max"], entry.name


def test_control_models_are_listed_with_the_webuis_hash_and_found_without_it(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "My.Model.safetensors").write_bytes(b"x" * (2**20 + 3))
    (tmp_path / "notes.txt").write_text("no model")
    shelf = ModelCatalog([str(tmp_path)], "other")
    # sha256 of the three bytes after the first MiB
    assert shelf.names == ["My.Model [cd2eb083]"]
    for name in ("my.model", "MY.MODEL [cd2eb083]", "My.Model [00000000]", " My.Model"):
        assert shelf.resolve_name(name) == shelf.names[0]
    with pytest.raises(ValueError, match=r"^unknown control model .*My.Model.safetensors', the nearest are: My"):
        shelf.resolve_name("../sub/My.Model.safetensors")


def test_reading_a_unit_leaves_what_was_sent_as_it_was() -> None:
    sent = {**UNIT, "advanced_weighting": [1, 2]}
    kept = {**sent, "advanced_weighting": [1, 2]}
    assert isinstance(unit(**sent).images[0][0], np.ndarray)
    assert sent == kept


def test_what_a_module_does_after_each_step_is_the_units() -> None:
    mask = white(8, 8, slice(0, 4))

    def after(**more: Any) -> Any:
        return build_unit(unit(**more), "m", Pushes(), lambda name: find(name).load(), (64, 64)).unit.after

    assert after(module="tile_colorfix+sharp", threshold_a=4, threshold_b=0.5) == ColorFix(4, 0.5)
    assert after(module="tile_colorfix", threshold_a=-1) == ColorFix(8)
    assert after(module="inpaint_only", mask=mask) == InpaintRestore()
    assert after(module="inpaint_global_harmonious", mask=mask) is None and after() is None
    with pytest.raises(ValueError, match="inpaint_only changes what an inpaint mask covers, and the unit has none"):
        after(module="inpaint_only")


def test_alpha_lies_over_white_in_an_image_and_is_a_mask_by_itself() -> None:
    painted = np.zeros((4, 4, 4), np.uint8)
    painted[:2] = 9, 9, 9, 255
    ((image, mask),) = unit(image={"image": painted, "mask": painted}).images
    assert mask is not None
    assert (image[:2] == 9).all() and (image[2:] == 255).all()
    assert (mask[:2] == 255).all() and (mask[2:] == 0).all()

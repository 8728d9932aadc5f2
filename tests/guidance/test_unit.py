"""A unit refuses what makes no sense, in one line with the value."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fakes import GREY, Pushes

from controlnet_ext import ControlMap, PerSample, Unit, Window
from controlnet_ext.files.image_writer import write_image
from controlnet_ext.guidance.hints import HintImages

MAP = ControlMap(GREY, "edges")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": "canny.safetensors"}, "model 'canny.safetensors' is no control model; load(path) gives one"),
        ({"model": Pushes}, "model <class 'fakes.Pushes'> is no control model; load(path) gives one"),
        ({"image": None}, "image None is NoneType, expected a path, an image or a ControlMap"),
        ({"image": 3}, "image 3 is int, expected a path, an image or a ControlMap"),
        (
            {"image": [GREY]},
            "a list of images: PerSample([...]) has one for each of the batch, a tuple has images that act together",
        ),
        ({"image": ()}, "image () is an empty tuple, expected images that act together"),
        ({"image": (GREY, 3)}, "image 3 is int, expected a path, an image or a ControlMap"),
        ({"inpaint": 1.5}, "image 1.5 is float, expected a path, an image or a ControlMap"),
        ({"weight": 2.1}, "weight 2.1 is outside -2..2"),
        ({"weight": -3}, "weight -3 is outside -2..2"),
        ({"weight": math.nan}, "weight nan is outside -2..2"),
        ({"weight": math.inf}, "weight inf is outside -2..2"),
        ({"weight": True}, "weight True is bool, expected a number -2..2"),
        ({"weight": None}, "weight None is NoneType, expected a number -2..2"),
        ({"weight": "strong"}, 'weight \'strong\': expected "weight@fraction, …" such as "0.2@0, 1@0.3"'),
        ({"window": (0, 1)}, "window (0, 1) is tuple, expected Window(start, end)"),
        ({"mode": "Balanced"}, "mode 'Balanced' is none of: balanced, prompt, control"),
        ({"fit": "pad"}, "fit 'pad' is none of: crop, stretch, fill"),
        ({"hires": "second"}, "hires 'second' is none of: both, low, high"),
        ({"low_vram": 1}, "low_vram 1 is int, expected true or false"),
        ({"layers": 3}, "layers 3, expected a list of numbers"),
        ({"layers": []}, "layers [], expected a list of numbers"),
        ({"layers": [1.0, math.nan]}, "layers holds nan, expected numbers"),
        ({"layers": [1.0, "2"]}, "layers holds '2', expected numbers"),
        ({"region": [[1.0]]}, "region is list, expected an array (H, W) of 0..1, or a mask"),
        ({"region": 5}, "region: an image is a path, bytes, a PIL image, an array or a tensor, not int"),
        ({"region": np.ones((2, 2, 7))}, "region: an image array of shape (2, 2, 7)"),
        ({"region": np.ones(3)}, "region has shape (3,) and type float64, expected (H, W) of 0..1"),
        ({"region": np.ones((0, 3))}, "region has shape (0, 3) and type float64, expected (H, W) of 0..1"),
        ({"region": np.full((2, 2), 255)}, "region holds values 255..255, expected 0..1"),
        ({"region": np.full((2, 2), np.nan)}, "region holds values nan..nan, expected 0..1"),
        ({"parameters": {"low": 1}}, "parameters low without a preprocessor"),
        ({"parameters": 5}, "parameters 5 is no mapping of names to values"),
        ({"preprocessor": "cany"}, "unknown preprocessor 'cany', the nearest are: canny"),
        ({"preprocessor": "canny", "parameters": {"lw": 1}}, "canny has no parameter 'lw', the nearest are: low"),
        ({"preprocessor": "canny", "parameters": {"low": 999}}, "canny: low 999 is outside 0..255"),
        ({"preprocessor": "canny", "image": MAP}, "preprocessor 'canny' on a ControlMap, which is a map already"),
        (
            {"preprocessor": "canny", "image": PerSample([GREY, MAP])},
            "preprocessor 'canny' on a ControlMap, which is a map already",
        ),
    ],
)
def test_nonsense_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError)) as refused:
        Unit(**{"model": Pushes(), "image": GREY, **given})
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("images", "message"),
    [(GREY, "PerSample of ndarray, expected a list"), ([], "PerSample of no images"), ([[GREY]], "a list of images")],
)
def test_nonsense_for_each_image_is_refused(images: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        PerSample(images)


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (0.5, 0.2, "window start 0.5 lies behind its end 0.2"),
        (-0.1, 1, "window start -0.1 is outside 0..1"),
        (0, 1.5, "window end 1.5 is outside 0..1"),
        (0, math.nan, "window end nan is outside 0..1"),
        ("0", 1, "window start '0' is str, expected a number 0..1"),
        (False, 1, "window start False is bool, expected a number 0..1"),
    ],
)
def test_a_window_that_is_none_is_refused(start: Any, end: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Window(start, end)


def test_a_unit_keeps_copies_of_what_may_change() -> None:
    region, layers, parameters = np.ones((2, 2)), [1.0, 2.0], {"low": 50}
    unit = Unit(Pushes(), GREY, region=region, layers=layers, preprocessor="canny", parameters=parameters)
    region[:], layers[0], parameters["low"] = 0, 9.0, 60
    assert unit.region is not None and unit.region.min() == 1
    assert unit.layers == (1.0, 2.0) and unit.parameters == {"low": 50}


def test_missing_and_broken_files_are_told_when_maps_are_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        HintImages(Unit(Pushes(), tmp_path / "no.png"))
    (tmp_path / "bad.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match="is none of"):
        HintImages(Unit(Pushes(), str(tmp_path / "bad.png")))


def test_a_map_is_fitted_to_the_size_of_the_image(tmp_path: Path) -> None:
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, 20:] = 200
    write_image(tmp_path / "wide.png", wide)
    for image in (wide, tmp_path / "wide.png", ControlMap(wide, "edges")):
        (crop,) = HintImages(Unit(Pushes(), image)).fit_to_size(20, 20)
        assert crop.shape == (1, 20, 20, 3) and crop[0, 0, :, 0].tolist() == [0] * 10 + [200] * 10
    (stretched,) = HintImages(Unit(Pushes(), wide, fit="stretch")).fit_to_size(20, 20)
    assert stretched[0, 0, :, 0].tolist() == [0] * 10 + [200] * 10
    (filled,) = HintImages(Unit(Pushes(), wide, fit="fill")).fit_to_size(40, 40)
    assert filled.shape == (1, 40, 40, 3)


def test_the_preprocessor_makes_the_map() -> None:
    photo = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    edges = cv2.cvtColor(cv2.Canny(photo, 50, 200), cv2.COLOR_GRAY2RGB)
    (made,) = HintImages(Unit(Pushes(), photo, preprocessor="canny", parameters={"low": 50})).fit_to_size(64, 64)
    assert np.array_equal(made[0], edges)


def test_resolution_match_makes_a_map_as_fine_as_the_image_needs() -> None:
    photo = cv2.resize(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8), (256, 256))
    unit = Unit(Pushes(), photo, preprocessor="canny", parameters={"resolution": "match"})
    assert np.array_equal(
        HintImages(unit).fit_to_size(128, 128)[0], HintImages(_at(photo, 128)).fit_to_size(128, 128)[0]
    )
    assert not np.array_equal(
        HintImages(unit).fit_to_size(128, 128)[0], HintImages(_at(photo, 256)).fit_to_size(128, 128)[0]
    )


def _at(photo: np.ndarray, resolution: int) -> Unit:
    return Unit(Pushes(), photo, preprocessor="canny", parameters={"resolution": resolution})


def test_an_inpainting_hint_is_minus_one_where_to_repaint() -> None:
    image, mask = np.full((4, 4, 3), 51, np.uint8), np.zeros((4, 4, 3), np.uint8)
    mask[:2] = 255
    (hint,) = HintImages(Unit(Pushes(), image, inpaint=mask)).fit_to_size(4, 4)
    assert hint.dtype == np.float32 and hint.shape == (1, 3, 4, 4)
    assert np.array_equal(hint[0, 1], np.float32([[-1] * 4] * 2 + [[0.2] * 4] * 2))


def test_an_inpainting_mask_follows_the_image() -> None:
    image, mask = np.zeros((4, 8, 3), np.uint8), np.zeros((4, 8, 3), np.uint8)
    mask[:, 4:] = 255
    (hint,) = HintImages(Unit(Pushes(), image, inpaint=mask)).fit_to_size(4, 4)
    assert hint[0, 0, 0].tolist() == [0, 0, -1, -1]
    with pytest.raises(ValueError, match="inpaint mask of 4x4 pixels, but the image is 8x4"):
        HintImages(Unit(Pushes(), image, inpaint=np.zeros((4, 4), np.uint8)))


def test_importing_loads_no_torch() -> None:
    code = "import sys, controlnet_ext; print(sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_resolution_is_given_to_the_unit_or_among_its_parameters():
    from dataclasses import replace

    for value in ("match", 512):
        unit = Unit(Pushes(), GREY, preprocessor="canny", resolution=value, parameters={"low": 5})
        assert unit.parameters == {"low": 5, "resolution": value}
        assert replace(unit, weight=0.5).parameters == unit.parameters
    for given, reason in (
        ({"preprocessor": "canny", "resolution": 32}, "canny: resolution 32 is outside 64..2048"),
        ({"preprocessor": "canny", "resolution": "mach"}, "canny: resolution 'mach' is str"),
        ({"resolution": "match"}, "resolution 'match' without a preprocessor that works at it"),
        (
            {"preprocessor": "canny", "resolution": 64, "parameters": {"resolution": 128}},
            "resolution is given twice, 64 and in parameters 128",
        ),
    ):
        with pytest.raises((ValueError, TypeError), match=reason):
            Unit(Pushes(), GREY, **given)

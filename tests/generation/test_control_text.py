"""What `--control` means."""

import numpy as np
import pytest

from controlnet_ext import ControlMap, Window
from controlnet_ext.generation.options import parse_settings, parse_unit, split_unit_text
from controlnet_ext.generation.recipe import ModelRef


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("canny", ("canny", {})),
        (" canny , low = 50 ", ("canny", {"low": "50"})),
        ("none,image=a b.png", ("none", {"image": "a b.png"})),
        ("""x,model="a,b",image='c, "d"'""", ("x", {"model": "a,b", "image": 'c, "d"'})),
        ("x,image=it's.png,model=C:\\nets\\c.pth", ("x", {"image": "it's.png", "model": "C:\\nets\\c.pth"})),
        ("x,image=a=b.png,model=", ("x", {"image": "a=b.png", "model": ""})),
    ],
)
def test_parts_are_separated_by_commas_outside_quotes(text: str, expected: tuple[str, dict[str, str]]) -> None:
    assert split_unit_text(text) == expected


@pytest.mark.parametrize(
    "text", ["", ",", "a=b", "canny,low", "canny,", 'canny,"', 'canny,model="a', 'canny,model="a"b']
)
def test_what_is_not_that_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        split_unit_text(text)


def test_settings_are_a_units() -> None:
    assert parse_settings({"weight": ".8", "window": "0...6", "mode": "x", "layers": "1, .5", "fit": "crop"}) == {
        "weight": 0.8,
        "window": Window(0, 0.6),
        "mode": "x",
        "layers": [1, 0.5],
    }
    assert parse_settings({"weight": "0@0, 1@1"}) == {"weight": "0@0, 1@1"}


def test_a_unit_has_its_image_or_that_of_all_and_its_model_unloaded() -> None:
    made = parse_unit("Canny,model=m.pth,low=50,resolution=match", "all.png")
    assert (made.model, made.image, made.preprocessor) == (ModelRef("m.pth"), "all.png", "canny")
    assert made.parameters == {"low": 50, "resolution": "match"}
    own = parse_unit("none,model=m.pth,image=own.png", "all.png")
    assert (own.image, own.preprocessor, own.parameters) == ("own.png", None, {})


def test_the_kind_of_a_map_may_be_said(tmp_path) -> None:
    from controlnet_ext.files.image_writer import write_image

    pixels = np.full((4, 4, 3), 7, np.uint8)
    write_image(tmp_path / "map.png", pixels)
    image = parse_unit(f"none,model=m,image={tmp_path / 'map.png'},kind=soft edges").image
    assert isinstance(image, ControlMap) and image.kind == "soft edges"
    np.testing.assert_array_equal(image.pixels, pixels)
    assert parse_unit("none,model=m,kind=depth", str(tmp_path / "map.png")).image.kind == "depth"
    for text, message in (
        (f"none,model=m,image={tmp_path / 'map.png'},kind=canny", "map kind 'canny' is none of: edges"),
        ("canny,model=m,image=i,kind=depth", "kind 'depth' of a map that canny makes, whose maps are 'edges'"),
        ("canny,model=m,image=i.png,strength=.5", "'strength' is unknown to canny; it is called weight here"),
        ("canny,model=m,image=i.png,threshold_a=5", "'threshold_a' is unknown to canny; it is called low here"),
        ("canny,model=m,image=i.png,guidance_end=.5", "'guidance_end' is unknown to canny; it is called window here"),
        ("none,model=m,image=missing.png,kind=depth", "'missing.png' does not exist"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            parse_unit(text)


def test_a_region_is_grey(tmp_path) -> None:
    from controlnet_ext.files.image_writer import write_image

    write_image(tmp_path / "region.png", np.uint8([[0, 51, 255]]))
    region = parse_unit(f"none,model=m,image=i,region={tmp_path / 'region.png'}").region
    np.testing.assert_allclose(region, [[0, 0.2, 1]], atol=1e-6)

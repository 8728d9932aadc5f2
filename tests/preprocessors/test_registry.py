"""A preprocessor is one decorated function or class: names, ranges and errors follow from its signature."""

import subprocess
import sys
from typing import Annotated

import numpy as np
import PIL.Image
import pytest
from controlnet_ext.preprocessors import ControlMap, Range, find, list_preprocessors, preprocess, preprocessor, registry

IMAGE = np.zeros((4, 6, 3), np.uint8)


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    list_preprocessors()
    monkeypatch.setattr(registry, "_specs_by_name", dict(registry._specs_by_name))


def test_every_file_of_the_package_is_found_without_a_table():
    assert {"canny", "invert", "lineart_standard", "scribble_xdog", "threshold"} <= {
        e.name for e in list_preprocessors()
    }
    names = [entry.name for entry in list_preprocessors()]
    assert names == sorted(set(names))


def test_a_signature_becomes_parameters():
    low, high = find("canny").parameters
    assert (low.name, low.type, low.default, low.range) == ("low", int, 100, Range(0, 255))
    assert (high.name, high.type, high.default, high.range) == ("high", int, 200, Range(0, 255))


def test_a_number_may_be_none_where_its_default_is():
    @preprocessor("optional", makes="other")
    def optional(image: np.ndarray, steps: Annotated[int, Range(1, 9)] | None = None) -> np.ndarray:
        return np.full_like(image, 255 if steps is None else steps)

    assert preprocess("optional", IMAGE).pixels.min() == preprocess("optional", IMAGE, steps=None).pixels.min() == 255
    assert preprocess("optional", IMAGE, steps=np.int64(7)).pixels.max() == 7
    with pytest.raises(ValueError, match=r"optional: steps 0 is outside 1\.\.9"):
        preprocess("optional", IMAGE, steps=0)


def test_what_is_masked_gets_the_mask_as_a_fourth_channel():
    @preprocessor("painter", makes="inpaint", needs_mask=True)
    def painter(image: np.ndarray, red: Annotated[int, Range(0, 255)] = 9) -> np.ndarray:
        return np.where(image[..., 3:] > 127, (red, 0, 0), image[..., :3]).astype(np.uint8)

    mask = np.zeros((4, 6), bool)
    mask[1, 2] = True
    made = preprocess("painter", IMAGE + 50, mask=mask, red=200)
    assert made.pixels[1, 2].tolist() == [200, 0, 0] and (made.pixels[~mask] == 50).all()
    sized = preprocess("painter", IMAGE + 50, mask=mask, resolution=64)  # the mask is resized with the image
    assert sized.pixels[24, 40].tolist() == [9, 0, 0] and sized.pixels.shape == (64, 96, 3)
    both = find("painter").load().run_batch([IMAGE, IMAGE + 1], masks=[mask, ~mask])
    assert [one.pixels.sum() for one in both] == [9, 9 * 23 + 3]


@pytest.mark.parametrize(
    "name", ["invert", "INVERT", "invert (from white bg & black line)", "Invert (From White BG & Black Line)"]
)
def test_name_and_label_are_found_in_any_case(name):
    assert find(name).name == "invert"
    assert preprocess(name, IMAGE).pixels.min() == 255


@pytest.mark.parametrize(("name", "meant"), [("cany", "canny"), ("thresh", "threshold"), ("CANNI", "canny")])
def test_an_unknown_name_is_refused_with_the_nearest(name, meant):
    with pytest.raises(ValueError, match=rf"^unknown preprocessor '{name}', the nearest are: {meant}, [\w+]+, [\w+]+$"):
        preprocess(name, IMAGE)


def test_the_parameter_of_a_peer_is_named_as_it_is_called_here():
    for name, meant in {"low_threshold": "low", "threshold_a": "low", "threshold_b": "high"}.items():
        with pytest.raises(ValueError, match=f"^canny has no parameter '{name}'; it is called {meant} here$"):
            preprocess("canny", IMAGE, **{name: 5})


def test_an_unknown_parameter_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"^canny has no parameter 'lo', the nearest are: low, "):
        preprocess("canny", IMAGE, lo=50)
    with pytest.raises(ValueError, match=r"^invert has no parameter 'low', the nearest are: resolution$"):
        preprocess("invert", IMAGE, low=50)


@pytest.mark.parametrize(
    ("name", "parameter", "value", "error", "reason"),
    [
        ("canny", "low", -1, ValueError, "canny: low -1 is outside 0..255"),
        ("canny", "high", 256, ValueError, "canny: high 256 is outside 0..255"),
        ("canny", "low", 10**400, ValueError, "outside 0..255"),
        ("canny", "low", True, TypeError, "canny: low True is bool, expected a whole number 0..255"),
        ("canny", "low", np.True_, TypeError, "bool"),
        ("canny", "low", 50.0, TypeError, "low 50.0 is float, expected a whole number"),
        ("canny", "low", "50", TypeError, "low '50' is str"),
        ("canny", "low", None, TypeError, "low None is NoneType"),
        ("canny", "low", np.zeros((9, 9)), TypeError, "ndarray, expected a whole number 0..255"),
        ("threshold", "threshold", float("nan"), ValueError, "threshold nan is outside 0..255"),
        ("threshold", "threshold", float("inf"), ValueError, "outside"),
        ("threshold", "threshold", 10**400, ValueError, "outside"),
        ("threshold", "threshold", True, TypeError, "expected a number 0..255"),
        ("canny", "resolution", 63, ValueError, "canny: resolution 63 is outside 64..2048"),
        ("canny", "resolution", 2049, ValueError, "outside 64..2048"),
        ("canny", "resolution", 512.0, TypeError, "float"),
    ],
)
def test_a_value_out_of_range_or_type_is_refused_in_one_line(name, parameter, value, error, reason):
    with pytest.raises(error, match=reason) as caught:
        preprocess(name, IMAGE, **{parameter: value})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_numpy_numbers_are_numbers():
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    expected = preprocess("canny", image, low=3, high=250).pixels
    np.testing.assert_array_equal(preprocess("canny", image, low=np.uint8(3), high=np.int64(250)).pixels, expected)
    assert preprocess("threshold", image, threshold=np.float32(7)).pixels.any()


def test_parameters_are_checked_before_the_image_is_read():
    with pytest.raises(ValueError, match="low 300"):
        preprocess("canny", "no such file.png", low=300)
    with pytest.raises(FileNotFoundError, match=r"no such file\.png"):
        preprocess("canny", "no such file.png", low=30)


@pytest.mark.parametrize("name", [None, 5, b"canny"])
def test_a_name_is_text(name):
    with pytest.raises(TypeError, match="name is text"):
        preprocess(name, IMAGE)


def test_text_is_parsed_as_the_declared_type():
    @preprocessor("fake", makes="other")
    def fake(image, n: Annotated[int, Range(0, 9)] = 1, x: Annotated[float, Range(0, 1)] = 0.5, safe: bool = False): ...

    parsed = find("fake").parse({"n": "7", "x": "1", "safe": "TRUE", "resolution": "512"})
    assert parsed == {"n": 7, "x": 1.0, "safe": True, "resolution": 512}
    assert [type(value) for value in parsed.values()] == [int, float, bool, int]
    for name, text, expected in [
        ("n", "7.0", "a whole number 0..9"),
        ("n", "", "a whole number 0..9"),
        ("x", "half", "a number 0..1"),
        ("safe", "1", "true or false"),
        ("resolution", "big", "a whole number 64..2048"),
    ]:
        with pytest.raises(ValueError, match=f"^fake: {name} '{text}': expected {expected}$"):
            find("fake").parse({name: text})
    with pytest.raises(ValueError, match="n 10 is outside"):
        find("fake").parse({"n": "10"})


def test_a_class_is_made_once_and_called_for_each_image():
    made = []

    @preprocessor("fake", makes="depth", label="Fake Depth", weights=("a file",))
    class Fake:
        def __init__(self, device, library):
            made.append((device, library))

        def __call__(self, image, near: Annotated[int, Range(0, 255)] = 9):
            return np.full(image.shape[:2], near, np.uint8)

    entry = find("fake depth")
    assert entry.weights == ("a file",) and [p.name for p in entry.parameters] == ["near"] and not made
    run = entry.load("meta", "library")
    results = [run(IMAGE), run(IMAGE, near=3)]
    assert made == [("meta", "library")]
    assert [(r.kind, r.pixels.shape, int(r.pixels.max())) for r in results] == [
        ("depth", (4, 6, 3), 9),
        ("depth", (4, 6, 3), 3),
    ]


def test_a_class_that_takes_stacks_gets_images_of_one_size_together():
    sizes = []

    @preprocessor("fake", makes="depth", batched=True)
    class Fake:
        def __init__(self, device, library): ...

        def __call__(self, images, near: Annotated[int, Range(0, 255)] = 9):
            sizes.append(images.shape)
            return images.max(axis=3) + np.uint8(near)

    run = find("fake").load()
    large, small = np.zeros((8, 9, 3), np.uint8), np.full((4, 6, 3), 7, np.uint8)
    results = run.run_batch([IMAGE, large, small], near=3)
    assert sizes == [(2, 4, 6, 3), (1, 8, 9, 3)]
    assert [(r.pixels.shape, int(r.pixels.max())) for r in results] == [((4, 6, 3), 3), ((8, 9, 3), 3), ((4, 6, 3), 10)]
    assert run(small).pixels.max() == 16 and run.run_batch([]) == []
    assert [r.pixels.shape for r in find("invert").load().run_batch([small, large])] == [(4, 6, 3), (8, 9, 3)]


def test_values_come_with_the_pixels_and_are_cut_with_them():
    @preprocessor("fake", makes="depth")
    def fake(image):
        return image, np.ones(image.shape[:2])

    result = preprocess("fake", IMAGE, resolution=64)
    assert result.values.shape == result.pixels.shape[:2] == (64, 96)


def test_what_a_resolution_adds_is_cut_off_again():
    @preprocessor("fake", makes="other")
    def fake(image):
        assert image.shape == (64, 128, 3)
        image[:, 96:] = 255
        return image

    result = preprocess("fake", IMAGE, resolution=64)
    assert result.pixels.shape == (64, 96, 3) and not result.pixels.any()
    assert result.pixels.flags["C_CONTIGUOUS"]


def test_a_strip_at_a_resolution_is_refused_before_memory_is_asked_for():
    with pytest.raises(ValueError, match="64 megapixels"):
        preprocess("canny", np.zeros((3, 10000, 3), np.uint8), resolution=2048)


@pytest.mark.parametrize("taken", ["canny", "CANNY", "invert (from white bg & black line)"])
def test_a_name_is_given_once(taken):
    before = list_preprocessors()
    with pytest.raises(ValueError, match="is entered already, by controlnet_ext"):
        preprocessor("fake", makes="edges", label=taken)(lambda image: image)
    with pytest.raises(ValueError, match="is entered already, by controlnet_ext"):
        preprocessor(taken, makes="edges")(lambda image: image)
    assert list_preprocessors() == before


def test_a_signature_that_cannot_be_read_is_refused():
    def no_range(image, low: int = 1): ...
    def no_default(image, low: Annotated[int, Range(0, 1)]): ...
    def outside(image, low: Annotated[int, Range(0, 1)] = 2): ...
    def text(image, mode: str = "a"): ...
    def bare(image, low=1): ...

    before = list_preprocessors()
    for function, error in (
        (no_range, TypeError),
        (no_default, TypeError),
        (outside, ValueError),
        (text, TypeError),
        (bare, TypeError),
    ):
        with pytest.raises(error):
            preprocessor("fake", makes="edges")(function)
    with pytest.raises(ValueError, match="map kind 'edge' is none of: edges"):
        preprocessor("fake", makes="edge")(lambda image: image)
    assert list_preprocessors() == before


def test_anything_but_a_map_is_refused():
    @preprocessor("fake", makes="other")
    def fake(image):
        return image.astype(np.float32)

    with pytest.raises(ValueError, match="fake returned float32 of shape"):
        preprocess("fake", IMAGE)


def test_the_image_may_be_anything_the_reader_takes(tmp_path):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for source in (
        pixels,
        Image.fromarray(pixels),
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        (tmp_path / "a.png").read_bytes(),
    ):
        result = preprocess("invert", source)
        assert isinstance(result, ControlMap)
        np.testing.assert_array_equal(result.pixels, 255 - pixels)


def test_listing_and_running_canny_load_no_torch():
    code = """
import sys, numpy
from controlnet_ext import preprocessors
preprocessors.list_preprocessors()
preprocessors.preprocess("canny", numpy.zeros((9, 9, 3), numpy.uint8))
print(sorted({"torch", "diffusers", "transformers", "PIL"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


RESULTS = {
    "floats": (lambda image: image[..., 0] / 255, "fake returned float64 of shape (4, 6), expected an array (H, W)"),
    "float32": (lambda image: image.astype(np.float32), "fake returned float32 of shape (4, 6, 3), expected an array"),
    "bools": (lambda image: image[..., 0] > 9, "of bools: x.astype(np.uint8) * 255"),
    "integers": (lambda image: image.astype(np.int64), "fake returned int64 of shape (4, 6, 3), expected"),
    "nothing": (lambda image: None, "fake returned nothing, expected an array (H, W) or (H, W, 3) of uint8"),
    "PIL": (lambda image: PIL.Image.fromarray(image), "fake returned Image <PIL.Image.Image image mode=RGB size"),
    "a list": (lambda image: image.tolist(), "fake returned list [[[0, 0, 0], [0, 0, 0]"),
    "three": (lambda image: (image, 1, 2), "fake returned tuple (array("),
    "alpha": (lambda image: np.zeros((4, 6, 4), np.uint8), "fake returned uint8 of shape (4, 6, 4), expected"),
    "one channel": (lambda image: image[..., :1], "fake returned uint8 of shape (4, 6, 1), expected"),
    "a stack": (lambda image: image[None], "fake returned uint8 of shape (1, 4, 6, 3), expected"),
    "16 bit color": (lambda image: image.astype(np.uint16), "fake returned uint16 of shape (4, 6, 3), expected"),
    "a number": (lambda image: 5, "fake returned int 5, expected"),
    "no pixels": (lambda image: image[:, :0], "fake returned an array of shape (4, 0, 3), which has no pixels"),
    "a rendering": (lambda image: lambda height, width: image / 255, "fake returned float64 of shape (4, 6, 3)"),
}


@pytest.mark.parametrize("kind", RESULTS)
@pytest.mark.parametrize("batched", [False, True])
def test_a_result_that_is_no_map_is_named_in_one_sentence(kind, batched):
    result, reason = RESULTS[kind]

    def make(images):
        return [result(image) for image in images] if batched else result(images)

    preprocessor("fake", makes="other", batched=batched)(make)
    with pytest.raises((TypeError, ValueError)) as caught:
        preprocess("fake", IMAGE)
    assert reason in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 250


def test_a_map_of_another_size_is_cut_where_its_image_is():
    @preprocessor("fake", makes="tile")
    def fake(image, shrink: bool = False):
        image[:, 96:] = 255  # what a resolution adds
        return image[::4, ::4] if shrink else np.repeat(np.repeat(image, 2, 0), 2, 1)

    assert preprocess("fake", IMAGE).pixels.shape == (8, 12, 3)
    for shrink, shape in ((False, (128, 192, 3)), (True, (16, 24, 3))):
        made = preprocess("fake", IMAGE, resolution=64, shrink=shrink).pixels
        assert made.shape == shape and not made.any()


@pytest.mark.parametrize("name", ["two words", "a/b", "a,b", "", "..", "none", "canny\n"])
def test_a_name_that_no_file_or_command_could_have_is_refused(name):
    before = list_preprocessors()
    with pytest.raises(ValueError, match=r"a preprocessor called .*: expected letters, digits"):
        preprocessor(name, makes="edges")(lambda image: image)
    assert list_preprocessors() == before


def test_a_parameter_that_every_preprocessor_has_is_refused():
    def sized(image, resolution: Annotated[int, Range(1, 9)] = 3): ...

    with pytest.raises(ValueError, match="fake: every preprocessor has a resolution of its own"):
        preprocessor("fake", makes="edges")(sized)


def test_a_preprocessor_of_ones_own_is_replaced_only_when_it_is_asked_for():
    preprocessor("fake", makes="other", aliases=("false",))(lambda image: image + 1)
    with pytest.raises(ValueError, match=r"'fake' is entered already, by test_registry: .* replace=True"):
        preprocessor("fake", makes="other")(lambda image: image + 2)
    assert preprocess("false", IMAGE).pixels.max() == 1
    preprocessor("fake", makes="other", replace=True)(lambda image: image + 2)
    assert preprocess("FAKE", IMAGE).pixels.max() == 2
    with pytest.raises(ValueError, match="unknown preprocessor 'false'"):
        find("false")
    with pytest.raises(ValueError, match=r"'canny' is entered already, .*: give this one another name$"):
        preprocessor("canny", makes="edges", replace=True)(lambda image: image)
    with pytest.raises(ValueError, match="'fake' is entered already"):
        preprocessor("other", makes="other", aliases=("fake",), replace=True)(lambda image: image)


def test_a_script_that_takes_a_built_in_name_first_is_refused_too():
    code = """
from controlnet_ext.preprocessors import preprocessor
preprocessor("canny", makes="edges")(lambda image: image)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].startswith("ValueError: preprocessor 'canny' is entered already, by controlnet")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"low": 200, "high": 100}, "canny: low 200 is above high 100"),
        ({"low": 201}, "canny: low 201 is above high 200"),
        ({"high": 99}, "canny: low 100 is above high 99"),
    ],
)
def test_a_low_threshold_above_the_high_one_is_refused(given, reason):
    with pytest.raises(ValueError, match=reason):
        preprocess("canny", IMAGE, **given)
    with pytest.raises(ValueError, match=reason):
        find("canny").parse({name: str(value) for name, value in given.items()})
    with pytest.raises(ValueError, match=reason):
        find("canny").check(given)
    assert preprocess("canny", IMAGE, low=7, high=7).kind == "edges"


def test_thresholds_of_ones_own_are_compared_too():
    @preprocessor("fake", makes="other")
    def fake(
        image, low_cut: Annotated[float, Range(0, 9)] = 1, high_cut: Annotated[float, Range(0, 9)] | None = None
    ): ...

    find("fake").check({"low_cut": 5})
    with pytest.raises(ValueError, match=r"fake: low_cut 5.5 is above high_cut 5"):
        find("fake").check({"low_cut": 5.5, "high_cut": 5})

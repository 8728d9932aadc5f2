"""A ControlMap in a script and a notebook, and images that are plainly no map."""

import io
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
from controlnet_ext.preprocessors import ControlMap, preprocess

from controlnet_ext.files.image_reader import read_image
from controlnet_ext.maps.control_map import describe_misfit

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
PHOTO = read_image(Path(__file__).parents[2] / "examples" / "coffee.jpg")


def test_a_map_is_a_line_on_the_console():
    assert repr(ControlMap(PIXELS, "edges")) == "<ControlMap of edges, 30x20>"
    depth = ControlMap(PIXELS, "depth", np.zeros((20, 30), np.float32), np.zeros((20, 30), np.uint16))
    assert repr(depth) == "<ControlMap of depth, 30x20, 16 bits, values (20, 30) float32>"
    assert repr(ControlMap(PIXELS, "pose", ["somebody"])) == "<ControlMap of pose, 30x20, values list>"


def test_a_map_is_an_image_of_pil_and_of_a_notebook():
    made = ControlMap(PIXELS, "edges")
    assert made.size == (30, 20) == made.image.size and made.image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(made.image), PIXELS)
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(io.BytesIO(made._repr_png_()))), PIXELS)
    made.image.putpixel((0, 0), (1, 2, 3))
    np.testing.assert_array_equal(made.pixels, PIXELS)


def test_a_map_is_saved_whole_and_replaces_nothing_unasked(tmp_path):
    made = ControlMap(PIXELS, "edges")
    made.save(tmp_path / "new" / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "new" / "a.png"), PIXELS)
    with pytest.raises(FileExistsError, match="exists already"):
        made.save(tmp_path / "new" / "a.png")
    made.save(str(tmp_path / "new" / "a.png"), overwrite=True)
    with pytest.raises(ValueError, match=r"expected one of \.png"):
        made.save(tmp_path / "a.gif")
    with pytest.raises(ValueError, match="a map of edges has no 16 bits"):
        made.save(tmp_path / "b.png", sixteen_bit=True)
    deep = ControlMap(PIXELS, "depth", None, np.full((20, 30), 1000, np.uint16))
    deep.save(tmp_path / "deep.png", sixteen_bit=True)
    assert cv2.imread(str(tmp_path / "deep.png"), cv2.IMREAD_UNCHANGED).tolist() == [[1000] * 30] * 20


def test_several_images_become_a_list_of_maps(tmp_path):
    import torch

    first, second = PIXELS, PIXELS[::-1].copy()
    expected = [255 - first, 255 - second]
    planes = torch.from_numpy(np.stack([first, second])).permute(0, 3, 1, 2)
    for several in (
        [first, PIL.Image.fromarray(second)],
        (first, second),
        np.stack([first, second]),
        planes,
        planes.float() / 255,
        planes.double().requires_grad_() / 255,
    ):
        maps = preprocess("invert", several)
        assert isinstance(maps, list) and [each.kind for each in maps] == ["lines"] * 2
        for made, pixels in zip(maps, expected, strict=True):
            np.testing.assert_array_equal(made.pixels, pixels)
    one = preprocess("invert", planes[0])
    np.testing.assert_array_equal(one.pixels, expected[0])
    assert preprocess("invert", []) == []
    np.testing.assert_array_equal(preprocess("invert", planes[0].half() / 255).pixels, expected[0])


def test_tensors_and_lists_that_are_no_images_are_refused():
    import torch

    for wrong, reason in (
        (torch.zeros(20, 30, 3), r"an image tensor of shape \(20, 30, 3\), expected \(3, H, W\)"),
        (torch.zeros(20, 30), "an image tensor of shape"),
        (torch.full((3, 4, 4), 2.0), r"floats from 2 to 2, expected 0\.\.1"),
        (torch.full((3, 4, 4), -1), "int64, expected uint8"),
        ([PIXELS, "no such file.png"], "no such file"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=reason):
            preprocess("invert", wrong)
    with pytest.raises(ValueError, match="2 images need a list of as many masks"):
        preprocess("inpaint_only", [PIXELS, PIXELS], mask=PIXELS)


@pytest.mark.parametrize(
    ("kind", "has"),
    [
        ("edges", "colors"),
        ("soft edges", "colors"),
        ("lines", "colors"),
        ("straight lines", "colors"),
        ("scribble", "colors"),
        ("depth", "colors"),
        ("pose", "no black ground"),
        ("face", "no black ground"),
        ("normals", "colors that are no directions"),
        ("segmentation", "thousands of colors"),
        ("tile", None),
        ("inpaint", None),
        ("other", None),
    ],
)
def test_a_photo_is_plainly_no_map_of_most_kinds(kind, has):
    assert describe_misfit(PHOTO, kind) == has


def test_a_gray_photo_is_no_map_of_two_tones():
    gray = np.repeat(cv2.cvtColor(PHOTO, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    assert describe_misfit(gray, "edges") == describe_misfit(gray, "scribble") == "gray tones all over"
    assert describe_misfit(gray, "depth") is None  # who knows


@pytest.mark.parametrize("name", ["canny", "lineart_standard", "scribble_xdog"])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_maps_are_taken_for_maps_also_inverted_and_as_jpeg(name, suffix, tmp_path):
    made = preprocess(name, PHOTO)
    for pixels in (made.pixels, 255 - made.pixels, np.zeros_like(PHOTO), np.full_like(PHOTO, 255)):
        ControlMap(pixels, made.kind).save(tmp_path / f"a{suffix}", overwrite=True)
        assert describe_misfit(read_image(tmp_path / f"a{suffix}"), made.kind) is None


@pytest.mark.parametrize("ground", [(0, 0, 0), (128, 128, 128), (128, 128, 255)])
def test_normals_on_any_ground_are_directions(ground, tmp_path):
    made = preprocess("normal_depth", PHOTO).pixels.copy()
    assert describe_misfit(made, "normals") is None
    made[:300] = ground
    ControlMap(made, "normals").save(tmp_path / "a.jpg")
    assert describe_misfit(read_image(tmp_path / "a.jpg"), "normals") is None

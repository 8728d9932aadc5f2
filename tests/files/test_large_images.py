"""Images over 64 megapixels: JPEGs are read at a fraction where a resolution is asked for, others by --max-pixels."""

import io
import warnings

import cv2
import numpy as np
import pytest
from controlnet_ext.preprocessors import preprocess
from PIL import Image

from controlnet_ext import cli
from controlnet_ext.cli.commands import preprocess as preprocess_command
from controlnet_ext.files import image_formats, image_reader
from controlnet_ext.files.image_reader import read_image

SMOOTH = cv2.resize(np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8), (1200, 900))
EXIF = Image.Exif()
EXIF[274] = 6  # turned by 90 degrees


@pytest.fixture(autouse=True)
def small_limit(monkeypatch):
    """A limit of a megapixel in the place of 64, so that images are quick to make."""
    for module in (image_formats, image_reader, preprocess_command):
        monkeypatch.setattr(module, "MAX_PIXELS", 10**6)
    monkeypatch.setattr(image_formats, "_pixel_limit", 10**6)


def encode(pixels, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **{"quality": 95, **options})
    return file.getvalue()


@pytest.mark.parametrize("options", [{}, {"exif": EXIF}, {"subsampling": 0}], ids=["plain", "turned", "fine"])
@pytest.mark.parametrize(("side", "size"), [(100, (112, 150)), (200, (225, 300)), (449, (450, 600)), (512, None)])
def test_a_large_jpeg_is_decoded_at_the_smallest_fraction_that_suffices(options, side, size):
    content = encode(SMOOTH, **options)
    if size is None:  # half of it is too small
        with pytest.raises(ValueError, match="1 megapixels, over the limit of 1"):
            read_image(content, side)
        return
    pixels = read_image(content, side)
    expected = cv2.resize(SMOOTH, (size[1], size[0]), interpolation=cv2.INTER_AREA)
    expected = np.rot90(expected, -1) if "exif" in options else expected
    assert abs(pixels.shape[0] - expected.shape[0]) <= 1 and abs(pixels.shape[1] - expected.shape[1]) <= 1
    height, width = (min(a, b) for a, b in zip(pixels.shape[:2], expected.shape[:2], strict=True))
    assert np.abs(pixels[:height, :width].astype(int) - expected[:height, :width]).mean() < 6  # a pixel aside


def test_other_large_images_and_those_within_the_limit_are_read_as_ever():
    small = SMOOTH[:500]
    np.testing.assert_array_equal(read_image(encode(small), 64), read_image(encode(small)))
    file = io.BytesIO()
    Image.fromarray(SMOOTH).save(file, "PNG")
    for content in (file.getvalue(), encode(SMOOTH, progressive=True), SMOOTH):
        with pytest.raises(ValueError, match="1200x900, 1 megapixels, over the limit of 1"):
            read_image(content, 64) if isinstance(content, bytes) else read_image(content)


def test_a_jpeg_of_more_pixels_than_its_bytes_can_hold_is_refused():
    content = bytearray(encode(SMOOTH[:8, :8]))
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = (20_000).to_bytes(2, "big") * 2
    with pytest.raises(ValueError, match="20000x20000, 400 megapixels, over the limit"):
        read_image(bytes(content), 64)


def test_a_preprocessor_at_a_resolution_takes_a_large_jpeg():
    made = preprocess("canny", encode(SMOOTH), resolution=128)
    assert made.pixels.shape[:2] == (128, 171)
    with pytest.raises(ValueError, match="over the limit of 1"):
        preprocess("canny", encode(SMOOTH))


@pytest.mark.parametrize("count", [1, 2])
def test_the_command_reads_large_images_when_it_is_allowed_to(count, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for i in range(count):
        Image.fromarray(SMOOTH).save(f"{i}.png")
    names = [f"{i}.png" for i in range(count)]
    words = ["preprocess", "invert", *names, "-o", "maps/"]
    assert cli.main(words) == (2 if count == 1 else 1)
    assert "over the limit of" in capsys.readouterr().err
    assert cli.main([*words, "--max-pixels", "1.1M"]) == 0
    np.testing.assert_array_equal(read_image("maps/0_invert.png"), 255 - SMOOTH)


@pytest.mark.parametrize("text", ["0", "-1M", "nan", "1e10", "2000M", "many", "M", ""])
def test_a_limit_that_is_none_is_refused(text, capsys):
    assert cli.main(["preprocess", "invert", "a.png", "-o", "b.png", f"--max-pixels={text}"]) == 2
    assert f"--max-pixels {text!r}: expected a number of pixels up to 1,073,741,824" in capsys.readouterr().err


def test_pillows_own_limit_is_as_before_afterwards():
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image(encode(SMOOTH, exif=EXIF), 100)
    assert before == Image.MAX_IMAGE_PIXELS

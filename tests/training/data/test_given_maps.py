"""Training data as people have them: the columns of other trainers, and maps of other sizes than their images."""

import json
from pathlib import Path

import numpy as np
import pytest
from controlnet_ext.preprocessors import preprocess
from PIL import Image

from controlnet_ext import cli
from controlnet_ext.files.image_reader import read_image
from controlnet_ext.files.image_writer import write_image
from controlnet_ext.maps.resize import fit
from controlnet_ext.training.data import FolderDataset, read_examples


def write_images(folder):
    for i in range(2):
        write_image(folder / f"{i}.png", np.full((40, 40, 3), 100 * i, np.uint8))
    return folder


@pytest.mark.parametrize("column", ["map", "conditioning_image", "conditioning_image_file_name"])
def test_maps_are_found_under_the_names_of_other_trainers(tmp_path, column):
    folder = write_images(tmp_path)
    row = json.dumps({"file_name": "1.png", "text": "one", column: "0.png"})
    (folder / "metadata.jsonl").write_bytes(b"\xef\xbb\xbf" + row.encode())  # Windows' byte order mark
    (example,) = read_examples(folder)
    assert example.map is not None and example.map.name == "0.png"
    made = FolderDataset((example,), lambda pixels: np.zeros_like(pixels))  # --map canny makes only what is not given
    assert (made.read(0, 32, 32)[1] == fit(read_image(folder / "0.png"), 32, 32)).all()


def test_a_row_with_two_different_maps_is_refused(tmp_path):
    folder = write_images(tmp_path)
    row = {"file_name": "1.png", "text": "one", "map": "0.png", "conditioning_image": "1.png"}
    (folder / "metadata.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match="line 1: map and conditioning_image name different maps: remove one"):
        read_examples(folder)


def coordinates(width, height):
    """An image whose red and green are the place of the pixel, as fractions of width and height times 255."""
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    return np.rint(np.dstack([x, y, np.zeros_like(x)]) * 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("image", "map_"),
    [
        ((640, 480), (704, 512)),  # controlnet_aux's canny of it, at its resolution of 512
        ((640, 480), (640, 512)),  # at 480
        ((480, 640), (512, 704)),
        ((640, 480), (640, 480)),
        ((640, 480), (320, 240)),
        ((640, 480), (686, 518)),  # multiples of DINOv2's patches
        ((645, 483), (640, 480)),
        ((1000, 701), (960, 640)),
        ((301, 211), (300, 210)),
    ],
)
def test_each_pixel_of_a_given_map_belongs_to_that_of_its_image(tmp_path, image, map_):
    write_image(tmp_path / "a.png", coordinates(*image))
    write_image(tmp_path / "map.png", coordinates(*map_))
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a", "map": "map.png"}')
    examples = read_examples(tmp_path)
    for height, width in ((128, 128), (128, 192), (192, 128)):
        pixels, control, _ = FolderDataset(examples, None).read(0, height, width)
        assert pixels.shape == control.shape == (height, width, 3)
        assert np.abs(pixels.astype(int) - control).max() <= 2  # of 255 steps over the image: rounding and resampling


@pytest.mark.parametrize("map_", [(512, 512), (256, 256), (192, 192), (480, 640), (704, 448), (640, 360), (641, 470)])
def test_a_map_of_another_aspect_than_its_image_is_refused(tmp_path, map_):
    write_image(tmp_path / "a.png", coordinates(640, 480))
    write_image(tmp_path / "map.png", coordinates(*map_))
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a", "map": "map.png"}')
    sizes = f"the map is {map_[0]}x{map_[1]} pixels and its image 640x480, of another aspect ratio"
    with pytest.raises(ValueError, match=rf"map\.png': {sizes}: make the map of the whole image"):
        read_examples(tmp_path)


def test_a_turned_photo_and_its_map_are_compared_upright(tmp_path):
    turned = Image.Exif()
    turned[274] = 6
    upright = Image.fromarray(coordinates(96, 128))
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.png", exif=turned)
    write_image(tmp_path / "map.png", coordinates(48, 64))
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a", "map": "map.png"}')
    pixels, control, _ = FolderDataset(read_examples(tmp_path), None).read(0, 64, 64)
    assert np.abs(pixels.astype(int) - control).max() <= 4  # the map has 48 columns only


@pytest.mark.parametrize("names", ["canny", "canny,invert"])
@pytest.mark.parametrize("data", ["maps", "maps/metadata.jsonl", "maps/list.jsonl"])
def test_what_preprocess_lists_is_what_train_reads(names, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    list_name = "list.jsonl" if data.endswith("list.jsonl") else "metadata.jsonl"
    Path("photos/deep").mkdir(parents=True)
    pixels = [np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8) for i in range(3)]
    for i in range(3):
        write_image(f"photos/deep/{i}.png", pixels[i])
    rows = [{"file_name": f"deep/{i}.png", "text": f"photo {i}"} for i in range(3)]
    Path("photos", list_name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli.main(["preprocess", names, f"photos/{list_name}", "-o", "maps", "--low", "50"]) == 0
    several = "," in names  # then the column is that of the preprocessor that train names
    dataset = FolderDataset(read_examples(Path(data), "canny" if several else None), None)
    for i in range(3):
        image, control, caption = dataset.read(i, 64, 64)
        np.testing.assert_array_equal(image, pixels[i])
        np.testing.assert_array_equal(control, preprocess("canny", pixels[i], low=50).pixels)
        assert caption == f"photo {i}"


def test_a_list_that_no_preprocess_wrote_leads_out_of_its_folder_as_little_as_before(tmp_path):
    (tmp_path / "maps").mkdir()
    write_image(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "maps/metadata.jsonl").write_text('{"file_name": "../a.png", "text": "a"}')
    for record in (None, "", '{"key": "b", "source": "../b.png", "stamp": [1, 2], "made": {"canny.png": "0"}}\n'):
        if record is not None:
            (tmp_path / "maps/.controlnet-ext.jsonl").write_text(record)
        with pytest.raises(ValueError, match=r"line 1: '\.\./a\.png' is not a file in the list's folder"):
            read_examples(tmp_path / "maps")


def test_maps_among_the_images_are_no_images_without_captions(tmp_path, monkeypatch):
    monkeypatch.chdir(write_images(tmp_path))
    for i in range(2):
        Path(f"{i}.txt").write_text(f"photo {i}")
    assert cli.main(["preprocess", "canny", ".", "-o", "."]) == 0 and Path("1_canny.png").exists()
    assert [(example.image.name, example.caption) for example in read_examples(Path("."))] == [
        ("0.png", "photo 0"),
        ("1.png", "photo 1"),
    ]

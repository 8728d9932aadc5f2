"""Near-duplicates across the split: named, and no others."""

import cv2
import numpy as np
import pytest
from training_sets import encode_png, make_loading, make_sampling, write_list

from controlnet_ext.files.image_reader import read_image, read_small_image
from controlnet_ext.training.data import Example, MapMaker
from controlnet_ext.training.data.reading import DataRequest, read_training_data
from controlnet_ext.training.data.split import compute_dhash, describe_near_duplicates, find_near_duplicates

PHOTO = "examples/coffee.jpg"


@pytest.fixture(scope="module")
def photo(request):
    return read_image(request.config.rootpath / PHOTO)


def write(folder, name, pixels):
    (folder / name).write_bytes(encode_png(pixels))
    return Example(folder / name, "a", None, name)


def test_the_hash_says_where_the_image_becomes_brighter():
    ramp = np.tile(np.linspace(0, 255, 90).astype(np.uint8)[None, :, None], (80, 1, 3))
    assert compute_dhash(ramp) == 2**64 - 1 and compute_dhash(ramp[:, ::-1]) == 0
    half = np.concatenate([ramp[:40], ramp[:40, ::-1]])
    assert compute_dhash(half) == (2**32 - 1) << 32
    assert compute_dhash(np.full((80, 90, 3), 200, np.uint8)) is None


@pytest.mark.parametrize("change", ["resized", "compressed", "brighter", "noisy"])
def test_a_changed_copy_of_an_image_is_a_near_duplicate(tmp_path, photo, change):
    changed = {
        "resized": lambda: cv2.resize(photo, (123, 97), interpolation=cv2.INTER_AREA),
        "compressed": lambda: cv2.imdecode(cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, 30])[1], 1),
        "brighter": lambda: cv2.convertScaleAbs(photo, alpha=0.9, beta=20),
        "noisy": lambda: np.clip(photo + np.random.default_rng(0).normal(0, 8, photo.shape), 0, 255).astype(np.uint8),
    }[change]()
    small = cv2.resize(photo, (256, 256), interpolation=cv2.INTER_AREA)
    held, learnt = write(tmp_path, "held.png", small), write(tmp_path, "learnt.png", changed)
    others = [write(tmp_path, f"{i}.png", np.roll(small, 37 * i + 20, axis=1)[:, ::-1]) for i in range(4)]
    assert find_near_duplicates([*others, learnt], [held]) == [(held, learnt)]
    assert find_near_duplicates(others, [held]) == []


def test_a_jpeg_is_decoded_at_a_fraction_of_its_size_and_hashes_alike(request, photo):
    content = (request.config.rootpath / PHOTO).read_bytes()
    small = read_small_image(content, "the photo", 32)
    height, width = photo.shape[:2]
    assert small.shape == (-(-height // 8), -(-width // 8), 3) and min(small.shape[:2]) >= 32
    assert (compute_dhash(small) ^ compute_dhash(photo)).bit_count() <= 2
    np.testing.assert_array_equal(read_small_image(content, "the photo", 10_000), photo)
    for broken in (content[:-200], b"", b"text"):
        with pytest.raises(ValueError, match="the photo"):
            read_small_image(broken, "the photo", 32)


def test_even_grounds_and_files_that_cannot_be_read_are_no_near_duplicates(tmp_path):
    flat = [write(tmp_path, f"{i}.png", np.full((32, 32, 3), 90 * i, np.uint8)) for i in range(2)]
    assert find_near_duplicates([flat[0]], [flat[1]]) == []
    assert find_near_duplicates([Example(tmp_path / "none.png", "a", None, "x")], flat) == []


def test_a_line_names_the_first_pairs():
    examples = [Example(f"{i}.png", "a", None, str(i)) for i in range(14)]
    line = describe_near_duplicates(list(zip(examples[:7], examples[7:], strict=True)))
    assert line.startswith("7 held-out images look like") and "'0.png' is like '7.png'" in line
    assert line.endswith("; and 2 more") and "\n" not in line
    assert describe_near_duplicates([]) is None


def test_near_duplicates_across_the_split_are_reported_before_the_training(tmp_path, photo):
    for name, size in (("a", 200), ("b", 90)):
        (tmp_path / name).mkdir()
        write(tmp_path / name, "x.png", cv2.resize(photo, (size, size), interpolation=cv2.INTER_AREA))
        write_list(tmp_path / name / "metadata.jsonl", [{"file_name": "x.png", "text": "a"}])
    lines = []
    request = DataRequest(str(tmp_path / "a"), str(tmp_path / "b"))
    read_training_data(request, MapMaker(lambda pixels: pixels), make_sampling(), make_loading(), lines.append)
    assert len(lines) == 1 and "b/x.png' is like" in lines[0]

"""Awkward images through every preprocessor of ours that runs here: without weights, or with the test assets'."""

import numpy as np
import pytest
from controlnet_ext.preprocessors import list_preprocessors
from controlnet_ext.preprocessors.library import Library
from lines import assets
from test_images import awkward

from controlnet_ext.files.image_reader import read_image

WEIGHTS = {  # published name: the assets'
    "table5_pidinet.pth": "table5_pidinet-tiny.pth",
    "7_model.pth": "teed_7_model.pth",
    "MTEED.pth": "teed_5_model.pth",  # of the same network
    "mlsd_large_512_fp32.pth": "mlsd_tiny_512_fp32.pth",
    "face_detection_short_range.tflite": "face_detection_short_range.tflite",
    "face_landmark.tflite": "face_landmark.tflite",
    "iris_landmark.tflite": "iris_landmark.tflite",
}
OURS = [
    entry
    for entry in list_preprocessors()
    if not entry.factory.__module__.startswith("controlnet_ext.preprocessors.bridges")
]
FREE = [entry for entry in OURS if not entry.weights]
LOADED = [entry for entry in OURS if entry.weights and all(file.name in WEIGHTS for file in entry.weights)]
IMAGES = list(awkward())


def wrong(ready):
    """The names of the images whose maps are wrong: of another size, not of bytes, not the map of the image that a
    viewer shows where the file holds just that, or none at all."""
    found = []
    for name, content, wanted, apart in IMAGES:
        mask = np.full(wanted.shape, 255, np.uint8) if ready.spec.needs_mask else None
        try:
            made = ready(content, mask)
            same = apart or np.array_equal(made.pixels, ready(wanted.astype(np.uint8), mask).pixels)
        except (ValueError, TypeError) as error:
            found.append(f"{name}: {error}")
            continue
        size = wanted.shape[:2]
        if not (same and made.pixels.dtype == np.uint8 and made.pixels.shape == (*size, 3)):
            found.append(name)
    return found


@pytest.mark.parametrize("entry", FREE, ids=lambda entry: entry.name)
def test_what_needs_no_weights_makes_no_map_wrong(entry):
    assert len(IMAGES) >= 24 and wrong(entry.load()) == []


@pytest.mark.weights
@pytest.mark.parametrize("entry", LOADED, ids=lambda entry: entry.name)
def test_what_has_its_weights_here_makes_no_map_wrong(entry):
    files = {name: assets() / "weights" / ours for name, ours in WEIGHTS.items()}
    assert wrong(entry.load(library=Library([], download=False, files=files))) == []


def test_these_are_most():
    assert {"canny", "shuffle", "inpaint", "normal_depth"} <= {entry.name for entry in FREE}
    assert {"pidinet", "softedge_anyline", "mlsd", "mediapipe_face"} <= {entry.name for entry in LOADED}
    assert all(read_image(content).shape == wanted.shape for _, content, wanted, _ in IMAGES)

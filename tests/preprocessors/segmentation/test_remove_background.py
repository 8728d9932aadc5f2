"""Backgrounds taken away by an IS-Net of random weights: its authors' code, squares and frames typed out, refusals."""

import os
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from controlnet_ext.annotators import isnet
from controlnet_ext.preprocessors import find, preprocess
from controlnet_ext.preprocessors.segmentation.background import ANIME_SEG_WEIGHTS
from lines import Shelf, random_state
from PIL import Image

from controlnet_ext.cli import main
from controlnet_ext.files.image_reader import read_image

IMAGE = cv2.resize(np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8), (140, 90))
NAMES = ("remove_background", "remove_background_rmbg", "remove_background_anime")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """1024 pixels take seconds."""
    monkeypatch.setattr("controlnet_ext.preprocessors.segmentation.background.MATTING_INPUT_SIZE", 64)


@pytest.fixture(scope="module")
def state():
    with torch.device("meta"):
        shapes = isnet.IsNet().state_dict()
    # a sixth of the deviation, or all is 0 or 1
    return {key: tensor / 6 if key.startswith("side1") else tensor for key, tensor in random_state(shapes).items()}


def test_the_network_equals_its_authors(state):
    path = os.environ.get("CONTROLNET_EXT_ISNET")
    if path is None:
        pytest.skip("CONTROLNET_EXT_ISNET is not set to xuebinqin/DIS's isnet.py")
    pytest.importorskip("torchvision")
    module = ModuleType("authors")
    with open(path) as file:
        exec(compile(file.read(), path, "exec"), module.__dict__)
    theirs, ours = module.ISNetDIS().eval(), isnet.load(state).eval()
    theirs.load_state_dict(state)
    for shape in ((2, 3, 64, 96), (1, 3, 71, 45)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            expected, result = theirs(x)[0][0], ours(x)
        assert expected.std() > 0.01
        if expected.min() >= 0 and expected.max() <= 1:  # as its authors give it; skytnt's copy gives logits
            result = result.sigmoid()
        torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-4)


def typed_out(net, image, name):
    """The matte as the authors' commands make it."""
    height, width = image.shape[:2]
    if name != "remove_background_anime":
        x = torch.from_numpy(cv2.resize(image, (64, 64)).astype(np.float32)).permute(2, 0, 1)[None] / 255 - 0.5
        with torch.inference_mode():
            matte = torch.nn.functional.interpolate(net(x).sigmoid(), (height, width), mode="bilinear")[0, 0]
        return ((matte - matte.min()) / (matte.max() - matte.min())).numpy()
    h, w = (64, int(64 * width / height)) if height > width else (int(64 * height / width), 64)
    square = np.zeros((64, 64, 3), np.float32)
    top, left = (64 - h) // 2, (64 - w) // 2
    square[top : top + h, left : left + w] = cv2.resize((image / 255).astype(np.float32), (w, h))
    with torch.inference_mode():
        matte = net(torch.from_numpy(square).permute(2, 0, 1)[None]).sigmoid()[0, 0].numpy()
    return cv2.resize(matte[top : top + h, left : left + w], (width, height))


@pytest.mark.parametrize("name", NAMES)
def test_a_map_is_the_image_by_its_matte_on_the_ground(state, name):
    run = find(name).load(library=Shelf(state))
    net = isnet.load(state).eval()
    for image in (IMAGE, IMAGE.transpose(1, 0, 2).copy()):
        made = run(image, ground=40)
        assert made.values.shape == image.shape[:2] and made.values.std() > 0.01
        np.testing.assert_allclose(made.values, typed_out(net, image, name), atol=1e-4)
        part = made.values[..., None]
        assert np.abs(made.pixels - (image * part + 40 * (1 - part))).max() <= 0.501
        grey = run(image, matte=True)
        assert np.abs(grey.pixels - part * 255).max() <= 0.501 and grey.kind == "other"


@pytest.mark.parametrize("name", NAMES)
def test_batches_are_singles_and_every_size_has_a_map(state, name):
    run = find(name).load(library=Shelf(state))
    both = run.run_batch([IMAGE, IMAGE[::-1].copy()])
    for one, image in zip(both, (IMAGE, IMAGE[::-1].copy()), strict=True):
        np.testing.assert_allclose(one.values, run(image).values, atol=1e-4)
    for height, width in ((1, 1), (1, 300), (300, 2)):
        made = run(np.resize(IMAGE, (height, width, 3)))
        assert made.pixels.shape == (height, width, 3) and np.isfinite(made.values).all()
    assert run(IMAGE, resolution=64).values.shape == (64, 100)


def test_all_tensors_are_wanted_and_no_others(state):
    anime = {f"net.{key}": tensor for key, tensor in state.items()} | {"gt_encoder.conv_in.weight": torch.zeros(1)}
    isnet.load(anime)
    for broken in (state | {"more": torch.zeros(1)}, state | {"side6.bias": torch.zeros(7)}):
        with pytest.raises(RuntimeError, match=r"more|size mismatch"):
            isnet.load(broken)
    with pytest.raises(RuntimeError, match="Missing key"):
        isnet.load({key: tensor for key, tensor in state.items() if key != "stage3d.rebnconv4d.bn_s1.running_var"})


def test_mattes_that_are_no_numbers_are_refused(state):
    broken = Shelf(state | {"side1.bias": torch.full((1,), float("nan"))})
    for name in NAMES:
        with pytest.raises(ValueError, match="no numbers: compute in float32"):
            preprocess(name, IMAGE, library=broken)


def test_the_command_reads_a_checkpoint_of_lightnings(state, tmp_path):
    tensors = {f"net.{key}": tensor for key, tensor in state.items()} | {"gt_encoder.conv_in.weight": torch.zeros(1)}
    torch.save(tensors, tmp_path / ANIME_SEG_WEIGHTS.name)
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    command = ["preprocess", "remove_background_anime", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png")]
    assert main([*command, "--weights", str(tmp_path / ANIME_SEG_WEIGHTS.name), "--ground", "0"]) == 0
    expected = preprocess("remove_background_anime", IMAGE, library=Shelf(state), ground=0)
    np.testing.assert_array_equal(read_image(tmp_path / "b.png"), expected.pixels)

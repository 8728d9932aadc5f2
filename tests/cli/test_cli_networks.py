"""`controlnet-ext preprocess` with networks: where weights come from, several images at once, what is refused."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from controlnet_ext.annotators import pidinet
from controlnet_ext.preprocessors import preprocess
from controlnet_ext.preprocessors.backends.torch import Device
from controlnet_ext.preprocessors.library import Library
from lines import random_state

from controlnet_ext import cli
from controlnet_ext.files.image_reader import read_image
from controlnet_ext.files.image_writer import write_image
from controlnet_ext.files.safetensors import write_weights

rng = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working folder with images in/a.png to in/e.png, of two sizes, and random weights of a PiDiNet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CONTROLNET_EXT_MODELS", raising=False)
    Path("in").mkdir()
    for name, width in zip("abcde", (64, 64, 64, 80, 64), strict=True):
        noise = rng.integers(0, 256, (8, 8, 3), np.uint8)
        write_image(f"in/{name}.png", cv2.resize(noise, (width, 64), interpolation=cv2.INTER_CUBIC))
    Path("models").mkdir()
    write_weights("models/table5_pidinet.pth", random_state(pidinet.PiDiNet(20, 8).state_dict()))


def run(words):
    return cli.main(["preprocess", *words.split()])


def expected(name, image, **given):
    return preprocess(name, image, library=Library(["models"], download=False), **given).pixels


def nearly(path, pixels):
    """Whether a map is as expected, but for sums in another order."""
    return np.abs(read_image(path).astype(int) - pixels).max() <= 1


@pytest.mark.parametrize("words", ["--library models", "--weights models/table5_pidinet.pth"])
def test_an_image_becomes_a_networks_map(words, capsys):
    assert run(f"softedge_pidinet in/a.png -o map.png --no-download {words}") == 0
    assert np.array_equal(read_image("map.png"), expected("pidinet", "in/a.png"))
    assert capsys.readouterr().err == "map.png\n"


def test_the_environment_names_folders(monkeypatch):
    monkeypatch.setenv("CONTROLNET_EXT_MODELS", "models")
    assert run("softedge_pidinet in/a.png -o map.png --resolution 128") == 0
    assert np.array_equal(read_image("map.png"), expected("pidinet", "in/a.png", resolution=128))


@pytest.mark.parametrize("batch", ["1", "2", "9"])
def test_images_in_batches_give_the_same_maps(batch):
    assert run(f"pidinet,pidinet_sketch,canny in -o maps --library models --batch {batch}") == 0
    for name in "abcde":
        assert nearly(f"maps/{name}_pidinet.png", expected("pidinet", f"in/{name}.png"))
        assert np.array_equal(read_image(f"maps/{name}_canny.png"), preprocess("canny", f"in/{name}.png").pixels)
    assert len(list(Path("maps").glob("*.png"))) == 15


def test_a_bad_image_in_a_batch_is_told_and_the_others_are_done(capsys):
    Path("in/c.png").write_bytes(b"no image")
    assert run("pidinet in -o maps --library models --batch 3") == 1
    assert sorted(path.name for path in Path("maps").glob("*.png")) == [f"{name}_pidinet.png" for name in "abde"]
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("controlnet-ext:")]
    assert len(errors) == 1 and "in/c.png" in errors[0]


def test_numbers_of_fewer_bits_are_asked_for_by_name():
    assert run("pidinet in/a.png -o half.png --library models --dtype bfloat16") == 0
    half = preprocess("pidinet", "in/a.png", library=Library(["models"]), device=Device("cpu", "bfloat16")).pixels
    assert np.array_equal(read_image("half.png"), half) and not np.array_equal(half, expected("pidinet", "in/a.png"))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("canny in/a.png -o x.png --device cuda", "--device is for preprocessors with weights, not for: canny"),
        ("canny in/a.png -o x.png --no-download", "--no-download is for preprocessors with weights, not for: canny"),
        ("pidinet in/a.png -o x.png --library nowhere", "the folder of weights 'nowhere' does not exist"),
        ("pidinet in/a.png -o x.png --weights nowhere.pth", "'nowhere.pth' does not exist"),
        ("pidinet in/a.png -o x.png --weights in/a.png", "'in/a.png' is refused: "),
        ("pidinet in/a.png -o x.png --library models --dtype int8", "dtype 'int8' is none of: float32, "),
        ("pidinet in/a.png -o x.png --library models --device toaster", "device 'toaster' cannot be used: "),
        ("pidinet in/a.png -o x.png --library models --batch 0", "--batch 0 is below 1"),
        ("pidinet,hed in -o maps --weights models/table5_pidinet.pth", "--weights is one file, and these are loaded: "),
        ("hed in/a.png -o x.png --library models --no-download", "at 'models/hed/ControlNetHED.pth'"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line_before_any_work(words, reason, capsys):
    assert run(words) == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1 and not Path("x.png").exists() and not Path("maps").exists()

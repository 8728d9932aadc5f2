"""`controlnet-ext generate` on the embedded model, for which an untrained one stands in."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import standin
import tiny
from controlnet_ext.preprocessors.registry import LoadedPreprocessor, Preprocessor

from controlnet_ext import embedded
from controlnet_ext.cli import main
from controlnet_ext.embedded.grounds import GROUNDS
from controlnet_ext.embedded.scenes import PALETTE, THING_KINDS
from controlnet_ext.files.image_reader import read_image
from controlnet_ext.files.image_writer import encode_image, read_png_text
from controlnet_ext.generation.options import parse_unit
from controlnet_ext.generation.pipeline_folder import PipelineFolder
from controlnet_ext.maps.control_map import ControlMap
from controlnet_ext.maps.resize import fit

KEYWORD = "controlnet-ext"
GUIDED = ["--image", "photo.png", "--control", "canny,resolution=match"]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model, a photo, and an image made of them."""
    folder = tmp_path_factory.mktemp("shelf")
    standin.save(folder / "model")
    tiny.random_image(size=160).crop((0, 0, 160, 96)).save(folder / "photo.png")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(embedded, "EMBEDDED_FOLDER", folder / "model")
        patched.chdir(folder)
        assert generate("made.png", *GUIDED) == 0
    return folder


@pytest.fixture(autouse=True)
def installed(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "EMBEDDED_FOLDER", shelf / "model")
    monkeypatch.chdir(tmp_path)
    for name in ("photo.png", "made.png"):
        Path(name).symlink_to(shelf / name)


def generate(out: str, *more: str) -> int:
    return main(["generate", "a red circle", "--steps", "2", "--seed", "3", *more, "-o", out])


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    before = sorted(os.listdir())
    assert main(arguments) == 2
    assert sorted(os.listdir()) == before
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return err


def recipe(path: str) -> Any:
    return json.loads(read_png_text(path)[KEYWORD])


def test_without_a_model_the_embedded_one_draws_at_its_size_guided_by_its_own_control_net() -> None:
    assert generate("plain.png") == 0
    folder = str(embedded.EMBEDDED_FOLDER)
    named = ["--model", folder, "--control", f"canny,resolution=match,model={folder}/controlnet_canny"]
    assert generate("named.png", "--image", "photo.png", *named) == 0
    plain, guided, same = (read_image(f"{name}.png").astype(int) for name in ("plain", "made", "named"))
    assert guided.shape == (128, 128, 3)
    assert np.abs(guided - plain).max() > 2
    assert np.array_equal(guided, same)


def test_its_recipe_names_no_place_and_gives_the_same_bytes_where_the_package_lies_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = recipe("made.png")
    assert (words["model"]["path"], words["units"][0]["model"]["path"]) == ("embedded", "embedded/canny")
    assert str(embedded.EMBEDDED_FOLDER) not in json.dumps(words)
    shutil.copytree(embedded.EMBEDDED_FOLDER, tmp_path / "moved")
    monkeypatch.setattr(embedded, "EMBEDDED_FOLDER", tmp_path / "moved")
    Path("photo.png").unlink()
    assert main(["generate", "--from", "made.png", "-o", "again.png"]) == 0
    assert Path("again.png").read_bytes() == Path("made.png").read_bytes()


def test_its_names_are_taken_where_a_model_is_named() -> None:
    Path("map.png").write_bytes(encode_image("map.png", np.eye(128, dtype=np.uint8) * 255))
    control = ["--control", "none,image=map.png,model=embedded/canny"]
    assert generate("map_given.png", "--model", "embedded", *control) == 0
    assert recipe("map_given.png")["model"]["path"] == "embedded"


@pytest.mark.parametrize(
    ("control", "expected"),
    [
        ("invert", "unit 1: no control model given (the embedded model has its own for canny): name one with model="),
        ("none", "unit 1: no control model given (the embedded model has its own for canny): name one with model="),
        ("canny,model=embedded/depth", "'embedded/depth': the embedded model has a ControlNet for canny only"),
        ("canny,model=embedded", "is a whole pipeline; give the folder of the control model"),
    ],
)
def test_a_map_that_it_has_no_control_net_for_is_refused(
    control: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["generate", "a", "--image", "photo.png", "--control", control, "-o", "out.png"]
    assert expected in refused(capsys, command)


def test_another_model_gets_no_control_net_of_the_embedded_one(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", "a", "--model", str(embedded.EMBEDDED_FOLDER), *GUIDED, "-o", "out.png"]
    assert "no control model given: name one with model=PATH" in refused(capsys, command)


def test_weights_that_are_not_installed_are_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(embedded, "EMBEDDED_FOLDER", tmp_path / "absent")
    absent = "the embedded model's weights are not installed: "
    again = ["generate", "--from", "made.png", "-o", "out.png"]
    for command in (["generate", "a", *GUIDED, "-o", "out.png"], ["generate", "a", "-o", "out.png"], again):
        assert absent in refused(capsys, command)
    assert absent in refused(capsys, [*again, "--control", "1,model=embedded/canny", "--model", "embedded"])


Change = Callable[[Any], Any]
HOSTILE: dict[str, tuple[Change, str]] = {
    "other weights under its name": (
        lambda r: r["model"]["sha256"].update({"unet/config.json": "0" * 64}),
        "'unet/config.json' of the model 'embedded' has sha256",
    ),
    "another control net's weights": (
        lambda r: r["units"][0]["model"]["sha256"].update(weights="0" * 64),
        "unit 1: 'weights' of the model 'embedded/canny' has sha256",
    ),
    "a file more": (
        lambda r: r["model"]["sha256"].update({"unet/evil.json": "0" * 64}),
        "the model 'embedded' has no 'unet/evil.json'",
    ),
    "a way out of it": (lambda r: r["model"].update(path="embedded/../../.."), "'embedded/../../..' does not exist"),
    "a way out by a control net": (
        lambda r: r["units"][0]["model"].update(path="embedded/canny/../.."),
        "'embedded/canny/../..' does not exist",
    ),
    "a control net that it lacks": (lambda r: r["units"][0]["model"].update(path="embedded/vae"), "for canny only"),
    "a control net as the model": (
        lambda r: r["model"].update(path="embedded/canny"),
        "holds no model_index.json",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_recipe_that_names_it_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    change, expected = HOSTILE[name]
    texts, words = read_png_text("made.png"), recipe("made.png")
    change(words)
    texts[KEYWORD] = json.dumps(words)
    Path("bad.png").write_bytes(encode_image("bad.png", read_image("made.png"), texts))
    assert expected in refused(capsys, ["generate", "--from", "bad.png", "-o", "again.png"])


def test_other_names_are_left_alone() -> None:
    for name in (
        "",
        "sd",
        "./embedded",
        "embedded/",
        "embedded/canny/",
        "embedded/../x",
        "Embedded",
        "embedded\n",
        "a/b",
    ):
        assert embedded.resolve_embedded(name) == name
    assert embedded.list_controls("sd") == {}


def test_a_folder_of_ones_own_that_is_called_so_is_reached_by_its_path() -> None:
    Path("embedded").symlink_to(embedded.EMBEDDED_FOLDER)
    assert PipelineFolder.find("./embedded").path == Path("embedded")
    assert PipelineFolder.find("embedded").path == embedded.EMBEDDED_FOLDER


def test_the_control_net_is_that_of_the_preprocessors_name_or_label() -> None:
    for text in ("canny", "Canny,low=50", "canny,image=own.png"):
        model: Any = parse_unit(text, "all.png", embedded.list_controls("embedded")).model
        assert model.path == "embedded/canny"


def test_a_part_is_painted_and_the_pixels_around_it_are_the_photos_also_made_again() -> None:
    mask = np.zeros((96, 160, 3), np.uint8)
    mask[:, 100:] = 255
    Path("mask.png").write_bytes(encode_image("mask.png", mask))
    alone = ["--image", "photo.png", "--mask", "mask.png", "--control", "inpaint_only,model=none"]
    assert generate("alone.png", *alone) == 0
    assert generate("both.png", *alone, "--control", "canny,resolution=match") == 0
    photo = cropped("photo.png")
    for name in ("alone", "both"):
        image = read_image(f"{name}.png")
        assert np.array_equal(image[:, :60], photo[:, :60]) and not np.array_equal(image[:, 90:], photo[:, 90:])
        assert main(["generate", "--from", f"{name}.png", "-o", f"{name}_again.png"]) == 0
        assert Path(f"{name}_again.png").read_bytes() == Path(f"{name}.png").read_bytes()
    assert not np.array_equal(read_image("alone.png"), read_image("both.png"))
    assert main(["generate", "--from", "alone.png", "--seed", "9", "--size", "96x64", "-o", "small.png"]) == 0
    assert generate("zero.png", *alone[:-1], "inpaint_only,model=none,weight=0") == 0
    assert generate("plain.png") == 0
    assert np.array_equal(read_image("zero.png"), read_image("plain.png"))


def cropped(path: str) -> np.ndarray:
    return fit(read_image(path), *PipelineFolder.find("embedded").size, "crop")


def test_a_run_with_lama_begins_with_what_it_filled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def filled(self: Any, image: np.ndarray, mask: Any = None, **_: Any) -> ControlMap:
        pixels = image if mask is None else np.where(mask > 127, np.uint8((200, 0, 0)), image)
        return ControlMap(pixels, "inpaint")

    monkeypatch.setattr(Preprocessor, "load", lambda self, **_: LoadedPreprocessor(self, filled))
    monkeypatch.setattr(LoadedPreprocessor, "__call__", filled)
    Path("mask.png").write_bytes(encode_image("mask.png", np.full((96, 160, 3), 255, np.uint8)))
    words = ["--image", "photo.png", "--mask", "mask.png", "--control"]
    for name in ("inpaint_only+lama", "inpaint_only"):
        assert generate(f"{name}.png", *words, f"{name},model=none") == 0
    assert not np.array_equal(read_image("inpaint_only+lama.png"), read_image("inpaint_only.png"))
    assert main(["generate", "--from", "inpaint_only+lama.png", "-o", "again.png"]) == 0
    assert Path("again.png").read_bytes() == Path("inpaint_only+lama.png").read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--control", "inpaint_only,model=none", "--image", "photo.png"], "inpaint_only needs to know where to paint"),
        (["--control", "canny,model=none", "--image", "photo.png"], "model=none is for what acts after each step"),
        (["--mask", "photo.png"], "--mask 'photo.png' without a --control"),
        (["--mask", "photo.png", "--from", "made.png"], "--mask with --from"),
    ],
)
def test_masks_that_cannot_be_are_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = [] if "--from" in words else ["a red circle"]
    assert said in refused(capsys, ["generate", *prompt, *words, "-o", "x.png"])


def test_words_that_the_model_does_not_know_are_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "a photo of a Cat, photo", "--negative", "blurry", "--steps", "1", "-o", "cat.png"]) == 0
    lines = capsys.readouterr().err.splitlines()
    (remark,) = [line for line in lines if "does not know" in line]
    assert remark.startswith(
        "controlnet-ext: the embedded model does not know photo, of, cat, blurry: it draws things ("
    )
    assert remark.endswith("on a ground (striped, checked, dotted, wavy, mosaic, mottled), as in: " + KNOWN)
    assert main(["generate", f"{KNOWN}, (a pink heart:1.2)", "--steps", "1", "--seed", "1", "-o", "known.png"]) == 0
    assert "does not know" not in capsys.readouterr().err
    assert main(["demo", "--prompt", "a red cat", "--steps", "1", "-o", "sheet.png"]) == 0
    assert "controlnet-ext: the embedded model does not know cat: it draws" in capsys.readouterr().err


KNOWN = "a blue blob and a red star on a dotted green ground"


def test_words_that_the_model_knows_are_those_of_its_vocabulary() -> None:
    folder = Path(embedded.__file__).parent / "model"
    vocabulary = json.loads((folder / "tokenizer" / "vocab.json").read_text())
    styles = json.loads((folder / "about.json").read_text())["styles"]
    known = {word for style in styles for word in style["words"]}
    assert {*PALETTE, *THING_KINDS, *GROUNDS} <= known
    assert [word for word in known if word != "plain" and f"{word}</w>" not in vocabulary] == []
    assert [style["example"] for style in styles if {*style["example"].split()} - {*style["words"]}] == []
    describe = PipelineFolder.find("embedded").describe_unknown_words
    assert describe(" ".join([*PALETTE, *THING_KINDS, *GROUNDS]), None, "") is None
    many = describe(" ".join(f"{a}{b}" for a in "abcd" for b in "xyz"))
    assert "does not know ax, ay, az, bx, by, bz, cx, cy and 4 more: " in many

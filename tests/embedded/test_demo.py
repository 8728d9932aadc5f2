"""`controlnet-ext demo`, with an untrained model in place of the embedded one; last the embedded one itself."""

from __future__ import annotations

import functools
import os
import re
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import standin
from diffusers import UNet2DConditionModel

from controlnet_ext import embedded, preprocess
from controlnet_ext.cli import main
from controlnet_ext.cli.commands.demo import PROMPTS
from controlnet_ext.embedded.contact_sheet import (
    GAP,
    HIT_COLOR,
    LINE_HEIGHT,
    MARGIN,
    MIN_PANEL_SIDE,
    MISS_COLOR,
    Column,
    compute_jump_share,
    find_depth_jumps,
    overlay_edges,
    render_sheet,
    wrap_text,
)
from controlnet_ext.files.image_reader import read_image
from controlnet_ext.files.image_writer import encode_image
from controlnet_ext.generation import pairs
from controlnet_ext.maps.fidelity import EdgeScore, canny_f1
from controlnet_ext.maps.resize import fit
from tools.embedded_model.world_words import DEMO

INSTALLED = embedded.EMBEDDED_FOLDER
SCORES = re.compile(r"(.+): F1 within 1 px (\d\.\d\d), unguided (\d\.\d\d); exact (\d\.\d\d), unguided (\d\.\d\d)")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model and a sheet made of it."""
    folder = tmp_path_factory.mktemp("shelf")
    standin.save(folder / "model")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(embedded, "EMBEDDED_FOLDER", folder / "model")
        patched.chdir(folder)
        assert main(["demo", "--steps", "2"]) == 0
    return folder


@pytest.fixture(autouse=True)
def installed(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "EMBEDDED_FOLDER", shelf / "model")
    monkeypatch.chdir(tmp_path)


def panel_origin(column: int, row: int) -> tuple[int, int]:
    return (
        MARGIN + column * (MIN_PANEL_SIDE + GAP),
        MARGIN + 2 * LINE_HEIGHT + 4 + row * (MIN_PANEL_SIDE + 2 * LINE_HEIGHT + GAP),
    )


def panel(whole: np.ndarray, column: int, row: int) -> np.ndarray:
    """An image on a sheet, as it is shown."""
    x, y = panel_origin(column, row)
    return whole[y : y + MIN_PANEL_SIDE, x : x + MIN_PANEL_SIDE]


def generated(out: str, prompt: str, *more: str) -> np.ndarray:
    assert main(["generate", prompt, "--guidance", "2", "--steps", "2", "--seed", "0", *more, "-o", out]) == 0
    return read_image(out)


def near(a: np.ndarray, b: np.ndarray, most: int) -> bool:
    return int(np.abs(a.astype(int) - b).max()) <= most


def test_the_sheet_shows_the_photo_its_map_and_the_images_of_generate(shelf: Path) -> None:
    whole, photo = read_image(shelf / "sheet.png"), read_image(embedded.SAMPLE_PHOTO)
    asked = fit(preprocess("canny", photo, resolution=128).pixels, 128, 128)
    assert whole.shape[1] == 2 * MARGIN + 4 * MIN_PANEL_SIDE + 3 * GAP
    assert np.array_equal(panel(whole, 0, 0), fit(photo, MIN_PANEL_SIDE, MIN_PANEL_SIDE))
    assert np.array_equal(panel(whole, 0, 1), np.kron(asked, np.ones((2, 2, 1), np.uint8)))
    plain = generated("plain.png", PROMPTS[1])
    guided = generated(
        "guided.png", PROMPTS[1], "--image", str(embedded.SAMPLE_PHOTO), "--control", "canny,resolution=match"
    )
    assert not near(plain, guided, 8)
    for row, image in enumerate((plain, guided)):
        shown = panel(whole, 2, row)
        enlarged = cv2.resize(image, (MIN_PANEL_SIDE, MIN_PANEL_SIDE), interpolation=cv2.INTER_CUBIC)
        assert near(shown, enlarged, 3)  # a batch of 12 rows and one of 2 differ in their last bits
    dark = panel(whole, 2, 2)[::2, ::2]
    edges = asked[..., 0] > 0
    assert {tuple(colour) for colour in dark[edges].tolist()} <= {HIT_COLOR, MISS_COLOR}
    assert near(dark[~edges], guided[~edges] // 2, 2)


def test_scores_are_told_and_are_those_of_the_images(capsys: pytest.CaptureFixture[str]) -> None:
    photo = ["--image", str(embedded.SAMPLE_PHOTO)]
    assert main(["demo", "--prompt", "a red ring", "--steps", "2", "-o", "one.png"]) == 0
    out, err = capsys.readouterr()
    scores, last = err.splitlines()
    told = SCORES.fullmatch(scores)
    assert out == "" and told and told[1] == "a red ring"
    assert re.fullmatch(r"one\.png: seed 0, 2 steps, guidance 2; 2 images in \d+\.\d s, loaded in \d+\.\d s", last)
    asked = fit(preprocess("canny", read_image(embedded.SAMPLE_PHOTO), resolution=128).pixels, 128, 128)
    guided = canny_f1(asked, generated("g.png", "a red ring", *photo, "--control", "canny,resolution=match"))
    plain = canny_f1(asked, generated("p.png", "a red ring"))
    expected = [guided.within_1px, plain.within_1px, guided.exact, plain.exact]
    assert np.allclose([float(told[k]) for k in range(2, 6)], expected, atol=0.02)
    assert read_image("one.png").shape[1] == 2 * MARGIN + 2 * MIN_PANEL_SIDE + GAP


def test_a_control_net_that_has_not_learnt_leaves_the_images_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    standin.save(tmp_path / "fresh", zeros=True)
    monkeypatch.setattr(embedded, "EMBEDDED_FOLDER", tmp_path / "fresh")
    assert main(["demo", "--steps", "2", "--seed", "5"]) == 0
    whole = read_image("sheet.png")
    for column in (1, 2, 3):
        assert near(panel(whole, column, 0), panel(whole, column, 1), 1)
    assert not near(panel(whole, 1, 0), panel(whole, 2, 0), 0)


def test_each_step_is_one_unet_call_for_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, forward = [], UNet2DConditionModel.forward

    @functools.wraps(forward)
    def counted(self: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        rows.append(len(sample))
        return forward(self, sample, *args, **kwargs)

    monkeypatch.setattr(UNet2DConditionModel, "forward", counted)
    assert main(["demo", "--steps", "3"]) == 0
    assert rows == [12, 12, 12]  # three prompts, with and without a map, with and without the prompt


def test_a_photo_of_ones_own_and_any_words_are_taken() -> None:
    photo = np.zeros((90, 200, 3), np.uint8)
    photo[20:70, 60:140] = (200, 90, 30)
    Path("own.png").write_bytes(encode_image("own.png", photo))
    prompts = ["", "ein roter Kreis, größer als " + "alles " * 100, "\x1b[2J\n" + "W" * 400]
    words = [word for prompt in prompts for word in ("--prompt", prompt)]
    assert main(["demo", "--image", "own.png", "--steps", "1", *words, "-o", "folder/"]) == 0
    whole = read_image("folder/sheet.png")
    assert np.array_equal(panel(whole, 0, 0), fit(photo, MIN_PANEL_SIDE, MIN_PANEL_SIDE))
    assert np.array_equal(panel(whole, 0, 1)[MIN_PANEL_SIDE // 2, [0, -1]], np.zeros((2, 3)))


BAD: dict[str, tuple[list[str], str]] = {
    "a sheet that is there": (["-o", "there.png"], "'there.png' exists; --overwrite replaces it"),
    "a JPEG to write": (["-o", "sheet.jpg"], "does not end in .png"),
    "a folder that is not there": (["-o", "there.png/sheet.png"], "'there.png' is a file, expected a folder"),
    "no steps": (["--steps", "0"], "steps 0 is outside 1..1000"),
    "a seed in words": (["--seed", "one"], "seed 'one': expected a whole number"),
    "too many prompts": (["--prompt", "a"] * 7, "7 prompts, expected up to 6"),
    "half a letter": (["--prompt", "\udc80"], "prompt holds bytes that are not UTF-8"),
    "a missing photo": (["--image", "absent.png"], "'absent.png' does not exist"),
    "a photo without edges": (["--image", "flat.png"], "'flat.png' has no edges"),
    "a strip": (["--image", "strip.png"], "megapixels"),
    "an unknown option": (["--prompts", "a"], "unknown argument '--prompts', the nearest are: --prompt"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("there.png").write_bytes(b"mine")
    Path("flat.png").write_bytes(encode_image("flat.png", np.full((80, 80, 3), 90, np.uint8)))
    Path("strip.png").write_bytes(encode_image("strip.png", np.tile(np.uint8([0, 255]), (1, 30_000))))
    arguments, expected = BAD[name]
    refused(capsys, arguments, expected)
    assert Path("there.png").read_bytes() == b"mine"


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str, code: int = 2) -> None:
    before = sorted(os.listdir())
    assert main(["demo", "--steps", "1", *arguments]) == code
    assert sorted(os.listdir()) == before
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert expected in err


def test_weights_that_are_absent_or_damaged_are_refused_in_one_line(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(embedded, "EMBEDDED_FOLDER", tmp_path / "model")
    refused(capsys, [], "the embedded model's weights are not installed: ")
    shutil.copytree(shelf / "model", tmp_path / "model")
    control = tmp_path / "model" / "controlnet_canny"
    (control / "diffusion_pytorch_model.safetensors").write_bytes(b"cut")
    refused(capsys, [], "diffusion_pytorch_model.safetensors")
    shutil.rmtree(control)
    refused(capsys, [], "'embedded/canny': the embedded model has a ControlNet for nothing only")


def test_what_fails_or_is_interrupted_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(error: BaseException) -> Any:
        def fail(*_: Any) -> None:
            raise error

        return fail

    monkeypatch.setattr(pairs, "generate_pairs", failing(RuntimeError("no\nmemory")))
    refused(capsys, [], "controlnet-ext: no memory\n", 1)
    monkeypatch.setattr(pairs, "generate_pairs", failing(KeyboardInterrupt()))
    refused(capsys, [], "interrupted", 130)


def test_overwrite_replaces_the_sheet() -> None:
    Path("sheet.png").write_bytes(b"mine")
    assert main(["demo", "--steps", "1", "--prompt", "a", "--overwrite"]) == 0
    assert read_image("sheet.png").shape[2] == 3


def test_asked_edges_are_green_where_the_image_has_them_and_red_where_not() -> None:
    image = np.zeros((12, 12, 3), np.uint8)
    image[:, 6:] = 200  # canny finds column 6, or 5
    asked = np.zeros((12, 12, 3), np.uint8)
    asked[5, 1:10] = 255
    shown = overlay_edges(asked, image)
    column = int(cv2.Canny(image, 100, 200)[5].argmax())
    assert [tuple(colour) for colour in shown[5, 1:10].tolist()] == [
        HIT_COLOR if abs(x - column) <= 1 else MISS_COLOR for x in range(1, 10)
    ]
    assert np.array_equal(shown[0], image[0] // 2)


def test_text_stays_in_its_lines() -> None:
    lines = wrap_text("a red circle and a blue star on a striped green ground" + " and so on" * 9, 256)
    assert len(lines) == 2 and lines[0].startswith("a red circle") and lines[1].endswith(" ...")
    assert wrap_text("a red circle", 256) == ["a red circle"]
    assert wrap_text("", 256) == []
    column = Column("W" * 300, *[np.zeros((128, 128, 3), np.uint8)] * 2, *[EdgeScore(0.0, 0.0)] * 2)
    asked = np.zeros((128, 128, 3), np.uint8)
    few, many = (render_sheet(asked, asked, [column] * n, "i" * 2000) for n in (1, 3))
    for whole in (few, many):  # no ink in the margins
        assert (whole[:, -MARGIN:] == whole[0, 0]).all() and (whole[-MARGIN // 2 :] == whole[0, 0]).all()


def test_a_model_with_depth_shows_a_landscapes_depth_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    standin.save_small(tmp_path / "worlds", ["canny", "depth"])
    monkeypatch.setattr(embedded, "EMBEDDED_FOLDER", tmp_path / "worlds")
    capsys.readouterr()  # of saving
    assert main(["demo", "--steps", "1", "--prompt", "glossy render of a red cup", "-o", "sheet.png"]) == 0
    *lines, last = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[0] for line in lines] == ["glossy render of a red cup", *DEMO["depth"]]
    assert all(
        re.search(r"(0|1)\.\d\d of the depth map's jumps within 1 px, unguided (0|1)\.\d\d$", s) for s in lines[1:]
    )
    assert "1 steps, guidance 2; 8 images in" in last
    whole = read_image("sheet.png")
    depth = fit(read_image(embedded.SAMPLE_DEPTH), standin.SMALL_SIZE, standin.SMALL_SIZE)
    below = whole[panel_origin(0, 3)[1] + MARGIN + 2 * LINE_HEIGHT + 4 :]
    shown = below[:MIN_PANEL_SIDE, MARGIN : MARGIN + MIN_PANEL_SIDE]
    assert np.array_equal(shown, np.kron(depth, np.ones((4, 4, 1), np.uint8)))
    assert whole.shape[1] == 2 * MARGIN + 4 * MIN_PANEL_SIDE + 3 * GAP


def test_the_share_of_jumps_is_that_of_the_edges_that_an_image_has() -> None:
    depth = np.zeros((32, 32, 3), np.uint8)
    depth[8:24, 8:24] = 200
    jumps = find_depth_jumps(depth)
    assert jumps.any() and not jumps[12:20, 12:20].any()
    half = depth.copy()
    half[:, 16:] = 0
    assert compute_jump_share(jumps, depth) == 1.0
    assert 0.3 < compute_jump_share(jumps, half) < 0.7
    assert compute_jump_share(jumps, np.zeros_like(depth)) == 0.0
    assert compute_jump_share(np.zeros_like(jumps), depth) == 1.0


def test_the_embedded_model_obeys_the_photo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(embedded, "EMBEDDED_FOLDER", INSTALLED)
    assert main(["demo", "--steps", "10"]) == 0
    *lines, _ = capsys.readouterr().err.splitlines()
    found = [SCORES.fullmatch(line) for line in lines]
    assert len(found) == len(PROMPTS)
    for told in found:
        assert told is not None
        guided, unguided = float(told[2]), float(told[3])
        assert guided >= 0.5 and guided >= unguided + 0.25, told[0]

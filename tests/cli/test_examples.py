"""The examples run as they stand, offline, on the embedded model."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm_python: str) -> Path:
    """An empty working folder, and `controlnet-ext` of this checkout on the path."""
    monkeypatch.setattr(sys, "executable", warm_python)
    shim = tmp_path / "bin" / "controlnet-ext"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec "{warm_python}" -m controlnet_ext.cli "$@"\n')
    shim.chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("PATH", f"{shim.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return work


def read(path: str) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"), int)


def run_shell(name: str, *words: str) -> str:
    done = subprocess.run(["sh", str(EXAMPLES / name), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_in_the_table_and_has_a_test() -> None:
    scripts = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh")}
    table = (EXAMPLES / "README.md").read_text()
    assert len(scripts) >= 6 and all(f"| `{name}` |" in table for name in scripts)
    tests = Path(__file__).read_text()
    assert all(f'"{name}"' in tests for name in scripts)


def test_make_map_writes_three_maps(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "make_map.py"))
    assert capsys.readouterr().out == "edges (256, 384, 3)\n"
    assert set(np.unique(read("canny.png"))) == {0, 255}
    assert read("lines.png").shape == (256, 384, 3) and read("tile.png").std() > 10


def test_guide_writes_an_image_that_differs_from_the_unguided_one() -> None:
    runpy.run_path(str(EXAMPLES / "guide.py"))
    guided, unguided = read("guided.png"), read("unguided.png")
    assert guided.shape == (128, 128, 3) and np.abs(guided - unguided).mean() > 10


def test_regions_write_an_image() -> None:
    runpy.run_path(str(EXAMPLES / "regions.py"))
    assert read("regions.png").std() > 10


def test_inpainting_keeps_the_pixels_around_the_mask() -> None:
    made = runpy.run_path(str(EXAMPLES / "inpaint.py"))
    difference = np.abs(read("inpainted.png") - made["photo"]).max(axis=2)
    assert difference[:24].max() == 0 and difference[40:88, 40:88].mean() > 10


def test_batch_folder_makes_two_maps_of_each_image() -> None:
    run_shell("batch_folder.sh")
    names = {path.relative_to("maps").as_posix() for path in Path("maps").rglob("*.png")}
    assert names == {f"{key}_{name}.png" for key in ("a", "b", "more/c") for name in ("canny", "lineart_standard")}


def test_the_client_gets_an_image_and_its_map_from_the_server() -> None:
    pytest.importorskip("uvicorn", reason="needs controlnet-ext[serve]")
    runpy.run_path(str(EXAMPLES / "serve_client.py"))
    assert read("served.png").shape == (128, 128, 3)
    assert set(np.unique(read("served_map.png"))) == {0, 255}


def test_score_writes_a_report_of_two_images(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["score.py", "1"])
    runpy.run_path(str(EXAMPLES / "score.py"))
    assert "of 2 images, floor 0." in capsys.readouterr().out
    assert Path("report.html").read_text().count('<img class="photo"') == 2


QUICK = "--data scenes:8 --size 64x64 --steps 2 --batch 2 --every 2 --draws 4 --fidelity-images 1"


@pytest.mark.parametrize(
    "words", [QUICK.split(), pytest.param([], marks=pytest.mark.long)], ids=["quick", "as it stands"]
)
def test_train_writes_a_control_model_and_a_report(words: list[str]) -> None:
    assert "controlnet" in run_shell("train.sh", *words)
    assert Path("lineart.safetensors").stat().st_size > 1_000_000
    assert "maps made by `lineart_standard`" in Path("lineart.safetensors.md").read_text()
    assert "Held-out images over time" in Path("lineart.safetensors.training/report.html").read_text()

"""Preprocessors of one's own in the command: `--load FILE.py`, in every command and every process that runs them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from controlnet_ext.preprocessors import registry

from controlnet_ext import cli
from controlnet_ext.files.image_reader import read_image
from controlnet_ext.files.image_writer import write_image

ROOT = Path(__file__).parents[2]
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
MINE = """
from typing import Annotated

from beside import DIVISOR
from controlnet_ext.preprocessors import Range, preprocessor


@preprocessor("dim", makes="edges")
def dim(image, share: Annotated[int, Range(1, 9)] = DIVISOR, jobs: Annotated[int, Range(0, 9)] = 0):
    return image // share + jobs


@preprocessor("hollow", makes="other")
class Hollow:
    def __init__(self, device, library): ...

    def __call__(self, image, fails: bool = False):
        return {}["a key"] if fails else image
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working folder with mine.py, what it imports, and three images; the registry is as before afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    registry.list_preprocessors()
    monkeypatch.setattr(registry, "_specs_by_name", dict(registry._specs_by_name))
    monkeypatch.setattr(registry, "_loaded_files", {})
    Path("mine.py").write_text(MINE)
    Path("beside.py").write_text("DIVISOR = 2")
    monkeypatch.delitem(sys.modules, "beside", raising=False)
    Path("in").mkdir()
    for name in "abc":
        write_image(f"in/{name}.png", PIXELS)


def run(words, capsys):
    code = cli.main(words.split())
    return (code, *capsys.readouterr())


def test_a_file_of_ones_own_is_run_before_the_flags_are_read(capsys):
    code, _, error = run("preprocess dim in/a.png -o out.png --load mine.py --share 3", capsys)
    assert code == 0, error
    np.testing.assert_array_equal(read_image("out.png"), PIXELS // 3)
    assert run("preprocess --load mine.py dim in/a.png -o dim.png", capsys)[0] == 0
    np.testing.assert_array_equal(read_image("dim.png"), PIXELS // 2)


def test_a_parameter_called_as_a_flag_of_the_command_is_given_with_its_preprocessor(capsys):
    assert run("preprocess dim in -o maps --load mine.py --jobs 1 --dim.jobs 5", capsys)[0] == 0
    np.testing.assert_array_equal(read_image("maps/a_dim.png"), PIXELS // 2 + 5)


def test_every_process_of_a_job_knows_it():
    words = ["preprocess", "dim,hollow", "in", "-o", "maps", "--jobs", "2", "--load", "mine.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "controlnet_ext.cli", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "3 of 3 images done" in done.stderr, done.stderr
    np.testing.assert_array_equal(read_image("maps/c_dim.png"), PIXELS // 2)


def test_an_error_in_it_is_a_line_for_an_image_and_not_a_traceback(capsys):
    code, _, error = run("preprocess hollow in -o maps --load mine.py --fails true", capsys)
    assert code == 1 and "controlnet-ext: 'in/a.png': KeyError: 'a key'\n" in error
    assert [json.loads(line)["key"] for line in Path("maps.job/errors.jsonl").read_text().splitlines()] == [
        "a",
        "b",
        "c",
    ]
    code, _, error = run("preprocess hollow in/a.png -o a.png --load mine.py --fails true", capsys)
    assert (code, error) == (1, "controlnet-ext: 'in/a.png': KeyError: 'a key'\n")


def test_a_changed_file_makes_other_maps(capsys, monkeypatch):
    assert run("preprocess hollow in -o maps --load mine.py", capsys)[0] == 0
    assert run("preprocess hollow in -o maps --load mine.py", capsys)[0] == 0
    Path("mine.py").write_text(MINE.replace("else image", "else image + 1"))
    for name in ("dim", "hollow"):
        registry._specs_by_name.pop(name)
    registry._loaded_files.clear()
    code, _, error = run("preprocess hollow in -o maps --load mine.py", capsys)
    assert code == 2 and "a_hollow.png' exists; --overwrite replaces it" in error


def test_the_list_of_preprocessors_shows_it(capsys):
    _, out, _ = run("preprocessors --json --load mine.py", capsys)
    (mine,) = [each for each in json.loads(out) if each["name"] == "dim"]
    assert [parameter["name"] for parameter in mine["parameters"]] == ["share", "jobs", "resolution"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "'mine.py' does not exist"),
        ("", "'mine.py' registers no preprocessor: expected a function under @preprocessor(...)"),
        ("import sys\n\nsys.exit(3)", "'mine.py' cannot be loaded: SystemExit in line 3: 3"),
        ("x = 1 +", "'mine.py' cannot be loaded: SyntaxError: invalid syntax"),
        ("import nowhere", "ModuleNotFoundError in line 1: No module named 'nowhere'"),
        (MINE.replace('"dim"', '"canny"'), "ValueError in line 8: preprocessor 'canny' is entered already, by control"),
        ("\0", "cannot be loaded"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_refused_in_one_line(content, reason, capsys):
    Path("mine.py").unlink()
    if content is not None:
        Path("mine.py").write_text(content)
    code, out, error = run("preprocess canny in/a.png -o a.png --load mine.py", capsys)
    assert (code, out) == (2, "") and error.startswith("controlnet-ext: ") and error.count("\n") == 1
    assert reason in error and not Path("a.png").exists()


def test_a_flag_without_its_file_is_refused_in_one_line(capsys):
    code, _, error = run("preprocess canny in/a.png -o a.png --load", capsys)
    assert code == 2 and error.startswith("controlnet-ext: argument --load: expected one argument")

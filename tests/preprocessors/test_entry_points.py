"""Preprocessors of other installed packages, which register by the entry point group `controlnet_ext.preprocessors`."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from controlnet_ext.files.image_reader import read_image
from controlnet_ext.files.image_writer import write_image

ROOT = Path(__file__).parents[2]
MODULE = """
from typing import Annotated

from controlnet_ext.preprocessors import Range, preprocessor


@preprocessor("outside_{name}", makes="edges")
def dim(image, share: Annotated[int, Range(1, 9)] = 2):
    return image // share
"""
FUNCTION = """
def register(preprocessor):
    @preprocessor("outside_{name}", makes="edges")
    def dim(image):
        return image // 2
"""


def install(site, name, code, value):
    """Lay a package into a folder of packages, as pip leaves it."""
    (site / f"{name}.py").write_text(code)
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[controlnet_ext.preprocessors]\n{name} = {value}\n")


@pytest.fixture
def site(tmp_path):
    folder = tmp_path / "site"
    folder.mkdir()
    return folder


def run(site, *words):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(site)])}
    command = [sys.executable, "-m", "controlnet_ext.cli", *words]
    return subprocess.run(command, cwd=site, env=environment, capture_output=True, text=True)


def test_a_package_brings_preprocessors_by_a_module_or_by_a_function(site):
    install(site, "pack_a", MODULE.format(name="a"), "pack_a")
    install(site, "pack_b", FUNCTION.format(name="b"), "pack_b:register")
    listed = run(site, "preprocessors")
    assert listed.stderr == "" and "\noutside_a " in listed.stdout and "\noutside_b " in listed.stdout
    pixels = np.full((8, 8, 3), 90, np.uint8)
    write_image(site / "in.png", pixels)
    done = run(site, "preprocess", "outside_a,outside_b", "in.png", "-o", "out/", "--share", "3")
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(read_image(site / "out/in_outside_a.png"), pixels // 3)
    np.testing.assert_array_equal(read_image(site / "out/in_outside_b.png"), pixels // 2)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        (MODULE.replace("outside_{name}", "canny"), "ValueError: preprocessor 'canny' is "),
        (MODULE.replace('"edges"', '"smells"'), "map kind 'smells' is none of: "),
    ],
)
def test_a_broken_package_gives_one_line_and_takes_nothing_away(site, code, reason):
    install(site, "broken", code, "broken")
    install(site, "sound", MODULE.format(name="sound"), "sound")
    done = run(site, "preprocessors")
    assert done.returncode == 0 and "\ncanny " in done.stdout and "\noutside_sound " in done.stdout
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("controlnet-ext: no preprocessors of broken (broken): ") and reason in done.stderr

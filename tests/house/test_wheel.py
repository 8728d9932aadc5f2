"""The wheel: what it holds, that it imports beside other people's files, and that its types are seen from outside."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("pyproject.toml", "README.md", "LICENSE", "controlnet_ext", "preprocessors", "annotators")

CLIENT = """
from PIL import Image
from controlnet_ext import ControlMap, Unit, Window, preprocess

Image.new("RGB", (64, 64)).save("photo.png")
edges: ControlMap = preprocess("canny", "photo.png", low=50)
print(edges.kind, Window(0.0, 0.5))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this tree, built without its build leaving files in it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, source / part, ignore=ignored)
        else:
            source.mkdir(exist_ok=True)
            shutil.copy(ROOT / part, source / part)
    words = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", str(folder), str(source)]
    subprocess.run([sys.executable, *words], check=True, cwd=folder)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """A folder in which nothing but the wheel is installed."""
    folder = tmp_path_factory.mktemp("site")
    words = ["-m", "pip", "install", "--no-deps", "--quiet", "--target", str(folder), str(wheel)]
    subprocess.run([sys.executable, *words], check=True)
    return folder


def run(code, folder, site):
    """What a script in a folder prints, with the installed wheel and without this tree."""
    (folder / "script.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"controlnet_ext"}
    sources = {
        (path.relative_to(ROOT) if package == "controlnet_ext" else Path("controlnet_ext") / path.relative_to(ROOT))
        for package in ("controlnet_ext", "preprocessors", "annotators")
        for path in (ROOT / package).rglob("*.py")
    }
    assert {Path(name) for name in names if name.endswith(".py")} == sources
    assert {"controlnet_ext/py.typed", "controlnet_ext/embedded/coffee.jpg"} <= set(names)
    assert any(name.startswith("controlnet_ext/embedded/model/unet/") for name in names)


def test_only_the_package_is_installed(site):
    assert {path.name.partition("-")[0] for path in site.iterdir()} - {"bin"} == {"controlnet_ext"}


def test_a_users_own_preprocessors_and_annotators_do_not_disturb(site, tmp_path):
    (tmp_path / "preprocessors.py").write_text("raise RuntimeError('the wrong one')")
    (tmp_path / "annotators").mkdir()
    (tmp_path / "annotators" / "__init__.py").write_text("raise RuntimeError('the wrong one')")
    assert run(CLIENT, tmp_path, site) == "edges 0..0.5\n"
    code = (
        "import controlnet_ext.preprocessors as p, controlnet_ext as c; print(len(p.list_preprocessors()), c.__file__)"
    )
    count, file = run(code, tmp_path, site).split()
    assert int(count) >= 96 and Path(file).is_relative_to(site)


def test_a_checkout_works_beside_a_users_own_preprocessors(tmp_path):
    (tmp_path / "preprocessors.py").write_text("raise RuntimeError('the wrong one')")
    assert run(CLIENT, tmp_path, ROOT) == "edges 0..0.5\n"


def check(code, folder, site):
    """mypy's words on a client's script, which sees the installed package alone."""
    (folder / "client.py").write_text(code)
    words = ["-m", "mypy", "--no-site-packages", "--ignore-missing-imports", "--follow-imports=silent", "client.py"]
    environment = {**os.environ, "MYPYPATH": str(site)}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout


def test_a_clients_script_type_checks_against_the_wheel(site, tmp_path):
    code, words = check(CLIENT, tmp_path, site)
    assert code == 0, words
    wrong = CLIENT.replace("edges: ControlMap", "edges: Window").replace("Window(0.0, 0.5)", 'Window("a")')
    code, words = check(wrong, tmp_path, site)
    assert code == 1 and words.count("error:") == 3 and "ControlMap" in words

"""Stand-ins for packages that are imported when they are used."""

from __future__ import annotations

import gc
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from controlnet_ext import cli
from controlnet_ext.cli.common import resume_garbage_collection
from controlnet_ext.cli.deferred_imports import DEFERRED_PACKAGES, DeferringFinder, defer_imports

SOURCES = {
    "__init__.py": "class Heavy:\n    number = 3\n\ndef double(n):\n    return 2 * n\n\nNAMES = {'a': 1}\n"
    "settings = None\n",
    "deep/__init__.py": "from .. import Heavy\n\nclass Deep(Heavy): ...\n",
}


@pytest.fixture
def finder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DeferringFinder]:
    """The package `heavy_package`, deferred."""
    for name, text in SOURCES.items():
        path = tmp_path / "heavy_package" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    finder = defer_imports(["heavy_package"])
    yield finder
    sys.meta_path.remove(finder)
    for name in [name for name in sys.modules if name.startswith("heavy_")]:
        del sys.modules[name]


def import_user(tmp_path: Path, text: str) -> ModuleType:
    (tmp_path / "heavy_user.py").write_text(text)
    return importlib.import_module("heavy_user")


def test_a_name_that_is_only_imported_imports_nothing(finder: DeferringFinder, tmp_path: Path) -> None:
    text = "import heavy_package\nimport heavy_package.deep\nfrom heavy_package import Heavy, double\n"
    text += "from heavy_package.deep import Deep\nfrom heavy_package import deep\n"
    user = import_user(tmp_path, text)
    assert not isinstance(3, user.Heavy) and not issubclass(int, user.Deep)
    assert user.Heavy | None is not None and None | user.Heavy is not None
    assert importlib.util.find_spec("heavy_package") is not None
    assert finder.packages == {"heavy_package"}


@pytest.mark.parametrize(
    "use",
    [
        "assert double(4) == 8",
        "assert heavy_package.double(4) == 8",
        "assert Heavy.number == 3",
        "class Mine(Deep): ...\nassert Mine.number == 3",
        "assert 'a' in NAMES and len(NAMES) == 1 and NAMES['a'] == 1 and list(NAMES) == ['a'] and NAMES",
        "heavy_package.settings = 5",
        "assert not hasattr(heavy_package, 'nothing')",
        "from heavy_package import *",
    ],
)
def test_a_use_puts_the_package_where_its_stand_ins_were(use: str, finder: DeferringFinder, tmp_path: Path) -> None:
    text = "import heavy_package\nfrom heavy_package import Heavy, double, NAMES\nfrom heavy_package.deep import Deep\n"
    user = import_user(tmp_path, text + use)
    assert not finder.packages
    real = sys.modules["heavy_package"]
    assert type(real) is ModuleType and user.heavy_package is real
    assert type(user.Heavy) is type and user.Heavy is real.Heavy
    assert user.Deep is real.deep.Deep and isinstance(user.Deep(), user.Heavy)
    assert real.settings == (5 if "settings" in use else None)


def test_what_is_not_there_cannot_be_imported(finder: DeferringFinder, tmp_path: Path) -> None:
    with pytest.raises(ImportError, match="nothing"):
        import_user(tmp_path, "from heavy_package import nothing\n")
    absent = defer_imports(["heavy_absent"])
    try:
        assert importlib.util.find_spec("heavy_absent") is None
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("heavy_absent")
    finally:
        sys.meta_path.remove(absent)


def test_a_package_that_is_imported_already_stays() -> None:
    finder = defer_imports(["json", *DEFERRED_PACKAGES])
    sys.meta_path.remove(finder)
    assert "json" not in finder.packages
    assert finder.packages == {name for name in DEFERRED_PACKAGES if name not in sys.modules}


@pytest.mark.parametrize(("command", "is_deferred"), [("generate", True), ("train", False)])
def test_the_process_of_a_command_defers_and_main_does_not(
    command: str, is_deferred: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(code: int) -> None:
        raise SystemExit(code)

    calls: list[str] = []
    monkeypatch.setattr(cli, "defer_imports", lambda: calls.append("deferred"))
    monkeypatch.setattr(cli.os, "_exit", end)
    monkeypatch.setattr(sys, "argv", ["controlnet-ext", command, "--nonsense"])
    assert cli.main() == 2 and not calls and gc.isenabled()
    try:
        with pytest.raises(SystemExit):
            cli.program()
    finally:
        resume_garbage_collection()
        gc.unfreeze()
    assert calls == ["deferred"] * is_deferred


def test_the_collection_of_garbage_is_resumed_where_it_was_stopped() -> None:
    resume_garbage_collection()
    assert gc.get_freeze_count() == 0
    gc.disable()
    try:
        resume_garbage_collection()
        assert gc.isenabled() and gc.get_freeze_count() > 0
    finally:
        gc.enable()
        gc.unfreeze()

"""One thread a process: networks this small gain nothing from two, and while something else runs there, threads
that wait for each other make the tests of ControlNets take 181 s instead of 58 s. And a server for a file of tests."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is first imported
gc.disable()  # while tests are collected: a third of that time, for the million objects that imports make
LONGEST = (  # files with tests of seconds: at the end, one process of xdist would wait for the other's
    "test_examples.py",
    "test_compiled.py",
    "test_guide_traces.py",
    "test_depth_boost.py",
    "test_shapes.py",
    "test_inpainting.py",
    "test_contributing.py",
    "test_train_command.py",
    "test_control_lora.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, in their own order."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what imports have made, and wait for more between its runs."""
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
    gc.enable()


@pytest.fixture
def sigint() -> Iterator[None]:
    """Let SIGINT interrupt this process and those that it starts, also where the one that started pytest ignores it, as
    `nohup` and a shell's background jobs do."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def warm_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Called as Python is, but torch and diffusers are imported: see preloaded.py. The processes of xdist share it."""
    from preloaded import open_python

    base = tmp_path_factory.getbasetemp()
    with open_python((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "python") as python:
        yield python


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    """A client and the desk that answers it."""
    pytest.importorskip("starlette", reason="needs controlnet-ext[serve]")
    pytest.importorskip("uvicorn", reason="needs controlnet-ext[serve]")
    import serving

    with serving.served() as found:
        yield found


@pytest.fixture
def client(server: Any) -> Any:
    return server[0]

"""The engines of jobs: what is left when they are interrupted."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from controlnet_ext.batch.engines import map_in_threads


def test_an_interruption_while_a_thread_starts_waits_for_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool does not know the thread yet, and would leave it writing while the process ends."""
    began, may_end, ended = threading.Event(), threading.Event(), []
    start, shutdown = threading.Thread.start, ThreadPoolExecutor.shutdown

    def stage(number: int) -> int:
        began.set()
        may_end.wait()
        ended.append(number)
        return number

    def start_and_be_interrupted(thread: threading.Thread) -> None:
        start(thread)
        began.wait()
        raise KeyboardInterrupt

    def shut_down(*options: object, **named: bool) -> None:
        shutdown(*options, **named)  # type: ignore[arg-type]
        may_end.set()

    monkeypatch.setattr(threading.Thread, "start", start_and_be_interrupted)
    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", shut_down)
    with pytest.raises(KeyboardInterrupt):
        list(map_in_threads(2, stage, [1, 2]))
    assert ended == [1]

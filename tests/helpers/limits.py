"""Limits that do not depend on how busy the machine is: the CPU time of this process, and waiting for a state."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

HANG = 600.0  # seconds after which a wait is given up as endless; a test that passes never comes near it


@contextmanager
def limit_cpu(seconds: int) -> Iterator[None]:
    """Raise AssertionError in the block when this process has used `seconds` of CPU time in it, and again each second
    that it goes on. Time that other processes take does not count.

    Give ten times what the block needs on an idle machine. Only for the main thread. Without timers (Windows) nothing
    is limited. It is no `RLIMIT_CPU`, which counts the clock's ticks from the start of the process: after ten minutes
    those were 14 s less than what `getrusage` tells, from which that limit would have to be set."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: Any) -> None:
        raise AssertionError(f"over {seconds} s of CPU time")

    handler = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)


def wait_until(condition: Callable[[], Any], process: subprocess.Popen[Any] | None = None) -> Any:
    """Return what `condition()` returns once that is true.

    With a process: AssertionError when it ends before. Without one: when nothing happens for `HANG` seconds."""
    end = time.monotonic() + HANG
    while True:
        over = time.monotonic() > end if process is None else process.poll() is not None
        if value := condition():  # asked after the process ended too: it may have come last
            return value
        assert not over, f"never came true, exit code {process.returncode if process else None}"
        time.sleep(0.01)

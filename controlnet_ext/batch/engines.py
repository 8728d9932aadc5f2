"""Where a stage runs: here, or in threads. Lots come back in their order, and only a few are under way at a time, so
memory stays flat however many there are.

Freed memory that a job takes again for the next picture.

Stages in processes of their own. One that dies, of a picture that breaks a decoder, does not end the job.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any, Generic, Protocol, TypeVar

In = TypeVar("In")
Out = TypeVar("Out")
Stage = Callable[[list[In]], list[Out]]


class Engine(Protocol):
    """Runs a stage over lots. `lost` is what stands for one of a lot that ended the process it was in. With `whole`
    networks run there too, and are loaded there."""

    whole: bool

    def map(
        self, stage: Stage[In, Out], lots: Iterable[list[In]], lost: Callable[[In], Out]
    ) -> Iterator[list[Out]]: ...


class Here:
    """In this process, one after the other."""

    whole = False

    def map(self, stage: Stage[In, Out], lots: Iterable[list[In]], lost: Callable[[In], Out]) -> Iterator[list[Out]]:
        return map(stage, lots)


def threads(count: int, stage: Callable[[In], Out], lots: Iterable[In]) -> Generator[Out, None, None]:
    """A stage over lots in so many threads of this process."""
    with shut(ThreadPoolExecutor(count)) as pool:
        yield from in_order(lambda lot: pool.submit(stage, lot), lots, count)


def in_order(submit: Callable[[In], Future[Out]], lots: Iterable[In], ahead: int) -> Iterator[Out]:
    """The results of lots, in their order, with up to `ahead` of them under way."""
    waiting: deque[Future[Out]] = deque()
    for lot in lots:
        waiting.append(submit(lot))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@contextmanager
def shut(pool: Executor) -> Iterator[Executor]:
    """The pool; at the end what has not begun is dropped, what has is waited for."""
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


_TRIM, _MMAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h
LARGEST = 2**25  # bytes of a block that is kept, the most that glibc takes; larger ones go back to the system
KEPT = 2**28  # bytes of freed blocks together


def keep_freed() -> None:
    """Has this process keep the memory of arrays that are freed, where its C library is glibc; elsewhere nothing
    changes. By default every array goes back to the system, which clears the next one's memory again, page by page:
    half of the time of a job of model-free maps."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_TRIM, KEPT)
        mallopt(_MMAP, LARGEST)


AHEAD = 3  # lots under way for each process: one at work, one waiting, one being taken


class Processes:
    """An engine of so many processes. They end with this one, however it ends."""

    whole = False

    def __init__(self, jobs: int):
        self._jobs = jobs

    def map(self, stage: Stage[In, Out], lots: Iterable[list[In]], lost: Callable[[In], Out]) -> Iterator[list[Out]]:
        line: _Line[In, Out] = _Line(self._jobs, stage, lost)
        try:
            for lot in lots:
                line.put(lot)
                if len(line.waiting) >= AHEAD * self._jobs:
                    yield line.take()
            while line.waiting:
                yield line.take()
        finally:
            line.pool.shutdown(cancel_futures=True)


class _Line(Generic[In, Out]):
    """Lots on their way through processes."""

    def __init__(self, jobs: int, stage: Stage[In, Out], lost: Callable[[In], Out]):
        self._jobs, self._stage, self._lost = jobs, stage, lost
        self.pool = _pool(jobs)
        self.waiting: deque[tuple[list[In], Future[list[Out]]]] = deque()

    def put(self, lot: list[In]) -> None:
        try:
            future = _submit(self.pool, self._stage, lot)
        except BrokenProcessPool as error:  # by one that waits, and is found out when it is taken
            future = Future()
            future.set_exception(error)
        self.waiting.append((lot, future))

    def take(self) -> list[Out]:
        """The result of the longest waiting."""
        lot, future = self.waiting.popleft()
        try:
            return future.result()
        except BrokenProcessPool:
            self.pool.shutdown()
            done = [self._alone(one) for one in lot]
            self.pool = _pool(self._jobs)
            for other, _ in [self.waiting.popleft() for _ in range(len(self.waiting))]:
                self.put(other)
            return done

    def _alone(self, one: In) -> Out:
        with shut(_pool(1)) as pool:
            try:
                _submit(pool, list, []).result()
            except BrokenProcessPool:
                raise ChildProcessError(
                    "processes end as they begin: a script that calls this does so below if __name__ == '__main__'"
                ) from None
            try:
                return _submit(pool, self._stage, [one]).result()[0]
            except BrokenProcessPool:
                return self._lost(one)


def _pool(jobs: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")  # a fork copies torch's threads, and locks that they hold
    return ProcessPoolExecutor(jobs, context, _begin)


def _submit(pool: Any, stage: Stage[In, Out], lot: list[In]) -> Future[list[Out]]:
    with _no_interrupt():  # a process may start, which is not to be interrupted but stopped
        return pool.submit(stage, lot)


def _begin() -> None:
    """In a new process: one thread for OpenCV, Ctrl-C is the parent's, and no life without the parent."""
    import cv2

    keep_freed()
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@contextmanager
def _no_interrupt() -> Iterator[None]:
    if os.name == "nt":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited by processes that start meanwhile
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

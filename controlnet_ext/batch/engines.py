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


class StageEngine(Protocol):
    """Runs a stage over lots. `lost` is what stands for one of a lot that ended the process it was in. With `whole`
    networks run there too, and are loaded there."""

    runs_networks: bool

    def map(
        self, stage: Stage[In, Out], chunks: Iterable[list[In]], on_crash: Callable[[In], Out]
    ) -> Iterator[list[Out]]: ...


class InProcessEngine:
    """In this process, one after the other."""

    runs_networks = False

    def map(
        self, stage: Stage[In, Out], chunks: Iterable[list[In]], on_crash: Callable[[In], Out]
    ) -> Iterator[list[Out]]:
        return map(stage, chunks)


def map_in_threads(workers: int, stage: Callable[[In], Out], chunks: Iterable[In]) -> Generator[Out, None, None]:
    """A stage over lots in so many threads of this process."""
    with closing_pool(ThreadPoolExecutor(workers)) as pool:
        yield from map_ordered(lambda lot: pool.submit(stage, lot), chunks, workers)


def map_ordered(submit: Callable[[In], Future[Out]], chunks: Iterable[In], max_in_flight: int) -> Iterator[Out]:
    """The results of lots, in their order, with up to `ahead` of them under way."""
    waiting: deque[Future[Out]] = deque()
    for lot in chunks:
        waiting.append(submit(lot))
        if len(waiting) >= max_in_flight:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@contextmanager
def closing_pool(pool: Executor) -> Iterator[Executor]:
    """The pool; at the end what has not begun is dropped, what has is waited for."""
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h
MMAP_THRESHOLD_BYTES = (
    2**25
)  # bytes of a block that is kept, the most that glibc takes; larger ones go back to the system
TRIM_THRESHOLD_BYTES = 2**28  # bytes of freed blocks together


def keep_heap() -> None:
    """Has this process keep the memory of arrays that are freed, where its C library is glibc; elsewhere nothing
    changes. By default every array goes back to the system, which clears the next one's memory again, page by page:
    half of the time of a job of model-free maps."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)
        mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)


CHUNKS_PER_PROCESS = 3  # lots under way for each process: one at work, one waiting, one being taken


class ProcessEngine:
    """An engine of so many processes. They end with this one, however it ends."""

    runs_networks = False

    def __init__(self, process_count: int):
        self._process_count = process_count

    def map(
        self, stage: Stage[In, Out], chunks: Iterable[list[In]], on_crash: Callable[[In], Out]
    ) -> Iterator[list[Out]]:
        line: _ChunkQueue[In, Out] = _ChunkQueue(self._process_count, stage, on_crash)
        try:
            for lot in chunks:
                line.put(lot)
                if len(line.in_flight) >= CHUNKS_PER_PROCESS * self._process_count:
                    yield line.take()
            while line.in_flight:
                yield line.take()
        finally:
            line.pool.shutdown(cancel_futures=True)


class _ChunkQueue(Generic[In, Out]):
    """Lots on their way through processes."""

    def __init__(self, process_count: int, stage: Stage[In, Out], on_crash: Callable[[In], Out]):
        self._process_count, self._stage, self._on_crash = process_count, stage, on_crash
        self.pool = _make_pool(process_count)
        self.in_flight: deque[tuple[list[In], Future[list[Out]]]] = deque()

    def put(self, chunk: list[In]) -> None:
        try:
            future = _submit(self.pool, self._stage, chunk)
        except BrokenProcessPool as error:  # by one that waits, and is found out when it is taken
            future = Future()
            future.set_exception(error)
        self.in_flight.append((chunk, future))

    def take(self) -> list[Out]:
        """The result of the longest waiting."""
        lot, future = self.in_flight.popleft()
        try:
            return future.result()
        except BrokenProcessPool:
            self.pool.shutdown()
            done = [self._run_isolated(one) for one in lot]
            self.pool = _make_pool(self._process_count)
            for other, _ in [self.in_flight.popleft() for _ in range(len(self.in_flight))]:
                self.put(other)
            return done

    def _run_isolated(self, item: In) -> Out:
        with closing_pool(_make_pool(1)) as pool:
            try:
                _submit(pool, list, []).result()
            except BrokenProcessPool:
                raise ChildProcessError(
                    "processes end as they begin: a script that calls this does so below if __name__ == '__main__'"
                ) from None
            try:
                return _submit(pool, self._stage, [item]).result()[0]
            except BrokenProcessPool:
                return self._on_crash(item)


def _make_pool(process_count: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")  # a fork copies torch's threads, and locks that they hold
    return ProcessPoolExecutor(process_count, context, _initialize_process)


def _submit(pool: Any, stage: Stage[In, Out], chunk: list[In]) -> Future[list[Out]]:
    with _block_sigint():  # a process may start, which is not to be interrupted but stopped
        return pool.submit(stage, chunk)


def _initialize_process() -> None:
    """In a new process: one thread for OpenCV, Ctrl-C is the parent's, and no life without the parent."""
    import cv2

    keep_heap()
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@contextmanager
def _block_sigint() -> Iterator[None]:
    if os.name == "nt":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited by processes that start meanwhile
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

"""Engines that run the stages of a job: in this process, in threads, in processes of their own.

Chunks come back in their order, and only a few are in flight at a time, so memory does not grow with their number. A
process that dies, of an image that breaks a decoder, does not end the job.
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
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Generic, Protocol, TypeVar

In = TypeVar("In")
Out = TypeVar("Out")
Stage = Callable[[list[In]], list[Out]]


class StageEngine(Protocol):
    """An engine that runs a stage over chunks of items.

    `on_crash` makes the result of an item that ended the process it was in. If `runs_networks` is True, networks are
    loaded and run where the engine runs its stages.
    """

    runs_networks: bool

    def map(
        self, stage: Stage[In, Out], chunks: Iterable[list[In]], on_crash: Callable[[In], Out]
    ) -> Iterator[list[Out]]:
        """Yield the results of each chunk, in order."""


class InProcessEngine:
    """An engine in this process, one chunk after the other."""

    runs_networks = False

    def map(
        self, stage: Stage[In, Out], chunks: Iterable[list[In]], on_crash: Callable[[In], Out]
    ) -> Iterator[list[Out]]:
        """Yield the results of each chunk, in order."""
        return map(stage, chunks)


def map_in_threads(workers: int, stage: Callable[[In], Out], chunks: Iterable[In]) -> Generator[Out, None, None]:
    """Yield the results of `stage` over the chunks, in order, computed in `workers` threads of this process.

    No thread is at work any more when the generator ends, for whatever reason.
    """
    calls = _ThreadCalls()
    try:
        with closing_pool(ThreadPoolExecutor(workers)) as pool:
            yield from map_ordered(lambda chunk: pool.submit(calls.run, stage, chunk), chunks, workers)
    finally:
        calls.end()


class _ThreadCalls:
    """Calls in threads, whose end can be awaited.

    A pool knows nothing of a thread that it has just started when an interruption comes, and does not wait for it.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._count, self._has_ended = 0, False

    def run(self, stage: Callable[[In], Out], chunk: In) -> Out:
        """Return `stage(chunk)`. Raises CancelledError after `end`."""
        with self._condition:
            if self._has_ended:
                raise CancelledError
            self._count += 1
        try:
            return stage(chunk)
        finally:
            with self._condition:
                self._count -= 1
                self._condition.notify_all()

    def end(self) -> None:
        """Let no call begin any more, and wait for those that have begun."""
        with self._condition:
            self._has_ended = True
            self._condition.wait_for(lambda: self._count == 0)


def map_ordered(submit: Callable[[In], Future[Out]], chunks: Iterable[In], max_in_flight: int) -> Iterator[Out]:
    """Yield the results of submitted chunks in their order, with up to `max_in_flight` of them submitted ahead."""
    waiting: deque[Future[Out]] = deque()
    for chunk in chunks:
        waiting.append(submit(chunk))
        if len(waiting) >= max_in_flight:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@contextmanager
def closing_pool(pool: Executor) -> Iterator[Executor]:
    """Yield the pool; at the end drop the work that has not begun, and wait for the rest."""
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
    """Make this process keep the memory of freed arrays, where its C library is glibc.

    By default each array is returned to the system, which clears the memory of the next one again, page by page: half
    of the time of a job of maps without weights.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)
        mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)


CHUNKS_PER_PROCESS = 3  # chunks under way for each process: one at work, one waiting, one being taken


class ProcessEngine:
    """An engine of `process_count` processes, which end when this process ends, for whatever reason."""

    runs_networks = False

    def __init__(self, process_count: int):
        self._process_count = process_count

    def map(
        self, stage: Stage[In, Out], chunks: Iterable[list[In]], on_crash: Callable[[In], Out]
    ) -> Iterator[list[Out]]:
        """Yield the results of each chunk, in order. Raises ChildProcessError if processes cannot start."""
        line: _ChunkQueue[In, Out] = _ChunkQueue(self._process_count, stage, on_crash)
        try:
            for chunk in chunks:
                line.put(chunk)
                if len(line.in_flight) >= CHUNKS_PER_PROCESS * self._process_count:
                    yield line.take()
            while line.in_flight:
                yield line.take()
        finally:
            line.pool.shutdown(cancel_futures=True)


class _ChunkQueue(Generic[In, Out]):
    """Chunks in flight through a pool of processes."""

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
        """Return the result of the chunk that was submitted first."""
        chunk, future = self.in_flight.popleft()
        try:
            return future.result()
        except BrokenProcessPool:
            self.pool.shutdown()
            results = [self._run_isolated(one) for one in chunk]
            self.pool = _make_pool(self._process_count)
            for other, _ in [self.in_flight.popleft() for _ in range(len(self.in_flight))]:
                self.put(other)
            return results

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


def _submit(pool: Executor, stage: Stage[In, Out], chunk: list[In]) -> Future[list[Out]]:
    with _block_sigint():  # a process may start, which is not to be interrupted but stopped
        return pool.submit(stage, chunk)


def _initialize_process() -> None:
    """Prepare a new process: one thread for OpenCV, no SIGINT, and an end when its parent ends."""
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

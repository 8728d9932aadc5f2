"""Where a stage runs: here, or in processes. Lots come back in their order, and only a few are under way at a time, so
memory stays flat however many there are."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any, Protocol, TypeVar

AHEAD = 3  # lots under way for each process: one at work, one waiting, one being taken

In = TypeVar("In")
Out = TypeVar("Out")


class Engine(Protocol):
    """Runs a stage over lots."""

    def map(self, stage: Callable[[In], Out], lots: Iterable[In]) -> Iterator[Out]: ...

    def behind(self, stage: Callable[[In], Out], lots: Iterable[In]) -> Iterator[Out]:
        """The same in this process, while the next lots are being made."""


class Here:
    """In this process, one after the other."""

    def map(self, stage: Callable[[In], Out], lots: Iterable[In]) -> Iterator[Out]:
        return map(stage, lots)

    behind = map


class Processes:
    """In so many processes. They end with this one, however it ends."""

    def __init__(self, jobs: int):
        self._jobs = jobs

    def map(self, stage: Callable[[In], Out], lots: Iterable[In]) -> Iterator[Out]:
        context = multiprocessing.get_context("spawn")  # a fork copies torch's threads, and locks that they hold
        with _shut(ProcessPoolExecutor(self._jobs, context, _begin)) as pool:

            def submit(lot: In) -> Future[Out]:
                with _no_interrupt():  # it may start a process, which is not to be interrupted but stopped
                    return pool.submit(stage, lot)

            yield from in_order(submit, lots, AHEAD * self._jobs)

    def behind(self, stage: Callable[[In], Out], lots: Iterable[In]) -> Iterator[Out]:
        with _shut(ThreadPoolExecutor(1)) as pool:
            yield from in_order(lambda lot: pool.submit(stage, lot), lots, AHEAD)


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
def _shut(pool: Executor) -> Iterator[Executor]:
    """The pool; at the end what has not begun is dropped, what has is waited for."""
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """In a new process: one thread for OpenCV, Ctrl-C is the parent's, and no life without the parent."""
    import cv2

    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@contextmanager
def _no_interrupt() -> Iterator[Any]:
    if os.name == "nt":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited by processes that start meanwhile
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

"""One thread that does what requests ask for, in their order, and turns away what it cannot get to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Busy(Exception):
    """Too many requests wait, or the server stops; `status` is the HTTP answer's."""

    def __init__(self, status: int, words: str):
        super().__init__(words)
        self.status = status


class Worker:
    """At most `limit` requests wait or are at work."""

    def __init__(self, limit: int):
        self._limit, self._waiting, self._open = limit, 0, True
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, "controlnet-ext")

    @property
    def waiting(self) -> int:
        """How many requests wait or are at work."""
        return self._waiting

    def check(self) -> None:
        """Busy, if a request that came now were turned away."""
        if not self._open:
            raise Busy(503, "the server is stopping")
        if self._waiting >= self._limit:
            raise Busy(429, f"{self._waiting} requests wait already, try again later")

    def submit(self, work: Callable[[], Any]) -> Future[Any]:
        """Busy: 429 when the queue is full, 503 when the server stops."""
        with self._lock:
            self.check()
            self._waiting += 1
            future = self._thread.submit(work)
        future.add_done_callback(self._done)
        return future

    def close(self) -> None:
        """Take no more; what waits is dropped, what is at work ends."""
        with self._lock:
            self._open = False
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _done(self, _: Future[Any]) -> None:
        with self._lock:
            self._waiting -= 1

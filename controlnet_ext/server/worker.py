"""One thread that does what requests ask for, in their order, and turns away what it cannot get to.

How far the request at work is; told by its thread, asked by others.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Progress:
    """Picture `picture` of `count`, whose present step is `step` of `steps`, in all its passes. Who wants to see it
    sets `wanted`; `image`, a PNG in base64, is what it looked like after the last step that was wanted."""

    count: int = 0
    picture: int = 0
    step: int = 0
    steps: int = 0
    image: str | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    wanted: threading.Event = field(default_factory=threading.Event)
    since: float = field(default_factory=time.monotonic)

    @property
    def fraction(self) -> float:
        """0 where nothing is at work."""
        return (self.picture + min(self.step / max(self.steps, 1), 1)) / self.count if self.count else 0.0

    @property
    def left(self) -> float:
        """Seconds, if it goes on as it went; 0 where that is not known."""
        fraction = self.fraction
        return (time.monotonic() - self.since) * (1 - fraction) / fraction if fraction else 0.0

    def begin(self, picture: int) -> None:
        """The steps of a picture, from 0, begin."""
        self.picture, self.step = picture, 0


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

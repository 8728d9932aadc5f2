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
class GenerationProgress:
    """Picture `picture` of `count`, whose present step is `step` of `steps`, in all its passes. Who wants to see it
    sets `wanted`; `image`, a PNG in base64, is what it looked like after the last step that was wanted."""

    image_count: int = 0
    image_index: int = 0
    step: int = 0
    total_steps: int = 0
    preview: str | None = None
    stop_requested: threading.Event = field(default_factory=threading.Event)
    preview_requested: threading.Event = field(default_factory=threading.Event)
    started_at: float = field(default_factory=time.monotonic)

    @property
    def fraction(self) -> float:
        """0 where nothing is at work."""
        return (
            (self.image_index + min(self.step / max(self.total_steps, 1), 1)) / self.image_count
            if self.image_count
            else 0.0
        )

    @property
    def eta_seconds(self) -> float:
        """Seconds, if it goes on as it went; 0 where that is not known."""
        fraction = self.fraction
        return (time.monotonic() - self.started_at) * (1 - fraction) / fraction if fraction else 0.0

    def begin_image(self, image_index: int) -> None:
        """The steps of a picture, from 0, begin."""
        self.image_index, self.step = image_index, 0


class QueueFull(Exception):
    """Too many requests wait, or the server stops; `status` is the HTTP answer's."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class RequestWorker:
    """At most `limit` requests wait or are at work."""

    def __init__(self, max_pending: int):
        self._max_pending, self._pending, self._is_open = max_pending, 0, True
        self._lock = threading.Lock()
        self._executor = ThreadPoolExecutor(1, "controlnet-ext")

    @property
    def pending_count(self) -> int:
        """How many requests wait or are at work."""
        return self._pending

    def check_capacity(self) -> None:
        """Busy, if a request that came now were turned away."""
        if not self._is_open:
            raise QueueFull(503, "the server is stopping")
        if self._pending >= self._max_pending:
            raise QueueFull(429, f"{self._pending} requests wait already, try again later")

    def submit(self, work: Callable[[], Any]) -> Future[Any]:
        """Busy: 429 when the queue is full, 503 when the server stops."""
        with self._lock:
            self.check_capacity()
            self._pending += 1
            future = self._executor.submit(work)
        future.add_done_callback(self._release_slot)
        return future

    def close(self) -> None:
        """Take no more; what waits is dropped, what is at work ends."""
        with self._lock:
            self._is_open = False
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _release_slot(self, _: Future[Any]) -> None:
        with self._lock:
            self._pending -= 1

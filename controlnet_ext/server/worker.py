"""One thread that works on requests in their order, with a bounded queue, and the progress of the request at work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any


@dataclass
class GenerationProgress:
    """Progress of a request: image `image_index`, from 0, of `image_count`, and in it step `step` of `total_steps` over
    all passes. Written by the thread at work, read by others.

    Set `preview_requested` to receive in `preview`, a PNG in base64, the image after the next step. Set
    `stop_requested` to end the request after its step.
    """

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
        """The share of the work that is done, in 0..1; 0 where nothing is at work."""
        return (
            (self.image_index + min(self.step / max(self.total_steps, 1), 1)) / self.image_count
            if self.image_count
            else 0.0
        )

    @property
    def eta_seconds(self) -> float:
        """The estimated seconds that remain; 0 where they are not known."""
        fraction = self.fraction
        return (time.monotonic() - self.started_at) * (1 - fraction) / fraction if fraction else 0.0

    def begin_image(self, image_index: int) -> None:
        """Start counting the steps of the image at `image_index`, from 0."""
        self.image_index, self.step = image_index, 0


class QueueFull(Exception):
    """Raised where too many requests wait, or the server stops; `status` is that of the HTTP answer."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class RequestWorker:
    """A thread that runs one request after the other; at most `max_pending` wait or are at work."""

    def __init__(self, max_pending: int):
        self._max_pending, self._pending, self._is_open = max_pending, 0, True
        self._lock = threading.Lock()
        self._executor = ThreadPoolExecutor(1, "controlnet-ext")

    @property
    def pending_count(self) -> int:
        """The number of requests that wait or are at work."""
        return self._pending

    def check_capacity(self) -> None:
        """Raise QueueFull if a request that came now were refused: 429 with a full queue, 503 when the server stops."""
        if not self._is_open:
            raise QueueFull(503, "the server is stopping")
        if self._pending >= self._max_pending:
            raise QueueFull(429, f"{self._pending} requests wait already, try again later")

    def submit(self, work: Callable[[], Any]) -> Future[Any]:
        """Queue `work` and return the future of its result. Raises QueueFull as `check_capacity` does."""
        with self._lock:
            self.check_capacity()
            self._pending += 1
            future = self._executor.submit(work)
        future.add_done_callback(self._release_slot)
        return future

    def close(self) -> None:
        """Refuse further requests, drop those that wait, and wait for the one at work."""
        with self._lock:
            self._is_open = False
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _release_slot(self, _: Future[Any]) -> None:
        with self._lock:
            self._pending -= 1

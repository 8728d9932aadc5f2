"""One thread that works on requests in their order, with a bounded queue, and the progress of the request at work."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any


@dataclass
class GenerationProgress:
    """Progress of a request: image `image_index`, from 0, of `image_count`, and in it step `step` of `total_steps` over
    all passes. Written by the thread at work, read by others.

    Set `preview_requested` to receive in `preview`, a PNG in base64, the image after the next step. Set
    `stop_requested` to end the request after its step, with the images as they are, `skip_requested` to end its image.
    """

    image_count: int = 0
    image_index: int = 0
    step: int = 0
    total_steps: int = 0
    preview: str | None = None
    stop_requested: threading.Event = field(default_factory=threading.Event)
    skip_requested: threading.Event = field(default_factory=threading.Event)
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
        self.skip_requested.clear()


class QueueFull(Exception):
    """Raised where too many requests wait, or the server stops; `status` is that of the HTTP answer."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class RequestAbandoned(Exception):
    """Raised inside work whose answer nobody waits for any more."""


def check_abandoned(stop_event: threading.Event | None) -> None:
    """Raise RequestAbandoned if the event is set; work calls this between its steps."""
    if stop_event is not None and stop_event.is_set():
        raise RequestAbandoned("nobody waits for the answer")


Work = Callable[[threading.Event], Any]


class RequestSlot:
    """A request's place among those of a worker, from its first byte to its answer: a context manager.

    `submit` queues the work of the request, at most once. Leaving the block abandons work that is not done: work that
    waits is dropped, work that runs finds `abandoned` set and ends at its next step.
    """

    def __init__(self, worker: RequestWorker):
        self._worker = worker
        self.future: Future[Any] = Future()
        self.abandoned = threading.Event()

    def submit(self, work: Work) -> None:
        """Queue `work`, which is called with `abandoned`; `future` gets its result. It gets QueueFull if the server
        stops."""
        self._worker.enqueue(self, work)

    def __enter__(self) -> RequestSlot:
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.release(self)


class RequestWorker:
    """A thread that runs one request after the other; at most `max_pending` arrive, wait or are at work."""

    def __init__(self, max_pending: int):
        self._max_pending, self._is_open = max_pending, True
        self._condition = threading.Condition()
        self._slots: set[RequestSlot] = set()
        self._waiting: deque[tuple[RequestSlot, Work]] = deque()
        self._running: RequestSlot | None = None
        self._thread: threading.Thread | None = None

    @property
    def pending_count(self) -> int:
        """The number of requests that arrive, wait or are at work."""
        return len(self._slots)

    def reserve(self) -> RequestSlot:
        """Return a slot for a request that begins to arrive. Raises QueueFull: 429 with a full queue, 503 when the
        server stops."""
        with self._condition:
            if not self._is_open:
                raise QueueFull(503, "the server is stopping")
            if len(self._slots) >= self._max_pending:
                raise QueueFull(429, f"{len(self._slots)} requests wait already, try again later")
            slot = RequestSlot(self)
            self._slots.add(slot)
        return slot

    def submit(self, work: Callable[[], Any]) -> Future[Any]:
        """Queue `work` in a slot of its own and return the future of its result. Raises QueueFull as `reserve` does."""
        slot = self.reserve()
        slot.future.add_done_callback(lambda _: self.release(slot))
        slot.submit(lambda _: work())
        return slot.future

    def enqueue(self, slot: RequestSlot, work: Work) -> None:
        """Queue the work of a slot of this worker."""
        with self._condition:
            if not self._is_open:
                return  # `stop` has set the slot's exception
            self._waiting.append((slot, work))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work_on_requests, name="controlnet-ext", daemon=True)
                self._thread.start()
            self._condition.notify()

    def release(self, slot: RequestSlot) -> None:
        """Give back a slot: its work is dropped if it waits, and told to end if it runs."""
        with self._condition:
            slot.abandoned.set()
            self._waiting = deque(each for each in self._waiting if each[0] is not slot)
            if self._running is not slot:
                self._slots.discard(slot)

    def run_work(self, work: Callable[[], Any]) -> Any:
        """Run the work of one request, in the worker's thread."""
        return work()

    def stop(self) -> None:
        """Refuse further requests, answer those that are there with QueueFull (503), and tell the one at work to end at
        its next step."""
        with self._condition:
            self._is_open = False
            self._waiting.clear()
            slots = list(self._slots)
            self._condition.notify()
        for slot in slots:
            slot.abandoned.set()
            with suppress(Exception):  # it has its result already
                slot.future.set_exception(QueueFull(503, "the server is stopping"))

    def close(self) -> None:
        """Stop, and wait for the request at work."""
        self.stop()
        if self._thread is not None:
            self._thread.join()

    def _work_on_requests(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._waiting or not self._is_open)
                if not self._waiting:
                    return
                slot, work = self._waiting.popleft()
                self._running = slot
            result, error = None, None
            try:
                result = self.run_work(partial(work, slot.abandoned))
            except Exception as raised:
                error = raised
            except BaseException as raised:  # SystemExit would end the server where the answer is awaited
                error = RuntimeError(f"the work ended by {type(raised).__name__}")
            with self._condition:
                self._running = None
                if slot.abandoned.is_set():
                    self._slots.discard(slot)
            with suppress(Exception):  # `stop` has answered it already
                slot.future.set_result(result) if error is None else slot.future.set_exception(error)
            del slot, work, result, error  # a request holds tens of megabytes

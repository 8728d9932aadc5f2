"""The batches that a training learns from: read ahead by other processes, in an order that these do not change."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ..errors import one_line
from .bases import EncodedBatch
from .data import DecodedExample, Draw, LoadingSettings, MapMaker, Sample, Sampling, TrainingSource, View
from .encoding import EncodedExample, ExampleEncoder, MissingPixelsError, Size, stack_examples

BATCHES_AHEAD = 2  # of each worker
MAX_DEFAULT_WORKERS = 4
PARENT_INTERVAL = 1.0  # seconds between looks at whether the training still runs


@dataclass(frozen=True)
class Request:
    """An example that a worker reads."""

    sample: Sample
    size: Size
    view: View
    needs_pixels: bool


class ExampleReader(Dataset[DecodedExample | str]):
    """Reads examples, in this process or in a worker; one that cannot be read is a sentence instead."""

    def __init__(self, maps: MapMaker):
        self.maps = maps

    def __getitem__(self, request: Request) -> DecodedExample | str:
        try:
            return request.sample.decode(*request.size, request.view, self.maps, request.needs_pixels)
        except (ValueError, OSError) as error:
            return one_line(error, 300)


@dataclass(frozen=True)
class PlannedBatch:
    """The draws of a batch, each with the example where it is in memory already."""

    size: Size
    draws: tuple[tuple[Draw, EncodedExample | None], ...]


class TrainingBatches:
    """Batches of examples, equal in every process that asks for the same step and part, with any number of workers.

    A step has `parts` batches of `batch_size` examples for each of `ranks` processes. They are drawn for all processes
    together; process `rank` gets the examples `rank::ranks` of them. So two processes learn from what one process with
    twice the batch size learns from. An example that cannot be read is reported, counted, and replaced by another one
    that its place in the order alone decides.
    """

    def __init__(
        self,
        source: TrainingSource,
        encoder: ExampleEncoder,
        sampling: Sampling,
        loading: LoadingSettings,
        batch_size: int,
        seed: int,
    ):
        self._source, self._encoder, self._sampling, self._loading = source, encoder, sampling, loading
        self._batch_size, self._seed = batch_size, seed
        self._reader = ExampleReader(source.measured.maps)

    def iterate(
        self, first_step: int, parts: int = 1, rank: int = 0, ranks: int = 1
    ) -> Generator[EncodedBatch, None, None]:
        """Yield part 0 of `first_step`, the other parts of that step, then those of the next step, without end.

        Close the iterator to end its workers. Raises ValueError when too many examples cannot be read.
        """
        plans: deque[PlannedBatch] = deque()  # by the loader, ahead of what is yielded
        setting = self._loading.workers
        workers = choose_worker_count(self._encoder.device) if setting is None else setting
        loader = DataLoader(
            self._reader,
            batch_sampler=self._iter_requests(plans, first_step, parts, rank, ranks),  # type: ignore[arg-type]
            num_workers=workers,
            collate_fn=list,
            prefetch_factor=BATCHES_AHEAD if workers else None,
            worker_init_fn=_start_worker if workers else None,
            generator=torch.Generator(),  # or it would take a number from the one that dropout uses
        )
        with _without_cv2_threads():
            iterator = iter(loader)
        for results in iterator:
            yield self._encode_batch(plans.popleft(), results)

    def _iter_requests(
        self, plans: deque[PlannedBatch], first_step: int, parts: int, rank: int, ranks: int
    ) -> Iterator[list[Request]]:
        """Yield what is to be read for each batch: the examples that are not in memory."""
        count, tolerance = self._batch_size * ranks, self._loading.tolerance
        for plan in self._source.iter_plans(self._sampling, count, self._seed, first_step, parts, tolerance):
            draws = plan.draws[rank::ranks]
            cached_examples = [self._encoder.find(draw.sample, plan.size, draw.view) for draw in draws]
            plans.append(PlannedBatch(plan.size, tuple(zip(draws, cached_examples, strict=True))))
            yield [
                self._make_request(draw.sample, plan.size, draw.view)
                for draw, example in zip(draws, cached_examples, strict=True)
                if example is None
            ]

    def _make_request(self, sample: Sample, size: Size, view: View) -> Request:
        return Request(sample, size, view, not self._encoder.has_image(sample, size, view))

    def _encode_batch(self, plan: PlannedBatch, results: list[DecodedExample | str]) -> EncodedBatch:
        """Return the batch; `results` are those of its examples that were not in memory when it was planned."""
        waiting = iter(results)
        examples = [
            self._encode(draw, plan.size, next(waiting)) if example is None else example for draw, example in plan.draws
        ]
        draws = [draw for draw, _ in plan.draws]
        batch = stack_examples(examples)
        batch = batch.replace_captions(torch.tensor([d.drops_caption for d in draws]), self._encoder.empty_caption)
        drops_map = np.array([draw.drops_map for draw in draws])
        return replace(batch, maps=np.where(drops_map[:, None, None, None], np.uint8(0), batch.maps))

    def _encode(self, draw: Draw, size: Size, result: DecodedExample | str) -> EncodedExample:
        """Return the example of a draw, or the first of its substitutes that can be read."""
        tolerance, sample, view = self._loading.tolerance, draw.sample, draw.view
        for substitute in (*draw.substitutes, None):
            if isinstance(result, DecodedExample):
                try:
                    return self._encoder.encode(sample, size, view, result)
                except MissingPixelsError:  # its latents were on disk, and are gone or damaged
                    result = self._reader[Request(sample, size, view, needs_pixels=True)]
            if isinstance(result, DecodedExample):
                return self._encoder.encode(sample, size, view, result)
            tolerance.add(sample.name, result)
            tolerance.check(self._source.total or 0)
            if substitute is not None:
                sample, view = substitute, substitute.resolve_view(draw.view)
                result = self._reader[Request(sample, size, view, needs_pixels=True)]
        raise ValueError(f"{draw.sample.name} and {len(draw.substitutes)} others in its place cannot be read: {result}")


def choose_worker_count(device: torch.device) -> int:
    """Return how many processes read ahead by default: none where the processor computes the training too."""
    return 0 if device.type == "cpu" else min(MAX_DEFAULT_WORKERS, os.cpu_count() or 1)


@contextmanager
def _without_cv2_threads() -> Iterator[None]:
    """End the threads of OpenCV while workers start: a forked process hangs as soon as it waits for one of them."""
    count = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(count)


def _end_with_parent(parent: int) -> None:
    """End this process when its parent is gone: it would wait forever to hand over what nobody reads."""
    while os.getppid() == parent:
        time.sleep(PARENT_INTERVAL)
    os._exit(1)


def _start_worker(_: int) -> None:
    """Prepare a worker: signals are for the training, which ends its workers, and networks are loaded anew, because
    the threads of some runtimes do not outlive a fork."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    cv2.setNumThreads(1)  # where the process was not forked
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    worker = get_worker_info()
    if worker is not None and isinstance(worker.dataset, ExampleReader):
        worker.dataset.maps.unload()

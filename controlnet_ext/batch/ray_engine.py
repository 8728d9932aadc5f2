"""Stages on the workers of a Ray cluster, whole: networks are loaded there, files come back here to be written."""

from __future__ import annotations

import importlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import Any

import cv2

from .engines import In, Out, Stage, keep_heap

CHUNKS_PER_WORKER = 2  # lots under way for each worker


class RayEngine:
    """An engine of so many workers, each with a CPU, and a GPU if asked for: of the cluster that RAY_ADDRESS names or
    that runs on this machine, else of one that is started here. ValueError where ray is not installed."""

    runs_networks = True

    def __init__(self, worker_count: int, use_gpu: bool):
        try:
            self._ray: Any = importlib.import_module("ray")
        except ImportError as error:
            raise ValueError(f'--engine ray needs ray: pip install "controlnet-ext[ray]" ({error})') from None
        self._worker_count, self._use_gpu = worker_count, use_gpu

    def map(
        self, stage: Stage[In, Out], chunks: Iterable[list[In]], on_crash: Callable[[In], Out]
    ) -> Iterator[list[Out]]:
        ray = self._ray
        if not ray.is_initialized():
            ray.init(include_dashboard=False, log_to_driver=False)
        place = ray.remote(num_cpus=1, num_gpus=int(self._use_gpu), max_restarts=-1)(_StageWorker)
        places = [place.remote(stage, os.getcwd()) for _ in range(self._worker_count)]
        try:
            ray.get([worker.work.remote([]) for worker in places])
        except ray.exceptions.RayActorError as error:  # its last line says of what
            raise ValueError(f"a worker of Ray cannot begin: {str(error).strip().splitlines()[-1].strip()}") from error
        except ray.exceptions.RayTaskError as error:  # of loading networks
            raise error.cause from None
        waiting: deque[tuple[Any, list[In], Any]] = deque()

        def take() -> list[Out]:
            worker, lot, promise = waiting.popleft()
            try:
                return ray.get(promise)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except ray.exceptions.RayActorError:  # it died, and is started again
                return [self._run_isolated(worker, one, on_crash) for one in lot]

        try:
            for i, lot in zip(count(), chunks):
                worker = places[i % len(places)]
                waiting.append((worker, lot, worker.work.remote(lot)))
                if len(waiting) >= CHUNKS_PER_WORKER * len(places):
                    yield take()
            while waiting:
                yield take()
        finally:
            for worker in places:
                ray.kill(worker)

    def _run_isolated(self, worker: Any, item: In, on_crash: Callable[[In], Out]) -> Out:
        try:
            return self._ray.get(worker.work.remote([item]))[0]
        except self._ray.exceptions.RayActorError:
            return on_crash(item)


class _StageWorker:
    """A stage on a worker, in the folder that paths begin at."""

    def __init__(self, stage: Stage[Any, Any], folder: str):
        keep_heap()
        cv2.setNumThreads(1)
        os.chdir(folder)
        self._stage = stage

    def work(self, chunk: list[Any]) -> list[Any]:
        return self._stage(chunk)

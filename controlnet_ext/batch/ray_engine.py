"""An engine of workers in a Ray cluster: networks are loaded there, files come back to be written here."""

from __future__ import annotations

import importlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import Any

import cv2

from .engines import In, Out, Stage, keep_heap

CHUNKS_PER_WORKER = 2  # chunks under way for each worker


class RayEngine:
    """An engine of `worker_count` workers, each with a CPU, and with `use_gpu` a GPU.

    The cluster is that of RAY_ADDRESS or one on this machine, else a new one. Raises ValueError where ray is not
    installed.
    """

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
        """Yield the results of each chunk, in order.

        Raises ValueError if a worker cannot start, and what loading networks raises.
        """
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
            worker, chunk, promise = waiting.popleft()
            try:
                return ray.get(promise)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except ray.exceptions.RayActorError:  # it died, and is started again
                return [self._run_isolated(worker, one, on_crash) for one in chunk]

        try:
            for i, chunk in zip(count(), chunks):
                worker = places[i % len(places)]
                waiting.append((worker, chunk, worker.work.remote(chunk)))
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
    """A stage on a worker, in the folder that relative paths start from."""

    def __init__(self, stage: Stage[Any, Any], folder: str):
        keep_heap()
        cv2.setNumThreads(1)
        os.chdir(folder)
        self._stage = stage

    def work(self, chunk: list[Any]) -> list[Any]:
        """Run the stage over a chunk."""
        return self._stage(chunk)

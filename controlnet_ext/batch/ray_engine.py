"""Stages on the workers of a Ray cluster, whole: networks are loaded there, files come back here to be written."""

from __future__ import annotations

import importlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import Any

import cv2

from .engines import In, Out, Stage, keep_freed

AHEAD = 2  # lots under way for each worker


class Ray:
    """An engine of so many workers, each with a CPU, and a GPU if asked for: of the cluster that RAY_ADDRESS names or
    that runs on this machine, else of one that is started here. ValueError where ray is not installed."""

    whole = True

    def __init__(self, workers: int, gpu: bool):
        try:
            self._ray: Any = importlib.import_module("ray")
        except ImportError as error:
            raise ValueError(f'--engine ray needs ray: pip install "controlnet-ext[ray]" ({error})') from None
        self._workers, self._gpu = workers, gpu

    def map(self, stage: Stage[In, Out], lots: Iterable[list[In]], lost: Callable[[In], Out]) -> Iterator[list[Out]]:
        ray = self._ray
        if not ray.is_initialized():
            ray.init(include_dashboard=False, log_to_driver=False)
        place = ray.remote(num_cpus=1, num_gpus=int(self._gpu), max_restarts=-1)(_Place)
        places = [place.remote(stage, os.getcwd()) for _ in range(self._workers)]
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
                return [self._alone(worker, one, lost) for one in lot]

        try:
            for i, lot in zip(count(), lots):
                worker = places[i % len(places)]
                waiting.append((worker, lot, worker.work.remote(lot)))
                if len(waiting) >= AHEAD * len(places):
                    yield take()
            while waiting:
                yield take()
        finally:
            for worker in places:
                ray.kill(worker)

    def _alone(self, worker: Any, one: In, lost: Callable[[In], Out]) -> Out:
        try:
            return self._ray.get(worker.work.remote([one]))[0]
        except self._ray.exceptions.RayActorError:
            return lost(one)


class _Place:
    """A stage on a worker, in the folder that paths begin at."""

    def __init__(self, stage: Stage[Any, Any], folder: str):
        keep_freed()
        cv2.setNumThreads(1)
        os.chdir(folder)
        self._stage = stage

    def work(self, lot: list[Any]) -> list[Any]:
        return self._stage(lot)

"""Maps that are asked for again: the last few stay.

What is slow to make and used again: the last few stay.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

import numpy as np

from ..maps.control_map import ControlMap

T = TypeVar("T")


class Kept(Generic[T]):
    """The `count` last used things, by key. For several threads, of which one makes at a time."""

    def __init__(self, count: int):
        self._count = count
        self._things: dict[Hashable, T] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The thing of that key, made if it is not there."""
        with self._lock:
            thing = self._things.pop(key) if key in self._things else make()
            self._things[key] = thing
            while len(self._things) > self._count:
                del self._things[next(iter(self._things))]
            return thing


Run = Callable[..., ControlMap]  # of an image, its mask and parameters


def remembered(ready: Callable[[str], Run], count: int) -> Callable[[str], Run]:
    """`ready`, which gives preprocessors by name, so that these give the map of one of their last `count` calls again
    without a look at the image."""
    maps = Kept[ControlMap](max(count, 0))

    def named(name: str) -> Run:
        def run(image: np.ndarray, mask: np.ndarray | None = None, **given: Any) -> ControlMap:
            key = name, _content(image), _content(mask), *sorted(given.items())
            return maps.get(key, lambda: ready(name)(image, mask, **given))

        return run

    return named


def _content(pixels: np.ndarray | None) -> tuple[Any, ...]:
    return () if pixels is None else (pixels.shape, hashlib.sha256(pixels.tobytes()).digest())

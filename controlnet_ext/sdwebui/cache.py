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


class LRUCache(Generic[T]):
    """The `count` last used things, by key. For several threads, of which one makes at a time."""

    def __init__(self, capacity: int):
        self._capacity = capacity
        self._entries: dict[Hashable, T] = {}
        self._lock = threading.Lock()

    def get_or_create(self, key: Hashable, create: Callable[[], T]) -> T:
        """The thing of that key, made if it is not there."""
        with self._lock:
            thing = self._entries.pop(key) if key in self._entries else create()
            self._entries[key] = thing
            while len(self._entries) > self._capacity:
                del self._entries[next(iter(self._entries))]
            return thing


PreprocessorCall = Callable[..., ControlMap]  # of an image, its mask and parameters


def cache_maps(
    load_preprocessor: Callable[[str], PreprocessorCall], capacity: int
) -> Callable[[str], PreprocessorCall]:
    """`ready`, which gives preprocessors by name, so that these give the map of one of their last `count` calls again
    without a look at the image."""
    maps = LRUCache[ControlMap](max(capacity, 0))

    def named(name: str) -> PreprocessorCall:
        def run(image: np.ndarray, mask: np.ndarray | None = None, **given: Any) -> ControlMap:
            key = name, _hash_array(image), _hash_array(mask), *sorted(given.items())
            return maps.get_or_create(key, lambda: load_preprocessor(name)(image, mask, **given))

        return run

    return named


def _hash_array(pixels: np.ndarray | None) -> tuple[Any, ...]:
    return () if pixels is None else (pixels.shape, hashlib.sha256(pixels.tobytes()).digest())

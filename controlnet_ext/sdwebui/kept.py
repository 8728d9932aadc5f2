"""What is slow to make and used again: the last few stay."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

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

"""The cache of everything that is slow to load or to compute: networks, control models, maps."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any, Generic, TypeVar
from weakref import WeakValueDictionary

T = TypeVar("T")
_ABSENT: Any = object()


class LRUCache(Generic[T]):
    """A least-recently-used cache, safe between threads.

    Entries stay while their sizes add up to at most `capacity`; `size_of` gives an entry's size, 1 by default, so that
    `capacity` counts entries. Objects that a caller still holds are shared even after their eviction.
    Raises ValueError for a negative capacity."""

    def __init__(self, capacity: int, size_of: Callable[[T], int] | None = None):
        if capacity < 0:
            raise ValueError(f"a cache's capacity of {capacity}: expected 0 or more")
        self.capacity = capacity
        self._size_of = size_of or _count_one
        self._entries: OrderedDict[Hashable, T] = OrderedDict()  # the least recently used first
        self._alive: WeakValueDictionary[Hashable, Any] = WeakValueDictionary()
        self._creation_locks: WeakValueDictionary[Hashable, Any] = WeakValueDictionary()
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Sum of the sizes of the entries."""
        with self._lock:
            return self._sum_sizes()

    def get_or_create(self, key: Hashable, create: Callable[[], T]) -> T:
        """Return the entry of this key; call `create` and store its result if there is none.

        Threads that ask for the same key wait and get the same object; other keys do not wait. An error of `create` is
        raised to its caller, and the next call tries again."""
        with self._lock:
            creation = self._creation_locks.get(key)
            if creation is None:
                creation = self._creation_locks[key] = threading.Lock()
        with creation:
            with self._lock:
                value = self._entries.get(key, self._alive.get(key, _ABSENT))
            if value is _ABSENT:
                value = create()
            self._store(key, value)
            return value

    def clear(self) -> None:
        """Drop all entries; objects that callers hold stay valid."""
        with self._lock:
            self._entries.clear()

    def _store(self, key: Hashable, value: T) -> None:
        with self._lock:
            with suppress(TypeError):  # numbers and text have no weak references
                self._alive[key] = value
            if self._size_of(value) > self.capacity:
                return
            self._entries[key] = value
            self._entries.move_to_end(key)
            total = self._sum_sizes()
            while total > self.capacity:
                total -= self._size_of(self._entries.popitem(last=False)[1])

    def _sum_sizes(self) -> int:
        return sum(map(self._size_of, self._entries.values()))


def _count_one(_: object) -> int:
    return 1

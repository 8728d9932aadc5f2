"""What is slow to load, loaded once, and kept up to a number of bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any
from weakref import WeakValueDictionary


class Pool:
    """Things by key, each with its size as an attribute `bytes`. What somebody holds is shared; what nobody holds is
    kept while all that is kept stays within `limit` bytes, the longest unused goes first. Safe between threads."""

    def __init__(self, limit: int):
        if limit < 0:
            raise ValueError(f"a pool's limit of {limit} bytes: expected 0 or more")
        self.limit = limit
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()  # the longest unused first
        self._alive: WeakValueDictionary[Hashable, Any] = WeakValueDictionary()
        self._loading: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """How much is kept."""
        with self._lock:
            return sum(value.bytes for value in self._kept.values())

    def get(self, key: Hashable, load: Callable[[], Any]) -> Any:
        """What is there under `key`, else what `load` gives. Threads that ask meanwhile wait and get the same; other
        keys do not wait. When `load` fails, its error is the caller's, and the next one tries again."""
        with self._lock:
            loading = self._loading.setdefault(key, threading.Lock())
        with loading:
            value = self._alive.get(key)
            if value is None:
                value = load()
            self._keep(key, value)
            return value

    def free(self) -> None:
        """Keep nothing."""
        with self._lock:
            self._kept.clear()

    def _keep(self, key: Hashable, value: Any) -> None:
        with self._lock:
            self._alive[key] = value
            if value.bytes > self.limit:
                return
            self._kept[key] = value
            self._kept.move_to_end(key)
            total = sum(kept.bytes for kept in self._kept.values())
            while total > self.limit:
                total -= self._kept.popitem(last=False)[1].bytes

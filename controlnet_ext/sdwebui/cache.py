"""A cache of maps around preprocessors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from ..guidance.hints import PreprocessorCall
from ..maps.control_map import ControlMap
from ..preprocessors.cache import LRUCache


def cache_maps(
    load_preprocessor: Callable[[str], PreprocessorCall], capacity: int
) -> Callable[[str], PreprocessorCall]:
    """Wrap a loader of preprocessors by name: the maps of the last `capacity` calls are returned without another run.
    Calls are equal when preprocessor, pixels, mask and parameters are."""
    maps = LRUCache[ControlMap](max(capacity, 0))

    def load(name: str) -> PreprocessorCall:
        def run(image: np.ndarray, mask: np.ndarray | None = None, /, **given: Any) -> ControlMap:
            key = name, _hash_array(image), _hash_array(mask), *sorted(given.items())
            return maps.get_or_create(key, lambda: load_preprocessor(name)(image, mask, **given))

        return run

    return load


def _hash_array(pixels: np.ndarray | None) -> tuple[Any, ...]:
    return () if pixels is None else (pixels.shape, hashlib.sha256(pixels.tobytes()).digest())

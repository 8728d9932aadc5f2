"""A cache of maps around preprocessors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from ..maps.control_map import ControlMap
from ..preprocessors.cache import LRUCache

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

"""Maps that are asked for again: the last few stay."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from ..maps.control_map import ControlMap
from .kept import Kept

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

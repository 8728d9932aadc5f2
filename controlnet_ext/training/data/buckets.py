"""Aspect buckets: sizes of equal area, of which each image takes the one nearest to its own shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

MAX_ASPECT = 3.0  # of a bucket's sides; longer images are cropped
MIN_AREA = 0.7  # of the area of the size that is asked for; none is larger, so that memory suffices


@lru_cache(maxsize=64)
def list_sizes(size: tuple[int, int], step: int) -> tuple[tuple[int, int], ...]:
    """Return the sizes (height, width) of the buckets: `size`, and others whose sides are multiples of `step`, with
    70 to 100 % of its area.

    Raises ValueError where there are no others.
    """
    area = size[0] * size[1]
    sizes = {size}
    for long in range(step, math.isqrt(int(area * MAX_ASPECT)) + 1, step):
        short = area // long // step * step
        if short and short <= long <= MAX_ASPECT * short and long * short >= MIN_AREA * area:
            sizes |= {(long, short), (short, long)}
    if len(sizes) == 1:
        raise ValueError(
            f"--buckets: no other size has the area of {size[1]}x{size[0]} and sides in steps of {step}: "
            "a larger --size, or no --buckets"
        )
    return tuple(sorted(sizes))


@lru_cache(maxsize=2**14)
def choose_size(image_size: tuple[int, int], size: tuple[int, int], step: int) -> tuple[int, int]:
    """Return the bucket (height, width) whose aspect is nearest to that of an image of `image_size`, the largest of
    equal ones."""
    aspect = math.log(image_size[1] / image_size[0])
    return min(
        list_sizes(size, step), key=lambda each: (abs(math.log(each[1] / each[0]) - aspect), -each[0] * each[1], each)
    )


def group_by_size(
    image_sizes: Sequence[tuple[int, int] | None], size: tuple[int, int], step: int
) -> dict[tuple[int, int], list[int]]:
    """Return the indices of images by bucket; an image of unknown size takes `size`."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i, each in enumerate(image_sizes):
        groups.setdefault(size if each is None else choose_size(each, size, step), []).append(i)
    return dict(sorted(groups.items()))

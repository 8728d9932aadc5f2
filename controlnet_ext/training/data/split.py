"""The split into examples to learn from and held-out ones: no image on both sides, and near-duplicates by name."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import cv2
import numpy as np

from ...files.image_reader import read_small_image
from .examples import Example, read_source

HASH_BITS = 64
MAX_DISTANCE = 4  # bits in which the hashes of near-duplicates differ
MIN_CONTRAST = 4.0  # of 255, standard deviation of the small image: below, all grounds are alike
MIN_HASHED_SIDE = 32  # pixels of an image that a JPEG is decoded to at least
MAX_COMPARED = 10_000  # images that are decoded for it


def split_examples(examples: tuple[Example, ...], share: float) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Return the training set and the held-out set.

    The latter has `share` of the different images, at least one, those with the lowest hashes, so that copies of an
    image are on one side. Raises ValueError when one side would be empty.
    """
    different = sorted({example.sha256 for example in examples})
    count = max(1, round(share * len(different)))
    if not 0 < share < 1 or count >= len(different):
        raise ValueError(f"validation {share:g} of {len(different)} different images leaves none on one side")
    held_out = set(different[:count])
    return tuple(e for e in examples if e.sha256 not in held_out), tuple(e for e in examples if e.sha256 in held_out)


def check_disjoint(train_set: tuple[Example, ...], held_out: tuple[Example, ...]) -> None:
    """Raise ValueError when an image of the held-out set is also in the training set."""
    examples = {example.sha256: example for example in train_set}
    for example in held_out:
        if example.sha256 in examples:
            twin = examples[example.sha256].name
            raise ValueError(f"{example.name} is held out and also to be learnt, as {twin}: remove one")


def compute_dhash(pixels: np.ndarray) -> int | None:
    """Return the difference hash of an image (H, W, 3) uint8 RGB, 64 bits; None for an even ground.

    A bit says whether a pixel of the gray image at 9 x 8 is darker than its right neighbor.
    """
    small = cv2.resize(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    if small.std() < MIN_CONTRAST:
        return None
    return int.from_bytes(np.packbits(small[:, 1:] > small[:, :-1]).tobytes(), "big")


def find_near_duplicates(train_set: Sequence[Example], held_out: Sequence[Example]) -> list[tuple[Example, Example]]:
    """Return each held-out example that looks like one to learn from, with that one.

    Images are decoded, up to 10,000, the held-out ones first. Those that cannot be are left out.
    """
    hashes, rest = _hash_examples(held_out[:MAX_COMPARED]), max(0, MAX_COMPARED - len(held_out))
    learnt = _hash_examples(train_set[:rest])
    if not hashes or not learnt:
        return []
    signs = [
        np.unpackbits(np.array([bits for _, bits in side], ">u8").view(np.uint8).reshape(-1, 8), axis=1) * np.float32(2)
        - 1
        for side in (hashes, learnt)
    ]
    pairs = []
    for example, row in zip((example for example, _ in hashes), signs[0], strict=True):
        distances = (HASH_BITS - signs[1] @ row) / 2
        nearest = int(distances.argmin())
        if distances[nearest] <= MAX_DISTANCE:
            pairs.append((example, learnt[nearest][0]))
    return pairs


def _hash_examples(examples: Sequence[Example]) -> list[tuple[Example, int]]:
    hashes = []
    for example in examples:
        with suppress(ValueError, OSError):
            if (
                bits := compute_dhash(read_small_image(read_source(example.image), example.name, MIN_HASHED_SIDE))
            ) is not None:
                hashes.append((example, bits))
    return hashes


def describe_near_duplicates(pairs: Sequence[tuple[Example, Example]]) -> str | None:
    """Return a line that names pairs of near-duplicates, None without any."""
    if not pairs:
        return None
    text = "; ".join(f"{held_out.name} is like {learnt.name}" for held_out, learnt in pairs[:5])
    more = f"; and {len(pairs) - 5} more" if len(pairs) > 5 else ""
    return (
        f"{len(pairs)} held-out images look like ones to learn from, so that the held-out loss says too little of new "
        f"images: {text}{more}"
    )

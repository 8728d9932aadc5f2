"""Examples as the networks read them: latents, text states and maps, kept in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .bases import FrozenBase
from .data import ControlDataset

CACHE_BYTES = 2**31  # bytes of encoded examples in memory


@dataclass(frozen=True, eq=False)
class EncodedExample:
    """An example as networks read it: latents (C, h, w), text states (T, D), map (H, W, 3) uint8."""

    latents: Tensor
    context: Tensor
    map: np.ndarray


class EncodedExamples:
    """Examples that are encoded on first use; the first of them, up to 2 GiB, stay in memory."""

    def __init__(self, dataset: ControlDataset, frozen: FrozenBase, height: int, width: int):
        self._dataset, self._frozen, self._size = dataset, frozen, (height, width)
        self._cache: dict[int, EncodedExample] = {}

    def __len__(self) -> int:
        return len(self._dataset)

    def load_batch(self, rows: Sequence[int]) -> tuple[Tensor, Tensor, np.ndarray]:
        """Return latents (B, C, h, w), text states (B, T, D) and maps (B, H, W, 3) uint8."""
        found = [self._load_example(i) for i in rows]
        return (
            torch.stack([each.latents for each in found]),
            torch.stack([each.context for each in found]),
            np.stack([each.map for each in found]),
        )

    def _load_example(self, i: int) -> EncodedExample:
        if i in self._cache:
            return self._cache[i]
        pixels, control, caption = self._dataset.read(i, *self._size)
        encoded = EncodedExample(self._frozen.encode_latents(pixels), self._frozen.encode_caption(caption), control)
        if (i + 1) * (encoded.latents.nbytes + encoded.context.nbytes + encoded.map.nbytes) <= CACHE_BYTES:
            self._cache[i] = encoded
        return encoded

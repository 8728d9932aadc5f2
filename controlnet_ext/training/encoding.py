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


@dataclass(frozen=True, eq=False)
class EncodedBatch:
    """Examples of one size as the network and the frozen model read them, on the CPU.

    latents: (B, C, h, w).
    context: text states (B, T, D); those of the empty caption where a caption was dropped.
    maps: (B, H, W, 3) uint8 RGB; black where a map was dropped.
    names: of the examples, for messages.
    added: (B, K), SDXL's pooled text states with its sizes, None for models without.
    extra: (B, 5, h, w), mask and latents of the masked image of an inpainting model, None for others.
    """

    latents: Tensor
    context: Tensor
    maps: np.ndarray
    names: tuple[str, ...]
    added: Tensor | None = None
    extra: Tensor | None = None


class EncodedExamples:
    """Examples that are encoded on first use; the first of them, up to 2 GiB, stay in memory."""

    def __init__(self, dataset: ControlDataset, frozen: FrozenBase, height: int, width: int):
        self._dataset, self._frozen, self._size = dataset, frozen, (height, width)
        self._cache: dict[int, EncodedExample] = {}

    def __len__(self) -> int:
        return len(self._dataset)

    @property
    def empty_context(self) -> Tensor:
        """Text states (T, D) of the empty caption, on the CPU."""
        return self._frozen.empty_context

    def load_batch(self, rows: Sequence[int]) -> EncodedBatch:
        """Return these examples, nothing of them dropped."""
        found = [self._load_example(i) for i in rows]
        return EncodedBatch(
            torch.stack([each.latents for each in found]),
            torch.stack([each.context for each in found]),
            np.stack([each.map for each in found]),
            tuple(str(i) for i in rows),
        )

    def _load_example(self, i: int) -> EncodedExample:
        if i in self._cache:
            return self._cache[i]
        pixels, control, caption = self._dataset.read(i, *self._size)
        encoded = EncodedExample(self._frozen.encode_latents(pixels), self._frozen.encode_caption(caption), control)
        if (i + 1) * (encoded.latents.nbytes + encoded.context.nbytes + encoded.map.nbytes) <= CACHE_BYTES:
            self._cache[i] = encoded
        return encoded

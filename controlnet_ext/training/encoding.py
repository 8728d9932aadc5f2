"""Examples as the networks read them: latents, text states and maps, kept in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .bases import EncodedBatch, EncodedCaption, FrozenBase
from .data import ControlDataset
from .masks import draw_mask

CACHE_BYTES = 2**31  # bytes of encoded examples in memory


@dataclass(frozen=True, eq=False)
class EncodedExample:
    """An example as networks read it: latents (C, h, w), text states (T, D), map (H, W, 3) uint8, and what SDXL
    (P + 6,) and inpainting UNets (5, h, w) read beside, see `EncodedBatch`."""

    latents: Tensor
    context: Tensor
    map: np.ndarray
    added: Tensor | None
    extra: Tensor | None

    @property
    def nbytes(self) -> int:
        """Its size in memory, in bytes."""
        tensors = (self.latents, self.context, self.added, self.extra)
        return int(self.map.nbytes) + sum(tensor.nbytes for tensor in tensors if tensor is not None)


class EncodedExamples:
    """Examples that are encoded on first use; the first of them, up to 2 GiB, stay in memory."""

    def __init__(self, dataset: ControlDataset, frozen: FrozenBase, height: int, width: int):
        self._dataset, self._frozen, self._size = dataset, frozen, (height, width)
        self._cache: dict[int, EncodedExample] = {}

    def __len__(self) -> int:
        return len(self._dataset)

    @property
    def dataset(self) -> ControlDataset:
        """The examples before they are encoded."""
        return self._dataset

    @property
    def empty_caption(self) -> EncodedCaption:
        """The empty caption, on the CPU."""
        return self._frozen.empty_caption

    def load_batch(self, rows: Sequence[int]) -> EncodedBatch:
        """Return these examples, nothing of them dropped."""
        found = [self._load_example(i) for i in rows]
        return EncodedBatch(
            torch.stack([each.latents for each in found]),
            torch.stack([each.context for each in found]),
            np.stack([each.map for each in found]),
            tuple(str(i) for i in rows),
            _stack_known([each.added for each in found]),
            _stack_known([each.extra for each in found]),
        )

    def _load_example(self, i: int) -> EncodedExample:
        if i in self._cache:
            return self._cache[i]
        pixels, control, caption = self._dataset.read(i, *self._size)
        text = self._frozen.encode_caption(caption)
        encoded = EncodedExample(
            self._frozen.encode_latents(pixels),
            text.context,
            control,
            self._frozen.build_added(text, self._size),
            self._frozen.encode_extra(pixels, draw_mask(np.random.default_rng(i), *self._size)),
        )
        if (i + 1) * encoded.nbytes <= CACHE_BYTES:
            self._cache[i] = encoded
        return encoded


def _stack_known(tensors: Sequence[Tensor | None]) -> Tensor | None:
    """Return the tensors of all examples as one, None where the model has none."""
    known = [tensor for tensor in tensors if tensor is not None]
    return torch.stack(known) if known else None

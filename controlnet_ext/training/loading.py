"""The batches that a training learns from, in an order that depends on the seed, the step and the part alone."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import torch

from .bases import EncodedBatch
from .encoding import EncodedExamples
from .losses import make_generator

CAPTION_DROPOUT = 0.1  # share of captions that are left empty, so that guidance without a classifier works


class TrainingBatches:
    """Random batches of examples, equal in every process that asks for the same step and part.

    A step has `parts` batches of `batch_size` examples for each of `ranks` processes. They are drawn for all processes
    together; process `rank` gets the examples `rank::ranks` of them. So two processes learn from what one process with
    twice the batch size learns from.
    """

    def __init__(self, examples: EncodedExamples, batch_size: int, seed: int, caption_dropout: float = CAPTION_DROPOUT):
        self._examples, self._batch_size, self._seed = examples, batch_size, seed
        self._caption_dropout = caption_dropout

    def iterate(self, first_step: int, parts: int = 1, rank: int = 0, ranks: int = 1) -> Iterator[EncodedBatch]:
        """Yield part 0 of `first_step`, the other parts of that step, then those of the next step, without end."""
        for step in count(first_step):
            for part in range(parts):
                yield self._load(step, part, rank, ranks)

    def _load(self, step: int, part: int, rank: int, ranks: int) -> EncodedBatch:
        rng = make_generator(self._seed, step, part)
        size = self._batch_size * ranks
        rows = torch.randint(len(self._examples), (size,), generator=rng).tolist()
        is_dropped = (torch.rand(size, generator=rng) < self._caption_dropout)[rank::ranks]
        batch = self._examples.load_batch(rows[rank::ranks])
        return batch.replace_captions(is_dropped, self._examples.empty_caption)

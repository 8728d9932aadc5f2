"""The batches of a training, read by step and part, and the names of what its loss is not finite for."""

from __future__ import annotations

from itertools import count

import numpy as np
import torch

from controlnet_ext.training.bases import EncodedBatch
from controlnet_ext.training.job import BatchReader
from controlnet_ext.training.processes import Processes


class Batches:
    """Batches of two examples that are named after their step and part."""

    def __init__(self) -> None:
        self.loaded: list[tuple[int, int]] = []

    def iterate(self, first_step, parts=1, rank=0, ranks=1):
        for step in count(first_step):
            for part in range(parts):
                self.loaded.append((step, part))
                names = tuple(f"{step}-{part}-{i}" for i in range(2))
                yield EncodedBatch(
                    torch.zeros(2, 4, 1, 1), torch.zeros(2, 1, 1), np.zeros((2, 8, 8, 3), np.uint8), names
                )


def test_batches_are_loaded_once_in_the_order_of_a_training_and_found_in_any():
    batches = Batches()
    reader = BatchReader(batches, 2, Processes())
    order = [(3, 0), (3, 1), (3, 0), (4, 0), (4, 1)]  # the third is asked for by the check of torch.compile
    assert [reader.read(*each).names[0] for each in order] == ["3-0-0", "3-1-0", "3-0-0", "4-0-0", "4-1-0"]
    assert batches.loaded == [(3, 0), (3, 1), (4, 0), (4, 1)]
    assert reader.read(7, 1).names[0] == "7-1-0" and reader.read(8, 0).names[0] == "8-0-0"
    assert batches.loaded[4:] == [(7, 0), (7, 1), (8, 0)]


def test_examples_whose_loss_is_not_finite_are_named_else_all_of_the_step():
    reader = BatchReader(Batches(), 2, Processes())
    for part in range(2):
        reader.read(0, part)
        reader.errors[part] = torch.tensor([1.0, float("inf") if part else 2.0])
    assert reader.list_suspects() == ["0-1-1"]
    reader.errors[1] = torch.ones(2)
    assert reader.list_suspects() == ["0-0-0", "0-0-1", "0-1-0", "0-1-1"]

"""Examples from which images are generated to measure their fidelity."""

import numpy as np
import pytest

from controlnet_ext.training.samples import _read_examples


class Dataset:
    """Eight examples, whose pixels are their number; some are broken."""

    def __init__(self, *broken):
        self.broken = broken

    def __len__(self):
        return 8

    def read(self, i, height, width):
        if i in self.broken:
            raise ValueError(f"{i} is broken")
        return np.full((height, width, 3), i, np.uint8), np.zeros((height, width, 3), np.uint8), str(i)


def test_images_come_from_all_over_the_held_out_set_and_broken_ones_give_way_to_the_next():
    assert [caption for *_, caption in _read_examples(Dataset(), 4, (2, 2))] == ["0", "2", "4", "6"]
    assert [caption for *_, caption in _read_examples(Dataset(0, 6, 7), 4, (2, 2))] == ["1", "2", "4"]
    assert len(_read_examples(Dataset(), 20, (2, 2))) == 8
    with pytest.raises(ValueError, match=r"no held-out image can be read .* 7 is broken"):
        _read_examples(Dataset(*range(8)), 4, (2, 2))

"""The loss of base and ControlNet on training and held-out scenes, by one measure: whether they over- or underfit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from controlnet_ext.embedded.scenes import TRAINING_SEEDS
from controlnet_ext.training.bases import FrozenBase
from controlnet_ext.training.data import LoadingSettings, SceneDataset, Tolerance
from controlnet_ext.training.encoding import EncodedExamples, ExampleEncoder
from controlnet_ext.training.evaluation import FixedNoiseLoss
from controlnet_ext.training.losses import DiffusionLoss
from tools.embedded_model.train_base import TRAINING_SCENES

from .arms import Figures
from .sampling import BATCH
from .scenes import EVALUATION_SEEDS, edges

SIDE = 128


def losses(pipe: Any, net: Any) -> Iterator[tuple[str, Figures]]:
    """The loss as in training, of 128 of the scenes that the base learnt and of 128 that nothing has seen; noise and
    noise levels are the same on both sides."""
    frozen, noising = FrozenBase(pipe, str(pipe.device)), DiffusionLoss(pipe.scheduler)
    encoder = ExampleEncoder(frozen, LoadingSettings(Tolerance(0, print)))
    sides = {"training": TRAINING_SEEDS[:TRAINING_SCENES], "held_out": EVALUATION_SEEDS}
    fixed_losses = {
        side: FixedNoiseLoss(frozen, EncodedExamples(SceneDataset(seeds, edges), encoder, (SIDE, SIDE)), noising, BATCH)
        for side, seeds in sides.items()
    }
    yield "loss", {side: each.unguided_loss for side, each in fixed_losses.items()}
    if net is not None:
        yield "loss, guided", {side: each(net) for side, each in fixed_losses.items()}

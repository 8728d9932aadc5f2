"""A training: the frozen model, the trained network, and the data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ..generation.pipeline_folder import PipelineFolder
from ..models.nn.execution import LayerwiseOffload
from .bases import EncodedBatch, FrozenBase
from .config import LossSettings, TrainingSchedule
from .data import ControlDataset
from .encoding import EncodedExamples
from .evaluation import FixedNoiseLoss
from .loading import TrainingBatches
from .loop import train
from .losses import DiffusionLoss, make_generator
from .stopping import StopRule, run_all_steps
from .targets import TargetSettings, TrainingTarget
from .verdict import describe_fit
from .work_folder import LOG_FILE, read_log

NOISE_STREAM = 1  # of random numbers, apart from those that choose the examples


class TrainingJob:
    """A network of a target beside the frozen model of a folder, on a GPU where there is one.

    size: (height, width) in pixels.
    loss: settings of `DiffusionLoss`, None for the defaults.

    Raises ValueError where the file is another kind or does not fit the UNet.
    """

    def __init__(
        self,
        folder: PipelineFolder,
        target: TrainingTarget,
        settings: TargetSettings,
        train_set: ControlDataset,
        held_out: ControlDataset,
        size: tuple[int, int],
        batch_size: int,
        seed: int,
        loss: LossSettings | None = None,
    ):
        self._objective, self._batch_size, self._seed = (
            DiffusionLoss(folder.make_scheduler("ddpm"), loss),
            batch_size,
            seed,
        )
        pipe = folder.load(torch.float32, folder.make_scheduler(None))
        self._frozen = FrozenBase(pipe, "cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(seed)
        self._network = target.create(pipe.unet, settings).requires_grad_(True)
        self._examples = {
            "training": EncodedExamples(train_set, self._frozen, *size),
            "held_out": EncodedExamples(held_out, self._frozen, *size),
        }

    def fit(
        self, schedule: TrainingSchedule, work_dir: Path, stop_rule: StopRule = run_all_steps
    ) -> tuple[LayerwiseOffload | None, str]:
        """Return the trained network and a sentence on its fit; (None, "") when the minutes ran out."""
        fixed = {
            side: FixedNoiseLoss(self._frozen, each, self._objective, self._batch_size)
            for side, each in self._examples.items()
        }
        batches = TrainingBatches(self._examples["training"], self._batch_size, self._seed)
        source: list[Iterator[EncodedBatch]] = []  # begins at the step that the loop asks for first

        def loss(net: LayerwiseOffload, step: int, part: int) -> torch.Tensor:
            if not source:
                source.append(batches.iterate(step, schedule.accumulation_steps))
            numbers = make_generator(self._seed, step, part, NOISE_STREAM)
            return compute_control_loss(net, self._frozen, next(source[0]), self._objective, numbers)

        def measure(net: LayerwiseOffload, step: int) -> dict[str, float]:
            losses = {side: each(net) for side, each in fixed.items()}
            return losses | {f"{side}_unguided": each.unguided_loss for side, each in fixed.items()}

        net = train(self._network, loss, measure, schedule, work_dir, stop_rule)
        if net is None:
            return None, ""
        assert isinstance(net, LayerwiseOffload)
        return net, describe_fit(read_log(work_dir / LOG_FILE))


def compute_control_loss(
    net: LayerwiseOffload, frozen: FrozenBase, batch: EncodedBatch, objective: DiffusionLoss, rng: torch.Generator
) -> Tensor:
    """Return the loss, shape (), on a batch with noise from `rng`. Gradients flow to the network alone."""
    x, target, t = objective.sample(batch.latents, rng)
    return objective.compute_loss(frozen.predict(x, t, batch, net), target, t)

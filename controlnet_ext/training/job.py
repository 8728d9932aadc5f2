"""A training: the frozen model, the trained network, and the data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..generation.pipeline_folder import PipelineFolder
from ..models.nn.execution import LayerwiseOffload
from .bases import EncodedBatch, FrozenBase
from .config import LossSettings, TrainingSchedule
from .data import ControlDataset
from .encoding import EncodedExamples
from .evaluation import FixedNoiseLoss, compute_gains
from .loading import TrainingBatches
from .loop import read_best_weights, train
from .losses import DiffusionLoss, make_generator
from .monitoring import MonitorSettings, TrainingMonitor
from .samples import FidelityImages
from .targets import TargetSettings, TrainingTarget
from .verdict import describe_fit
from .work_folder import LOG_FILE, read_log

NOISE_STREAM = 1  # of random numbers, apart from those that choose the examples


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """A trained network with the weights of `step`, and a sentence on them and their fit."""

    network: LayerwiseOffload
    step: int
    is_best: bool
    sentence: str


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
        self._size = size
        pipe = folder.load(torch.float32, folder.make_scheduler(None))
        self._frozen = FrozenBase(pipe, "cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(seed)
        self._network = target.create(pipe.unet, settings).requires_grad_(True)
        self._examples = {
            "training": EncodedExamples(train_set, self._frozen, *size),
            "held_out": EncodedExamples(held_out, self._frozen, *size),
        }

    def fit(self, schedule: TrainingSchedule, work_dir: Path, settings: MonitorSettings) -> TrainingResult | None:
        """Train, and return the best network or the last, as the settings ask; None when the minutes ran out."""
        fixed = {
            side: FixedNoiseLoss(self._frozen, each, self._objective, self._batch_size, settings.draws)
            for side, each in self._examples.items()
        }
        held_out, fidelity = self._examples["held_out"], settings.fidelity
        images = fidelity and FidelityImages(self._frozen, held_out.dataset, self._size, fidelity, work_dir)
        batches = TrainingBatches(self._examples["training"], self._batch_size, self._seed)
        source: list[Iterator[EncodedBatch]] = []  # begins at the step that the loop asks for first

        def loss(net: LayerwiseOffload, step: int, part: int) -> torch.Tensor:
            if not source:
                source.append(batches.iterate(step, schedule.accumulation_steps))
            numbers = make_generator(self._seed, step, part, NOISE_STREAM)
            return compute_control_loss(net, self._frozen, next(source[0]), self._objective, numbers)

        def measure(net: LayerwiseOffload, step: int) -> dict[str, float]:
            losses = {side: each.measure(net) for side, each in fixed.items()}
            return {
                **{side: each.mean for side, each in losses.items()},
                **{f"{side}_unguided": each.unguided_loss for side, each in fixed.items()},
                **compute_gains(losses["held_out"], fixed["held_out"].unguided),
                **(images(net, step) if images else {}),
            }

        monitor = TrainingMonitor(work_dir, settings)
        net = train(self._network, loss, measure, schedule, work_dir, monitor)
        if net is None:
            return None
        assert isinstance(net, LayerwiseOffload)
        return _choose_weights(net, work_dir, settings)


def _choose_weights(net: LayerwiseOffload, work_dir: Path, settings: MonitorSettings) -> TrainingResult:
    """Return the result of a training whose last weights are in `net`, which is given the best ones if asked."""
    rows = read_log(work_dir / LOG_FILE)
    last, best, found = int(rows[-1]["step"]), settings.rule(rows).best_step, read_best_weights(work_dir)
    is_best = best == last
    if not settings.publishes_last and not is_best and found is not None:
        net.load_state_dict(found[1])
        sentence = f"the best weights, of step {found[0]:,}, by {settings.rule.figure}; the last step was {last:,}"
        return TrainingResult(net, found[0], True, f"{sentence}; {describe_fit(rows)}")
    sentence = f"the weights of the last step, {last:,}" + (", which are the best" if is_best else "")
    if not is_best:
        sentence += f"; the best, of step {best or 0:,.0f}, are kept in {str(work_dir)!r}"
    return TrainingResult(net, last, is_best, f"{sentence}; {describe_fit(rows)}")


def compute_control_loss(
    net: LayerwiseOffload, frozen: FrozenBase, batch: EncodedBatch, objective: DiffusionLoss, rng: torch.Generator
) -> Tensor:
    """Return the loss, shape (), on a batch with noise from `rng`. Gradients flow to the network alone."""
    x, target, t = objective.sample(batch.latents, rng)
    return objective.compute_loss(frozen.predict(x, t, batch, net), target, t)

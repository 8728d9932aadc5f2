"""A training: the frozen model, the trained network, and the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..generation.pipeline_folder import PipelineFolder
from ..models.nn.execution import LayerwiseOffload
from .bases import EncodedBatch, FrozenBase
from .checkpoints import read_best_weights
from .config import Execution, LossSettings, TrainingSchedule
from .data import TrainingData
from .encoding import EncodedExamples, ExampleEncoder
from .evaluation import FixedNoiseLoss, compute_gains
from .loading import TrainingBatches
from .loop import PRECISION_DTYPES, train
from .losses import DiffusionLoss, make_generator
from .monitoring import MonitorSettings, TrainingMonitor
from .processes import Processes
from .reward import Reward
from .samples import FidelityImages
from .stopping import run_all_steps
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

    loss: settings of `DiffusionLoss`, None for the defaults.
    execution: precision, optimizer and memory, None for the defaults.

    Raises ValueError where the file is another kind or does not fit the UNet.
    """

    def __init__(
        self,
        folder: PipelineFolder,
        target: TrainingTarget,
        settings: TargetSettings,
        data: TrainingData,
        batch_size: int,
        seed: int,
        loss: LossSettings | None = None,
        execution: Execution | None = None,
    ):
        self._objective, self._batch_size, self._seed = (
            DiffusionLoss(folder.make_scheduler("ddpm"), loss),
            batch_size,
            seed,
        )
        self._size = data.sampling.size
        pipe = folder.load(torch.float32, folder.make_scheduler(None))
        self._execution, self._processes = execution or Execution(), Processes()
        self._frozen = FrozenBase(pipe, str(self._processes.device))
        reward = None if loss is None else loss.reward
        self._reward = None if reward is None else Reward(reward, self._frozen, self._objective)
        torch.manual_seed(seed)
        self._network = target.create(pipe.unet, settings).requires_grad_(True)
        self._prepare_base()
        encoder = ExampleEncoder(self._frozen, data.loading)
        self._batches = TrainingBatches(data.source, encoder, data.sampling, data.loading, batch_size, seed)
        self._examples = {
            "training": EncodedExamples(data.source.measured, encoder, self._size),
            "held_out": EncodedExamples(data.held_out, encoder, self._size),
        }

    def fit(self, schedule: TrainingSchedule, work_dir: Path, settings: MonitorSettings) -> TrainingResult | None:
        """Train, and return the best network or the last, as the settings ask; None when the minutes ran out.

        Of several processes only the first has the best network.
        """
        reader = BatchReader(self._batches, schedule.accumulation_steps, self._processes)
        rank, ranks = self._processes.rank, self._processes.count

        def compute_loss(net: LayerwiseOffload, step: int, part: int) -> torch.Tensor:
            rng = make_generator(self._seed, step, part, NOISE_STREAM)
            batch = reader.read(step, part)
            errors = compute_control_errors(net, self._frozen, batch, self._objective, rng, rank, ranks, self._reward)
            reader.errors[part] = errors.detach()
            return errors.mean()

        try:
            net = train(
                self._network,
                compute_loss,
                self._make_evaluation(work_dir, settings),
                schedule,
                work_dir,
                TrainingMonitor(work_dir, settings) if self._processes.is_first else run_all_steps,
                self._execution,
                self._compile,
                reader.list_suspects,
            )
        finally:
            self._frozen.release()
        if net is None:
            return None
        if not self._processes.is_first:
            return TrainingResult(net, schedule.steps, False, "")
        return _choose_weights(net, work_dir, settings)

    def _make_evaluation(
        self, work_dir: Path, settings: MonitorSettings
    ) -> Callable[[LayerwiseOffload, int], dict[str, float]]:
        """Return what measures a network, and the model without control when it is first called."""
        fixed_losses: dict[str, FixedNoiseLoss] = {}
        images: list[FidelityImages] = []

        def prepare() -> None:
            for side, each in self._examples.items():
                fixed_losses[side] = FixedNoiseLoss(
                    self._frozen, each, self._objective, self._batch_size, settings.draws
                )
            if settings.fidelity is not None:
                held_out = self._examples["held_out"].dataset
                images.append(FidelityImages(self._frozen, held_out, self._size, settings.fidelity, work_dir))

        def measure(net: LayerwiseOffload, step: int) -> dict[str, float]:
            if not fixed_losses:
                prepare()
            losses = {side: each.measure(net) for side, each in fixed_losses.items()}
            return {
                **{side: each.mean for side, each in losses.items()},
                **{f"{side}_unguided": each.unguided_loss for side, each in fixed_losses.items()},
                **compute_gains(losses["held_out"], fixed_losses["held_out"].unguided),
                **{name: value for each in images for name, value in each(net, step).items()},
            }

        return measure

    def _prepare_base(self) -> None:
        """Set the precision of the frozen UNet, which takes most of the memory, and what it stores."""
        if self._frozen.device.type == "cuda" and self._execution.precision != "fp32":
            self._frozen.unet.to(PRECISION_DTYPES[self._execution.precision])
        if self._execution.has_checkpointing:
            self._frozen.unet.enable_gradient_checkpointing()
            if self._reward is not None:
                self._frozen.pipe.vae.enable_gradient_checkpointing()

    def _compile(self, network: nn.Module) -> None:
        network.compile()
        self._frozen.unet.compile()


def _choose_weights(net: LayerwiseOffload, work_dir: Path, settings: MonitorSettings) -> TrainingResult:
    """Return the result of a training whose last weights are in `net`, which is given the best ones if asked."""
    rows = read_log(work_dir / LOG_FILE)
    last, best, best_weights = int(rows[-1]["step"]), settings.rule(rows).best_step, read_best_weights(work_dir)
    is_best = best == last
    if not settings.publishes_last and not is_best and best_weights is not None:
        net.load_state_dict(best_weights[1])
        sentence = (
            f"the best weights, of step {best_weights[0]:,}, by {settings.rule.figure}; the last step was {last:,}"
        )
        return TrainingResult(net, best_weights[0], True, f"{sentence}; {describe_fit(rows)}")
    sentence = f"the weights of the last step, {last:,}" + (", which are the best" if is_best else "")
    if not is_best:
        sentence += f"; the best, of step {best or 0:,.0f}, are kept in {str(work_dir)!r}"
    return TrainingResult(net, last, is_best, f"{sentence}; {describe_fit(rows)}")


class BatchReader:
    """The batches of this process in a training, read one after the other; the last step's are kept.

    errors: losses (B,) of the examples of each part of the last step, for `list_suspects`.
    """

    def __init__(self, batches: TrainingBatches, parts: int, processes: Processes):
        self._batches, self._parts, self._processes = batches, parts, processes
        self._iterator: Iterator[EncodedBatch] = iter(())
        self._next: tuple[int, int] | None = None  # step and part that the iterator yields
        self._step = -1
        self._read: dict[int, EncodedBatch] = {}
        self.errors: dict[int, Tensor] = {}

    def read(self, step: int, part: int) -> EncodedBatch:
        """Return the batch of a step and part, in any order; in that of a training each is loaded once."""
        if step != self._step:
            self._step, self._read, self.errors = step, {}, {}
        if part not in self._read:
            if self._next != (step, part):
                self._iterator = self._batches.iterate(step, self._parts, self._processes.rank, self._processes.count)
                for _ in range(part):
                    next(self._iterator)
            self._read[part] = next(self._iterator)
            self._next = (step, part + 1) if part + 1 < self._parts else (step + 1, 0)
        return self._read[part]

    def list_suspects(self) -> list[str]:
        """Return the names of examples of the last step whose loss is not finite, of all of them if it is for all."""
        finite = {part: errors.isfinite().tolist() for part, errors in self.errors.items()}
        pairs = [pair for part, each in finite.items() for pair in zip(self._read[part].names, each, strict=True)]
        wrong = [name for name, is_finite in pairs if not is_finite]
        return wrong or [name for name, _ in pairs]


def compute_control_errors(
    net: LayerwiseOffload,
    frozen: FrozenBase,
    batch: EncodedBatch,
    objective: DiffusionLoss,
    rng: torch.Generator,
    rank: int = 0,
    ranks: int = 1,
    reward: Reward | None = None,
) -> Tensor:
    """Return the losses (B,) on a batch with noise from `rng`. Gradients flow to the network alone."""
    x, target, t = objective.sample(batch.latents, rng, rank, ranks)
    prediction = frozen.predict(x, t, batch, net)
    errors = objective.compute_errors(prediction, target, t)
    return errors if reward is None else errors + reward.compute_errors(x, prediction, t, batch)

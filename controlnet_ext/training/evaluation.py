"""The held-out loss of a training, on noise and timesteps that never change, and what control gains by noise level."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..models.nn.execution import LayerwiseOffload
from .bases import FrozenBase
from .encoding import EncodedExamples
from .losses import DiffusionLoss, make_generator

EVALUATION_DRAWS = 128  # examples with noise of one measurement
QUARTILES = 4  # of the timesteps


class NoiseLosses(NamedTuple):
    """The mean loss, and that of each quartile of the timesteps, the least noise first."""

    mean: float
    quartiles: tuple[float, ...]


class FixedNoiseLoss:
    """The loss on 128 examples (repeated if there are fewer) with noise and timesteps that never change.

    Noise and timesteps are the same for every set of examples. `draws` is another number of examples.
    """

    def __init__(
        self,
        frozen: FrozenBase,
        examples: EncodedExamples,
        objective: DiffusionLoss,
        batch_size: int,
        draws: int | None = None,
    ):
        self._frozen, self._examples, self._objective, self._batch_size = frozen, examples, objective, batch_size
        self._draws = draws or EVALUATION_DRAWS
        self.unguided = self.measure(None)

    @property
    def unguided_loss(self) -> float:
        """The mean loss without control."""
        return self.unguided.mean

    def __call__(self, net: LayerwiseOffload | None) -> float:
        return self.measure(net).mean

    @torch.no_grad()
    def measure(self, net: LayerwiseOffload | None) -> NoiseLosses:
        """Return the losses with a network, or without control."""
        numbers, count, levels = make_generator(1), self._draws, self._objective.num_timesteps
        times = torch.randperm(count, generator=numbers) * levels // count  # every noise level alike
        losses: list[list[float]] = [[] for _ in range(QUARTILES)]
        for draws in torch.arange(count).split(self._batch_size):
            batch = self._examples.load_batch([i * len(self._examples) // count for i in draws.tolist()])
            noise = torch.randn(batch.latents.shape, generator=numbers)
            x, target, t = self._objective.add_noise(batch.latents, noise, times[draws])
            prediction = self._frozen.predict(x, t, batch, net)
            errors = self._objective.compute_errors(prediction, target, t, importance_sampled=False)
            for time, error in zip(t.tolist(), errors.tolist(), strict=True):
                losses[time * QUARTILES // levels].append(error)
        every = [loss for quartile in losses for loss in quartile]
        return NoiseLosses(_average(every), tuple(_average(quartile) for quartile in losses))


def compute_gains(losses: NoiseLosses, unguided_losses: NoiseLosses) -> dict[str, float]:
    """Return the gains of control, losses without it minus losses with it, as figures of the log.

    `gain` is that of the mean, and a figure for each quartile follows, the least noise first. `relative_gain` is the
    mean over quartiles of the gain as a share of the loss without control: much noise, at which control acts most and
    losses are smallest, counts as much as little noise.
    """
    gains = [before - after for before, after in zip(unguided_losses.quartiles, losses.quartiles, strict=True)]
    shares = [gain / before for gain, before in zip(gains, unguided_losses.quartiles, strict=True) if before > 0]
    by_quartile = {f"gain_q{i}": gain for i, gain in enumerate(gains, 1)}
    return {"gain": unguided_losses.mean - losses.mean, **by_quartile, "relative_gain": _average(shares)}


def _average(numbers: list[float]) -> float:
    """Return the mean, 0 of none."""
    return sum(numbers) / max(len(numbers), 1)

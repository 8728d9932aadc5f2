"""The held-out loss of a training, on noise and timesteps that never change."""

from __future__ import annotations

import torch

from ..models.nn.execution import LayerwiseOffload
from .bases import FrozenBase
from .encoding import EncodedExamples
from .losses import DiffusionLoss, make_generator

EVALUATION_DRAWS = 128  # examples with noise of one measurement


class FixedNoiseLoss:
    """The loss on 128 examples (repeated if there are fewer) with noise and timesteps that never change.

    Noise and timesteps are the same for every set of examples.
    """

    def __init__(self, frozen: FrozenBase, examples: EncodedExamples, objective: DiffusionLoss, batch_size: int):
        self._frozen, self._examples, self._objective, self._batch_size = frozen, examples, objective, batch_size
        self.unguided_loss = self(None)

    @torch.no_grad()
    def __call__(self, net: LayerwiseOffload | None) -> float:
        numbers = make_generator(1)
        times = (
            torch.randperm(EVALUATION_DRAWS, generator=numbers) * self._objective.num_timesteps // EVALUATION_DRAWS
        )  # every noise level alike
        losses = []
        for draws in torch.arange(EVALUATION_DRAWS).split(self._batch_size):
            batch = self._examples.load_batch([i * len(self._examples) // EVALUATION_DRAWS for i in draws.tolist()])
            noise = torch.randn(batch.latents.shape, generator=numbers)
            x, target, t = self._objective.add_noise(batch.latents, noise, times[draws])
            predicted = self._frozen.predict(x, t, batch, net)
            losses.append(len(draws) * self._objective.compute_loss(predicted, target, t, importance_sampled=False))
        return float(sum(losses)) / EVALUATION_DRAWS

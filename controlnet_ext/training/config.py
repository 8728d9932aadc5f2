"""One training: a frozen model, what learns beside it, and the pictures."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from ..generation.pipeline_folder import PipelineFolder
from ..models import load
from ..models.kinds.controlnet import ControlNet
from .data import Pictures
from .loop import LOG, Schedule, train
from .objective import Examples, FixedLoss, Frozen, Noising, control_loss, generator, verdict


class Lesson:
    """The model of a folder, on a GPU where there is one, and beside it the ControlNet in the file `first`, or a copy
    of the UNet's encoder. `size` is height and width, `weighting` that of noise levels. ValueError where the file is
    another kind or fits another UNet."""

    def __init__(
        self,
        folder: PipelineFolder,
        first: Path | None,
        to_learn: Pictures,
        held_out: Pictures,
        size: tuple[int, int],
        batch: int,
        seed: int,
        weighting: str = "min-snr",
    ):
        self._noising, self._batch, self._seed = Noising(folder.scheduler("ddpm"), weighting), batch, seed
        pipe = folder.load(torch.float32, folder.scheduler(None))
        self._frozen = Frozen(pipe, "cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(seed)
        learner = ControlNet.copy_of(pipe.unet) if first is None else load(first, dtype=torch.float32)
        if not isinstance(learner, ControlNet):
            raise ValueError(f"{str(first)!r} is a {learner.architecture}, expected a ControlNet")
        learner.settle(pipe.unet)
        self._learner = learner.requires_grad_(True)
        self._examples = {
            "training": Examples(to_learn, self._frozen, *size),
            "held_out": Examples(held_out, self._frozen, *size),
        }

    def learn(self, schedule: Schedule, work: Path) -> tuple[ControlNet | None, str]:
        """The trained network and the verdict; None and no words when the minutes ran out."""
        fixed = {
            side: FixedLoss(self._frozen, each, self._noising, self._batch) for side, each in self._examples.items()
        }
        to_learn = self._examples["training"]

        def loss(net: torch.nn.Module, step: int, part: int) -> torch.Tensor:
            numbers = generator(self._seed, step, part)
            return control_loss(net, self._frozen, to_learn, self._noising, self._batch, numbers)

        def measure(net: torch.nn.Module) -> dict[str, float]:
            losses = {side: each(net) for side, each in fixed.items()}
            return losses | {f"{side}_unguided": each.unguided for side, each in fixed.items()}

        net = train(self._learner, loss, measure, schedule, work)
        if net is None:
            return None, ""
        assert isinstance(net, ControlNet)
        rows = {row["step"]: row for row in map(json.loads, (work / LOG).read_text().splitlines())}
        return net, verdict([rows[step] for step in sorted(rows)])

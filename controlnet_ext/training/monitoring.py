"""Sentences, the report, TensorBoard and wandb: all that a training says of itself after each measurement.

All but the last two are functions of the work folder, so that a resumed training shows what one would that was never
interrupted.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..files.disk import write_atomically
from .report import write_report
from .stopping import Decision, PatienceRule, Row
from .verdict import describe_change

if TYPE_CHECKING:
    from ..maps.control_map import ControlMap
    from ..maps.fidelity import Measure

TENSORBOARD_FOLDER = "tensorboard"
DEFAULT_FIDELITY_IMAGES = 4
WANDB_RUN_FILE = "wandb_run"  # the identity of the run, for when it is resumed


@dataclass(frozen=True)
class FidelitySettings:
    """Settings of a measurement of the fidelity of `count` generated images.

    preprocess: makes the `ControlMap` of an image (H, W, 3) RGB uint8, as those of the data are made.
    kind: kind of the maps.
    by: the measure of such maps.
    """

    count: int
    preprocess: Callable[[np.ndarray], ControlMap]
    kind: str
    by: Measure


@dataclass(frozen=True)
class MonitorSettings:
    """Settings of what is measured, shown and kept of a training.

    draws: examples of a measurement of the losses, None for the default.
    fidelity: of generated images; None measures none.
    rule: when the training stops, and which measurement is the best.
    publishes_last: True if the last weights are the result, not the best.
    wandb_project: None reports to no wandb.
    """

    draws: int | None = None
    fidelity: FidelitySettings | None = None
    rule: PatienceRule = field(default_factory=PatienceRule)
    publishes_last: bool = False
    wandb_project: str | None = None


class ScalarLog(Protocol):
    """A place in which figures are shown by step."""

    def add(self, row: Row) -> None:
        """Show the figures of a row."""


class TrainingMonitor:
    """A stop rule that also reports: called with the rows of the log after each measurement.

    Raises ValueError where wandb is asked for and not installed.
    """

    def __init__(self, work_folder: Path, settings: MonitorSettings):
        self._folder, self._rule = work_folder, settings.rule
        self._logs: list[ScalarLog] = []
        self._shown = 0.0  # the last step that the logs have
        if settings.wandb_project is not None:
            check_wandb()
            self._logs.append(WandbLog(work_folder, settings.wandb_project))
        if _is_installed("tensorboard"):
            self._logs.append(TensorBoardLog(work_folder / TENSORBOARD_FOLDER))

    def __call__(self, rows: Sequence[Row]) -> Decision:
        decision = self._rule(rows)
        assert decision.best_step is not None
        write_report(self._folder)
        for row in rows if self._shown == 0.0 else rows[-1:]:
            for log in self._logs:
                log.add(row)
            self._shown = row["step"]
        return replace(decision, message=describe_change(rows, decision.best_step))


def check_wandb() -> None:
    """Raise ValueError unless wandb is installed."""
    if not _is_installed("wandb"):
        raise ValueError("--wandb: wandb is not installed: pip install wandb")


class TensorBoardLog:
    """Event files for TensorBoard, `tensorboard --logdir OUT.training`, written anew when a training is resumed."""

    def __init__(self, folder: Path):
        from torch.utils.tensorboard import SummaryWriter

        for path in folder.glob("events.out.tfevents.*"):
            path.unlink()
        self._writer = SummaryWriter(str(folder))

    def add(self, row: Row) -> None:
        """Write the figures of a row."""
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(name, value, int(row["step"]))
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class WandbLog:
    """A run at Weights & Biases, or on disk with WANDB_MODE=offline; a resumed training goes on with its run."""

    def __init__(self, work_folder: Path, project: str):
        import wandb

        path = work_folder / WANDB_RUN_FILE
        if not path.exists():
            write_atomically(path, wandb.util.generate_id().encode())
        self._run = wandb.init(project=project, dir=str(work_folder), id=path.read_text(), resume="allow")

    def add(self, row: Row) -> None:
        """Send the figures of a row."""
        self._run.log({name: value for name, value in row.items() if name != "step"}, step=int(row["step"]))


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # a module that was loaded without a specification
        return False

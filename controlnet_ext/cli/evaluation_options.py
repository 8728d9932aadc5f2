"""Flags of `train` for what is measured, shown and published, and what they mean."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..training.config import TrainingSchedule
from ..training.monitoring import DEFAULT_FIDELITY_IMAGES, FidelitySettings, MonitorSettings, check_wandb
from ..training.stopping import STOP_FIGURES, PatienceRule
from .common import print_stderr

if TYPE_CHECKING:
    import numpy as np

    from ..maps.control_map import ControlMap
    from ..maps.fidelity import Measure, NoMeasure

REPORT_ONLY = "--report-only"


def add_evaluation_flags(parser: ArgumentParser) -> None:
    """Declare what is measured, when, and what follows from it."""
    parser.add_argument(
        "--every",
        metavar="N",
        type=int,
        default=TrainingSchedule.evaluation_interval,
        help="steps between evaluations, each with a checkpoint",
    )
    parser.add_argument(
        "--draws", metavar="N", type=int, help="examples with noise in a measurement of the losses (default: 128)"
    )
    parser.add_argument(
        "--fidelity-images",
        metavar="N",
        type=int,
        help="held-out images that are generated at each evaluation and measured against their maps; 0: none (default: "
        f"{DEFAULT_FIDELITY_IMAGES} where --map names a preprocessor whose maps can be measured)",
    )
    parser.add_argument(
        "--stop",
        metavar="RULE",
        default="none",
        help=f"stop when a figure, one of {', '.join(STOP_FIGURES)}, has not improved in that many evaluations, as in "
        "gain:5; none: after --steps",
    )
    parser.add_argument(
        "--last",
        action="store_true",
        help="write the last weights to OUT, not the best (by the figure of --stop, else by the gain)",
    )
    parser.add_argument("--license", metavar="L", help="license of OUT, for its model card (default: unknown)")
    parser.add_argument("--wandb", metavar="PROJECT", help="also report to this project of Weights & Biases")
    parser.add_argument(
        REPORT_ONLY, metavar="WORK", help="only draw the report of a training's work folder again, without networks"
    )


def is_report_only(words: Sequence[str]) -> bool:
    """Return True if the command line only draws a report, for which nothing else is required."""
    return any(word.partition("=")[0] == REPORT_ONLY for word in words)


def draw_report(work: str) -> int:
    """Draw the report of a work folder again; return the exit code. Raises ValueError or FileNotFoundError."""
    from ..training.report import write_report

    if not Path(work).is_dir():
        raise FileNotFoundError(f"{work!r} is not a folder; expected the work folder of a training, OUT.training")
    for path in write_report(Path(work)):
        print_stderr(f"{path}: written")
    return 0


def read_monitor_settings(
    options: Namespace,
    kind: str,
    preprocess: Callable[[np.ndarray], ControlMap] | None,
    fidelity: Measure | NoMeasure | None,
    is_inpainting: bool,
) -> MonitorSettings:
    """Return the settings that the flags of `add_evaluation_flags` state.

    `preprocess` makes the map of an image (H, W, 3); it and `fidelity` are those of the preprocessor of --map, None
    where all maps are given. Raises ValueError in one line for values that make no sense, or that this training cannot
    have.
    """
    if options.draws is not None and options.draws < 4:
        raise ValueError(f"--draws {options.draws}: expected at least 4, one for each quartile of the timesteps")
    count, rule = options.fidelity_images, PatienceRule.parse(options.stop)
    if count is not None and count < 0:
        raise ValueError(f"--fidelity-images {count}: expected 0 or more")
    if options.wandb is not None:
        check_wandb()
    fidelity_settings = _read_fidelity(count, kind, preprocess, fidelity, is_inpainting)
    if rule.figure == "fidelity" and fidelity_settings is None:
        raise ValueError(f"--stop {options.stop}: there is no fidelity to stop by without --fidelity-images")
    return MonitorSettings(options.draws, fidelity_settings, rule, options.last, options.wandb)


def _read_fidelity(
    count: int | None,
    kind: str,
    preprocess: Callable[[np.ndarray], ControlMap] | None,
    fidelity: Measure | NoMeasure | None,
    is_inpainting: bool,
) -> FidelitySettings | None:
    """Return what is measured, None for nothing. Raises ValueError for images that cannot be measured."""
    from ..maps.fidelity import NoMeasure

    reason = None
    if preprocess is None or fidelity is None:
        reason = "all maps are given: name the preprocessor that makes them in --map, so that images can be measured"
    elif isinstance(fidelity, NoMeasure):
        reason = fidelity.reason
    elif is_inpainting:
        reason = "images of an inpainting model are not generated during a training"
    if count == 0 or (count is None and reason is not None):
        return None
    if reason is not None or preprocess is None or fidelity is None or isinstance(fidelity, NoMeasure):
        raise ValueError(f"--fidelity-images {count}: {reason}")
    return FidelitySettings(count or DEFAULT_FIDELITY_IMAGES, preprocess, kind, fidelity)

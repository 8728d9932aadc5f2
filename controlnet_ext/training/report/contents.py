"""The contents of a report, read from a work folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...files.disk import read_json
from ...files.image_reader import read_image
from ..stopping import NO_STOP, STOP_FIGURES, Decision, PatienceRule, Row
from ..verdict import OVERFITS, Fit, classify_fit, describe_fit, describe_state, find_state_start
from ..work_folder import (
    ARGUMENTS_FILE,
    BOUNDS_FILE,
    FACTS_FILE,
    IMAGES_FOLDER,
    LOG_FILE,
    MAPS_STRIP,
    SOURCES_STRIP,
    UNGUIDED_STRIP,
    name_step_strip,
    read_log,
)

MAX_STEP_STRIPS = 6  # rows of generated images


@dataclass(frozen=True, eq=False)
class Strip:
    """Images side by side, (H, W, 3) RGB uint8, and what they are."""

    label: str
    note: str
    pixels: np.ndarray
    is_best: bool = False
    is_map: bool = False


@dataclass(frozen=True, eq=False)
class ReportContents:
    """All that a report shows of a training.

    name: that of the file it writes.
    rows: of the log, at least one.
    decision: the best measurement, and why the training stopped.
    fit: state after the last row, since the row with the step `since`.
    bounds: floor and ceiling of the fidelity, empty where none is measured.
    arguments, facts: see `write_run_facts`; empty where they are missing.
    """

    name: str
    rows: Sequence[Row]
    rule: PatienceRule
    decision: Decision
    fit: Fit
    since: float
    strips: Sequence[Strip]
    bounds: Mapping[str, Any]
    arguments: Mapping[str, Any]
    facts: Mapping[str, Any]

    @classmethod
    def read(cls, work_folder: Path) -> ReportContents:
        """Read a work folder. Raises ValueError where it has no measurement."""
        rows = read_log(work_folder / LOG_FILE)
        if not rows:
            raise ValueError(
                f"{str(work_folder)!r} holds no measurement of a training: name a folder OUT.training with a {LOG_FILE}"
            )
        facts, arguments = (_read_if_there(work_folder / name) for name in (FACTS_FILE, ARGUMENTS_FILE))
        bounds = _read_if_there(work_folder / IMAGES_FOLDER / BOUNDS_FILE)
        rule = PatienceRule.parse(facts.get("stop", NO_STOP))
        decision = rule(rows)
        return cls(
            facts.get("output", work_folder.name.removesuffix(".training")),
            rows,
            rule,
            decision,
            classify_fit(rows),
            rows[find_state_start(rows)]["step"],
            _read_strips(work_folder / IMAGES_FOLDER, rows, decision.best_step),
            bounds,
            arguments,
            facts,
        )

    @property
    def last(self) -> Row:
        """The last row."""
        return self.rows[-1]

    @property
    def best(self) -> Row:
        """The best row by the rule's figure."""
        return next(row for row in self.rows if row["step"] == self.decision.best_step)

    @property
    def published(self) -> Row:
        """The row whose weights are written to the output: the best, or the last where that was asked for."""
        return self.last if self.facts.get("publishes_last") else self.best

    @property
    def is_overfit(self) -> bool:
        """True if the network overfits after the last row."""
        return self.fit.status == OVERFITS

    @property
    def sentences(self) -> list[str]:
        """The verdict, what happened when, and why the training stopped."""
        state = describe_state(self.rows, self.best["step"])
        texts = [describe_fit(self.rows), state, self.decision.reason]
        return [_capitalize(each) + "." for each in texts if each]

    @property
    def image_counts(self) -> str | None:
        """Numbers of images to learn from and held out, in words; None where they are not known."""
        counts = (("training_images", "images"), ("training_shards", "shards of images"))
        entry = next(((self.facts[name], words) for name, words in counts if name in self.facts), None)
        return entry and f"{entry[0]:,} {entry[1]}, {self.facts['held_out_images']:,} more held out"

    @property
    def best_title(self) -> str:
        """The figure by which the best measurement is chosen, in words."""
        return STOP_FIGURES[self.rule.figure].title


def _capitalize(text: str) -> str:
    return text[:1].upper() + text[1:]


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _read_strips(folder: Path, rows: Sequence[Row], best_step: float | None) -> list[Strip]:
    """Return the strips of sources, maps, images without control, and of up to `MAX_STEP_STRIPS` measurements."""
    fixed_images = [
        (SOURCES_STRIP, "held-out images", "never trained on"),
        (MAPS_STRIP, "their maps", ""),
        (UNGUIDED_STRIP, "without control", "same noise"),
    ]
    strips = [
        Strip(label, note, read_image(folder / name), is_map=name == MAPS_STRIP)
        for name, label, note in fixed_images
        if (folder / name).exists()
    ]
    for row in _choose_rows([row for row in rows if (folder / name_step_strip(int(row["step"]))).exists()], best_step):
        pixels, is_best = read_image(folder / name_step_strip(int(row["step"]))), row["step"] == best_step
        share = f"fidelity {100 * row['fidelity_share']:.0f} %" if "fidelity_share" in row else ""
        strips.append(Strip(f"step {row['step']:,.0f}", f"{share}{' · best' if is_best else ''}", pixels, is_best))
    return strips


def _choose_rows(rows: Sequence[Row], best_step: float | None) -> list[Row]:
    """Return up to `MAX_STEP_STRIPS` rows: the first, the last, the best, and others at even distances."""
    if len(rows) <= MAX_STEP_STRIPS:
        return list(rows)
    even = np.linspace(0, len(rows) - 1, MAX_STEP_STRIPS - 1).round().astype(int)
    best = [i for i, row in enumerate(rows) if row["step"] == best_step]
    return [rows[i] for i in sorted({*even.tolist(), *best})]

"""The arms of the measurement, by domain: scenes, what the VAE leaves of them, unguided, and each control.

Every arm has the same captions and the noise of the same seeds, and all figures that its domain has.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from controlnet_ext.maps.fidelity import bootstrap_interval
from tools.embedded_model.judges import JUDGES, KINDS, name_images, read_labels

from ..photos import photos
from ..sampling import Arm, Sampler, through_vae
from .scenes import CONTROLS, SceneSet, list_single_things
from .scores import Judges, Scores, shrink_all

Figures = dict[str, Any]  # by name an interval, or a number
FIGURE_OF_CONTROL = {"canny": "f1", "depth": "depth", "segmentation": "miou", "pose": "person"}
OTHER = "other_"  # before a figure against another scene's map


def summarize(scores: Scores) -> Figures:
    """Return mean, bounds of the 95 % bootstrap interval and count of each figure's scores, of those that have any."""
    figures = {}
    for name, each in scores.items():
        interval = bootstrap_interval(each)
        if interval.used:
            figures[name] = {"mean": interval.mean, "low": interval.low, "high": interval.high, "count": interval.used}
    return figures


@dataclass(frozen=True, eq=False)
class Measurement:
    """What is measured: the samplers by control, None for unguided images; judges; folders; settings."""

    samplers: Mapping[str | None, Sampler]
    judges: Judges
    worlds: Path
    split: str
    count: int
    side: int
    guidance: float

    def iter_arms(self, domains: Sequence[str]) -> Iterator[tuple[str, Figures]]:
        """Yield the name and the figures of each arm of these domains."""
        for domain in domains:
            yield from self.iter_domain(SceneSet.read(self.worlds, domain, self.split, self.count, self.side))
        if "things" in domains and "classes" in self.judges.networks:
            yield "things, single", self.measure_objects()

    def iter_domain(self, given: SceneSet) -> Iterator[tuple[str, Figures]]:
        """Yield the arms of one domain."""
        yield f"{given.domain}, scenes", summarize(self.judges.score(given, given.images))
        ceiling = through_vae(self.samplers[None].vae, given.images)
        yield f"{given.domain}, VAE", summarize(self.judges.score(given, ceiling))
        for control in self.samplers:
            if control is None or given.domain in CONTROLS[control]:
                name = f"{given.domain}, {control or 'unguided'}"
                images, seconds = self.sample(name, given, control)
                figures = {**summarize(self.judges.score(given, images)), "seconds": seconds}
                yield name, figures | self.score_others(given, images, control)

    def sample(self, name: str, given: SceneSet, control: str | None) -> tuple[np.ndarray, float]:
        """Return the images (N, S, S, 3) of a set's captions and noise under a control, and the seconds of each."""
        maps = None if control is None else given.maps[control]
        return self.samplers[control].sample(name, Arm(given.captions, given.seeds, maps, self.guidance))

    def score_others(self, given: SceneSet, images: np.ndarray, control: str | None) -> Figures:
        """Return the control's figure of images (N, S, S, 3) against the map of another scene."""
        if control is None:
            return {}
        figure = FIGURE_OF_CONTROL[control]
        scores = self.judges.score(given.rotate(), images)
        return summarize({f"{OTHER}{figure}": scores[figure]} if figure in scores else {})

    def measure_objects(self) -> Figures:
        """Return how often the one thing of a caption is recognized in unguided images; what was taken for what."""
        seeds, captions = list_single_things(self.worlds, self.split, self.count)
        images, seconds = self.samplers[None].sample("things, single", Arm(captions, seeds, None, self.guidance))
        figures = summarize(self.judges.score_words(captions, images))
        found = name_images(self.judges.networks["classes"], shrink_all(images))["thing"]
        named = [read_labels(caption)["thing"] for caption in captions]
        wrong = [f"{a} > {KINDS[b]}" for a, b in zip(named, found, strict=True) if a != KINDS[b]]
        return {"thing": figures["thing"], "wrong": sorted(wrong), "seconds": seconds}

    def measure_photos(self, folder: Path) -> Iterator[tuple[str, Figures]]:
        """Yield the canny F1 of each photo of a folder, and of all of them, guided, unguided and given back."""
        rows = dict(photos(folder, self.samplers["canny"], self.side))
        means = rows.pop("photos", None)
        yield from rows.items()
        if means is not None:
            own = [row for name, row in rows.items()][1:]  # the first is the project's own photo
            yield "photos", summarize({name: [row[name] for row in own] for name in ("guided", "unguided", "VAE")})

    def list_examples(
        self, control: str | None, count: int, domains: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the first images (count, S, S, 3) of domains in turn, and the maps that guided them."""
        images, maps = [], []
        for domain in domains:
            given = SceneSet.read(self.worlds, domain, self.split, self.count, self.side)
            images.append(self.sample("sheet", given, control)[0])
            maps.append(given.maps.get(control or ""))
        order = [(i % len(domains), i // len(domains)) for i in range(min(count, len(domains) * self.count))]
        chosen = np.stack([images[d][i] for d, i in order])
        return chosen, None if control is None else np.stack([maps[d][i] for d, i in order])


def check_judges(judges: Judges, folder: Path) -> None:
    """Say on stderr which figures are missing for want of a judge."""
    missing = [name for name in JUDGES if name not in judges.networks]
    if missing:
        print(f"no judge of {', '.join(missing)} in {folder}: their figures are left out", file=sys.stderr)

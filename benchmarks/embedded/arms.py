"""The arms of the measurement: each group gives named figures, of images from the same captions and noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from controlnet_ext import Window
from controlnet_ext.embedded.scenes import Scene, draw_scene

from .sampling import BATCH, Arm, Sampler, through_vae
from .scenes import CHOOSING, edges, elsewhere, next_indices, recolour_caption
from .scores import colour_share, colours_by_count, colours_seen, edge_figures, seen_share

Figures = dict[str, float]
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
ENDS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # of the windows 0..x
SCALES = (1.0, 2.0, 3.0, 4.0, 5.0, 7.5)  # of guidance by the caption
SUBSET = 64  # scenes for each of the curves


@dataclass(frozen=True, eq=False)
class Measurement:
    """The scenes of these seeds, which are also the numbers of their noise, and the sampler that draws them."""

    seeds: Sequence[int]
    scenes: Sequence[Scene]
    sampler: Sampler
    guidance: float

    @classmethod
    def of(cls, seeds: Sequence[int], sampler: Sampler, guidance: float) -> Measurement:
        return cls(seeds, [draw_scene(seed) for seed in seeds], sampler, guidance)

    @property
    def maps(self) -> list[np.ndarray]:
        return [edges(each.pixels) for each in self.scenes]

    @property
    def truth(self) -> np.ndarray:
        return np.stack([each.pixels for each in self.scenes])

    @property
    def unguided_arm(self) -> Arm:
        return Arm([each.caption for each in self.scenes], list(self.seeds), None, self.guidance)

    @property
    def guided_arm(self) -> Arm:
        return replace(self.unguided_arm, maps=self.maps)

    def first(self, count: int) -> Measurement:
        return replace(self, seeds=self.seeds[:count], scenes=self.scenes[:count])

    def score(self, images: np.ndarray) -> Figures:
        return {**edge_figures(self.maps, images), "colours": colour_share(self.scenes, images)}

    def measure(self, name: str, arm: Arm) -> tuple[np.ndarray, Figures]:
        """The arm's images, and their figures against the scenes' own maps and colours."""
        images, seconds = self.sampler.sample(name, arm)
        return images, {**self.score(images), "seconds": seconds}


def truth_figures(measurement: Measurement) -> Iterator[tuple[str, Figures]]:
    """Of the scenes themselves, and of what the VAE leaves of them; and how alike the maps of two scenes are."""
    images = measurement.truth
    yield "scenes", {**measurement.score(images), **_visible_colours(measurement, images)}
    yield "VAE", measurement.score(through_vae(measurement.sampler.vae, images))
    others = [measurement.maps[j] for j in next_indices(len(images))]
    yield "another scene", edge_figures(others, images)


def guided_figures(measurement: Measurement) -> Iterator[tuple[str, Figures]]:
    images, figures = measurement.measure("guided", measurement.guided_arm)
    yield "guided", {**figures, **colours_by_count(measurement.scenes, images)}
    others = [measurement.maps[j] for j in next_indices(len(images))]
    yield "guided, another scene's map", edge_figures(others, images)


def unguided_figures(measurement: Measurement) -> Iterator[tuple[str, Figures]]:
    images, figures = measurement.measure("unguided", measurement.unguided_arm)
    yield "unguided", {**figures, **_visible_colours(measurement, images)}


def swapped_figures(measurement: Measurement) -> Iterator[tuple[str, Figures]]:
    """Guided by the scenes' maps with captions that name other colours; `colours` counts the scenes' own,
    `colours_asked` those of the caption."""
    captions, colours = zip(*map(recolour_caption, measurement.scenes, measurement.seeds), strict=True)
    name = "guided, colours swapped"
    images, figures = measurement.measure(name, replace(measurement.guided_arm, captions=captions))
    yield name, {**figures, "colours_asked": colour_share(measurement.scenes, images, colours)}
    name = "guided, another scene's caption"
    others = [measurement.scenes[j].caption for j in elsewhere(measurement.scenes)]
    yield name, measurement.measure(name, replace(measurement.guided_arm, captions=others))[1]


def weight_figures(measurement: Measurement) -> Iterator[tuple[str, Figures]]:
    some = measurement.first(SUBSET)
    for weight in WEIGHTS:
        name = f"weight {weight:g}"
        yield name, some.measure(name, replace(some.guided_arm, weight=weight))[1]


def window_figures(measurement: Measurement) -> Iterator[tuple[str, Figures]]:
    """Windows 0..x; the one without a step is refused by `guide`, so 0..0 is the unguided arm."""
    some = measurement.first(SUBSET)
    for end in ENDS:
        name = f"window 0..{end:g}"
        arm = replace(some.guided_arm, window=Window(0, end)) if end else some.unguided_arm
        yield name, some.measure(name, arm)[1]


def guidance_figures(measurement: Measurement) -> Iterator[tuple[str, Figures]]:
    """By scale, on scenes that no other figure is taken on: what the scale is chosen by."""
    some = Measurement.of(CHOOSING[:SUBSET], measurement.sampler, measurement.guidance)
    for scale in SCALES:
        name = f"guidance {scale:g}"
        yield name, some.measure(name, replace(some.guided_arm, guidance=scale))[1]


def examples(measurement: Measurement, count: int) -> list[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Caption, scene, guided and unguided image of the first scenes, from batches that the other arms have made."""
    some = measurement.first(BATCH)
    captions = [each.caption for each in some.scenes]
    images = [some.sampler.sample("sheet", arm)[0] for arm in (some.guided_arm, some.unguided_arm)]
    return list(zip(captions, some.truth, *images, strict=True))[:count]


def _visible_colours(measurement: Measurement, images: np.ndarray) -> Figures:
    """How many of the caption's colours, and of as many others, are anywhere in the images."""
    own = [[thing.color for thing in each.things] for each in measurement.scenes]
    others = [recolour_caption(each, seed)[1] for each, seed in zip(measurement.scenes, measurement.seeds, strict=True)]
    visible = [colours_seen(image) for image in images]
    return {"seen": seen_share(visible, own), "seen_unnamed": seen_share(visible, others)}


GROUPS: dict[str, Callable[[Measurement], Iterator[tuple[str, Figures]]]] = {
    "truth": truth_figures,
    "guided": guided_figures,
    "unguided": unguided_figures,
    "swapped": swapped_figures,
    "guidance": guidance_figures,
    "weights": weight_figures,
    "windows": window_figures,
}

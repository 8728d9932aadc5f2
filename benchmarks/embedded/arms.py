"""The arms of the measurement: each group gives named figures, of pictures from the same captions and noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from controlnet_ext import Window
from controlnet_ext.embedded.scenes import Scene, draw_scene

from .sampling import BATCH, Arm, Sampler, through_vae
from .scenes import CHOOSING, edges, elsewhere, mismatched, recoloured
from .scores import colour_share, colours_by_count, colours_seen, edge_figures, seen_share

Figures = dict[str, float]
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
ENDS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # of the windows 0..x
SCALES = (1.0, 2.0, 3.0, 4.0, 5.0, 7.5)  # of guidance by the caption
SUBSET = 64  # scenes for each of the curves


@dataclass(frozen=True, eq=False)
class Asked:
    """The scenes of these seeds, which are also the numbers of their noise, and who makes pictures of them."""

    seeds: Sequence[int]
    scenes: Sequence[Scene]
    sampler: Sampler
    guidance: float

    @classmethod
    def of(cls, seeds: Sequence[int], sampler: Sampler, guidance: float) -> Asked:
        return cls(seeds, [draw_scene(seed) for seed in seeds], sampler, guidance)

    @property
    def maps(self) -> list[np.ndarray]:
        return [edges(each.pixels) for each in self.scenes]

    @property
    def truth(self) -> np.ndarray:
        return np.stack([each.pixels for each in self.scenes])

    @property
    def unguided(self) -> Arm:
        return Arm([each.caption for each in self.scenes], list(self.seeds), None, self.guidance)

    @property
    def guided(self) -> Arm:
        return replace(self.unguided, maps=self.maps)

    def first(self, count: int) -> Asked:
        return replace(self, seeds=self.seeds[:count], scenes=self.scenes[:count])

    def scored(self, pictures: np.ndarray) -> Figures:
        return {**edge_figures(self.maps, pictures), "colours": colour_share(self.scenes, pictures)}

    def measured(self, name: str, arm: Arm) -> tuple[np.ndarray, Figures]:
        """The arm's pictures, and their figures against the scenes' own maps and colours."""
        pictures, seconds = self.sampler.pictures(name, arm)
        return pictures, {**self.scored(pictures), "seconds": seconds}


def truth(asked: Asked) -> Iterator[tuple[str, Figures]]:
    """Of the scenes themselves, and of what the VAE leaves of them; and how alike the maps of two scenes are."""
    pictures = asked.truth
    yield "scenes", {**asked.scored(pictures), **_seen(asked, pictures)}
    yield "VAE", asked.scored(through_vae(asked.sampler.vae, pictures))
    others = [asked.maps[j] for j in mismatched(len(pictures))]
    yield "another scene", edge_figures(others, pictures)


def guided(asked: Asked) -> Iterator[tuple[str, Figures]]:
    pictures, figures = asked.measured("guided", asked.guided)
    yield "guided", {**figures, **colours_by_count(asked.scenes, pictures)}
    others = [asked.maps[j] for j in mismatched(len(pictures))]
    yield "guided, another scene's map", edge_figures(others, pictures)


def unguided(asked: Asked) -> Iterator[tuple[str, Figures]]:
    pictures, figures = asked.measured("unguided", asked.unguided)
    yield "unguided", {**figures, **_seen(asked, pictures)}


def swapped(asked: Asked) -> Iterator[tuple[str, Figures]]:
    """Guided by the scenes' maps with captions that name other colours; `colours` counts the scenes' own,
    `colours_asked` those of the caption."""
    captions, colours = zip(*map(recoloured, asked.scenes, asked.seeds), strict=True)
    name = "guided, colours swapped"
    pictures, figures = asked.measured(name, replace(asked.guided, captions=captions))
    yield name, {**figures, "colours_asked": colour_share(asked.scenes, pictures, colours)}
    name = "guided, another scene's caption"
    others = [asked.scenes[j].caption for j in elsewhere(asked.scenes)]
    yield name, asked.measured(name, replace(asked.guided, captions=others))[1]


def weights(asked: Asked) -> Iterator[tuple[str, Figures]]:
    some = asked.first(SUBSET)
    for weight in WEIGHTS:
        name = f"weight {weight:g}"
        yield name, some.measured(name, replace(some.guided, weight=weight))[1]


def windows(asked: Asked) -> Iterator[tuple[str, Figures]]:
    """Windows 0..x; the one without a step is refused by `guide`, so 0..0 is the unguided arm."""
    some = asked.first(SUBSET)
    for end in ENDS:
        name = f"window 0..{end:g}"
        arm = replace(some.guided, window=Window(0, end)) if end else some.unguided
        yield name, some.measured(name, arm)[1]


def guidance(asked: Asked) -> Iterator[tuple[str, Figures]]:
    """By scale, on scenes that no other figure is taken on: what the scale is chosen by."""
    some = Asked.of(CHOOSING[:SUBSET], asked.sampler, asked.guidance)
    for scale in SCALES:
        name = f"guidance {scale:g}"
        yield name, some.measured(name, replace(some.guided, guidance=scale))[1]


def examples(asked: Asked, count: int) -> list[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Caption, scene, guided and unguided picture of the first scenes, from batches that the other arms have made."""
    some = asked.first(BATCH)
    captions = [each.caption for each in some.scenes]
    made = [some.sampler.pictures("sheet", arm)[0] for arm in (some.guided, some.unguided)]
    return list(zip(captions, some.truth, *made, strict=True))[:count]


def _seen(asked: Asked, pictures: np.ndarray) -> Figures:
    """How many of the caption's colours, and of as many others, are anywhere in the pictures."""
    own = [[thing.color for thing in each.things] for each in asked.scenes]
    others = [recoloured(each, seed)[1] for each, seed in zip(asked.scenes, asked.seeds, strict=True)]
    seen = [colours_seen(picture) for picture in pictures]
    return {"seen": seen_share(seen, own), "seen_unnamed": seen_share(seen, others)}


GROUPS: dict[str, Callable[[Asked], Iterator[tuple[str, Figures]]]] = {
    group.__name__: group for group in (truth, guided, unguided, swapped, guidance, weights, windows)
}

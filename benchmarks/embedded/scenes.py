"""The scenes that figures are taken on, and their captions with other colours."""

from __future__ import annotations

import re
from collections.abc import Sequence

import cv2
import numpy as np

from controlnet_ext.embedded.scenes import HELD_OUT_SEEDS, THING_COLORS, Scene

# Nothing was ever chosen on these: the held-out figures of the trainings are of HELD_OUT's first 64 (VAE), its first
# 256 (base) and every 7,812th (ControlNet).
EVALUATION_SEEDS = HELD_OUT_SEEDS[1000:1256]
CHOOSING = HELD_OUT_SEEDS[2000:3000]  # for what is chosen by looking: the guidance scale, a checkpoint


def edges(pixels: np.ndarray) -> np.ndarray:
    """The map (H, W, 3) uint8 that is asked of the model, as the canny preprocessor makes it."""
    return cv2.Canny(pixels, 100, 200)[..., None].repeat(3, 2)


def ground_colour(caption: str) -> str:
    return caption.split()[-2]


def recolour_caption(scene: Scene, seed: int) -> tuple[str, tuple[str, ...]]:
    """The scene's caption with another colour for each thing, none of them named in its own caption, and these
    colours in the order of `things`. As in all captions they differ from each other and from the ground's."""
    names = {ground_colour(scene.caption), *(thing.color for thing in scene.things)}
    others = [colour for colour in THING_COLORS if colour not in names]
    choice = np.random.default_rng(seed).choice(others, len(scene.things), replace=False)
    colours = tuple(map(str, choice))
    caption = scene.caption
    for thing, colour in zip(scene.things, colours, strict=True):
        article = "an" if colour == "orange" else "a"
        caption = re.sub(rf"\ban? {thing.color} {thing.kind}\b", f"{article} {colour} {thing.kind}", caption)
    return caption, colours


def next_indices(count: int) -> list[int]:
    """For each of `count` scenes another one: the next, for the last the first."""
    if count < 2:
        raise ValueError(f"{count} scenes hold no other one: at least 2 are needed")
    return [(i + 1) % count for i in range(count)]


def elsewhere(scenes: Sequence[Scene]) -> list[int]:
    """For each scene the next one, past the last the first ones, whose caption names none of its things' colours."""
    indices = []
    for i, here in enumerate(scenes):
        own = {thing.color for thing in here.things}
        later = [*range(i + 1, len(scenes)), *range(i)]
        other = next((j for j in later if not own & set(re.findall(r"\w+", scenes[j].caption))), None)
        if other is None:
            raise ValueError(f"no other of {len(scenes)} scenes names other colours than {here.caption!r}: take more")
        indices.append(other)
    return indices

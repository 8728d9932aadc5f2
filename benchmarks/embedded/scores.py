"""How well pictures obey maps and captions: means over many, as plain numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from controlnet_ext.embedded.scenes import MIN_VISIBLE_PIXELS, Scene, find_majority_color
from controlnet_ext.maps.fidelity import canny_f1

Pictures = Sequence[np.ndarray] | np.ndarray  # each (H, W, 3) RGB uint8
BLOCK = 8  # pixels; a colour is seen where this many squared are mostly of it, so often that a thing fits in


def edge_figures(maps: Sequence[np.ndarray], pictures: Pictures) -> dict[str, float]:
    """`f1_exact` and `f1` (within a pixel) of the canny maps of pictures (H, W, 3) uint8 against asked maps, with
    `f1_error`, the standard error of the mean; `empty` counts asked maps without an edge, which are left out;
    `density` is the share of the pictures' pixels that are edges. nan where all maps are empty."""
    scores = [canny_f1(asked, picture) for asked, picture in zip(maps, pictures, strict=True)]
    kept = np.array([score for score in scores if not math.isnan(score.exact)]).reshape(-1, 2)
    density = [(cv2.Canny(np.ascontiguousarray(picture), 100, 200) > 0).mean() for picture in pictures]
    exact, within = kept.mean(0) if len(kept) else (math.nan, math.nan)
    return {
        "f1_exact": float(exact),
        "f1": float(within),
        "f1_error": float(kept[:, 1].std(ddof=1) / len(kept) ** 0.5) if len(kept) > 1 else math.nan,
        "empty": len(scores) - len(kept),
        "density": float(np.mean(density)),
    }


def colour_share(scenes: Sequence[Scene], pictures: Pictures, named: Sequence[Sequence[str]] | None = None) -> float:
    """The share of things whose true mask is mostly of the colour that the scene names, or of the one in `named`, for
    each scene in the order of its things."""
    if named is None:
        named = [[thing.color for thing in each.things] for each in scenes]
    right = [
        find_majority_color(picture, thing.mask) == colour
        for each, picture, colours in zip(scenes, pictures, named, strict=True)
        for thing, colour in zip(each.things, colours, strict=True)
    ]
    return float(np.mean(right))


def colours_by_count(scenes: Sequence[Scene], pictures: Pictures) -> dict[str, float]:
    """`colours_of_N`, the share of right colours in scenes of N things; `mistaken`, the share of the wrong ones that
    are the colour of another thing in the caption."""
    right: dict[int, list[bool]] = {}
    mistaken = []
    for each, picture in zip(scenes, pictures, strict=True):
        named = {thing.color for thing in each.things}
        for thing in each.things:
            seen = find_majority_color(picture, thing.mask)
            right.setdefault(len(each.things), []).append(seen == thing.color)
            if seen != thing.color:
                mistaken.append(seen in named)
    shares = {f"colours_of_{count}": float(np.mean(right[count])) for count in sorted(right)}
    return {**shares, "mistaken": float(np.mean(mistaken)) if mistaken else math.nan}


def seen_share(seen: Sequence[set[str]], named: Sequence[Iterable[str]]) -> float:
    """The share of named colours that are anywhere in their picture: for pictures without a map, of which nobody knows
    where a thing is."""
    pairs = zip(seen, named, strict=True)
    return float(np.mean([colour in colours for colours, names in pairs for colour in names]))


def colours_seen(pixels: np.ndarray) -> set[str]:
    """The palette's colours of which the picture (H, W, 3) uint8 has at least as much as the smallest thing."""
    height, width, _ = pixels.shape
    whole = np.ones((BLOCK, BLOCK), bool)
    found = [
        find_majority_color(pixels[y : y + BLOCK, x : x + BLOCK], whole)
        for y in range(0, height, BLOCK)
        for x in range(0, width, BLOCK)
    ]
    return {colour for colour in found if found.count(colour) * BLOCK**2 >= MIN_VISIBLE_PIXELS}

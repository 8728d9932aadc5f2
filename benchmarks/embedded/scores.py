"""How well images obey maps and captions: means over many, as plain numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from controlnet_ext.embedded.scenes import MIN_VISIBLE_PIXELS, Scene, find_majority_color
from controlnet_ext.maps.fidelity import canny_f1

Images = Sequence[np.ndarray] | np.ndarray  # each (H, W, 3) RGB uint8
BLOCK = 8  # pixels; a colour is seen where this many squared are mostly of it, so often that a thing fits in


def edge_figures(maps: Sequence[np.ndarray], images: Images) -> dict[str, float]:
    """`f1_exact` and `f1` (within a pixel) of the canny maps of images (H, W, 3) uint8 against asked maps, with
    `f1_error`, the standard error of the mean; `empty` counts asked maps without an edge, which are left out;
    `density` is the share of the images' pixels that are edges. nan where all maps are empty."""
    scores = [canny_f1(edge_map, image) for edge_map, image in zip(maps, images, strict=True)]
    valid = np.array([score for score in scores if not math.isnan(score.exact)]).reshape(-1, 2)
    density = [(cv2.Canny(np.ascontiguousarray(image), 100, 200) > 0).mean() for image in images]
    exact, within = valid.mean(0) if len(valid) else (math.nan, math.nan)
    return {
        "f1_exact": float(exact),
        "f1": float(within),
        "f1_error": float(valid[:, 1].std(ddof=1) / len(valid) ** 0.5) if len(valid) > 1 else math.nan,
        "empty": len(scores) - len(valid),
        "density": float(np.mean(density)),
    }


def colour_share(scenes: Sequence[Scene], images: Images, colour_names: Sequence[Sequence[str]] | None = None) -> float:
    """The share of things whose true mask is mostly of the colour that the scene names, or of
    the one in `colour_names`, for each scene in the order of its things."""
    if colour_names is None:
        colour_names = [[thing.color for thing in each.things] for each in scenes]
    right = [
        find_majority_color(image, thing.mask) == colour
        for each, image, colours in zip(scenes, images, colour_names, strict=True)
        for thing, colour in zip(each.things, colours, strict=True)
    ]
    return float(np.mean(right))


def colours_by_count(scenes: Sequence[Scene], images: Images) -> dict[str, float]:
    """`colours_of_N`, the share of right colours in scenes of N things; `mistaken`, the share of the wrong ones that
    are the colour of another thing in the caption."""
    right: dict[int, list[bool]] = {}
    mistaken = []
    for each, image in zip(scenes, images, strict=True):
        names = {thing.color for thing in each.things}
        for thing in each.things:
            colour = find_majority_color(image, thing.mask)
            right.setdefault(len(each.things), []).append(colour == thing.color)
            if colour != thing.color:
                mistaken.append(colour in names)
    shares = {f"colours_of_{count}": float(np.mean(right[count])) for count in sorted(right)}
    return {**shares, "mistaken": float(np.mean(mistaken)) if mistaken else math.nan}


def seen_share(visible: Sequence[set[str]], colour_names: Sequence[Iterable[str]]) -> float:
    """The share of named colours that are anywhere in their image: for images without a map, of which nobody knows
    where a thing is."""
    pairs = zip(visible, colour_names, strict=True)
    return float(np.mean([colour in colours for colours, names in pairs for colour in names]))


def colours_seen(pixels: np.ndarray) -> set[str]:
    """The palette's colours of which the image (H, W, 3) uint8 has at least as much as the smallest thing."""
    height, width, _ = pixels.shape
    whole = np.ones((BLOCK, BLOCK), bool)
    blocks = [
        find_majority_color(pixels[y : y + BLOCK, x : x + BLOCK], whole)
        for y in range(0, height, BLOCK)
        for x in range(0, width, BLOCK)
    ]
    return {colour for colour in blocks if blocks.count(colour) * BLOCK**2 >= MIN_VISIBLE_PIXELS}

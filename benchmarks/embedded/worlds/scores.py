"""Scores of images of a scene set, by figure a list: one for each image, or for each thing or word that can be right.

- `f1`: canny F1 within one pixel against the scene's own edges;
- `depth`: mean absolute difference, 0..1, between the depth judge's map of the image and the true one;
- `miou`: mean intersection over union of the segmentation judge's classes and the true ones;
- `thing`, `season`, `time`: whether the classifier names what the caption does;
- `colors`: whether most of a thing's true mask has the color of its word; `seen`: whether that color is anywhere;
- `person`: the highest intersection over union of the person's true mask with the pixels of one color of the palette
  (segmentation covering, Arbelaez et al., PAMI 33(5), 2011); `limbs`: whether most of a limb is of that color, and most
  of what is beside it is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from torch import nn

from controlnet_ext.embedded.scenes import LIGHTNESS_SHARE, LIMBS, PALETTE, Thing, find_majority_color
from controlnet_ext.maps.fidelity import canny_f1
from controlnet_ext.maps.fidelity.colors import convert_to_lab
from controlnet_ext.maps.fidelity.regions import compute_class_ious
from tools.embedded_model.judges import (
    HEADS,
    JUDGES,
    SIDE,
    draw_classes,
    draw_depths,
    load_judge,
    name_images,
    read_labels,
    shrink,
)
from tools.embedded_model.render_worlds import read_class_map
from tools.embedded_model.world_sets import find_person

from ..scores import colours_seen
from .scenes import SceneSet

Scores = dict[str, list[float]]
LIMB_WIDTH = 64  # of which an image's side is a limb's line wide


@dataclass(frozen=True, eq=False)
class Judges:
    """The trained judges, by name."""

    networks: Mapping[str, nn.Module]

    @classmethod
    def load(cls, folder: Path) -> Judges:
        """Load the judges that the folder has."""
        there = [name for name in JUDGES if (folder / name / "judge.safetensors").exists()]
        return cls({name: load_judge(name, folder) for name in there})

    def score(self, given: SceneSet, images: np.ndarray) -> Scores:
        """Return all figures of images (N, S, S, 3) uint8 RGB, which are asked to be the scenes of the set."""
        return {
            "f1": score_edges(given, images),
            **self.score_depth(given, images),
            **self.score_classes(given, images),
            **self.score_words(given.captions, images),
            **score_colors(given, images),
            **score_people(given, images),
        }

    def score_depth(self, given: SceneSet, images: np.ndarray) -> Scores:
        """Score the depth of images (N, S, S, 3), where it is known."""
        if "depth" not in self.networks or "depth" not in given.maps:
            return {}
        found = draw_depths(self.networks["depth"], shrink_all(images))
        true = np.stack([shrink(each[..., 0]) for each in given.maps["depth"]]) / 255
        return {"depth": np.abs(found - true).mean((1, 2)).tolist()}

    def score_classes(self, given: SceneSet, images: np.ndarray) -> Scores:
        """Score the classes of the pixels of images (N, S, S, 3), where they are known."""
        if "segmentation" not in self.networks or "segmentation" not in given.maps:
            return {}
        found = draw_classes(self.networks["segmentation"], shrink_all(images))
        true = [
            cv2.resize(read_class_map(each), (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
            for each in given.maps["segmentation"]
        ]
        pairs = [[each.astype(np.int64).ravel() for each in pair] for pair in zip(true, found, strict=True)]
        return {"miou": [float(np.mean(list(compute_class_ious(*pair).values()))) for pair in pairs]}

    def score_words(self, captions: list[str], images: np.ndarray) -> Scores:
        """Score the things, seasons and times of day that captions name and images (N, S, S, 3) show."""
        if "classes" not in self.networks:
            return {}
        found, scores = name_images(self.networks["classes"], shrink_all(images)), {}
        labels = [read_labels(caption) for caption in captions]
        for head, names in HEADS.items():
            rows = [i for i, each in enumerate(labels) if each[head] is not None]
            if rows:
                scores[head] = [float(names[found[head][i]] == labels[i][head]) for i in rows]
        return scores


def shrink_all(images: np.ndarray) -> np.ndarray:
    """Return images (N, S, S, 3) uint8 at the size that judges look at, (N, 96, 96, 3)."""
    return np.stack([shrink(image) for image in images])


def score_edges(given: SceneSet, images: np.ndarray) -> list[float]:
    """Return the canny F1 within a pixel of images (N, S, S, 3), NaN where a scene has no edge."""
    return [canny_f1(edges, image).within_1px for edges, image in zip(given.maps["canny"], images, strict=True)]


def score_colors(given: SceneSet, images: np.ndarray) -> Scores:
    """Score the color words of shapes in images (N, S, S, 3)."""
    if not given.scenes:
        return {}
    pairs = [(thing, i) for i, scene in enumerate(given.scenes) for thing in scene.things]
    seen = [colours_seen(image) for image in images]
    return {
        "colors": [float(find_majority_color(images[i], thing.mask) == thing.color) for thing, i in pairs],
        "seen": [float(thing.color in seen[i]) for thing, i in pairs],
    }


def score_people(given: SceneSet, images: np.ndarray) -> Scores:
    """Score the people of images (N, S, S, 3)."""
    scores: Scores = {"person": [], "limbs": []}
    for scene, image in zip(given.scenes, images, strict=False):
        person = find_person(scene)
        if person is not None:
            iou, limbs = compare_person(person, image)
            scores["person"].append(iou)
            scores["limbs"] += limbs
    return scores if scores["person"] else {}


def compare_person(person: Thing, image: np.ndarray) -> tuple[float, list[float]]:
    """Return the covering of a person's mask in an image (S, S, 3) uint8 RGB, and for each visible limb 1 or 0."""
    assert person.points is not None
    scale = np.array([LIGHTNESS_SHARE, 1, 1], np.float32)
    named = convert_to_lab(np.array([list(PALETTE.values())], np.uint8))[0] * scale
    nearest = ((convert_to_lab(image) * scale)[:, :, None] - named).__pow__(2).sum(3).argmin(2)
    segments = [nearest == color for color in range(len(PALETTE))]
    ious = [float((segment & person.mask).sum() / (segment | person.mask).sum()) for segment in segments]
    best, side = segments[int(np.argmax(ious))], len(image)
    limbs, outside = [], grow(person.mask, side // 64) == 0
    for ends in LIMBS:
        line = np.zeros((side, side), np.uint8)
        a, b = (tuple(round(float(each)) for each in person.points[i]) for i in ends)
        cv2.line(line, a, b, 1, max(1, side // LIMB_WIDTH))
        pixels = line > 0
        if pixels.any() and person.mask[pixels].mean() > 0.9:
            beside = (grow(pixels, side // 10) > 0) & outside
            is_apart = not beside.any() or best[beside].mean() < 0.5
            limbs.append(float(best[pixels].mean() > 0.5 and is_apart))
    return max(ious), limbs


def grow(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Return a mask (H, W), grown by so many pixels, as (H, W) uint8."""
    return cv2.dilate(mask.astype(np.uint8), np.ones((2 * pixels + 1, 2 * pixels + 1), np.uint8))

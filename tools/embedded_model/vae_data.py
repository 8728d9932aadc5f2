"""Crops that the autoencoder learns on: photographs at several scales and the rendered worlds.

A crop depends on the seed of its step only, so that a training that is stopped and started again sees the same data.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from tools.embedded_model.world_sets import DOMAINS, open_pixels

HELD_OUT_PHOTOS = ("chelsea", "coffee", "friends_by_Aitzol_Berasategi")  # for the curve of the training
SHORT_SIDES = (224, 300, 400, 540, 720)  # a photograph is cut at one of these sizes
PHOTO_SHARE = 0.4  # of all crops; the worlds share the rest equally


class CropSource:
    """Random crops of `size` pixels from the photographs and the cached worlds in a folder.

    A domain that has not been rendered yet is left out.
    """

    def __init__(self, folder: Path, size: int):
        self.size = size
        photos = [p for p in sorted((folder / "photos").glob("*.png")) if p.stem not in HELD_OUT_PHOTOS]
        self._photos = [_pyramid(cv2.imread(str(p), cv2.IMREAD_COLOR_RGB)) for p in photos]
        sets = [open_pixels(folder, domain, "training") for domain in DOMAINS]
        self._sets = [parts for parts in sets if parts]
        if not self._photos:
            raise FileNotFoundError(f"no photographs in {folder / 'photos'}: run fetch.py first")

    def crops(self, seed: int, count: int) -> Tensor:
        """Return (count, 3, size, size) float32 in -1..1."""
        rng = np.random.default_rng(seed)
        crops = [self._crop(rng) for _ in range(count)]
        return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)

    def _crop(self, rng: np.random.Generator) -> np.ndarray:
        if not self._sets or rng.random() < PHOTO_SHARE:
            levels = self._photos[rng.integers(len(self._photos))]
            crop = self._cut(levels[rng.integers(len(levels))], rng)
            crop = _change_colors(crop, rng) if rng.random() < 0.6 else crop
        else:
            parts = self._sets[rng.integers(len(self._sets))]
            part = parts[rng.integers(len(parts))]
            crop = self._cut(part[rng.integers(len(part))], rng)
        return crop[:, ::-1] if rng.random() < 0.5 else crop

    def _cut(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        y, x = (rng.integers(length - self.size + 1) for length in image.shape[:2])
        return image[y : y + self.size, x : x + self.size]


def _pyramid(image: np.ndarray) -> list[np.ndarray]:
    """The photograph at the sizes of SHORT_SIDES that are not larger than it."""
    short = min(image.shape[:2])
    sides = [side for side in SHORT_SIDES if side <= short] or [short]
    return [cv2.resize(image, None, fx=s / short, fy=s / short, interpolation=cv2.INTER_AREA) for s in sides]


def _change_colors(crop: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turn the hues, scale the saturation, bend the lightness: 25 photographs show too few colors."""
    hsv = cv2.cvtColor(crop, cv2.COLOR_RGB2HSV_FULL).astype(np.float32)
    hsv[..., 0] = (hsv[..., 0] + rng.uniform(0, 256)) % 256
    hsv[..., 1] *= rng.uniform(0.5, 1.3)
    hsv[..., 2] = 255 * (hsv[..., 2] / 255) ** rng.uniform(0.6, 1.5)
    return cv2.cvtColor(np.clip(hsv, 0, 255).astype(np.uint8), cv2.COLOR_HSV2RGB_FULL)

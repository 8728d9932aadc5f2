"""What the maps of edge networks go through: images in, soft edges in steps or as a scribble out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

_DIAGONAL = np.eye(3, dtype=np.uint8)
_DIRECTIONS = [_DIAGONAL, np.fliplr(_DIAGONAL), np.ones((1, 3), np.uint8), np.ones((3, 1), np.uint8)]


def pad_to_multiple(images: np.ndarray, multiple: int, min_size: int = 1) -> np.ndarray:
    """Images (B, H, W, 3) extended on the right and below with their edge pixels to multiples of that, and to `least`
    pixels. No further than a network needs: PiDiNet's F on BSDS500's images of 321x481 is .713 as they are, .683
    extended to multiples of 64."""
    height, width = images.shape[1:3]
    bottom, right = (max(-side % multiple, min_size - side) for side in (height, width))
    return np.pad(images, ((0, 0), (0, bottom), (0, right), (0, 0)), mode="edge")


def to_batch_tensor(images: np.ndarray) -> Tensor:
    """Images (B, H, W, C) as a tensor (B, C, H, W) float32 of the same values."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float()


def to_uint8(edges: np.ndarray) -> np.ndarray:
    """Edges in 0..1 as 0..255, cut to whole numbers as ControlNet does."""
    return (edges * 255).clip(0, 255).astype(np.uint8)


def quantize_edges(edges: np.ndarray, steps: int = 2) -> np.ndarray:
    """Edges in 0..1 in `steps` steps, trunc((steps + 1) x) / steps, which hide what a map says beyond its lines. What
    comes to more than 1 is for `grey` to cut (lllyasviel/ControlNet-v1-1-nightly, annotator/util.py, safe_step)."""
    return np.trunc(edges.astype(np.float32) * np.float32(steps + 1)) / np.float32(steps)


def scribble_from_edges(edges: np.ndarray) -> np.ndarray:
    """A drawing, 0 or 255, along the ridges of soft edges (H, W) uint8: where these, blurred (3 pixels), are highest
    in one of four directions and over 127, blurred once more and kept from 5 on (ControlNet's nms and what follows
    it)."""
    smooth = cv2.GaussianBlur(edges.astype(np.float32), (0, 0), 3.0)
    highest = np.logical_or.reduce([cv2.dilate(smooth, line) == smooth for line in _DIRECTIONS])
    ridges = np.where(highest & (smooth > 127), np.uint8(255), np.uint8(0))
    return np.where(cv2.GaussianBlur(ridges, (0, 0), 3.0) > 4, np.uint8(255), np.uint8(0))

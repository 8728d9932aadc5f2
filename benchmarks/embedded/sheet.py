"""A contact sheet: scene or photo, map, guided, unguided, map over guided."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from .scenes import edges

HEADINGS = ("image", "map", "guided", "unguided", "map over guided")
GAP, LINE = 6, 16  # pixels
PAPER, INK = 255, 40
OVERLAY = np.array((255, 0, 220), np.uint8)


def sheet(rows: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray]]) -> np.ndarray:
    """Two columns of rows (H, W, 3) uint8 RGB, each with its caption above it."""
    half = -(-len(rows) // 2)
    halves = [
        np.vstack([_headings(rows[0][1].shape[1]), *map(_row, part)]) for part in (rows[:half], rows[half:]) if part
    ]
    tallest = max(len(part) for part in halves)
    columns = [np.pad(part, ((0, tallest - len(part)), (0, GAP), (0, 0)), constant_values=PAPER) for part in halves]
    return np.hstack(columns)


def _row(row: tuple[str, np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    caption, scene, guided_image, unguided_image = row
    edge_map = edges(scene)
    over = np.where(edge_map > 0, OVERLAY, guided_image)
    tiles = [
        np.pad(tile, ((0, GAP), (GAP, 0), (0, 0)), constant_values=PAPER)
        for tile in (scene, edge_map, guided_image, unguided_image, over)
    ]
    band = np.hstack(tiles)
    return np.vstack([_words(band.shape[1], [(GAP, caption)]), band])


def _headings(side: int) -> np.ndarray:
    return _words(len(HEADINGS) * (side + GAP), [(GAP + i * (side + GAP), words) for i, words in enumerate(HEADINGS)])


def _words(width: int, places: Sequence[tuple[int, str]]) -> np.ndarray:
    line = np.full((LINE, width, 3), PAPER, np.uint8)
    for x, words in places:
        cv2.putText(line, words, (x, LINE - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.38, (INK,) * 3, 1, cv2.LINE_AA)
    return line

"""Sprites of trees for the landscapes, drawn once per process from fixed seeds.

A sprite is (h, w, 6) float32: the normal (right, up, towards the camera), the share of wood, how open to the sky the
place is, and alpha; all channels are multiplied by alpha, so that they may be resized.
"""

from __future__ import annotations

import math
from functools import cache

import cv2
import numpy as np

TREE_KINDS = ("pine", "leafy", "palm")
VARIANTS = 16
HEIGHT = 160  # pixels of a sprite
LEVELS = 4
Rng = np.random.Generator


@cache
def tree_sprites(kind: str) -> tuple[tuple[np.ndarray, ...], ...]:
    """All sprites of a kind, "pine", "leafy", "palm" or "bare", each at LEVELS sizes, every next one half as large."""
    draw = {"pine": _draw_pine, "leafy": _draw_leafy, "palm": _draw_palm, "bare": _draw_bare}[kind]
    return tuple(_halve(draw(np.random.default_rng((i, 77)))) for i in range(VARIANTS))


def _halve(sprite: np.ndarray) -> tuple[np.ndarray, ...]:
    levels = [sprite]
    for _ in range(LEVELS - 1):
        height, width = (length // 2 for length in levels[-1].shape[:2])
        halves = np.dsplit(levels[-1], 2)  # cv2 averages at most four channels
        levels.append(np.dstack([cv2.resize(h, (width, height), interpolation=cv2.INTER_AREA) for h in halves]))
    return tuple(levels)


def _blank(width: int) -> np.ndarray:
    return np.zeros((HEIGHT, width, 6), np.float32)


def _fill(sprite: np.ndarray, mask: np.ndarray, normal: np.ndarray, wood: float, shade: np.ndarray | float) -> None:
    """Paint over the sprite where the mask (h, w) 0..1 is; `normal` (3,) or (h, w, 3)."""
    layer = np.dstack(
        [
            np.broadcast_to(normal, (*mask.shape, 3)),
            np.full_like(mask, wood),
            np.broadcast_to(shade, mask.shape),
            np.ones_like(mask),
        ]
    )
    sprite += mask[..., None] * (layer - sprite)


def _polygon(shape: tuple[int, ...], points: np.ndarray) -> np.ndarray:
    mask = np.zeros(shape[:2], np.uint8)
    cv2.fillPoly(mask, [np.rint(points * 16).astype(np.int32)], 255, cv2.LINE_AA, shift=4)
    return mask.astype(np.float32) / 255


def _draw_trunk(sprite: np.ndarray, x: float, top: float, thick: float) -> None:
    points = np.array(
        [[x - thick, HEIGHT - 1], [x + thick, HEIGHT - 1], [x + thick * 0.5, top], [x - thick * 0.5, top]]
    )
    columns = (np.arange(sprite.shape[1]) - x) / max(thick, 1)
    normal = np.zeros((*sprite.shape[:2], 3), np.float32)
    normal[..., 0] = np.clip(columns, -1, 1)
    normal[..., 2] = np.sqrt(1 - normal[..., 0] ** 2)
    _fill(sprite, _polygon(sprite.shape, points), normal, 1.0, 0.7)


def _draw_pine(rng: Rng) -> np.ndarray:
    """Tiers of hanging branches, each lighter above and dark below."""
    width = int(HEIGHT * rng.uniform(0.36, 0.5))
    sprite = _blank(width)
    middle = width / 2
    _draw_trunk(sprite, middle, HEIGHT * 0.5, HEIGHT * 0.016)
    tiers = int(rng.integers(9, 14))
    columns = (np.arange(width) - middle) / middle
    for tier in range(tiers):
        share = tier / (tiers - 1)
        low = HEIGHT * (0.95 - 0.82 * share)
        reach = middle * (0.96 - 0.9 * share) * rng.uniform(0.85, 1.05)
        tall = HEIGHT * (0.24 - 0.1 * share)
        teeth = int(9 - 4 * share)
        xs = np.linspace(-reach, reach, 2 * teeth + 1)
        ys = low - (np.abs(xs) / max(reach, 1)) * tall * 0.12
        ys[1::2] -= tall * rng.uniform(0.16, 0.3, teeth)
        xs[1:-1] += rng.uniform(-1, 1, len(xs) - 2) * reach / teeth * 0.35
        outline = np.vstack([np.stack([xs + middle, ys], 1), [[middle, max(low - tall, 0)]]])
        mask = _polygon(sprite.shape, outline)
        rows = np.clip((low - np.arange(HEIGHT)) / tall, 0, 1)[:, None]
        normal = np.zeros((HEIGHT, width, 3), np.float32)
        normal[..., 0] = columns * 0.85
        normal[..., 1] = 0.25 + 0.5 * rows
        normal[..., 2] = 0.6
        normal += rng.normal(0, 0.16, normal.shape)
        normal /= np.linalg.norm(normal, axis=2, keepdims=True)
        _fill(sprite, mask, normal.astype(np.float32), 0.0, (0.45 + 0.55 * rows).astype(np.float32))
    return sprite


def _draw_leafy(rng: Rng) -> np.ndarray:
    """A crown of many small round clumps around an ellipsoid, far ones first."""
    width = int(HEIGHT * rng.uniform(0.75, 1.0))
    sprite = _blank(width)
    middle, center = width / 2, HEIGHT * 0.4
    _draw_trunk(sprite, middle, HEIGHT * 0.5, HEIGHT * 0.028)
    rows, columns = np.mgrid[:HEIGHT, :width].astype(np.float32)
    clumps = []
    for _ in range(90):
        direction = rng.normal(size=3)
        direction /= np.linalg.norm(direction)
        if direction[1] < -0.55:
            continue
        reach = rng.uniform(0.55, 0.86)
        clumps.append((direction[2], direction, reach))
    for _, direction, reach in sorted(clumps, key=lambda clump: clump[0]):
        x = middle + direction[0] * reach * width * 0.42
        y = center - direction[1] * reach * HEIGHT * 0.36
        radius = HEIGHT * rng.uniform(0.06, 0.1)
        top, left = max(int(y - 1.4 * radius), 0), max(int(x - 1.4 * radius), 0)
        part = np.s_[top : int(y + 1.4 * radius), left : int(x + 1.4 * radius)]
        dx, dy = (columns[part] - x) / radius, (y - rows[part]) / radius
        angle, inside = np.arctan2(dy, dx), dx * dx + dy * dy
        wobble = 1 + 0.18 * np.sin(5 * angle + rng.uniform(0, 6)) + 0.1 * np.sin(11 * angle)
        mask = np.clip((wobble - np.sqrt(inside)) * radius * 0.7, 0, 1)
        normal = np.dstack([dx, dy, np.sqrt(np.clip(1 - inside, 0.05, 1))])
        normal = normal * 0.6 + direction * 0.7 + rng.normal(0, 0.18, normal.shape)
        normal /= np.linalg.norm(normal, axis=2, keepdims=True)
        shade = np.clip(0.55 + 0.3 * direction[1] + 0.3 * dy, 0.25, 1)
        _fill(sprite[part], mask.astype(np.float32), normal.astype(np.float32), 0.0, shade.astype(np.float32))
    return sprite


def _draw_palm(rng: Rng) -> np.ndarray:
    """A bent trunk and hanging fronds."""
    width = int(HEIGHT * 0.95)
    sprite = _blank(width)
    bend = rng.uniform(-0.18, 0.18) * width
    t = np.linspace(0, 1, 14)
    line = np.stack([width / 2 + bend * (t * t - 0.5), HEIGHT * (1 - 0.66 * t)], 1)
    thick = np.linspace(3.6, 2.2, 14)[:, None] * [1, 0]
    mask = _polygon(sprite.shape, np.vstack([line - thick, (line + thick)[::-1]]))
    _fill(sprite, mask, np.array([0.3, 0.1, 0.95], np.float32), 1.0, 0.8)
    top = line[-1]
    for angle in rng.permutation(np.linspace(-0.3, math.pi + 0.3, 13) + rng.uniform(-0.12, 0.12, 13)):
        length = HEIGHT * rng.uniform(0.3, 0.4)
        s = np.linspace(0, 1, 12)
        spine = np.stack(
            [top[0] + np.cos(angle) * length * s, top[1] - np.sin(angle) * length * s * 0.75 + length * 0.62 * s**2], 1
        )
        side = np.stack([-np.gradient(spine[:, 1]), np.gradient(spine[:, 0])], 1)
        side /= np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-6)
        breadth = (HEIGHT * 0.045 * np.sin(np.pi * np.clip(s * 0.9 + 0.1, 0, 1)))[:, None]
        jag = 1 + 0.35 * np.resize([1, -1], 12)[:, None]
        mask = _polygon(sprite.shape, np.vstack([spine + side * breadth * jag, (spine - side * breadth * jag)[::-1]]))
        normal = np.array([0.4 * np.cos(angle), 0.75, 0.5], np.float32)
        _fill(sprite, mask, normal / np.linalg.norm(normal), 0.0, 0.6 + 0.4 * max(float(np.sin(angle)), 0))
    return sprite


def _draw_bare(rng: Rng) -> np.ndarray:
    """A trunk that forks seven times."""
    width = int(HEIGHT * 0.85)
    ink = np.zeros((HEIGHT, width), np.uint8)
    branches = [(np.array([width / 2, HEIGHT - 1.0]), math.pi / 2, HEIGHT * 0.24, 5.0)]
    while branches:
        start, angle, length, thick = branches.pop()
        end = start + length * np.array([math.cos(angle), -math.sin(angle)])
        ends = [tuple(int(v) for v in np.rint(p * 16)) for p in (start, end)]
        cv2.line(ink, *ends, 255, max(1, round(thick)), cv2.LINE_AA, shift=4)
        if length > 5:
            for turn in (rng.uniform(0.15, 0.65), -rng.uniform(0.15, 0.65)):
                branches.append((end, angle + turn, length * rng.uniform(0.68, 0.84), thick * 0.66))
    sprite = _blank(width)
    _fill(sprite, ink.astype(np.float32) / 255, np.array([0.2, 0.4, 0.9], np.float32), 0.6, 0.8)
    return sprite

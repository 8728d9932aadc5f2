"""Scenes drawn by code, with captions: the data that the embedded model is trained and measured on.

Frozen: a change here makes every figure in docs/ and the trained weights incomparable. `TRAINING_SEEDS` and
`HELD_OUT_SEEDS` are disjoint. Here are colors, stick people, light and composition; the outlines of other things are in
`figures`, the patterns of grounds in `grounds`.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .figures import FIGURES, Outline, Rng, outline_stroke
from .grounds import GROUNDS

# sRGB 0..255. Things take the first ten; grounds may also be grey or brown.
PALETTE = {
    "red": (214, 40, 40),
    "orange": (245, 130, 32),
    "yellow": (250, 215, 50),
    "green": (50, 150, 60),
    "cyan": (60, 200, 210),
    "blue": (40, 80, 200),
    "purple": (130, 60, 170),
    "pink": (245, 140, 185),
    "white": (243, 243, 240),
    "black": (28, 28, 32),
    "grey": (128, 128, 128),
    "brown": (120, 72, 40),
}
THING_COLORS = tuple(PALETTE)[:10]
LIGHTNESS_SHARE = 0.6  # light changes lightness more than hue, so lightness counts for less


def _to_scaled_lab(rgb: np.ndarray) -> np.ndarray:
    """CIE Lab (N, 3) of sRGB 0..255 (N, 3), lightness scaled by LIGHTNESS_SHARE."""
    lab = cv2.cvtColor(rgb.astype(np.float32)[None] / 255, cv2.COLOR_RGB2LAB)[0]
    return lab * np.array([LIGHTNESS_SHARE, 1, 1], np.float32)


def find_majority_color(pixels: np.ndarray, mask: np.ndarray) -> str:
    """Return the name in THING_COLOURS nearest to most pixels (H, W, 3) RGB uint8 inside the mask (H, W) bool. Raises
    ValueError for an empty mask."""
    if not mask.any():
        raise ValueError("an empty mask has no colour: give a mask with at least one pixel")
    palette = _to_scaled_lab(np.array([PALETTE[name] for name in THING_COLORS]))
    colors = _to_scaled_lab(pixels[mask])
    nearest = ((colors[:, None] - palette[None]) ** 2).sum(2).argmin(1)
    return THING_COLORS[int(np.bincount(nearest, minlength=len(palette)).argmax())]


# OpenPose COCO-18: nose, neck, then right before left: shoulder, elbow, wrist; hip, knee, ankle (each side whole);
# eyes; ears
LIMBS = ((2, 3), (3, 4), (5, 6), (6, 7), (8, 9), (9, 10), (11, 12), (12, 13), (2, 5), (8, 11), (1, 0))
TORSO = (2, 5, 11, 8)


def _point_at(start: np.ndarray, angle: float, length: float) -> np.ndarray:
    """The point at `length` from start, the angle turned from straight down."""
    return start + length * np.array([np.sin(angle), np.cos(angle)])


def make_person(rng: Rng) -> tuple[Outline, np.ndarray]:
    """Closed curves in the unit disc (y down; fill each by itself, they overlap) and key points (18, 2)."""
    nose, neck = np.array([0.0, -0.76]), np.array([0.0, -0.5])
    points = np.zeros((18, 2))
    points[0], points[1] = nose, neck
    for side, shoulder, hip in ((-1, 2, 8), (1, 5, 11)):
        points[shoulder] = neck + np.array([side * 0.19, 0.04])
        points[hip] = [side * 0.12, 0.12]
        arm = side * rng.uniform(0.1, 2.6)
        points[shoulder + 1] = _point_at(points[shoulder], arm, 0.27)
        points[shoulder + 2] = _point_at(points[shoulder + 1], arm + rng.uniform(-0.8, 0.8), 0.26)
        leg = side * rng.uniform(0.02, 0.55)
        points[hip + 1] = _point_at(points[hip], leg, 0.42)
        points[hip + 2] = _point_at(points[hip + 1], leg + rng.uniform(-0.35, 0.35), 0.42)
        points[14 if side < 0 else 15] = nose + np.array([side * 0.06, -0.05])
        points[16 if side < 0 else 17] = nose + np.array([side * 0.14, 0.0])
    angle = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    head = nose + 0.18 * np.stack([np.sin(angle), -np.cos(angle)], 1)
    width = rng.uniform(0.14, 0.18)
    limbs = [outline_stroke(np.linspace(points[a], points[b], 6), width) for a, b in LIMBS]
    return [head, points[list(TORSO)], *limbs], points


TRAINING_SEEDS = range(10_000_000)
HELD_OUT_SEEDS = range(10_000_000, 11_000_000)
THING_KINDS = (*FIGURES, "person")
MASK_SUPERSAMPLING = 4  # masks are drawn this much finer, then averaged: smooth borders
MIN_VISIBLE_SHARE = 0.55  # share of a thing that must stay visible
MIN_VISIBLE_PIXELS = 110  # and how much of it, in pixels of a 128-pixel image


@dataclass(frozen=True, eq=False)
class Thing:
    """One named thing: `mask (H, W)` bool is what is visible of it, `depth` its distance in metres, `points (18, 2)` a
    person's key points in pixels (x, y), OpenPose COCO order."""

    kind: str
    color: str
    mask: np.ndarray
    depth: float
    points: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Scene:
    """`pixels (H, W, 3)` RGB uint8, `caption`, `things` from far to near, `depth (H, W)` float32 metres."""

    pixels: np.ndarray
    caption: str
    things: tuple[Thing, ...]
    depth: np.ndarray


@dataclass(frozen=True, eq=False)
class _DrawnThing:
    kind: str
    alpha: np.ndarray
    points: np.ndarray | None


def draw_scene(seed: int, size: int = 128) -> Scene:
    """The scene of that seed, `size` pixels square: the same for ever."""
    rng = np.random.default_rng(seed)
    count = int(rng.choice([1, 2, 3], p=[0.25, 0.45, 0.3]))
    shapes, visible_masks = _arrange_things(rng, count, size)
    ground = str(rng.choice(list(GROUNDS), p=[0.34, 0.12, 0.11, 0.11, 0.12, 0.1, 0.1]))
    ground_color = str(rng.choice(list(PALETTE)))
    colors = rng.choice([c for c in THING_COLORS if c != ground_color], count, replace=False)
    pixels = _draw_ground(rng, ground, ground_color, size)
    depth = np.repeat(np.linspace(10, 4, size, dtype=np.float32)[:, None], size, 1)
    things = []
    far = np.sort(rng.uniform(1.5, 4, count))[::-1]
    for thing, colour, meters, visible in zip(shapes, colors, far, visible_masks, strict=True):
        pixels = _draw_shadow(pixels, thing.alpha, rng)
        shade = _jitter_color(rng, str(colour)) * _make_light_ramp(rng, size, 0.14)
        pixels = pixels + thing.alpha[..., None] * (shade - pixels)
        depth = np.where(thing.alpha > 0.5, np.float32(meters), depth)
        things.append(Thing(thing.kind, str(colour), visible, float(meters), thing.points))
    pixels = pixels * _make_light_ramp(rng, size, 0.12) * rng.uniform(0.82, 1.05)
    pixels = (
        pixels + cv2.GaussianBlur(rng.standard_normal((size, size, 1)).astype(np.float32), (0, 0), 1)[..., None] * 4
    )
    listing = " and ".join(_join_names([f"a {thing.color} {thing.kind}" for thing in things], rng))
    adjective = "" if ground == "plain" else f"{ground} "
    caption = _fix_articles(f"{listing} on a {adjective}{ground_color} ground")
    return Scene(np.clip(np.rint(pixels), 0, 255).astype(np.uint8), caption, tuple(things), depth)


def _join_names(names: list[str], rng: Rng) -> list[str]:
    """Names in random order; all but the last two joined by commas."""
    names = [names[i] for i in rng.permutation(len(names))]
    return [", ".join(names[:-1]), names[-1]] if len(names) > 1 else names


def _fix_articles(caption: str) -> str:
    return caption.replace("a orange", "an orange")


def _arrange_things(rng: Rng, count: int, size: int) -> tuple[list[_DrawnThing], list[np.ndarray]]:
    """`count` things of different kinds, far to near, and what is visible of each: drawn until all are seen enough."""
    kinds = [str(kind) for kind in rng.choice(THING_KINDS, count, replace=False)]
    while True:
        shapes = [_draw_thing(rng, kind, count, size) for kind in kinds]
        covers = [thing.alpha > 0.5 for thing in shapes]
        visible_masks = [c & ~np.any(covers[i + 1 :], axis=0) if i + 1 < count else c for i, c in enumerate(covers)]
        least = MIN_VISIBLE_PIXELS * (size / 128) ** 2
        if all(s.sum() >= max(least, MIN_VISIBLE_SHARE * c.sum()) for s, c in zip(visible_masks, covers, strict=True)):
            return shapes, visible_masks


def _draw_thing(rng: Rng, kind: str, count: int, size: int) -> _DrawnThing:
    """A thing somewhere in the image: alpha (size, size) float32 0..1."""
    tall = kind in ("person", "curve")
    radius = rng.uniform(30, 52) if tall else rng.uniform(17, 46 if count == 1 else 36)
    middle = rng.uniform(radius * 0.75, 128 - radius * 0.75, 2)
    outline: Outline
    if kind == "person":
        outline, points = make_person(rng)
        keypoints = (points * radius + middle) * (size / 128)
    else:
        outline, keypoints = FIGURES[kind](rng), None
    if rng.random() < 0.5:
        outline = [o * [-1, 1] for o in outline]
        keypoints = None if keypoints is None else _mirror_points(keypoints, middle[0] * size / 128)
    curves = [np.rint((o * radius + middle) * (size / 128 * MASK_SUPERSAMPLING * 16)).astype(np.int32) for o in outline]
    fine = np.zeros((size * MASK_SUPERSAMPLING, size * MASK_SUPERSAMPLING), np.uint8)
    for group in [[c] for c in curves] if kind == "person" else [curves]:
        cv2.fillPoly(fine, group, 255, shift=4)
    alpha = cv2.resize(fine, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    return _DrawnThing(kind, alpha, keypoints)


def _mirror_points(points: np.ndarray, x: float) -> np.ndarray:
    """Key points mirrored at a vertical line; right and left change places, as on a mirrored image of a person."""
    pairs = [0, 1, 5, 6, 7, 2, 3, 4, 11, 12, 13, 8, 9, 10, 15, 14, 17, 16]
    return (points * [-1, 1] + [2 * x, 0])[pairs]


def _jitter_color(rng: Rng, color: str) -> np.ndarray:
    return np.clip(np.array(PALETTE[color]) + rng.uniform(-14, 14, 3), 0, 255).astype(np.float32)


def _make_light_ramp(rng: Rng, size: int, strength: float) -> np.ndarray:
    """Light from one side: (size, size, 1) factors within 1 +- strength."""
    angle, amount = rng.uniform(0, 2 * np.pi), rng.uniform(0, strength)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    return (1 + amount * (np.cos(angle) * x + np.sin(angle) * y) / 1.42).astype(np.float32)[..., None]


def _draw_ground(rng: Rng, ground: str, color: str, size: int) -> np.ndarray:
    """Two tones of a colour, the second hardly or plainly different: edges that a threshold finds always or never."""
    first = _jitter_color(rng, color)
    away = np.float32(255 if first.mean() < 128 else 0)
    second = first + (away - first) * np.float32(0.04 if rng.random() < 0.3 else rng.uniform(0.36, 0.5))
    mix = cv2.resize(GROUNDS[ground](rng, size * 2), (size, size), interpolation=cv2.INTER_AREA)[..., None]
    return first + mix * (second - first)


def _draw_shadow(pixels: np.ndarray, alpha: np.ndarray, rng: Rng) -> np.ndarray:
    """A soft shadow under the thing, too soft to make an edge of its own."""
    k = len(alpha) / 128
    shadow = np.roll(alpha, rng.integers(-4, 5, 2) * max(1, round(k)), (0, 1))
    return pixels * (1 - np.float32(rng.uniform(0, 0.16)) * cv2.GaussianBlur(shadow, (0, 0), 5 * k)[..., None])

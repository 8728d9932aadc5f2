"""People and animals as key points: the numbers that a pose map is drawn of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import TypeAlias

from ...files.image_formats import MAX_SIDE, check_pixels

COORDINATE_RANGE = (
    -1,
    2,
)  # how far a point may lie outside the image, as fractions of it: what is drawn must fit in integers


MAX_FACE_POINTS = 1000


@dataclass(frozen=True)
class KeyPoint:
    """A point of a body. `x` and `y` are fractions of the image's width and height from its upper left corner, so
    that a pose can be drawn at any size; the pixel is int(x * width). They may lie up to one image outside (-1..2).
    `confidence` is the detector's, above 0; 1 where it gives none. Raises ValueError on anything else."""

    x: float
    y: float
    confidence: float = 1.0

    def __post_init__(self) -> None:
        low, high = COORDINATE_RANGE
        if not (low <= self.x <= high and low <= self.y <= high):  # NaN is outside too
            raise ValueError(f"key point ({self.x}, {self.y}) is outside {low}..{high} of the image")
        if not 0 < self.confidence < inf:
            raise ValueError(f"confidence {self.confidence} of a key point is not above 0; an absent point is None")


KeyPoints: TypeAlias = Sequence[KeyPoint | None]  # None where a point was not found


@dataclass(frozen=True)
class Person:
    """A person; None among the points stands for one that was not found, no points for a part that was not looked for.

    `body` has 18, in the order of OpenPose's COCO model: nose, neck, right shoulder, elbow, wrist, left shoulder,
    elbow, wrist, right hip, knee, ankle, left hip, knee, ankle, right eye, left eye, right ear, left ear. A hand has
    21: wrist, then four of each finger from the thumb on. A face has the 68 of iBUG 300-W, or 70 with the pupils; that
    of another detector has others, up to `MAX_FACE_POINTS`, such as MediaPipe's 468 or 478. Each is drawn."""

    body: KeyPoints
    left_hand: KeyPoints = ()
    right_hand: KeyPoints = ()
    face: KeyPoints = ()

    def __post_init__(self) -> None:
        _check_count("a body", self.body, 18)
        _check_count("a left hand", self.left_hand, 0, 21)
        _check_count("a right hand", self.right_hand, 0, 21)
        if len(self.face) > MAX_FACE_POINTS:
            raise ValueError(f"{len(self.face)} points of a face, expected up to {MAX_FACE_POINTS}, such as 68 or 70")


@dataclass(frozen=True)
class Animal:
    """A four-legged animal: 17 points in the order of AP-10K: left eye, right eye, nose, neck, root of the tail, left
    shoulder, elbow, front paw, right ones, left hip, knee, back paw, right ones; None where one was not found."""

    points: KeyPoints

    def __post_init__(self) -> None:
        _check_count("an animal", self.points, 17)


@dataclass(frozen=True)
class Poses:
    """All that was found in an image of `width` x `height` pixels: up to 64 megapixels and 65535 a side."""

    people: Sequence[Person]
    animals: Sequence[Animal]
    width: int
    height: int

    def __post_init__(self) -> None:
        check_pixels(self.height, self.width, "the canvas of the poses")
        if max(self.width, self.height) > MAX_SIDE:
            raise ValueError(f"the canvas of the poses is {self.width}x{self.height}, a side over {MAX_SIDE}")


def key_points_from_pixels(points: Iterable[Sequence[float]], height: int, width: int) -> tuple[KeyPoint | None, ...]:
    """Key points from (x, y, confidence) in pixels of an image; those that are NaN, or have no confidence, or lie
    further outside than a key point may, are None."""
    low, high = COORDINATE_RANGE
    return tuple(
        KeyPoint(x / width, y / height, confidence)
        if confidence > 0 and low <= x / width <= high and low <= y / height <= high
        else None
        for x, y, confidence in points
    )


def _check_count(part: str, points: KeyPoints, *counts: int) -> None:
    if len(points) not in counts:
        raise ValueError(f"{len(points)} points of {part}, expected {' or '.join(map(str, counts))}")

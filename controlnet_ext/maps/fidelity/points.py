"""People, animals and faces by their key points."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from ..control_map import ControlMap
from .compare import Measure, Placement

# pycocotools' sigmas, in the order of OpenPose's COCO model; its neck, which COCO has not, is the middle of the
# shoulders and has theirs
BODY_SIGMAS = np.array(
    [
        *(0.026, 0.079, 0.079, 0.072, 0.062, 0.079, 0.072, 0.062, 0.107, 0.087, 0.089, 0.107, 0.087, 0.089),
        *(0.025, 0.025, 0.035, 0.035),
    ]
)
# open-mmlab/mmpose @ bca88db5d38a, configs/_base_/datasets/ap10k.py
ANIMAL_SIGMAS = np.array(
    [
        *(0.025, 0.025, 0.026, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087),
        *(0.089, 0.089),
    ]
)
PCK_REACH = 0.2  # of the longer side of a body's box
_MIN_BOX_ASPECT = 0.2  # a box is at least that wide for its length: a limb alone has an area too
_EYE_CORNERS = {68: (36, 45), 70: (36, 45), 468: (33, 263), 478: (33, 263)}  # outer ones, by the number of points


class PointValues(Protocol):
    """A key point, in fractions of the image."""

    @property
    def x(self) -> float:
        """Fraction of the width."""

    @property
    def y(self) -> float:
        """Fraction of the height."""


class PersonValues(Protocol):
    """A person of a pose map, such as `Person`."""

    @property
    def body(self) -> Sequence[PointValues | None]:
        """The 18 points of OpenPose's COCO model."""

    @property
    def left_hand(self) -> Sequence[PointValues | None]:
        """21 points, or none."""

    @property
    def right_hand(self) -> Sequence[PointValues | None]:
        """21 points, or none."""

    @property
    def face(self) -> Sequence[PointValues | None]:
        """Points of the face, or none."""


class AnimalValues(Protocol):
    """An animal of a pose map, such as `Animal`."""

    @property
    def points(self) -> Sequence[PointValues | None]:
        """The 17 points of AP-10K."""


@runtime_checkable
class PoseValues(Protocol):
    """Values of a pose map, such as `Poses`."""

    @property
    def people(self) -> Sequence[PersonValues]:
        """The people."""

    @property
    def animals(self) -> Sequence[AnimalValues]:
        """The animals."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A person's or an animal's points in pixels, NaN where there is none: `body` (N, 2), and of people the hands
    (21, 2) and the face (M, 2), of no rows where they were not looked for."""

    body: np.ndarray
    left_hand: np.ndarray
    right_hand: np.ndarray
    face: np.ndarray


@dataclass(frozen=True, eq=False)
class FittedPoses:
    """The people and animals of a fitted pose map, in pixels of the canvas."""

    people: Sequence[Subject]
    animals: Sequence[Subject]


class BoxSize(NamedTuple):
    """The size of the smallest box around points, in pixels."""

    width: float
    height: float

    @property
    def reach(self) -> float:
        """The longer side."""
        return max(self.width, self.height)

    @property
    def area(self) -> float:
        """Its area, of a narrow box as if it were a fifth as wide as long."""
        return max(self.reach * _MIN_BOX_ASPECT, min(self.width, self.height)) * self.reach


def measure_box(points: np.ndarray) -> BoxSize:
    """Return the size of the box around points (N, 2), NaN where there is none; 0 for less than two."""
    there = points[~np.isnan(points).any(axis=1)]
    width, height = np.ptp(there, axis=0).tolist() if len(there) > 1 else (0.0, 0.0)
    return BoxSize(width, height)


def compute_oks(expected: np.ndarray, actual: np.ndarray, area: float, sigmas: np.ndarray) -> float:
    """Return the object key point similarity, 0..1, of points (N, 2) with the expected ones (N, 2), both NaN where
    there is none: the mean over the expected points of exp(-d² / (8 area sigma²)), 0 for one that is not found
    (pycocotools, COCOeval.computeOks)."""
    there = ~np.isnan(expected).any(axis=1)
    if not there.any():
        return float("nan")
    squares = ((expected - actual) ** 2).sum(axis=1)[there]
    variances = (2 * sigmas[there]) ** 2
    return float(np.nan_to_num(np.exp(-squares / variances / (area + np.spacing(1)) / 2)).sum() / there.sum())


def count_correct(expected: np.ndarray, actual: np.ndarray, reach: float) -> tuple[int, int]:
    """Return how many of the expected points (N, 2) are found (N, 2) within `reach` pixels, and how many there are;
    NaN where there is none."""
    there = ~np.isnan(expected).any(axis=1)
    distance = np.sqrt(((expected - actual) ** 2).sum(axis=1))
    return int((distance[there] <= reach).sum()), int(there.sum())


def compute_nme(expected: np.ndarray, actual: np.ndarray) -> float:
    """Return the normalized mean error of a face's points (N, 2) against the expected ones (N, 2), NaN where there is
    none: the mean distance in units of that between the outer corners of the eyes (of layouts other than 300-W's 68 or
    70 and MediaPipe's 468 or 478: the root of the box's area). A distance over 1, and a point that is not found, count
    as 1. NaN where nothing is expected."""
    there = ~np.isnan(expected).any(axis=1)
    unit = float("nan")
    if len(expected) in _EYE_CORNERS:
        right, left = _EYE_CORNERS[len(expected)]
        unit = float(np.linalg.norm(expected[right] - expected[left]))
    if not unit > 0:
        box = measure_box(expected)
        unit = (box.width * box.height) ** 0.5
    if not unit > 0:
        return float("nan")
    distance = np.sqrt(((expected - actual) ** 2).sum(axis=1))[there] / unit
    return float(np.minimum(np.where(np.isnan(distance), 1.0, distance), 1.0).mean())


def match_pairs(scores: np.ndarray) -> list[tuple[int, int]]:
    """Return pairs (row, column) of scores (M, N), the highest first, each row and column once; scores of 0 or less and
    NaN make no pair."""
    pairs, remaining = [], np.nan_to_num(scores, nan=0.0).astype(np.float64)
    while remaining.size and remaining.max() > 0:
        row, column = divmod(int(remaining.argmax()), remaining.shape[1])
        pairs.append((row, column))
        remaining[row], remaining[:, column] = 0, 0
    return pairs


def _read_points(points: Iterable[PointValues | None], size: tuple[int, int]) -> np.ndarray:
    """Key points in fractions as (N, 2) pixels of a map of this width and height, NaN where there is none."""
    rows = [(p.x, p.y) if p else (np.nan, np.nan) for p in points]
    return np.array(rows, np.float64).reshape(-1, 2) * size


def _read_subjects(values: Any, size: tuple[int, int]) -> FittedPoses:
    if isinstance(values, FittedPoses):
        return values
    if not isinstance(values, PoseValues):
        return FittedPoses((), ())
    none = np.zeros((0, 2))
    people = [
        Subject(*(_read_points(part, size) for part in (p.body, p.left_hand, p.right_hand, p.face)))
        for p in values.people
    ]
    return FittedPoses(people, [Subject(_read_points(a.points, size), none, none, none) for a in values.animals])


def _place_points(values: Any, placement: Placement) -> Any:
    """Poses, or faces as arrays (N, 2) of fractions, on the canvas; points that lie outside of it are not there."""
    height, width = placement.size

    def place(points: np.ndarray) -> np.ndarray:
        points_in_image = placement.place_points(points)
        inside = np.all((points_in_image >= 0) & (points_in_image < (placement.canvas[1], placement.canvas[0])), axis=1)
        return np.where(inside[:, None], points_in_image, np.nan)

    if isinstance(values, tuple):
        faces = [place(np.asarray(face, np.float64) * (width, height)) for face in values]
        return tuple(face / (placement.canvas[1], placement.canvas[0]) for face in faces if not np.isnan(face).all())
    poses = _read_subjects(values, (width, height))
    people, animals = (
        [Subject(*map(place, (f.body, f.left_hand, f.right_hand, f.face))) for f in group]
        for group in (poses.people, poses.animals)
    )
    return FittedPoses(people, animals)


class _Tally:
    """Sums over the people and animals of an image."""

    def __init__(self) -> None:
        self.right = self.points = self.right_hands = self.hands = 0
        self.oks: list[float] = []
        self.faces: list[float] = []
        self.missing = self.extra = 0

    def add_group(self, expected: Sequence[Subject], actual: Sequence[Subject], sigmas: np.ndarray) -> None:
        """Add the subjects of one kind, each matched with the found one of the highest similarity."""
        expected = [one for one in expected if measure_box(one.body).reach > 0]
        boxes = [measure_box(one.body) for one in expected]
        scores = np.array(
            [
                [
                    compute_oks(a.body, b.body, box.area, sigmas)
                    if count_correct(a.body, b.body, PCK_REACH * box.reach)[0]
                    else 0.0
                    for b in actual
                ]
                for a, box in zip(expected, boxes, strict=True)
            ]
        ).reshape(len(expected), len(actual))
        pairs = dict(match_pairs(scores))
        self.missing += len(expected) - len(pairs)
        self.extra += len(actual) - len(pairs)
        for i, (one, box) in enumerate(zip(expected, boxes, strict=True)):
            other = actual[pairs[i]] if i in pairs else None
            self.oks.append(scores[i, pairs[i]] if i in pairs else 0.0)
            body = np.full_like(one.body, np.nan) if other is None else other.body
            right, count = count_correct(one.body, body, PCK_REACH * box.reach)
            self.right, self.points = self.right + right, self.points + count
            self._add_hands(one, other)
            self._add_face(one, other)

    def _add_hands(self, one: Subject, other: Subject | None) -> None:
        for a, b in (
            (one.left_hand, other.left_hand if other else None),
            (one.right_hand, other.right_hand if other else None),
        ):
            if reach := measure_box(a).reach:
                same = b if b is not None and len(b) == len(a) else np.full_like(a, np.nan)
                right, count = count_correct(a, same, PCK_REACH * reach)
                self.right_hands, self.hands = self.right_hands + right, self.hands + count

    def _add_face(self, one: Subject, other: Subject | None) -> None:
        if len(one.face):
            is_same = other is not None and len(other.face) == len(one.face)
            self.faces.append(
                compute_nme(one.face, other.face if other and is_same else np.full_like(one.face, np.nan))
            )


def _compare_poses(expected: ControlMap, actual: ControlMap) -> dict[str, float]:
    a, b = (_read_subjects(each.values, each.size) for each in (expected, actual))
    tally = _Tally()
    tally.add_group(a.people, b.people, BODY_SIGMAS)
    tally.add_group(a.animals, b.animals, ANIMAL_SIGMAS)
    nan = float("nan")
    return {
        "pck": tally.right / tally.points if tally.points else nan,
        "oks": float(np.mean(tally.oks)) if tally.oks else nan,
        "pck_hands": tally.right_hands / tally.hands if tally.hands else nan,
        "nme_face": _mean_or_nan(tally.faces),
        "people": float(len(tally.oks)),
        "missing": float(tally.missing),
        "extra": float(tally.extra),
    }


def _mean_or_nan(numbers: Iterable[float]) -> float:
    there = [number for number in numbers if not np.isnan(number)]
    return float(np.mean(there)) if there else float("nan")


def _read_faces(control_map: ControlMap) -> list[np.ndarray]:
    """Return the faces (N, 2) of a map in its pixels."""
    if isinstance(control_map.values, tuple):
        return [np.asarray(face, np.float64) * control_map.size for face in control_map.values]
    people = _read_subjects(control_map.values, control_map.size).people
    return [person.face for person in people if not np.isnan(person.face).all()]


def _compare_faces(expected: ControlMap, actual: ControlMap) -> dict[str, float]:
    a, b = _read_faces(expected), _read_faces(actual)
    errors = np.array([[compute_nme(x, y) if x.shape == y.shape else 1.0 for y in b] for x in a]).reshape(
        len(a), len(b)
    )
    pairs = dict(match_pairs(1 - errors))
    return {
        "nme": _mean_or_nan(float(errors[i, pairs[i]]) if i in pairs else 1.0 for i in range(len(a))),
        "faces": float(len(a)),
        "missing": float(len(a) - len(pairs)),
        "extra": float(len(b) - len(pairs)),
    }


POSE = Measure(
    "pose",
    _compare_poses,
    score="pck",
    figures={
        "pck": "share of the expected points of bodies that are found within 0.2 of the longer side of the person's "
        "box, the smallest around the expected points; those of a missing person are not found",
        "oks": "mean over the expected people of the object key point similarity, 0 for a missing one; COCO's "
        "sigmas (animals: mmpose's of AP-10K), the area that of the box",
        "pck_hands": "share of the expected points of hands within 0.2 of the hand's box",
        "nme_face": "normalized mean error of the faces",
        "people": "how many people and animals are expected, those of less than two points left out",
        "missing": "how many of them are not found: nobody has a point within reach",
        "extra": "how many are found that were not expected",
    },
    source="PCK: Yang and Ramanan, PAMI 35(12), 2013; OKS: pycocotools",
    needs_values=True,
    place_values=_place_points,
)
FACE = Measure(
    "face",
    _compare_faces,
    score="nme",
    is_better_higher=False,
    perfect=0.0,
    unit="of the distance of the eyes",
    figures={
        "nme": "normalized mean error: mean distance of the landmarks over that of the outer corners of the eyes, 1 at "
        "most; a missing face counts as 1",
        "faces": "how many faces are expected",
        "missing": "how many of them are not found",
        "extra": "how many are found that were not expected",
    },
    source="Sagonas et al., 300 Faces in-the-Wild, IVC 47, 2016",
    needs_values=True,
    place_values=_place_points,
)

"""People out of OpenPose's heat maps and part affinity fields (Cao et al., arXiv 1611.08050, section 2).

The maps are at an eighth of the network's input, and the original enlarges all 57 to the image before it looks for
points. Enlarging, cutting the padding off and blurring are linear and separable, rows @ map @ columns.T: here they are
two small matrices, and the fields, of which few values are needed, are never enlarged."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

HEATMAP_STRIDE = 8  # pixels of the network's input in a cell of its maps
# Limbs as pairs of points, and which of the 38 fields is the x of the one along the limb; its y is the next. From
# lllyasviel/ControlNet @ ed85cd1e25a5, annotator/openpose/body.py. The last two only extend people, and join them.
_LIMBS = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11)),
    *((11, 12), (12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17), (2, 16), (5, 17)),
)
_LIMB_FIELDS = (12, 20, 14, 16, 22, 24, 0, 2, 4, 6, 8, 10, 28, 30, 34, 32, 36, 18, 26)
_STARTING_LIMBS = 17  # limbs
_MIN_PEAK = 0.1  # of the heat map, blurred
_PAF_SAMPLES, _MIN_PAF = 10, 0.05  # of the field on the way from point to point: more than 8 of 10 go along it
_MIN_POINTS, _MIN_MEAN_SCORE = 4, 0.4  # points of a person, and its score by point, at least
_MAX_PAIRS = 2**13  # of points that are looked at together


def group_bodies(
    heatmaps: np.ndarray, fields: np.ndarray, content_size: tuple[int, int], image_size: tuple[int, int]
) -> list[np.ndarray]:
    """People as arrays (18, 3): x and y in whole pixels of an image of `size` (height, width), and score; NaN where a
    point was not found.

    `heat` (18 or more, h, w) and `fields` (38, h, w) float32 are a network's for an input of 8h x 8w pixels, of which
    `inside` (rows, columns) show the image and the rest, on the right and below, is padding. The people are those
    that controlnet_aux 0.0.10's Body finds in the same maps."""
    way = cv2.INTER_AREA if sum(image_size) < sum(content_size) else cv2.INTER_LANCZOS4
    rows, columns = (
        make_upsampling_matrix(*axis, way) for axis in zip(heatmaps.shape[1:], content_size, image_size, strict=True)
    )
    blurred_rows, blurred_columns = (np.pad(blur_matrix(axis), ((1, 1), (0, 0))) for axis in (rows, columns))
    points, scores = [], []
    for one in heatmaps[:18]:
        y, x = _find_peaks(blurred_rows @ one @ blurred_columns.T)
        points.append(np.stack([x, y], axis=1))
        scores.append(_sample_map(one, rows[y], columns[x]))
    limbs = [
        _match_limbs(points[a], points[b], fields[field : field + 2], rows, columns)
        for (a, b), field in zip(_LIMBS, _LIMB_FIELDS, strict=True)
    ]
    return [_to_array(person, points, scores) for person in _assemble_bodies(scores, limbs)]


def make_upsampling_matrix(map_length: int, content_length: int, image_length: int, interpolation: int) -> np.ndarray:
    """The matrix (length, cells) by which a column of a map becomes one of the image: enlarged to the network's
    input, cut to what is `inside`, and resized to `length` in OpenCV's `way`."""
    input = cv2.resize(np.eye(map_length), (map_length, HEATMAP_STRIDE * map_length), interpolation=cv2.INTER_LANCZOS4)[
        :content_length
    ]
    return cv2.resize(input, (map_length, image_length), interpolation=interpolation)


def blur_matrix(matrix: np.ndarray) -> np.ndarray:
    """Return the matrix `(n, m)` that also blurs its result, as scipy.ndimage.gaussian_filter of sigma 3 does, cut at 4
    sigma."""
    weights = np.exp(-0.5 * (np.arange(-12, 13) / 3) ** 2)
    border_matrix = np.pad(matrix, ((12, 12), (0, 0)), "symmetric")
    blur = np.zeros_like(matrix)
    for i, weight in enumerate(weights / weights.sum()):
        blur += weight * border_matrix[i : i + len(matrix)]
    return blur


def _find_peaks(heatmap: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the local maxima in reading order, of a map that is one larger on all sides. Where one lies
    exactly between two pixels it is the last of them; the original takes what float32's noise makes the larger."""
    above = np.flatnonzero(heatmap > _MIN_PEAK)
    flat, width = heatmap.ravel(), heatmap.shape[1]
    peak = [flat[above] >= flat[above - step] for step in (1, width)]
    peak += [flat[above] > flat[above + step] for step in (1, width)]
    y, x = np.divmod(above[np.logical_and.reduce(peak)], width)
    return y - 1, x - 1


def _sample_map(map: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The enlarged map's values at places (...), by their rows of the two matrices (..., h) and (..., w)."""
    return (rows @ map * columns).sum(axis=-1)


def _match_limbs(
    start_points: np.ndarray, end_points: np.ndarray, field: np.ndarray, rows: np.ndarray, columns: np.ndarray
) -> list[tuple[int, int, float]]:
    """Limbs from points `a` to points `b` as (index, index, score), the best first, no point in two of them."""
    if not len(start_points) or not len(end_points):
        return []
    parts = np.array_split(start_points, -(-len(start_points) * len(end_points) // _MAX_PAIRS))
    scores = np.concatenate([_score_limbs(part, end_points, field, rows, columns) for part in parts])
    order = np.argsort(-scores, axis=None, kind="stable")[: (scores > 0).sum()]
    limbs: list[tuple[int, int, float]] = []
    used_a: set[int] = set()
    used_b: set[int] = set()
    for i, j in zip(*(axis.tolist() for axis in np.unravel_index(order, scores.shape)), strict=True):
        if i not in used_a and j not in used_b:
            used_a.add(i)
            used_b.add(j)
            limbs.append((i, j, float(scores[i, j])))
    return limbs


def _score_limbs(
    start_points: np.ndarray, end_points: np.ndarray, field: np.ndarray, rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    """Score how well the field runs from each start point to each end point, `(starts, ends)`; 0 where it does not."""
    way = end_points - start_points[:, None]
    distance = np.maximum(np.sqrt((way**2).sum(axis=-1)), 0.001)
    x, y = np.moveaxis(
        np.rint(np.linspace(start_points[:, None], np.broadcast_to(end_points, way.shape), _PAF_SAMPLES)).astype(int),
        -1,
        0,
    )
    fx, fy = (_sample_map(one, rows[y], columns[x]) for one in field)  # (samples, a, b)
    along = (fx * way[..., 0] + fy * way[..., 1]) / distance
    score = along.mean(axis=0) + np.minimum(0.5 * len(rows) / distance - 1, 0)
    return np.where((along > _MIN_PAF).sum(axis=0) > 0.8 * _PAF_SAMPLES, score, 0).clip(0)


@dataclass
class _BodyCandidate:
    point_indices: list[int]  # of each of the 18 the index of its place, -1 for none
    score: float
    point_count: int

    def add_point(self, point: int, index: int, score: float) -> None:
        self.point_indices[point] = index
        self.score += score
        self.point_count += 1


def _assemble_bodies(scores: list[np.ndarray], limbs: list[list[tuple[int, int, float]]]) -> list[_BodyCandidate]:
    """The limbs put together, limb by limb, the original's way, in which a point may end up in two people."""
    people: list[_BodyCandidate] = []
    for k, ((a, b), limb) in enumerate(zip(_LIMBS, limbs, strict=True)):
        for i, j, score in limb:
            touching = [person for person in people if person.point_indices[a] == i or person.point_indices[b] == j][:2]
            if len(touching) == 2 and not any(
                p >= 0 and q >= 0 for p, q in zip(*(t.point_indices for t in touching), strict=True)
            ):
                one, other = touching
                one.point_indices = [max(p, q) for p, q in zip(one.point_indices, other.point_indices, strict=True)]
                one.score += other.score + score
                one.point_count += other.point_count
                people = [person for person in people if person is not other]
            elif touching:
                if len(touching) == 2 or touching[0].point_indices[b] != j:
                    touching[0].add_point(b, j, scores[b][j] + score)
            elif k < _STARTING_LIMBS:
                person = _BodyCandidate([-1] * 18, scores[a][i] + scores[b][j] + score, 2)
                person.point_indices[a], person.point_indices[b] = i, j
                people.append(person)
    return [
        person
        for person in people
        if person.point_count >= _MIN_POINTS and person.score / person.point_count >= _MIN_MEAN_SCORE
    ]


def _to_array(person: _BodyCandidate, points: list[np.ndarray], scores: list[np.ndarray]) -> np.ndarray:
    array = np.full((18, 3), np.nan)
    for part, place in enumerate(person.point_indices):
        if place >= 0:
            array[part] = *points[part][place], scores[part][place]
    return array

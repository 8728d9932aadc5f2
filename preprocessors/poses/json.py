"""Poses as JSON and back, in the format that OpenPose, sd-webui-controlnet and the ComfyUI pack share:

    {"people": [{"pose_keypoints_2d": [x, y, c, x, y, c, ...], "face_keypoints_2d": ..., "hand_left_keypoints_2d": ...,
     "hand_right_keypoints_2d": ...}], "animals": [[x, y, c, ...]], "canvas_width": 512, "canvas_height": 768}

A point with c = 0 was not found, a part that is null was not looked for. To edit a pose, change its numbers.

OpenPose itself writes pixels and no canvas, so that its files need the size of the image."""

from __future__ import annotations

import os
from typing import Any, TypeVar

from ...files.disk import open_regular_file, parse_json, parse_whole_number
from .key_points import COORDINATE_RANGE, MAX_FACE_POINTS, Animal, KeyPoint, KeyPoints, Person, Poses

T = TypeVar("T")

POSE_FILE_LIMIT = 2**24  # bytes of a file
_JSON_PART_NAMES = {"body": "pose", "left_hand": "hand_left", "right_hand": "hand_right", "face": "face"}


def _make_number_list_schema(max_items: int) -> dict[str, Any]:
    return {"type": ["array", "null"], "items": {"type": "number"}, "maxItems": max_items}


def _make_schema() -> dict[str, Any]:
    points, confidences = _make_number_list_schema(3 * MAX_FACE_POINTS), _make_number_list_schema(MAX_FACE_POINTS)
    names = _JSON_PART_NAMES.values()
    person = {f"{name}_keypoints_2d": points for name in names} | {f"{name}_confidences": confidences for name in names}
    return {
        "type": "object",
        "properties": {
            "people": {"type": "array", "items": {"type": "object", "properties": person}},
            "animals": {"type": "array", "items": points},
            "animal_confidences": {"type": "array", "items": confidences},
            **{name: {"type": "integer", "minimum": 1} for name in ("canvas_width", "canvas_height")},
        },
    }


POSES_SCHEMA = _make_schema()  # of the object of one image, as JSON schemas are


def encode_poses(poses: Poses) -> dict[str, Any]:
    """The JSON object of one image. Coordinates are fractions of the canvas.

    Every point found has c = 1, because sd-webui-controlnet and the ComfyUI pack take all others for not found. Where
    confidences are not all 1, they stand in a list of their own, such as `pose_confidences`, which others ignore."""
    people = []
    for person in poses.people:
        result: dict[str, Any] = {}
        for part, name in _JSON_PART_NAMES.items():
            points = getattr(person, part)
            result[f"{name}_keypoints_2d"] = _flatten_points(points) or None
            if confidences := _list_confidences(points):
                result[f"{name}_confidences"] = confidences
        people.append(result)
    value: dict[str, Any] = {"people": people}
    if poses.animals:
        value["animals"] = [_flatten_points(animal.points) for animal in poses.animals]
        value["animal_confidences"] = [_list_confidences(animal.points) for animal in poses.animals]
    return value | {"canvas_width": poses.width, "canvas_height": poses.height}


def read_poses(path: str | os.PathLike[str], canvas: tuple[int, int] | None = None) -> tuple[Poses, ...]:
    """The poses in a JSON file of at most 16 MiB: of one image, or of several if it holds an array, as the ComfyUI
    pack writes. `canvas` is the height and width in pixels where a file states none, as OpenPose's own. Raises
    FileNotFoundError, or ValueError in one line."""
    name = repr(os.fspath(path))
    with open_regular_file(path) as file:
        content = file.read(POSE_FILE_LIMIT + 1)
    if len(content) > POSE_FILE_LIMIT:
        raise ValueError(f"{name} is over {POSE_FILE_LIMIT} bytes, too large for poses")
    return parse_poses(content, name, canvas)


def parse_poses(text: bytes, name: str, canvas: tuple[int, int] | None = None) -> tuple[Poses, ...]:
    """`read_poses` of JSON text. Raises ValueError in one line that begins with `name`.

    Coordinates may be fractions or pixels of the canvas: pixels if one of them is above 2 or below -2. Points of a
    part stand one after another or each in its own list. OpenPose's bodies of 25 points (BODY_25) give the 18 that are
    drawn, those of 15 (MPI) the 13 that both have."""
    value = parse_json(text, name)
    objects = value if isinstance(value, list) else [value]
    try:
        return tuple(_parse_object(each, canvas) for each in objects)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _flatten_points(points: KeyPoints) -> list[float]:
    return [number for p in points for number in ((float(p.x), float(p.y), 1.0) if p else (0.0, 0.0, 0.0))]


def _list_confidences(points: KeyPoints) -> list[float]:
    """Empty if all are 1."""
    return [float(p.confidence) if p else 0.0 for p in points] if any(p and p.confidence != 1 for p in points) else []


def _parse_object(json: object, canvas: tuple[int, int] | None) -> Poses:
    value = _check_type(json, dict, "poses of an image")
    height, width = _get_canvas(value, canvas)
    people = [_parse_person(person, f"people[{i}]") for i, person in enumerate(_get_list(value, "people"))]
    animals = [_parse_triples(points, f"animals[{i}]") for i, points in enumerate(_get_list(value, "animals"))]
    for triples, confidences in zip(animals, _get_list(value, "animal_confidences"), strict=False):
        _set_confidences(triples, confidences, "animal_confidences")
    parts = [triples for person in people for triples in person.values()] + animals
    far = any(max(abs(x), abs(y)) > max(COORDINATE_RANGE) for triples in parts for x, y, c in triples if c)
    size = (width, height) if far else (1, 1)
    return Poses(
        tuple(Person(**{part: _to_key_points(triples, size) for part, triples in person.items()}) for person in people),
        tuple(Animal(_to_key_points(triples, size)) for triples in animals),
        width,
        height,
    )


def _parse_person(json: object, where: str) -> dict[str, list[list[float]]]:
    """Return the triples (x, y, c) by part."""
    value = _check_type(json, dict, where)
    parts = {
        part: _parse_triples(value.get(f"{name}_keypoints_2d"), f"{where}.{name}")
        for part, name in _JSON_PART_NAMES.items()
    }
    for part, name in _JSON_PART_NAMES.items():
        _set_confidences(parts[part], value.get(f"{name}_confidences"), f"{where}.{name}_confidences")
    body = parts["body"]
    if len(body) == 25:
        body[:] = body[:8] + body[9:19]  # BODY_25 without the middle of the hips and the feet
    elif len(body) == 15:
        body[:] = [[0.0, 0, 0], *body[1:14], *[[0.0, 0, 0]] * 4]  # MPI without the top of the head and the chest
    return parts | {"body": body or [[0, 0, 0]] * 18}


def _parse_triples(json: object, where: str) -> list[list[float]]:
    """The numbers of a part by threes. Of one that is null, none."""
    if json is None:
        return []
    value = _check_type(json, list, where)
    if all(isinstance(point, list) and len(point) == 3 for point in value):
        value = [number for point in value for number in point]
    _check_numbers(value, where)
    if len(value) % 3:
        raise ValueError(f"{where} has {len(value)} numbers, expected x, y and confidence of each point")
    return [value[i : i + 3] for i in range(0, len(value), 3)]


def _set_confidences(triples: list[list[float]], json: object, where: str) -> None:
    """Give points with c = 1 the confidence in the list beside them, where there is one."""
    if not json:
        return
    confidences = _check_type(json, list, where)
    _check_numbers(confidences, where)
    if len(confidences) != len(triples):
        raise ValueError(f"{where} has {len(confidences)} numbers for {len(triples)} points")
    for triple, confidence in zip(triples, confidences, strict=True):
        if triple[2] == 1:
            triple[2] = confidence or 1  # 0: the point was added later


def _to_key_points(triples: list[list[float]], size: tuple[int, int]) -> tuple[KeyPoint | None, ...]:
    return tuple(KeyPoint(float(x / size[0]), float(y / size[1]), float(c)) if c else None for x, y, c in triples)


def _get_list(value: dict[str, Any], key: str) -> list[Any]:
    return _check_type(value.get(key) or [], list, key)


def _get_canvas(value: dict[str, Any], size: tuple[int, int] | None) -> tuple[int, int]:
    """Return height and width: those of the file, or those that are given where it states none."""
    if value.get("canvas_height") is None and value.get("canvas_width") is None:
        if size is None:
            raise ValueError(
                "canvas_width and canvas_height are missing, as in OpenPose's own files: give the size of the image "
                "(draw --canvas WIDTHxHEIGHT)"
            )
        return size
    height, width = _get_side(value, "canvas_height"), _get_side(value, "canvas_width")
    if size is not None and size != (height, width):
        raise ValueError(f"its canvas is {width}x{height}, not {size[1]}x{size[0]}: give none")
    return height, width


def _get_side(value: dict[str, Any], key: str) -> int:
    side = parse_whole_number(value.get(key))
    if side is None:
        raise ValueError(f"{key} is {value.get(key)!r:.40}, expected pixels")
    return side


def _check_type(value: object, expected_type: type[T], where: str) -> T:
    """Return the value, which must be of the type. Raises ValueError."""
    if not isinstance(value, expected_type):
        raise ValueError(f"{where} is a JSON {value.__class__.__name__}, expected {expected_type.__name__}")
    return value


def _check_numbers(numbers: list[Any], where: str) -> None:
    for number in numbers:
        if not isinstance(number, (int, float)) or isinstance(number, bool) or not abs(number) < 1e9:  # NaN is not
            raise ValueError(f"{where} holds {number!r:.40}, expected a number below 1e9")

"""Pictures in JSON: base64, plain or as a data URL, and nothing else. Whether a path exists is never looked at."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from preprocessors.containers import kind
from preprocessors.files import encoded_image, read_image

from .fields import empty

HEAD = re.compile(r"data:image/[\w.+-]{1,40};base64,")
IMAGES = 8  # of a unit at most
Pair = tuple[np.ndarray, np.ndarray | None]  # image and mask


def picture(value: Any, name: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB, also of an array, which no JSON holds. ValueError that begins with `name`, the same for
    whatever is no picture in base64."""
    if isinstance(value, np.ndarray):
        return read_image(value)
    refusal = f"{name} is no picture in base64; paths and addresses are not read"
    if not isinstance(value, str):
        raise ValueError(refusal)
    found = HEAD.match(value)
    try:
        content = base64.b64decode("".join(value[found.end() if found else 0 :].split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(refusal) from error
    if kind(content[:16]) is None:  # a path may happen to be base64
        raise ValueError(refusal)
    try:
        return read_image(content)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def pairs(value: Any, mask: Any, name: str) -> tuple[Pair, ...]:
    """The images of a unit with their masks: text, {"image", "mask"}, [image, mask], or a list of objects. A `mask` of
    its own beside them is that of the first."""
    if empty(value):
        found: list[tuple[Any, Any]] = []
    elif isinstance(value, Mapping):
        found = [_entry(value)]
    elif isinstance(value, list) and all(isinstance(entry, Mapping) for entry in value):
        found = [_entry(entry) for entry in value]
    elif isinstance(value, list) and len(value) <= 2:
        found = [(value[0], value[1] if len(value) == 2 else None)]
    else:
        found = [(value, None)]
    if len(found) > IMAGES:
        raise ValueError(f"{name}s: {len(found)}, expected up to {IMAGES}")
    found = [(image, its) for image, its in found if not empty(image)]
    if found and empty(found[0][1]):
        found[0] = found[0][0], mask
    masked = name.replace("image", "mask")
    return tuple((picture(image, name), None if empty(its) else picture(its, masked)) for image, its in found)


def _entry(value: Mapping[str, Any]) -> tuple[Any, Any]:
    return value.get("image"), value.get("mask")


def encoded(pixels: np.ndarray, text: Mapping[str, str] | None = None) -> str:
    """A PNG in base64."""
    return base64.b64encode(encoded_image("picture.png", pixels, text)).decode()

"""Images in JSON: base64, plain or as a data URL, and nothing else. Paths are never opened."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..files.image_formats import MAX_PIXELS, sniff_format
from ..files.image_reader import open_image_header, read_image, read_mask
from ..files.image_writer import encode_image
from .fields import is_empty_value

DATA_URL_PREFIX = re.compile(r"data:image/[\w.+-]{1,40};base64,")
MAX_UNIT_IMAGES = 8  # of a unit at most
ImageMaskPair = tuple[np.ndarray, np.ndarray | None]  # image and mask


def decode_base64_image(value: object, name: str) -> np.ndarray:
    """Decode an image to (H, W, 3) uint8 RGB; arrays (H, W, 3 or 4), which no JSON holds, are read too. Raises
    ValueError that begins with `name`, with the same sentence for everything that is no image in base64."""
    return _decode_base64(value, name, read_image)


def decode_base64_mask(value: object, name: str) -> np.ndarray:
    """Decode a mask to (H, W, 3) uint8, as `read_mask` does: alpha where a pixel is transparent, else luminance. Takes
    and raises what `decode_base64_image` does."""
    return _decode_base64(value, name, read_mask)


def _decode_base64(value: object, name: str, read: Callable[[np.ndarray | bytes], np.ndarray]) -> np.ndarray:
    content = value if isinstance(value, np.ndarray) else _decode_image_bytes(value)
    if content is None:
        raise ValueError(f"{name} is no image in base64; paths and URLs are not read")
    try:
        return read(content)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def check_total_pixels(value: object) -> None:
    """Check the sizes of the images in a request's JSON by their headers. Raises ValueError if they have over 64
    megapixels in all."""
    total = _count_pixels(value)
    if total > MAX_PIXELS:
        raise ValueError(f"the images of the request have {total / 1e6:.0f} megapixels, expected up to 64 in all")


def _count_pixels(value: object) -> int:
    if isinstance(value, Mapping):
        return sum(_count_pixels(each) for each in value.values())
    if isinstance(value, list):
        return sum(_count_pixels(each) for each in value)
    content = _decode_image_bytes(value)
    if content is None:
        return 0
    try:
        image = open_image_header(content, str(sniff_format(content[:16])), "the image")
    except ValueError:  # which its reader says better
        return 0
    return image.width * image.height


def _decode_image_bytes(value: object) -> bytes | None:
    """Bytes of base64 text that begins as an image does; None for everything else."""
    if not isinstance(value, str):
        return None
    prefix = DATA_URL_PREFIX.match(value)
    try:
        content = base64.b64decode("".join(value[prefix.end() if prefix else 0 :].split()), validate=True)
    except ValueError:
        return None
    return None if sniff_format(content[:16]) is None else content  # a path may happen to be base64


def parse_image_mask_pairs(value: object, mask: object, name: str) -> tuple[ImageMaskPair, ...]:
    """Return a unit's images with their masks, all (H, W, 3) uint8; masks are read by `read_mask`.

    `value` is text, {"image", "mask"}, [image, mask], or a list of objects; `mask` belongs to the first image. Raises
    ValueError that begins with `name`.
    """
    if is_empty_value(value):
        pairs: list[tuple[Any, Any]] = []
    elif isinstance(value, Mapping):
        pairs = [_split_image_and_mask(value)]
    elif isinstance(value, list) and all(isinstance(entry, Mapping) for entry in value):
        pairs = [_split_image_and_mask(entry) for entry in value]
    elif isinstance(value, list) and len(value) <= 2:
        pairs = [(value[0], value[1] if len(value) == 2 else None)]
    else:
        pairs = [(value, None)]
    if len(pairs) > MAX_UNIT_IMAGES:
        raise ValueError(f"{name}s: {len(pairs)}, expected up to {MAX_UNIT_IMAGES}")
    pairs = [(image, its) for image, its in pairs if not is_empty_value(image)]
    if pairs and is_empty_value(pairs[0][1]):
        pairs[0] = pairs[0][0], mask
    mask_name = name.replace("image", "mask")
    return tuple(
        (decode_base64_image(image, name), None if is_empty_value(its) else decode_base64_mask(its, mask_name))
        for image, its in pairs
    )


def _split_image_and_mask(value: Mapping[str, Any]) -> tuple[Any, Any]:
    return value.get("image"), value.get("mask")


def encode_png_base64(pixels: np.ndarray, text_chunks: Mapping[str, str] | None = None) -> str:
    """Encode an image (H, W) or (H, W, 3) uint8 RGB as a PNG in base64."""
    return base64.b64encode(encode_image("image.png", pixels, text_chunks)).decode()

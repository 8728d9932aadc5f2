"""The one image reader: pixels as a viewer shows them, or one line that says why not."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, BinaryIO

import cv2
import numpy as np

from . import image_reader
from .disk import opened
from .image_formats import FORMATS, jpeg_segments, kind, whole
from .sizes import check_pixels

if TYPE_CHECKING:
    from PIL.Image import Image

FILE_LIMIT = 2**30  # bytes: 64 megapixels of four 32-bit channels


def read_image(source: str | os.PathLike[str] | bytes | np.ndarray | Image) -> np.ndarray:
    """An image as an array of its own, (H, W, 3) uint8 RGB, as a viewer shows it.

    From a path or the bytes of a JPEG, PNG, WebP, GIF, BMP, TIFF, PPM or (Pillow 11.3) AVIF file: turned upright as
    EXIF says, alpha over white, first frame of several, 16 bits by their upper 8, colours through an embedded ICC
    profile into sRGB (a broken profile is passed over, as viewers do). Float grey is 0..1, or 0..255 if it exceeds 1.
    A PIL image likewise, with the frame it stands at. An array is (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA
    of uint8, bool or floats 0..1.

    Raises FileNotFoundError, TypeError, or ValueError in one line: over 64 megapixels (judged before decoding), cut
    short, not an image, NaN. JPEG data damaged inside a whole file cannot be told from a picture, and is decoded.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _from_file(io.BytesIO(source), "the image")
    if isinstance(source, (str, os.PathLike)):
        with opened(source) as file:
            return _from_file(file, repr(os.fspath(source)))
    if image_reader.made(source):
        check_pixels(source.height, source.width, "the image")
        return image_reader.pixels(source, "the image")
    raise TypeError(f"an image is a path, bytes, a PIL image or an array, not {type(source).__name__}")


def _from_file(file: BinaryIO, name: str) -> np.ndarray:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(16)
    format = kind(head)
    if not head:
        raise ValueError(f"{name} is empty, expected an image")
    if format is None:
        raise ValueError(f"{name} is none of {', '.join(FORMATS)}: it begins with {head!r}")
    if size > FILE_LIMIT:
        raise ValueError(f"{name} is a file of {size / 2**30:.1f} GiB, over the limit of 1 GiB for images")
    file.seek(0)
    if format == "JPEG":
        content = file.read()
        if plain := _plain_size(content):
            check_pixels(*plain, name)
            return _plain_jpeg(content, name)
        file.seek(0)
    image = image_reader.header(file, format, name)
    check_pixels(image.height, image.width, name)
    file.seek(0)
    content = file.read()
    if not whole(content, format):
        raise ValueError(f"{name} is a {format} that is cut short or damaged")
    if format == "PNG" and content[24:26] == b"\x10\2" and "transparency" in image.info:
        # RGB of 16 bits: Pillow keeps the upper 8, and would compare them with all 16 of the transparent colour
        image.info["transparency"] = tuple(channel >> 8 for channel in image.info["transparency"])
    return image_reader.pixels(image, name)


def _plain_size(content: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG that OpenCV decodes just as Pillow does, without the 50 ms of importing Pillow:
    8-bit grey or colour, no EXIF, XMP or profile."""
    size = None
    for marker, payload in jpeg_segments(content):
        if marker in (0xC0, 0xC1, 0xC2) and len(payload) >= 6 and payload[0] == 8 and payload[5] in (1, 3):
            size = int.from_bytes(payload[1:3], "big"), int.from_bytes(payload[3:5], "big")
        elif marker == 0xDA:
            return size
        elif marker in (0xE1, 0xE2) or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xCC)):
            return None
    return None


def _plain_jpeg(content: bytes, name: str) -> np.ndarray:
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if whole(content, "JPEG") else None
    except cv2.error:
        pixels = None
    if pixels is None:
        raise ValueError(f"{name} is a JPEG that is cut short or damaged")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)


def _from_array(array: np.ndarray) -> np.ndarray:
    x = np.asarray(array)  # a matrix or masked array behaves otherwise
    if x.ndim == 2:
        x = x[..., None]
    if x.ndim != 3 or x.shape[2] not in (1, 3, 4):
        raise ValueError(f"an image array of shape {array.shape}, expected (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)")
    check_pixels(x.shape[0], x.shape[1], "the image array")
    if x.dtype.kind == "f":
        low, high = x.min(), x.max()
        if not (low >= 0 and high <= 1):  # NaN neither
            raise ValueError(f"an image array of floats from {low:g} to {high:g}, expected 0..1")
        x = np.rint(x * np.float32(255)).astype(np.uint8)
    elif x.dtype == bool:
        x = x.astype(np.uint8) * 255
    elif x.dtype != np.uint8:
        raise ValueError(f"an image array of {x.dtype}, expected uint8, bool or floats 0..1")
    if x.shape[2] == 4:
        alpha = x[..., 3:].astype(np.uint16)
        x = ((x[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return np.repeat(x, 3, axis=2) if x.shape[2] == 1 else np.array(x, order="C")

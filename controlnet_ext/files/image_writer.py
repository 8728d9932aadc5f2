"""The one writer of images, and the texts that a PNG holds beside its pixels."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from .disk import open_regular_file, write_atomically
from .image_formats import check_budget, iter_png_chunks

PNG_TEXT_LIMIT = 2**20  # bytes of one text; Pillow opens no PNG with a longer compressed one (its MAX_TEXT_CHUNK)
PNG_TEXT_TOTAL_LIMIT = 2**26  # of all together (its MAX_TEXT_MEMORY)
_IMAGE_WRITERS = {  # the longest side that the format, or OpenCV's writer of it, takes; how to write it
    ".png": (10**6, ()),
    ".jpg": (65500, (cv2.IMWRITE_JPEG_QUALITY, 95)),
    ".jpeg": (65500, (cv2.IMWRITE_JPEG_QUALITY, 95)),
    ".webp": (16383, (cv2.IMWRITE_WEBP_QUALITY, 101)),  # over 100: lossless
}
_UNFILTERED_PNG = (  # lines on black as they are, not as differences: in 0.6 instead of 0.75 ms, and 3/4 of the bytes
    (cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE) if hasattr(cv2, "IMWRITE_PNG_FILTER") else ()
)


def write_image(
    path: str | os.PathLike[str], pixels: np.ndarray, text: Mapping[str, str] | None = None, overwrite: bool = False
) -> None:
    """Write (H, W, 3) RGB or (H, W) gray of uint8, or gray of uint16 to a PNG, complete or not at all.

    Raises what `encode_image` and `write_atomically` raise.
    """
    write_atomically(path, encode_image(path, pixels, text), overwrite)


def encode_image(path: str | os.PathLike[str], pixels: np.ndarray, text: Mapping[str, str] | None = None) -> bytes:
    """Encode (H, W, 3) RGB or (H, W) gray of uint8, for .png also (H, W) of uint16, for a file with the name `path`.

    The suffix selects the format: .png and .webp lossless, .jpg and .jpeg at quality 95. A PNG of pixels that are all
    gray has one channel, which is smaller and written in half the time. `text` goes into a PNG, compressed, by keyword
    (1 to 79 Latin-1 characters), each up to 1 MiB. Raises ValueError for any other input.
    """
    name, suffix = repr(os.fspath(path)), Path(path).suffix.lower()
    if suffix not in _IMAGE_WRITERS:
        raise ValueError(f"{name} ends in {suffix!r}, expected one of {', '.join(_IMAGE_WRITERS)}")
    if text and suffix != ".png":
        raise ValueError(f"{name} cannot carry text, only a .png can")
    if not _is_writable(pixels, suffix):
        raise ValueError(
            f"an array {pixels.shape} of {pixels.dtype} cannot be written to {name}: "
            "expected (H, W, 3) or (H, W) of uint8, or for .png (H, W) of uint16"
        )
    chunks = b"".join(_encode_text_chunk(keyword, value) for keyword, value in (text or {}).items())
    longest, options = _IMAGE_WRITERS[suffix]
    height, width = pixels.shape[:2]
    if max(height, width) > longest:
        raise ValueError(f"{width}x{height} pixels cannot be written to {name}: a side of {suffix} ends at {longest}")
    if pixels.ndim == 3:
        channel = _find_equal_channel(pixels) if suffix == ".png" else None
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if channel is None else channel
    if suffix == ".png" and _is_binary(pixels):
        options = _UNFILTERED_PNG
    is_encoded, buffer = cv2.imencode(suffix, pixels, options)
    if not is_encoded:
        raise ValueError(f"OpenCV could not encode {width}x{height} pixels for {name}")
    content = buffer.tobytes()
    return content[:33] + chunks + content[33:] if chunks else content  # 33: after IHDR


def _is_writable(pixels: np.ndarray, suffix: str) -> bool:
    if 0 in pixels.shape:
        return False
    if pixels.ndim == 2:
        return pixels.dtype == np.uint8 or (pixels.dtype == np.uint16 and suffix == ".png")
    return pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8


def _find_equal_channel(pixels: np.ndarray) -> np.ndarray | None:
    """Return the first channel (H, W) where all are equal, else None; the first row decides for most images."""
    channel = None
    for some in (pixels[:1], pixels):
        channel = cv2.extractChannel(some, 0)
        if cv2.norm(cv2.cvtColor(channel, cv2.COLOR_GRAY2RGB), some, cv2.NORM_INF):
            return None
    return channel


def _is_binary(pixels: np.ndarray) -> bool:
    """Return True for one channel of only 0 and 255, as edges are."""
    return pixels.ndim == 2 and pixels.dtype == np.uint8 and not cv2.countNonZero(cv2.inRange(pixels, 1, 254))


def _encode_text_chunk(keyword: str, text: str) -> bytes:
    """Return an iTXt chunk: keyword, compression by zlib, no language, UTF-8 (PNG specification, 11.3.3.4)."""
    try:
        name = keyword.encode("latin-1")
    except UnicodeEncodeError:
        name = b""
    if not 1 <= len(name) <= 79 or not keyword.isprintable() or keyword != keyword.strip():
        raise ValueError(f"{keyword!r} is not a keyword of PNG: 1 to 79 printable Latin-1 characters")
    value = text.encode()
    if len(value) > PNG_TEXT_LIMIT:
        raise ValueError(
            f"the text {keyword!r} is {len(value)} bytes, over {PNG_TEXT_LIMIT}: split it over several keywords"
        )
    content = b"iTXt" + name + b"\0\1\0\0\0" + zlib.compress(value)
    return struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))


def read_png_text(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read the texts of a PNG (tEXt, zTXt, iTXt) by keyword.

    Raises FileNotFoundError when it is missing, ValueError when it is no PNG, is cut short, or a text is broken, over 1
    MiB, or given twice.
    """
    name = repr(os.fspath(path))
    with open_regular_file(path) as file:
        if file.read(8) != b"\x89PNG\r\n\x1a\n":
            raise ValueError(f"{name} is not a PNG")
        file.seek(0)
        content = file.read()
    check_budget(content, "PNG", name)
    texts: dict[str, str] = {}
    last, total = b"", 0
    for last, payload in iter_png_chunks(content):
        if last not in (b"tEXt", b"zTXt", b"iTXt"):
            continue
        try:
            keyword, text = _decode_text_chunk(last, bytes(payload))
        except (ValueError, zlib.error) as error:
            raise ValueError(f"{name} has a broken text: {error}") from error
        total += len(text)
        if keyword in texts or total > PNG_TEXT_TOTAL_LIMIT:
            raise ValueError(f"{name} has {'two texts' if keyword in texts else 'over 64 MiB of text at'} {keyword!r}")
        texts[keyword] = text
    if last != b"IEND":
        raise ValueError(f"{name} is a PNG that is cut short or damaged")
    return texts


def _decode_text_chunk(chunk: bytes, payload: bytes) -> tuple[str, str]:
    keyword, separator, rest = payload.partition(b"\0")
    if not separator:
        raise ValueError("it has no keyword")
    name, encoding = keyword.decode("latin-1"), "latin-1"
    is_compressed = chunk == b"zTXt"
    if is_compressed:
        rest = rest[1:]  # method, always zlib
    elif chunk == b"iTXt":
        is_compressed, encoding = rest[:1] == b"\1", "utf-8"
        rest = rest[2:].split(b"\0", 2)[-1]
    if is_compressed:
        unpacking = zlib.decompressobj()
        rest = unpacking.decompress(rest, PNG_TEXT_LIMIT + 1)
        if not unpacking.eof and len(rest) < PNG_TEXT_LIMIT:
            raise ValueError(f"{name!r} is cut short")
    if len(rest) > PNG_TEXT_LIMIT:
        raise ValueError(f"{name!r} is over {PNG_TEXT_LIMIT} bytes")
    return name, rest.decode(encoding)

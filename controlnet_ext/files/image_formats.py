"""Image formats by their bytes: detection, completeness, and limits of size.

Decoders accept incomplete files; the functions here do not. Limits keep what a few header bytes ask for within memory.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator

import numpy as np

_SIGNATURES = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "GIF": rb"GIF8[79]a",
    "WEBP": rb"RIFF....WEBP",
    "TIFF": rb"II\*\0|MM\0\*|II\+\0|MM\0\+",
    "AVIF": rb"....ftypavi[fs]",
    "BMP": rb"BM",
    "PPM": rb"P[1-6]\s",
}
IMAGE_FORMATS = tuple(_SIGNATURES)
_NEXT_MARKER = re.compile(rb"\xff\xff*([^\x00\xd0-\xd7\xff])", re.DOTALL)  # not a stuffed zero, not a restart; an
# `\xff+` is searched for byte by byte, 10 times slower than a literal


def sniff_format(head: bytes) -> str | None:
    """Return Pillow's name of the format that begins with these bytes (16 suffice), None for any other format."""
    return next((name for name, magic in _SIGNATURES.items() if re.match(magic, head, re.DOTALL)), None)


def is_complete(content: bytes, format: str) -> bool:
    """Return True if all bytes are present that the lengths in the file promise, with the checksums of PNG.

    Bytes behind the end of the image are ignored, such as further images in a JPEG.
    """
    try:
        if format == "JPEG":
            return any(marker == 0xD9 for marker, _ in iter_jpeg_segments(content))
        if format == "PNG":
            return any(name == b"IEND" for name, _ in iter_png_chunks(content))
        if format == "GIF":
            return _is_gif_complete(content)
        if format == "WEBP":
            return struct.unpack_from("<I", content, 4)[0] + 8 <= len(content)
        if format == "BMP":
            return struct.unpack_from("<I", content, 2)[0] <= len(content)
        if format == "AVIF":
            return _is_avif_complete(content)
        if format == "TIFF":
            return _is_tiff_complete(content)
    except (struct.error, IndexError):  # the file ends in the middle of a field
        return False
    return True  # PPM, AVIF's inside: the decoder finds what is missing


def iter_jpeg_segments(content: bytes) -> Iterator[tuple[int, memoryview]]:
    """Yield (marker, payload) of each segment up to the end of the image, 0xD9, or of the bytes.

    The compressed data behind a start of scan, 0xDA, is skipped.
    """
    at = 2
    while found := _NEXT_MARKER.search(content, at):
        marker, at = found[1][0], found.end()
        if marker in (0x01, 0xD8, 0xD9):  # without payload
            yield marker, memoryview(b"")
            if marker == 0xD9:
                return
            continue
        size = int.from_bytes(content[at : at + 2], "big")
        yield marker, memoryview(content)[at + 2 : at + size]
        at += max(size, 2)


def iter_png_chunks(content: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Yield (name, payload) of each chunk up to IEND.

    Ends before the first chunk that is cut short or, if it is critical, fails its checksum.
    """
    at = 8
    while at + 12 <= len(content):
        size, name = struct.unpack_from(">I4s", content, at)
        if at + 12 + size > len(content):
            return
        critical = not name[0] & 0x20
        (expected,) = struct.unpack_from(">I", content, at + 8 + size)
        if critical and zlib.crc32(memoryview(content)[at + 4 : at + 8 + size]) != expected:
            return
        yield name, memoryview(content)[at + 8 : at + 8 + size]
        if name == b"IEND":
            return
        at += 12 + size


def _is_gif_complete(content: bytes) -> bool:
    def table(flags: int) -> int:
        return 3 << (flags & 7) + 1 if flags & 0x80 else 0

    at = 13 + table(content[10])
    while content[at] != 0x3B:  # trailer
        if content[at] == 0x2C:  # a frame: its place, flags, colours, then the code size before the blocks
            at += 11 + table(content[at + 9])
        elif content[at] == 0x21:
            at += 2
        else:
            return False
        while size := content[at]:
            at += 1 + size
        at += 1
    return True


def _is_avif_complete(content: bytes) -> bool:
    at = 0
    while at < len(content):
        (size,) = struct.unpack_from(">I", content, at)
        if size == 1:
            (size,) = struct.unpack_from(">Q", content, at + 8)
        at += size or len(content) - at  # 0: up to the end
        if 0 < size < 8 or at > len(content):
            return False
    return True


_TIFF_TYPE_SIZES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}
_TIFF_INTEGER_DTYPES = {3: "u2", 4: "u4", 16: "u8"}
_TIFF_DATA_TAGS = ((273, 279), (324, 325))  # offsets and sizes of strips, of tiles


def _is_tiff_complete(content: bytes) -> bool:
    """Check every directory, the values of its entries, and every strip or tile (TIFF 6.0, section 2)."""
    order = "<" if content[:2] == b"II" else ">"
    word, count, entry_size = ("Q", "Q", 20) if b"+" in content[2:4] else ("I", "H", 12)  # BigTIFF, TIFF
    wide = struct.calcsize(word)
    (at,) = struct.unpack_from(order + word, content, 8 if wide == 8 else 4)
    looked_at = 0  # bytes: directories that overlap, or that are met again, could be read without end
    while at:
        (entries,) = struct.unpack_from(order + count, content, at)
        at += struct.calcsize(count)
        looked_at += entries * entry_size
        if looked_at > len(content):
            return False
        arrays = {}
        for place in range(at, at + entries * entry_size, entry_size):
            tag, type, length = struct.unpack_from(order + "HH" + word, content, place)
            value = place + 4 + wide
            size = _TIFF_TYPE_SIZES.get(type, 0) * length
            if size > wide:
                (value,) = struct.unpack_from(order + word, content, value)
            if value + size > len(content):
                return False
            if type in _TIFF_INTEGER_DTYPES and any(tag in tags for tags in _TIFF_DATA_TAGS):
                looked_at += size
                numbers = np.frombuffer(content, order + _TIFF_INTEGER_DTYPES[type], length, value)
                arrays[tag] = numbers.astype(float)  # exact below 2**53
        for offsets, sizes in _TIFF_DATA_TAGS:
            if offsets in arrays and sizes in arrays:
                shared = min(len(arrays[offsets]), len(arrays[sizes]))
                if (arrays[offsets][:shared] + arrays[sizes][:shared] > len(content)).any():
                    return False
        (at,) = struct.unpack_from(order + word, content, at + entries * entry_size)
        looked_at += 1
    return True


MAX_PIXELS = 2**26  # 64 megapixels, 192 MiB as RGB
MAX_SIDE = 65535  # a JPEG's


def check_pixels(height: int, width: int, name: str) -> None:
    """Raise ValueError unless there are 1 to 64 megapixels (2**26)."""
    if height < 1 or width < 1:
        raise ValueError(f"{name} is {width}x{height}: it has no pixels")
    if height * width > MAX_PIXELS:
        raise ValueError(f"{name} is {width}x{height}, {height * width / 1e6:.0f} megapixels, over the limit of 64")


def compute_working_size(height: int, width: int, resolution: int) -> tuple[int, int]:
    """Return (height, width) of the same aspect ratio with a short side of `resolution` pixels, the long side rounded.

    Raises ValueError when that is over 64 megapixels (2**26) or a side over 65535, as with a strip of 3x10000.
    """
    short = min(height, width)
    if short < 1 or resolution < 1:
        raise ValueError(f"{width}x{height} at resolution {resolution}: sizes begin at 1")
    h, w = (resolution if side == short else round(side * resolution / short) for side in (height, width))
    if h * w > MAX_PIXELS or max(h, w) > MAX_SIDE:
        raise ValueError(
            f"{width}x{height} at resolution {resolution} would need {w}x{h}, over the limit of 64 megapixels and "
            f"{MAX_SIDE} a side: lower the resolution or crop the image"
        )
    return h, w

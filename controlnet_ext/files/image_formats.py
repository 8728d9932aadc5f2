"""Image formats by their bytes: detection, completeness, and the budgets of their readers.

Decoders accept incomplete files; the functions here do not. Budgets bound the time and memory of a decoder by the bytes
of the file, whatever its structure asks for: pixels, sides, scans, parts, and decoded bytes for each byte of the file.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any

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
_NEXT_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])", re.DOTALL)  # not a stuffed zero, a restart or a fill byte

MAX_PIXELS = 2**26  # 64 megapixels, 192 MiB as RGB
_pixel_limit = MAX_PIXELS  # of images that are read, in this process
MAX_SIDE = 65535  # of what is computed: a JPEG's
MAX_FILE_SIDE = 10**6  # of a file, as its writer has it; a row of pixels takes 8 bytes beside them
MAX_SCAN_PIXELS = 2**30  # pixels times scans of a progressive JPEG: 64 megapixels in 16 scans; encoders write about 10
SCAN_PIXELS_PER_BYTE = 256  # beyond them
FREE_PARTS = 4096  # segments, chunks or blocks of any file; beyond them, one for each
BYTES_PER_PART = {"JPEG": 256, "PNG": 256, "WEBP": 256, "GIF": 32, "TIFF": 32}  # bytes of the file; a GIF's have 255
DECODED_BYTES = {  # that an image may become: so many, and so many for each byte of the file
    "PNG": (128 * 2**20, 48),
    "interlaced PNG": (48 * 2**20, 48),
    "TIFF": (96 * 2**20, 48),
    "JPEG": (200 * 2**20, 96),  # coefficients of a progressive one
}
MAX_PPM_HEADER = 2**16  # bytes, with comments


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
            return any(block == 0x3B for block in _iter_gif_blocks(content))
        if format == "WEBP":
            return struct.unpack_from("<I", content, 4)[0] + 8 <= len(content)
        if format == "BMP":
            return struct.unpack_from("<I", content, 2)[0] <= len(content)
        if format == "AVIF":
            return _is_avif_complete(content)
        if format == "TIFF":
            return _is_tiff_complete(content)
    except (struct.error, IndexError, OverflowError):  # the file ends in the middle of a field, or far before a place
        return False
    return True  # PPM, AVIF's inside: the decoder finds what is missing


def iter_jpeg_segments(content: bytes) -> Iterator[tuple[int, memoryview]]:
    """Yield (marker, payload) of each segment up to the end of the image, 0xD9, or of the bytes.

    The compressed data behind a start of scan, 0xDA, is skipped.
    """
    at = 2
    while match := _NEXT_MARKER.search(content, at):
        marker, at = match[1][0], match.end()
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


def _iter_gif_blocks(content: bytes) -> Iterator[int]:
    """Yield the first byte of each frame (0x2C) and extension (0x21), 0 for each block within, and the end, 0x3B.

    Ends before the first block of another kind. Raises IndexError where the file is cut short.
    """

    def table(flags: int) -> int:
        return 3 << (flags & 7) + 1 if flags & 0x80 else 0

    at = 13 + table(content[10])
    while content[at] in (0x21, 0x2C):
        yield content[at]
        # a frame: its place, flags, colors, then the code size before the blocks
        at += 11 + table(content[at + 9]) if content[at] == 0x2C else 2
        while size := content[at]:
            yield 0
            at += 1 + size
        at += 1
    yield content[at]


def _iter_webp_chunks(content: bytes) -> Iterator[bytes]:
    """Yield the name of each chunk in a RIFF file."""
    at = 12
    while at + 8 <= len(content):
        name, size = struct.unpack_from("<4sI", content, at)
        yield name
        at += 8 + size + size % 2


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
                number = min(len(arrays[offsets]), len(arrays[sizes]))
                if (arrays[offsets][:number] + arrays[sizes][:number] > len(content)).any():
                    return False
        (at,) = struct.unpack_from(order + word, content, at + entries * entry_size)
        looked_at += 1
    return True


def check_budget(content: bytes, format: str, name: str) -> None:
    """Raise ValueError, beginning with `name`, where the structure of a file asks for more than its bytes pay for.

    Looks at no more parts than the budget has. What cannot be parsed is left to the decoder.
    """
    try:
        if format == "PNG":
            _check_png_size(content, name)
            _check_parts(_iter_png_chunk_places(content), content, format, name)
        elif format == "JPEG":
            _check_jpeg_scans(content, name)
        elif format == "GIF":
            _check_parts(_iter_gif_blocks(content), content, format, name)
        elif format == "WEBP":
            _check_parts(_iter_webp_chunks(content), content, format, name)
        elif format == "TIFF":
            _check_tiff_strips(content, name)
    except (struct.error, IndexError, OverflowError):  # the file ends in the middle of a field, or far before a place
        pass


def _check_parts(parts: Iterable[Any], content: bytes, format: str, name: str) -> None:
    limit = FREE_PARTS + len(content) // BYTES_PER_PART[format]
    if next(islice(parts, limit, None), None) is not None:
        raise ValueError(f"{name} is a {format} of over {limit} parts, too many for a file of {len(content)} bytes")


def _iter_png_chunk_places(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, name) of each chunk, up to IEND or the end of the bytes, whatever its checksum."""
    at, name = 8, b""
    while at + 8 <= len(content) and name != b"IEND":
        size, name = struct.unpack_from(">I4s", content, at)
        yield at, name
        at += 12 + size


def _check_png_size(content: bytes, name: str) -> None:
    if len(content) < 29 or content[12:16] != b"IHDR":
        return
    width, height, depth, color = struct.unpack_from(">IIBB", content, 16)
    check_pixels(height, width, name)
    bits = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(color, 4) * depth
    kind = "interlaced PNG" if content[28] else "PNG"
    _check_decoded_bytes(height * (1 + width * bits // 8), len(content), kind, name)


def _check_decoded_bytes(total: int, size: int, kind: str, name: str) -> None:
    free, for_each = DECODED_BYTES[kind]
    limit = free * max(_pixel_limit, MAX_PIXELS) // MAX_PIXELS + for_each * size
    if total > limit:
        raise ValueError(
            f"{name} is a {kind} of {size} bytes that would take {total >> 20} MiB, over the limit of {limit >> 20} "
            "MiB for its size"
        )


def _check_jpeg_scans(content: bytes, name: str) -> None:
    scans = pixels = values = 0
    is_progressive = False
    segments = list(islice(iter_jpeg_segments(content), FREE_PARTS + len(content) // BYTES_PER_PART["JPEG"] + 1))
    _check_parts(segments, content, "JPEG", name)
    for marker, payload in segments:
        if marker == 0xDA:
            scans += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and len(payload) >= 6:
            height, width, channels = struct.unpack_from(">HHB", payload, 1)
            factors = [(payload[i] >> 4) * (payload[i] & 15) for i in range(7, min(len(payload), 6 + 3 * channels), 3)]
            pixels = max(pixels, height * width)
            values = max(values, height * width * sum(factors) // max(factors, default=1) if any(factors) else 0)
            is_progressive |= marker not in (0xC0, 0xC1)
    most = MAX_SCAN_PIXELS + SCAN_PIXELS_PER_BYTE * len(content)
    if scans > 1 and scans * pixels > most:
        raise ValueError(
            f"{name} is a JPEG of {scans} scans of {pixels} pixels each, over the limit of {most // pixels} scans"
        )
    if is_progressive or scans > 1:  # all coefficients are kept, of two bytes each
        _check_decoded_bytes(2 * values, len(content), "JPEG", name)


def _check_tiff_strips(content: bytes, name: str) -> None:
    """Check the first directory, which is the one that is decoded."""
    tags = _read_tiff_numbers(content)
    for places in (273, 324):
        _check_parts(chain.from_iterable(tags.get(places, ())), content, "TIFF", name)
    for counts in (279, 325):
        if (total := sum(float(numbers.sum()) for numbers in tags.get(counts, ()))) > 2 * len(content):
            raise ValueError(f"{name} is a TIFF whose strips have {total:.0f} bytes, in a file of {len(content)}")

    def largest(tag: int) -> int:
        return max((int(numbers.max()) for numbers in tags.get(tag, ()) if len(numbers)), default=1)

    check_pixels(largest(323), largest(322), f"a tile of {name}")
    if largest(259) != 1:  # compressed
        bits = max(largest(258) * largest(277), 1)
        pixels = max(largest(256) * largest(257), largest(322) * largest(323))
        _check_decoded_bytes(pixels * bits // 8, len(content), "TIFF", name)


_TIFF_CHECKED_TAGS = (256, 257, 258, 259, 273, 277, 279, 322, 323, 324, 325)


def _read_tiff_numbers(content: bytes) -> dict[int, list[np.ndarray]]:
    """Return whole numbers of the first directory by tag, those of `_TIFF_CHECKED_TAGS`, up to the size of the file."""
    order = "<" if content[:2] == b"II" else ">"
    word, count, entry_size = ("Q", "Q", 20) if b"+" in content[2:4] else ("I", "H", 12)  # BigTIFF, TIFF
    wide = struct.calcsize(word)
    (at,) = struct.unpack_from(order + word, content, 8 if wide == 8 else 4)
    (entries,) = struct.unpack_from(order + count, content, at)
    at += struct.calcsize(count)
    tags: dict[int, list[np.ndarray]] = {}
    looked_at = 0
    for place in range(at, at + min(entries, len(content) // entry_size) * entry_size, entry_size):
        tag, type, length = struct.unpack_from(order + "HH" + word, content, place)
        if tag not in _TIFF_CHECKED_TAGS or type not in _TIFF_INTEGER_DTYPES:
            continue
        value, size = place + 4 + wide, _TIFF_TYPE_SIZES[type] * length
        if size > wide:
            (value,) = struct.unpack_from(order + word, content, value)
        looked_at += size
        if value + size > len(content) or looked_at > len(content):
            break
        tags.setdefault(tag, []).append(np.frombuffer(content, order + _TIFF_INTEGER_DTYPES[type], length, value))
    return tags


def keep_needed_png_chunks(content: bytes) -> bytes:
    """Return the PNG without the chunks that its pixels do not need: texts, further frames, a second profile.

    Its decoder would unpack them all. Kept are the first profile, the first EXIF, and texts with the orientation.
    """
    chunks, kinds = [content[:8]], set[bytes]()
    for at, name in _iter_png_chunk_places(content):
        size = 12 + int.from_bytes(content[at : at + 4], "big")
        what = name
        if name in (b"tEXt", b"zTXt", b"iTXt"):
            what = content[at + 8 : at + 33].partition(b"\0")[0]
            is_needed = what.startswith((b"XML:com.adobe.xmp", b"Raw profile type ")) and what not in kinds
        else:
            is_needed = name in (b"IDAT", b"IEND") or (name in _PNG_SINGLE_CHUNKS and name not in kinds)
        if is_needed:
            chunks.append(content[at : at + size])
        kinds.add(what)
    return b"".join(chunks)


_PNG_SINGLE_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"iCCP", b"eXIf", b"sRGB", b"gAMA", b"cHRM")


def remove_ppm_comments(content: bytes, name: str) -> bytes:
    """Return a PPM, PGM or PBM without comments: in its header, and in the numbers of one that is written as text.

    Pillow takes quadratic time for them. Raises ValueError for a header of over 64 KiB, and where there are fewer bytes
    than the header promises.
    """
    kind, head = content[1:2], content[2:MAX_PPM_HEADER]
    numbers: list[bytes] = []
    for token in re.finditer(rb"#[^\r\n]*|[^\s#]+", head):
        if not token[0].startswith(b"#"):
            numbers.append(token[0][:20])  # Pillow refuses one of over 10 digits
        if len(numbers) == (2 if kind in b"14" else 3) and token.end() < len(head):
            break
    else:
        raise ValueError(f"{name} is a PPM without its size in the first {MAX_PPM_HEADER >> 10} KiB")
    raster = content[2 + token.end() :]
    if kind in b"123" and b"#" in raster:  # a comment may stand between any two numbers
        raster = re.sub(rb"#[^\r\n]*", b"", raster)
    width, height, most = (int(word) if word.isdigit() else 0 for word in (*numbers, b"1")[:3])
    check_pixels(height, width, name)
    values = width * height * (3 if kind in b"36" else 1)
    value_bytes = {b"1": values, b"2": 2 * values - 1, b"3": 2 * values - 1, b"4": (width + 7) // 8 * height}.get(
        kind, values
    )
    if len(raster) - 1 < value_bytes * (2 if kind in b"56" and most > 255 else 1):
        raise ValueError(f"{name} is a PPM that is cut short: {width}x{height}, and {len(raster) - 1} bytes for it")
    return b" ".join([content[:2], *numbers]) + raster


def set_pixel_limit(count: int) -> None:
    """Let this process read images of up to so many pixels, instead of 64 megapixels (2**26)."""
    global _pixel_limit
    _pixel_limit = count


def get_pixel_limit() -> int:
    """Return how many pixels an image may have that this process reads."""
    return _pixel_limit


def check_pixels(height: int, width: int, name: str) -> None:
    """Raise ValueError unless there are 1 to 64 megapixels (2**26), or what `set_pixel_limit` allows, and at most a
    million pixels a side."""
    if height < 1 or width < 1:
        raise ValueError(f"{name} is {width}x{height}: it has no pixels")
    if height * width > _pixel_limit:
        limit = f"{_pixel_limit / (2**20 if _pixel_limit == MAX_PIXELS else 1e6):.0f}"
        raise ValueError(
            f"{name} is {width}x{height}, {height * width / 1e6:.0f} megapixels, over the limit of {limit}"
        )
    if max(height, width) > MAX_FILE_SIDE:
        raise ValueError(f"{name} is {width}x{height}, over the limit of {MAX_FILE_SIDE} pixels a side")


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

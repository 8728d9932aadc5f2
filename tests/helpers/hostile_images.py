"""Images of about 1 MB whose structure asks their decoder for more than their bytes pay for."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

MB = 2**20
RGB = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
IFD_TAGS = ((256, 1), (257, 1), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 1))


def encode(image, format, **options):
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def zeros(count):
    """`count` zero bytes, deflated, without holding them all."""
    packer, block = zlib.compressobj(9), bytes(MB)
    return b"".join([*(packer.compress(block) for _ in range(count // MB)), packer.compress(bytes(count % MB))]) + (
        packer.flush()
    )


def chunk(name, content=b""):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


PIXEL = chunk(b"IDAT", zlib.compress(bytes(4)))


def png(width, height, depth, color, *chunks, interlaced=0):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced))
    return b"".join([b"\x89PNG\r\n\x1a\n", header, *chunks, chunk(b"IEND")])


def segment(marker, content=b""):
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def progressive(width, height, scans, *before, channels=1, data=b"\0" * 100):
    """A JPEG whose scans say nothing, each over the whole image."""
    components = b"".join(bytes([i + 1, 0x11, 0]) for i in range(channels))
    frame = segment(0xC2, struct.pack(">BHHB", 8, height, width, channels) + components)
    tables = segment(0xDB, b"\0" + b"\1" * 64)
    tables += b"".join(segment(0xC4, bytes([kind, 1]) + bytes(16)) for kind in (0, 16))
    first = segment(0xDA, bytes([1, 1, 0, 0, 0, 0])) + data
    further = segment(0xDA, bytes([1, 1, 0, 1, 63, 0])) + b"\0"
    return b"".join([b"\xff\xd8", *before, tables, frame, first, further * (scans - 1), b"\xff\xd9"])


def jpeg_with(segments):
    plain = encode(RGB, "JPEG")
    return plain[:2] + segments + plain[2:]


def gif(width, height, *blocks):
    return b"".join([b"GIF89a" + struct.pack("<HHBBB", width, height, 0xF0, 0, 0) + bytes(6), *blocks, b";"])


def gif_frame(width, height, data=b"\2\x44\1\0"):
    return b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\2" + data


def tiff(width, height, compression, tags, content=b"", samples=1):
    """A little-endian TIFF of one directory; `tags` are (tag, values), written as 32-bit numbers."""
    every = {256: [width], 257: [height], 258: [8], 259: [compression], 262: [1], 277: [samples], **dict(tags)}
    if samples == 3:
        every |= {258: [8, 8, 8], 262: [2]}
    at = 10 + 12 * len(every) + 4
    entries, outside = struct.pack("<H", len(every)), b""
    for tag, values in sorted(every.items()):
        kind = "H" if tag in (258, 259, 262, 277) else "I"
        packed = struct.pack(f"<{len(values)}{kind}", *values)
        entries += struct.pack("<HHI", tag, {"H": 3, "I": 4}[kind], len(values))
        if len(packed) <= 4:
            entries += packed.ljust(4, b"\0")
        else:
            entries += struct.pack("<I", at + len(outside))
            outside += packed
    return b"II*\0\x08\0\0\0" + entries + bytes(4) + outside + content


def directories(count):
    size = 2 + 12 * len(IFD_TAGS) + 4
    body = struct.pack("<H", len(IFD_TAGS)) + b"".join(struct.pack("<HHII", tag, 4, 1, v) for tag, v in IFD_TAGS)
    links = (struct.pack("<I", 8 + size * (i + 1) if i + 1 < count else 0) for i in range(count))
    return b"II*\0\x08\0\0\0" + b"".join(body + link for link in links)


def webp(*chunks):
    body = b"WEBP" + b"".join(name + struct.pack("<I", len(c)) + c + b"\0" * (len(c) % 2) for name, c in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp_canvas(side):
    return b"VP8X", bytes(4) + 2 * struct.pack("<I", side - 1)[:3]


def webp_pixels():
    content = encode(RGB, "WEBP", lossless=True)
    return content[12:16], content[20 : 20 + struct.unpack_from("<I", content, 16)[0]]


def bmp(width, height, compression, content):
    begin = 14 + 40 + 1024
    header = struct.pack("<IIIHHIIiiII", 40, width, height, 1, 8, compression, len(content), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", begin + len(content), 0, 0, begin) + header + bytes(1024) + content


# kind: (maker, a part of the sentence that refuses it, or None where it is read)
HOSTILE_IMAGES: dict[str, tuple[Callable[[], bytes], str | None]] = {
    "PPM of comments": (lambda: b"P6\n" + b"#\n" * (MB // 2) + b"1 1 255\n" + bytes(3), "without its size"),
    "PPM of white space": (lambda: b"P6" + b" " * MB + b"1 1 255\n" + bytes(3), "without its size"),
    "PPM of numbers as text and comments": (lambda: b"P3 512 512 255\n" + b"1 #\n" * (MB // 4), "cut short"),
    "PPM of bits as text and comments": (lambda: b"P1 999 999\n" + b"1#\n" * (MB // 3), "cut short"),
    "PPM of 64 megapixels, short": (lambda: b"P6 8000 8000 255\n" + bytes(MB), "cut short"),
    "PPM of odd steps of gray, short": (lambda: b"P6 8000 8000 100\n" + bytes(MB), "cut short"),
    "PPM of comments in numbers that are read": (
        lambda: b"P3 200 200 255\n" + b"1 #abcd\n" * (200 * 200 * 3),
        None,
    ),
    "JPEG of scans": (lambda: progressive(4000, 4000, 80_000), "parts"),
    "JPEG of scans with EXIF": (lambda: progressive(4000, 4000, 3000, segment(0xE1, b"Exif\0\0")), "scans"),
    "JPEG of few scans of a large image": (lambda: progressive(8000, 8000, 60), "scans"),
    "JPEG of scans of a small image": (lambda: progressive(64, 64, 80_000), "parts"),
    "JPEG of coefficients": (lambda: progressive(8000, 8000, 3, channels=3), "would take"),
    "JPEG of comments": (lambda: jpeg_with(segment(0xFE) * (MB // 4)), "parts"),
    "JPEG of EXIF": (lambda: jpeg_with(segment(0xE1, b"Exif\0\0") * (MB // 10)), "parts"),
    "JPEG of profiles": (lambda: jpeg_with(segment(0xE2, b"ICC_PROFILE\0\1\1") * (MB // 18)), "parts"),
    "JPEG of starts": (lambda: jpeg_with(b"\xff\xd8" * (MB // 2)), "parts"),
    "JPEG of fill bytes": (lambda: encode(RGB, "JPEG")[:-2] + b"\xff" * MB, "cut short"),
    "JPEG of fill bytes and zeros": (lambda: encode(RGB, "JPEG")[:-2] + (b"\xff" * 2000 + b"\0") * 500, "cut short"),
    "PNG of empty chunks": (lambda: png(1, 1, 8, 2, chunk(b"aaAa") * (MB // 12), PIXEL), "parts"),
    "PNG of empty chunks behind": (lambda: png(1, 1, 8, 2, PIXEL, chunk(b"aaAa") * (MB // 12)), "parts"),
    "PNG of empty data": (lambda: png(1, 1, 8, 2, chunk(b"IDAT") * (MB // 12), PIXEL), "parts"),
    "PNG of texts": (lambda: png(1, 1, 8, 2, chunk(b"tEXt", b"a\0b") * (MB // 15), PIXEL), "parts"),
    "PNG of a packed text": (lambda: png(1, 1, 8, 2, chunk(b"zTXt", b"a\0\0" + zeros(50 * MB)), PIXEL), None),
    "PNG of packed texts": (lambda: png(1, 1, 8, 2, chunk(b"zTXt", b"a\0\0" + zeros(MB - 1)) * 900, PIXEL), None),
    "PNG of profiles": (lambda: png(1, 1, 8, 2, chunk(b"iCCP", b"a\0\0" + zeros(MB - 1)) * 900, PIXEL), None),
    "PNG of frames": (lambda: png(1, 1, 8, 2, PIXEL, *(chunk(b"fdAT", bytes(4)) for _ in range(20_000))), "parts"),
    "PNG with more than its pixels": (lambda: png(1, 1, 8, 2, chunk(b"IDAT", zeros(50 * MB))), None),
    "PNG of 64 megapixels, short": (lambda: png(8000, 8000, 8, 2, chunk(b"IDAT", zeros(9 * MB))), "would take"),
    "PNG of 16 bits, short": (lambda: png(7000, 7000, 16, 6, chunk(b"IDAT", zeros(9 * MB))), "would take"),
    "PNG of 45 megapixels, short": (lambda: png(6700, 6700, 8, 2, chunk(b"IDAT", zeros(40 * MB))), "truncated"),
    "PNG, interlaced, short": (
        lambda: png(7000, 7000, 8, 2, chunk(b"IDAT", zeros(9 * MB)), interlaced=1),
        "would take",
    ),
    "PNG one pixel wide": (lambda: png(1, 60_000_000, 8, 2, chunk(b"IDAT", zeros(9 * MB))), "pixels a side"),
    "GIF of comments": (lambda: gif(1, 1, b"!\xfe\1a\0" * (MB // 5), gif_frame(1, 1)), "parts"),
    "GIF of a comment in blocks of a byte": (
        lambda: gif(1, 1, b"!\xfe" + b"\1a" * (MB // 2) + b"\0", gif_frame(1, 1)),
        "parts",
    ),
    "GIF of blocks of a byte": (lambda: gif(800, 800, gif_frame(800, 800, b"\1\x44" * (MB // 2) + b"\0")), "parts"),
    "GIF of frames": (lambda: gif(1, 1, gif_frame(1, 1) * (MB // 15)), "parts"),
    "GIF of 64 megapixels, short": (lambda: gif(8000, 8000, gif_frame(8000, 8000)), "truncated"),
    "TIFF of directories": (lambda: directories(9000), "cut short"),
    "TIFF of strips at one place": (
        lambda: tiff(8000, 8000, 1, [(278, [1]), (273, [90_000] * 8000), (279, [900_000] * 8000)], bytes(MB), 3),
        "strips",
    ),
    "TIFF of tiles at one place": (
        lambda: tiff(3840, 3840, 8, [(322, [16]), (323, [16]), (324, [8] * 57600), (325, [256] * 57600)], bytes(300)),
        "parts",
    ),
    "TIFF of strips of a row": (
        lambda: tiff(1, 60_000, 1, [(278, [1]), (273, [8] * 60_000), (279, [1] * 60_000)], bytes(9)),
        "parts",
    ),
    "TIFF of a tile of 2 gigapixels": (
        lambda: tiff(16, 16, 8, [(322, [2**16]), (323, [2**15]), (324, [8]), (325, [9])], bytes(300)),
        "a tile of",
    ),
    "TIFF of 64 megapixels, deflated": (
        lambda: tiff(8000, 8000, 8, [(278, [8000]), (273, [200]), (279, [9000])], zeros(9 * MB), 3),
        "would take",
    ),
    "WebP of empty chunks": (lambda: webp(webp_canvas(32), *[(b"abcd", b"")] * (MB // 8), webp_pixels()), "parts"),
    "WebP of a long profile": (lambda: webp(webp_canvas(32), (b"ICCP", b"a" * MB), webp_pixels()), None),
    "BMP of empty runs": (lambda: bmp(8000, 8000, 1, b"\0\0" * (MB // 2)), "enough image data"),
    "BMP of short runs": (lambda: bmp(8000, 8000, 1, b"\1\0" * (MB // 2)), "enough image data"),
    "BMP one pixel wide": (lambda: bmp(1, 60_000_000, 1, b"\0\0" * (MB // 2)), "pixels a side"),
}

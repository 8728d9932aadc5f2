"""The image reader gives what a viewer shows, or one line."""

import io
import os
import random
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from limits import limit_cpu
from PIL import Image, ImageCms, ImageFile, features

from controlnet_ext.files import image_formats as containers
from controlnet_ext.files.image_formats import is_complete
from controlnet_ext.files.image_reader import read_image

H, W = 60, 84
rng = np.random.default_rng(0)
RGB = cv2.resize(rng.integers(0, 256, (8, 11, 3), np.uint8), (W, H), interpolation=cv2.INTER_CUBIC)
GREY = cv2.cvtColor(RGB, cv2.COLOR_RGB2GRAY)
DEEP = GREY.astype(np.uint16) << 8 | rng.integers(0, 256, GREY.shape, np.uint16)
DEEP_RGB = RGB.astype(np.uint16) << 8 | rng.integers(0, 256, RGB.shape, np.uint16)
ALPHA = rng.integers(0, 256, (H, W), np.uint8)


def encoded(image, format, **options):
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(rows, depth, colour, size=(W, H), *between):
    """A PNG put together by hand, for what Pillow does not write. `rows` (h, bytes) without filter bytes."""
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), *between, chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    )


def big_endian(values):
    return [row.astype(">u2").tobytes() for row in values]


def three(grey):
    return np.repeat(grey[..., None], 3, axis=2)


def over_white(colours, alpha):
    a = alpha[..., None] / 255
    return colours * a + 255 * (1 - a)


def cv2_encoded(suffix, pixels):
    return cv2.imencode(suffix, pixels if pixels.ndim == 2 else pixels[..., ::-1])[1].tobytes()


def palette_with_transparency():
    image = Image.fromarray(RGB).quantize(16)
    alphas = np.arange(16, dtype=np.uint8) * 17
    return encoded(image, "PNG", transparency=alphas.tobytes()), over_white(
        np.array(image.convert("RGB")), alphas[np.array(image)]
    )


def keyed(values, colour, depth):
    """A PNG in which one colour, that of the pixel (3, 3), is transparent, and the image wanted."""
    key = np.atleast_1d(values[3, 3])
    mask = (np.atleast_3d(values) == key).all(axis=2)
    rows = big_endian(values) if depth == 16 else [row.tobytes() for row in values]
    eight = (values >> (depth - 8)).astype(np.uint8)
    wanted = np.where(mask[..., None], 255, eight if eight.ndim == 3 else three(eight))
    return png(rows, depth, colour, (W, H), chunk(b"tRNS", key.astype(">u2").tobytes())), wanted


def awkward():
    """(name, file, the image wanted, largest difference from it)"""
    second = Image.fromarray(RGB[::-1])
    bits = np.where(GREY > 127, 255, 0).astype(np.uint8)
    cmyk = Image.fromarray(RGB).convert("CMYK")
    broken_exif = b"Exif\0\0MM\0\x2a\xff\xff\xff\xff\1\2"
    flat = Image.fromarray(RGB).quantize(200)
    yield "grey of 16 bits, PNG", encoded(DEEP, "PNG"), three(GREY), 0
    yield "grey of 16 bits, TIFF", encoded(DEEP, "TIFF"), three(GREY), 0
    big = Image.frombytes("I;16B", (W, H), DEEP.astype(">u2").tobytes())
    yield "grey of 16 bits, big-endian TIFF", encoded(big, "TIFF"), three(GREY), 0
    yield "RGB of 16 bits, PNG", cv2_encoded(".png", DEEP_RGB), RGB, 0
    yield "RGB of 16 bits, TIFF", cv2_encoded(".tiff", DEEP_RGB), RGB, 0
    deep_alpha = ALPHA.astype(np.uint16) << 8
    rows = big_endian(np.dstack([DEEP_RGB, deep_alpha]).reshape(H, -1))
    yield "RGBA of 16 bits, PNG", png(rows, 16, 6), over_white(RGB, ALPHA), 1
    rows = big_endian(np.dstack([DEEP, deep_alpha]).reshape(H, -1))
    yield "LA of 16 bits, PNG", png(rows, 16, 4), over_white(three(GREY), ALPHA), 1
    yield "RGBA, PNG", encoded(np.dstack([RGB, ALPHA]), "PNG"), over_white(RGB, ALPHA), 1
    lossless = {"lossless": True, "exact": True}
    yield "RGBA, WebP", encoded(np.dstack([RGB, ALPHA]), "WEBP", **lossless), over_white(RGB, ALPHA), 1
    yield "RGBA, TIFF", encoded(np.dstack([RGB, ALPHA]), "TIFF"), over_white(RGB, ALPHA), 1
    la = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)])
    yield "LA, PNG", encoded(la, "PNG"), over_white(three(GREY), ALPHA), 1
    yield "palette with transparency", *palette_with_transparency(), 1
    yield "transparent colour in RGB", *keyed(RGB, 2, 8), 0
    yield "transparent colour in grey", *keyed(GREY, 0, 8), 0
    yield "transparent colour in grey of 16 bits", *keyed(DEEP, 0, 16), 0
    yield "transparent colour in RGB of 16 bits", *keyed(DEEP_RGB, 2, 16), 0
    yield "1 bit, PNG", encoded(Image.fromarray(bits).convert("1"), "PNG"), three(bits), 0
    group4 = {"compression": "group4"}
    yield "1 bit, TIFF as from a fax", encoded(Image.fromarray(bits).convert("1"), "TIFF", **group4), three(bits), 0
    yield "palette, GIF", encoded(flat, "GIF"), np.array(flat.convert("RGB")), 0
    moving = {"save_all": True, "append_images": [second]}
    yield "animated GIF", encoded(flat, "GIF", **moving), np.array(flat.convert("RGB")), 0
    yield "animated PNG", encoded(RGB, "PNG", **moving), RGB, 0
    yield "animated WebP", encoded(RGB, "WEBP", lossless=True, **moving), RGB, 0
    yield "TIFF of two pages", encoded(RGB, "TIFF", **moving), RGB, 0
    yield "CMYK, TIFF", encoded(cmyk, "TIFF"), RGB, 1
    fine = {"quality": 100, "subsampling": 0}  # YCbCr of 8 bits by itself moves a channel by 2
    yield "CMYK, JPEG with Adobe's inversion", encoded(cmyk, "JPEG", quality=100), RGB, 6
    yield "progressive JPEG", encoded(RGB, "JPEG", progressive=True, **fine), RGB, 4
    yield "grey JPEG", encoded(GREY, "JPEG", quality=100), three(GREY), 2
    yield "JPEG with broken EXIF", encoded(RGB, "JPEG", exif=broken_exif, **fine), RGB, 4
    yield "JPEG with junk behind it", encoded(RGB, "JPEG", **fine) + b"\0" * 999, RGB, 4
    yield "float TIFF 0..1", cv2_encoded(".tiff", GREY.astype(np.float32) / 255), three(GREY), 0
    yield "float TIFF 0..255", encoded(Image.fromarray(GREY.astype(np.float32)), "TIFF"), three(GREY), 0
    yield "BMP", encoded(RGB, "BMP"), RGB, 0
    yield "PPM", encoded(RGB, "PPM"), RGB, 0
    yield "PNG with a broken profile", encoded(RGB, "PNG", icc_profile=b"no profile" * 30), RGB, 0
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    yield "PNG with the profile sRGB", encoded(RGB, "PNG", icc_profile=srgb), RGB, 0
    yield "grey PNG with a profile for RGB", encoded(GREY, "PNG", icc_profile=srgb), three(GREY), 0
    yield "one pixel", encoded(RGB[:1, :1], "PNG"), RGB[:1, :1], 0
    yield "a strip", encoded(np.repeat(RGB[:3, :1], 10000, axis=1), "PNG"), np.repeat(RGB[:3, :1], 10000, axis=1), 0


def difference(got, wanted):
    assert got.dtype == np.uint8 and got.shape == wanted.shape and got.flags.writeable and got.flags.c_contiguous
    return np.abs(got - wanted.astype(float)).max()


@pytest.mark.parametrize(("content", "wanted", "apart"), [pytest.param(*rest, id=name) for name, *rest in awkward()])
def test_an_awkward_file_gives_the_image_a_viewer_shows(content, wanted, apart, tmp_path, capfd):
    path = tmp_path / "žluťoučký 猫 .png"  # the suffix says nothing
    path.write_bytes(content)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert difference(read_image(path), wanted) <= apart
        assert difference(read_image(content), wanted) <= apart
    assert not caught and capfd.readouterr() == ("", "")


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif_is_read():
    assert difference(read_image(encoded(RGB, "AVIF", quality=100, subsampling="4:4:4")), RGB) <= 4


# where the wanted image's first row and first column lie in the stored one (Exif 2.3, orientation)
STORED = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: np.rot90(x, 2),
    4: lambda x: x[::-1],
    5: lambda x: np.transpose(x, (1, 0, 2)),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: np.rot90(np.transpose(x, (1, 0, 2)), 2),
    8: lambda x: np.rot90(x, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_all_eight_orientations_are_turned_upright(orientation, format):
    exif = Image.Exif()
    exif[274] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(format, {})
    content = encoded(np.ascontiguousarray(STORED[orientation](RGB)), format, exif=exif, **options)
    apart = 4 if format == "JPEG" else 0
    assert difference(read_image(content), RGB) <= apart
    assert difference(read_image(Image.open(io.BytesIO(content))), RGB) <= apart


def linear_profile():
    """sRGB's profile with the curves of linear light: 'curv' of no entries."""
    content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for entry in range(132, 132 + 12 * struct.unpack_from(">I", content, 128)[0], 12):
        name, at, size = struct.unpack_from(">4sII", content, entry)
        if name[1:] == b"TRC":
            content[at : at + size] = (b"curv" + bytes(8)).ljust(size, b"\0")
    return bytes(content).replace("sRGB".encode("utf-16-be"), "line".encode("utf-16-be"))


def test_a_profile_is_followed_into_srgb():
    x = RGB / 255
    wanted = np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055) * 255  # IEC 61966-2-1
    content = encoded(RGB, "PNG", icc_profile=linear_profile())
    assert difference(read_image(content), wanted) <= 2  # the profile's own 16-bit numbers
    assert np.abs(wanted - RGB).max() > 60


def test_a_plain_jpeg_gives_pillow_s_pixels_without_pillow(tmp_path):
    for name, image, options in (
        ("colour", RGB, {}),
        ("progressive", RGB, {"progressive": True}),
        ("grey", GREY, {}),
        ("half", RGB, {"subsampling": 2}),
    ):
        content = encoded(image, "JPEG", quality=80, **options)
        (tmp_path / f"{name}.jpg").write_bytes(content)
        assert difference(read_image(content), np.array(Image.open(io.BytesIO(content)).convert("RGB"))) == 0, name
    program = (
        "import sys, pathlib; from controlnet_ext.files.image_reader import read_image\n"
        f"for path in pathlib.Path({str(tmp_path)!r}).iterdir(): read_image(path)\n"
        "print('PIL' in sys.modules, 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "False False\n"


def refusal(source, kind=ValueError):
    with pytest.raises(kind) as caught:
        read_image(source)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


def test_what_is_not_an_image_is_refused_in_one_line(tmp_path):
    assert "does not exist" in refusal(tmp_path / "no.png", FileNotFoundError)
    assert "is a folder" in refusal(tmp_path)
    assert "cannot be read" in refusal("a\0b.png")
    for name, content, reason in (
        ("empty.png", b"", "is empty"),
        ("text.png", b"I am not an image", "begins with b'I am not"),
        ("pdf.png", b"%PDF-1.4 and so on", "none of JPEG"),
        ("ps.png", b"%!PS-Adobe-3.0 EPSF-3.0", "none of JPEG"),
        ("bm.png", b"BM, a text beginning so", "cannot be read"),
        ("two\nlines.png", b"?", "begins with b'?'"),
        ("none.png", png([], 8, 2, (0, 0)), "it has no pixels"),
    ):
        (tmp_path / name).write_bytes(content)
        message = refusal(tmp_path / name)
        assert reason in message and repr(str(tmp_path / name)) in message
        assert reason in refusal(content)
    assert "not int" in refusal(3, TypeError)
    assert "not NoneType" in refusal(None, TypeError)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipes_and_devices_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert "a pipe or a device" in refusal(tmp_path / "pipe.png")
    assert "a pipe or a device" in refusal("/dev/zero")


@pytest.mark.parametrize("value", [np.nan, np.inf, -1, 300])
def test_floats_that_are_no_image_are_refused(value):
    pixels = GREY.astype(np.float32)
    pixels[4, 5] = value
    assert ("NaN or infinity" if not np.isfinite(value) else "expected 0..1 or 0..255") in refusal(
        encoded(Image.fromarray(pixels), "TIFF")
    )


def test_a_float_rgb_tiff_is_refused():
    assert "cannot be read" in refusal(cv2_encoded(".tiff", RGB.astype(np.float32) / 255))


def files_to_cut():
    moving = {"save_all": True, "append_images": [Image.fromarray(RGB[::-1])]}
    exif = Image.Exif()
    exif[274] = 6
    yield "baseline JPEG", encoded(RGB, "JPEG")
    yield "progressive JPEG", encoded(RGB, "JPEG", progressive=True)
    yield "JPEG with EXIF", encoded(RGB, "JPEG", exif=exif)
    yield "PNG", encoded(RGB, "PNG")
    yield "animated PNG", encoded(RGB, "PNG", **moving)
    yield "WebP", encoded(RGB, "WEBP")
    yield "lossless WebP", encoded(RGB, "WEBP", lossless=True)
    yield "GIF", encoded(RGB, "GIF", **moving)
    yield "BMP", encoded(RGB, "BMP")
    yield "PPM", encoded(RGB, "PPM")
    yield "TIFF", encoded(RGB, "TIFF")
    yield "TIFF of two pages", encoded(RGB, "TIFF", compression="tiff_lzw", **moving)
    yield "TIFF of tiles", encoded(RGB, "TIFF", compression="tiff_adobe_deflate", tile=(16, 16))


def refused_at(content, cuts, path):
    for size in sorted(cuts):
        path.write_bytes(content[:size])
        refusal(path)


CUT = [pytest.param(name, content, id=name) for name, content in files_to_cut()]


@pytest.mark.parametrize(("name", "content"), CUT)
@pytest.mark.parametrize("lenient", [False, True])
def test_a_cut_file_is_refused_wherever_it_was_cut(name, content, lenient, tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)  # as webui does for itself
    read_image(content)
    tail = 20 if name == "TIFF of two pages" else 1  # that one ends in bytes that nothing points at
    twentieths = {len(content) * k // 20 for k in range(20)}
    refused_at(content, twentieths | {len(content) - k for k in (tail, tail + 1, tail + 11)}, tmp_path / "cut")
    assert lenient == ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.long
@pytest.mark.parametrize(("name", "content"), CUT)
def test_a_cut_file_is_refused_at_each_hundredth(name, content, tmp_path):
    refused_at(content, {len(content) * k // 100 for k in range(100)}, tmp_path / "cut")


def mutated(count):
    """Files with some bytes changed, each with the number it is made from."""
    seeds = [content for _, content, *_ in awkward()]
    for number in range(count):
        chance = random.Random(number)
        content = bytearray(chance.choice(seeds))
        for _ in range(chance.choice((1, 3, 20))):
            content[chance.randrange(min(len(content), chance.choice((64, 10**6))))] = chance.randrange(256)
        yield number, bytes(content)


@pytest.mark.parametrize("count", [300, pytest.param(50000, marks=pytest.mark.long)])
def test_a_mutated_file_gives_an_image_or_one_line(count):
    refused = 0
    for number, content in mutated(count):
        try:
            with limit_cpu(20):  # the slowest needs 0.5 s
                pixels = read_image(content)
        except ValueError as error:
            assert "\n" not in str(error), number
            refused += 1
        else:
            assert pixels.dtype == np.uint8 and pixels.ndim == 3, number
    assert count / 10 < refused < count  # both happened
    if count > 300:  # in a process of its own; the quick suite's has done other things before
        resource = pytest.importorskip("resource")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        print(f"{count} files: {refused} refused, the process {peak / 2**20:.0f} MiB")
        assert peak < 2**30


def test_a_tiff_of_directories_without_end_is_refused_before_more_is_read_than_it_holds(monkeypatch):
    class Counting:
        """struct, whose `unpack_from` counts the bytes."""

        error, calcsize = struct.error, struct.calcsize
        count = 0

        @classmethod
        def unpack_from(cls, format, *given):
            cls.count += struct.calcsize(format)
            return struct.unpack_from(format, *given)

    itself = b"II*\0\x08\0\0\0" + b"\0\0" + b"\x08\0\0\0"
    overlapping = bytearray(b"II*\0\x08\0\0\0" + bytes(3_000_000))
    entries = 60_000
    for at in range(8, 100_000, 2):  # each of many entries, and the next begins within it
        struct.pack_into("<H", overlapping, at, entries)
        struct.pack_into("<I", overlapping, at + 2 + 12 * entries, at + 2)
    monkeypatch.setattr(containers, "struct", Counting)
    for content in (itself, bytes(overlapping)):
        Counting.count = 0
        assert not is_complete(content, "TIFF")
        assert 0 < Counting.count <= 8 * len(content)  # of a directory of one byte: its 2 of length and 4 of the next
        refusal(content)


def test_threads_that_read_leave_the_process_as_it_was():
    filters, content = list(warnings.filters), encoded(np.dstack([RGB, ALPHA]), "PNG")
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(read_image, [content] * 64))
    assert all((pixels == read[0]).all() for pixels in read)
    assert warnings.filters == filters and not ImageFile.LOAD_TRUNCATED_IMAGES


def test_one_changed_bit_in_a_png_s_pixels_is_refused():
    content = bytearray(encoded(RGB, "PNG"))
    for at in range(60, len(content) - 16, 500):
        content[at] ^= 16
        assert "cut short or damaged" in refusal(bytes(content))
        content[at] ^= 16
    assert difference(read_image(bytes(content)), RGB) == 0


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc to see the largest memory")
def test_more_than_64_megapixels_are_refused_from_the_header_without_memory(tmp_path):
    (tmp_path / "177.png").write_bytes(png([b""], 8, 2, (13312, 13312)))
    (tmp_path / "bits.png").write_bytes(png([b""], 1, 0, (50000, 50000)))
    (tmp_path / "just.ppm").write_bytes(b"P6 8193 8192 255\n")
    (tmp_path / "strip.bmp").write_bytes(
        struct.pack("<2sI4xI", b"BM", 99, 54) + struct.pack("<IiiHH24x", 40, 2**30, 9, 1, 24)
    )
    jpeg = bytearray(encoded(RGB, "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 65535, 65535)
    (tmp_path / "plain.jpg").write_bytes(jpeg)
    (tmp_path / "exif.jpg").write_bytes(jpeg[:2] + b"\xff\xe1\0\x08Exif\0\0" + jpeg[2:])
    webp = bytearray(encoded(RGB, "WEBP"))
    at = webp.index(b"\x9d\x01\x2a") + 3
    webp[at : at + 4] = struct.pack("<HH", 16383, 16383)
    (tmp_path / "large.webp").write_bytes(webp)
    program = f"""
import pathlib, warnings
from controlnet_ext.files.image_reader import read_image
import PIL.Image
warnings.simplefilter("error")
def peak():
    return int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
before = peak()
for path in sorted(pathlib.Path({str(tmp_path)!r}).iterdir()):
    try:
        print(path.name, read_image(path).shape)
    except ValueError as error:
        print(path.name, error)
print("MiB", peak() - before)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    *lines, memory = run.stdout.splitlines()
    assert len(lines) == 7 and run.stderr == ""
    for line in lines:
        assert "over the limit of 64" in line and "megapixels" in line, line
    assert float(memory.split()[1]) < 60


def test_arrays_in_memory_are_taken_by_kind_and_copied():
    for array, wanted in (
        (RGB, RGB),
        (GREY, three(GREY)),
        (GREY[..., None], three(GREY)),
        (np.dstack([RGB, ALPHA]), over_white(RGB, ALPHA)),
        (GREY > 99, three(np.where(GREY > 99, 255, 0))),
        (RGB / 255, RGB),
        ((RGB / 255).astype(np.float32), RGB),
        (RGB[::-1, ::2], RGB[::-1, ::2]),
    ):
        before = array.copy()
        result = read_image(array)
        assert difference(result, wanted) <= (1 if array.ndim == 3 and array.shape[2] == 4 else 0)
        result[:] = 7
        assert (array == before).all()


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (RGB.transpose(2, 0, 1), "of shape (3, 60, 84), expected (H, W)"),
        (RGB[None], "of shape (1, 60, 84, 3)"),
        (RGB[..., :2], "of shape (60, 84, 2)"),
        (GREY[0], "of shape (84,)"),
        (RGB[:0], "no pixels"),
        (DEEP, "of uint16, expected uint8"),
        (RGB.astype(int), "of int64, expected uint8"),
        (RGB.astype(float), "floats from"),
        (np.full((4, 4), np.nan), "floats from nan to nan"),
        (np.array([["a", "b"]]), "of <U1"),
        (np.broadcast_to(np.uint8(0), (2**14, 2**13)), "megapixels"),
    ],
)
def test_other_arrays_are_refused(array, reason):
    assert reason in refusal(array)


def test_images_of_pillow_are_taken_as_files_are():
    assert difference(read_image(Image.fromarray(RGB)), RGB) == 0
    assert difference(read_image(Image.fromarray(np.dstack([RGB, ALPHA]))), over_white(RGB, ALPHA)) <= 1
    assert difference(read_image(Image.fromarray(DEEP)), three(GREY)) == 0
    assert difference(read_image(Image.fromarray(GREY > 127)), three(np.where(GREY > 127, 255, 0))) == 0
    assert "no pixels" in refusal(Image.new("RGB", (0, 5)))
    assert "megapixels" in refusal(Image.new("1", (10000, 10000)))
    assert "0..65535" in refusal(Image.fromarray(np.full((4, 4), 70000, np.int32)))
    content = encoded(RGB, "PNG")
    refusal(Image.open(io.BytesIO(content[: len(content) // 2])))

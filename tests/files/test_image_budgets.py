"""The reader of images takes time and memory by the bytes of a file, whatever its structure asks for."""

import io
import os
import struct
import sys
from itertools import count

import numpy as np
import pytest
from hostile_images import HOSTILE_IMAGES, MB, RGB, chunk, encode, gif, png, progressive, zeros
from limits import limit_cpu
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from controlnet_ext.files import image_formats
from controlnet_ext.files.image_formats import check_budget, iter_jpeg_segments, keep_needed_png_chunks
from controlnet_ext.files.image_reader import read_image


@pytest.mark.parametrize("kind", HOSTILE_IMAGES)
def test_an_image_whose_structure_asks_for_too_much_is_refused_or_read_within_its_bytes(kind):
    make, reason = HOSTILE_IMAGES[kind]
    content = make()
    with limit_cpu(8):  # before, seven of them took over a minute; on an idle machine each takes 0.5 s at most
        if reason is None:
            assert read_image(content).ndim == 3
            return
        with pytest.raises(ValueError, match=reason) as caught:
            read_image(content)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("format", "content"),
    [
        ("JPEG", encode(RGB, "JPEG")[:2] + b"\xff\xfe\0\2" * (MB // 4)),
        ("PNG", png(1, 1, 8, 2, (b"\0\0\0\0aaAa\0\0\0\0") * (MB // 12))),
        ("GIF", gif(1, 1, b"!\xfe\1a\0" * (MB // 5))),
        ("WEBP", b"RIFF\0\0\0\0WEBP" + b"abcd\0\0\0\0" * (MB // 8)),
    ],
)
def test_no_more_parts_are_looked_at_than_the_budget_has(format, content, monkeypatch):
    looked_at = count()
    parts = {
        "JPEG": "iter_jpeg_segments",
        "PNG": "_iter_png_chunk_places",
        "GIF": "_iter_gif_blocks",
        "WEBP": "_iter_webp_chunks",
    }[format]
    iterate = getattr(image_formats, parts)
    monkeypatch.setattr(
        image_formats, parts, lambda content: (part for part in iterate(content) if (next(looked_at), 1))
    )
    with pytest.raises(ValueError, match="parts, too many for a file of"):
        check_budget(content, format, "it")
    limit = image_formats.FREE_PARTS + len(content) // image_formats.BYTES_PER_PART[format]
    assert next(looked_at) <= limit + 1 < len(content) / 12


def test_markers_of_a_jpeg_are_found_behind_fill_bytes():
    plain = encode(RGB, "JPEG")
    filled = plain[:2] + b"\xff" * 5 + plain[2:-2] + b"\xff" * 7 + plain[-2:]
    assert [marker for marker, _ in iter_jpeg_segments(filled)] == [marker for marker, _ in iter_jpeg_segments(plain)]
    assert (read_image(filled) == read_image(plain)).all()


def test_a_ppm_with_comments_gives_the_pixels_of_one_without():
    raster = bytes(range(2 * 3 * 3))
    plain = b" ".join(b"%d" % value for value in raster)
    wanted = np.frombuffer(raster, np.uint8).reshape(3, 2, 3)
    for content in (
        b"P6\n# made by hand\n2 3\n# of so much\n255\n" + raster,
        b"P6 2#two\n3 255\n" + raster,
        b"P3\n# made by hand\n2 3 255\n# numbers\n" + plain.replace(b" 9 ", b" 9 # nine\n"),
    ):
        assert (read_image(content) == wanted).all()
    with pytest.raises(ValueError, match="without its size in the first 64 KiB"):
        read_image(b"P6\n#" + b" " * 65531 + b"\n22 3 255\n" + raster)


def test_a_png_keeps_what_its_pixels_need_and_loses_the_rest():
    exif = Image.Exif()
    exif[274] = 6
    moving = {"save_all": True, "append_images": [RGB.rotate(90)]}
    content = encode(RGB, "PNG", exif=exif, **moving)
    kept = keep_needed_png_chunks(content)
    assert b"fdAT" in content and b"fdAT" not in kept and b"acTL" not in kept and b"eXIf" in kept
    assert (read_image(content) == np.rot90(np.asarray(RGB), -1)).all()
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    turned = io.BytesIO()
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp.decode())
    info.add_text("parameters", "a cat")
    RGB.save(turned, "PNG", pnginfo=info)
    assert (read_image(turned.getvalue()) == np.rot90(np.asarray(RGB), -1)).all()


def test_a_flat_png_of_25_megapixels_is_read():
    assert read_image(png(5000, 5000, 8, 0, chunk(b"IDAT", zeros(5001 * 5000)))).shape == (5000, 5000, 3)


def test_a_limit_of_more_pixels_raises_the_budget_of_a_flat_image():
    content = png(10_000, 10_000, 8, 0, chunk(b"IDAT", b""))[:200]
    with pytest.raises(ValueError, match="over the limit of 64"):
        check_budget(content, "PNG", "it")
    limit = image_formats.get_pixel_limit()
    image_formats.set_pixel_limit(2 * image_formats.MAX_PIXELS)
    try:
        check_budget(content, "PNG", "it")
        with pytest.raises(ValueError, match=r"would take 572 MiB, over the limit of 256 MiB"):
            check_budget(png(10_000, 10_000, 16, 2), "PNG", "it")
    finally:
        image_formats.set_pixel_limit(limit)


def test_a_progressive_photo_of_108_megapixels_is_within_the_budget_of_its_bytes():
    photo = progressive(12_000, 9_000, 10, channels=3, data=b"\1" * 5_000_000)
    check_budget(photo, "JPEG", "it")
    with pytest.raises(ValueError, match=r"would take|scans"):
        check_budget(progressive(12_000, 9_000, 10, channels=3), "JPEG", "it")


def test_bands_give_the_pixels_of_the_whole(monkeypatch):
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (37, 23, 4), np.uint8))
    files = [encode(image, "PNG"), encode(image.convert("RGB").quantize(9), "GIF"), encode(image.convert("LA"), "PNG")]
    whole = [read_image(content) for content in files]
    monkeypatch.setattr("controlnet_ext.files.image_reader.BAND_PIXELS", 100)
    assert all((read_image(content) == pixels).all() for content, pixels in zip(files, whole, strict=True))


@pytest.mark.long
def test_the_campaign_of_hostile_images_prints_time_and_memory(capsys):
    resource = pytest.importorskip("resource")
    if not os.path.exists("/proc/self/clear_refs"):
        pytest.skip("needs /proc to see the largest memory")
    for kind, (make, reason) in HOSTILE_IMAGES.items():
        content = make()
        child = os.fork()
        if not child:
            resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
            _measure(kind, content, reason)
        assert os.waitpid(child, 0)[1] == 0, kind


def _measure(kind, content, reason):
    """Read in this process, print seconds of CPU and MiB, and leave it: 0 where under 300 MiB or read."""

    def peak():
        with open("/proc/self/status") as status:
            return int(status.read().split("VmHWM:")[1].split()[0]) / 1024

    import resource

    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before, used = peak(), resource.getrusage(resource.RUSAGE_SELF).ru_utime
    try:
        read_image(content)
        given = "read"
    except ValueError:
        given = "refused"
    seconds, memory = resource.getrusage(resource.RUSAGE_SELF).ru_utime - used, peak() - before
    sys.__stderr__.write(f"{seconds:.2f} s, {memory:.0f} MiB, {len(content) >> 10} KiB: {kind}, {given}\n")
    os._exit(0 if given == ("read" if reason is None else "refused") and (given == "read" or memory < 300) else 1)


@pytest.mark.parametrize("place", [2**63, 2**64 - 1])
def test_a_place_beyond_all_memory_in_a_tiff_is_refused(place):
    far = place.to_bytes(8, "little")
    entry = struct.pack("<QHHQ", 1, 256, 16, 2)
    for content in (b"II+\0\x08\0\0\0" + far, b"II+\0\x08\0\0\0" + struct.pack("<Q", 16) + entry + far):
        with pytest.raises(ValueError, match=r"TIFF|cannot be read"):
            read_image(content + bytes(64))

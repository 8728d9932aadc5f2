"""Files are written whole or not at all; sizes are bounded; small files are read with limits."""

import errno
import io
import itertools
import json
import os
import signal
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from limits import wait_until
from PIL import Image, PngImagePlugin

from controlnet_ext.files.disk import open_regular_file, read_json, write_atomically
from controlnet_ext.files.image_formats import compute_working_size
from controlnet_ext.files.image_reader import read_image
from controlnet_ext.files.image_writer import read_png_text, write_image

RGB = np.random.default_rng(1).integers(0, 256, (20, 30, 3), np.uint8)


def test_a_file_is_written_at_once_or_in_parts(tmp_path):
    write_atomically(tmp_path / "at once", b"abc")
    write_atomically(tmp_path / "parts", (part for part in (b"a", memoryview(b"bc"), b"")))
    assert (tmp_path / "at once").read_bytes() == (tmp_path / "parts").read_bytes() == b"abc"
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "parts").stat().st_mode == (tmp_path / "plain").stat().st_mode  # as the umask says


def test_an_existing_file_is_replaced_only_when_asked(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(FileExistsError, match="exists already"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    write_atomically(path, b"new", overwrite=True)
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["a"]


def test_a_file_that_comes_while_writing_is_not_replaced(tmp_path):
    path = tmp_path / "a"

    def parts():
        yield b"mine"
        path.write_bytes(b"another's")

    with pytest.raises(FileExistsError, match="exists already"):
        write_atomically(path, parts())
    assert path.read_bytes() == b"another's" and os.listdir(tmp_path) == ["a"]


def test_a_file_system_without_links_is_written_to_as_well(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    write_atomically(tmp_path / "a", b"abc")
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "a", b"def")
    assert (tmp_path / "a").read_bytes() == b"abc" and os.listdir(tmp_path) == ["a"]


def test_a_link_without_target_is_not_written_through(tmp_path):
    os.symlink(tmp_path / "elsewhere", tmp_path / "link")
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "link", b"abc")
    assert os.listdir(tmp_path) == ["link"]


def write_failing_at(path, overwrite, number, failure, monkeypatch):
    """Write `abcdefg`, two bytes at a time, with the system call of that number failing. Returns how many were made."""
    count = itertools.count()

    def failing(name, call):
        def wrapped(*given, **named):
            if next(count) == number:
                raise failure
            return call(given[0], bytes(given[1])[:2]) if name == "write" else call(*given, **named)

        return wrapped

    with monkeypatch.context() as patch:
        for name in ("open", "write", "fsync", "replace", "link"):
            patch.setattr(os, name, failing(name, getattr(os, name)))
        write_atomically(path, [b"abc", b"defg"], overwrite)
    return next(count)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "failure", [OSError(errno.ENOSPC, "No space left"), OSError(errno.EIO, "I/O"), KeyboardInterrupt()]
)
def test_whichever_call_fails_nothing_is_left_behind(overwrite, failure, tmp_path, monkeypatch):
    calls = write_failing_at(tmp_path / "a", overwrite, None, failure, monkeypatch)
    assert (tmp_path / "a").read_bytes() == b"abcdefg"
    assert calls == 9  # open, write four times, fsync, link or replace, and the folder: open, fsync
    for number in range(calls):
        path = tmp_path / str(number) / "a"
        path.parent.mkdir()
        if overwrite:
            path.write_bytes(b"old")
        if number == 6 and not overwrite and isinstance(failure, OSError):  # no link: a rename does it
            write_failing_at(path, overwrite, number, failure, monkeypatch)
            assert path.read_bytes() == b"abcdefg"
            continue
        with pytest.raises(type(failure)) as caught:
            write_failing_at(path, overwrite, number, failure, monkeypatch)
        if isinstance(failure, OSError):
            assert caught.value.errno == failure.errno and repr(str(path)) in str(caught.value)
        left = {entry.name: entry.read_bytes() for entry in path.parent.iterdir()}
        assert left == ({"a": b"abcdefg" if number > 6 else b"old"} if overwrite else {})


def test_an_interruption_of_the_removal_leaves_nothing(tmp_path, monkeypatch):
    unlink, interrupted = os.unlink, []

    def interrupt_once(*given, **named):
        if not interrupted:
            interrupted.append(given)
            raise KeyboardInterrupt
        unlink(*given, **named)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "unlink", interrupt_once)
        write_atomically(tmp_path / "a", b"abc")
    assert len(interrupted) == 1 and os.listdir(tmp_path) == ["a"]


def test_a_failure_in_what_is_written_leaves_nothing(tmp_path):
    def parts():
        yield b"abc"
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        write_atomically(tmp_path / "a", parts())
    assert os.listdir(tmp_path) == []


def named(folder):
    return [path for path in folder.iterdir() if path.suffix != ".part"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_after_kill_9_a_name_stands_for_a_whole_file(tmp_path):
    program = f"""
import itertools
from controlnet_ext.files.disk import write_atomically
print(flush=True)
for i in itertools.count():
    write_atomically({str(tmp_path)!r} + f"/{{i % 40}}", [bytes([i % 256]) * 50000] * 8, overwrite=True)
"""
    for count in (1, 7, 30):
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            wait_until(lambda count=count: len(named(tmp_path)) >= count, process)
            process.kill()
        assert all(len(path.read_bytes()) == 400000 and len(set(path.read_bytes())) == 1 for path in named(tmp_path))


def test_where_nothing_can_be_written_one_line_says_so(tmp_path):
    for path, reason in (
        (tmp_path, "is a folder"),
        (tmp_path / "no" / "a", "is not a folder"),
        (tmp_path / ("x" * 300), "too long"),
        (tmp_path / "a\0b", "null"),
    ):
        with pytest.raises((OSError, ValueError), match=reason) as caught:
            write_atomically(path, b"abc")
        assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_images_come_back_from_png_and_webp_as_they_were_written(tmp_path):
    for name in ("a.png", "a.WebP"):
        write_image(tmp_path / name, RGB)
        assert (read_image(tmp_path / name) == RGB).all()
    write_image(tmp_path / "grey.png", RGB[..., 0])
    assert Image.open(tmp_path / "grey.png").mode == "L"
    assert (read_image(tmp_path / "grey.png") == RGB[..., :1]).all()
    deep = RGB[..., 0].astype(np.uint16) * 257 + 3
    write_image(tmp_path / "deep.png", deep)
    assert (np.array(Image.open(tmp_path / "deep.png")) == deep).all()
    smooth = np.full((20, 30, 3), (200, 100, 50), np.uint8)
    for name in ("a.jpg", "a.JPEG"):
        write_image(tmp_path / name, smooth)
        assert np.abs(read_image(tmp_path / name).astype(int) - smooth).max() <= 2
    with pytest.raises(FileExistsError):
        write_image(tmp_path / "a.png", RGB)
    write_image(tmp_path / "a.png", RGB[::-1], overwrite=True)
    assert (read_image(tmp_path / "a.png") == RGB[::-1]).all()


@pytest.mark.parametrize(
    ("name", "pixels", "reason"),
    [
        ("a.bmp", RGB, "ends in '.bmp', expected one of .png"),
        ("a", RGB, "ends in ''"),
        ("a.png", RGB / 255, "of float64 cannot be written"),
        ("a.png", RGB[..., :2], r"array \(20, 30, 2\)"),
        ("a.png", np.dstack([RGB, RGB[..., 0]]), r"array \(20, 30, 4\)"),
        ("a.png", RGB[:0], r"array \(0, 30, 3\)"),
        ("a.jpg", RGB[..., 0].astype(np.uint16), "of uint16 cannot be written"),
        ("a.webp", np.zeros((1, 20000), np.uint8), "20000x1 pixels cannot be written"),
        ("a.jpg", np.zeros((70000, 1, 3), np.uint8), "1x70000 pixels cannot be written"),
    ],
)
def test_what_cannot_be_written_is_refused_in_one_line(name, pixels, reason, tmp_path):
    with pytest.raises(ValueError, match=reason) as caught:
        write_image(tmp_path / name, pixels)
    assert "\n" not in str(caught.value) and os.listdir(tmp_path) == []


TEXTS = {
    "parameters": "a cat\nSteps: 20",
    "recipe": json.dumps({"seed": 1}) * 1000,
    "Název": "žluťoučký 猫",
    "empty": "",
}


def test_a_png_carries_text_that_we_and_pillow_read(tmp_path):
    path = tmp_path / "a.png"
    write_image(path, RGB, TEXTS)
    assert read_png_text(path) == TEXTS
    with Image.open(path) as image:
        image.load()
        assert image.text == TEXTS
    assert (read_image(path) == RGB).all()
    assert path.stat().st_size < 4000  # compressed; the pixels are 1800 bytes of noise
    write_image(tmp_path / "plain.png", RGB)
    assert read_png_text(tmp_path / "plain.png") == {}


def test_texts_that_pillow_wrote_are_read(tmp_path):
    notes = PngImagePlugin.PngInfo()
    notes.add_text("plain", "caf\xe9")
    notes.add_text("packed", "x" * 5000, zip=True)
    notes.add_itxt("utf-8", "猫", lang="ja", tkey="猫")
    Image.fromarray(RGB).save(tmp_path / "a.png", pnginfo=notes)
    assert read_png_text(tmp_path / "a.png") == {"plain": "caf\xe9", "packed": "x" * 5000, "utf-8": "猫"}


def with_chunk(name, content):
    stream = io.BytesIO()
    Image.fromarray(RGB).save(stream, "PNG")
    whole = stream.getvalue()
    chunk = name + content
    return whole[:33] + struct.pack(">I", len(content)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + whole[33:]


def hostile_texts():
    packed = zlib.compress(bytes(2**20 + 1))
    yield "over 1 MiB", with_chunk(b"zTXt", b"bomb\0\0" + packed), "'bomb' is over 1048576 bytes"
    yield "over 1 MiB, iTXt", with_chunk(b"iTXt", b"bomb\0\1\0\0\0" + packed), "is over 1048576 bytes"
    yield "over 1 MiB, plain", with_chunk(b"tEXt", b"bomb\0" + bytes(2**20 + 1)), "is over 1048576 bytes"
    yield "cut inside", with_chunk(b"zTXt", b"a\0\0" + zlib.compress(b"abc")[:-5]), "'a' is cut short"
    yield "not zlib", with_chunk(b"zTXt", b"a\0\0junk"), "broken text"
    yield "not UTF-8", with_chunk(b"iTXt", b"a\0\0\0\0\0\xff\xfe"), "broken text"
    yield "no keyword", with_chunk(b"tEXt", b"a"), "no keyword"
    yield "cut", with_chunk(b"tEXt", b"a\0b")[:-20], "cut short or damaged"
    yield "no PNG", b"GIF89a", "is not a PNG"
    yield "nothing", b"", "is not a PNG"


@pytest.mark.parametrize(("content", "reason"), [pytest.param(*rest, id=name) for name, *rest in hostile_texts()])
def test_hostile_texts_are_refused_in_one_line(content, reason, tmp_path):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=reason) as caught:
        read_png_text(tmp_path / "a.png")
    assert "\n" not in str(caught.value)


def test_a_png_may_be_long(tmp_path):
    write_image(tmp_path / "a.png", np.zeros((1, 10**6), np.uint8))
    assert Image.open(tmp_path / "a.png").size == (10**6, 1)


def test_a_text_given_twice_is_refused(tmp_path):
    write_image(tmp_path / "b.png", RGB, {"seed": "1"})
    one = (tmp_path / "b.png").read_bytes()
    length = int.from_bytes(one[33:37], "big") + 12
    (tmp_path / "b.png").write_bytes(one[: 33 + length] + one[33:])
    with pytest.raises(ValueError, match="two texts 'seed'"):
        read_png_text(tmp_path / "b.png")


@pytest.mark.parametrize("keyword", ["", "x" * 80, "猫", "a\0b", " a", "a\nb"])
def test_keywords_that_png_does_not_know_are_refused(keyword, tmp_path):
    with pytest.raises(ValueError, match="not a keyword of PNG"):
        write_image(tmp_path / "a.png", RGB, {keyword: "text"})
    assert os.listdir(tmp_path) == []


def test_text_is_refused_where_it_does_not_fit(tmp_path):
    with pytest.raises(ValueError, match="split it over several keywords"):
        write_image(tmp_path / "a.png", RGB, {"long": "x" * (2**20 + 1)})
    with pytest.raises(ValueError, match=r"only a \.png can"):
        write_image(tmp_path / "a.jpg", RGB, {"a": "b"})
    assert os.listdir(tmp_path) == []


def test_a_configuration_is_read_and_anything_else_refused(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"a": [1, 2.5, null, "ž"]}', encoding="utf-8")
    assert read_json(path) == {"a": [1, 2.5, None, "ž"]}
    for content, reason in (
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[1]", "holds a JSON list"),
        (b'{"a": 1, "a": 2}', "a key is given twice"),
        (b"\xff{}", "not valid JSON"),
        (b"[" * 500000, "nests its JSON too deeply"),
        (b'{"a": ' * 101 + b"[]" + b"}" * 101, "nests its JSON too deeply, expected up to 100 levels"),
        (b'{"a": 1' + b"0" * 9999 + b"}", "not valid JSON: an integer has 10000 digits, expected up to 300"),
        (b"{}" + b" " * 2**20, "over 1048576 bytes"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=reason) as caught:
            read_json(path)
        assert repr(str(path)) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_json(tmp_path / "no.json")


@pytest.mark.parametrize(
    ("height", "width", "resolution", "wanted"),
    [
        (768, 1024, 512, (512, 683)),
        (1024, 768, 512, (683, 512)),
        (512, 512, 512, (512, 512)),
        (100, 100, 64, (64, 64)),
        (3, 300, 64, (64, 6400)),
        (8192, 8192, 8192, (8192, 8192)),
    ],
)
def test_the_short_side_becomes_the_resolution(height, width, resolution, wanted):
    assert compute_working_size(height, width, resolution) == wanted


@pytest.mark.parametrize(
    ("height", "width", "resolution"),
    [(3, 10000, 512), (10000, 3, 512), (1, 65535, 64), (8192, 8193, 8192), (1, 70000, 1)],
)
def test_a_working_size_that_asks_for_gigabytes_is_refused(height, width, resolution):
    with pytest.raises(ValueError, match="lower the resolution or crop") as caught:
        compute_working_size(height, width, resolution)
    assert f"{width}x{height} at resolution {resolution}" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("height", "width", "resolution"), [(0, 9, 512), (9, 9, 0), (9, 9, -1)])
def test_sizes_begin_at_one(height, width, resolution):
    with pytest.raises(ValueError, match="sizes begin at 1"):
        compute_working_size(height, width, resolution)


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_a_png_of_grey_pixels_has_one_channel_and_reads_the_same(tmp_path, suffix):
    grey = np.repeat(np.random.default_rng(0).integers(0, 256, (20, 30, 1), np.uint8), 3, axis=2)
    last = grey.copy()
    last[-1, -1, 2] ^= 1
    for pixels, mode in ((grey, "L" if suffix == ".png" else "RGB"), (last, "RGB")):
        write_image(tmp_path / f"map{suffix}", pixels, overwrite=True)
        assert Image.open(tmp_path / f"map{suffix}").mode == mode
        assert np.array_equal(read_image(tmp_path / f"map{suffix}"), pixels)


def test_a_png_of_black_and_white_reads_the_same_and_has_8_bits(tmp_path):
    for size in ((1, 1), (37, 53)):
        edges = np.random.default_rng(0).integers(0, 2, size, np.uint8) * 255
        for pixels in (edges, np.repeat(edges[..., None], 3, axis=2)):
            write_image(tmp_path / "edges.png", pixels, overwrite=True)
            assert Image.open(tmp_path / "edges.png").mode == "L"  # of one bit, Pillow makes arrays of bool
            assert (read_image(tmp_path / "edges.png") == edges[..., None]).all()


def test_a_file_of_the_system_that_says_it_is_empty_is_not_read(tmp_path):
    """Reading /proc/kmsg waits for the next message of the kernel, /proc/kcore never ends."""
    for path in ("/proc/kmsg", "/proc/self/environ"):
        if os.path.exists(path) and os.access(path, os.R_OK):
            with open_regular_file(path) as file:
                assert file.read() == b""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_name_that_becomes_a_pipe_after_it_was_looked_at_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"1")
    regular = os.stat(tmp_path / "a")
    os.mkfifo(tmp_path / "b")
    monkeypatch.setattr(os, "stat", lambda *_, **__: regular)
    with pytest.raises(ValueError, match="is a pipe or a device, expected a file"), open_regular_file(tmp_path / "b"):
        pass

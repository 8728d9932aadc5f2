"""Shards, tables and videos of strangers are read in time and memory bounded by their bytes."""

import bz2
import gzip
import lzma
import os
import tarfile

import numpy as np
import pytest
from limits import limit_cpu

from controlnet_ext.batch.formats import tables, tars, videos
from controlnet_ext.batch.formats.tars import TarSource, encode_end, encode_member
from controlnet_ext.batch.formats.videos import VideoSource
from controlnet_ext.files.image_writer import encode_image

PNG = encode_image("a.png", np.zeros((8, 8, 3), np.uint8))
MB = 2**20


def pax_header(size, content=b""):
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, size
    return info.tobuf(tarfile.GNU_FORMAT) + content


def negative_size():
    header = bytearray(encode_member("a.png", b"")[:512])
    header[124:136] = b"\xff" * 10 + b"\xf0\x00"  # base 256: -4096
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def sparse():
    info = tarfile.TarInfo("a.png")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:398], header[398:410], header[483:495] = b"00000000000\0", b"00000001000\0", b"77777777777\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(512)


HOSTILE_TARS = {
    "a packed gigabyte": (lambda: gzip.compress(encode_member("a.txt", bytes(20 * MB)), 1), "unpacks into over"),
    "packed empty members": (lambda: gzip.compress(encode_member("a.txt", b"") * 20_000), r"over \d+ members"),
    "a long header": (lambda: pax_header(2**32), "a header of 4294967296 bytes, over the limit of 65536"),
    "headers in headers": (lambda: pax_header(0) * 5000, "recursion"),
    "a member of fewer than no bytes": (negative_size, "a member of -4096 bytes"),
    "a sparse member": (sparse, "a sparse file"),
}


@pytest.mark.parametrize("kind", HOSTILE_TARS)
def test_a_hostile_shard_ends_in_one_line(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(tars, "FREE_BYTES", 12 * MB)
    make, reason = HOSTILE_TARS[kind]
    first = encode_member("0.png", PNG)
    content = make()
    content = gzip.compress(first) + content if content[:2] == b"\x1f\x8b" else first + content
    (tmp_path / "a.tar").write_bytes(content + bytes(1024))
    with limit_cpu(10):
        images = list(TarSource(str(tmp_path / "a.tar")).iter_images(0))
    assert images[0].content == PNG and len(images) <= 2 + (kind == "a packed gigabyte")
    with pytest.raises(ValueError, match=reason) as caught:
        raise images[-1].content
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_a_packed_shard_gives_the_samples_of_a_plain_one(pack, tmp_path):
    rng = np.random.default_rng(0)
    files = [(f"{i}.png", rng.bytes(512 * (i % 3) + i)) for i in range(50)]
    files += [("long/" + "n" * 200 + ".png", PNG)]
    content = b"".join(encode_member(*each) for each in files)
    (tmp_path / "a.tar").write_bytes(pack(content + encode_end(len(content))))
    images = list(TarSource(str(tmp_path / "a.tar")).iter_images(0))
    assert [(f"{image.key}.png", image.content) for image in images] == files
    assert [image.key for image in TarSource(str(tmp_path / "a.tar")).iter_images(49)] == ["49", "long/" + "n" * 200]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_container_that_is_a_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "a")
    path = str(tmp_path / "a")
    for source in (TarSource(path), VideoSource(path)):
        (image,) = source.iter_images(0)
        with pytest.raises(ValueError, match="is a pipe or a device"):
            raise image.content
    pytest.importorskip("pyarrow")
    with pytest.raises(ValueError, match="is a pipe or a device"):
        len(tables.ParquetSource(path))


def parquet(path, values, **options):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table({"image": pa.array(values, pa.binary())}), path, **options)
    return tables.ParquetSource(str(path))


@pytest.mark.parametrize("options", [{"use_dictionary": False}, {"use_dictionary": True}])
def test_a_batch_of_a_table_is_bounded_by_bytes(options, tmp_path, monkeypatch):
    """Of a dictionary, which holds a value once, each row is as large as the whole."""
    monkeypatch.setattr(tables, "BATCH_BYTES", 100_000)
    large = np.random.default_rng(0).bytes(30_000)
    for values, rows in (([large] * 100, 3), ([b"a"] * 200, 64)):
        source, sizes = parquet(tmp_path / "a.parquet", values, **options), []
        iterate = tables.iter_table_batches

        def counting(*given, iterate=iterate, sizes=sizes):
            for batch in iterate(*given):
                sizes.append(batch.num_rows)
                yield batch

        with monkeypatch.context() as patch:
            patch.setattr(tables, "iter_table_batches", counting)
            assert [image.content for image in source.iter_images(0)] == values
        assert max(sizes) <= (rows if options["use_dictionary"] or rows > 3 else 1)


def test_a_table_that_unpacks_into_far_more_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "FREE_BYTES", MB)
    monkeypatch.setattr(tables, "FREE_ROWS", 100)
    source = parquet(tmp_path / "a.parquet", [bytes(4 * MB)], compression="zstd", use_dictionary=False)
    (image,) = source.iter_images(0)
    with pytest.raises(ValueError, match=r"a column 'image' that unpacks into \d+ bytes, over the limit of \d+"):
        raise image.content
    source = parquet(tmp_path / "b.parquet", [PNG] * 20_000)
    (image,) = source.iter_images(0)
    with pytest.raises(ValueError, match="20000 rows in"):
        raise image.content


def test_a_damaged_page_of_a_table_is_an_error_of_its_place(tmp_path):
    source = parquet(tmp_path / "a.parquet", [PNG] * 3, compression="none", use_dictionary=False)
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[4:12] = b"\xff" * 8
    (tmp_path / "a.parquet").write_bytes(content)
    (image,) = source.iter_images(0)
    with pytest.raises(ValueError, match="is broken after 0 rows") as caught:
        raise image.content
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"#EXTM3U\n#EXTINF:1\nfile:///etc/passwd\n", b"ffconcat version 1.0\nfile /etc/passwd\n", b"P6 1 1 255\n"],
)
def test_a_playlist_is_no_video(content, tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(content)
    monkeypatch.setattr(videos.cv2, "VideoCapture", lambda *_: pytest.fail("FFmpeg saw it"))
    (image,) = VideoSource(str(tmp_path / "a.mp4")).iter_images(0)
    assert len(VideoSource(str(tmp_path / "a.mp4"))) == 0
    with pytest.raises(ValueError, match=r"a\.mp4' is no video that is read here: it begins with b'"):
        raise image.content

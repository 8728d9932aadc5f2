"""`controlnet-ext preprocess` of what holds images: shards of WebDataset, videos, lists and tables."""

import errno
import io
import json
import os
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from controlnet_ext.preprocessors import preprocess
from killing import contents, killed_often

from controlnet_ext import cli
from controlnet_ext.batch.formats import journal as box
from controlnet_ext.batch.formats import tars
from controlnet_ext.batch.results import RECORD_NAME
from controlnet_ext.files.image_reader import read_image
from controlnet_ext.files.image_writer import encode_image, write_image

rng = np.random.default_rng(0)
IMAGES = [cv2.resize(rng.integers(0, 256, (8, 8, 3), np.uint8), (65, 61)) for _ in range(9)]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(words):
    return cli.main(["preprocess", *words.split()])


def shard(path, samples):
    with tarfile.open(path, "w") as tar:
        for name, content in samples:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def samples():
    for i, pixels in enumerate(IMAGES):
        yield f"part/{i:05}.json", b"{}"
        yield f"part/{i:05}.jpg", encode_image("x.jpg", pixels)
        yield f"part/{i:05}.seg.png", b"another field"


def members(path):
    with tarfile.open(path) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}


def errors(out):
    return [json.loads(line) for line in Path(f"{out}.job/errors.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_shard_becomes_a_shard_with_the_same_keys_and_the_maps(jobs):
    shard("a.tar", samples())
    assert run(f"canny,invert a.tar -o maps/ --jobs {jobs}") == 0
    assert sorted(os.listdir("maps")) == [RECORD_NAME, "a.tar"] and sorted(os.listdir()) == ["a.tar", "maps"]
    made = members("maps/a.tar")
    keys = [f"part/{i:05}" for i in range(9)]
    assert list(made) == [f"{key}.{name}.png" for key in keys for name in ("canny", "invert")]
    with tarfile.open("a.tar") as tar:
        jpeg = tar.extractfile("part/00004.jpg").read()
    assert np.array_equal(read_image(made["part/00004.canny.png"]), preprocess("canny", jpeg).pixels)
    assert run(f"canny,invert a.tar -o again.tar --jobs {3 - jobs}") == 0
    assert Path("again.tar").read_bytes() == Path("maps/a.tar").read_bytes()


def test_a_written_member_and_end_are_those_that_tarfile_writes():
    files = [("a.png", b"1" * 700), ("p" * 120 + "/猫.png", b""), ("b.json", bytes(512))]
    shard("theirs.tar", files)
    content = b"".join(tars.encode_member(name, content) for name, content in files)
    assert content + tars.encode_end(len(content)) == Path("theirs.tar").read_bytes()


def test_several_shards_are_taken_in_turn_by_the_shards_of_a_job():
    for name in "abc":
        shard(f"{name}.tar", list(samples())[:6])
    assert run("invert *.tar -o whole") == 0
    assert run("invert *.tar -o parts --shard 1/2") == 0 and len(os.listdir("parts")) in (1, 2)
    assert run("invert *.tar -o parts --shard 2/2") == 0
    for name in "abc":
        assert Path(f"parts/{name}.tar").read_bytes() == Path(f"whole/{name}.tar").read_bytes()


def test_bad_samples_and_a_shard_that_breaks_off_are_errors_and_the_others_are_done():
    bad = [("b.png", b"no image"), ("c.txt", b"no field"), ("d.png", encode_image("x.png", IMAGES[0]))]
    shard("a.tar", [*list(samples())[:3], *bad])
    whole = Path("a.tar").read_bytes()
    shard("b.tar", samples())
    Path("b.tar").write_bytes(Path("b.tar").read_bytes()[:7000])
    for _ in range(2):  # again, they are still told
        assert run("invert a.tar b.tar -o maps") == 1
        assert list(members("maps/a.tar")) == ["part/00000.invert.png", "d.invert.png"]
        told = errors("maps")
        assert [row["path"] for row in told] == ["a.tar/b", "a.tar/c", "b.tar"]
        assert "broken after" in told[2]["error"] and "txt" in told[1]["error"]
    assert Path("a.tar").read_bytes() == whole


def full(monkeypatch, after):
    """A disk on which so many members go."""
    real, count = box.encode_member, iter(range(after))

    def member(*arguments):
        if next(count, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    monkeypatch.setattr(box, "encode_member", member)


@pytest.mark.parametrize("harm", ["nothing", "half a member", "a cut journal", "lost bytes"])
def test_a_shard_interrupted_anywhere_goes_on_to_the_same_bytes(harm, monkeypatch):
    shard("a.tar", [("bad.png", b"no image"), *samples()])
    assert run("canny,invert a.tar -o whole/") == 1
    with monkeypatch.context() as patch:
        full(patch, 7)
        assert run("canny,invert a.tar -o maps/") == 1
    [part] = [path for path in Path("maps").iterdir() if path.name.endswith(".box")]
    journal = Path("maps.job/0.journal")
    if harm == "half a member":
        part.write_bytes(part.read_bytes() + b"half")
    elif harm == "a cut journal":
        journal.write_bytes(journal.read_bytes()[:-3])
    elif harm == "lost bytes":
        content = bytearray(part.read_bytes())
        content[-600:-500] = bytes(100)
        part.write_bytes(content)
    assert run("canny,invert a.tar -o maps/") == 1
    assert os.listdir("maps") == ["a.tar"]
    assert Path("maps/a.tar").read_bytes() == Path("whole/a.tar").read_bytes()
    assert errors("maps") == errors("whole") and len(errors("maps")) == 1


@pytest.mark.long
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_shard_killed_forty_times_is_the_same():
    shard("a.tar", [(f"{i:05}.jpg", encode_image("x.jpg", IMAGES[i % 9])) for i in range(2000)])
    assert run("canny,invert a.tar -o whole/") == 0
    kills, jobs = killed_often("canny,invert a.tar -o", "maps/", 40, lambda: contents("maps") == contents("whole"))
    print(f"{kills} kills, {jobs} jobs to their end")
    assert sorted(os.listdir()) == ["a.tar", "whole"]


def video(path, size=(65, 61), frames=9):
    writer = cv2.VideoWriter(path, cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), 12.5, (64, 60))
    for i in range(frames):
        writer.write(cv2.resize(IMAGES[i % 9], (64, 60)))
    writer.release()


def frames(path):
    found = cv2.VideoCapture(path, cv2.CAP_FFMPEG)
    rate, frames = found.get(cv2.CAP_PROP_FPS), []
    while (read := found.read())[0]:
        frames.append(read[1][..., ::-1])
    return rate, frames


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_a_video_becomes_a_video_with_its_frames_and_rate(suffix):
    video("in.mp4")
    _, given = frames("in.mp4")
    assert run(f"invert in.mp4 -o out{suffix}") == 0
    rate, made = frames(f"out{suffix}")
    assert rate == 12.5 and len(made) == 9 and sorted(os.listdir()) == ["in.mp4", f"out{suffix}"]
    loss = max(np.abs(a.astype(int) - (255 - b)).mean() for a, b in zip(made, given, strict=True))
    assert loss < (1 if suffix == ".avi" else 20)  # MPEG-4 loses most in images as small as these


def test_several_maps_of_a_video_are_several_videos_also_after_an_interruption(monkeypatch):
    video("in.mp4")
    assert run("canny,invert in.mp4 -o whole --resolution 67") == 0
    with monkeypatch.context() as patch:
        full(patch, 7)
        assert run("canny,invert in.mp4 -o maps --resolution 67 --jobs 2") == 1
    assert run("canny,invert in.mp4 -o maps --resolution 67 --jobs 2") == 0
    assert sorted(os.listdir("maps")) == [RECORD_NAME, "in_canny.mp4", "in_invert.mp4"]
    for name in ("in_canny.mp4", "in_invert.mp4"):
        assert Path("maps", name).read_bytes() == Path("whole", name).read_bytes()
    assert frames("maps/in_canny.mp4")[1][0].shape == (68, 72, 3)  # even


def test_what_is_no_video_or_tar_is_an_error_and_the_only_one_a_refusal(capfd):
    Path("in.mp4").write_bytes(b"no video")
    Path("in.tar").write_bytes(b"no tar")
    for only in ("in.mp4", "in.tar"):
        assert run(f"invert {only} -o maps/") == 2 and not Path("maps").exists()
        assert repr(only) in capfd.readouterr().err.splitlines()[-1]
    assert run("invert in.mp4 in.tar -o maps/") == 1
    assert [row["path"] for row in errors("maps")] == ["in.mp4", "in.tar"]


def test_a_list_becomes_the_same_rows_with_the_places_of_their_maps(capsys):
    Path("data/b").mkdir(parents=True)
    for i in range(3):
        write_image(f"data/b/{i}.png", IMAGES[i])
    rows = [{"file_name": f"b/{i}.png", "text": "猫"} for i in range(3)] + [{"path": "b/0.png", "key": "own"}]
    Path("data/list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"path": "b/no.png"}]))
    assert run("canny,invert data/list.jsonl -o maps") == 1
    made = [json.loads(line) for line in Path("maps/list.jsonl").read_text().splitlines()]
    keys = ["b/0", "b/1", "b/2", "own"]
    moved = [row | {name: f"../data/{row[name]}" for name in ("file_name", "path") if name in row} for row in rows]
    maps = [{"key": key} | {name: f"{key}_{name}.png" for name in ("canny", "invert")} for key in keys]
    expected = [row | more for row, more in zip(moved, maps, strict=True)]
    assert made == [*expected, {"path": "../data/b/no.png", "key": "b/no"}]
    assert run("invert maps/list.jsonl -o again") == 1  # the list holds where it lies
    assert np.array_equal(read_image("again/b/2_invert.png"), 255 - IMAGES[2])
    assert np.array_equal(read_image("maps/own_invert.png"), 255 - IMAGES[0])
    for row in ({"path": "../x.png"}, {"path": "b/0.png", "key": "/etc/x"}, {"text": "no path"}):
        Path("data/bad.jsonl").write_text(json.dumps(row) + "\n")
        assert run("canny data/bad.jsonl -o other") == 2
        assert "line 1 of 'data/bad.jsonl'" in capsys.readouterr().err and not Path("other").exists()


def test_a_table_becomes_the_same_rows_with_their_maps():
    pa = pytest.importorskip("pyarrow", reason="a .parquet file needs pyarrow")
    import pyarrow.parquet as pq

    content = [encode_image("x.png", pixels) for pixels in IMAGES]
    table = {"id": list(range(9)), "image": [{"bytes": c, "path": None} for c in content]}
    table["image"][4] = {"bytes": b"no image", "path": None}
    pq.write_table(pa.table(table), "in.parquet")
    assert run("canny,invert in.parquet -o maps --jobs 2") == 1
    made = pq.read_table("maps/in.parquet").to_pylist()
    assert [list(row) for row in made] == [["id", "canny", "invert"]] * 9 and [row["id"] for row in made] == [*range(9)]
    assert made[4]["canny"] is None and np.array_equal(read_image(made[8]["invert"]), 255 - IMAGES[8])
    assert errors("maps")[0]["path"] == "in.parquet/4"
    pq.write_table(pa.table({"path": ["x.png"], "text": ["y"]}), "paths.parquet")
    write_image("x.png", IMAGES[0])
    assert run("invert paths.parquet -o maps.parquet") == 0
    [row] = pq.read_table("maps.parquet").to_pylist()
    assert row["path"] == "x.png" and np.array_equal(read_image(row["invert"]), 255 - IMAGES[0])


def test_without_pyarrow_a_table_is_refused_in_one_line(monkeypatch, capsys):
    Path("in.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    assert run("canny in.parquet -o maps/") == 2
    assert "needs pyarrow: pip install" in capsys.readouterr().err and not Path("maps").exists()


def test_a_file_that_holds_images_becomes_one_of_its_kind(capsys):
    shard("a.tar", samples())
    for words, reason in (
        ("canny a.tar -o x.png", "expected a folder, or for one result a .tar"),
        ("canny a.tar -o -", "does not go to stdout"),
        ("canny a.tar -o ./ --overwrite", "would replace an image that is still to be read"),
        ("canny a.tar a.tar -o maps", "would be made twice"),
    ):
        assert run(words) == 2
        assert reason in capsys.readouterr().err
    assert os.listdir() == ["a.tar"]

"""The flags of `train` that name data: refused in one line before anything is loaded, and read."""

import os
from argparse import ArgumentParser

import numpy as np
import pytest
from training_sets import SIDE, encode_png, make_pixels, write_list, write_shards

from controlnet_ext.cli.training_data import (
    add_data_flags,
    check_data_names,
    list_data_settings,
    parse_map,
    read_data,
)
from controlnet_ext.training.work_folder import check_work_folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder `photos` with six images, their captions and maps in `maps`; and a list."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "maps"):
        (tmp_path / name).mkdir()
    for i in range(6):
        (tmp_path / f"photos/{i}.png").write_bytes(encode_png(make_pixels(i, 64, 64)))
        (tmp_path / f"maps/{i}.png").write_bytes(encode_png(make_pixels(100 + i, 64, 64)))
        (tmp_path / f"photos/{i}.txt").write_text(f"caption {i}")
    write_list(tmp_path / "list.jsonl", [{"a": f"photos/{i}.png", "b": f"maps/{i}.png", "c": "text"} for i in range(6)])
    write_shards(tmp_path / "shards", 2, 8)
    return tmp_path


def parse(*words):
    parser = ArgumentParser(exit_on_error=False)
    add_data_flags(parser)
    given = ["--data", "photos", "--map", "canny", "--validation", "0.3", "--workers", "0", *words]
    return parser.parse_args(given)


def read(here, *words, size=(64, 64)):
    options = parse(*words)
    check_data_names(options)
    return read_data(options, parse_map(options.map), size, 16, here / "work")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--maps", "none"], "--maps 'none' is not a folder"),
        (["--columns", "picture=a"], "expected image=A,map=B,text=C"),
        (["--workers", "-1"], r"--workers -1 is outside 0\.\.64"),
        (["--tolerate", "2"], r"--tolerate 2 is outside 0\.\.1"),
        (["--caption-dropout", "-1"], r"--caption-dropout -1 is outside 0\.\.1"),
        (["--map-dropout", "1.1"], r"--map-dropout 1\.1 is outside 0\.\.1"),
        (["--maps", "maps", "--map", "none,kind=pose", "--flip"], "--flip: the map of .* tells left from right"),
        (["--maps", "maps", "--map", "none,kind=face", "--flip"], "--flip: the map of .* tells left from right"),
        (["--data", "list.jsonl"], r"line 1: expected \{"),
        (["--data", "list.jsonl", "--columns", "image=a,map=d,text=c"], "map=d is none of its columns: a, b, c"),
        (["--data", "list.jsonl", "--maps", "maps"], "belongs to a folder of images"),
        (["--data", "shards/{00..02}.tar"], r"02\.tar' does not exist"),
        (["--data", "shards", "--maps", "maps"], "belongs to a folder of images; shards hold their maps"),
        (["--data", "shards", "--validation", "2"], "validation 2 of the shards"),
        (["--data", "scenes", "--validation", "0.1"], "scenes are square"),
        (["--data", "photos.zip"], r"is not a folder; expected one with images, a list .* shards"),
        (["--map", "none"], r"has no map: list it, name the folder of maps with --maps"),
        (["--map", "inpaint_only+lama"], r"inpaint_only\+lama needs a mask of each image"),
        (["--data", "shards", "--columns", "map=edges", "--map", "none"], "has no map among"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(here, words, says):
    with pytest.raises((ValueError, FileNotFoundError), match=says) as raised:
        read(here, *words)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "words",
    [
        ["--maps", "maps", "--map", "none,kind=depth"],
        ["--data", "list.jsonl", "--columns", "image=a,map=b,text=c"],
        ["--data", "shards", "--map", "none,kind=edges"],
        ["--data", "shards/{00..01}.tar", "--validation", "photos", "--flip", "--buckets"],
        ["--flip", "--buckets", "--crop", "random", "--caption-dropout", "0.2", "--map-dropout", "0.1"],
    ],
)
def test_data_is_read_into_two_sides(here, words):
    data = read(here, *words)
    assert len(data.held_out) >= 1 and len(data.source.measured) >= 4
    pixels, control, caption = data.held_out.read(0, SIDE, SIDE)
    assert pixels.shape == control.shape == (SIDE, SIDE, 3) and isinstance(caption, str)
    keys = [{side[i].key for i in range(len(side))} for side in (data.source.measured, data.held_out)]
    assert not keys[0] & keys[1] or "photos" in words
    is_stream = any("shards" in word for word in words)
    assert (data.source.total is None, data.source.shard_count) == (is_stream, 2 if is_stream else 0)
    assert (data.sampling.flips, data.sampling.has_buckets) == ("--flip" in words, "--buckets" in words)


def test_settings_that_change_what_is_learnt_are_those_of_the_work(here):
    assert list_data_settings(parse()) == {}
    assert list_data_settings(parse("--cache", "disk", "--tolerate", "0.5")) == {}
    given = parse("--flip", "--crop", "random", "--map-dropout", "0.1", "--columns", "image=a", "--maps", "maps")
    expected = {"crop": "random", "flip": True, "map_dropout": 0.1, "columns": "image=a", "maps": "maps"}
    assert list_data_settings(given) == expected


def test_maps_that_are_made_are_kept_in_the_folder_of_the_work(here):
    data = read(here)
    made = data.held_out.read(0, 64, 64)[1]
    (path,) = (here / "work/maps").iterdir()
    assert path.suffix == ".png" and len(path.stem) == 64
    np.testing.assert_array_equal(read(here).held_out.read(0, 64, 64)[1], made)
    read(here, "--cache", "none").held_out.read(0, 48, 48)
    assert list((here / "work/maps").iterdir()) == [path]


def test_a_work_folder_with_nothing_but_caches_is_new(here):
    parquet = pytest.importorskip("pyarrow.parquet")
    pa = pytest.importorskip("pyarrow")
    images = [encode_png(make_pixels(i, 64, 64)) for i in range(4)]
    parquet.write_table(pa.table({"image": images, "text": ["a"] * 4}), here / "set.parquet")
    (here / "work/cache").mkdir(parents=True)
    stale, fresh = (here / f"work/cache/.{name * 16}.part" for name in "ab")
    for path in (stale, fresh):
        path.touch()
    os.utime(stale, (0, 0))
    data = read(here, "--data", "set.parquet")
    assert data.source.total == 3 and not stale.exists() and fresh.exists()
    data.held_out.read(0, 64, 64)
    assert {path.name for path in (here / "work").iterdir()} == {"maps", "cache"}
    check_work_folder(here / "work", {"steps": 1})

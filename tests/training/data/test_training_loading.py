"""Batches: the same with any number of workers and processes, after any stop, and with any cache."""

import itertools
import multiprocessing
import os
import pickle
import re
import signal
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from controlnet_ext.preprocessors import preprocess
from limits import wait_until
from training_sets import (
    SIDE,
    CountingBase,
    encode_png,
    make_loading,
    make_pixels,
    make_sampling,
    write_shards,
)

from controlnet_ext.files.disk import lock_folder
from controlnet_ext.training import loading
from controlnet_ext.training.data import (
    CENTER,
    FolderDataset,
    MapMaker,
    RandomSource,
    StreamSource,
    Tolerance,
    read_examples,
)
from controlnet_ext.training.data.map_cache import CachedMapMaker, PreprocessorMaps
from controlnet_ext.training.data.rows import Columns
from controlnet_ext.training.data.shards import ShardReader, ShardStream, list_shards
from controlnet_ext.training.encoding import EncodedExamples, ExampleEncoder
from controlnet_ext.training.loading import ExampleReader, Request, TrainingBatches


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Seven images with captions."""
    folder = tmp_path_factory.mktemp("images")
    for i in range(7):
        (folder / f"{i}.png").write_bytes(encode_png(make_pixels(i, SIDE, SIDE + 8)))
        (folder / f"{i}.txt").write_text(f"caption {i}")
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"), 3, 6)


def make_source(path, maps=None):
    if path.suffix == ".tar":
        stream = ShardStream(tuple(list_shards(str(path))), ShardReader(Columns(), 0.0), 5)
        return StreamSource(stream, FolderDataset((), MapMaker(None)))
    return RandomSource(FolderDataset(read_examples(path), maps or MapMaker(lambda pixels: 255 - pixels)))


SAMPLING = make_sampling(is_random_crop=True, flips=True, caption_dropout=0.3, map_dropout=0.2)


def make_batches(source, base=None, batch=3, **loading):
    settings = make_loading(**loading)
    encoder = ExampleEncoder(base or CountingBase(), settings)
    return TrainingBatches(source, encoder, SAMPLING, settings, batch, seed=4)


def take(batches, count, first_step=0, **process):
    iterator = batches.iterate(first_step, 2, **process)
    found = list(itertools.islice(iterator, count))
    iterator.close()
    return found


def are_equal(one, other):
    return (
        one.names == other.names
        and torch.equal(one.latents, other.latents)
        and torch.equal(one.context, other.context)
        and np.array_equal(one.maps, other.maps)
    )


@pytest.fixture(params=["images", "shards"])
def path(request, folder, shards):
    return folder if request.param == "images" else shards


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_are_equal_with_any_number_of_workers(path, workers):
    expected = take(make_batches(make_source(path)), 8)
    found = take(make_batches(make_source(path), workers=workers), 8)
    assert all(map(are_equal, expected, found))
    assert len({name for batch in expected for name in batch.names}) > 5


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_go_on_after_a_stop_as_without_it(path, workers):
    expected = take(make_batches(make_source(path)), 12)
    assert all(map(are_equal, expected[6:], take(make_batches(make_source(path), workers=workers), 6, first_step=3)))


def test_two_processes_have_the_rows_of_one_with_twice_the_batch(path):
    whole = take(make_batches(make_source(path), batch=4), 6)
    parts = [take(make_batches(make_source(path), batch=2), 6, rank=rank, ranks=2) for rank in (0, 1)]
    for one, even, odd in zip(whole, *parts, strict=True):
        assert torch.equal(one.latents[0::2], even.latents) and torch.equal(one.latents[1::2], odd.latents)
        assert np.array_equal(one.maps[1::2], odd.maps) and torch.equal(one.context[1::2], odd.context)
        assert one.names[0::2] == even.names


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_no_cache_changes_a_batch(path, tmp_path, cache):
    expected = take(make_batches(make_source(path)), 8)
    for _ in range(2):
        loading = {"cache": cache, "folder": tmp_path, "identity": "base"}
        assert all(map(are_equal, expected, take(make_batches(make_source(path), **loading), 8)))
    assert any(tmp_path.iterdir()) is (cache == "disk")


def test_latents_on_disk_are_made_once_and_damaged_ones_again(folder, tmp_path):
    loading = {"cache": "disk", "folder": tmp_path, "identity": "base"}
    expected = take(make_batches(make_source(folder), **loading), 3)
    base = CountingBase()
    assert all(map(are_equal, expected, take(make_batches(make_source(folder), base, **loading), 3)))
    assert base.images == base.captions == 0
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-3])
    assert all(map(are_equal, expected, take(make_batches(make_source(folder), base, workers=1, **loading), 3)))
    assert base.images > 0 and base.captions > 0
    other = take(make_batches(make_source(folder), base := CountingBase(), **{**loading, "identity": "other"}), 2)
    assert base.images > 0 and are_equal(other[0], expected[0])


def test_what_is_in_memory_is_neither_read_nor_encoded_again(folder):
    base = CountingBase()
    batches = make_batches(make_source(folder), base)
    take(batches, 100)
    images = base.images
    assert images <= 7 * 8 * 2 and base.captions == 7
    seen = []
    batches._reader = type("Reader", (), {"__getitem__": lambda self, request: seen.append(request)})()
    take(batches, 20)
    assert base.images == images and not seen


def test_a_dropped_map_is_black_and_a_dropped_caption_empty(folder):
    found = take(make_batches(make_source(folder)), 60)
    black = np.concatenate([~batch.maps.any((1, 2, 3)) for batch in found])
    empty = torch.cat([~batch.context.any(2).any(1) for batch in found])
    assert abs(black.mean() - 0.2) < 0.1 and abs(empty.float().mean() - 0.3) < 0.1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_example_is_reported_once_and_replaced(folder, tmp_path, workers):
    examples = read_examples(folder)
    broken = tmp_path / "broken.png"
    broken.write_bytes(encode_png(make_pixels(9))[:-9])
    examples = (replace(examples[0], image=broken), *examples[1:])
    lines = []
    source = RandomSource(FolderDataset(examples, MapMaker(lambda pixels: pixels)))
    found = take(make_batches(source, workers=workers, tolerance=Tolerance(0.2, lines.append)), 20)
    assert len(lines) == 1 and "broken.png' is a PNG that is cut short" in lines[0]
    assert all(len(set(batch.names)) and not any("broken" in name for name in batch.names) for batch in found)
    again = take(make_batches(source, tolerance=Tolerance(0.2, lines.append)), 10, first_step=5)
    assert all(map(are_equal, found[10:], again))
    with pytest.raises(
        ValueError, match=r"1 of 7 examples cannot be learnt from, over --tolerate 0\.1: .*broken\.png'"
    ):
        take(make_batches(source, workers=workers, tolerance=Tolerance(0.1, lines.append)), 20)


def test_a_broken_example_of_a_stream_is_replaced_alike_in_all_processes(tmp_path):
    pattern = write_shards(tmp_path, 2, 6)
    path = tmp_path / "01.tar"
    content = path.read_bytes()
    place = content.index(b"IDAT", content.index(b"007.png")) + 20
    path.write_bytes(content[:place] + bytes(40) + content[place + 40 :])
    settings = {"tolerance": Tolerance(1.0, lambda _: None)}
    whole = take(make_batches(make_source(pattern), batch=4, **settings), 12)
    assert not any("007" in name for batch in whole for name in batch.names)
    parts = [take(make_batches(make_source(pattern), batch=2, **settings), 12, rank=r, ranks=2) for r in (0, 1)]
    for one, even, odd in zip(whole, *parts, strict=True):
        assert (one.names[0::2], one.names[1::2]) == (even.names, odd.names)


def test_maps_are_made_once_and_kept_by_content(folder, tmp_path):
    made = []

    def make(pixels):
        made.append(1)
        return 255 - pixels

    maker = CachedMapMaker(make, "plain", "invert 1", tmp_path / "maps")
    plain = make_batches(make_source(folder))
    expected = take(plain, 3)
    for _ in range(2):
        assert all(map(are_equal, expected, take(make_batches(make_source(folder, maker), cache="none"), 3)))
    files = list((tmp_path / "maps").iterdir())
    assert len(made) == len(files) > 0 and {path.suffix for path in files} == {".png"}
    for path in files:
        path.write_bytes(b"damaged")
    assert all(map(are_equal, expected, take(make_batches(make_source(folder, maker), cache="none"), 3)))
    assert len(made) == 2 * len(files)
    other = CachedMapMaker(make, "plain", "invert 2", tmp_path / "maps")
    take(make_batches(make_source(folder, other), cache="none"), 1)
    assert len(made) > 2 * len(files)


def test_a_preprocessor_can_be_sent_to_another_process():
    maps = PreprocessorMaps("canny", {"low": 50})
    sent = pickle.loads(pickle.dumps(maps))
    pixels = make_pixels(3, 32, 32)
    np.testing.assert_array_equal(sent(pixels), preprocess("canny", pixels, low=50).pixels)
    assert sent.identity == maps.identity != PreprocessorMaps("canny", {"low": 60}).identity


def test_a_reader_can_be_sent_to_another_process(folder, tmp_path):
    maps = CachedMapMaker(PreprocessorMaps("canny", {}), "plain", "canny", tmp_path)
    sample = read_examples(folder)[1]
    request = Request(sample, (SIDE, SIDE), CENTER, needs_pixels=True)
    one, other = (each[request] for each in (ExampleReader(maps), pickle.loads(pickle.dumps(ExampleReader(maps)))))
    assert np.array_equal(one.pixels, other.pixels) and np.array_equal(one.map, other.map)
    assert pickle.loads(pickle.dumps(request)) == request


def test_measured_examples_are_the_middles_in_order(folder):
    dataset = make_source(folder).measured
    base = CountingBase()
    examples = EncodedExamples(dataset, ExampleEncoder(base, make_loading()), (SIDE, SIDE))
    batch = examples.load_batch([2, 0])
    assert [name.rpartition("/")[2] for name in batch.names] == ["2.png'", "0.png'"]
    middle = dataset[2].decode(SIDE, SIDE, CENTER, dataset.maps)
    assert torch.equal(batch.latents[0], base.encode_latents(middle.pixels)) and base.images == 3
    np.testing.assert_array_equal(batch.maps[0], 255 - make_pixels(2, SIDE, SIDE + 8)[:, 4:-4])
    examples.load_batch([2, 0])
    assert base.images == 3


def test_a_broken_example_is_not_measured_but_the_next_one(folder, tmp_path):
    examples = read_examples(folder)
    (tmp_path / "broken.png").write_bytes(encode_png(make_pixels(9))[:-9])
    dataset = FolderDataset((replace(examples[0], image=tmp_path / "broken.png"), *examples[1:]), lambda pixels: pixels)
    lines = []
    loading = make_loading(tolerance=Tolerance(0.2, lines.append))
    batch = EncodedExamples(dataset, ExampleEncoder(CountingBase(), loading), (SIDE, SIDE)).load_batch([0, 1, 0])
    assert [name.rpartition("/")[2] for name in batch.names] == ["1.png'"] * 3 and len(lines) == 1
    with pytest.raises(ValueError, match="over --tolerate 0:"):
        EncodedExamples(dataset, ExampleEncoder(CountingBase(), make_loading()), (SIDE, SIDE)).load_batch([0])


def test_random_numbers_of_the_network_are_not_used(folder):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    take(make_batches(make_source(folder), workers=1), 2)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the masks of signals from /proc")
def test_workers_leave_ctrl_c_to_the_training(folder):
    iterator = make_batches(make_source(folder), workers=1, cache="none").iterate(0)
    next(iterator)
    texts = [Path(f"/proc/{child.pid}/status").read_text() for child in multiprocessing.active_children()]
    iterator.close()
    masks = [int(re.search(r"SigIgn:\s*(\w+)", text)[1], 16) for text in texts]
    assert masks and all(mask & 1 << (signal.SIGINT - 1) for mask in masks)


def test_workers_start_beside_threads_of_opencv(folder):
    cv2.GaussianBlur(np.zeros((600, 800, 3), np.uint8), (9, 9), 3)  # of a size that it shares between threads
    count = cv2.getNumThreads()
    assert len(take(make_batches(make_source(folder), workers=2, cache="none"), 3)) == 3
    assert cv2.getNumThreads() == count


@pytest.mark.skipif(os.name == "nt", reason="no folder is locked there")
def test_a_worker_that_outlives_the_training_does_not_keep_its_folder_locked(folder, tmp_path):
    iterator = make_batches(make_source(folder), workers=1, cache="none").iterate(0)
    with lock_folder(tmp_path, "training"):
        next(iterator)  # the worker starts within the lock
    with lock_folder(tmp_path, "training"):
        pass
    iterator.close()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for a process in /proc")
def test_workers_of_a_killed_training_end(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "PARENT_INTERVAL", 0.02)
    for i in range(7):  # of a size that does not fit into a pipe
        (tmp_path / f"{i}.png").write_bytes(encode_png(make_pixels(i, 160, 160)))
        (tmp_path / f"{i}.txt").write_text("a")
    source = make_source(tmp_path)
    reader, writer = os.pipe()
    training = os.fork()
    if not training:
        try:
            settings = make_loading(workers=1, cache="none")
            encoder, sampling = ExampleEncoder(CountingBase(), settings), make_sampling(size=(160, 160))
            batches = TrainingBatches(source, encoder, sampling, settings, 3, seed=4).iterate(0)
            next(batches)
            os.write(writer, str(multiprocessing.active_children()[0].pid).encode())
            signal.pause()
        finally:
            os._exit(1)
    os.close(writer)
    worker = int(os.read(reader, 20))
    os.kill(training, signal.SIGKILL)
    os.waitpid(training, 0)
    wait_until(lambda: not is_running(worker))
    os.close(reader)


def is_running(pid):
    """Whether a process is there and no zombie."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"

"""Tar shards as a stream: order, split, resuming, hostile members."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image
from training_sets import SIDE, make_loading, make_pixels, make_png, make_sampling, write_shards, write_tar

from controlnet_ext.training.data import CENTER, MapMaker, StreamSource, Tolerance, check_data_source
from controlnet_ext.training.data.reading import DataRequest, read_training_data
from controlnet_ext.training.data.rows import Columns
from controlnet_ext.training.data.shards import (
    MAX_FIELDS,
    ShardReader,
    ShardStream,
    TarMember,
    expand_braces,
    is_shard_pattern,
    list_shards,
)


def make_stream(pattern, share=0.0, buffer_size=8, **reader):
    reader = ShardReader(reader.pop("columns", Columns()), share, **reader)
    return ShardStream(tuple(list_shards(str(pattern))), reader, buffer_size)


def strict():
    return Tolerance(0.0, lambda _: None)


def take(iterator, count):
    return [each for each, _ in zip(iterator, range(count), strict=False)]


def read(path, **reader):
    """The examples of one shard."""
    return [example for example, _ in ShardReader(Columns(), 0.0, **reader).iter_shard(path, strict())]


@pytest.fixture(scope="module")
def pattern(tmp_path_factory):
    """Four shards of five."""
    return write_shards(tmp_path_factory.mktemp("shards"), 4, 5)


def test_a_pattern_counts_with_zeros_and_lists():
    assert [str(path) for path in expand_braces("a/{08..11}.tar")] == [f"a/{n:02d}.tar" for n in range(8, 12)]
    assert [str(path) for path in expand_braces("{a,b}/{0..1}.tar")] == ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]
    for text, says in (("{0..99999999999}.tar", "rising range of up to"), ("{5..1}.tar", "rising range")):
        with pytest.raises(ValueError, match=says):
            expand_braces(text)
    with pytest.raises(ValueError, match="names over 100000 shards"):
        expand_braces("{0..9999}{0..9999}.tar")


def test_a_shard_that_is_missing_or_compressed_is_refused_at_once(tmp_path):
    write_shards(tmp_path, 2, 1)
    with pytest.raises(FileNotFoundError, match=r"02\.tar' does not exist"):
        list_shards(f"{tmp_path}/{{00..02}}.tar")
    assert is_shard_pattern(str(tmp_path)) and len(list_shards(str(tmp_path))) == 2
    with tarfile.open(tmp_path / "packed.tar", "w:gz"):
        pass
    with pytest.raises(ValueError, match=r"packed\.tar' is compressed, and no place in it can be looked up"):
        list_shards(str(tmp_path))
    (tmp_path / "packed.tar").rename(tmp_path / "packed.tar.gz")
    with pytest.raises(ValueError, match=r"packed\.tar\.gz' is compressed"):
        check_data_source(str(tmp_path / "packed.tar.gz"))


def test_an_example_is_looked_up_in_its_shard(pattern):
    example = read(list_shards(str(pattern))[1])[2]
    found = example.decode(SIDE, SIDE, CENTER, MapMaker(None))
    np.testing.assert_array_equal(found.pixels, make_pixels(7))
    np.testing.assert_array_equal(found.map, make_pixels(1007))
    assert found.caption == "caption 7" and example.name.endswith("01.tar/007.png'")


@pytest.mark.parametrize(
    ("members", "columns"),
    [
        ({"a.jpg": 0, "a.cond.png": 1, "a.json": b'{"caption": "text"}'}, {}),
        ({"a.png": 0, "a.conditioning_image.png": 1, "a.caption": b"text"}, {}),
        ({"deep/a.webp": 0, "deep/a.map.webp": 1, "deep/a.txt": b"\xef\xbb\xbftext\n", "deep/a.cls": b"3"}, {}),
        ({"a.image.jpg": 0, "a.conditioning_image.png": 1, "a.caption.txt": b"text"}, {}),
        ({"a.photo.png": 0, "a.edges.png": 1, "a.words": b"text"}, {"image": "photo", "map": "edges", "text": "words"}),
    ],
)
def test_members_of_a_stem_are_an_example(tmp_path, members, columns):
    contents = {name: make_png(each) if isinstance(each, int) else each for name, each in members.items()}
    path = write_tar(tmp_path / "a.tar", contents)
    ((example, _),) = ShardReader(Columns(**columns), 0.0).iter_shard(path, strict())
    assert example.caption == "text"
    assert (example.image.read(), example.map.read()) == (make_png(0), make_png(1))


def test_each_epoch_has_every_example_once_in_an_order_of_its_own(pattern):
    stream = make_stream(pattern)
    names = [example.caption for example in take(stream.iter_examples(3, strict()), 60)]
    epochs = [names[i : i + 20] for i in (0, 20, 40)]
    assert all(sorted(each) == sorted(f"caption {i}" for i in range(20)) for each in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != sorted(epochs[0])
    assert names == [example.caption for example in take(stream.iter_examples(3, strict()), 60)]
    assert names != [example.caption for example in take(stream.iter_examples(4, strict()), 60)]


@pytest.mark.parametrize("skip", [0, 1, 19, 20, 21, 40, 59, 133])
def test_what_is_left_out_of_a_stream_costs_two_epochs_at_most(pattern, monkeypatch, skip):
    stream, opened = make_stream(pattern), []
    expected = take(stream.iter_examples(3, strict()), skip + 25)[skip:]
    iterate = ShardReader.iter_shard
    monkeypatch.setattr(ShardReader, "iter_shard", lambda *a: opened.append(a[1].name) or iterate(*a))
    assert next(stream.iter_examples(3, strict(), skip)) == expected[0] and len(opened) <= 2 * 4
    assert take(stream.iter_examples(3, strict(), skip), 25) == expected


def test_a_folder_of_shards_and_other_data_is_refused(tmp_path):
    write_shards(tmp_path, 1, 1)
    check_data_source(str(tmp_path))
    (tmp_path / "a.png").write_bytes(make_png(0))
    with pytest.raises(ValueError, match=r"holds both shards and a\.png: name what is meant"):
        check_data_source(str(tmp_path))


def list_plans(source, first_step, count, parts=2, batch=3, **sampling):
    arguments = make_sampling(**sampling), batch, 5, first_step, parts, strict()
    return take(source.iter_plans(*arguments), count)


@pytest.mark.parametrize("buckets", [False, True])
def test_a_stream_goes_on_where_it_was_without_reading_an_image(tmp_path, monkeypatch, buckets):
    pattern = write_shards(tmp_path, 3, 4, height=64, width=64)
    write_tar(tmp_path / "00.tar", {"w.png": make_png(0, 64, 160), "w.map.png": make_png(1, 64, 160), "w.txt": b"w"})
    source = StreamSource(make_stream(pattern, needs_size=buckets), evaluation_set=None)
    settings = {"size": (64, 64), "step": 16, "has_buckets": buckets, "is_random_crop": True, "flips": True}
    whole = list_plans(source, 0, 24, **settings)
    monkeypatch.setattr(TarMember, "read", lambda _: pytest.fail("an image was read"))
    for step in (1, 5, 11):
        assert list_plans(source, step, 24 - 2 * step, **settings) == whole[2 * step :]
    sizes = {plan.size for plan in whole}
    assert sizes == ({(64, 64), (32, 96)} if buckets else {(64, 64)})


def test_copies_of_an_image_are_on_one_side_of_the_split(tmp_path):
    members = {}
    for i in range(60):
        members |= {f"{i:02d}.png": make_png(i % 20), f"{i:02d}.txt": f"{i}".encode()}
    write_tar(tmp_path / "a.tar", members)
    stream = make_stream(tmp_path / "a.tar", share=0.3)
    learnt, held = stream.find_first(1000, strict())
    assert len(learnt) + len(held) == 60 and 6 <= len(held) <= 30
    assert not {example.sha256 for example in learnt} & {example.sha256 for example in held}
    epoch = take(stream.iter_examples(0, strict()), len(learnt))
    assert sorted(e.caption for e in epoch) == sorted(e.caption for e in learnt)


def test_images_that_differ_in_the_middle_alone_are_on_one_side_and_not_taken_for_each_other(tmp_path):
    images = [np.full((64, 64, 3), 255, np.uint8) for _ in range(2)]
    images[1][30:34] = 0
    members = {}
    for i, image in enumerate(images):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "BMP")
        members |= {f"{i}.bmp": buffer.getvalue(), f"{i}.txt": b"a"}
    one, other = read(write_tar(tmp_path / "a.tar", members))
    assert one.sha256 == other.sha256 and one.key != other.key


def test_no_more_of_the_shards_is_read_than_the_measured_examples_take(pattern, monkeypatch):
    stream, opened = make_stream(pattern, share=0.5), []
    iterate = ShardReader.iter_shard
    monkeypatch.setattr(ShardReader, "iter_shard", lambda *a: opened.append(a[1].name) or iterate(*a))
    learnt, held = stream.find_first(1, strict())
    assert len(learnt) == len(held) == 1 and opened == ["00.tar"]


@pytest.mark.parametrize("as_shard", [False, True])
def test_images_of_other_validation_data_are_not_learnt_from(tmp_path, pattern, as_shard):
    given = {"a.png": make_png(3), "a.map.png": make_png(1), "a.txt": b"a"}
    lines, validation = [], tmp_path / "held"
    validation.mkdir()
    if as_shard:
        write_tar(validation / "0.tar", given)
    else:
        for name in ("a.png", "a.txt"):
            (validation / name).write_bytes(given[name])
    loading = make_loading(tolerance=Tolerance(0.0, lines.append))
    maps = MapMaker(lambda pixels: pixels)
    data = read_training_data(DataRequest(str(pattern), str(validation)), maps, make_sampling(), loading, print)
    assert len(data.held_out) == 1 and len(data.source.measured) == 19
    plans = take(data.source.iter_plans(make_sampling(), 19, 0, 0, 1, loading.tolerance), 2)
    assert all("caption 3" not in [draw.sample.caption for draw in plan.draws] for plan in plans)
    assert len(lines) == 1 and "00.tar/003.png' is also in the data of --validation" in lines[0]


def test_images_of_validation_shards_may_not_be_in_a_folder_to_learn_from(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(make_png(i))
        (tmp_path / f"{i}.txt").write_text("a")
    (tmp_path / "held").mkdir()
    shard = write_tar(tmp_path / "held/0.tar", {"x.png": make_png(2), "x.txt": b"a"})
    with pytest.raises(ValueError, match=r"x\.png' is held out and also to be learnt, as .*2\.png'"):
        request = DataRequest(str(tmp_path), str(shard))
        read_training_data(request, MapMaker(lambda pixels: pixels), make_sampling(), make_loading(), print)


def test_other_validation_data_does_not_make_all_shards_be_read(tmp_path, pattern, monkeypatch):
    stream, opened = make_stream(pattern), []
    iterate = ShardReader.iter_shard
    monkeypatch.setattr(ShardReader, "iter_shard", lambda *a: opened.append(a[1].name) or iterate(*a))
    assert len(stream.find_first(2, strict())[0]) == 2 and opened == ["00.tar"]


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"a.png": 0}, r"a' has no caption: expected a \.txt, or a \.json with text"),
        ({"a.txt": b"text"}, "a' has no image among txt"),
        ({"../../a.png": 0, "../../a.txt": b"a"}, "leads out of a folder"),
        ({"/etc/a.png": 0, "/etc/a.txt": b"a"}, "leads out of a folder"),
        ({"a.png": 0, "a.txt": b"\xff"}, "is not UTF-8 text"),
        ({"a.png": 0, "a.txt": b"a", "a.caption": b"b"}, "has 2 captions, expected one: txt, caption"),
        ({"a.png": 0, "a.json": b'{"words": "a"}'}, "no column of captions"),
        ({"a.png": 0, "a.json": b"{"}, "not valid JSON"),
        ({"a.png": 0, "a.txt": b"a" * 70000}, "too long for a caption"),
        ({"a.png": 0, "a.txt": b"a", **{f"a.{i}": b"" for i in range(200)}}, f"over {MAX_FIELDS - 1} files"),
    ],
)
def test_a_member_that_is_no_example_is_named_in_one_line(tmp_path, members, says):
    contents = {name: make_png(each) if isinstance(each, int) else each for name, each in members.items()}
    write_tar(tmp_path / "a.tar", contents)
    with pytest.raises(ValueError, match=says) as raised:
        make_stream(tmp_path / "a.tar").find_first(10, strict())
    assert "\n" not in str(raised.value) and "1 of 1 examples" in str(raised.value)


def test_a_tar_of_very_many_broken_members_stops_early_and_keeps_few(tmp_path):
    blocks = io.BytesIO()
    for i in range(2_000):
        info = tarfile.TarInfo(f"{i}.txt")
        blocks.write(info.tobuf(tarfile.USTAR_FORMAT))
    (tmp_path / "a.tar").write_bytes(blocks.getvalue() + bytes(1024))
    tolerance = Tolerance(0.01, lambda _: None)
    with pytest.raises(ValueError, match=r"11 of 11 examples cannot be learnt from"):
        next(make_stream(tmp_path / "a.tar").iter_examples(0, tolerance))
    assert tolerance.streamed < 20


def test_a_shard_that_is_cut_short_is_named(tmp_path):
    pattern = write_shards(tmp_path, 1, 5)
    path = tmp_path / "00.tar"
    path.write_bytes(path.read_bytes()[:-12_000])
    with pytest.raises(ValueError, match=r"00\.tar' is broken after \d examples"):
        make_stream(pattern).find_first(10, strict())


def test_shards_that_change_are_other_data(tmp_path):
    pattern = write_shards(tmp_path, 2, 2)
    before = make_stream(pattern).identity
    assert make_stream(pattern).identity == before != make_stream(pattern, share=0.2).identity
    write_shards(tmp_path, 1, 3)
    assert make_stream(pattern).identity != before


@pytest.mark.parametrize(
    ("validation", "says"),
    [("1.5", "leaves none on one side"), ("0.0001", "of 20 examples in .* leaves none on one side")],
)
def test_too_few_examples_for_a_split_are_refused(pattern, validation, says):
    request = DataRequest(str(pattern), validation)
    with pytest.raises(ValueError, match=says):
        read_training_data(request, MapMaker(None), make_sampling(), make_loading(), print)


def test_shards_without_maps_need_a_preprocessor(tmp_path):
    write_tar(tmp_path / "a.tar", {"a.png": make_png(0), "a.txt": b"a"})
    with pytest.raises(ValueError, match=r"a' has no map among png, txt: expected a\.map\.png, or --map"):
        make_stream(tmp_path / "a.tar", needs_map=True).find_first(10, strict())
    assert make_stream(tmp_path / "a.tar").find_first(10, strict())[0][0].map is None

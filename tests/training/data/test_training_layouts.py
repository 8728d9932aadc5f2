"""The layouts of training data: each is known by what it holds."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from training_sets import SIDE, encode_png, make_pixels, make_png, write_list

from controlnet_ext.training.data import FolderDataset, ReadingOptions, Tolerance, read_examples
from controlnet_ext.training.data.rows import Columns

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


COLUMNS = {"image": 0, "conditioning_image": 100}  # with the seed of the first


def options(**given):
    return ReadingOptions(**{"tolerance": Tolerance(0.0, lambda _: None), **given})


def check(examples, count=3):
    """The examples have the pixels of seeds 0.., maps of seeds 100.., and their captions."""
    dataset = FolderDataset(examples, None)
    assert len(dataset) == count
    for i in range(count):
        pixels, control, caption = dataset.read(i, SIDE, SIDE)
        np.testing.assert_array_equal(pixels, make_pixels(i))
        np.testing.assert_array_equal(control, make_pixels(100 + i))
        assert caption == f"caption {i}"


def write_files(folder: Path, images="images", maps="maps", captions=None):
    for name in {images, maps}:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for i in range(3):
        (folder / images / f"{i}.png").write_bytes(make_png(i))
        (folder / maps / f"{i}.png").write_bytes(make_png(100 + i))
        if captions:
            (folder / images / f"{i}{captions}").write_text(f"caption {i}\n")


def test_the_original_tutorials_prompt_json_has_the_image_as_target(tmp_path):
    write_files(tmp_path, "target", "source")
    rows = [{"source": f"source/{i}.png", "target": f"target/{i}.png", "prompt": f"caption {i}"} for i in range(3)]
    write_list(tmp_path / "prompt.json", rows)
    check(read_examples(tmp_path))
    check(read_examples(tmp_path / "prompt.json"))


@pytest.mark.parametrize("suffix", [".txt", ".caption"])
def test_maps_of_sd_scripts_lie_in_a_folder_of_their_own(tmp_path, suffix):
    write_files(tmp_path, captions=suffix)
    check(read_examples(tmp_path / "images", options=options(maps=tmp_path / "maps")))


def test_images_without_a_map_of_their_stem_are_refused_by_name(tmp_path):
    write_files(tmp_path, captions=".txt")
    (tmp_path / "maps/1.png").unlink()
    (tmp_path / "maps/2.jpg").write_bytes(make_png(102))
    with pytest.raises(ValueError, match=r"2 of 3 examples .*no map called '1', for .*1\.png'; .*2 maps called '2'"):
        read_examples(tmp_path / "images", options=options(maps=tmp_path / "maps"))


def test_maps_are_found_under_the_names_that_preprocess_gives(tmp_path):
    write_files(tmp_path, captions=".txt")
    for i in range(3):
        (tmp_path / f"maps/{i}.png").rename(tmp_path / f"maps/{i}_depth_midas.png")
    check(read_examples(tmp_path / "images", options=options(maps=tmp_path / "maps")))
    for i in range(3):
        (tmp_path / f"maps/{i}_canny.png").write_bytes(make_png(9))
    check(read_examples(tmp_path / "images", options=options(maps=tmp_path / "maps", map_column="depth_midas")))
    with pytest.raises(ValueError, match=r"holds 2 maps called '0', expected one"):
        read_examples(tmp_path / "images", options=options(maps=tmp_path / "maps"))


@pytest.mark.parametrize("name", ["list.jsonl", "list.json", "list.csv"])
def test_lists_of_the_training_scripts_of_diffusers_are_read(tmp_path, name):
    write_files(tmp_path)
    rows = [
        {"image": f"images/{i}.png", "conditioning_image": f"maps/{i}.png", "text": f"caption {i}"} for i in range(3)
    ]
    if name.endswith("csv"):
        lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
        (tmp_path / name).write_text("\n".join(lines))
    else:
        (tmp_path / name).write_text(json.dumps(rows) if name.endswith(".json") else "\n".join(map(json.dumps, rows)))
    check(read_examples(tmp_path / name))


def test_columns_of_other_names_are_named(tmp_path):
    write_files(tmp_path)
    rows = [{"a": f"images/{i}.png", "b": f"maps/{i}.png", "c": [f"caption {i}", "another"]} for i in range(3)]
    path = write_list(tmp_path / "list.jsonl", rows)
    check(read_examples(path, options=options(columns=Columns.parse("image=a,map=b,text=c"))))
    with pytest.raises(ValueError, match=r"--columns map=d is none of its columns: a, b, c"):
        read_examples(path, options=options(columns=Columns.parse("image=a,map=d,text=c")))
    for text in ("image", "picture=a", "image=a,image=b", "image="):
        with pytest.raises(ValueError, match="expected image=A,map=B,text=C"):
            Columns.parse(text)


def table(as_struct=True):
    def images(seed):
        contents = [make_png(seed + i) for i in range(3)]
        return [{"bytes": each, "path": None} for each in contents] if as_struct else contents

    return pa.table({"image": images(0), "conditioning_image": images(100), "text": [f"caption {i}" for i in range(3)]})


def write_arrow(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, data.schema) as writer:
        for batch in data.to_batches(max_chunksize=2):
            writer.write_batch(batch)
    return path


def save_to_disk(folder, data):
    """What `datasets.Dataset.save_to_disk` writes, in two files."""
    for n, (first, count) in enumerate(((0, 2), (2, 1))):
        write_arrow(folder / f"data-{n:05d}-of-00002.arrow", data.slice(first, count))
    files = [{"filename": f"data-{n:05d}-of-00002.arrow"} for n in range(2)]
    (folder / "state.json").write_text(json.dumps({"_data_files": files, "_split": None}))
    (folder / "dataset_info.json").write_text("{}")


@pytest.mark.parametrize("as_struct", [True, False])
def test_datasets_that_were_saved_to_disk_are_read(tmp_path, as_struct):
    save_to_disk(tmp_path / "set", table(as_struct))
    check(read_examples(tmp_path / "set"))


def test_the_training_split_of_saved_datasets_is_taken(tmp_path):
    save_to_disk(tmp_path / "set/train", table())
    save_to_disk(tmp_path / "set/test", table().slice(0, 1))
    (tmp_path / "set/dataset_dict.json").write_text('{"splits": ["test", "train"]}')
    check(read_examples(tmp_path / "set"))
    (tmp_path / "set/dataset_dict.json").write_text('{"splits": ["a", "b"]}')
    with pytest.raises(ValueError, match="has the splits a, b: name one"):
        read_examples(tmp_path / "set")


def test_of_files_of_several_splits_those_of_train_are_taken(tmp_path):
    write_arrow(tmp_path / "set/fill50k-train-00000-of-00002.arrow", table().slice(0, 2))
    write_arrow(tmp_path / "set/fill50k-train-00001-of-00002.arrow", table().slice(2, 1))
    write_arrow(tmp_path / "set/fill50k-test.arrow", table())
    check(read_examples(tmp_path / "set"))


def test_datasets_of_the_library_datasets_are_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    images = [{name: Image.fromarray(make_pixels(seed + i)) for name, seed in COLUMNS.items()} for i in range(3)]
    features = datasets.Features({**{name: datasets.Image() for name in COLUMNS}, "text": datasets.Value("string")})
    rows = [{**row, "text": f"caption {i}"} for i, row in enumerate(images)]
    made = datasets.Dataset.from_list(rows, features=features)
    made.save_to_disk(tmp_path / "plain")
    made.select([2, 1, 0]).select([2, 1, 0]).save_to_disk(tmp_path / "with indices")
    datasets.DatasetDict({"train": made, "test": made.select([0])}).save_to_disk(tmp_path / "splits")
    made.to_parquet(tmp_path / "set.parquet")
    for name in ("plain", "with indices", "splits", "set.parquet"):
        check(read_examples(tmp_path / name, options=options(unpack_folder=tmp_path)))


@pytest.mark.parametrize("place", ["set.parquet", "set/0.parquet", "set/data/train-00000-of-00001.parquet"])
def test_parquet_is_unpacked_once_and_read(tmp_path, place):
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table(), tmp_path / place)
    data = tmp_path / place.partition("/")[0]
    for _ in range(2):
        check(read_examples(data, options=options(unpack_folder=tmp_path / "work")))
    (unpacked,) = (tmp_path / "work").iterdir()
    assert unpacked.suffix == ".arrow"


def test_a_table_of_paths_names_files_in_its_folder(tmp_path):
    write_files(tmp_path)
    names = {"file_name": [f"images/{i}.png" for i in range(3)], "map": [f"maps/{i}.png" for i in range(3)]}
    path = write_arrow(tmp_path / "a.arrow", pa.table({**names, "caption": [f"caption {i}" for i in range(3)]}))
    check(read_examples(path))
    outside = pa.table({"file_name": ["../secret.png"], "text": ["a"]})
    with pytest.raises(ValueError, match=r"'\.\./secret\.png' is not a file in the list's folder"):
        read_examples(write_arrow(tmp_path / "b.arrow", outside))


@pytest.mark.parametrize("cut", [8, 100, 2000])
def test_an_arrow_file_that_is_cut_short_is_refused_in_one_line(tmp_path, cut):
    path = write_arrow(tmp_path / "a.arrow", table())
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(ValueError, match=r"a\.arrow' is cut short, or no Arrow file$"):
        read_examples(path)


def test_arrow_files_with_damage_inside_are_refused_or_named(tmp_path):
    whole = write_arrow(tmp_path / "a.arrow", table()).read_bytes()
    rng = np.random.default_rng(0)
    for n in range(60):
        content = bytearray(whole)
        for place in rng.integers(0, len(whole) - 8, 3):
            content[place] ^= int(rng.integers(1, 256))
        path = tmp_path / f"{n}.arrow"
        path.write_bytes(content)
        try:
            assert len(read_examples(path)) == 3
        except (ValueError, FileNotFoundError) as error:
            assert "\n" not in str(error)


def test_rows_without_an_image_or_a_caption_are_counted(tmp_path):
    data = pa.table({"image": [make_png(0), None, b"text"], "text": ["caption 0", "caption 1", None]})
    with pytest.raises(ValueError, match=r"2 of 3 .*image of row 1' holds no image; .*row 2: the caption is None"):
        read_examples(write_arrow(tmp_path / "a.arrow", data))


def test_two_layouts_in_one_folder_are_refused(tmp_path):
    write_list(tmp_path / "metadata.jsonl", [{"file_name": "a.png", "text": "a"}])
    write_list(tmp_path / "prompt.json", [{"target": "a.png", "prompt": "a"}])
    with pytest.raises(ValueError, match=r"holds both metadata\.jsonl and prompt\.json: remove one"):
        read_examples(tmp_path)
    with pytest.raises(ValueError, match=r"belongs to a folder of images, but .*lists them: --columns"):
        read_examples(tmp_path / "prompt.json", options=options(maps=tmp_path))


def test_the_folder_train_is_read_where_there_is_nothing_else(tmp_path):
    write_files(tmp_path / "set/train", ".", "maps", captions=".txt")
    check(read_examples(tmp_path / "set", options=options(maps=tmp_path / "set/train/maps")))


def test_a_broken_image_is_reported_by_name_and_left_out(tmp_path):
    write_files(tmp_path, captions=".txt")
    (tmp_path / "images/1.png").write_bytes(encode_png(make_pixels(1))[:-30])
    (tmp_path / "images/2.txt").unlink()
    lines = []
    found = read_examples(tmp_path / "images", options=options(tolerance=Tolerance(0.7, lines.append)))
    assert [example.caption for example in found] == ["caption 0"]
    assert [line.partition(" has")[0].rpartition("/")[2][:5] for line in lines] == ["1.png", "2.png"]
    with pytest.raises(ValueError, match=r"2 of 3 examples cannot be learnt from, over --tolerate 0\.6: .*1\.png"):
        read_examples(tmp_path / "images", options=options(tolerance=Tolerance(0.6, lines.append)))


def test_captions_without_images_are_named_and_no_reason_to_stop(tmp_path):
    write_files(tmp_path, captions=".txt")
    (tmp_path / "images/notes.txt").write_text("mine")
    lines = []
    found = read_examples(tmp_path / "images", options=options(tolerance=Tolerance(0.0, lines.append)))
    assert len(found) == 3
    assert len(lines) == 1 and "1 captions in" in lines[0] and lines[0].endswith("such as 'notes.txt'")

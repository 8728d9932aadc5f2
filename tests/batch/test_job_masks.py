"""Jobs of preprocessors that paint: masks from folders, lists, tables and shards."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from controlnet_ext.annotators import lama
from controlnet_ext.preprocessors import preprocess
from killing import contents
from lines import Shelf, random_state

from controlnet_ext import cli
from controlnet_ext.files.image_reader import read_image
from controlnet_ext.files.image_writer import encode_image, write_image
from controlnet_ext.files.safetensors import write_weights

rng = np.random.default_rng(0)
IMAGES = [rng.integers(0, 256, (5, 6, 3), np.uint8).repeat(6, 0).repeat(6, 1) for _ in range(3)]
MASKS = [np.where(rng.random((30, 36)) > 0.6, np.uint8(255), np.uint8(0)) for _ in range(3)]
NAME = "inpaint_only+lama"


@pytest.fixture(scope="module")
def state():
    with torch.device("meta"):
        shapes = lama.LaMa(4, 1).state_dict()
    return random_state(shapes)


@pytest.fixture(autouse=True)
def folder(state, tmp_path, monkeypatch):
    """A working folder with in/0.png to in/deeper/2.png and their masks in masks/, the last a JPEG."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONTROLNET_EXT_MODELS", ".")
    write_weights("ControlNetLama.pth", state)
    for place in ("in/deeper", "masks/deeper"):
        Path(place).mkdir(parents=True)
    for i, (image, mask) in enumerate(zip(IMAGES, MASKS, strict=True)):
        write_image(f"in/{key(i)}.png", image)
        write_image(f"masks/{key(i)}.{'jpg' if i == 2 else 'png'}", mask)


@pytest.fixture(scope="module")
def filled(state):
    """The three maps."""
    shelf = Shelf(state)
    return [preprocess(NAME, p, mask=m, library=shelf).pixels for p, m in zip(IMAGES, MASKS, strict=True)]


def key(i):
    return f"{'deeper/' if i == 2 else ''}{i}"


def run(words):
    return cli.main(["preprocess", *words.split()])


def errors(out):
    return [json.loads(line)["error"] for line in Path(f"{out}.job/errors.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("options", ["", "--jobs 2 --batch 2"])
def test_a_folder_has_masks_called_as_the_images(options, filled):
    assert run(f"{NAME},canny in -o out --recursive --mask masks {options}") == 0
    for i in range(2):
        np.testing.assert_array_equal(read_image(f"out/{i}_{NAME}.png"), filled[i])
    made, jpeg = read_image(f"out/deeper/2_{NAME}.png"), read_image("masks/deeper/2.jpg")
    np.testing.assert_array_equal(made[jpeg[..., 0] == 0], IMAGES[2][jpeg[..., 0] == 0])
    assert len(contents("out")) == 6
    assert run(f"{NAME} in/0.png -o one.png --mask masks") == 0
    assert Path("one.png").read_bytes() == contents("out")[f"0_{NAME}.png"]


def test_an_image_without_a_mask_is_told_and_the_others_are_done():
    Path("masks/0.png").unlink()
    write_image("masks/1.png", MASKS[1][:9], overwrite=True)
    assert run(f"{NAME},invert in -o out --recursive --mask masks --batch 3") == 1
    assert errors("out") == [
        "'in/0.png': 'masks/0.png' does not exist",
        "'in/1.png': the mask is 36x9 pixels, but the image 36x30",
    ]
    assert sorted(contents("out")) == ["0_invert.png", "1_invert.png", f"deeper/2_{NAME}.png", "deeper/2_invert.png"]
    write_image("masks/0.png", MASKS[0])
    write_image("masks/1.png", MASKS[1], overwrite=True)
    assert run(f"{NAME},invert in -o out --recursive --mask masks --batch 3") == 0
    assert len(contents("out")) == 6


def test_lists_name_masks(filled):
    rows = [{"file_name": f"in/{key(i)}.png", "key": str(i), "mask": f"masks/{key(i)}.png"} for i in range(2)]
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(f"{NAME} a.jsonl -o out") == 0
    for i in range(2):
        np.testing.assert_array_equal(read_image(f"out/{i}_{NAME}.png"), filled[i])
    made = [json.loads(line) for line in Path("out/a.jsonl").read_text().splitlines()]
    moved = [row | {name: f"../{row[name]}" for name in ("file_name", "mask")} for row in rows]
    assert made == [row | dict.fromkeys((NAME, "map"), f"{row['key']}_{NAME}.png") for row in moved]


def test_shards_hold_masks(filled):
    with tarfile.open("a.tar", "w") as tar:
        for i, (image, mask) in enumerate(zip(IMAGES, MASKS, strict=True)):
            fields = {"mask.png": mask, "png": image} if i < 2 else {"jpg": image, "seg.png": mask}
            for field, pixels in fields.items():
                content = encode_image(f"x.{field}", pixels)
                info = tarfile.TarInfo(f"{i}.{field}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    assert run(f"{NAME},invert a.tar -o out/") == 1
    assert errors("out") == [f"'a.tar/2': {NAME} needs a mask, of which there is none"]
    with tarfile.open("out/a.tar") as tar:
        members = {info.name: tar.extractfile(info).read() for info in tar}
    assert sorted(members) == sorted(
        [f"{i}.{name}.png" for i in range(2) for name in (NAME, "invert")] + ["2.invert.png"]
    )
    for i in range(2):
        np.testing.assert_array_equal(read_image(members[f"{i}.{NAME}.png"]), filled[i])
    assert run("invert a.tar -o plain/") == 0  # where nobody paints, masks are fields as others


def test_tables_hold_masks(filled, capsys):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    png = [encode_image("x.png", pixels) for pixels in IMAGES]
    masks = [*(encode_image("x.png", mask) for mask in MASKS[:2]), None]
    parquet.write_table(pa.table({"png": png, "mask": masks}), "a.parquet")
    assert run(f"{NAME} a.parquet -o out/") == 1
    assert errors("out") == [f"'a.parquet/2': {NAME} needs a mask, of which there is none"]
    made = parquet.read_table("out/a.parquet").to_pydict()[NAME]
    assert made[2] is None
    for i in range(2):
        np.testing.assert_array_equal(read_image(made[i]), filled[i])
    parquet.write_table(pa.table({"png": png}), "bare.parquet")
    capsys.readouterr()
    assert run(f"{NAME} bare.parquet -o bare/") == 2
    assert "'bare.parquet' has no column of masks: expected 'mask'" in capsys.readouterr().err


def test_what_cannot_have_masks_is_refused_before_any_work(capsys):
    Path("a.jsonl").write_text('{"file_name": "in/0.png"}\n')
    Path("two").mkdir()
    write_image("two/0.png", MASKS[0])
    write_image("two/0.webp", MASKS[0])
    Path("a.mp4").write_bytes(b"")
    Path("none").mkdir()
    for words, refusal in (
        (f"{NAME} in -o out", f"{NAME} needs --mask FILE, or of several images --mask FOLDER"),
        (f"{NAME} in -o out --mask masks/0.png", "--mask 'masks/0.png' is for one image; for several give a folder"),
        (f"{NAME} in -o out --mask none", "'none' holds no images"),
        (f"{NAME} in -o out --mask two", "are masks of the same images: remove one"),
        (f"{NAME} a.jsonl -o out", "line 1 of 'a.jsonl' names no mask"),
        (f"{NAME} a.jsonl -o out --mask masks", "--mask is for images; 'a.jsonl' has masks of its own"),
        (f"{NAME} a.mp4 -o out/", "'a.mp4' is a video, which has no masks"),
        (f"{NAME} in/0.png -o out.png --mask nowhere.png", "'nowhere.png' does not exist"),
        ("canny in -o out --mask masks", "canny takes no --mask"),
    ):
        assert run(words) == 2, words
        assert refusal in capsys.readouterr().err
    assert not list(Path().glob("out*"))


def test_a_mask_is_not_replaced_by_a_map(capsys):
    Path(f"masks/1_{NAME}.png").write_bytes(Path("masks/1.png").read_bytes())
    write_image(f"in/1_{NAME}.png", IMAGES[1])
    assert run(f"{NAME} in -o masks --mask masks --overwrite") == 2
    assert "would replace an image that is still to be read" in capsys.readouterr().err

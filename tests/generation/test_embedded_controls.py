"""An embedded model with several controls: each by its name, for maps of its kind only."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import standin
import tiny
import torch

import controlnet_ext
from controlnet_ext import ControlMap, Unit, embedded, guide
from controlnet_ext.cli import main
from controlnet_ext.embedded import list_controls
from controlnet_ext.files.image_reader import read_image
from controlnet_ext.files.image_writer import encode_image, read_png_text
from controlnet_ext.generation.options import parse_unit
from controlnet_ext.generation.pipeline_folder import PipelineFolder
from controlnet_ext.sdwebui.catalog import ModelCatalog
from tools.embedded_model import publish

KINDS = {"canny": "edges", "depth": "depth", "pose": "pose", "segmentation": "segmentation"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shelf") / "model"
    standin.save_small(folder)
    return folder


@pytest.fixture(autouse=True)
def installed(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "EMBEDDED_FOLDER", model)
    monkeypatch.chdir(tmp_path)
    ramp = np.tile(np.linspace(0, 255, 64, dtype=np.uint8), (48, 1))
    Path("map.png").write_bytes(encode_image("map.png", ramp))
    tiny.random_image(size=64).save("photo.png")


def generate(out: str, *more: str) -> int:
    return main(["generate", "a red circle", "--steps", "1", "--seed", "3", "--no-score", *more, "-o", out])


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert generate("out.png", *arguments) == 2
    assert not os.path.exists("out.png")
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return err


def test_each_control_is_guided_by_its_name_with_a_finished_map() -> None:
    controls = [word for control in KINDS for word in ("--control", f"{control},map=map.png")]
    assert generate("made.png", *controls) == 0
    units = json.loads(read_png_text("made.png")["controlnet-ext"])["units"]
    assert [(unit["model"]["path"], unit["kind"], unit["preprocessor"]) for unit in units] == [
        (f"embedded/{control}", kind, None) for control, kind in KINDS.items()
    ]
    assert generate("depth.png", "--control", "depth,map=map.png") == 0
    assert read_image("made.png").shape == (64, 64, 3)
    assert not np.array_equal(read_image("made.png"), read_image("depth.png"))


def test_a_map_may_stand_for_all_units_and_repeats_to_the_bit() -> None:
    assert generate("one.png", "--map", "map.png", "--control", "depth") == 0
    assert generate("two.png", "--control", "none,kind=depth,image=map.png") == 0
    assert np.array_equal(read_image("one.png"), read_image("two.png"))
    assert main(["generate", "--from", "one.png", "-o", "again.png"]) == 0
    assert Path("again.png").read_bytes() == Path("one.png").read_bytes()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pyracanny", ("embedded/canny", "pyracanny")),
        ("depth", ("embedded/depth", "depth_midas")),
        ("depth_anything_v2", ("embedded/depth", "depth_anything_v2")),
        ("pose", ("embedded/pose", "openpose_full")),
        ("dw_openpose_full", ("embedded/pose", "dw_openpose_full")),
        ("segmentation", ("embedded/segmentation", "segmentation")),
        ("canny,model=own", ("own", "canny")),
    ],
)
def test_the_control_net_is_that_of_the_kind_of_maps(text: str, expected: tuple[str, str]) -> None:
    spec = parse_unit(text, "photo.png", list_controls("embedded"))
    assert (spec.model.path, spec.preprocessor) == expected


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--control", "canny,model=embedded/depth", "--image", "photo.png"],
            "a map of edges for a control model that",
        ),
        (["--control", "none,kind=pose,map=map.png,model=embedded/canny"], "reads maps of edges only"),
        (["--control", "depth,map=map.png", "--control", "depth,map=map.png,model=embedded/pose"], "unit 2"),
        (["--control", "depth"], "no image given: name one with image=PATH, or for all units with --image; a finished"),
        (["--control", "depth,map=map.png,image=photo.png"], "image and map: a unit reads an image, of which its"),
        (["--control", "depth", "--map", "map.png", "--image", "photo.png"], "image and map: a unit reads an image"),
        (["--control", "canny,map=map.png,low=3"], "low is for canny to make a map, which is given already"),
        (["--control", "inpaint_only,map=map.png,model=none,mask=map.png"], "inpaint_only does more than make a map"),
        (["--map", "map.png"], "--map 'map.png' without a --control that reads it"),
        (["--control", "depth,map=absent.png"], "'absent.png' does not exist"),
        (["--control", "lines,map=map.png"], "unknown preprocessor 'lines'"),
        (["--control", "hed,map=map.png"], "the embedded model has its own for canny, depth, pose, segmentation"),
    ],
)
def test_what_a_control_cannot_read_is_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refused(capsys, *words)


def test_a_control_without_weights_for_its_preprocessor_asks_for_the_map(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controlnet_ext.preprocessors.registry.Preprocessor.load", _lack_weights)
    assert "or give the finished map with map=PATH or --map" in refused(
        capsys, "--control", "depth", "--image", "photo.png"
    )


def _lack_weights(*_: Any, **__: Any) -> Any:
    raise FileNotFoundError("dpt_hybrid-midas-501f0c75.pt is not here")


def test_a_color_photo_for_a_map_of_depth_is_remarked_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate("made.png", "--control", "depth,map=photo.png") == 0
    assert "has colors, which maps of depth have not" in capsys.readouterr().err


def test_python_loads_each_by_its_name_and_refuses_other_maps() -> None:
    pipe = PipelineFolder.find("embedded").load(torch.float32, PipelineFolder.find("embedded").make_scheduler(None))
    pixels = np.zeros((64, 64, 3), np.uint8)
    for control, kind in KINDS.items():
        net = controlnet_ext.load(f"embedded/{control}")
        assert net.map_type == kind
        for fitting in (ControlMap(pixels, kind), ControlMap(pixels, "other"), pixels):
            with guide(pipe, [Unit(net, fitting)]):
                pass
        said = f"a map of normals for a control model that reads maps of {kind} only"
        with pytest.raises(ValueError, match=said), guide(pipe, [Unit(net, ControlMap(pixels, "normals"))]):
            pass
    with pytest.raises(FileNotFoundError, match="has a ControlNet for canny, depth, pose, segmentation only"):
        controlnet_ext.load("embedded/normals")


def test_a_server_lists_them_and_each_refuses_other_maps() -> None:
    catalog = ModelCatalog([], "embedded")
    assert [name.partition(" [")[0] for name in catalog.names] == [f"embedded/{control}" for control in KINDS]
    nets = [catalog.load(catalog.resolve_name(f"embedded/{control}"), "cpu", torch.float32) for control in KINDS]
    assert [(net.map_type, net.refuses_other_maps) for net in nets] == [(kind, True) for kind in KINDS.values()]


def test_one_network_may_serve_several_controls(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shared").mkdir()
    for name in ("model_index.json", "controlnet_depth"):
        renamed = name.replace("_depth", "_depth+pose")
        (tmp_path / "shared" / renamed).symlink_to(model / name)
    monkeypatch.setattr(embedded, "EMBEDDED_FOLDER", tmp_path / "shared")
    assert list_controls("embedded") == {"depth": "embedded/depth", "pose": "embedded/pose"}
    catalog = ModelCatalog([], "embedded")
    first, second = (
        catalog.load(catalog.resolve_name(f"embedded/{c}"), "cpu", torch.float32) for c in ("depth", "pose")
    )
    assert (first.map_type, second.map_type) == ("depth", "pose")


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("flat drawing of a red star on a plain blue ground", None),
        ("Glossy render of (a red car:1.2), a small cat on grass", None),
        ("landscape of hills in spring by day", None),
        ("", None),
        (
            "flat drawing of a red cat",
            'the embedded model does not know cat after "flat drawing of": it draws things (circle',
        ),
        (
            "landscape of a lake, a zeppelin and ice",
            'does not know zeppelin, ice after "landscape of": it draws mountains',
        ),
        (
            "a red cat",
            'one of "flat drawing of", "glossy render of", "landscape of", as in: flat drawing of a blue blob',
        ),
        (
            "a photo of a cat",
            "of a blue blob and a red star on a dotted green ground; the embedded model does not know photo",
        ),
    ],
)
def test_words_are_judged_by_the_style_that_a_prompt_names(prompt: str, said: str | None) -> None:
    remark = PipelineFolder.find("embedded").describe_unknown_words(prompt, negative="cat")
    assert remark is said is None or (said is not None and said in str(remark))


def test_a_recipe_of_another_embedded_model_says_of_which_version(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate("made.png", "--control", "depth,map=map.png") == 0
    shutil.copytree(model, tmp_path / "newer")
    weights = tmp_path / "newer" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    monkeypatch.setattr(embedded, "EMBEDDED_FOLDER", tmp_path / "newer")
    publish.write_about(tmp_path / "newer", [], publish.find_earlier_versions(model))
    assert main(["generate", "--from", "made.png", "-o", "again.png"]) == 2
    said = (
        "the recipe was made with the embedded model of version 1, this package has version 2, which draws other images"
    )
    assert said in capsys.readouterr().err
    publish.write_about(tmp_path / "newer", [], {"0" * 64: 6})
    assert main(["generate", "--from", "made.png", "-o", "again.png"]) == 2
    assert "of another version, this package has version 7" in capsys.readouterr().err
    assert not Path("again.png").exists()

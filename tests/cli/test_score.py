"""`controlnet-ext score`: over images with stated maps, pairs, lists and PNGs of the webui; what it prints, and what it
refuses. Recipes: tests/generation/test_generate.py."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from controlnet_ext.cli import main
from controlnet_ext.files.image_reader import read_image
from controlnet_ext.files.image_writer import write_image
from controlnet_ext.maps.fidelity import canny_f1

INFOTEXT = (
    "a cat\nNegative prompt: ControlNet 0: no\nSteps: 20, Sampler: Euler, Size: 64x64, "
    'ControlNet 0: "Module: canny, Model: control_canny [d14c016b], Weight: 1, Resize Mode: Crop and Resize, '
    'Processor Res: 512, Threshold A: 50, Threshold B: 120, Pixel Perfect: True", '
    'ControlNet 1: "Module: none, Model: other", ControlNet 2: "Module: canny, Enabled: False", Version: v1.10.1'
)


def photo(seed: int) -> np.ndarray:
    """Blocks of 8x8 pixels of random colors, 64x64."""
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return blocks.repeat(8, axis=0).repeat(8, axis=1)


def edges(image: np.ndarray, low: int = 100, high: int = 200) -> np.ndarray:
    return cv2.Canny(image, low, high)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pairs/ with images a (its own source), b (another photo) and c (gray), their maps, sources and unguided images;
    a.png and a_map.png."""
    place = tmp_path_factory.mktemp("files")
    for name in ("images", "maps", "sources", "unguided"):
        (place / "pairs" / name).mkdir(parents=True)
    images = {"a": photo(0), "b": photo(9), "c": np.full((64, 64, 3), 90, np.uint8)}
    for seed, (key, image) in enumerate(images.items()):
        write_image(place / f"pairs/images/{key}.png", image)
        write_image(place / f"pairs/maps/{key}.png", edges(photo(seed)))
        write_image(place / f"pairs/sources/{key}.png", photo(seed))
        write_image(place / f"pairs/unguided/{key}.png", photo(20 + seed))
    write_image(place / "a.png", photo(9))
    write_image(place / "a_map.png", edges(photo(0)))
    return place


@pytest.fixture(autouse=True)
def folder(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with these files."""
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CONTROLNET_EXT_MODELS", raising=False)


def score(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> tuple[dict, str]:
    """The JSON of a command and what it says on stderr."""
    assert main(["score", *words, "--json"]) == code
    out, err = capsys.readouterr()
    return json.loads(out), err


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    before = sorted(os.listdir())
    assert main(["score", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("controlnet-ext: ") and err.count("\n") == 1 and sorted(os.listdir()) == before
    return err


@pytest.mark.parametrize("words", [["--kind", "edges"], ["--control", "canny"], ["--control", "canny,map=a_map.png"]])
def test_an_image_is_scored_against_its_map(words, capsys):
    given = [] if "map=" in words[1] else ["--map", "a_map.png"]
    found, err = score(capsys, "a.png", *given, *words)
    (unit,) = found["images"][0]["units"]
    exact, within = canny_f1(edges(photo(0)), photo(9))
    assert unit["figures"] == pytest.approx({"f1": exact, "f1_1px": within}, abs=1e-6) and err == ""
    assert (unit["preprocessor"], unit["score"], unit["floor"], unit["ceiling"]) == ("canny", "f1", None, None)


def test_the_map_is_made_of_the_source_with_the_stated_parameters(capsys):
    write_image("photo.png", photo(0))
    found, _ = score(capsys, "a.png", "--image", "photo.png", "--control", "canny,low=20,high=60")
    (unit,) = found["images"][0]["units"]
    assert unit["figures"]["f1"] == pytest.approx(canny_f1(edges(photo(0), 20, 60), photo(9), 20, 60).exact, abs=1e-6)
    assert unit["ceiling"] == {"f1": 1, "f1_1px": 1}


def test_a_folder_of_pairs_has_floors_ceilings_and_shares(capsys):
    found, _ = score(capsys, "pairs", "--control", "canny")
    by_image = {each["image"]: each["units"][0] for each in found["images"]}
    assert list(by_image) == [f"pairs/images/{key}.png" for key in "abc"]
    first = by_image["pairs/images/a.png"]
    assert first["figures"]["f1"] == 1 and first["ceiling"]["f1"] == 1
    assert by_image["pairs/images/c.png"]["figures"]["f1"] == 0
    floor = canny_f1(edges(photo(0)), photo(20)).exact
    assert first["floor"]["f1"] == pytest.approx(floor, abs=1e-6)
    assert first["share"] == 1 and by_image["pairs/images/c.png"]["share"] < 0 < floor
    (summary,) = found["summaries"]
    mean = np.mean([each["figures"]["f1"] for each in by_image.values()])
    assert summary["mean"]["mean"] == pytest.approx(mean, abs=1e-6) and summary["mean"]["used"] == 3
    assert 0 == summary["mean"]["low"] < summary["mean"]["mean"] < summary["mean"]["high"] == 1


def test_the_table_has_a_line_for_each_image_and_one_for_all(capsys):
    assert main(["score", "pairs", "--control", "canny"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["image", "unit", "figure", "score", "floor", "ceiling", "share"]
    assert lines[1].split()[:5] == ["pairs/images/a.png", "1", "canny", "f1", "1.000"] and len(lines) == 6
    assert re.match(
        r"canny: f1 0\.\d+ \(0\.000\.\.1\.000\) of 3 images, floor 0\.\d+, ceiling .*higher is better", lines[5]
    )


def test_broken_images_are_named_and_counted_and_the_others_scored(capsys):
    Path("pairs/images/b.png").write_bytes(b"no image")
    Path("pairs/maps/c.png").unlink()
    found, err = score(capsys, "pairs", "--control", "canny", code=1)
    assert found["failed"] == 2 and found["summaries"][0]["mean"]["used"] == 1
    assert "'pairs/images/b.png': is none of" in err and "'pairs/maps' holds no map called 'c'" in err
    assert err.endswith("2 of 3 images have no score\n")


def test_a_map_without_edges_is_left_out_and_counted(capsys):
    write_image("pairs/maps/b.png", np.zeros((64, 64), np.uint8), overwrite=True)
    found, _ = score(capsys, "pairs", "--control", "canny")
    assert found["images"][1]["units"][0]["figures"] == {"f1": None, "f1_1px": None}
    assert found["summaries"][0]["mean"]["left_out"] == 1
    assert main(["score", "pairs", "--control", "canny"]) == 0
    assert "1 left out, whose maps ask for nothing" in capsys.readouterr().out


def test_a_list_of_preprocess_is_scored_by_its_columns(capsys):
    for key in "ab":
        os.replace(f"pairs/images/{key}.png", f"{key}.png")
    rows = [{"file_name": f"{key}.png", "text": "a cat"} for key in "ab"]
    Path("list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["preprocess", "canny,lineart_standard", "list.jsonl", "-o", "out/"]) == 0
    capsys.readouterr()
    found, _ = score(capsys, "out/list.jsonl", "--control", "canny", "--control", "lineart_standard")
    units = [unit for each in found["images"] for unit in each["units"]]
    assert [unit["preprocessor"] for unit in units] == 2 * ["canny", "lineart_standard"]
    assert [unit["figures"][unit["score"]] for unit in units] == 4 * [1]


def test_maps_that_preprocess_named_are_found_in_their_folder(capsys):
    assert main(["preprocess", "canny", "pairs/images", "-o", "made/"]) == 0
    found, _ = score(capsys, "pairs/images", "--map", "made", "--control", "canny")
    assert [each["units"][0]["figures"]["f1"] for each in found["images"]] == [1, 1, None]


def test_a_png_of_the_webui_is_scored_by_the_units_in_its_text(capsys):
    write_image("webui.png", photo(9), {"parameters": INFOTEXT})
    write_image("photo.png", photo(0))
    found, _ = score(capsys, "webui.png", "--image", "photo.png")
    (unit,) = found["images"][0]["units"]
    assert unit["figures"]["f1"] == pytest.approx(canny_f1(edges(photo(0), 50, 120), photo(9), 50, 120).exact, abs=1e-6)
    write_image("map.png", edges(photo(0), 50, 120))
    assert score(capsys, "webui.png", "--map", "map.png")[0]["images"][0]["units"][0]["figures"] == unit["figures"]
    assert "no map of canny to compare with: name it with --map, or with --image" in refusal(capsys, "webui.png")


def test_a_json_of_key_points_beside_the_map_is_read(capsys):
    from controlnet_ext.scoring.inputs import read_control_map

    people = [{"pose_keypoints_2d": [x for i in range(18) for x in (0.1 + i / 40, 0.5, 1)]}]
    Path("pose.json").write_text(json.dumps({"people": people, "canvas_width": 64, "canvas_height": 48}))
    write_image("pose.png", np.zeros((48, 64, 3), np.uint8))
    drawn, beside = read_control_map("pose.json", "pose"), read_control_map("pose.png", "pose")
    assert drawn.size == (64, 48) and drawn.pixels.any() and not beside.pixels.any()
    assert len(drawn.values.people) == len(beside.values.people) == 1
    assert read_control_map("pose.png", "depth").values is None


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["absent.png"], "'absent.png' does not exist"),
        (["a.png"], "'a.png': it holds no recipe; say what its map is: --map MAP with --kind KIND or --control NAME"),
        (["a.png", "--map", "a_map.png"], "say what its map is"),
        (["a.png", "--map", "absent.png", "--kind", "edges"], "--map: 'absent.png' does not exist"),
        (["a.png", "--kind", "edges"], "no map of canny to compare with"),
        (["a.png", "--map", "a_map.png", "--kind", "edge"], "kind 'edge'"),
        (["a.png", "--map", "a_map.png", "--kind", "inpaint"], "an inpaint map does not say what is to be painted"),
        (["a.png", "--map", "a_map.png", "--control", "cany"], "the nearest are: canny"),
        (["a.png", "--map", "a_map.png", "--control", "canny,lo=5"], "'lo' is unknown to canny, the nearest are: low"),
        (["a.png", "--map", "a_map.png", "--control", "canny,low=500"], "low 500 is outside 0..255"),
        (["a.png", "--map", "a_map.png", "--control", "canny,fit=cut"], "fit 'cut' is none of: crop"),
        (["a.png", "--map", "a_map.png", "--control", "none"], "add the map's kind, kind=KIND"),
        (["a.png", "--map", "a_map.png", "--control", "canny,kind=depth"], "whose maps are 'edges'"),
        (["a.png", "--map", "a_map.png", "--control", "canny", "--kind", "edges"], "leave --kind out"),
        (["a.png", "--map", "a_map.png", "--map", "a_map.png", "--kind", "edges"], "2 maps (--map) of 1 units"),
        (["a.png", "--map", "a_map.png", "--kind", "depth", "--no-download"], "downloads are off"),
        (["a.png", "--map", "a_map.png", "--kind", "edges", "--device", "cpu"], "--device is for preprocessors with"),
        (["pairs/images", "--map", "a_map.png", "--kind", "edges"], "is for one image, and there are 3: give a folder"),
        (["pairs"], "nobody says how it was made: name its preprocessor with --control"),
        (["a.png", "--kind", "edges", "--map", "a_map.png", "--floor"], "it holds no recipe, of which an unguided"),
        (["a.png", "--floor", "--unguided", "a.png"], "give one of the two"),
        (["a.png", "--model", "sd"], "--model is for --floor"),
        (["a.png", "--worst", "3"], "--worst is for --report"),
        (["a.png", "--report", "out.pdf"], "ends in none of: .html, .png"),
        (["a.png", "--report", "a.png"], "'a.png' exists; --overwrite replaces it"),
        (["a.png", "--report", "a.png/r.html"], "is a file, expected a folder"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_line(words, reason, capsys):
    assert reason in refusal(capsys, *words)


def test_a_report_is_no_image_of_the_next_run_and_replaces_none(capsys):
    words = ["score", "pairs/images", "--map", "pairs/maps", "--control", "canny", "--report"]
    assert main([*words, "pairs/images/report.png"]) == 0
    assert main([*words, "pairs/images/report.png", "--overwrite"]) == 0
    capsys.readouterr()
    before = Path("pairs/images/a.png").read_bytes()
    assert "would replace an image that is scored" in refusal(capsys, *words[1:], "pairs/images/a.png", "--overwrite")
    assert Path("pairs/images/a.png").read_bytes() == before


def test_the_unit_of_generate_may_be_repeated_as_it_was(capsys):
    text = 'canny,model=control.safetensors,weight="0@0, 1@0.5",window=0..0.6,mode=prompt,low=50'
    found, _ = score(capsys, "a.png", "--map", "a_map.png", "--control", text)
    assert found == score(capsys, "a.png", "--map", "a_map.png", "--control", "canny,low=50")[0]
    assert "window '0'" in refusal(capsys, "a.png", "--map", "a_map.png", "--control", "canny,window=0")


def test_weights_of_preprocessors_that_a_png_names_are_not_downloaded(capsys, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    write_image("webui.png", photo(9), {"parameters": INFOTEXT.replace("Module: canny", "Module: depth_midas")})
    assert "downloads are off" in refusal(capsys, "webui.png", "--map", "a_map.png")


def test_several_images_without_any_score_are_refused(capsys):
    assert main(["score", "pairs/images"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("it holds no recipe") == 3 and err.endswith("none of 3 images has a score\n")


def test_the_report_shows_the_worst_first_and_needs_no_other_file(capsys):
    Path("pairs/images/<b>&.png").write_bytes(b"no image")
    assert main(["score", "pairs", "--control", "canny", "--worst", "2", "--report", "out/report.html"]) == 1
    text = Path("out/report.html").read_text()
    assert [text.index(f'<div class="name">pairs/images/{key}.png') for key in "cb"] == sorted(
        text.index(f'<div class="name">pairs/images/{key}.png') for key in "cb"
    )
    assert '<div class="name">pairs/images/a.png' not in text and text.count('<img class="photo"') == 2
    assert "pairs/images/&lt;b&gt;&amp;.png" in text and "<b>&" not in text
    sources = re.findall(r'(?:src|href|url)\s*[=(]\s*"?([^"\s)]{0,20})', text)
    assert sources and all(source.startswith("data:image/") for source in sources) and "<script" not in text


def test_the_report_as_an_image_holds_the_images(capsys):
    assert main(["score", "pairs", "--control", "canny", "--report", "report.png", "--worst", "2"]) == 0
    report = read_image("report.png")
    shown = photo(9).repeat(4, axis=0).repeat(4, axis=1)
    patches = np.lib.stride_tricks.sliding_window_view(report[:, 28 + 268 : 28 + 268 + 256], (256, 256, 3))
    assert any(np.array_equal(patch, shown) for patch in patches[:, 0, 0])

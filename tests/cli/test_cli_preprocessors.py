"""The list of preprocessors: a readable line each, JSON, and licences that say whether they are non-commercial."""

import json
import re

import pytest
from controlnet_ext.preprocessors import find, list_preprocessors

from controlnet_ext import cli
from controlnet_ext.cli.commands.preprocessors import COLUMNS
from controlnet_ext.maps.control_map import MODEL_NAME_WORDS


@pytest.fixture(autouse=True)
def without_a_terminal(monkeypatch):
    """The workers of pytest-xdist have COLUMNS of the terminal in which it runs."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def table(capsys):
    assert cli.main(["preprocessors"]) == 0
    out, error = capsys.readouterr()
    head, *lines = out.splitlines()
    assert error == "" and lines[-1].startswith("Each takes resolution 64..2048 too")
    starts = [head.index(f"  {name}") + 2 if i else 0 for i, name in enumerate(COLUMNS)]
    spans = list(zip(starts, [*starts[1:], None], strict=True))
    cells = [[line[start:end].strip() for start, end in spans] for line in lines[:-2]]
    return {row[0]: dict(zip(COLUMNS, row, strict=True)) for row in cells}


def test_the_table_has_a_line_for_each(table):
    assert list(table) == [entry.name for entry in list_preprocessors()]
    assert table["canny"] | {"parameters": ""} == dict.fromkeys(COLUMNS, "") | {
        "name": "canny",
        "map": "edges",
        "feeds": "canny",
    }
    assert table["canny"]["parameters"] == "low 0..255 (100), high 0..255 (200)"
    assert table["invert"]["alias"] == find("invert").label
    assert table["hed"]["feeds"] == "softedge hed pidi"
    wanted = {"weights": "table5_pidinet.pth", "size": "2.9 MB", "hash": "pinned"}
    assert table["pidinet"] | wanted == table["pidinet"]
    assert table["pidinet"]["licence"] == "research only, non-commercial"


def test_a_whole_model_is_its_repository_and_not_its_files(table):
    assert table["depth_pro"]["weights"] == "apple/DepthPro-hf"
    assert table["depth_marigold"]["weights"] == "prs-eth/marigold-depth-v1-1"
    assert table["vitpose"]["weights"] == "PekingU/rtdetr_r50vd_coco_o365 + usyd-community/vitpose-base-simple"
    assert table["depth_pro"]["size"] == "about 1.9 GB" and table["depth_pro"]["hash"] == "not pinned"
    assert "config.json" not in str(table)


def test_the_json_says_what_each_file_is(capsys, table):
    assert cli.main(["preprocessors", "--json"]) == 0
    objects = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert objects.keys() == table.keys()
    hed = objects["hed"]
    assert hed["aliases"] == ["softedge_hed"] and hed["feeds"] == list(MODEL_NAME_WORDS["soft edges"])
    (file,) = hed["weights"]
    assert file["repo"] == "lllyasviel/Annotators" and file["size"] == 29444406 and len(file["sha256"]) == 64
    assert file["source"] and file["non_commercial"] is False
    low, _, resolution = objects["canny"]["parameters"]
    assert low == {"name": "low", "type": "int", "default": 100, "least": 0, "most": 255}
    assert resolution["name"] == "resolution" and resolution["default"] is None
    assert objects["inpaint_only+lama"]["masked"] is True and objects["inpaint"]["masked"] is False
    assert objects["depth_zoe"]["fidelity"]["measure"] == "metric depth"
    assert objects["depth_zoe"]["fidelity"]["is_better_higher"] is False
    assert "normal_bae" in objects["normal_depth"]["fidelity"]["reason"]
    paths = [file["path"] for file in objects["depth_marigold"]["weights"]]
    assert "unet/diffusion_pytorch_model.safetensors" in paths


def test_sizes_say_how_exact_they_are(table):
    form = re.compile(r"(over )?(\d+\.\d MB|about \d+(\.\d+)? [MG]B)|not stated")
    for name, row in table.items():
        assert bool(row["size"]) == bool(row["weights"]), name
        assert not row["size"] or form.fullmatch(row["size"]), (name, row["size"])
    assert table["depth_anything_v2_small"]["size"] == "about 99.2 MB"
    assert table["vitpose"]["size"] == "about 516 MB"
    assert table["depth_marigold"]["size"] == "about 5.16 GB"
    assert table["depth_hand_refiner"]["size"] == "about 1.37 GB"
    assert table["normal_dsine"]["size"] == "291.3 MB" and table["normal_dsine"]["hash"] == "pinned"
    assert table["rtmpose"]["size"] == "over 216.7 MB"


def test_each_size_and_hash_has_a_source():
    for file in {file for entry in list_preprocessors() for file in entry.weights}:
        assert file.size is None or (file.size > 0 and file.approx_size is None), file
        assert file.approx_size is None or (
            file.approx_size > 0 and float(f"{file.approx_size:.3g}") == file.approx_size
        ), file
        assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256), file
        assert bool(file.source) == bool(file.size or file.approx_size or file.sha256), file


def test_non_commercial_weights_say_so(capsys, table):
    cli.main(["preprocessors", "--json"])
    objects = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    known = {"pidinet", "depth_leres", "depth_leres++", "normal_dsine", "openpose", "softedge_anyline"}
    for name in known | {"depth_anything_v2", "depth_anything_v2_base"}:
        assert any(file["non_commercial"] for file in objects[name]["weights"]), name
        assert "non-commercial" in table[name]["licence"]
    for name in ("hed", "mlsd", "softedge_teed", "normal_bae", "depth_anything_v2_small"):
        assert not any(file["non_commercial"] for file in objects[name]["weights"]), name


def listed(capsys, *words):
    assert cli.main(["preprocessors", *words]) == 0
    return capsys.readouterr().out.splitlines()


def test_words_choose_what_is_listed(capsys):
    depth = [line.split("  ")[0] for line in listed(capsys, "depth")[1:-2]]
    assert "depth_zoe" in depth and "normal_depth" in depth and "canny" not in depth
    assert [line.split("  ")[0] for line in listed(capsys, "ZOE", "depth")[1:-2]] == ["depth_zoe", "depth_zoe_outdoor"]
    assert "softedge_teed" in "\n".join(listed(capsys, "soft edges"))  # the kind of map
    cli.main(["preprocessors", "canny", "--json"])
    assert "canny" in [each["name"] for each in json.loads(capsys.readouterr().out)]
    assert cli.main(["preprocessors", "cany"]) == 2
    assert "no preprocessor matches 'cany', the nearest are: canny" in capsys.readouterr().err


@pytest.mark.parametrize("columns", [60, 80, 100, 160])
def test_the_table_is_as_wide_as_the_terminal(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = listed(capsys, "canny") + listed(capsys, "depth_midas") + listed(capsys, "sam")
    assert max(map(len, lines)) <= max(columns, 80)  # the names alone may need more than 60
    assert lines[0].startswith("name") and lines[0].endswith("parameters")
    assert any(line.startswith("Not shown, for want of room:") for line in lines) is (columns < 160)
    whole = " ".join(" ".join(lines).split())
    assert "low 0..255 (100), high 0..255 (200)" in whole


def test_a_wide_terminal_shows_what_a_file_gets(capsys, monkeypatch):
    whole = listed(capsys)
    monkeypatch.setenv("COLUMNS", str(max(map(len, whole))))
    assert listed(capsys) == whole

"""Text from outside (names of files, keys, fields, prompts) is quoted in every message: one line, nothing a terminal
obeys. And every number from outside has a finite range."""

import json
import math
import struct

import numpy as np
import pytest
from controlnet_ext.preprocessors import find, list_preprocessors, preprocess
from controlnet_ext.preprocessors.library import Library
from controlnet_ext.preprocessors.parameters import Range
from controlnet_ext.preprocessors.poses.json import read_poses

from controlnet_ext import Unit, load
from controlnet_ext.cli import main
from controlnet_ext.files.disk import read_json
from controlnet_ext.files.image_reader import read_image
from controlnet_ext.files.image_writer import encode_image
from controlnet_ext.files.weights import read_weights
from controlnet_ext.generation.options import parse_unit
from controlnet_ext.guidance.after_steps import ColorFix
from controlnet_ext.maps.control_map import ControlMap
from controlnet_ext.sdwebui.detect import DetectFields
from controlnet_ext.sdwebui.requests import ImageToImageFields, TextToImageFields
from controlnet_ext.sdwebui.units import UnitFields

EVIL = "a\x1b[2J\ndone: 1\r\u202eb"  # clears the screen, begins a line, writes over it, and backwards
PIXELS = np.zeros((8, 8, 3), np.uint8)


def safetensors(header):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(4)


def tensor(dtype="F32"):
    return {"dtype": dtype, "shape": [1], "data_offsets": [0, 4]}


def write(folder, content, name="file"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def write_image(folder):
    return write(folder, encode_image("a.png", PIXELS), "a.png")


CASES = {
    "a missing file": lambda at: read_image(at / EVIL),
    "a file that is no image": lambda at: read_image(write(at, b"?", EVIL)),
    "a file that is no weights": lambda at: read_weights(write(at, b"?", EVIL)),
    "a file that is no JSON": lambda at: read_json(write(at, b"?", EVIL)),
    "bytes that are no image": lambda at: read_image(EVIL.encode()),
    "a tensor's key": lambda at: read_weights(write(at, safetensors({EVIL: tensor()}))),
    "a tensor's dtype": lambda at: read_weights(write(at, safetensors({"a": tensor(EVIL)}))),
    "a control model's key": lambda at: load(write(at, safetensors({f"control_model.{EVIL}": tensor()}))),
    "a control model's path": lambda at: load(at / EVIL),
    "a control model's repository": lambda at: load(f"owner/{EVIL}"),
    "a preprocessor": lambda at: preprocess(EVIL, PIXELS),
    "a parameter": lambda at: preprocess("canny", PIXELS, **{EVIL: 1}),
    "a value": lambda at: preprocess("canny", PIXELS, low=EVIL),
    "a value as text": lambda at: find("canny").parse({"low": EVIL}),
    "a mode": lambda at: Unit(ColorFix(), PIXELS, mode=EVIL),
    "a weight": lambda at: Unit(ColorFix(), PIXELS, weight=EVIL),
    "a kind of map": lambda at: ControlMap(PIXELS, EVIL),
    "a unit's text": lambda at: parse_unit(EVIL),
    "a unit's key": lambda at: parse_unit(f"canny,model=a,image=b,{EVIL}=1"),
    "a unit's value": lambda at: parse_unit(f"canny,model=a,image=b,window={EVIL}"),
    "a unit's number": lambda at: parse_unit(f"canny,model=a,image=b,weight={EVIL}"),
    "a unit's kind": lambda at: parse_unit(f"none,model=a,image={write_image(at)},kind={EVIL}"),
    "poses": lambda at: read_poses(write(at, {EVIL: 1})),
    "poses of people": lambda at: read_poses(write(at, {"people": [{EVIL: EVIL}], "canvas_width": EVIL})),
    "a folder of weights": lambda at: Library([at / EVIL]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_message_with_foreign_text_is_one_printable_line(case, tmp_path):
    try:
        CASES[case](tmp_path)
    except (ValueError, TypeError, OSError) as error:
        assert str(error).isprintable(), repr(str(error))
    else:
        pytest.fail("nothing was refused")


@pytest.mark.parametrize("table", [TextToImageFields, ImageToImageFields, DetectFields, UnitFields])
@pytest.mark.parametrize("value", [EVIL, [EVIL], {EVIL: EVIL}])
def test_a_request_s_fields_are_refused_in_printable_lines(table, value):
    fields = table({EVIL: value, **dict.fromkeys(table.list_fields(), value)}, "the request")
    lines = fields.describe_unknown_members()
    for name in table.list_fields():
        try:
            getattr(fields, name)
        except (ValueError, TypeError) as error:
            lines.append(str(error))
    assert len(lines) > 3 and all(line.isprintable() for line in lines), lines


@pytest.mark.parametrize(
    "words",
    [
        [EVIL],
        ["preprocess", EVIL, EVIL, "-o", "out.png"],
        ["preprocess", "canny", EVIL, "-o", EVIL],
        ["preprocess", "canny", "a.png", f"--{EVIL}", "1", "-o", "out.png"],
        ["inspect", EVIL],
        ["generate", EVIL, "--model", EVIL, "-o", "out.png"],
        ["generate", "a cat", "--control", EVIL, "-o", "out.png"],
        ["generate", "--from", EVIL, "-o", "out.png"],
        ["convert", EVIL, EVIL, "--to", EVIL],
        ["draw", EVIL, "-o", "out.png"],
        ["train", EVIL, "-o", EVIL],
        ["score", EVIL],
        ["score", "--control", EVIL, EVIL],
    ],
)
def test_the_command_prints_foreign_text_on_one_printable_line(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) in (1, 2)
    out, err = capsys.readouterr()
    assert out == "" and err.endswith("\n") and err[:-1].isprintable(), repr(err)


def test_every_number_of_every_preprocessor_has_a_finite_range():
    numbers = [(entry.name, p) for entry in list_preprocessors() for p in entry.parameters if p.type is not bool]
    assert len(numbers) > 30
    for name, parameter in numbers:
        low, high = parameter.range.low, parameter.range.high
        assert math.isfinite(low) and math.isfinite(high) and low < high, (name, parameter)
    for low, high in ((0, math.inf), (-math.inf, 0), (math.nan, 1), (2, 1)):
        with pytest.raises(ValueError, match="expected two finite numbers"):
            Range(low, high)


@pytest.mark.parametrize("variation", [0, 65, 20_000, 10**9, 10**400])
def test_boxes_of_tile_colorfix_are_bounded(variation):
    with pytest.raises(ValueError, match=r"^variation \d+.*, sharpness 0\.0: expected 1\.\.64"):
        ColorFix(variation)

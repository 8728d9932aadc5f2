"""JSON as people's programs write it."""

import json
import shutil

import numpy as np
import pytest
from networks import reference

from controlnet_ext import models
from controlnet_ext.batch.formats.lists import read_list
from controlnet_ext.embedded import EMBEDDED_FOLDER
from controlnet_ext.files.disk import convert_whole_numbers, parse_json, parse_whole_number, read_json
from controlnet_ext.files.image_writer import write_image
from controlnet_ext.generation.pipeline_folder import PipelineFolder
from controlnet_ext.training.data import read_examples

VALUE = {"ключ": ["ü", 1.5]}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_of_windows_is_read(tmp_path, encoding):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(VALUE, ensure_ascii=False), encoding=encoding)
    assert read_json(path) == VALUE
    assert parse_json(path.read_bytes(), "text") == VALUE


def test_json_of_windows_in_a_base_model_is_refused_by_name(tmp_path):
    shutil.copytree(EMBEDDED_FOLDER, tmp_path / "model")
    for name in ("model_index.json", "unet/config.json", "tokenizer/tokenizer_config.json"):
        path = tmp_path / "model" / name
        content = path.read_bytes()
        path.write_bytes(b"\xef\xbb\xbf" + content)
        with pytest.raises(ValueError, match=rf"{path.name}' begins with a byte order mark, which diffusers does not"):
            PipelineFolder.find(str(tmp_path / "model"))
        path.write_bytes(content)
    assert PipelineFolder.find(str(tmp_path / "model")).path == tmp_path / "model"


def test_a_caption_of_powershell_is_read(tmp_path):
    write_image(tmp_path / "a.png", np.zeros((16, 16, 3), np.uint8))
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "a.txt").write_text("ein grüner Kreis\r\n", encoding=encoding)
        assert read_examples(tmp_path)[0].caption == "ein grüner Kreis"


def test_a_list_that_begins_with_a_byte_order_mark_is_read(tmp_path):
    path = tmp_path / "list.jsonl"
    path.write_text('{"file_name": "a.png"}\n{"file_name": "b.png"}\n', encoding="utf-8-sig")
    assert [file.key for file in read_list(str(path))] == ["a", "b"]


@pytest.mark.parametrize(
    "text", [b"\xff\xfe{", b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"", b"\xef\xbb\xbf\xef\xbb\xbf{}"]
)
def test_half_an_encoding_is_refused_in_one_line(text):
    with pytest.raises(ValueError, match=r"^text is not valid JSON: .+$"):
        parse_json(text, "text")


def test_whole_numbers_may_be_written_as_floats(tmp_path):
    theirs = reference("SD1.5")
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    floats = {
        key: [float(n) for n in value] if isinstance(value, list) and all(type(n) is int for n in value) else value
        for key, value in config.items()
    }
    floats = {key: float(value) if type(value) is int else value for key, value in floats.items()}
    assert (
        floats["block_out_channels"] != config["block_out_channels"] or type(floats["block_out_channels"][0]) is float
    )
    (tmp_path / "config.json").write_text(json.dumps(floats))
    net = models.load(tmp_path)
    assert net.net_config.heads == (8, 8, 8, 8) and all(type(n) is int for n in net.net_config.heads)
    assert convert_whole_numbers({"a": [1.0, 2.5, True, "1.0", None]}) == {"a": [1, 2.5, True, "1.0", None]}
    assert [parse_whole_number(value) for value in (4.0, 4, True, 4.5, "4", float("nan"), float("inf"))] == [4, 4] + [
        None
    ] * 5

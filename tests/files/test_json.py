"""JSON as people's programs write it."""

import json

import pytest

from controlnet_ext.batch.formats.lists import read_list
from controlnet_ext.files.disk import parse_json, read_json

VALUE = {"ключ": ["ü", 1.5]}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_of_windows_is_read(tmp_path, encoding):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(VALUE, ensure_ascii=False), encoding=encoding)
    assert read_json(path) == VALUE
    assert parse_json(path.read_bytes(), "text") == VALUE


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

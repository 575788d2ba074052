"""JSON of strangers: one kind of error for everything that a decoder raises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unify_posttrain.untrusted.documents import STRICT, BrokenDocumentError, DocumentError, parse, read_object

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (DEEP, "nested too deeply"),
        ('{"a": ' + DEEP + "}", "nested too deeply"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "more digits than can be read"),
        ('{"a": {"b": 1, "b": 2}}', "key 'b' twice"),
    ],
    ids=["array", "in an object", "objects", "digits", "twice"],
)
def test_what_cannot_be_held_is_no_damage(text: str, message: str) -> None:
    with pytest.raises(DocumentError, match=message) as raised:
        parse(text, STRICT)
    assert not isinstance(raised.value, BrokenDocumentError)


@pytest.mark.parametrize(
    ("text", "message"),
    [("[" * 100, "invalid JSON"), ('{"a": 1', r"column 8"), ("{\n1", "line 2"), (b'{"a": "\xff"}', r"not UTF-8 text \(byte 7\)")],
)
def test_damage_is_told_from_it(text: str | bytes, message: str) -> None:
    with pytest.raises(BrokenDocumentError, match=message):
        parse(text)


def test_what_json_writes_in_other_ways_is_read() -> None:
    assert parse(b'\xef\xbb\xbf{"a": [1e3, NaN]}')["a"][0] == 1000  # a mark of byte order, as some editors leave it
    assert parse('{"a": 1, "a": 2}') == {"a": 2}  # model folders are read as transformers reads them
    assert parse('"\\ud800"') == "\ud800"


def test_a_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(DEEP)
    with pytest.raises(ValueError, match=r"config\.json cannot be read: is nested too deeply; get the file again"):
        read_object(path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match=r"holds list and no JSON object"):
        read_object(path)
    path.write_text(json.dumps({"a": 1}))
    assert read_object(path) == {"a": 1}

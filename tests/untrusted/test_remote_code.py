"""Folders that ask for code of their own: found in every file and at every depth; the word alone is no code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.strangers import ASKING
from unify_posttrain.untrusted.remote_code import custom_code, local_documents, refuse_code


@pytest.mark.parametrize("file", [*ASKING, "anything_else.json"])
def test_every_json_of_the_folder_is_looked_at(file: str, tmp_path: Path) -> None:
    content = ASKING.get(file, {"a": [{"auto_map": "evil.Evil"}]})
    (tmp_path / file).write_text(json.dumps({"model_type": "qwen2", **content}))
    with pytest.raises(ValueError, match=rf"key=x: .*{file} asks for Python code .*\(auto_map: .*evil\.Evil.*set trust\.me=true"):
        refuse_code(tmp_path, "key=x", "trust.me")
    with pytest.raises(ValueError, match="nothing runs such code here"):
        refuse_code(tmp_path, "key=x", None)


def test_spellings(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer_config.json"
    for text in (
        '{"auto\\u005fmap": {"AutoTokenizer": ["a.B", null]}}',
        '{"auto_map": ["a.B", null]}',
        '{"auto_map": 1, "auto_map": "a.B"}',
    ):
        file.write_text(text)
        assert custom_code(tmp_path) is not None, text
    for text in ("{}", '{"auto_map": {}}', '{"auto_map": null}', '{"model": {"vocab": {"auto_map": 7}}}', '["auto_map"]'):
        file.write_text(text)
        assert custom_code(tmp_path) is None, text


def test_a_file_that_transformers_reads_must_be_json(tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text("no JSON")
    assert custom_code(tmp_path) is None
    for text in ("no JSON", "[" * 100_000):
        (tmp_path / "tokenizer_config.json").write_text(text)
        with pytest.raises(ValueError, match=r"tokenizer_config\.json cannot be read"):
            custom_code(tmp_path)


def test_names_on_the_hub_are_looked_up_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def snapshot_download(name: str, **options: object) -> str:
        asked.append((name, options))
        if name == "some/body":
            raise OSError("no network")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert local_documents(str(tmp_path), download=True) == tmp_path and not asked
    assert local_documents("owner/name", download=False) == tmp_path
    assert local_documents("some/body", download=True) is None
    assert asked == [
        ("owner/name", {"allow_patterns": ["*.json"], "local_files_only": True}),
        ("some/body", {"allow_patterns": ["*.json"], "local_files_only": False}),
    ]

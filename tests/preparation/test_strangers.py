"""Sources written by strangers: only files of the folder are read and hashed, and one odd row is one counted drop."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.strangers import with_code
from unify_posttrain.tasks import PREPARERS

COLUMNS = dict.fromkeys(("target", "hint", "images", "data_source", "ability", "id", "subject", "level")) | {
    "prompt": "q",
    "ground_truth": "a",
}
DEEP = "[" * 100_000 + "]" * 100_000
SECRET = '{"q": "secret", "a": "1"}\n'


@pytest.fixture
def convert(prepared: Callable) -> Callable[..., tuple[list[dict], dict]]:
    def run(source: Path, **changes: Any) -> tuple[list[dict], dict]:
        return prepared("convert", source, **{"columns": COLUMNS, "max_bad_share": 0.5, **changes})

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder with two splits, and a file beside it that nobody asked for."""
    folder = tmp_path / "data"
    (folder / "data").mkdir(parents=True)
    (tmp_path / "secret.jsonl").write_text(SECRET)
    for split in ("train", "test"):
        (folder / "data" / f"{split}-00000-of-00001.jsonl").write_text(json.dumps({"q": f"of {split}", "a": "1"}) + "\n")
    return folder


def card(folder: Path, configs: Any, name: str = "README.md", **more: Any) -> None:
    text = json.dumps({"configs": configs, **more})  # JSON is YAML
    (folder / name).write_text(f"---\n{text}\n---\nA data set.\n" if name == "README.md" else text)


def questions(rows: list[dict]) -> list[str]:
    return [row["prompt"][0]["content"] for row in rows]


# --- which files -------------------------------------------------------------------------------------------------------


def test_files_of_the_split_are_read_and_hashed(convert: Callable, folder: Path) -> None:
    rows, manifest = convert(folder)
    file = "data/train-00000-of-00001.jsonl"
    assert questions(rows) == ["of train"]
    digest = hashlib.sha256((folder / file).read_bytes()).hexdigest()
    assert manifest["source"] == {"files": {file: digest}, "splits": {"train": [file]}}
    assert questions(convert(folder, split="test")[0]) == ["of test"]
    with pytest.raises(ValueError, match=r"prepare\.task\.split=dev: .*data has train, test; choose one"):
        convert(folder, split="dev")


def test_a_readme_may_say_which_files_of_the_folder(convert: Callable, folder: Path) -> None:
    (folder / "other.jsonl").write_text('{"q": "other", "a": "1"}\n')
    card(
        folder,
        [
            {"config_name": "default", "data_files": {"train": "data/test-*", "dev": ["*.jsonl"]}},
            {"config_name": "second", "data_files": "other.jsonl"},
            {"config_name": "third", "data_dir": "data"},
        ],
    )  # fmt: skip
    rows, manifest = convert(folder)
    assert questions(rows) == ["of test"]
    assert manifest["source"]["splits"] == {"train": ["data/test-00000-of-00001.jsonl"]}
    assert questions(convert(folder, split="dev")[0]) == questions(convert(folder, config_name="second")[0]) == ["other"]
    assert questions(convert(folder, config_name="third")[0]) == ["of train"]
    with pytest.raises(ValueError, match=r"prepare\.task\.config_name=no: the README of .* has default, second, third"):
        convert(folder, config_name="no")


def test_a_readme_that_names_other_files_makes_a_second_call_read_them(convert: Callable, folder: Path) -> None:
    assert questions(convert(folder)[0]) == ["of train"]
    card(folder, [{"config_name": "default", "data_files": "data/test-*"}])
    assert questions(convert(folder)[0]) == ["of test"]


@pytest.mark.parametrize("name", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize("form", ["text", "list", "split", "mapping"])
@pytest.mark.parametrize(
    "path", ["{parent}/secret.jsonl", "../secret.jsonl", "data/../../secret.jsonl", "https://x.org/a.jsonl", "zip://a::../b.zip",
             "hf://datasets/a/b/c.jsonl", "~/secret.jsonl"],
)  # fmt: skip
def test_a_readme_cannot_name_files_elsewhere(convert: Callable, folder: Path, name: str, form: str, path: str) -> None:
    path = path.format(parent=folder.parent)
    forms = {"text": path, "list": [path], "split": [{"split": "train", "path": [path]}], "mapping": {"train": path}}
    card(folder, [{"config_name": "default", "data_files": forms[form]}], name)
    with pytest.raises(ValueError, match=r"its README names .*, which is outside of the folder"):
        convert(folder)


@pytest.mark.parametrize("data_dir", ["..", "/", "../data"])
def test_nor_a_folder_elsewhere(convert: Callable, folder: Path, data_dir: str) -> None:
    card(folder, [{"config_name": "default", "data_dir": data_dir}])
    with pytest.raises(ValueError, match="outside of the folder"):
        convert(folder)


def test_links_out_of_the_folder_are_refused(convert: Callable, folder: Path) -> None:
    file = folder / "data" / "train-00000-of-00001.jsonl"
    file.unlink()
    file.symlink_to(folder.parent / "secret.jsonl")
    with pytest.raises(ValueError, match=r"is a link to .*secret\.jsonl, outside of .*put the file itself there"):
        convert(folder)
    (folder / "README.md").symlink_to(folder.parent / "secret.jsonl")
    with pytest.raises(ValueError, match=r"README\.md is a link to"):
        convert(folder, split="test")


@pytest.mark.parametrize("text", ["---\nconfigs: [\n---\n", "---\nconfigs: 3\n---\n", "---\nconfigs: [1]\n---\n",
                                  "---\nconfigs: [{data_files: 3}]\n---\n", "---\n" + "[" * 5000 + "\n---\n"])  # fmt: skip
def test_a_readme_that_cannot_be_read(convert: Callable, folder: Path, text: str) -> None:
    (folder / "README.md").write_text(text)
    with pytest.raises(ValueError, match=r"README") as raised:
        convert(folder)
    assert "\n" not in str(raised.value)


def test_what_a_folder_says_of_types_and_readers_has_no_effect(convert: Callable, folder: Path) -> None:
    infos = {"default": {"features": {"q": {"_type": "Image"}, "a": {"dtype": "no such type", "_type": "Value"}}}}
    (folder / "dataset_infos.json").write_text(json.dumps(infos))
    (folder / "data.py").write_text("raise SystemExit('a loading script was run')")
    features = [{"name": "q", "dtype": "image"}, {"name": "a", "dtype": "no such type"}]
    card(folder, [{"config_name": "default", "data_files": "data/train-*", "field": "x"}], dataset_info={"features": features})
    assert questions(convert(folder)[0]) == ["of train"]


def test_a_column_that_calls_itself_an_image_is_not_opened(convert: Callable, tmp_path: Path) -> None:
    """The schema of a parquet file may say that a column holds images; decoding would open the path or address of each row."""
    trap = tmp_path / "trap.png"
    table = pa.table({"q": ["x"], "a": ["1"], "picture": [{"bytes": None, "path": str(trap)}]})
    features = {"info": {"features": {"picture": {"_type": "Image"}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), tmp_path / "a.parquet")
    assert questions(convert(tmp_path / "a.parquet")[0]) == ["x"]  # nothing was opened: there is no such file


@pytest.mark.parametrize("kind", ["gzip", "zip", "tar"])
@pytest.mark.parametrize("named", [True, False])
def test_archives_are_not_unpacked(convert: Callable, tmp_path: Path, kind: str, named: bool) -> None:
    path = tmp_path / (f"rows.jsonl.{kind}" if named else "rows.jsonl")
    if kind == "gzip":
        path.write_bytes(gzip.compress(SECRET.encode()))
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("../rows.jsonl", SECRET)
    else:
        with tarfile.open(path, "w") as archive:
            entry = tarfile.TarInfo("../rows.jsonl")
            entry.size = len(SECRET)
            archive.addfile(entry, io.BytesIO(SECRET.encode()))
    with pytest.raises(ValueError, match=r"the format must be" if named else rf"is an archive \({kind}\); unpack it first"):
        convert(path)


def test_an_archive_in_a_folder_is_passed_over_unless_it_is_named(convert: Callable, folder: Path) -> None:
    with zipfile.ZipFile(folder / "data" / "train-more.zip", "w") as archive:
        archive.writestr("train.jsonl", SECRET)
    assert questions(convert(folder)[0]) == ["of train"]
    card(folder, [{"config_name": "default", "data_files": "data/train-*"}])
    with pytest.raises(ValueError, match=r"names train-more\.zip for split train; the format must be .*unpack or convert"):
        convert(folder)


@pytest.mark.parametrize("name", ["rows[1].jsonl", "ro*s.jsonl"])
def test_names_with_signs_of_patterns_are_names(convert: Callable, tmp_path: Path, name: str) -> None:
    (tmp_path / "rows1.jsonl").write_text(SECRET)
    (tmp_path / name).write_text('{"q": "asked for", "a": "1"}\n')
    rows, manifest = convert(tmp_path / name)
    assert questions(rows) == ["asked for"] and list(manifest["source"]["files"]) == [name]
    folder = tmp_path / "data[1]"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"q": "in a folder", "a": "1"}\n')
    assert questions(convert(folder)[0]) == ["in a folder"]


@pytest.mark.parametrize("path", ["/etc/rows.jsonl", "../x/rows.jsonl", "https://x.org/rows.jsonl"])
def test_a_data_set_on_the_hub_cannot_name_files_elsewhere(
    settings_of: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    from huggingface_hub import DatasetCardData

    found = SimpleNamespace(sha="c0ffee", card_data=DatasetCardData(configs=[{"config_name": "a", "data_files": [{"path": path}]}]))
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: found)
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(ValueError, match=r"its README names .*none of its files and is not read"):
        PREPARERS["dapo_math"](tmp_path, settings_of("dapo_math"))


def test_images_of_a_data_set_on_the_hub_stay_as_they_are(tmp_path: Path) -> None:
    from datasets import Dataset, Features, Image, List, Value

    from unify_posttrain.preparation.sources import undecoded

    picture = {"bytes": None, "path": str(tmp_path / "no.png")}
    kinds = {"alone": Image(), "several": List(Image()), "inside": {"a": Image(), "b": Value("int64")}}
    rows = {"alone": [picture], "several": [[picture]], "inside": [{"a": picture, "b": 1}]}
    for name, kind in kinds.items():
        made = Dataset.from_dict({name: rows[name], "q": ["x"]}, features=Features({name: kind, "q": Value("string")}))
        for form in (made, made.to_iterable_dataset()):
            assert [row[name] for row in undecoded(form)] == rows[name]
            with pytest.raises(FileNotFoundError):
                list(form)


# --- which rows --------------------------------------------------------------------------------------------------------

GOOD = ['{"q": "first", "a": "1"}', '{"q": "last", "a": "2"}']
# A row that cannot be used -> the words of its one example in the manifest.
ODD = {
    "a deep value": ('{"q": "x", "a": ' + DEEP + "}", "is nested too deeply"),
    "a deep value in a column that nobody reads": ('{"q": "x", "a": "1", "z": ' + DEEP + "}", "is nested too deeply"),
    "deep objects": ('{"q": "x", "a": ' + '{"b":' * 100_000 + "1" + "}" * 100_000 + "}", "is nested too deeply"),
    "a large number": ('{"q": "x", "a": ' + "9" * 5000 + "}", "more digits than can be read"),
    "a key twice": ('{"q": "x", "a": "1", "a": "2"}', "key 'a' twice"),
    "half a pair": ('{"q": "x \\ud800", "a": "1"}', "'prompt': holds half of a UTF-16 pair"),
    "half a pair as truth": ('{"q": "x", "a": "\\udc00"}', "'ground_truth': holds half of a UTF-16 pair"),
    "a NUL": ('{"q": "x\\u0000y", "a": "1"}', "'prompt': holds a NUL character"),
    "NaN": ('{"q": "x", "a": NaN}', "'a': holds no ground truth"),
    "NaN among several": ('{"q": "x", "a": [1, NaN]}', "'a': cannot be written as JSON"),
    "infinity": ('{"q": "x", "a": Infinity}', "'a': must be text, a number"),
    "a number beyond floats": ('{"q": "x", "a": 1e999}', "'a': must be text, a number"),
}


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("form", ["rows.jsonl", "rows.json", "lines.json"])
@pytest.mark.parametrize("odd", ODD)
def test_an_odd_row_is_one_counted_drop(convert: Callable, tmp_path: Path, odd: str, form: str, place: int) -> None:
    line, words = ODD[odd]
    lines = [*GOOD[:place], line, *GOOD[place:]]
    (tmp_path / form).write_text("[" + ",\n ".join(lines) + "]" if form == "rows.json" else "\n".join(lines))
    rows, manifest = convert(tmp_path / form)
    assert questions(rows) == ["first", "last"]
    found = manifest["report"]["train"]
    assert (found["read"], found["kept"], sum(found["dropped"].values())) == (3, 2, 1)
    assert f"row {place}: " in found["examples"][0] and words in found["examples"][0] and len(found["examples"][0]) < 1000
    with pytest.raises(ValueError, match=f"row {place}: ") as raised:
        convert(tmp_path / form, on_bad_row="error")
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("[{" * 100_000, None),  # no JSON: a text that begins like it
        ('[{"role":' * 50_000 + "1" + "}]" * 50_000, "is nested too deeply"),
        ('[{"role": "assistant", "content": ' + DEEP + "}]", "is nested too deeply"),
        ('[{"role": ' + "9" * 5000 + "}]", "more digits"),
        ("\\boxed{" + "{" * 100_000 + "1" + "}" * 100_000 + "}", None),
        ("(" * 100_000 + "1" + ")" * 100_000, None),
        ("half \ud800", "'target': holds half of a UTF-16 pair"),
        ("nul \0", "'target': holds a NUL"),
    ],
    ids=["open", "messages", "content", "number", "braces", "brackets", "surrogate", "nul"],
)
def test_odd_targets(convert: Callable, write: Callable, target: str, words: str | None) -> None:
    rows = [{"q": "first", "a": "1", "t": "one"}, {"q": "odd", "a": "1", "t": target}, {"q": "last", "a": "1", "t": "one"}]
    made, manifest = convert(write(rows), columns={**COLUMNS, "target": "t"})
    found = manifest["report"]["train"]
    if words is None:
        assert questions(made) == ["first", "odd", "last"] and made[1]["target"][0]["content"] == target
        return
    assert questions(made) == ["first", "last"] and found["dropped"] == {"malformed": 1} and words in found["examples"][0]


@pytest.mark.parametrize(
    "truth", [DEEP, "{" * 100_000, "\\frac" * 50_000, "(" * 100_000 + ")" * 100_000, "9" * 100_000], ids=range(5)
)
def test_ground_truths_that_no_grader_can_hold(convert: Callable, write: Callable, truth: str) -> None:
    made, manifest = convert(write([{"q": "first", "a": "1"}, {"q": "odd", "a": truth}, {"q": "last", "a": "2"}]), gold_version=1)
    assert [question for question in questions(made) if question != "odd"] == ["first", "last"]
    assert manifest["report"]["train"]["read"] == 3


@pytest.mark.parametrize("form", ["rows.jsonl", "rows.json"])
def test_a_line_of_ten_megabytes_is_a_row(convert: Callable, tmp_path: Path, form: str) -> None:
    line = json.dumps({"q": "long " + "x" * 10_000_000, "a": "1"})
    lines = [GOOD[0], line, GOOD[1]]
    (tmp_path / form).write_text("[" + ",".join(lines) + "]" if form == "rows.json" else "\n".join(lines))
    assert [len(question) for question in questions(convert(tmp_path / form)[0])] == [5, 10_000_005, 4]


@pytest.mark.parametrize("form", ["rows.jsonl", "rows.json"])
def test_a_mark_of_byte_order_is_no_part_of_the_text(convert: Callable, tmp_path: Path, form: str) -> None:
    text = "\ufeff" + ("[" + ",".join(GOOD) + "]" if form == "rows.json" else "\n".join(GOOD))
    (tmp_path / form).write_text(text, encoding="utf-8")
    assert questions(convert(tmp_path / form)[0]) == ["first", "last"]


def test_columns_that_only_some_rows_have(convert: Callable, write: Callable, tmp_path: Path) -> None:
    rows = [{"a": "1"}, {"q": "x", "a": 1}, {"q": "y", "a": 2.0, "more": 3}]
    made, manifest = convert(write(rows))
    assert questions(made) == ["x", "y"] and [row["reward_model"]["ground_truth"] for row in made] == ["1", "2"]
    assert manifest["report"]["train"]["dropped"] == {"malformed": 1}


def test_bytes_that_are_no_text_in_parquet_cost_their_row(convert: Callable, tmp_path: Path) -> None:
    texts = pa.array([b"first", b"\xff\xfe", b"last"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"q": texts, "a": ["1", "1", "1"]}), tmp_path / "a.parquet")
    made, manifest = convert(tmp_path / "a.parquet")
    assert questions(made) == ["first", "last"] and "no UTF-8 text" in manifest["report"]["train"]["examples"][0]


@pytest.mark.parametrize(
    "text", ['[{"q": "x", "a": "1"}', '[{"q": "x", "a": "1"} {"q": "y"}]', "[1, 2]", '[{"q": ' + "[" * 100_000], ids=range(4)
)
def test_arrays_that_are_damaged(convert: Callable, tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(ValueError, match=r"rows\.json: .*write the file again"):
        convert(tmp_path / "rows.json")


def test_nothing_but_odd_rows(convert: Callable, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(DEEP + "\n" + DEEP + "\n")
    with pytest.raises(ValueError, match=r"none of 2 rows can be read: .*nested too deeply"):
        convert(tmp_path / "rows.jsonl")
    (tmp_path / "rows.json").write_text("[]")
    with pytest.raises(ValueError, match="holds no rows"):
        convert(tmp_path / "rows.json")


# --- tokenizers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["tokenizer_config.json", "config.json"])
def test_lengths_are_not_counted_with_code_of_strangers(
    convert: Callable, write: Callable, word_tokenizer: str, tmp_path: Path, file: str
) -> None:
    marker = with_code(Path(word_tokenizer), tmp_path / "evil", file)
    with pytest.raises(ValueError, match=rf"prepare\.task\.tokenizer=.*evil: .*{file} asks for Python code .*\(auto_map"):
        convert(write([{"q": "x", "a": "1"}]), tokenizer=str(tmp_path / "evil"))
    assert not marker.exists()

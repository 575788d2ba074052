"""What an evaluation reads: benchmark files, prompts, models; and what it says about bad ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unify_posttrain.evaluation.benchmarks import files_digest, read_problems
from unify_posttrain.evaluation.likelihood import check_targets
from unify_posttrain.evaluation.models import Model, named_models, safe_name
from unify_posttrain.evaluation.prompts import PromptSettings, load_tokenizer, prompts_digest, render
from unify_posttrain.untrusted.weights import fingerprint

from .conftest import write_benchmark

MESSAGES = [{"role": "user", "content": "1+1="}]


def table(path: Path, **columns: Any) -> Path:
    """One row of the schema, with columns replaced; None removes one."""
    row = {"data_source": "a", "prompt": MESSAGES, "reward_model": {"style": "rule", "ground_truth": "2"}, **columns}
    pq.write_table(pa.Table.from_pylist([{name: value for name, value in row.items() if value is not None}]), path)
    return path


def test_rows_are_numbered_through_all_files(tmp_path: Path) -> None:
    first = write_benchmark(tmp_path / "a.parquet", [("x", "1+1=", "2"), ("y", "1+2=", "3")])
    second = write_benchmark(tmp_path / "b.parquet", [("x", "2+2=", "4")])
    problems = read_problems([first, second])
    assert [(problem.row, problem.source, problem.ground_truth) for problem in problems] == [
        (0, "x", "2"),
        (1, "y", "3"),
        (2, "x", "4"),
    ]
    assert problems[2].messages == [{"role": "user", "content": "2+2="}]
    assert problems[2].extra_info == {"index": 0, "split": "test"}


def test_sources_are_picked_and_keep_their_rows(tmp_path: Path) -> None:
    file = write_benchmark(tmp_path / "a.parquet", [("x", "1+1=", "2"), ("y", "1+2=", "3"), ("x", "1+3=", "4")])
    assert [problem.row for problem in read_problems([file], sources=["x"])] == [0, 2]
    assert [problem.row for problem in read_problems([file], 1, sources=["y"])] == [1]
    with pytest.raises(ValueError, match=r"a\.parquet has no rows of data_source=z \(it has x, y\)"):
        read_problems([file], sources=["x", "z"])


def test_worked_answers_are_read_if_asked_for(tmp_path: Path) -> None:
    messages = [{"role": "assistant", "content": "2"}]
    for given, expected in ((messages, messages), ("2", messages), ([], None)):
        file = table(tmp_path / "t.parquet", target=given)
        assert [read_problems([file], with_targets=flag)[0].target for flag in (True, False)] == [expected, None]
    with pytest.raises(ValueError, match=r"benchmark b, row 0 \(and 0 more\) has no worked answer"):
        check_targets(read_problems([table(tmp_path / "u.parquet")], with_targets=True), "b")


def test_ground_truth_may_be_structured_and_extra_info_absent(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", reward_model={"ground_truth": {"target": 24, "numbers": [1, 2]}})
    (problem,) = read_problems([path])
    assert problem.ground_truth == {"target": 24, "numbers": [1, 2]} and problem.extra_info == {}


def test_choice_of_problems_is_the_trainers(tmp_path: Path) -> None:
    path = write_benchmark(tmp_path / "a.parquet", [("x", f"{i}+1=", str(i + 1)) for i in range(9)])
    # unify_posttrain.startup.dataset: default_rng(seed).choice(rows, size, replace=False)
    expected = np.random.default_rng(5).choice(9, size=4, replace=False).tolist()
    assert [problem.row for problem in read_problems([path], 4, 5)] == expected
    assert [problem.row for problem in read_problems([path], 4)] == [0, 1, 2, 3]
    assert len(read_problems([path], -1)) == len(read_problems([path], 100)) == 9


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"prompt": None}, "column 'prompt' is missing; present: data_source, reward_model"),
        ({"prompt": "1+1="}, "row 0: column 'prompt' must be a non-empty list"),
        ({"prompt": [{"role": "user"}]}, "row 0: column 'prompt'"),
        ({"reward_model": {"style": "rule"}}, "row 0: column 'reward_model' must hold a ground_truth"),
        ({"data_source": 3}, "row 0: column 'data_source' must be text, not 3"),
    ],
)
def test_malformed_benchmarks(columns: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_problems([table(tmp_path / "a.parquet", **columns)])


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.parquet does not exist; write it with: python -m unify_posttrain\.prepare"):
        read_problems([tmp_path / "none.parquet"])
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(table(tmp_path / "a.parquet").read_bytes()[:-9])
    with pytest.raises(ValueError, match="cannot be read as parquet"):
        read_problems([broken])
    pq.write_table(pq.read_table(tmp_path / "a.parquet").slice(0, 0), tmp_path / "empty.parquet")
    with pytest.raises(ValueError, match="holds no rows"):
        read_problems([tmp_path / "empty.parquet"])


def test_digest_of_files_sees_content_and_order(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(b"1")
    b.write_bytes(b"2")
    assert len({files_digest([a]), files_digest([b]), files_digest([a, b]), files_digest([b, a])}) == 4


def prompts(limit: int = 20, drop: bool = True, template: str | None = None, **options: Any) -> PromptSettings:
    return PromptSettings(limit, drop, options, template)


def test_prompts_are_the_chat_templates(tiny_model: Path, benchmark_file: Path) -> None:
    tokenizer = load_tokenizer(tiny_model, None)
    rendered = render(tokenizer, read_problems([benchmark_file]), prompts())
    assert tokenizer.decode(rendered[0]) == "<|user|>1+2=<|end|><|assistant|>"
    assert sorted(rendered) == [0, 1, 2, 3, 4]


def test_template_and_options_of_the_run(tiny_model: Path, benchmark_file: Path) -> None:
    template = "{%- for m in messages -%}{{ m['content'] }}{%- endfor -%}{{ ending }}"
    tokenizer = load_tokenizer(tiny_model, template)
    rendered = render(tokenizer, read_problems([benchmark_file]), prompts(template=template, ending="?"))
    assert tokenizer.decode(rendered[3]) == "5+5=?"


def test_long_prompts_are_dropped_or_refused(tiny_model: Path, benchmark_file: Path) -> None:
    problems, tokenizer = read_problems([benchmark_file]), load_tokenizer(tiny_model, None)
    # <|user|>1+2=<|end|><|assistant|> has 3 + 4 tokens, the third question 3 + 12
    assert sorted(render(tokenizer, problems, prompts(7))) == [0, 1, 3, 4]
    with pytest.raises(ValueError, match=r"row 2 \(and 0 more\) is longer than max_prompt_length=14"):
        render(tokenizer, problems, prompts(14, drop=False))
    with pytest.raises(ValueError, match="every one of 5 prompts"):
        render(tokenizer, problems, prompts(6))


def test_a_model_without_template_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="custom_chat_template"):
        load_tokenizer(tmp_path, None)


def test_prompts_digest_sees_rows_and_tokens() -> None:
    base = {0: [1, 2], 1: [3]}
    assert prompts_digest(base) == prompts_digest({1: [3], 0: [1, 2]})
    assert len({prompts_digest(each) for each in (base, {0: [1, 2], 2: [3]}, {0: [1], 1: [2, 3]})}) == 3


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ("Qwen/Qwen2.5-Math-7B", [Model("Qwen2.5-Math-7B", "Qwen/Qwen2.5-Math-7B")]),
        (["a/step_1", "b/step_1", "c"], [Model("step_1", "a/step_1"), Model("step_1-2", "b/step_1"), Model("c", "c")]),
        ({"mine": "a/x", "../theirs": "b"}, [Model("mine", "a/x"), Model("_theirs", "b")]),
    ],
)
def test_models_and_their_labels(node: Any, expected: list[Model]) -> None:
    assert named_models(node) == expected


@pytest.mark.parametrize("node", [None, [], {}, [None], "", 3])
def test_no_models(node: Any) -> None:
    with pytest.raises(ValueError, match="model="):
        named_models(node)


@pytest.mark.parametrize("name", ["../../etc/passwd", "..", "/", "a/b", ".hidden", "", "x y\n"])
def test_names_stay_in_their_folder(name: str) -> None:
    safe = safe_name(name)
    assert safe and "/" not in safe and not safe.startswith(".") and "\n" not in safe


def model_folder(folder: Path, weights: bytes) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"hidden_size": 4}))
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_fingerprint_sees_both_ends_the_size_and_the_name_of_weights(tmp_path: Path) -> None:
    base = b"a" * 10 + b"b" * 100 + b"c" * 10
    folders = [
        model_folder(tmp_path / "0", base),
        model_folder(tmp_path / "1", b"x" + base[1:]),
        model_folder(tmp_path / "2", base[:-1] + b"x"),
        model_folder(tmp_path / "3", base + b"c"),
        model_folder(tmp_path / "4", base),
    ]
    (folders[4] / "model.safetensors").rename(folders[4] / "model-00001.safetensors")
    assert len({fingerprint(folder, edge=8) for folder in folders}) == 5
    assert fingerprint(folders[0], 8) == fingerprint(model_folder(tmp_path / "same", base), 8)
    (folders[0] / "config.json").write_text("{}")
    assert fingerprint(folders[0], 8) != fingerprint(tmp_path / "same", 8)


def test_folders_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        fingerprint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds no weights.*unify_posttrain\.export"):
        fingerprint(tmp_path)

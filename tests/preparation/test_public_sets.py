"""Public data sets in their published columns: what becomes of each row, and of each way a row can be wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unify_posttrain.preparation.rows import RowFault
from unify_posttrain.tasks import PREPARERS, openr1_math, tldr

COMPLETE, VERIFIED = "is_reasoning_complete", "correctness_math_verify"


def verl_row(question: str = "1+1?", target: Any = "<think>\nx</think>\n\\boxed{2}", truth: Any = "2", **changes: Any) -> dict:
    """A row as Elliott/Openr1-Math-46k-8192 stores it."""
    return {
        "data_source": "openr1",
        "prompt": [{"role": "system", "content": "Two sections."}, {"role": "user", "content": question}],
        "target": [{"role": "assistant", "content": target}] if isinstance(target, str) else target,
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": truth},
        "extra_info": {"index": 7, "split": "default"},
        **changes,
    }


def trace_row(problem: str, traces: list[tuple[str, bool, bool]], answer: str = "2", **changes: Any) -> dict:
    """A row of open-r1/OpenR1-Math-220k; traces are (text, complete, verified)."""
    return {
        "problem": problem,
        "solution": "…",
        "answer": answer,
        "problem_type": "Algebra",
        "question_type": "math-word-problem",
        "source": "olympiads",
        "uuid": f"uuid-{problem}",
        "generations": [text for text, _, _ in traces],
        COMPLETE: [complete for _, complete, _ in traces],
        VERIFIED: [verified for _, _, verified in traces],
        "correctness_llama": None,
        "finish_reasons": None,
        "correctness_count": sum(verified for _, _, verified in traces),
        "messages": [{"role": "user", "content": problem}],
        **changes,
    }


# --- OpenR1-Math -------------------------------------------------------------------------------------------------------


def test_openr1_in_verl_columns(prepared: Callable, write: Callable) -> None:
    rows, manifest = prepared("openr1_math", write([verl_row("1+1?"), verl_row("2+2?", truth="4", target="four")]))
    assert rows[0] == {
        "data_source": "openr1",
        "prompt": [{"role": "system", "content": "Two sections."}, {"role": "user", "content": "1+1?"}],
        "target": [{"role": "assistant", "content": "<think>\nx</think>\n\\boxed{2}"}],
        "target_lst": ["<think>\nx</think>\n\\boxed{2}"],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "2"},
        "extra_info": {"index": 0, "split": "train", "id": "7", "subject": None, "level": None},
    }
    assert rows[1]["extra_info"]["index"] == 1 and rows[1]["target_lst"] == ["four"]
    assert manifest["rows"] == {"train.parquet": 2}


def test_openr1_traces_are_filtered_as_published(prepared: Callable, write: Callable) -> None:
    source = write(
        [
            trace_row("a", [("cut", False, True), ("good one", True, True), ("wrong", True, False), ("good two", True, True)]),
            trace_row("b", [("cut", False, True), ("cut too", False, False)]),
            trace_row("c", [("cut", False, True), ("wrong", True, False)]),
            trace_row("d", [("x", True, True)], correctness_math_verify=None),  # only another judge looked at it
        ]
    )
    rows, manifest = prepared("openr1_math", source)
    assert [row["prompt"] for row in rows] == [[{"role": "user", "content": "a"}]]
    assert rows[0]["target"] == [{"role": "assistant", "content": "good one"}]
    assert rows[0]["target_lst"] == ["good one", "good two"]
    assert rows[0]["extra_info"] | {"index": 0} == {
        "index": 0,
        "split": "train",
        "id": "uuid-a",
        "subject": "Algebra",
        "level": None,
    }
    report = manifest["report"]["train"]
    assert report["dropped"] == {"incomplete_trace": 1, "failed_verification": 2}
    assert report["traces_left_out"] == {"incomplete_trace": 1, "failed_verification": 1}


def test_openr1_traces_over_the_limit_go(prepared: Callable, write: Callable, word_tokenizer: str) -> None:
    # One word is one token; with the end token "a b c" has 4, "a b c d" has 5. Prompt "user q answer": 3 tokens.
    source = write(
        [
            trace_row("q", [("a b c d", True, True), ("a b c", True, True)]),
            trace_row("r", [("a b c d e", True, True)]),
            trace_row("s t u v", [("a", True, True)]),  # prompt of 6 tokens
        ]
    )
    limits = {"tokenizer": word_tokenizer, "max_response_length": 4, "max_prompt_length": 5}
    rows, manifest = prepared("openr1_math", source, too_long="drop", **limits)
    assert [row["target_lst"] for row in rows] == [["a b c"]]
    report = manifest["report"]["train"]
    assert report["dropped"] == {"too_long": 2} and report["traces_left_out"] == {"too_long": 1}
    # Targets of 5, 4, 6 and 2 tokens, prompts of 3, 3 and 6.
    assert report["tokens"]["target"] | {"quantiles": None} == {
        "count": 4,
        "limit": 4,
        "over": 2,
        "mean": 4.2,
        "quantiles": None,
    }
    assert report["tokens"]["target"]["quantiles"]["0.5"] == 4 and report["tokens"]["target"]["quantiles"]["1"] == 6
    assert (report["tokens"]["prompt"]["over"], report["tokens"]["prompt"]["mean"]) == (1, 4.0)
    kept, _ = prepared("openr1_math", source, **limits)  # too_long=keep only reports
    assert [len(row["target_lst"]) for row in kept] == [2, 1, 1]


@pytest.mark.parametrize("values", [[True], "yes", [True, True, True]])
def test_openr1_verdicts_must_match_the_traces(values: Any) -> None:
    row = trace_row("a", [("x", True, True), ("y", True, True)])
    with pytest.raises(RowFault, match="one value for each of 2 generations") as raised:
        openr1_math.read_traces({**row, VERIFIED: values})
    assert raised.value.reason == "malformed"


def test_gold_that_the_grader_cannot_parse_is_dropped(prepared: Callable, write: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[list[str], int]] = []
    limits = {"workers": 1, "timeout_seconds": 5.0, "memory_mb": 1024}  # conf/prepare/common.yaml

    def fake(truths: list[str], version: int, **given: Any) -> list[bool]:
        assert given == limits
        asked.append((truths, version))
        return [truth != "see figure" for truth in truths]

    monkeypatch.setattr("unify_posttrain.rewards.math.gradable", fake)
    source = write([verl_row("a"), verl_row("b", truth="see figure"), verl_row("c", truth="see figure"), verl_row("d")])
    rows, manifest = prepared("openr1_math", source, gold_version=6, max_bad_share=0.5)
    assert [row["prompt"][-1]["content"] for row in rows] == ["a", "d"]
    assert manifest["report"]["train"]["dropped"] == {"gold": 2}
    assert asked == [(["2", "see figure"], 6)], "each answer once, and all of a chunk together"


# --- DAPO, TLDR --------------------------------------------------------------------------------------------------------


def dapo_row(question: str, truth: str, number: int) -> dict:
    return {
        "data_source": "math_dapo",
        "prompt": [{"role": "user", "content": question}],
        "ability": "MATH",
        "reward_model": {"ground_truth": truth, "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": f"9a9b6eb4-{number}"},
    }


def test_dapo_keeps_one_row_per_prompt_over_chunks(prepared: Callable, write: Callable) -> None:
    source = write([dapo_row(f"Problem {number % 3}", str(number % 3), number) for number in range(300)])
    rows, manifest = prepared("dapo_math", source, chunk_rows=7)
    assert [row["prompt"][0]["content"] for row in rows] == ["Problem 0", "Problem 1", "Problem 2"]
    assert [row["extra_info"]["id"] for row in rows] == ["9a9b6eb4-0", "9a9b6eb4-1", "9a9b6eb4-2"]
    assert [row["reward_model"] for row in rows] == [{"style": "rule", "ground_truth": str(n)} for n in range(3)]
    assert all(row["target"] is None and row["target_lst"] is None for row in rows)
    assert manifest["report"]["train"] | {"tokens": None} == {
        "read": 300,
        "kept": 3,
        "dropped": {"duplicate": 297},
        "traces_left_out": {},
        "examples": [],
        "tokens": None,
    }


def test_tldr_has_the_published_splits(settings_of: Callable, tmp_path: Path) -> None:
    folder = tmp_path / "tldr" / "data"
    folder.mkdir(parents=True)
    for split, posts in {"train": ["p1", "p2", "p3"], "validation": ["p4"], "test": ["p5"]}.items():
        turns = [[{"role": "user", "content": f"{post} TL;DR:"}, {"role": "assistant", "content": f" {post}!"}] for post in posts]
        pq.write_table(pa.table({"prompt": posts, "messages": turns}), folder / f"{split}-00000-of-00001.parquet")
    paths = PREPARERS["tldr"](tmp_path / "out", settings_of("tldr", source=str(folder.parent)))
    assert {name: pq.read_metadata(path).num_rows for name, path in paths.items()} == {"train": 3, "validation": 1}
    row = pq.read_table(paths["validation"]).to_pylist()[0]
    assert row["prompt"] == [{"role": "user", "content": "p4 TL;DR:"}]
    assert row["target"] == [{"role": "assistant", "content": " p4!"}]
    assert row["reward_model"] == {"style": "model", "ground_truth": ""}
    assert (row["data_source"], row["extra_info"]["split"]) == ("tldr", "validation")


@pytest.mark.parametrize("turns", [[], [{"role": "user", "content": "a"}], "text", None])
def test_tldr_needs_two_turns(turns: Any) -> None:
    with pytest.raises(RowFault, match="a post and its summary"):
        tldr.read_summary({"messages": turns})

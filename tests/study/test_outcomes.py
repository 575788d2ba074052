"""Reading metrics.jsonl."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unify_posttrain.study.outcomes import Metrics, measure, read_metrics


def hard(value: float) -> dict[str, float]:
    return {"val-core/arithmetic_hard/acc/mean@1": value}


def test_accuracy_and_costs() -> None:
    outcome = measure(
        {
            0: hard(0.1) | {"val-core/arithmetic_easy/acc/mean@1": 1.0, "val-core/arithmetic_hard/reward/mean@1": 0.7},
            1: {"fusion/rows_demo": 3.0, "fusion/tokens_generated": 100, "timing_s/step": 1.5},
            2: hard(0.4) | {"fusion/rows_demo": 2.0, "fusion/tokens_generated": 50, "timing_s/step": 2.5},
        }
    )
    assert outcome.accuracy == {"hard": {0: 0.1, 2: 0.4}, "easy": {0: 1.0}}
    assert (outcome.before("hard"), outcome.after("hard")) == (0.1, 0.4)
    assert (outcome.demonstrations, outcome.tokens_generated, outcome.training_seconds) == (5.0, 150.0, 4.0)
    assert outcome.final_step == 2


def test_replayed_demonstrations_count() -> None:
    outcome = measure({1: {"fusion/rows_demo": 1.0}, 2: {"fusion/rows_demo": 0.0, "fusion/replay_rows": 8.0}})
    assert outcome.demonstrations == 9.0


def test_hints_are_not_demonstrations() -> None:
    outcome = measure({1: {"fusion/rows_demo": 0.0, "fusion/tokens_hint": 40.0}})
    assert (outcome.demonstrations, outcome.hint_tokens) == (0.0, 40.0)


@pytest.mark.parametrize("data", [{}, {"fusion/rows_demo": float("nan")}, {"fusion/rows_demo": None}, {"fusion/replay_rows": 8.0}])
def test_what_is_missing_is_none_not_zero(data: dict) -> None:
    outcome = measure({1: data})
    assert outcome.demonstrations is None
    assert outcome.tokens_generated is None and outcome.training_seconds is None and outcome.hint_tokens is None
    assert outcome.before("hard") is None and outcome.after("hard") is None


def test_after_is_of_the_last_step_only() -> None:
    """A run whose last validation failed has no final accuracy; that of an earlier step is another number."""
    metrics: Metrics = {0: hard(0.1), 5: hard(0.3), 7: hard(float("nan"))}
    assert measure(metrics).after("hard") is None
    assert measure({0: hard(0.1), 5: hard(0.3), 6: {"x": 1}}).after("hard") is None


def test_two_tasks_in_one_run_are_refused() -> None:
    with pytest.raises(ValueError, match="arithmetic_hard and countdown_hard"):
        measure({0: hard(0.1) | {"val-core/countdown_hard/acc/mean@1": 0.2}})


def test_reads_what_a_kill_has_left(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": 1, "data": {"a": 1}}), json.dumps({"step": 1, "data": {"b": float("nan")}}), '{"step": 2, "da']
    file.write_text("\n".join(lines))
    metrics = read_metrics(file)
    assert list(metrics) == [1] and metrics[1]["a"] == 1 and metrics[1]["b"] != metrics[1]["b"]
    assert read_metrics(tmp_path / "none.jsonl") == {}

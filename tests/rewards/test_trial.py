"""The trial of a reward function on rows of the data: every mistake is one error that names key, value and remedy."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.rewards import misbehaving
from unify_posttrain.config import compose_config
from unify_posttrain.rewards.protection import Protection
from unify_posttrain.rewards.trial import rows_to_try, try_reward

pytestmark = pytest.mark.slow

PROTECTION = replace(Protection.from_node(compose_config([]).reward.protection), timeout_seconds=1.0, memory_mb=2048)


def calls(*texts: str) -> list[dict]:
    return [{"data_source": "s", "solution_str": text, "ground_truth": "1", "extra_info": {}} for text in texts]


def tried(*texts: str, **changes: object) -> None:
    node = {"path": misbehaving.__file__, "name": "compute_score"}
    try_reward(node, replace(PROTECTION, **changes), calls(*texts), taken=["difficulty"])


def test_a_sound_function_passes_and_leaves_nothing_here() -> None:
    before = set(sys.modules)
    tried("float", "mapping", "field of list", "print")
    assert set(sys.modules) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text", r"4 of 4 calls failed \(4 error\).*returned str \(1\.0\); it must return a number, or a mapping with `score`"),
        ("field of set", r"field 'parts' holds set, which JSON cannot say"),
        ("raise", "ValueError: no"),
        ("exit", "SystemExit: 3"),
        ("os exit", r"4 of 4 calls failed \(4 crash\).*exit code 5"),
        ("spin", r"4 timeout\).*no result within 1\.0 s"),
        ("memory", "more than 2048 MB"),
        ("nan", r"4 no score\).*gave no score: nan"),
    ],
)
def test_one_that_fails_on_the_rows_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        tried(text, text, text, text)
    assert misbehaving.__file__ in str(error.value) and "reward.protection.max_fault_share=0.5" in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("field that is taken", r"field 'uid', a name that the batch has"), ("field of the data", r"field 'difficulty'.*rename it")],
)
def test_a_name_that_is_taken_is_refused_on_any_row(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tried("float", "float", "float", text)


def test_a_few_failures_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    tried("float", "raise", "int", "nan")
    assert "2 of 4 calls failed on rows of the data" in caplog.text
    with pytest.raises(ValueError, match="1 of 4 calls failed"):
        tried("float", "raise", "int", "int", max_fault_share=0.0)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"reward\.custom_reward_function\.path=.*none\.py does not exist; check the path"):
        try_reward({"path": str(tmp_path / "none.py"), "name": "f"}, PROTECTION, [])


def test_one_that_never_loads_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "slow.py"
    file.write_text("import time; time.sleep(3600)")
    with pytest.raises(ValueError, match=r"slow\.py cannot be loaded: it ended, or took more than 3 s"):
        try_reward({"path": str(file), "name": "f"}, replace(PROTECTION, load_seconds=3.0), [])


def test_own_functions_are_called_here() -> None:
    try_reward({"path": "pkg://unify_posttrain.tasks.arithmetic", "name": "compute_score"}, PROTECTION, calls("answer 1"))
    with pytest.raises(ValueError, match=r"ground_truth of data_source='s' must be a string"):
        own = [{**call, "ground_truth": 1} for call in calls("answer 1")]
        try_reward({"path": "pkg://unify_posttrain.tasks.arithmetic", "name": "compute_score"}, PROTECTION, own)


def test_every_data_source_is_tried() -> None:
    assert list(rows_to_try(["a", "a", "a", "b", "a", "c", "b"], 2)) == [0, 1, 3, 5]

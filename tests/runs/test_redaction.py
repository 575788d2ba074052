"""What is written to config.yaml and given to trackers holds no secrets, and nothing else is lost."""

from typing import Any

import pytest
from verl.utils import tracking

from unify_posttrain.runs.loggers import redacted
from unify_posttrain.trainer.task_runner import RedactedTracking


def test_secrets_are_replaced_and_the_rest_is_kept() -> None:
    node = {
        "ray_kwargs": {"env_vars": {"WANDB_API_KEY": "abc", "HF_TOKEN": "def", "OMP_NUM_THREADS": "1"}},
        "password": "ghi",
        "data": {"prompt_key": "prompt", "max_tokens": 5, "files": ["a", "b"], "token_count": "7"},
    }
    safe = redacted(node)
    assert safe["ray_kwargs"]["env_vars"] == {"WANDB_API_KEY": "<redacted>", "HF_TOKEN": "<redacted>", "OMP_NUM_THREADS": "1"}
    assert safe["password"] == "<redacted>"
    assert safe["data"] == node["data"]


def test_trackers_are_given_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(tracking.Tracking, "__init__", lambda self, **arguments: given.update(arguments))
    RedactedTracking(project_name="p", experiment_name="e", config={"env": {"HF_TOKEN": "abc", "A": "1"}})
    assert given["config"] == {"env": {"HF_TOKEN": "<redacted>", "A": "1"}} and given["project_name"] == "p"

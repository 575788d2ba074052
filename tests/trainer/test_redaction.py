"""What is written to config.yaml holds no secrets, and nothing else is lost."""

from unify_posttrain.trainer.task_runner import redacted


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

"""Secrets are found by key and by shape wherever they stand, harmless keys are left alone, and nothing else is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from unify_posttrain import redaction
from unify_posttrain.config import conf_dir
from unify_posttrain.hydra_records import safe_copy
from unify_posttrain.redaction import REDACTED, is_secret, redact_text, redacted, redacted_overrides, remember

SECRET_KEYS = [
    "HF_TOKEN", "WANDB_API_KEY", "wandb_api_key", "MY_KEY", "GITHUB_PAT", "passwd", "password", "db_password", "PASSPHRASE",
    "secret", "client_secret", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "Authorization", "token",
    "auth_token", "accessToken", "apiKey", "api-key", "private_key", "SLACK_WEBHOOK", "webhook_url", "credentials", "MYSQL_PASS",
    "hf_tokens", "RAY_AUTH_TOKEN", "X-Auth-Token", "sas", "cookie",
]  # fmt: skip
HARMLESS_KEYS = [
    "pad_token", "eos_token", "bos_token", "unk_token", "eos_token_id", "max_token_len", "ppo_max_token_len_per_gpu", "tokenizer",
    "max_new_tokens", "tokens", "token_ids", "prompt_key", "answer_key", "image_key", "reward_fn_key", "success_key", "key",
    "mask_token", "loss_per_token", "tokens_per_gpu", "monkey", "keyboard", "path", "PATH", "compat", "author", "secretary",
    "RAY_AUTH_MODE", "custom_chat_template", "token_weight", "num_tokens", "n_token",
]  # fmt: skip
DIGITS = "0123456789abcdef" * 3
SHAPED = [
    "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz01234567", "sk-proj-abcd1234EFGH5678ijkl", "sk-ant-api03-abcdefgh12345678",
    "ghp_" + DIGITS[:36],
    "github_pat_11ABCDEFG0123456789_abcdefghij", "glpat-abcdEFGH1234ijkl5678", "AKIAIOSFODNN7EXAMPLE", "AIzaSyA" + DIGITS[:32],
    "xoxb-123456789012-abcdefghijkl", "xoxp-1234-5678-abcd", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
    "https://me:hunter2@host.org/x", "postgresql://u:p%40ss@db/x", "https://ghp_abcdefgh@github.com/a/b.git",
    "https://hooks.slack.com/services/T000/B000/XXXX", "https://discord.com/api/webhooks/123/abcDEF",
    "Bearer abcdef123456", "Authorization: Basic dXNlcjpwYXNz", "sk_live_abcdEFGH12345678",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIB\nabc\n-----END RSA PRIVATE KEY-----",
]  # fmt: skip
CORES = {"https://me:hunter2@host.org/x": "hunter2", "postgresql://u:p%40ss@db/x": "p%40ss", "Bearer abcdef123456": "abcdef123456"}
CORES |= {"https://ghp_abcdefgh@github.com/a/b.git": "ghp_abcdefgh", "Authorization: Basic dXNlcjpwYXNz": "dXNlcjpwYXNz"}
CORES |= {SHAPED[-1]: "MIIB"}


@pytest.fixture(autouse=True)
def nothing_remembered() -> Iterator[None]:
    redaction.forget()
    yield
    redaction.forget()


# By key


@pytest.mark.parametrize("key", SECRET_KEYS)
def test_keys_of_secrets(key: str) -> None:
    assert is_secret(key) and is_secret(f"ray_kwargs.ray_init.runtime_env.env_vars.{key}")
    assert redacted({key: "plain words"}) == {key: REDACTED} == redacted({key: 12345678901})
    assert redacted({key: ["a", {"b": "c"}]}) == {key: [REDACTED, {"b": REDACTED}]}
    assert redact_text(f"+env.{key}=a b,c") == f"+env.{key}={REDACTED}"
    assert "plainword" not in redact_text(f"calling with {key}=plainword failed")
    assert "plainword" not in redact_text(json.dumps({"a": [{key: "plainword"}]}))
    assert "plainword" not in redact_text(f"{{'{key}': 'plainword more', 'other': 1}}")
    assert redacted({"A": {key: "${oc.env:X}"}}) == {"A": {key: "${oc.env:X}"}}, "where a value comes from is none"


@pytest.mark.parametrize("key", HARMLESS_KEYS)
def test_harmless_keys(key: str) -> None:
    assert not is_secret(key)
    assert redacted({key: "<|endoftext|>"}) == {key: "<|endoftext|>"} and redacted({key: 7}) == {key: 7}
    assert redact_text(f"++model.{key}=value") == f"++model.{key}=value"


def test_nothing_of_conf_is_taken_for_a_secret(composed: Any) -> None:
    files = [composed(f"algorithm={path.stem}") for path in sorted((conf_dir() / "algorithm").glob("[hlp]*.yaml"))]
    files += [OmegaConf.load(conf_dir() / f"{name}.yaml") for name in ("evaluate", "study", "export", "report", "analyze")]
    for config in files:
        node = OmegaConf.to_container(config)
        assert redacted(node) == node


# By shape


@pytest.mark.parametrize("secret", SHAPED)
def test_shapes_of_secrets(secret: str) -> None:
    core = CORES.get(secret, secret)
    for text in (secret, f"see {secret} here", f"data.train_files={secret}", json.dumps({"x": [secret]}), f"--url {secret}"):
        assert core not in redact_text(text), text
    assert core not in json.dumps(redacted({"path": {"deep": [secret]}, secret: 1}))


@pytest.mark.parametrize(
    "text",
    [
        "outputs/runs/hpt", "https://huggingface.co/Qwen/Qwen2.5-Math-7B", "s3://bucket/key", "ssh://git@host/x",
        "git@github.com:a/b",
        "hf_overrides", "hf_server.py", "task-something-long-name-1234567890", "commit 0123456789abcdef0123456789abcdef01234567",
        "set HF_TOKEN=… first", "export HF_TOKEN=$HF_TOKEN",
        "unexpected token: }", "pkg://unify_posttrain.startup.dataset", "http://10.0.0.1:6379", "[1, 2]", "Bearer of news",
        "actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes=64", "sk-learn", "{not json", "a:b@c",
    ],
)  # fmt: skip
def test_honest_text_stays(text: str) -> None:
    assert redact_text(text) == text


def test_options_pairs_and_neighbours() -> None:
    assert redacted(["--token", "abc", "--steps", "3"]) == ["--token", REDACTED, "--steps", "3"]
    assert redacted([["HF_TOKEN", "abc"], ["HOME", "x"]]) == [["HF_TOKEN", REDACTED], ["HOME", "x"]]
    assert redacted([{"name": "HF_TOKEN", "value": "abc"}]) == [{"name": "HF_TOKEN", "value": REDACTED}]
    assert redacted_overrides(["+env={A:1,MY_PASSWORD:a b}", "x=[1,2]"]) == [
        f'+env={{"A": 1, "MY_PASSWORD": "{REDACTED}"}}',
        "x=[1,2]",
    ]
    assert redact_text("wandb login 0123456789abcdef0123456789abcdef01234567") == f"wandb login {REDACTED}"
    assert redact_text("curl -H token:abc --password 'a b' x").count(REDACTED) == 2


def test_what_is_remembered_goes_from_every_text() -> None:
    remember({"env": {"MY_PASSWORD": "s3cret-words", "SHORT_KEY": "abc", "OTHER_KEY": "/home/me/key", "A_PASSWORD": "arithmetic"}})
    assert redact_text("the server said: s3cret-words is wrong") == f"the server said: {REDACTED} is wrong"
    assert redact_text("abc /home/me/key arithmetic") == "abc /home/me/key arithmetic", "words and places would go from everywhere"


# Planted anywhere

VALUES = st.text("abcXYZ019-_.", min_size=3, max_size=12) | st.integers() | st.booleans() | st.none()
NODES = st.recursive(
    VALUES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abcdxyz_", min_size=1, max_size=8), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip


@given(NODES, st.sampled_from(SHAPED), st.sampled_from(SECRET_KEYS), st.lists(st.integers(0, 9), max_size=6), st.booleans())
def test_a_secret_planted_anywhere_is_gone(node: Any, shaped: str, key: str, path: list[int], by_key: bool) -> None:
    plain = "correct horse"
    planted: Any = {key: plain} if by_key else {"harmless": f"x {shaped} y"}

    def plant(inside: Any, rest: list[int]) -> Any:
        if rest and isinstance(inside, dict) and inside:
            name = sorted(inside)[rest[0] % len(inside)]
            return {**inside, name: plant(inside[name], rest[1:])}
        if rest and isinstance(inside, list) and inside:
            position = rest[0] % len(inside)
            return [*inside[:position], plant(inside[position], rest[1:]), *inside[position + 1 :]]
        return [inside, planted, json.dumps(planted)]

    whole = {"root": plant(node, path)}
    for safe in (redacted(whole), OmegaConf.to_container(safe_copy(OmegaConf.create({"hydra": {}, **whole})))):
        written = json.dumps(safe)
        assert plain not in written and (by_key or json.dumps(CORES.get(shaped, shaped))[1:-1] not in written)
    assert redacted(redacted(whole)) == redacted(whole)


@given(NODES)
def test_what_holds_no_secret_is_not_changed(node: Any) -> None:
    assert redacted(node) == node


@pytest.mark.parametrize(
    "text", ["a=b," * 4000, "sk-" * 4000, "://" * 4000, 'password="' + "\\" * 9001, "[" * 4000, "eyJ" * 4000, "{" * 4000]
)
def test_long_and_strange_texts_come_through(text: str) -> None:
    assert isinstance(redact_text(text), str)


def test_records_keep_interpolations_and_lose_secrets(tmp_path: Path) -> None:
    config: DictConfig = OmegaConf.create(
        {"a": "${oc.env:HOME}", "env": {"HF_TOKEN": "abc"}, "hydra": {"overrides": {"task": ["+env.HF_TOKEN=abc", "b=1"]}}}
    )
    OmegaConf.save(safe_copy(config), tmp_path / "x.yaml")
    text = (tmp_path / "x.yaml").read_text()
    assert "${oc.env:HOME}" in text and "abc" not in text and "b=1" in text

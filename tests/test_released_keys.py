"""Keys of VRAG's released script: what they are here, and what is said to those that are nothing."""

from __future__ import annotations

import logging

import pytest
from omegaconf import OmegaConf

from unify_posttrain.config import compose_config, conf_dir
from unify_posttrain.released_keys import AGENT_KEYS, translated
from unify_posttrain.startup.inputs import missing_files

SCRIPT = (  # of the released command line, the keys that verl does not have
    "max_turns=4", "retriever.url=http://0.0.0.0:8002/search", "actor_rollout_ref.rollout.n=1",
    "actor_rollout_ref.rollout.n_agent=5", "actor_rollout_ref.actor.state_masking=True",
)  # fmt: skip


def test_the_released_command_line_is_understood(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        config = compose_config(["agent=vrag", "algorithm=grpo", "model=qwen2_5_vl_7b", *SCRIPT])
    assert (config.environment.name, config.environment.max_turns) == ("vrag", 4)
    retriever = config.environment.retriever
    assert (retriever.kind, retriever.url, retriever.wire) == ("http", "http://0.0.0.0:8002", "get")
    assert config.actor_rollout_ref.rollout.n == 5 and "state_masking" not in config.actor_rollout_ref.actor
    assert "max_turns" not in config and "n_agent" not in config.actor_rollout_ref.rollout and missing_files(config)
    assert "actor_rollout_ref.rollout.n_agent=5 is actor_rollout_ref.rollout.n=5 here" in caplog.messages
    assert "actor_rollout_ref.actor.state_masking=True is what holds in every run here" in caplog.messages


@pytest.mark.parametrize("node", ["agent", "unify.agent", "actor_rollout_ref.rollout.agent"])
def test_every_key_of_an_agent_is_one_of_the_environment(node: str) -> None:
    task = OmegaConf.load(conf_dir() / "task" / "vrag.yaml")
    assert set(AGENT_KEYS) <= set(task.environment), "a key that leads nowhere"
    made = translated([f"{node}.{key}=3" for key in AGENT_KEYS] + [f"+{node}.reward.require_search=false"])
    assert made == [*(f"environment.{key}=3" for key in AGENT_KEYS), "environment.reward.require_search=false"]
    assert translated([f"{node}.target.overlong=truncate"]) == ["fusion.demo.overlong=truncate"]
    assert "overlong" in OmegaConf.load(conf_dir() / "train.yaml").fusion.demo


def test_other_command_lines_are_left_as_they_are() -> None:
    given = ["task=vrag", "+dry_run=true", "--cfg", "job", "environment.max_turns=3", "trainer.logger=[a,b]", "x=max_turns=4",
             "reward_model.reward_manager=dapo", "actor_rollout_ref.rollout.agent.num_workers=2",
             "actor_rollout_ref.rollout.agent.num_worker=2", "~data.x"]  # fmt: skip
    assert translated(given) == given
    assert translated(["max_turns=3", "environment.max_turns=3"]) == ["environment.max_turns=3"], "the same twice"
    quoted = "++retriever.url='http://[::1]:8002/search/'"
    assert translated([quoted])[1] == "environment.retriever.url=http://[::1]:8002"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["reward_model.rm_url=http://h/eval"],
            r"^reward_model.rm_url=http://h/eval is the released server.*environment.judge.kind=llm",
        ),
        (["rm_url=x"], r"^rm_url=x is the released server"),
        (["reward_model.reward_manager='rm'"], r"^reward_model.reward_manager='rm' would never be asked.*leave it out"),
        (
            ["actor_rollout_ref.actor.state_masking=False"],
            r"state_masking=False would train what the environment said; leave it",
        ),
        (["algorithm.no_think_rl=true"], r"no_think_rl=true drops the thoughts of a rollout, which are trained here; leave it out"),
        (["agent=search_r1"], r"^agent=search_r1 names no agent.*give task="),
        (
            ["agent.rolling_context=8192"],
            r"^agent.rolling_context=8192 has no meaning here: an agent has the keys .*leave it",
        ),
        (["max_turns=3", "environment.max_turns=4"], r"^environment.max_turns=4 and max_turns=3 both set environment.max_turns"),
        (["max_turns=3", "agent.max_turns=4"], r"^agent.max_turns=4 and max_turns=3 both set environment.max_turns"),
        (["actor_rollout_ref.rollout.n_agent=5", "actor_rollout_ref.rollout.n=2"], r"rollout.n=2 and .*n_agent=5 both set"),
    ],
)
def test_what_has_no_meaning_is_refused_with_key_value_and_remedy(given: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        translated(given)


def test_a_task_without_turns_says_so() -> None:
    with pytest.raises(ValueError, match=r"environment.max_turns.* does not exist"):
        compose_config(["task=arithmetic", "algorithm=grpo", "max_turns=3"])

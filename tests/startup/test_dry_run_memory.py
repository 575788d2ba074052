"""What the dry run says of rows, memory and disk."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from unify_posttrain.startup.dry_run import describe_run

NODE = ("model=qwen2_5_math_7b", "task=openr1_math", "hardware=node_8gpu")
Lines = Callable[..., list[str]]


@pytest.fixture
def lines(composed: Callable[..., DictConfig]) -> Lines:
    return lambda *overrides: describe_run(composed(*overrides), None).splitlines()


def numbers(found: list[str], name: str) -> list[str]:
    """The columns of a line of the memory table."""
    (line,) = [each for each in found if each.startswith(f"{'':13}{name}")]
    return re.findall(r" +(-|\d+\.\d+)(?= |$)", line.partition(name)[2])


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        ("hpt", "128 prompts -> 1024 rollouts (n=8) -> at most 1024 rows"),
        ("luffy", "128 prompts -> 1024 rollouts (n=8) -> at most 1024 rows"),  # 7 and a demonstration, or 8 without a target
        ("srft", "128 prompts -> 1024 rollouts (n=8) -> at most 1024 rows"),
        ("rl_with_sft_loss", "128 prompts -> 1024 rollouts (n=8) -> at most 1024 rows"),
        ("chord", "128 prompts -> 1024 rollouts (n=8) -> at most 1152 rows"),  # 8 and a demonstration
        ("sft", "64 prompts -> 0 rollouts (n=8) -> at most 64 rows"),
    ],
)
def test_rows_are_those_of_the_experience_rule(lines: Lines, algorithm: str, expected: str) -> None:
    assert any(expected in line for line in lines(f"algorithm={algorithm}", *NODE) if line.startswith("a step "))


def test_every_part_has_its_line(lines: Lines) -> None:
    """The sums are those of tests/startup/test_memory.py."""
    found = lines("algorithm=hpt", *NODE)
    assert any(line.startswith("memory       GB of a rank (84.8 on H100-80GB)") for line in found)
    assert numbers(found, "weights (float32, 1/8)") == ["3.81", "3.81"]
    assert numbers(found, "gradients") == ["3.81", "-"]
    assert numbers(found, "Adam's two moments") == ["7.62", "7.62"]
    assert numbers(found, "inputs of 28 layers") == ["3.70", "-"]
    assert numbers(found, "~ logits of 1152 of 18432 tokens, and the head's gradient") == ["4.28", "-"]
    assert numbers(found, "~ whole gradients of embedding and head, 16 bits and float32") == ["6.54", "-"]
    assert numbers(found, "engine (vllm): 70%, asleep for the update") == ["4.29", "59.38"]
    assert numbers(found, "at least (of ~ only the largest)") == ["33.02", "71.88"]
    assert "model        Qwen/Qwen2.5-Math-7B, 7615.62 M parameters" in found


def test_parts_that_only_some_runs_have(lines: Lines) -> None:
    relift = lines("algorithm=relift", *NODE)
    assert numbers(relift, "moments of the replayed step") == ["7.62", "7.62"]
    ppo = lines("algorithm=ppo", *NODE)
    assert "update    critic's  generation" in next(line for line in ppo if line.startswith("memory"))
    assert numbers(ppo, "critic ") == ["-", "14.14", "-"]
    assert numbers(lines("algorithm=uft", *NODE), "reference policy (in main memory)") == ["-", "-"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), "91.4 GB each (30.5 weights, 60.9 moments); 10 of 10 stay (trainer.max_actor_ckpt_to_keep=null): 914 GB"),
        (
            ("trainer.max_actor_ckpt_to_keep=2",),
            "2 of 10 stay (trainer.max_actor_ckpt_to_keep=2): 183 GB, and 91.4 GB more while one is written",
        ),
        (("trainer.total_training_steps=null",), "; all stay (trainer.max_actor_ckpt_to_keep=null)"),
        (
            ("trainer.total_training_steps=null", "trainer.max_actor_ckpt_to_keep=3"),
            "; 3 stay (trainer.max_actor_ckpt_to_keep=3): 274 GB, and 91.4 GB more while one is written",
        ),
    ],
)
def test_checkpoints_on_disk(lines: Lines, overrides: tuple[str, ...], expected: str) -> None:
    (line,) = [each for each in lines("algorithm=hpt", *NODE, *overrides) if each.startswith("checkpoints")]
    assert expected in line


def test_what_is_not_known_is_said(lines: Lines) -> None:
    other = lines("algorithm=hpt", *NODE, "actor_rollout_ref.model.path=nobody/nothing")
    assert any(line.startswith("memory       not estimated: the model's files are not on this disk") for line in other)
    assert not any(line.startswith("checkpoints") for line in other)
    critic = lines("algorithm=ppo", *NODE, "critic.model.path=nobody/nothing")
    assert any("the critic's own is not counted: its model is not known" in line for line in critic)
    assert not any(line.startswith("checkpoints") for line in lines("algorithm=hpt", *NODE, "trainer.save_freq=-1"))
    assert any("accelerator=null: not checked" in line for line in lines("algorithm=hpt"))


def test_the_manual_shows_what_is_printed(lines: Lines) -> None:
    printed = lines("algorithm=hpt", *NODE)
    begin, end = (next(i for i, line in enumerate(printed) if line.startswith(word)) for word in ("memory", "engine"))
    manual = (Path(__file__).parents[2] / "docs" / "scale.md").read_text(encoding="utf-8")
    assert "\n".join(printed[begin:end]) in manual
    assert next(line for line in printed if line.startswith("checkpoints")) in manual

"""What the plan of a run promises: how many rows a step can have, for every algorithm; no data, model or GPU."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import product

import pytest
from omegaconf import DictConfig

from unify_posttrain.algorithms import ALGORITHMS, Algorithm
from unify_posttrain.experience.groups import Group, Prompt
from unify_posttrain.experience.row_plan import plan_rows
from unify_posttrain.experience.rules import Experience
from unify_posttrain.startup.dry_run import describe_run

NAMES = sorted(ALGORITHMS)
STEP = re.compile(
    r"a step +(?P<prompts>\d+) prompts -> (?P<rollouts>\d+) rollouts \(n=(?P<n>\d+)\) -> at most (?P<rows>\d+) rows in "
    r"(?P<steps>\d+) optimizer step\(s\), (?P<each>\d+) rows per rank and optimizer step"
)
TOKENS = re.compile(r"a row +at most (?P<width>\d+) tokens; at most (?P<tokens>\d+) tokens per step")
LAYOUTS = [(), ("trainer.n_gpus_per_node=3", "data.train_batch_size=10", "actor_rollout_ref.actor.ppo_mini_batch_size=5")]


def numbers(pattern: re.Pattern, text: str) -> dict[str, int]:
    found = pattern.search(text)
    assert found, text
    return {name: int(value) for name, value in found.groupdict().items()}


@pytest.mark.parametrize("layout", LAYOUTS, ids=["as composed", "three ranks"])
@pytest.mark.parametrize("name", NAMES)
def test_the_rows_of_a_step_are_bounded(
    name: str, layout: tuple[str, ...], composed: Callable[..., DictConfig], algorithm: Callable[..., Algorithm]
) -> None:
    """Every prompt contributes `most_rows` at most; padding makes them divisible by ranks and optimizer steps."""
    flags = (f"algorithm={name}", *layout)
    config, built = composed(*flags), algorithm(*flags)
    text = describe_run(config, None)
    most = max(phase.algorithm.experience.most_rows for phase in built.phases)
    batch, ranks = config.data.train_batch_size, config.trainer.n_gpus_per_node
    steps = batch // config.actor_rollout_ref.actor.ppo_mini_batch_size
    expected = plan_rows(batch * most, ranks, steps)
    found = numbers(STEP, text)
    assert found["rows"] == expected.rows and found["each"] == expected.per_mini_batch
    assert (found["prompts"], found["n"], found["steps"]) == (batch, config.actor_rollout_ref.rollout.n, steps)
    assert found["rows"] == found["each"] * ranks * steps >= batch * most
    width = config.data.max_prompt_length + config.data.max_response_length
    assert numbers(TOKENS, text) == {"width": width, "tokens": found["rows"] * width}
    assert f"algorithm    {name}" in text and "nothing was started" in text
    assert all(term.name in text for phase in built.phases for term in phase.algorithm.terms)


def outcomes(rule: Experience) -> list[Group]:
    """Every way in which a prompt may come out: with and without a target, drawn at several steps, solved by any number."""
    groups = []
    for target, step in product((None, (5, 6, 7, 8)), range(1, 40)):
        prompt = Prompt(step, target, ("a", "b", "c"), encode=lambda text: [1] * len(text))
        rollouts = len(rule.response_prefixes(prompt, step))
        groups += [Group("g", s, rollouts, target is not None, solved) for s in range(rollouts + 1) for solved in (True, False)]
    return groups


@pytest.mark.parametrize("name", NAMES)
def test_no_prompt_has_more_rows_than_the_rule_says(name: str, algorithm: Callable[..., Algorithm]) -> None:
    """... and some have as many; nor more rollouts."""
    for phase in algorithm(f"algorithm={name}").phases:
        rule = phase.algorithm.experience
        found = [(group, plan) for group in outcomes(rule) for plan in rule.plan([group])]
        assert max(plan.kept + plan.demonstrations for _, plan in found) == rule.most_rows
        for given in (True, False):
            assert max(group.rollouts for group, _ in found if group.has_demonstration == given) == rule.rollouts(given)


def test_a_phase_says_what_of_its_file_does_not_hold(composed: Callable[..., DictConfig]) -> None:
    text = describe_run(composed("algorithm=sft_then_rl"), None)
    assert "             sft, 18 steps: terms sft\n" in text
    assert "             grpo, to the end: terms rl, entropy\n" in text
    assert "data.train_batch_size=64 of its file holds for a whole run: data.train_batch_size=32\n" in text
    stalls = describe_run(composed("algorithm=sft_then_rl", "fusion.phases=[{algorithm: hpt, stall: 3}, {algorithm: dapo}]"), None)
    assert "hpt, until 3 validations stall: terms rl, off, sft, entropy\n" in stalls
    assert "reward.reward_manager.name=" in stalls, "DAPO's own reward manager is the run's business"

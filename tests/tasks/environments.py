"""Settings of environments as conf/ has them, rows without files, and a player that knows nothing, for tests and benchmarks."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import cache
from typing import Any

from unify_posttrain.config import compose_config, conf_dir
from unify_posttrain.tasks.environment import Environment, make_environment
from unify_posttrain.tasks.turns import Step


@cache
def _written(task: str) -> dict[str, Any]:
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(OmegaConf.load(conf_dir() / "task" / f"{task}.yaml").environment, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def node(task: str, **changes: Any) -> dict[str, Any]:
    """The node `environment` of a task file."""
    return {**deepcopy(_written(task)), **changes}


def task_settings(task: str, *overrides: str) -> dict[str, Any]:
    """The node `prepare.task`, composed."""
    from omegaconf import OmegaConf

    config = compose_config([f"task={task}", "algorithm=grpo", *overrides])
    plain = OmegaConf.to_container(config.prepare.task, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def row_of(truth: Any, source: str = "test") -> dict[str, Any]:
    """A row as an environment reads it."""
    text = truth if isinstance(truth, str) else json.dumps(truth)
    return {"data_source": source, "reward_model": {"ground_truth": text}, "extra_info": {}}


def hand_row(cards: str, rule: str = "ten", target: int = 24, style: str = "native") -> dict[str, Any]:
    """A hand: `A 2 3 4`."""
    return row_of({"cards": cards.split(), "rule": rule, "target": target, "style": style})


SIGNS = "0123456789+-*/()"
PIECES = (
    *"0123456789+-*/()=\"'{}[],:;. \n",
    *('"formula": "', '"answer": ', '"action": "', "f:", "forward()", "an intersection", "\x00", "\ud800", "×", "9**9", '",}'),
)


class RandomPlayer:
    """Answers that are anything: noise, wrong formulas in the right form, and now and then the demonstration."""

    def __init__(self, seed: int) -> None:
        self.generator = random.Random(seed)

    def answer(self, demonstration: str) -> str:
        """An answer to a row whose demonstration this is."""
        kind = self.generator.random()
        if kind < 0.1:
            return demonstration
        text = list(demonstration)
        if kind < 0.5:  # a formula, a number or a direction that is another one
            places = [place for place, sign in enumerate(text) if sign in SIGNS]
            for place in self.generator.sample(places, min(self.generator.randint(1, 3), len(places))):
                text[place] = self.generator.choice(["", *SIGNS])
            return "".join(text)
        if kind < 0.8:  # a few characters that may be anything
            for _ in range(self.generator.randint(1, 4)):
                text[self.generator.randrange(len(text))] = self.generator.choice(PIECES)
            return "".join(text)
        return "".join(self.generator.choices(PIECES, k=self.generator.randint(0, 80)))

    def play(self, environment: Environment, row: Mapping[str, Any], most: int) -> Iterator[Step]:
        """One episode; every tenth answer is cut."""
        environment.reset(row)
        for _ in range(most):
            complete = self.generator.random() < 0.9
            step = environment.step(self.answer(row["target"][-1]["content"]), complete)
            assert isinstance(step, Step)
            yield step
            if step.done or not complete:
                return


def possible_rewards(task: str) -> set[float]:
    """Every reward that a turn of a task can have, as far as several faults do not add up to more."""
    settings = node(task)
    rewards = settings["rewards"]
    singles = set(rewards["native"].values()) if task == "general_points" else set(rewards.values())
    sums = {2 * a + b for a in (-2, 0) for b in (-2, 0)} if task == "general_points" else set()
    found = {float(each) for each in singles | sums}
    return found | {each + settings["limit_penalty"] for each in found}


__all__ = ["RandomPlayer", "hand_row", "make_environment", "node", "possible_rewards", "row_of", "task_settings"]

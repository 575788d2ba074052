"""Verdicts: the reward function of training, called as verl's reward manager calls it, and what is read from its result.

A result is a number, or a mapping with `score` and, where the function has them, `acc` (1 or 0), `pred` (canonical answer, "" if
none was found) and `gold_ok` (0 if the ground truth cannot be used).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from unify_posttrain.evaluation.benchmarks import Problem

# What verl's manager adds to extra_info of a single-turn rollout (verl.experimental.reward_loop.reward_manager.naive).
TURNS = {"num_turns": 2, "rollout_reward_scores": {}}


@dataclass(frozen=True)
class Verdict:
    """Score of a response, whether it is correct, its canonical answer ("": none), and whether the ground truth can be used."""

    score: float
    correct: bool
    answer: str
    gold_ok: bool


def load_reward(node: Mapping[str, Any]) -> Callable[..., Any]:
    """The reward function of a node {path, name, reward_kwargs}, through verl's own loader.

    Raises:
        ValueError: no function there, or one that only a running trainer can serve.
    """
    from omegaconf import OmegaConf
    from verl.trainer.ppo.reward import get_custom_reward_fn

    where = f"reward function {node.get('name')} of {node.get('path')}"
    settings = {key: value for key, value in node.items() if value is not None}
    if not {"path", "name"} <= set(settings):
        raise ValueError(f"{where}: path and name must be set; give reward.path=… and reward.name=…, or run=FOLDER of the training")
    try:
        function = get_custom_reward_fn(OmegaConf.create({"reward": {"custom_reward_function": settings}}))
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        raise ValueError(f"{where} cannot be loaded: {error}") from error
    if isinstance(function, partial) and inspect.iscoroutinefunction(function.args[0]):
        raise ValueError(f"{where} is asynchronous: it is served by the trainer's workers; evaluate with a plain function")
    return function


def load_extractor(node: Mapping[str, Any]) -> Callable[[str], str | None]:
    """The function text -> answer or None of a node {path, name}; only loaded where the reward gives no `pred`.

    Raises:
        ValueError: no function there.
    """
    from verl.utils.import_utils import load_extern_object

    try:
        return load_extern_object(module_path=node["path"], object_name=node["name"])
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        raise ValueError(f"answer extractor {node['name']} of {node['path']} cannot be loaded: {error}") from error


class Judge:
    """Judges responses of one benchmark.

    Args:
        reward: function of verl's signature.
        extractor: builds the function text -> answer; called once, and only if a result has no `pred`.
        threads: calls at once; the math reward hands them on to processes that can be killed.
        threshold: of a correct response where the result has no `acc`.
    """

    def __init__(
        self,
        reward: Callable[..., Any],
        extractor: Callable[[], Callable[[str], str | None]],
        threads: int,
        threshold: float,
    ) -> None:
        self.reward, self._build_extractor = reward, extractor
        self.threads, self.threshold = threads, threshold
        self._extract: Callable[[str], str | None] | None = None

    def judge(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verdict]:
        """One verdict per response, in their order.

        Raises:
            ValueError: a result without a score.
        """
        with ThreadPoolExecutor(max_workers=self.threads) as pool:
            results = list(pool.map(self._call, problems, responses))
        return [self._verdict(result, response) for result, response in zip(results, responses, strict=True)]

    def _call(self, problem: Problem, response: str) -> Any:
        return self.reward(
            data_source=problem.source,
            solution_str=response,
            ground_truth=problem.ground_truth,
            extra_info={**problem.extra_info, **TURNS},
        )

    def _verdict(self, result: Any, response: str) -> Verdict:
        fields = result if isinstance(result, Mapping) else {"score": result}
        if fields.get("score") is None:
            raise ValueError(
                f"the reward function returned {str(result)[:80]!r}; it must return a number, or a mapping with `score`"
            )
        score = float(fields["score"])
        correct = score >= self.threshold if fields.get("acc") is None else float(fields["acc"]) >= 1
        answer = self._answer(response) if fields.get("pred") is None else str(fields["pred"])
        return Verdict(score, correct, answer, bool(fields.get("gold_ok", 1)))

    def _answer(self, response: str) -> str:
        if self._extract is None:
            self._extract = self._build_extractor()
        return self._extract(response) or ""

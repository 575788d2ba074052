"""Verdicts: the reward function of training, called as verl's reward manager calls it, through the same wrapper.

A result is a number, or a mapping with `score` and, where the function has them, `acc` (1 or 0), `pred` (canonical answer, "" if
none was found) and `gold_ok` (0 if the ground truth cannot be used). A response without a score counts as one whose ground truth
cannot be used; a call that fails counts as wrong.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unify_posttrain.evaluation.benchmarks import Problem
from unify_posttrain.rewards.calling import Call, Caller, InProcessCaller, ProcessCaller, build_caller
from unify_posttrain.rewards.contract import ACCURACY, GOLD, Contract, Scored
from unify_posttrain.rewards.loading import LoadError, check_dispatch
from unify_posttrain.rewards.pool import WorkerStartError
from unify_posttrain.rewards.protection import Protection, function_name, tally
from unify_posttrain.rewards.trial import rows_to_try, try_reward
from unify_posttrain.rewards.truths import check_truths
from unify_posttrain.tasks.truths import check_own_truths

logger = logging.getLogger(__name__)

# What verl's manager adds to extra_info of a single-turn rollout (verl.experimental.reward_loop.reward_manager.naive).
TURNS = {"num_turns": 2, "rollout_reward_scores": {}}


@dataclass(frozen=True)
class Verdict:
    """Score of a response, whether it is correct, its canonical answer ("": none), and whether the ground truth can be used."""

    score: float
    correct: bool
    answer: str
    gold_ok: bool


def load_reward(node: Mapping[str, Any], protection: Protection, threads: int | None = None) -> Caller:
    """The reward function of a node {path, name, reward_kwargs}, in the wrapper that training has around it.

    Raises:
        ValueError: no function there, or one that only a running trainer can serve.
    """
    where = function_name(node)
    if not node.get("path") or not node.get("name"):
        raise ValueError(f"{where}: path and name must be set; give reward.path=… and reward.name=…, or run=FOLDER of the training")
    try:
        caller = build_caller(node, protection, threads)
    except (WorkerStartError, LoadError) as error:
        raise ValueError(f"{where} cannot be loaded: {_by_own_keys(getattr(error, 'reason', str(error)))}") from error
    if isinstance(caller, InProcessCaller) and caller.asynchronous:
        raise ValueError(f"{where} is asynchronous: it is served by the trainer's workers; evaluate with a plain function")
    return caller


def check_reward(node: Mapping[str, Any], protection: Protection, problems: Sequence[Problem]) -> None:
    """Call the reward function on some problems with an empty response, before anything is generated.

    Raises:
        ValueError: it cannot be loaded or fails, or the data would be graded by evaluating what a model wrote.
    """
    sources = [problem.source for problem in problems]
    calls = [_call(problems[row], "") for row in rows_to_try(sources, protection.trial_rows)]
    try:
        check_dispatch(node, sources)
        try_reward(node, protection, calls)
    except ValueError as error:
        raise ValueError(_by_own_keys(str(error))) from error


def check_ground_truths(node: Mapping[str, Any], name: str, problems: Sequence[Problem]) -> None:
    """Say before anything is generated which problems cannot be graded and are left out of every score.

    Args:
        node: {path, name, reward_kwargs} of the reward function.
        name: of the benchmark.
        problems: its rows.

    Raises:
        ValueError: a ground truth that no reward can use, or none that can be graded; names benchmark and row.
    """
    places = [f"benchmark {name}, row {problem.row}" for problem in problems]
    truths = list(zip(places, (problem.ground_truth for problem in problems), strict=True))
    check_own_truths(node, truths)
    found = check_truths(node, truths)
    if found is not None:
        logger.warning("%s", found.sentence(places[found.rows[0]], "their problems are left out of every score"))


def _by_own_keys(message: str) -> str:
    """The same with the keys of conf/evaluate.yaml, where a reward is a node {path, name, reward_kwargs}."""
    return message.replace("reward.custom_reward_function.", "reward.").replace("reward.protection.", "protection.")


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
        reward: function of verl's signature, or a caller of one.
        extractor: builds the function text -> answer; called once, and only if a result has no `pred`.
        threads: calls at once; the math reward hands them on to processes that can be killed.
        threshold: of a correct response where the result has no `acc`.
        protection: which share of the calls may fail; None: any.
    """

    def __init__(
        self,
        reward: Callable[..., Any] | Caller,
        extractor: Callable[[], Callable[[str], str | None]],
        threads: int,
        threshold: float,
        protection: Protection | None = None,
    ) -> None:
        if not isinstance(reward, ProcessCaller | InProcessCaller):
            reward = InProcessCaller(reward, Contract("the reward function", sys.maxsize), threads)
        self.reward, self._build_extractor = reward, extractor
        self.threshold, self.protection = threshold, protection
        self._extract: Callable[[str], str | None] | None = None

    def judge(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verdict]:
        """One verdict per response, in their order.

        Raises:
            ValueError: more calls failed than may.
        """
        results = self.reward([_call(problem, response) for problem, response in zip(problems, responses, strict=True)])
        refused = next((scored.detail for scored in results if scored.refused), None)
        counted = tally(results)
        if refused or (self.protection and (refused := counted.excess(self.protection, "the reward function"))):
            raise ValueError(_by_own_keys(refused))
        if counted.failed:
            logger.warning("%d of %d reward calls failed; the last: %s", counted.failed, counted.calls, counted.last)
        return [self._verdict(scored, response) for scored, response in zip(results, responses, strict=True)]

    def close(self) -> None:
        """End the processes of the reward function."""
        self.reward.close()

    def _verdict(self, scored: Scored, response: str) -> Verdict:
        fields, score = scored.fields, scored.score
        correct = score >= self.threshold if fields.get(ACCURACY) is None else float(fields[ACCURACY]) >= 1
        answer = self._answer(response) if fields.get("pred") is None else str(fields["pred"])
        gold = fields.get(GOLD)
        return Verdict(score, correct and scored.fault is None, answer, (gold is None or bool(gold)) and not scored.unscored)

    def _answer(self, response: str) -> str:
        if self._extract is None:
            self._extract = self._build_extractor()
        return self._extract(response) or ""


def _call(problem: Problem, response: str) -> Call:
    return {
        "data_source": problem.source,
        "solution_str": response,
        "ground_truth": problem.ground_truth,
        "extra_info": {**problem.extra_info, **TURNS},
    }

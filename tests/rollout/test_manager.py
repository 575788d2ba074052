"""Rollouts of one turn in batches: the same requests and the same batch as verl's loops make of them, without a loop per row."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from verl import DataProto
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput, AgentLoopWorker
from verl.workers.rollout.replica import TokenOutput

from unify_posttrain.config import conf_dir
from unify_posttrain.rollout import manager as managing
from unify_posttrain.rollout.agent_loop import NEW_TOKENS_COLUMN, PREFIX_COLUMN, PREFIX_TRAINED_COLUMN, SEED_COLUMN
from unify_posttrain.rollout.manager import RolloutManager, loops_of_one_turn
from unify_posttrain.rollout.single_turn import Answer, assembled, extra_columns, requests, reward_tensor

P, R, PAD = 6, 5, 0
SAMPLING = {"temperature": 1.0, "logprobs": True}


class Tokenizer:
    """Pads as verl's loops ask it to."""

    padding_side = "left"

    def pad(self, given: dict, padding: str, max_length: int, return_tensors: str, return_attention_mask: bool) -> dict:
        ids = list(given["input_ids"])
        fill = [PAD] * (max_length - len(ids))
        kept = [1] * len(ids)
        sides = (fill + ids, [0] * len(fill) + kept) if self.padding_side == "left" else (ids + fill, kept + [0] * len(fill))
        made = {"input_ids": torch.tensor([sides[0]])}
        return {**made, "attention_mask": torch.tensor([sides[1]])} if return_attention_mask else made


def of_objects(values: list[Any]) -> np.ndarray:
    made = np.empty(len(values), dtype=object)
    made[:] = values
    return made


PROMPTS = [[{"role": "user", "content": "a"}], [{"role": "user", "content": "bcd"}]]


def columns(prefixes: list[list[int]] | None = None) -> dict[str, np.ndarray]:
    rows = [PROMPTS[0], PROMPTS[0], PROMPTS[1]]
    made = {"raw_prompt": of_objects(rows), SEED_COLUMN: np.array([7, 8, 9]), "uid": of_objects(["x", "x", "y"])}
    if prefixes is not None:
        made |= {PREFIX_COLUMN: of_objects(prefixes), PREFIX_TRAINED_COLUMN: np.array([True, False, True])}
    return made


class Rendering:
    """One token per letter of the last message."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, messages: Any) -> list[int]:
        self.asked += 1
        return [ord(letter) - 96 for letter in messages[-1]["content"]]


def test_a_prompt_is_rendered_once_and_every_row_has_its_own_request() -> None:
    rendering = Rendering()
    asked = requests(columns([[], [3, 4], []]), rendering, SAMPLING, P, R)
    assert rendering.asked == 2
    assert [request.prompt for request in asked] == [[1], [1], [2, 3, 4]]
    assert [request.params for request in asked] == [
        {**SAMPLING, "seed": 7},
        {**SAMPLING, "seed": 8, "max_tokens": 3},
        {**SAMPLING, "seed": 9},
    ]
    assert [(request.prefix, request.prefix_trained, request.room) for request in asked] == [
        ([], False, 5),
        ([3, 4], False, 3),
        ([], False, 5),
    ]
    limited = requests({**columns(), NEW_TOKENS_COLUMN: np.array([2, 2, 2])}, rendering, SAMPLING, P, R)
    assert {request.params["max_tokens"] for request in limited} == {2}


@pytest.mark.parametrize(
    ("prefixes", "widths", "message"),
    [
        ([[], [1] * 5, []], (P, R), "leaves no room to generate in data.max_response_length=5"),
        (None, (2, R), "more than data.max_prompt_length=2"),
    ],
)
def test_what_does_not_fit_is_said(prefixes: Any, widths: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        requests(columns(prefixes), Rendering(), SAMPLING, *widths)


def verls(asked: list[Any], answers: list[Answer], scores: list[float], infos: list[dict]) -> DataProto:
    """The batch that verl's worker makes of the same rollouts, one by one."""
    worker = object.__new__(AgentLoopWorker)
    worker.tokenizer, worker.processor, worker.reward_loop_worker_handles = Tokenizer(), None, [None]
    worker.rollout_config = SimpleNamespace(prompt_length=P, response_length=R)
    outputs = []
    for request, answer, score, info in zip(asked, answers, scores, infos, strict=True):
        sampled = list(answer.token_ids)[: request.room]
        given = len(request.prefix)
        outputs.append(
            AgentLoopOutput(
                prompt_ids=request.prompt,
                response_ids=[*request.prefix, *sampled],
                response_mask=[int(request.prefix_trained)] * given + [1] * len(sampled),
                response_logprobs=[0.0] * given + list(answer.log_probs or [])[: request.room] if answer.log_probs else None,
                multi_modal_data={},
                reward_score=score,
                num_turns=2,
                metrics=AgentLoopMetrics(),
                extra_fields={**(answer.extra_fields or {}), "turn_scores": [], "tool_rewards": [], "reward_extra_info": info},
            )
        )

    async def postprocessed() -> list[Any]:
        rows = columns()["raw_prompt"]
        return [await worker._agent_loop_postprocess(output, raw_prompt=rows[row]) for row, output in enumerate(outputs)]

    return worker._postprocess(asyncio.run(postprocessed()))


@pytest.mark.parametrize("log_probs", [True, False])
@pytest.mark.parametrize("prefixes", [None, [[], [3, 4], [5]]])
def test_the_batch_is_that_of_verls_loops(log_probs: bool, prefixes: list[list[int]] | None) -> None:
    asked = requests(columns(prefixes), Rendering(), SAMPLING, P, R)
    answers = [
        Answer(ids, [-0.5 * place for place in range(1, len(ids) + 1)] if log_probs else None, {"global_steps": 3})
        for ids in ([11, 12, 13], [14, 15, 16, 17, 18, 19], [20])
    ]
    scores, infos = [1.0, 0.5, -1.0], [{"reward_outcome": {"score": score}} for score in (1.0, 0.5, -1.0)]
    theirs = verls(asked, answers, scores, infos)
    tensors = assembled(asked, answers, P, R, PAD)
    tensors["rm_scores"] = reward_tensor(scores, tensors)
    assert set(tensors.keys()) == set(theirs.batch.keys())
    for name, tensor in theirs.batch.items():
        assert torch.equal(tensors[name], tensor) and tensors[name].dtype == tensor.dtype, name
    ours = extra_columns(columns()["raw_prompt"], answers, infos)
    assert set(ours) == set(theirs.non_tensor_batch)
    for name, column in theirs.non_tensor_batch.items():
        assert ours[name].dtype == column.dtype and ours[name].tolist() == column.tolist(), name


# The manager, with engines and reward workers that are plain objects


class Remote:
    """A method of an actor."""

    def __init__(self, function: Any) -> None:
        self.remote = function


class Engine:
    """Answers a prompt with its own last token, as often as its seed says; in batches, or row by row in an order of its own."""

    def __init__(self, calls: list[Any]) -> None:
        self.calls = calls
        self.generate_batch, self.generate = Remote(self._batch), Remote(self._one)

    async def _batch(self, prompts: list[list[int]], params: list[dict]) -> list[tuple[list[int], list[float]]]:
        self.calls.append(("batch", len(prompts)))
        return [
            ([ids[-1]] * (each["seed"] % 4 + 1), [-1.0] * (each["seed"] % 4 + 1)) for ids, each in zip(prompts, params, strict=True)
        ]

    async def _one(
        self, request_id: str, prompt_ids: list[int], sampling_params: dict, image_data: None, video_data: None
    ) -> TokenOutput:
        self.calls.append(("one", request_id))
        await asyncio.sleep(0.001 * (13 * sampling_params["seed"] % 7))
        ((ids, log_probs),) = await self._batch([prompt_ids], [sampling_params])
        self.calls.pop()
        return TokenOutput(token_ids=ids, log_probs=log_probs, stop_reason="completed")


class Scorer:
    """Scores a row by its response's length, and keeps what it was sent."""

    def __init__(self) -> None:
        self.batches: list[DataProto] = []
        self.compute_score_batch = Remote(self._score)

    async def _score(self, data: DataProto) -> list[dict[str, Any]]:
        self.batches.append(data)
        await asyncio.sleep(0.002)
        lengths = data.batch["attention_mask"][:, P:].sum(dim=1).tolist()
        if 4 in lengths and "fail" in data.non_tensor_batch:
            raise ValueError("the reward worker is broken")
        return [{"reward_score": float(n), "reward_extra_info": {"reward_outcome": {"n": n}}} for n in lengths]


def manager(engine: str, servers: int = 2, scorers: list[Scorer] | None = None) -> tuple[RolloutManager, list[Any]]:
    made, calls = object.__new__(RolloutManager), []
    made.rollout_config = OmegaConf.create(
        {
            "name": engine, "prompt_length": P, "response_length": R, "calculate_log_probs": True, "temperature": 1.0, "top_p": 1.0,
            "top_k": -1, "val_kwargs": {"temperature": 0.0, "top_p": 0.9, "top_k": 5}, "trace": {"backend": None},
            "agent": {"default_agent_loop": "seeded_single_turn", "num_workers": 2},
        }
    )  # fmt: skip
    made.server_handles = [Engine(calls) for _ in range(servers)]
    made.reward_loop_worker_handles = [Scorer(), Scorer()] if scorers is None else scorers
    made.agent_loop_workers, made.pad_id, made.text_alone = [], PAD, True
    made.template = SimpleNamespace(ids=Rendering())
    made.of_one_turn = frozenset({"seeded_single_turn"})
    return made, calls


def batch(**meta: Any) -> DataProto:
    return DataProto(batch=None, non_tensor_batch=columns(), meta_info=meta)


@pytest.mark.parametrize("engine", ["hf", "vllm"])
def test_answers_and_scores_stand_at_their_rows_whatever_finishes_first(engine: str) -> None:
    made, calls = manager(engine)
    output = made.generate_sequences(batch())
    lengths = [7 % 4 + 1, 8 % 4 + 1, 9 % 4 + 1]
    assert output.batch["response_mask"].sum(dim=1).tolist() == lengths
    assert output.batch["rm_scores"].sum(dim=1).tolist() == [float(n) for n in lengths]
    assert [info["n"] for info in output.non_tensor_batch["reward_outcome"]] == lengths
    assert output.batch["responses"][:, 0].tolist() == [1, 1, 4]
    assert output.meta_info["reward_extra_keys"] == ["reward_outcome"]
    assert {"agent_loop/generate_sequences/max", "agent_loop/slowest/response_length"} <= set(output.meta_info["timing"])
    assert [kind for kind, _ in calls] == (["batch", "batch"] if engine == "hf" else ["one"] * 3), (
        "one call per replica, or per row"
    )


def test_reward_workers_share_what_is_finished_and_get_every_column() -> None:
    scorers = [Scorer(), Scorer()]
    made, _ = manager("hf", servers=1, scorers=scorers)
    made.generate_sequences(batch())
    assert sorted(len(data) for each in scorers for data in each.batches) == [1, 2], "one call each"
    sent = scorers[0].batches[0]
    assert set(sent.batch.keys()) == {"prompts", "responses", "attention_mask"}
    assert {"uid", "raw_prompt", "__num_turns__", "tool_extra_fields"} <= set(sent.non_tensor_batch)


def test_an_error_of_a_reward_worker_is_the_manager_s() -> None:
    made, _ = manager("vllm")
    given = batch()
    given.non_tensor_batch["fail"] = np.array([1, 1, 1])
    with pytest.raises(ValueError, match="the reward worker is broken"):
        made.generate_sequences(given)


def test_without_reward_workers_nothing_is_scored_and_columns_stay() -> None:
    made, _ = manager("hf")
    made.reward_loop_worker_handles = None
    output = made.generate_sequences(batch(validate=True))
    assert "rm_scores" not in output.batch and "reward_extra_keys" not in output.meta_info
    assert output.non_tensor_batch["uid"].tolist() == ["x", "x", "y"]


def test_validation_has_its_own_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = manager("hf")
    assert made._sampling(batch())["temperature"] == 1.0
    assert made._sampling(batch(validate=True)) == {
        "temperature": 0.0, "top_p": 0.9, "top_k": 5, "repetition_penalty": 1.0, "logprobs": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        lambda made, given: given.non_tensor_batch.update(agent_name=of_objects(["tool_agent"] * 3)),
        lambda made, given: setattr(made, "text_alone", False),
        lambda made, given: OmegaConf.update(made.rollout_config, "trace.backend", "mlflow"),
        lambda made, given: OmegaConf.update(made.rollout_config, "agent.default_agent_loop", "two_turns"),
        lambda made, given: OmegaConf.update(made.rollout_config, "enable_rollout_routing_replay", True, force_add=True),
    ],
)
def test_other_batches_start_verls_loops_once(change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made, calls = manager("hf")
    started: list[str] = []

    async def balancer(self: Any) -> None:
        started.append("balancer")

    async def workers(self: Any) -> None:
        started.append("workers")
        self.agent_loop_workers = [None]

    async def generated(self: Any, prompts: DataProto) -> str:
        return "verl's"

    verls_manager = managing.AgentLoopManager
    monkeypatch.setattr(verls_manager, "_init_global_load_balancer", balancer)
    monkeypatch.setattr(verls_manager, "_init_agent_loop_workers", workers)
    monkeypatch.setattr(verls_manager.generate_sequences, "__wrapped__", generated)
    given = batch()
    change(made, given)
    assert [made.generate_sequences(given), made.generate_sequences(given)] == ["verl's", "verl's"]
    assert started == ["balancer", "workers"] and not calls


def test_our_loop_is_known_by_its_class_and_not_by_its_name() -> None:
    assert loops_of_one_turn(str(conf_dir() / "agent_loops.yaml")) == {"seeded_single_turn"}
    assert loops_of_one_turn(None) == frozenset()

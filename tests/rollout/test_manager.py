"""The direct way of a batch against verl's agent loops: the same engine, tokens, rewards and columns. Without Ray: what is called
over it is called in this process."""

from __future__ import annotations

import asyncio
import pickle
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf, open_dict
from transformers import Qwen2Config, Qwen2ForCausalLM
from verl import DataProto
from verl.experimental.agent_loop.agent_loop import AgentLoopManager, AgentLoopWorker
from verl.workers.rollout.replica import TokenOutput

from unify_posttrain import cpu_compat
from unify_posttrain.config import compose_config
from unify_posttrain.experience.rows import object_column
from unify_posttrain.rollout import hf_server
from unify_posttrain.rollout.agent_loop import NEW_TOKENS_COLUMN, PREFIX_COLUMN, PREFIX_TRAINED_COLUMN, SEED_COLUMN
from unify_posttrain.rollout.batches import AnswersBatches
from unify_posttrain.rollout.hf_server import HFServer
from unify_posttrain.rollout.lanes import Lanes
from unify_posttrain.rollout.manager import RolloutManager
from unify_posttrain.rollout.rows import Requests
from unify_posttrain.rollout.sampling import SeededSampler
from unify_posttrain.tasks.tiny_model import build_tokenizer
from unify_posttrain.workers.transport import travelling

from .handles import Balancer, Handle

PROMPT, RESPONSE, GROUP = 16, 24, 4
cpu_compat.install()


class Judge:
    """A reward worker that says what it was shown."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    async def compute_score_batch(self, data: DataProto) -> list[dict[str, Any]]:
        self.batches.append(len(data))
        return [await self.compute_score(data[row : row + 1]) for row in range(len(data))]

    async def compute_score(self, data: DataProto) -> dict[str, Any]:
        responses, columns = data.batch["responses"][0], data.non_tensor_batch
        length = int(data.batch["attention_mask"][0, -len(responses) :].sum())
        tokens, told = responses[:length].tolist(), dict(columns["tool_extra_fields"][0])
        attended = data.batch["attention_mask"][0].bool()
        seen = {
            "tokens": tokens,
            "whole": data.batch["input_ids"][0][attended].tolist(),
            "places": data.batch["position_ids"][0][..., attended].tolist(),
            "turns": int(columns["__num_turns__"][0]),
            "told": {name: told[name] for name in sorted(told)},
            "columns": sorted(columns),
        }
        return {"reward_score": sum(tokens) / 100, "reward_extra_info": {"seen": seen}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("manager") / "model"
    tokenizer = build_tokenizer(256)
    tokenizer.save_pretrained(made)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=64, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def config(folder: Path) -> Any:
    return compose_config(
        [
            "algorithm=grpo", f"actor_rollout_ref.model.path={folder}", f"data.max_prompt_length={PROMPT}",
            f"data.max_response_length={RESPONSE}",
        ]
    )  # fmt: skip


@pytest.fixture(scope="module")
def server(folder: Path, config: Any) -> HFServer:
    return make_server(folder)


def make_server(folder: Path) -> HFServer:
    tokenizer = build_tokenizer(256)
    server = HFServer(
        model_path=str(folder), pad_id=tokenizer.pad_token_id, eos_ids=[tokenizer.eos_token_id, 30, 31, 32],
        response_length=RESPONSE, max_context=PROMPT + RESPONSE, max_batch=64, gather_seconds=0.01, dtype="float32",
        override_config={"attn_implementation": "sdpa"},
    )  # fmt: skip
    server.load_weights(dict(Qwen2ForCausalLM.from_pretrained(folder).named_parameters()))
    return server


def test_one_thread_of_a_server_computes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenMP gives threads to each that does, and more of them than cores, in a process, sleep between any two operations."""
    threads: dict[str, set[str]] = {}

    def noted(where: Any, name: str) -> None:
        work = getattr(where, name)

        def run(*args: Any, **kwargs: Any) -> Any:
            threads.setdefault(name, set()).add(threading.current_thread().name)
            return work(*args, **kwargs)

        monkeypatch.setattr(where, name, run)

    noted(hf_server.AutoModelForCausalLM, "from_config")
    noted(hf_server, "_copy")
    noted(Lanes, "_start")
    noted(hf_server, "_responses")
    noted(SeededSampler, "draw")

    async def serve(server: HFServer) -> None:
        await server.generate("a", [5, 6], {"max_tokens": 2})
        prompts = [np.array([5, 6], dtype=np.int32)] * 4
        async for _ in server.generate_batch(Requests(prompts, [2] * 4, [0, 1, 2, 3], {"logprobs": True}, portion=2)):
            pass

    asyncio.run(serve(make_server(folder)))
    assert set(threads) == {"from_config", "_copy", "_start", "_responses", "draw"}
    assert len(set.union(*threads.values())) == 1
    assert threading.current_thread().name not in threads["_copy"]


def manager_of(config: Any, *servers: Any, judges: list[Judge] | None) -> RolloutManager:
    """As `create` leaves it; verl's own would start processes."""
    manager = RolloutManager.__new__(RolloutManager)
    manager.config, manager.rollout_config, manager.model_config = (
        config,
        config.actor_rollout_ref.rollout,
        config.actor_rollout_ref.model,
    )
    manager.server_handles = [Handle(server) for server in servers]
    manager.reward_loop_worker_handles = None if judges is None else [Handle(judge) for judge in judges]
    manager.agent_loop_workers = []
    return manager


def requests(validate: bool = False, **columns: Any) -> DataProto:
    """Three prompts of unequal lengths, a group of rollouts each."""
    messages = [[{"role": "user", "content": text}] for text in ("1+2=", "12+3=", "123+456=")]
    rows = 3 * GROUP
    given = {
        "raw_prompt": object_column([messages[row // GROUP] for row in range(rows)]),
        SEED_COLUMN: np.arange(rows) * 7,
        "row_id": np.arange(rows) // GROUP,
        "extra_info": object_column([{"split": "train"}] * rows),
        **columns,
    }
    batch = DataProto.from_dict(tensors={"dummy": torch.zeros(rows, 1)}, non_tensors=given)
    batch.meta_info = {"global_steps": 3, **({"validate": True} if validate else {})}
    return batch


def prefixes(trained: bool) -> dict[str, Any]:
    rows = 3 * GROUP
    given = object_column([list(range(40, 40 + row % 3)) for row in range(rows)])
    return {PREFIX_COLUMN: given, PREFIX_TRAINED_COLUMN: np.full(rows, trained)}


def by_agent_loops(config: Any, server: Any, judges: list[Judge] | None, batch: DataProto) -> DataProto:
    """verl's worker and manager around the same engine."""

    async def run() -> DataProto:
        handles = None if judges is None else [Handle(judge) for judge in judges]
        worker = AgentLoopWorker(config, [("only", Handle(server))], Handle(Balancer()), handles)
        manager = AgentLoopManager.__new__(AgentLoopManager)
        manager.agent_loop_workers = [Handle(worker)]
        return await AgentLoopManager.generate_sequences.__wrapped__(manager, batch)

    return asyncio.run(run())


CASES = {
    "plain": {},
    "prefixes": prefixes(False),
    "trained_prefixes": prefixes(True),
    "limited": {NEW_TOKENS_COLUMN: np.full(3 * GROUP, 5)},
    "limited_prefixes": {**prefixes(True), NEW_TOKENS_COLUMN: np.full(3 * GROUP, 23)},
    "named": {"agent_name": object_column(["seeded_single_turn"] * 3 * GROUP)},
}


def at_a_worker(batch: DataProto) -> DataProto:
    """What becomes of the driver's batch on the way to the workers of the actor."""
    return pickle.loads(pickle.dumps(travelling(batch)))


@pytest.mark.parametrize("validate", [False, True], ids=["train", "validate"])
@pytest.mark.parametrize("case", CASES)
def test_rows_are_those_of_the_agent_loops(config: Any, server: HFServer, case: str, validate: bool) -> None:
    judges = [Judge(), Judge(), Judge()]
    manager = manager_of(config, server, judges=judges)
    ours = manager.generate_sequences(requests(validate, **CASES[case]))
    theirs = by_agent_loops(config, server, [Judge()], requests(validate, **CASES[case]))
    assert manager.agent_loop_workers == [], "nothing of the other way was started"
    arrived = at_a_worker(ours).batch
    assert set(arrived.keys()) == set(theirs.batch.keys())
    for name, value in theirs.batch.items():
        assert arrived[name].dtype == value.dtype, name
        # To the last bit, the engine's log-probabilities too: it decodes the same rows in the same order.
        assert torch.equal(arrived[name], value), name
        assert name == "position_ids" or torch.equal(ours.batch[name], value.to(ours.batch[name].dtype)), name
    assert all(value.dtype != torch.int64 for value in ours.batch.values()), "more bits than they need"
    assert case == "limited" or ours.batch["response_mask"].sum(dim=-1).unique().numel() > 1
    assert set(ours.non_tensor_batch) == set(theirs.non_tensor_batch)
    for name, column in theirs.non_tensor_batch.items():
        assert ours.non_tensor_batch[name].dtype == column.dtype, name
        assert ours.non_tensor_batch[name].tolist() == column.tolist(), name
    assert set(ours.meta_info) == set(theirs.meta_info)
    assert set(ours.meta_info["timing"]) == set(theirs.meta_info["timing"])
    calls = [size for judge in judges for size in judge.batches]
    assert sum(calls) == 3 * GROUP and len(calls) < 3 * GROUP and all(judge.batches for judge in judges)


def test_without_reward_workers_the_requests_stay_in_the_batch(config: Any, server: HFServer) -> None:
    """A reward model on the same accelerators scores later, and reads them."""
    ours = manager_of(config, server, judges=None).generate_sequences(requests())
    theirs = by_agent_loops(config, server, None, requests())
    assert set(at_a_worker(ours).batch.keys()) == set(theirs.batch.keys()) and "rm_scores" not in ours.batch
    assert set(theirs.non_tensor_batch) - set(ours.non_tensor_batch) == {"agent_name"}, "verl names the loop in the batch"
    assert set(ours.meta_info) == set(theirs.meta_info)


def test_long_rows_are_scored_in_several_messages(config: Any, server: HFServer, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = manager_of(config, server, judges=[Judge()]).generate_sequences(requests())
    monkeypatch.setattr("unify_posttrain.rollout.rows.CELLS", 2 * (PROMPT + RESPONSE))
    judge = Judge()
    parts = manager_of(config, server, judges=[judge]).generate_sequences(requests())
    assert max(judge.batches) == 2 and sum(judge.batches) == 3 * GROUP
    assert torch.equal(whole.batch["rm_scores"], parts.batch["rm_scores"])


def test_no_log_probs_if_nobody_asks(config: Any, server: HFServer) -> None:
    config = config.copy()
    config.actor_rollout_ref.rollout.calculate_log_probs = False
    assert "rollout_log_probs" not in manager_of(config, server, judges=[Judge()]).generate_sequences(requests()).batch


def test_replicas_share_the_rows_and_change_no_token(config: Any, server: HFServer) -> None:
    one = manager_of(config, server, judges=[Judge()]).generate_sequences(requests())
    two = manager_of(config, server, server, judges=[Judge()]).generate_sequences(requests())
    assert torch.equal(one.batch["responses"], two.batch["responses"])
    torch.testing.assert_close(one.batch["rollout_log_probs"], two.batch["rollout_log_probs"], atol=1e-5, rtol=0)
    assert one.non_tensor_batch["seen"].tolist() == two.non_tensor_batch["seen"].tolist()


def test_a_batch_repeats_to_the_last_bit(config: Any, server: HFServer) -> None:
    first, again = (manager_of(config, server, judges=[Judge()]).generate_sequences(requests()) for _ in range(2))
    assert all(torch.equal(value, again.batch[name]) for name, value in first.batch.items())


def test_batches_larger_than_the_engine_takes(config: Any, server: HFServer, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = manager_of(config, server, judges=[Judge()]).generate_sequences(requests())
    monkeypatch.setattr(server, "max_batch", 5)
    parts = manager_of(config, server, judges=[Judge()]).generate_sequences(requests())
    assert torch.equal(whole.batch["responses"], parts.batch["responses"])


@pytest.mark.parametrize(
    ("columns", "error"),
    [
        (
            {PREFIX_COLUMN: object_column([[40] * RESPONSE] * 3 * GROUP)},
            "leaves no room to generate in data.max_response_length=24",
        ),
        ({"raw_prompt": object_column([[{"role": "user", "content": "1" * 30}]] * 3 * GROUP)}, "data.max_prompt_length is 16"),
    ],
)
def test_what_has_no_room_is_refused(config: Any, server: HFServer, columns: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        manager_of(config, server, judges=[Judge()]).generate_sequences(requests(**columns))


class Stopped(Exception):
    """Raised where verl's agent loops would be started."""


@pytest.mark.parametrize(
    ("changed", "columns", "direct"),
    [
        ({}, {}, True),
        ({"agent.default_agent_loop": "tool_agent"}, {}, False),
        ({}, {"agent_name": object_column(["seeded_single_turn"] * 11 + ["two_turns"])}, False),
        ({"trace.backend": "mlflow"}, {}, False),
        ({"enable_rollout_routing_replay": True}, {}, False),
        ({"agent.agent_loop_config_path": None}, {}, False),
    ],
)
def test_what_needs_an_agent_loop_starts_them(
    config: Any, server: HFServer, changed: dict[str, Any], columns: dict[str, Any], direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config.copy()
    for key, value in changed.items():
        with open_dict(config):
            OmegaConf.update(config, f"actor_rollout_ref.rollout.{key}", value)

    async def start(self: Any) -> None:
        raise Stopped

    monkeypatch.setattr(RolloutManager, "_start_agent_loops", start)
    manager = manager_of(config, server, judges=[Judge()])
    if direct:
        assert len(manager.generate_sequences(requests(**columns))) == 3 * GROUP
    else:
        with pytest.raises(Stopped):
            manager.generate_sequences(requests(**columns))


def test_engines_that_take_no_batches_go_by_agent_loops(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def start(self: Any) -> None:
        raise Stopped

    monkeypatch.setattr(RolloutManager, "_start_agent_loops", start)
    manager = manager_of(config, judges=[Judge()])
    manager.server_handles = [SimpleNamespace(generate=None)]
    with pytest.raises(Stopped):
        manager.generate_sequences(requests())


def test_agent_loops_are_started_once(config: Any, server: HFServer, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []

    async def balancer(self: Any) -> None:
        started.append("balancer")

    async def workers(self: Any) -> None:
        started.append("workers")
        self.agent_loop_workers = [object()]

    monkeypatch.setattr(AgentLoopManager, "_init_global_load_balancer", balancer)
    monkeypatch.setattr(AgentLoopManager, "_init_agent_loop_workers", workers)
    manager = manager_of(config, server, judges=[Judge()])

    async def twice() -> None:
        await manager._init_global_load_balancer()
        await manager._init_agent_loop_workers()
        assert started == []
        await manager._start_agent_loops()
        await manager._start_agent_loops()

    asyncio.run(twice())
    assert started == ["balancer", "workers"]


# Servers that answer one request at a time


class Engine(AnswersBatches):
    """Row by row as vLLM's server does, later rows first; the tokens of a row are its prompt's, backwards."""

    def __init__(self, fails: int | None = None) -> None:
        self.asked: list[dict[str, Any]] = []
        self.fails, self.ended = fails, 0

    async def generate(self, prompt_ids: list[int], sampling_params: dict[str, Any], request_id: str, **_: Any) -> TokenOutput:
        number = len(self.asked)
        self.asked.append({"prompt_ids": prompt_ids, **sampling_params, "request_id": request_id})
        for _ in range(10 * (20 - number)):  # turns of the event loop
            await asyncio.sleep(0)
        if number == self.fails:
            raise RuntimeError("out of blocks")
        self.ended += 1
        tokens = prompt_ids[::-1][: sampling_params.get("max_tokens", RESPONSE)]
        log_probs = [-token / 8 for token in tokens] if sampling_params["logprobs"] else None
        return TokenOutput(token_ids=tokens, log_probs=log_probs, num_preempted=number, extra_fields={"global_steps": 4})


def asked_of(engine: Engine, portion: int, logprobs: bool = True) -> list[Any]:
    prompts = [np.arange(1, 2 + row, dtype=np.int32) for row in range(6)]
    given = Requests(prompts, [3] * 6, list(range(6)), {"temperature": 1.0, "logprobs": logprobs}, portion)

    async def collect() -> list[Any]:
        return [part async for part in engine.generate_batch(given)]

    return asyncio.run(collect())


@pytest.mark.parametrize("portion", [1, 4, 6, 9])
def test_rows_come_back_as_they_end(portion: int) -> None:
    engine = Engine()
    parts = asked_of(engine, portion)
    assert [len(part.rows) for part in parts] == {1: [1] * 6, 4: [4, 2], 6: [6], 9: [6]}[portion]
    assert [row for part in parts for row in part.rows.tolist()] == [5, 4, 3, 2, 1, 0]
    for part in parts:
        ends = part.lengths.cumsum()
        for row, start, end in zip(part.rows.tolist(), ends - part.lengths, ends, strict=True):
            expected = list(range(1 + row, 0, -1))[:3]
            assert part.token_ids[start:end].tolist() == expected
            assert part.log_probs[start:end].tolist() == [-token / 8 for token in expected]
        assert part.preempted.tolist() == part.rows.tolist() and part.fields == {"global_steps": 4}
        assert part.token_ids.dtype == np.int32 and part.log_probs.dtype == np.float32
    assert [each["seed"] for each in engine.asked] == list(range(6)) and len({each["request_id"] for each in engine.asked}) == 6
    assert asked_of(Engine(), portion, logprobs=False)[0].log_probs is None


def test_an_error_is_the_batchs_and_gives_up_the_rest() -> None:
    engine = Engine(fails=5)
    with pytest.raises(RuntimeError, match="out of blocks"):
        asked_of(engine, 6)
    assert engine.ended == 0


def test_through_such_a_server_rows_are_the_agent_loops(config: Any) -> None:
    """What the engine says beside its tokens reaches columns and reward alike."""
    columns = prefixes(True)
    ours = manager_of(config, Engine(), judges=[Judge()]).generate_sequences(requests(**columns))
    theirs = by_agent_loops(config, Engine(), [Judge()], requests(**columns))
    arrived = at_a_worker(ours).batch
    for name, value in theirs.batch.items():
        assert torch.equal(arrived[name], value), name
    assert ours.non_tensor_batch["global_steps"].tolist() == theirs.non_tensor_batch["global_steps"].tolist() == [4] * 12
    told = [each["told"] for each in ours.non_tensor_batch["seen"]]
    assert told == [each["told"] for each in theirs.non_tensor_batch["seen"]] and told[0]["global_steps"] == 4

"""verl's reward worker with our wrapper in it, without Ray: every manager, verl's own collation, the columns that come of it."""

from __future__ import annotations

import asyncio
import os
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from verl import DataProto

from tests.rewards import misbehaving
from unify_posttrain.config import compose_config
from unify_posttrain.experience.rows import object_column
from unify_posttrain.rewards import calling
from unify_posttrain.rewards.calling import OUTCOME
from unify_posttrain.rewards.contract import Scored
from unify_posttrain.tasks.tiny_model import build_tokenizer
from unify_posttrain.trainer.rewards import RewardFunctionError, RewardReader, aligned, unscored_rows
from unify_posttrain.trainer.validation import validated_fields, validated_metrics
from unify_posttrain.workers.reward_worker import FusionRewardLoopWorker

pytestmark = pytest.mark.slow

SOURCE = """
import os
RESULTS = {
    "n": None, "x": float("nan"), "t": "text", "l": {"score": 1.0, "acc": 1.0, "parts": [1, 2]},
    "f": {"score": 0.5, "acc": 0.0, "only": 3}, "g": {"score": 1.0, "acc": 1.0, "gold_ok": 0}, "u": {"score": 1.0, "uid": 3},
}
def compute_score(data_source, solution_str, ground_truth, extra_info):
    if solution_str == "e":
        raise ValueError("no")
    if solution_str == "c":
        os._exit(0)
    return RESULTS[solution_str] if solution_str in RESULTS else {"score": 1.0, "acc": 1.0, "length": 1}
"""
ROWS = "afenxtlcg"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("worker")
    build_tokenizer(256).save_pretrained(made / "model")
    (made / "mine.py").write_text(SOURCE)
    return made


def composed(folder: Path, *overrides: str) -> DictConfig:
    return compose_config(
        [
            "algorithm=grpo", f"actor_rollout_ref.model.path={folder}/model", "reward.protection.max_fault_share=0.9",
            f"reward.custom_reward_function.path={folder}/mine.py", *overrides,
        ]
    )  # fmt: skip


def rows(folder: Path, texts: str) -> DataProto:
    tokenizer = build_tokenizer(256)
    ids = torch.tensor([tokenizer(text)["input_ids"] for text in texts])
    return DataProto.from_dict(
        tensors={
            "responses": ids,
            "prompts": torch.zeros_like(ids),
            "attention_mask": torch.ones(len(texts), 2 * ids.shape[1], dtype=int),
        },
        non_tensors={
            "data_source": object_column(["s"] * len(texts)),
            "reward_model": object_column([{"ground_truth": "1"} for _ in texts]),
            "extra_info": object_column([{} for _ in texts]),
            "row_id": np.arange(len(texts)),
            "uid": object_column(list(texts)),
        },
    )


def scored(config: DictConfig, data: DataProto) -> DataProto:
    """Scored by a worker, and put together as verl's agent loops and reward loop do: by the names in the first row."""

    async def score() -> list[dict[str, Any]]:
        return await FusionRewardLoopWorker(config).compute_score_batch(data)

    results = asyncio.run(score())
    calling.gatherers.close()
    infos = [result["reward_extra_info"] for result in results]
    columns = {key: np.array([info[key] for info in infos]) for key in infos[0]}
    tensor = torch.zeros(data.batch["responses"].shape)
    tensor[:, -1] = torch.tensor([result["reward_score"] for result in results])
    made = DataProto.from_dict(tensors={**data.batch, "rm_scores": tensor}, non_tensors={**data.non_tensor_batch, **columns})
    made.meta_info["reward_extra_keys"] = list(infos[0])
    return made


@pytest.mark.parametrize("manager", ["naive", "dapo", "gdpo", "rate_limited"])
def test_rows_may_differ_in_everything(folder: Path, manager: str) -> None:
    config = composed(folder, f"reward.reward_manager.name={manager}")
    batch = RewardReader.from_config(config, None).read(scored(config, rows(folder, ROWS)))
    columns = batch.non_tensor_batch
    assert batch.batch["rm_scores"][:, -1].tolist() == [1, 0.5, 0, 0, 0, 0, 1, 0, 1]
    assert columns["grader_fault"].tolist() == [0, 0, 1, 0, 0, 1, 0, 1, 0]
    assert columns["gold_ok"].tolist() == [1] * 8 + [0]
    assert "".join(np.array(list(ROWS))[unscored_rows(batch)]) == "nx"
    assert np.nan_to_num(columns["acc"], nan=-1).tolist() == [1, 0, 0, -1, -1, 0, 1, 0, 1], "a fault is wrong, no score is missing"
    assert np.nan_to_num(columns["only"], nan=-1).tolist() == [-1, 3, *[-1] * 7]
    assert columns["parts"].tolist() == [None] * 6 + ["[1, 2]", None, None]
    assert OUTCOME not in columns and batch.meta_info["reward_extra_keys"][:2] == ["score", "acc"]


def test_a_penalty_is_added_to_scores_alone(folder: Path) -> None:
    """The dapo manager's: rows of one token, of which one is allowed, pay -1; what failed or has no score stays 0."""
    penalty = "{max_resp_len:1,overlong_buffer_cfg:{enable:true,len:1,penalty_factor:1.0,log:true}}"
    config = composed(folder, "reward.reward_manager.name=dapo", f"+reward.reward_kwargs={penalty}")
    batch = RewardReader.from_config(config, None).read(scored(config, rows(folder, "aen")))
    assert batch.batch["rm_scores"][:, -1].tolist() == [0, 0, 0]
    assert batch.non_tensor_batch["score"].tolist()[:2] == [1, 0], "the function's own score"
    assert batch.non_tensor_batch["overlong"].tolist()[0] in (True, 1.0)


def test_numbers_alone_are_their_own_accuracy(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "plain.py"
    file.write_text("def compute_score(**arguments): return {'a': 1, 'b': True, 'c': 0.25}[arguments['solution_str']]\n")
    config = composed(folder, f"reward.custom_reward_function.path={file}")
    batch = RewardReader.from_config(config, None).read(scored(config, rows(folder, "abc")))
    assert batch.batch["rm_scores"][:, -1].tolist() == batch.non_tensor_batch["acc"].tolist() == [1, 1, 0.25]


def test_asynchronous_functions_and_those_that_need_the_process(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "later.py"
    file.write_text(
        "import asyncio, os\n"
        "async def compute_score(**arguments):\n"
        "    await asyncio.sleep(3600 if arguments['solution_str'] == 'h' else 0)\n"
        "    return {'score': 1.0, 'process': os.getpid()}\n"
        "def plain(**arguments):\n"
        "    return {'score': 1.0, 'process': os.getpid()}\n"
    )
    timeout = "reward.protection.timeout_seconds=1"
    config = composed(folder, f"reward.custom_reward_function.path={file}", timeout)
    batch = RewardReader.from_config(config, None).read(scored(config, rows(folder, "aha")))
    assert batch.batch["rm_scores"][:, -1].tolist() == [1, 0, 1] and batch.non_tensor_batch["process"][0] == os.getpid()
    plain = (f"reward.custom_reward_function.path={file}", "reward.custom_reward_function.name=plain")
    for process, same in ((True, False), (False, True)):
        config = composed(folder, *plain, f"reward.protection.process={str(process).lower()}")
        batch = RewardReader.from_config(config, None).read(scored(config, rows(folder, "a")))
        assert bool(batch.non_tensor_batch["process"][0] == os.getpid()) == same


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("aaau", r"mine\.py returned a field 'uid', a name that the batch has"),
        ("eeec", r"mine\.py: 4 of 4 calls failed \(3 error, 1 crash\), more than reward\.protection\.max_fault_share=0\.9"),
        ("nnnn", r"4 of 4 calls failed \(4 no score\)"),
    ],
)
def test_the_run_ends_by_name(folder: Path, texts: str, message: str) -> None:
    config = composed(folder)
    with pytest.raises(RewardFunctionError, match=message):
        RewardReader.from_config(config, None).read(scored(config, rows(folder, texts)))


def test_failures_are_counted_and_named_with_their_rows(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = composed(folder)
    RewardReader.from_config(config, None).read(scored(config, rows(folder, "aaenc")))
    assert (
        "of 5 calls 2 failed and score 0 (1 error, 1 crash), 1 gave no score and are masked; training rows 2, 3, 4" in caplog.text
    )


def test_a_field_that_turns_up_late_has_its_column_everywhere(folder: Path) -> None:
    """Of two batches of one step, which verl joins by their columns; and in all later ones."""
    config = composed(folder)
    reader = RewardReader.from_config(config, None)
    first, second = (reader.read(scored(config, rows(folder, texts))) for texts in ("aa", "fl"))
    joined = DataProto.concat(aligned([first, second]))
    assert joined.non_tensor_batch["parts"].tolist() == [None, None, None, "[1, 2]"]
    third = reader.read(scored(config, rows(folder, "a")))
    assert third.non_tensor_batch["parts"].tolist() == [None] and np.isnan(third.non_tensor_batch["only"]).all()


def test_validation_over_several_batches(folder: Path) -> None:
    """verl puts the outcomes of its batches behind one another; only the second batch has a field, a fault and no score."""
    config = composed(folder)
    outcomes = [plain for texts in ("aa", "fenl") for plain in scored(config, rows(folder, texts)).non_tensor_batch[OUTCOME]]
    fields = {"reward": [Scored.from_dict(plain).score for plain in outcomes], OUTCOME: outcomes}
    shown = validated_fields(fields)
    assert shown["parts"] == [None] * 5 + ["[1, 2]"] and shown["only"] == [None, None, 3, None, None, None]
    assert shown["acc"] == [1.0, 1.0, 0.0, 0.0, None, 1.0]
    from verl.trainer.ppo.ray_trainer import RayPPOTrainer

    def verl(*arguments: Any) -> dict[str, Any]:
        return RayPPOTrainer._val_metrics_update(object.__new__(RayPPOTrainer), *arguments)

    metrics = validated_metrics(
        RewardReader.from_config(config, None), verl, config.fusion, np.array(["s"] * 6), list("pqrtuv"), fields, []
    )
    # the problem without a score is left out: 3 of 5 are right
    assert metrics["val-core/s/acc/mean@1"] == pytest.approx(0.6) == metrics["val-eval/s/avg@1"]
    assert metrics["val-eval/s/excluded"] == 1.0 and metrics["val-aux/s/only/mean@1"] == 3.0
    assert all(np.isfinite(value) for value in metrics.values())


def test_mischief_is_the_same_behind_the_worker(folder: Path) -> None:
    """A sample of what `tests/rewards/test_calling.py` tries, row by row through verl's manager."""
    config = composed(folder, f"reward.custom_reward_function.path={misbehaving.__file__}", "reward.protection.timeout_seconds=2")
    data = rows(folder, "abcdef")
    texts = ["float", "segfault", "spin", "tuple", "none", "tensor"]
    worker_rows = data.select_idxs(np.arange(len(texts)))

    async def score() -> list[dict[str, Any]]:
        worker = FusionRewardLoopWorker(config)
        worker.reward_manager.tokenizer = Speaking(texts)
        return [await worker.compute_score(worker_rows[index : index + 1]) for index in range(len(texts))]

    results = asyncio.run(score())
    calling.gatherers.close()
    outcomes = [Scored.from_dict(result["reward_extra_info"][OUTCOME]) for result in results]
    assert [each.fault for each in outcomes] == [None, "crash", "timeout", "error", None, None]
    assert [each.score for each in outcomes] == [0.5, 0, 0, 0, 0, 0.5] and outcomes[4].unscored


class Speaking:
    """A tokenizer that decodes to given texts, one after the other."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = iter(texts)

    def decode(self, *_: Any, **__: Any) -> str:
        return next(self.texts)


def test_a_function_is_told_what_verls_manager_tells_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments of a batch, made of its columns, against those that the manager makes of batches of one row."""
    batch = rows(folder, "abca")
    batch.batch["attention_mask"][3, -1:] = 0
    shared = {"split": "train", "parts": [1, {"a": 2}]}
    batch.non_tensor_batch |= {
        "extra_info": object_column([shared, shared, {}, shared]),
        "__num_turns__": np.full(4, 2),
        "tool_extra_fields": object_column([{"turn_scores": [], "raw_prompt": [{"role": "user", "content": "x"}]}] * 4),
        "reward_scores": object_column([{"other": 1.0}, {}, {}, {}]),
    }

    async def arguments(apart: bool) -> list[dict[str, Any]]:
        worker, told = FusionRewardLoopWorker(composed(folder)), []

        async def listening(**call: Any) -> dict[str, Any]:
            told.append(deepcopy(call))
            call["extra_info"].get("parts", [0, {}])[1]["a"] = 3  # a function that changes what it is given
            return {"score": 1.0}

        monkeypatch.setattr(worker.reward_manager, "compute_score", listening)
        assert worker.calls_only
        if apart:
            for row in range(len(batch)):
                await worker.compute_score(deepcopy(batch[row : row + 1]))
        else:
            await worker.compute_score_batch(batch)
        return told

    together, alone = asyncio.run(arguments(apart=False)), asyncio.run(arguments(apart=True))
    assert together == alone and [call["solution_str"] for call in together] == ["a", "b", "c", ""]
    assert [call["extra_info"].get("parts") for call in together] == [[1, {"a": 2}], [1, {"a": 2}], None, [1, {"a": 2}]]
    assert shared["parts"][1] == {"a": 2}


@pytest.mark.parametrize(("manager", "calls_only"), [("naive", True), ("dapo", False), ("gdpo", False), ("rate_limited", False)])
def test_other_managers_are_asked(folder: Path, manager: str, calls_only: bool) -> None:
    async def made() -> bool:
        return FusionRewardLoopWorker(composed(folder, f"reward.reward_manager.name={manager}")).calls_only

    assert asyncio.run(made()) is calls_only

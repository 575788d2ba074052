"""verl's dapo reward manager as this package uses it: the length penalty of the specification, and its start-up check."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.dapo import DAPORewardManager

from unify_posttrain.config import compose_config
from unify_posttrain.experience.rows import object_column
from unify_posttrain.startup.reward_checks import check_reward

DAPO = "reward.reward_manager.name=dapo"


class Letters:
    """Every token is a letter."""

    def decode(self, ids, skip_special_tokens: bool) -> str:
        return "a" * len(ids)


def penalised(length: int, longest: int = 20480, buffer: int = 4096, factor: float = 1.0, prompt: int = 7) -> dict:
    """What the manager gives for a response of `length` tokens whose own score is 1."""
    penalty = {"enable": True, "len": buffer, "penalty_factor": factor, "log": True}
    config = OmegaConf.create({"reward": {"reward_kwargs": {"max_resp_len": longest, "overlong_buffer_cfg": penalty}}})
    mask = torch.zeros(1, prompt + longest, dtype=torch.long)
    mask[:, 2 : prompt + length] = 1  # two tokens of left padding; the prompt must not count
    data = DataProto.from_dict(
        tensors={"responses": torch.zeros(1, longest, dtype=torch.long), "attention_mask": mask},
        non_tensors={
            "data_source": object_column(["x"]),
            "reward_model": object_column([{"ground_truth": ""}]),
            "extra_info": object_column([{}]),
        },
    )

    async def run() -> dict:
        manager = DAPORewardManager(config, Letters(), lambda **_: {"score": 1.0, "acc": 1.0})
        return await manager.run_single(data)

    return asyncio.run(run())


@pytest.mark.parametrize("length, penalty", [(1, 0), (16383, 0), (16384, 0), (18432, -0.5), (20480, -1)])
def test_penalty_of_the_specification(length, penalty) -> None:
    # max 20480, buffer 4096, factor 1: from 16384 on, -(len - 16384) / 4096
    result = penalised(length)
    assert float(result["reward_score"]) == pytest.approx(1 + penalty)
    assert float(result["reward_extra_info"]["overlong_reward"]) == pytest.approx(penalty)
    assert bool(result["reward_extra_info"]["overlong"]) is (penalty < 0)
    assert result["reward_extra_info"]["score"] == 1.0, "the gate can still look at the score without the penalty"


def test_factor_is_the_floor() -> None:
    # 64 tokens at most, buffer 16, factor 0.5: -(60 - 48) / 16 * 0.5 and -0.5 at the end
    assert float(penalised(60, 64, 16, 0.5)["reward_score"]) == pytest.approx(1 - 0.375)
    assert float(penalised(64, 64, 16, 0.5)["reward_score"]) == pytest.approx(1 - 0.5)


def test_rewards_of_a_batch_become_numbers() -> None:
    """verl leaves 0-dimensional tensors in the results of long responses; rows of both kinds must join one column."""
    infos = [penalised(length, 64, 16)["reward_extra_info"] for length in (10, 60)]
    column = np.array([info["overlong_reward"] for info in infos])
    assert column.dtype.kind == "f" and column.tolist() == pytest.approx([0, -0.75])


def penalty(**changes) -> str:
    values = {"enable": "true", "len": 16, "penalty_factor": 1.0, "log": "true", **changes}
    inner = ",".join(f"{key}:{value}" for key, value in values.items() if value is not None)
    return f"+reward.reward_kwargs.overlong_buffer_cfg={{{inner}}}"


LONGEST = "+reward.reward_kwargs.max_resp_len=64"


def test_good_penalties_pass() -> None:
    for overrides in (
        [DAPO, LONGEST, penalty()],
        [DAPO, "+reward.reward_kwargs.max_resp_len=128", penalty(len=63)],
        [DAPO],
        [LONGEST, penalty(enable="false")],
        [],
    ):
        check_reward(compose_config(["algorithm=grpo", *overrides]))


@pytest.mark.parametrize(
    "overrides, message",
    [
        (
            [DAPO, LONGEST, penalty(len=64)],
            r"overlong_buffer_cfg\.len=64 must lie between 0 and reward\.reward_kwargs\.max_resp_len=64",
        ),
        ([DAPO, LONGEST, penalty(len=0)], r"overlong_buffer_cfg\.len=0 must lie"),
        ([DAPO, LONGEST, penalty(len=-4)], r"overlong_buffer_cfg\.len=-4 must lie"),
        ([DAPO, LONGEST, penalty(penalty_factor=0)], r"penalty_factor=0 must be above 0.*enable=false"),
        ([DAPO, LONGEST, penalty(log=None)], r"overlong_buffer_cfg\.log not set"),
        ([DAPO, penalty()], r"reward\.reward_kwargs\.max_resp_len not set"),
        ([DAPO, "+reward.reward_kwargs.max_resp_len=63", penalty()], r"max_resp_len=63 is below data\.max_response_length=64"),
        (
            [LONGEST, penalty()],
            r"enable=true, but reward\.reward_manager\.name=naive reads no length penalty; set it to dapo, or .*enable=false",
        ),
    ],
)
def test_penalty_mistakes(overrides, message) -> None:
    with pytest.raises(ValueError, match=message):
        check_reward(compose_config(["algorithm=grpo", *overrides]))

"""Turns of rollouts in the trainer: rewards on their tokens, advantages over them against a plain reference, metrics, and the
score of a demonstration of several turns."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from verl import DataProto
from verl.trainer.ppo.core_algos import compute_gae_advantage_return

from tests.tasks.environments import hand_row, node
from unify_posttrain.config import compose_config
from unify_posttrain.experience.demonstrations import Demonstration
from unify_posttrain.experience.mixer import PREFIX_LENGTH
from unify_posttrain.experience.rows import object_column
from unify_posttrain.tasks.episodes import read_settings
from unify_posttrain.tasks.tokenizer import build_tokenizer
from unify_posttrain.trainer.demonstrator import Demonstrator
from unify_posttrain.trainer.rewards import KEYS
from unify_posttrain.trainer.turns import Turns

# Two tokens of an answer, three of feedback, three of the next answer; one answer of four; a prefix of two tokens and an answer.
MASKS = [[1, 1, 0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 0, 1, 0]]
ATTENDED = [8, 4, 7]
REWARDS = [[-2.0, 5.0], [-3.0], [-1.0, -1.5]]


def turns(**changes: Any) -> Turns:
    settings, _ = read_settings(node("general_points", **changes))
    return Turns(settings, gamma=0.9, lam=0.95)


TURN = {"score": "sum", "credit": "turn", "gae": "turn"}


def rollouts() -> DataProto:
    width = len(MASKS[0])
    scores = torch.zeros(3, width)
    for row, (length, rewards) in enumerate(zip(ATTENDED, REWARDS, strict=True)):
        scores[row, length - 1] = sum(rewards)  # as verl's collation leaves it
    attended = torch.tensor([[1, 1] + [1] * length + [0] * (width - length) for length in ATTENDED])
    tensors = {"response_mask": torch.tensor(MASKS), "attention_mask": attended, "rm_scores": scores}
    columns = {
        "turn_scores": object_column(REWARDS),
        PREFIX_LENGTH: np.array([0, 0, 2]),
        "score": np.array([3.0, -3.0, -2.5]),
        "acc": np.array([1.0, 0.0, 0.0]),
        "turns": np.array([2.0, 1.0, 2.0]),
        "faults": np.array([0.0, 1.0, 1.0]),
        "outcome_right": np.array([1.0, 0.0, 0.0]),
        "outcome_wrong": np.array([1.0, 1.0, 2.0]),
        "first_acc": np.array([0.0, np.nan, 0.5]),
        "pred": object_column(["a", "b", "c"]),
        "stop": object_column(["solved", "length", "turns"]),
    }
    names = [name for name in columns if name not in ("turn_scores", PREFIX_LENGTH)]
    return DataProto.from_dict(tensors=tensors, non_tensors=columns, meta_info={KEYS: names})


def test_rewards_stand_on_the_last_tokens_of_their_turns() -> None:
    batch = rollouts()
    turns(**TURN).read(batch)
    expected = [[0, -2, 0, 0, 0, 0, 0, 5], [0, 0, 0, -3, 0, 0, 0, 0], [0, 0, 0, 0, -1, 0, -1.5, 0]]
    assert batch.batch["rm_scores"].tolist() == expected
    untouched = rollouts()
    turns().read(untouched)
    assert torch.equal(untouched.batch["rm_scores"], rollouts().batch["rm_scores"]), "credit=trajectory"
    single = rollouts()  # a row whose agent loop has no turns
    single.non_tensor_batch["turn_scores"][1] = []
    turns(**TURN).read(single)
    assert single.batch["rm_scores"].tolist() == expected
    batch.non_tensor_batch["turn_scores"][1] = [-1.0, -2.0]
    with pytest.raises(ValueError, match=r"row 1 has 1 turns .* and 2 rewards of turns"):
        turns(**TURN).read(batch)


def test_metrics_of_turns() -> None:
    found = turns().read(rollouts())
    assert found == {
        "environment/feedback_tokens": pytest.approx(4 / 3),  # 3, 0 and 1; the prefix is no feedback
        "environment/turn_reward": pytest.approx(-2.5 / 5),
        "environment/acc": pytest.approx(1 / 3),
        "environment/turns": pytest.approx(5 / 3),
        "environment/faults": 2.0,
        "environment/outcome/right": pytest.approx(1 / 5),
        "environment/outcome/wrong": pytest.approx(4 / 5),
        "environment/first_acc": pytest.approx(0.25),  # of those that have it
        **{f"environment/stop_{reason}": pytest.approx(1 / 3) for reason in ("solved", "length", "turns")},
        "environment/stop_ended": 0.0,
    }
    assert turns().read(None) == {}


def plainly(rewards: list[list[float]], values: list[list[float]], gamma: float, lam: float) -> tuple[list[list[float]], list]:
    """Per row and turn: whitened advantages and returns, written down as the sums that they are."""
    advantages, returns = [], []
    for r, v in zip(rewards, values, strict=True):
        deltas = [r[k] + gamma * (v[k + 1] if k + 1 < len(v) else 0) - v[k] for k in range(len(r))]
        of_row = [sum((gamma * lam) ** (j - k) * deltas[j] for j in range(k, len(r))) for k in range(len(r))]
        advantages.append(of_row)
        returns.append([a + b for a, b in zip(of_row, v, strict=True)])
    everything = np.array([a for of_row in advantages for a in of_row])
    mean, deviation = everything.mean(), everything.std(ddof=1) + 1e-5
    return [[(a - mean) / deviation for a in of_row] for of_row in advantages], returns


def test_advantages_over_turns_are_a_plain_reference() -> None:
    batch = rollouts()
    credited = turns(**TURN)
    credited.read(batch)
    values = torch.arange(24, dtype=torch.float32).reshape(3, 8) / 10
    batch.batch["token_level_rewards"], batch.batch["values"] = batch.batch["rm_scores"], values
    credited.estimate(batch)
    # V of a turn is the one at its first token: places 0 and 5; 0; 2 and 6.
    advantages, returns = plainly(REWARDS, [[0.0, 0.5], [0.8], [1.8, 2.2]], 0.9, 0.95)
    for name, expected in (("advantages", advantages), ("returns", returns)):
        spans = [[(0, 2), (5, 8)], [(0, 4)], [(2, 5), (6, 7)]]
        wanted = torch.zeros(3, 8)
        for row, of_row in enumerate(spans):
            for (begin, end), number in zip(of_row, expected[row], strict=True):
                wanted[row, begin:end] = number
        torch.testing.assert_close(batch.batch[name], wanted, atol=1e-5, rtol=1e-5)
    before = batch.batch["advantages"].clone()
    turns(score="sum", credit="turn").estimate(batch)
    assert torch.equal(batch.batch["advantages"], before), "gae=token is verl's"


def test_verls_estimator_reads_the_rewards_of_turns() -> None:
    """With γ = λ = 1 the return of a token is what its row still gets: 3 and 5; the whole trajectory's if it stands at the end."""
    batch = rollouts()
    turns(score="sum", credit="turn").read(batch)
    mask, values = batch.batch["response_mask"].float(), torch.zeros(3, 8)
    _, returns = compute_gae_advantage_return(batch.batch["rm_scores"], values, mask, 1.0, 1.0)
    assert (returns[0] * mask[0]).tolist() == [3, 3, 0, 0, 0, 5, 5, 5]


def test_runs_without_an_environment_have_no_turns() -> None:
    assert Turns.from_config(compose_config(["algorithm=grpo"])) is None
    composed = compose_config(["algorithm=ppo_heals", "task=general_points"])
    found = Turns.from_config(composed)
    assert found is not None and (found.settings.credit, found.settings.gae, found.settings.score) == ("turn", "turn", "sum")
    assert (found.gamma, found.lam) == (0.9, 0.95)
    assert Turns.from_config(compose_config(["algorithm=ppo", "task=navigation"])).settings.credit == "trajectory"
    overridden = compose_config(["algorithm=ppo_heals", "task=matrices", "environment.credit=trajectory", "environment.gae=token"])
    assert Turns.from_config(overridden).settings.credit == "trajectory"


def test_the_environment_scores_a_demonstration_turn_by_turn() -> None:
    """A wrong answer and the right one: two turns, solved, not at once; the reward loop is asked about single answers only."""
    tokenizer = build_tokenizer(256)
    wrong, told, right = (tokenizer.encode(text) for text in ("{f:1+2+3+4=10}", "no:ok 1", "{f:(1+2+3)*4=24}"))
    ids = [*wrong, 1, 4, *told, 1, 5, *right, 1]
    mask = [1] * (len(wrong) + 1) + [0] * (len(told) + 3) + [1] * (len(right) + 1)
    asked: list[int] = []

    def score_rows(data: DataProto) -> DataProto:
        asked.append(len(data))
        tensors = {"rm_scores": torch.ones(data.batch["responses"].shape) / data.batch["responses"].shape[-1]}
        return DataProto.from_dict(tensors=tensors, non_tensors={"acc": np.ones(len(data))}, meta_info={KEYS: ["acc"]})

    reader = SimpleNamespace(eos_id=1)
    demonstrator = Demonstrator(reader, score_rows, 1, 8, 80, 0, node("general_points"), tokenizer.decode)
    hand = hand_row("A 2 3 4", style="compact")
    batch = DataProto.from_dict(non_tensors={"uid": object_column(["a", "b"]), **{
        name: object_column([hand[name]] * 2) for name in ("data_source", "reward_model", "extra_info")
    }})  # fmt: skip
    several = Demonstration(0, 0, (4,), tuple(ids), mask=tuple(mask))
    single = Demonstration(1, 0, (4,), (*right, 1))
    demonstrator._score(batch, {"a": several, "b": single})
    assert asked == [1]
    found = demonstrator.scores[several.key]
    assert {name: found[name] for name in ("reward", "acc", "turns", "first_acc", "right_turns", "outcome_no_solution")} == {
        "reward": 1.0, "acc": 1.0, "turns": 2.0, "first_acc": 0.0, "right_turns": 1.0, "outcome_no_solution": 1.0,
    }  # fmt: skip
    rows = demonstrator.rows(batch, [("a", several), ("b", single)], log_probs=False)
    assert rows.tensors["rm_scores"].nonzero().tolist() == [[0, len(ids) - 1], [1, len(right)]]
    assert rows.columns["__num_turns__"].tolist() == [4, 2] and rows.columns["turns"][0] == 2


def test_the_settings_of_the_preset_are_the_published_ones() -> None:
    config = compose_config(["algorithm=ppo_heals", "task=general_points", "model=qwen2_5_7b"])
    actor, critic = config.actor_rollout_ref.actor, config.critic
    assert (actor.clip_ratio_low, actor.clip_ratio_high, actor.ppo_epochs, critic.ppo_epochs) == (0.1, 0.1, 4, 4)
    assert (critic.cliprange_value, actor.entropy_coeff, actor.use_kl_loss) == (0.1, 0, False)
    for optim in (actor.optim, critic.optim):
        assert (optim.lr, optim.lr_scheduler_type, optim.lr * optim.min_lr_ratio) == (1e-6, "cosine", pytest.approx(1e-9))
    assert config.actor_rollout_ref.rollout.temperature == 0.2 and config.fusion.dual_clip is None
    kwargs = OmegaConf.to_container(config.reward.custom_reward_function.reward_kwargs, resolve=True)
    assert kwargs["environment"]["score"] == "sum", "demonstrations are scored alike"

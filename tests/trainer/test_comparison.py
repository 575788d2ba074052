"""verl's comparison of engine and actor: the same numbers from tokens without padding, and from blocks of rows."""

from __future__ import annotations

import pytest
import torch
from verl import DataProto
from verl.trainer.ppo.rollout_corr_helper import compute_offpolicy_metrics
from verl.utils.debug.metrics import calculate_debug_metrics

from unify_posttrain.trainer.comparison import (
    CORRECTION,
    EXTREMES,
    OF_TOKENS,
    correction_metrics,
    engine_hidden,
    probability_metrics,
)

PROMPT, WIDTH = 2, 40
# verl's means over rows; a metric that is in none of the three would be joined wrongly.
OF_ROWS = {
    "training_ppl", "training_log_ppl", "rollout_ppl", "rollout_log_ppl", "log_ppl_diff", "log_ppl_abs_diff", "ppl_ratio",
    "chi2_seq",
}  # fmt: skip


def batch(lengths: list[int], untrained: tuple[int, ...] = ()) -> DataProto:
    generator = torch.Generator().manual_seed(0)
    mask = (torch.arange(WIDTH) < torch.tensor(lengths).unsqueeze(-1)).to(torch.int8)
    actor = -torch.rand(mask.shape, generator=generator)
    engine = actor + 0.1 * torch.randn(mask.shape, generator=generator)
    attention = torch.cat([torch.ones(len(lengths), PROMPT, dtype=torch.int8), mask], dim=1)
    trained = mask.clone()
    trained[list(untrained)] = 0
    tensors = {
        "response_mask": trained, "attention_mask": attention, "responses": mask.int(), "old_log_probs": actor * mask,
        "rollout_log_probs": engine * mask,
    }  # fmt: skip
    return DataProto.from_dict(tensors=tensors)


def plain(data: DataProto) -> dict[str, float]:
    tensors = data.batch
    found = compute_offpolicy_metrics(tensors["old_log_probs"], tensors["rollout_log_probs"], tensors["response_mask"].long())
    return {f"{CORRECTION}{name}": value for name, value in found.items()}


def test_probabilities_are_compared_as_verl_does_to_the_last_bit() -> None:
    data = batch([3, 40, 17, 1], untrained=(2,))
    assert probability_metrics(data) == calculate_debug_metrics(data)


def test_a_batch_of_one_block_says_what_verl_says_to_the_last_bit() -> None:
    data = batch([3, 40, 17, 1], untrained=(2,))
    assert correction_metrics(data) == plain(data)


@pytest.mark.parametrize("cells", [1, 50, 120, 10**6])
@pytest.mark.parametrize("untrained", [(), (0, 3), (0, 1, 2, 3, 4, 5)])
def test_blocks_together_say_what_verl_says(cells: int, untrained: tuple[int, ...]) -> None:
    lengths = [3, 40, 17, 1, 20, 19, 5]
    data = batch(lengths, untrained)
    assert correction_metrics(data, cells) == pytest.approx(plain(data), rel=1e-5, abs=1e-6)


def test_every_metric_of_verl_is_joined_on_purpose() -> None:
    tensors = batch([3, 4]).batch
    found = compute_offpolicy_metrics(tensors["old_log_probs"], tensors["rollout_log_probs"], tensors["response_mask"])
    assert set(found) == OF_ROWS | OF_TOKENS | set(EXTREMES)


def test_nothing_to_compare() -> None:
    data = batch([3, 4], untrained=(0, 1))
    assert correction_metrics(data) == {}
    data.batch.pop("rollout_log_probs")
    assert correction_metrics(data) == probability_metrics(data) == {}


def test_what_is_hidden_comes_back_whatever_happens() -> None:
    data = batch([3, 4])
    engine = data.batch["rollout_log_probs"]
    with pytest.raises(ArithmeticError), engine_hidden(data):
        assert "rollout_log_probs" not in data.batch
        raise ArithmeticError
    assert data.batch["rollout_log_probs"] is engine
    data.batch.pop("rollout_log_probs")
    with engine_hidden(data):
        pass
    assert "rollout_log_probs" not in data.batch

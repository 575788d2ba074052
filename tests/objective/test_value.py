"""The value loss on hand-made numbers; that it is verl's is shown in tests/workers/test_fusion_critic.py."""

from __future__ import annotations

import pytest
import torch

from unify_posttrain.objective.value import value_loss


@pytest.mark.parametrize(
    "value, old, expected, gradient, clipped",
    [  # return 1, clip .2
        (0.1, 0.0, 0.405, -0.9, False),  # ½ (.1 - 1)²
        (0.5, 0.0, 0.320, 0.0, True),  # towards the return, but too far: ½ (.2 - 1)²
        (1.5, 1.0, 0.125, 0.5, False),  # away from the return: ½ (1.5 - 1)² > ½ (1.2 - 1)²
        (0.5, 1.0, 0.125, -0.5, False),  # the same from below
        (1.5, 2.0, 0.320, 0.0, True),  # down towards the return, but too far: ½ (1.8 - 1)²
    ],
)
def test_value_may_not_gain_by_moving_beyond_the_clip(value, old, expected, gradient, clipped) -> None:
    values = torch.tensor([[value]], dtype=torch.float64, requires_grad=True)
    loss, where = value_loss(values, torch.tensor([[old]], dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64), 0.2)
    loss.sum().backward()
    assert loss.item() == pytest.approx(expected) and values.grad.item() == pytest.approx(gradient)
    assert where.item() is clipped

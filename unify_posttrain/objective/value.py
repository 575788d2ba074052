"""The loss of a value function. Not a term of the estimator: it trains another model, the critic, beside the policy."""

from __future__ import annotations

import torch
from torch import Tensor


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Half the squared error of a value, which may not gain by moving more than `clip` away from its old estimate.

        L_t = ½ max((V - R)², (clip(V, V_old - ε, V_old + ε) - R)²)

    The squared error is L^VF of arXiv 1707.06347 (eq. 9); clipping it comes from the implementation that the paper's authors
    released (OpenAI baselines), and is what verl computes.

    Args:
        values: V, (B, T), carries the gradient.
        old_values: V_old at the start of the step, (B, T).
        returns: R, (B, T).
        clip: ε > 0, in units of the reward.

    Returns:
        (loss, clipped): (B, T) token losses, and (B, T) bool where the clip took the gradient away.
    """
    error = (values - returns).square()
    bounded = torch.maximum(torch.minimum(values, old_values + clip), old_values - clip)
    bounded_error = (bounded - returns).square()
    return 0.5 * torch.maximum(error, bounded_error), (bounded_error > error).detach()

"""Credit by turn: rewards of turns on tokens, and generalised advantage estimation over turns (arXiv 2501.17161, 2509.12235).

The turns of a row are the runs of ones in its response mask. A reward on a masked token would be lost without a word, so each one
stands on the last token of its turn.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

WHITENING = 1e-5  # keeps the deviation of equal advantages away from 0


def turn_spans(response_mask: Tensor) -> list[list[tuple[int, int]]]:
    """Per row of a (B, T) mask, [begin, end) of each run of ones.

    >>> turn_spans(torch.tensor([[1, 1, 0, 0, 1, 1, 0]]))
    [[(0, 2), (4, 6)]]
    """
    padded = torch.nn.functional.pad((response_mask > 0).long(), (1, 1))
    edges = padded.diff(dim=-1)
    found = []
    for row in edges:
        begins, ends = (torch.nonzero(row == sign).flatten().tolist() for sign in (1, -1))
        found.append(list(zip(begins, ends, strict=True)))
    return found


def place_turn_rewards(turn_rewards: Sequence[Sequence[float] | None], scores: Tensor, response_mask: Tensor) -> Tensor:
    """Rewards of turns on the last token of each.

    Args:
        turn_rewards: per row, the reward of every turn; None for a row without turns of its own (a demonstration), whose score
            stands on its last token.
        scores: (B,), read for those.
        response_mask: (B, T), ones on the tokens of turns.

    Returns:
        (B, T), of the type of ``scores``.

    Raises:
        ValueError: a row with another number of turns than of rewards.
    """
    placed = torch.zeros(response_mask.shape, dtype=scores.dtype, device=scores.device)
    for row, (rewards, spans) in enumerate(zip(turn_rewards, turn_spans(response_mask), strict=True)):
        if rewards is None:
            rewards, spans = [float(scores[row])], spans[-1:]
        if len(rewards) != len(spans):
            raise ValueError(
                f"row {row} has {len(spans)} turns (runs of ones in its response mask) and {len(rewards)} rewards of turns; the "
                "agent loop must return one reward for every answer"
            )
        for reward, (_, end) in zip(rewards, spans, strict=True):
            placed[row, end - 1] = reward
    return placed


def turn_gae(
    token_rewards: Tensor, values: Tensor, response_mask: Tensor, gamma: float, lam: float, whiten: bool = True
) -> tuple[Tensor, Tensor]:
    """Advantages and returns over turns: δ_k = r_k + γ·V_{k+1} - V_k, Â_k = δ_k + γλ·Â_{k+1}, nothing after the last turn.

    Args:
        token_rewards: (B, T); r of a turn is their sum over it.
        values: (B, T) of the critic, at t that of what precedes token t; V of a turn is the one at its first token.
        response_mask: (B, T), ones on the tokens of turns.
        gamma, lam: discount and trace per turn.
        whiten: subtract the mean over all turns of the batch and divide by their unbiased deviation.

    Returns:
        Advantages and returns, both (B, T), float32: one number for all tokens of a turn, 0 elsewhere.
    """
    spans = turn_spans(response_mask)
    advantages = torch.zeros(response_mask.shape, dtype=torch.float32, device=values.device)
    returns = torch.zeros_like(advantages)
    of_turns: list[float] = []
    # One copy to the host in place of one per turn.
    rewards, critic = token_rewards.detach().double().cpu(), values.detach().double().cpu()
    for row, of_row in enumerate(spans):
        reached: list[float] = []
        advantage, following = 0.0, 0.0
        for begin, end in reversed(of_row):
            value = float(critic[row, begin])
            advantage = float(rewards[row, begin:end].sum()) + gamma * following - value + gamma * lam * advantage
            following = value
            returns[row, begin:end] = advantage + value
            reached.append(advantage)
        of_turns += reversed(reached)
    if whiten:
        of_turns = whitened(of_turns)
    numbers = iter(of_turns)
    for row, of_row in enumerate(spans):
        for begin, end in of_row:
            advantages[row, begin:end] = next(numbers)
    return advantages, returns


def whitened(numbers: Sequence[float]) -> list[float]:
    """Mean 0 and, nearly, unbiased deviation 1; a single number becomes 0.

    >>> [round(number, 4) for number in whitened([1.0, 2.0, 3.0])]
    [-1.0, 0.0, 1.0]
    """
    if len(numbers) < 2:
        return [0.0] * len(numbers)
    values = torch.tensor(numbers, dtype=torch.float64)
    return list(((values - values.mean()) / (values.std() + WHITENING)).tolist())

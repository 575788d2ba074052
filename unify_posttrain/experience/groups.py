"""What an experience rule is told of a prompt, before generation and after it, and what a rollout may begin with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """What is known of a prompt when its rows are decided.

    Attributes:
        uid: the group.
        successes: solved rollouts.
        rollouts: generated rollouts.
        has_demonstration: a usable target exists.
        demonstration_solved: that target passes the task's own check.
    """

    uid: str
    successes: int
    rollouts: int
    has_demonstration: bool = False
    demonstration_solved: bool = False


@dataclass(frozen=True)
class Prompt:
    """What is known of a prompt before generation.

    Attributes:
        row_id: position of the prompt in the training files.
        target: tokens of its demonstration, EOS included; None without a usable one.
        sentences: its `hint` column.
        encode: text -> token ids without special tokens, for hints.
    """

    row_id: int
    target: tuple[int, ...] | None = None
    sentences: tuple[str, ...] = ()
    encode: Callable[[str], list[int]] | None = None


@dataclass(frozen=True)
class ResponsePrefix:
    """Tokens that a rollout begins with; the policy continues after them.

    Attributes:
        ids: token ids, may be empty.
        trained: True: off-policy tokens of the objective (m=1, P=1); False: a hint (m=0, P=1).
        share: part of the solution that is given away, 0 to 1.
        shortened: a longer one was drawn and did not fit.
    """

    ids: tuple[int, ...] = ()
    trained: bool = False
    share: float = 0.0
    shortened: bool = False


NO_PREFIX = ResponsePrefix()

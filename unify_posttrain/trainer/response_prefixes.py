"""What the rollouts of a batch begin with: asks the experience rule, prompt by prompt, and turns the answer into columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from verl import DataProto

from unify_posttrain.experience.demonstrations import Demonstration
from unify_posttrain.experience.mixer import PREFIX_LENGTH
from unify_posttrain.experience.rows import object_column
from unify_posttrain.experience.rules import Experience, Prompt, ResponsePrefix
from unify_posttrain.rollout.agent_loop import PREFIX_COLUMN, PREFIX_TRAINED_COLUMN
from unify_posttrain.startup.target_checks import HINT_COLUMN, hint_sentences


def draw_response_prefixes(
    experience: Experience,
    batch: DataProto,
    demonstrations: Mapping[str, Demonstration],
    encode: Callable[[str], list[int]],
    step: int,
) -> list[tuple[ResponsePrefix, ...]]:
    """One tuple per prompt of the batch, one response prefix per rollout that it gets. The column `hint` is removed from the batch.

    Raises:
        KeyError: the rule needs hints and the data has no such column.
        ValueError: a hint that is not a list of text; names the row.
    """
    columns = batch.non_tensor_batch
    hints = columns.pop(HINT_COLUMN, None)
    if experience.needs_hint and hints is None:
        raise KeyError(f"column {HINT_COLUMN!r} is missing from the training data and the hints of this algorithm are read from it")
    prefixes = []
    for position, (uid, row_id) in enumerate(zip(columns["uid"], columns["row_id"], strict=True)):
        found = demonstrations.get(uid)
        target = None if found is None else found.answers[0]  # what is given is the beginning of a rollout's first answer
        sentences = hint_sentences(hints[position], int(row_id)) if experience.needs_hint else ()
        prefixes.append(experience.response_prefixes(Prompt(int(row_id), target, sentences, encode), step))
    return prefixes


def prefix_columns(prefixes: Sequence[ResponsePrefix]) -> dict[str, np.ndarray]:
    """Columns for the agent loop and the mixer, one row per rollout; none at all if every rollout is a plain one."""
    if not any(prefix.ids for prefix in prefixes):
        return {}
    return {
        PREFIX_COLUMN: object_column([list(prefix.ids) for prefix in prefixes]),
        PREFIX_TRAINED_COLUMN: np.array([prefix.trained for prefix in prefixes]),
        PREFIX_LENGTH: np.array([len(prefix.ids) for prefix in prefixes]),
    }


def prefix_metrics(prefixes: Sequence[tuple[ResponsePrefix, ...]]) -> dict[str, float]:
    """`fusion/hint_frac`: mean part of the solution that rollouts were given; `fusion/hint_shortened`: prompts whose was cut."""
    given = [prefix.share for row in prefixes for prefix in row]
    return {
        "fusion/hint_frac": float(np.mean(given)) if given else 0.0,
        "fusion/hint_shortened": float(sum(any(prefix.shortened for prefix in row) for row in prefixes)),
    }

"""A batch of prompts as a step begins with it: their demonstrations, and what their rollouts begin with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verl import DataProto
from verl.utils.debug import marked_timer

from unify_posttrain.algorithms import Algorithm
from unify_posttrain.experience.demonstrations import PROBABILITY_COLUMN, Demonstration
from unify_posttrain.experience.plan import BatchPlan
from unify_posttrain.experience.rules import ResponsePrefix
from unify_posttrain.experience.targets import TARGET_COLUMNS
from unify_posttrain.trainer.demonstrator import Demonstrator
from unify_posttrain.trainer.response_prefixes import HINT_COLUMN, draw_response_prefixes, prefix_metrics

OWN_COLUMNS = (*TARGET_COLUMNS, PROBABILITY_COLUMN, HINT_COLUMN)  # no business of agent loops and reward workers


@dataclass(frozen=True)
class Prompts:
    """What is known of prompts before anything is generated.

    Attributes:
        rows: one row per prompt, with the columns `uid` and `row_id`.
        demonstrations: usable demonstrations by uid.
        prefixes: per prompt one response prefix per rollout that it gets.
    """

    rows: DataProto
    demonstrations: Mapping[str, Demonstration]
    prefixes: Sequence[tuple[ResponsePrefix, ...]]

    @property
    def row_ids(self) -> dict[str, int]:
        """uid -> the prompt's position in the training files."""
        columns = self.rows.non_tensor_batch
        return {str(uid): int(row_id) for uid, row_id in zip(columns["uid"], columns["row_id"], strict=True)}

    @classmethod
    def concat(cls, parts: Sequence[Prompts]) -> Prompts:
        """Several batches as one, in their order."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            DataProto.concat([part.rows for part in parts]),
            {uid: found for part in parts for uid, found in part.demonstrations.items()},
            [prefixes for part in parts for prefixes in part.prefixes],
        )


@dataclass(frozen=True)
class Generated:
    """Prompts and their scored rollouts.

    Attributes:
        prompts: all that were drawn.
        rollouts: theirs, with `rm_scores`; None if nothing was generated.
        select: leaves groups out of the plan; None without dynamic sampling.
    """

    prompts: Prompts
    rollouts: DataProto | None
    select: Callable[[BatchPlan], BatchPlan] | None = None


class PromptReader:
    """Asks the experience rule about every batch of prompts.

    Args:
        demonstrator: None for a run without demonstrations.
        tokenizer: of the run, for hints.
    """

    def __init__(self, demonstrator: Demonstrator | None, tokenizer: Any) -> None:
        self.demonstrator, self.tokenizer = demonstrator, tokenizer

    def read(self, algorithm: Algorithm, batch: DataProto, step: int, timing: dict[str, Any]) -> tuple[Prompts, dict[str, float]]:
        """Read the demonstrations of a batch and draw what rollouts begin with; `OWN_COLUMNS` are removed from the batch.

        Returns:
            the prompts, whose rows stay as they are when verl takes columns out of the batch; and `fusion/*` metrics of them.

        Raises:
            KeyError: hints are needed and the data has none.
            ValueError: a row without a usable target under fusion.demo.missing=error, or with an unusable hint.
        """
        experience = algorithm.experience
        demonstrations: Mapping[str, Demonstration] = {}
        metrics = {"fusion/demo_missing": 0.0, "fusion/demo_overlong": 0.0}
        if self.demonstrator is not None and experience.needs_target:
            with marked_timer("demonstrations", timing):
                demonstrations, counted = self.demonstrator.read(algorithm.fusion, batch, step)
            metrics.update(counted)
        prefixes = draw_response_prefixes(experience, batch, demonstrations, self._encode, step)
        drop_own_columns(batch)
        rows = DataProto(batch=batch.batch, non_tensor_batch=dict(batch.non_tensor_batch), meta_info=dict(batch.meta_info))
        return Prompts(rows, demonstrations, prefixes), {**metrics, **prefix_metrics(prefixes)}

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


def drop_own_columns(batch: DataProto) -> None:
    """Take out of a batch what only this package reads."""
    for name in OWN_COLUMNS:
        batch.non_tensor_batch.pop(name, None)

"""The buffer of hard prompts that ReLIFT (arXiv 2506.07527) fine-tunes on between reinforcement-learning steps.

Prompts that no rollout solved enter with their demonstration; as soon as M are there, one fine-tuning step takes M of them and
the rest stay. Against the released code, which keeps every repetition and loses the buffer on resume: a prompt is held once
(`dedup`), and `state` restores the buffer exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from unify_posttrain.experience.pictures import Reference

ORDERS = ("newest", "oldest", "random")


@dataclass(frozen=True)
class ReplayEntry:
    """A prompt that was not solved, with its demonstration.

    Attributes:
        row_id: position of the prompt in the concatenated training files.
        prompt_ids, response_ids: tokens of the rendered prompt, and of the target with its EOS.
        step: training step at which the prompt was found hard.
        mask: see `Demonstration`.
        pictures: what prompt and target show: where it is; what is no file, as PNG.
    """

    row_id: int
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    step: int
    mask: tuple[int, ...] = ()
    pictures: tuple[Reference, ...] = ()


@dataclass
class ReplayBuffer:
    """Hard prompts waiting for a fine-tuning step (arXiv 2506.07527).

    Attributes:
        size: M = `fusion.relift.sft_data_size`, entries per fine-tuning step; -1: nothing is kept and none ever fires.
        order: which entries a step takes, and in which order: `newest` (later steps first), `oldest` (earlier steps first, no
            entry starves), both in the order of the batch within a step; or `random`, drawn from (seed, step).
        dedup: hold one entry per row_id; a repeated one replaces the old and counts as new.
        max_buffer: most entries held; the oldest are dropped. None: no bound.
        seed: `fusion.seed`.

    Raises:
        ValueError: a setting outside its range, or a max_buffer that can never hold M entries; names the key.
    """

    size: int
    order: str
    dedup: bool
    max_buffer: int | None
    seed: int
    _entries: list[ReplayEntry] = field(default_factory=list, init=False, repr=False)  # by step, then in order of arrival

    def __post_init__(self) -> None:
        size, most = self.size, self.max_buffer
        if not isinstance(size, int) or isinstance(size, bool) or (size < 1 and size != -1):
            raise ValueError(f"fusion.relift.sft_data_size={size!r} must be an integer of at least 1, or -1 for no buffer")
        if self.order not in ORDERS:
            raise ValueError(f"fusion.relift.order={self.order!r} is unknown; choose one of {', '.join(ORDERS)}")
        if not isinstance(self.dedup, bool):
            raise ValueError(f"fusion.relift.dedup={self.dedup!r} must be true or false")
        if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < max(1, size)):
            raise ValueError(
                f"fusion.relift.max_buffer={most!r} must be null or an integer of at least fusion.relift.sft_data_size={size}: "
                "a smaller buffer never holds enough for a fine-tuning step"
            )

    def __len__(self) -> int:
        """Entries held."""
        return len(self._entries)

    def add(self, entries: Iterable[ReplayEntry]) -> None:
        """Put in the hard prompts of a training step, in the order of the batch."""
        if self.size == -1:
            return
        held = sorted([*self._entries, *entries], key=lambda entry: entry.step)  # stable: arrival decides within a step
        if self.dedup:
            latest: dict[int, ReplayEntry] = {}
            for entry in held:
                latest.pop(entry.row_id, None)  # a plain assignment would leave it at its old place
                latest[entry.row_id] = entry
            held = list(latest.values())
        self._entries = held if self.max_buffer is None else held[-self.max_buffer :]

    def take(self, step: int) -> list[ReplayEntry]:
        """Remove and return the M entries of this step's fine-tuning; empty if fewer than M are held.

        Args:
            step: training step, for the random draw. A step fine-tunes at most once: call this once per step.
        """
        if self.size == -1 or len(self._entries) < self.size:
            return []
        positions = list(range(len(self._entries)))
        if self.order == "newest":
            positions.sort(key=lambda position: -self._entries[position].step)
        elif self.order == "random":
            positions = np.random.default_rng([self.seed, step]).permutation(len(positions)).tolist()
        taken = positions[: self.size]
        batch = [self._entries[position] for position in taken]
        gone = set(taken)
        self._entries = [entry for position, entry in enumerate(self._entries) if position not in gone]
        return batch

    @property
    def state(self) -> dict[str, Any]:
        """The entries as JSON-serialisable data; assigning it, also after a trip through JSON, restores them.

        The settings are not part of it: a buffer restored under other settings obeys those (`dedup`, `max_buffer`).
        """
        return {
            "entries": [
                {
                    "row_id": int(entry.row_id),
                    "prompt_ids": [int(token) for token in entry.prompt_ids],
                    "response_ids": [int(token) for token in entry.response_ids],
                    "step": int(entry.step),
                    **({"mask": list(entry.mask)} if entry.mask else {}),
                    **({"pictures": [dict(shown) for shown in entry.pictures]} if entry.pictures else {}),
                }
                for entry in self._entries
            ]
        }

    @state.setter
    def state(self, state: Mapping[str, Any]) -> None:
        self._entries = []
        self.add(
            ReplayEntry(
                entry["row_id"],
                tuple(entry["prompt_ids"]),
                tuple(entry["response_ids"]),
                entry["step"],
                tuple(entry.get("mask", ())),
                tuple(entry.get("pictures", ())),
            )
            for entry in state["entries"]
        )

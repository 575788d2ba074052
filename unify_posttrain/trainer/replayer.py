"""Fine-tuning on what was not solved: fills the algorithm's replay buffer and packs its entries as a batch of demonstrations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl import DataProto
from verl.utils.debug import marked_timer

from unify_posttrain.algorithms import Algorithm
from unify_posttrain.experience.demonstrations import Demonstration
from unify_posttrain.experience.mixer import mix
from unify_posttrain.experience.plan import BatchPlan, GroupPlan
from unify_posttrain.experience.replay import ReplayBuffer, ReplayEntry
from unify_posttrain.experience.rows import Rows, object_column
from unify_posttrain.rollout.pictures import PictureReader
from unify_posttrain.trainer.mixed_batch import note_lengths
from unify_posttrain.trainer.packing import INPUTS_COLUMN, Packing, picture_reader
from unify_posttrain.trainer.port import ActorPort

REPLAY = "replay"  # meta_info["objective"] of such a batch
REPLAY_METRICS = {"nll": "fusion/sft_nll", "loss": "fusion/total_loss", "grad_norm": "actor/grad_norm", "lr": "actor/lr"}


class Replayer:
    """Holds the buffer of a run, or none: then nothing is ever due.

    Args:
        buffer: the algorithm's; None for one that replays nothing.
        mini_batch: entries per optimizer step; None: all of them.
        prompt_length, response_length, pad_id, pictures: see `Packing`.
        temperature: of the log-probabilities, which verl reads from the batch.
    """

    def __init__(
        self,
        buffer: ReplayBuffer | None,
        mini_batch: int | None,
        prompt_length: int,
        response_length: int,
        pad_id: int,
        temperature: float,
        pictures: PictureReader | None = None,
    ) -> None:
        self.buffer = buffer
        self.mini_batches = 1 if buffer is None or mini_batch is None else buffer.size // mini_batch
        self.packing = Packing(prompt_length, response_length, pad_id, pictures)
        self.temperature = temperature

    @classmethod
    def from_config(cls, config: Any, algorithm: Algorithm, pad_id: int, processor: Any = None) -> Replayer:
        step = algorithm.replay_step
        return cls(
            algorithm.replay,
            mini_batch=None if step is None else step.mini_batch,
            prompt_length=config.data.max_prompt_length,
            response_length=config.data.max_response_length,
            pad_id=pad_id,
            temperature=config.actor_rollout_ref.rollout.temperature,
            pictures=picture_reader(config, processor),
        )

    @property
    def state(self) -> dict[str, Any] | None:
        """JSON form of what must survive a resume."""
        return None if self.buffer is None else self.buffer.state

    @state.setter
    def state(self, state: Mapping[str, Any]) -> None:
        if self.buffer is not None:
            self.buffer.state = state

    def collect(self, plan: BatchPlan, demonstrations: Mapping[str, Demonstration], step: int) -> None:
        """Take in the prompts of which no rollout was solved and that have a usable demonstration."""
        if self.buffer is None:
            return
        hard = [demonstrations[group.uid] for group in plan if not group.successes and group.uid in demonstrations]
        self.buffer.add(
            ReplayEntry(each.row_id, each.prompt_ids, each.response_ids, step, each.mask, each.pictures) for each in hard
        )

    def take(self, step: int, ranks: int) -> DataProto | None:
        """A batch for the fine-tuning step that is due, dealt to ranks and optimizer steps; None if none is due."""
        entries = () if self.buffer is None else self.buffer.take(step)
        if not entries:
            return None
        tensors, inputs = self.packing.rows(
            [Demonstration(of.row_id, 0, of.prompt_ids, of.response_ids, mask=of.mask, pictures=of.pictures) for of in entries]
        )
        # Entries may repeat a question (dedup=false), so they are named by position.
        uids = [f"replay-{number}-row-{entry.row_id}" for number, entry in enumerate(entries)]
        columns = {"uid": object_column(uids), INPUTS_COLUMN: inputs}
        plan = BatchPlan(tuple(GroupPlan(uid, 0, 0, 0, 1, {"sft": 1.0}) for uid in uids))
        mixed = mix(plan, None, Rows(tensors, columns), ranks, self.mini_batches)
        batch = DataProto.from_dict(tensors=mixed.rows.tensors, non_tensors=mixed.rows.columns)
        batch.meta_info = {
            "objective": REPLAY,
            "mini_batches": self.mini_batches,
            "temperature": self.temperature,
        }
        note_lengths(batch)
        return batch

    def fine_tune(self, port: ActorPort, step: int, timing: dict[str, Any]) -> dict[str, float]:
        """A fine-tuning step on replayed demonstrations, if one is due; metrics of it, 0 if none is."""
        waiting = self._waiting
        replay = self.take(step, port.ranks)
        found: dict[str, float] = {}
        if replay is not None:
            with marked_timer("update_replay", timing, color="red"):
                found = port.update_replay(replay)
        left = self._waiting
        return {
            **{f"fusion/replay_{name}": found.get(key, 0.0) for name, key in REPLAY_METRICS.items()},
            "fusion/buffer_size": float(left),
            "fusion/sft_step": float(bool(found)),
            "fusion/replay_rows": float(waiting - left),
        }

    @property
    def _waiting(self) -> int:
        return 0 if self.buffer is None else len(self.buffer)

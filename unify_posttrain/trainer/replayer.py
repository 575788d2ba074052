"""Fine-tuning on what was not solved: fills the algorithm's replay buffer and packs its entries as a batch of demonstrations."""

from __future__ import annotations

from collections.abc import Mapping

from verl import DataProto
from verl.experimental.separation.ray_trainer import SeparateRayPPOTrainer
from verl.utils.debug import marked_timer
from verl.utils.metric import reduce_metrics

from unify_posttrain.experience.demonstrations import Demonstration, demonstration_tensors
from unify_posttrain.experience.gate import BatchPlan, GroupPlan
from unify_posttrain.experience.mixer import mix
from unify_posttrain.experience.replay import ReplayBuffer, ReplayEntry
from unify_posttrain.experience.rows import Rows, object_column

REPLAY = "replay"  # meta_info["objective"] of such a batch
REPLAY_METRICS = {"nll": "fusion/sft_nll", "loss": "fusion/total_loss", "grad_norm": "actor/grad_norm", "lr": "actor/lr"}


class Replayer:
    """Holds the buffer of a run.

    Args:
        buffer: the algorithm's.
        mini_batch: entries per optimizer step; None: all of them.
        prompt_length, response_length, pad_id: packing.
        temperature: of the log-probabilities, which verl reads from the batch.
    """

    def __init__(
        self,
        buffer: ReplayBuffer,
        mini_batch: int | None,
        prompt_length: int,
        response_length: int,
        pad_id: int,
        temperature: float,
    ) -> None:
        self.buffer, self.mini_batches = buffer, 1 if mini_batch is None else buffer.size // mini_batch
        self.prompt_length, self.response_length, self.pad_id = prompt_length, response_length, pad_id
        self.temperature = temperature

    def collect(self, plan: BatchPlan, demonstrations: Mapping[str, Demonstration], step: int) -> None:
        """Take in the prompts of which no rollout was solved and that have a usable demonstration."""
        hard = [demonstrations[group.uid] for group in plan if not group.successes and group.uid in demonstrations]
        self.buffer.add(ReplayEntry(each.row_id, each.prompt_ids, each.response_ids, step) for each in hard)

    def take(self, step: int, ranks: int) -> DataProto | None:
        """A batch for the fine-tuning step that is due, dealt to ranks and optimizer steps; None if none is due."""
        entries = self.buffer.take(step)
        if not entries:
            return None
        demonstrations = [Demonstration(entry.row_id, 0, entry.prompt_ids, entry.response_ids) for entry in entries]
        tensors = demonstration_tensors(demonstrations, self.prompt_length, self.response_length, self.pad_id)
        # Entries may repeat a question (dedup=false), so they are named by position.
        uids = [f"replay-{number}-row-{entry.row_id}" for number, entry in enumerate(entries)]
        columns = {"uid": object_column(uids), "multi_modal_inputs": object_column([{} for _ in entries])}
        plan = BatchPlan(tuple(GroupPlan(uid, 0, 0, 0, 1, 0.0, 0.0, 1.0) for uid in uids))
        mixed = mix(plan, None, Rows(tensors, columns), ranks, self.mini_batches)
        batch = DataProto.from_dict(tensors=mixed.rows.tensors, non_tensors=mixed.rows.columns)
        batch.meta_info = {
            "objective": REPLAY,
            "mini_batches": self.mini_batches,
            "temperature": self.temperature,
            "global_token_num": batch.batch["attention_mask"].sum(dim=-1).tolist(),
        }
        return batch


class ReplayStage(SeparateRayPPOTrainer):
    """Part of FusionTrainer."""

    replayer: Replayer | None

    def _fit_replay(self) -> None:
        """A fine-tuning step on replayed demonstrations, if one is due."""
        waiting = 0 if self.replayer is None else len(self.replayer.buffer)
        ranks = self._get_dp_size(self.actor_rollout_wg, "actor")
        replay = None if self.replayer is None else self.replayer.take(self.global_steps, ranks)
        left = 0 if self.replayer is None else len(self.replayer.buffer)
        found: dict[str, float] = {}
        if replay is not None:
            with marked_timer("update_replay", self.timing_raw, color="red"):
                found = reduce_metrics(self.actor_rollout_wg.update_replay(replay).meta_info["metrics"])
        self.metrics.update({f"fusion/replay_{name}": found.get(key, 0.0) for name, key in REPLAY_METRICS.items()})
        self.metrics.update(
            {"fusion/buffer_size": float(left), "fusion/sft_step": float(bool(found)), "fusion/replay_rows": float(waiting - left)}
        )

"""The trainer: verl's stage hooks, with demonstrations mixed in between the rewards and the log-probabilities.

It asks the algorithm's experience rule two questions (how many rollouts, which rows) and carries out the answer; it knows no
algorithm by name. One step: prompts and targets -> rollouts -> rewards -> gate plan -> mixed rows -> log-probs where a term reads
them -> advantages -> update -> checkpoint -> weights to the engine.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf, open_dict
from verl import DataProto
from verl.experimental.separation.ray_trainer import SeparateRayPPOTrainer
from verl.protocol import pad_dataproto_to_divisor, unpad_dataproto
from verl.trainer.ppo.ray_trainer import RayPPOTrainer, compute_response_mask
from verl.trainer.ppo.reward import extract_reward
from verl.utils.debug import marked_timer
from verl.utils.seqlen_balancing import log_seqlen_unbalance

from unify_posttrain import __version__
from unify_posttrain.algorithms import build_algorithm
from unify_posttrain.experience.demonstrations import TARGET_COLUMNS, Demonstration
from unify_posttrain.objective import token_class
from unify_posttrain.rollout.agent_loop import SEED_COLUMN, rollout_seeds
from unify_posttrain.trainer import run_logs, state
from unify_posttrain.trainer.batch_mixer import KIND_COLUMN, BatchMixer, kind_names, without_padding
from unify_posttrain.trainer.demonstrator import Demonstrator, make_reader

logger = logging.getLogger(__name__)

# What verl logs in the log-prob stage; reported as 0 in a step that needs no log-probabilities, so that keys do not come and go.
LOG_PROB_METRICS = ("actor/entropy", "perf/mfu/actor_infer")
ROLLOUT_PROB_METRICS = tuple(
    f"training/rollout_{name}"
    for name in ("probs_diff_valid", "probs_diff_max", "probs_diff_mean", "probs_diff_std", "actor_probs_pearson_corr")
)


class FusionTrainer(SeparateRayPPOTrainer):
    """RayPPOTrainer for every algorithm of this package."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.algorithm = build_algorithm(OmegaConf.to_container(config.actor_rollout_ref.actor, resolve=True))
        self.fusion = self.algorithm.fusion
        self.experience = self.algorithm.experience
        self.mini_batches = config.data.train_batch_size // config.actor_rollout_ref.actor.ppo_mini_batch_size
        self.run_dir = Path(config.trainer.run_dir)
        self._metrics_before = run_logs.complete_lines(self.run_dir / "metrics.jsonl")
        self.demonstrator: Demonstrator | None = None
        self.demonstrations: dict[str, Demonstration] = {}
        self.prompts: DataProto | None = None
        self._engine_awake = False

    def init_workers(self) -> None:
        # The separation trainer's own version is for disjoint pools; ours are colocated, as in RayPPOTrainer.
        RayPPOTrainer.init_workers(self)
        data = self.config.data
        if self.experience.needs_target:
            self.demonstrator = Demonstrator(
                make_reader(self.tokenizer, self.fusion, data.get("apply_chat_template_kwargs", {})),
                self.fusion,
                self.reward_loop_manager.compute_rm_score,
                workers=self.config.reward.num_workers,
                prompt_length=data.max_prompt_length,
                response_length=data.max_response_length,
                pad_id=self.tokenizer.pad_token_id,
            )
        self.mixer = BatchMixer(
            self.algorithm,
            self.demonstrator,
            self.mini_batches,
            temperature=self.config.actor_rollout_ref.rollout.temperature,
            log_probs=bool(self.config.actor_rollout_ref.rollout.calculate_log_probs),
            normalise_by_std=self.config.algorithm.norm_adv_by_std_in_grpo,
        )

    def fit(self) -> None:
        folder = state.resume_folder(self.config)
        if folder is not None and state.step_of(folder) >= self.total_training_steps:
            logger.warning(
                "%s is the last of %d steps: nothing to train. Raise trainer.total_training_steps to go on, or set another "
                "trainer.experiment_name.",
                folder,
                self.total_training_steps,
            )
            return
        super().fit()

    # Prompts and rollouts

    def _fit_get_batch(self, batch_dict: dict) -> DataProto:
        batch = super()._fit_get_batch(batch_dict)
        self.demonstrations = {}
        self.metrics.update({"fusion/demo_missing": 0.0, "fusion/demo_overlong": 0.0})
        if self.demonstrator is None:
            _drop_targets(batch)
        else:
            with marked_timer("demonstrations", self.timing_raw):
                self.demonstrations, counted = self.demonstrator.read(batch, self.global_steps)
            self.metrics.update(counted)
        self.prompts = DataProto(batch=batch.batch, non_tensor_batch=dict(batch.non_tensor_batch), meta_info=dict(batch.meta_info))
        return batch

    def _get_gen_batch(self, batch: DataProto) -> DataProto:
        """verl's, without target columns, and with a seed per row (validation rows are already repeated here)."""
        _drop_targets(batch)
        gen_batch = super()._get_gen_batch(batch)
        columns = gen_batch.non_tensor_batch
        if "row_id" in columns:
            columns[SEED_COLUMN] = rollout_seeds(self.fusion.seed, self.global_steps, columns["row_id"], validate=True)
        return gen_batch

    def _fit_generate(self, batch: DataProto = None) -> DataProto:
        """Rollouts, as many per prompt as the experience rule asks for. Rows are balanced after mixing, not here."""
        uids = batch.non_tensor_batch["uid"]
        numbers = np.array([self.experience.rollouts(uid in self.demonstrations) for uid in uids])
        if not numbers.sum():
            self._sleep_engine()
            self.timing_raw["gen"] = 0.0
            return batch
        repeated = np.repeat(np.arange(len(batch)), numbers)
        gen_batch = self._get_gen_batch(batch).select_idxs(repeated)
        row_ids = gen_batch.non_tensor_batch["row_id"]
        gen_batch.non_tensor_batch[SEED_COLUMN] = rollout_seeds(self.fusion.seed, self.global_steps, row_ids)
        gen_batch.meta_info["global_steps"] = self.global_steps
        with marked_timer("gen", self.timing_raw, color="red"):
            if self.curr_step_profile:
                self.async_rollout_manager.start_profile(global_step=self.global_steps)
            padded, pad_size = pad_dataproto_to_divisor(gen_batch, self.config.actor_rollout_ref.rollout.agent.num_workers)
            rollouts = unpad_dataproto(self.async_rollout_manager.generate_sequences(padded), pad_size)
            self._sleep_engine()
            if self.curr_step_profile:
                self.async_rollout_manager.stop_profile()
            self.timing_raw.update(rollouts.meta_info.pop("timing"))
        batch = batch.select_idxs(repeated).union(rollouts)
        if "response_mask" not in batch.batch:
            batch.batch["response_mask"] = compute_response_mask(batch)
        return batch

    def _sleep_engine(self) -> None:
        if self._engine_awake:
            self.checkpoint_manager.sleep_replicas()
            self._engine_awake = False

    # Rewards, gate and mixing

    def _fit_compute_reward(self, batch: DataProto) -> DataProto:
        generated = "responses" in batch.batch
        if generated:
            batch = super()._fit_compute_reward(batch)
        with marked_timer("mix", self.timing_raw):
            batch = self._mix(batch if generated else None)
        self.reward_tensor, self.reward_extra_infos_dict = extract_reward(batch)
        batch.meta_info["global_token_num"] = batch.batch["attention_mask"].sum(dim=-1).tolist()
        batch.meta_info["images_seqlens"] = [
            length
            for inputs in batch.non_tensor_batch["multi_modal_inputs"]
            if "images_seqlens" in inputs
            for length in inputs["images_seqlens"].tolist()
        ]
        return batch

    def _mix(self, rollouts: DataProto | None) -> DataProto:
        """Decide the plan, record it, apply it, and spread the rows over ranks."""
        ranks = self._get_dp_size(self.actor_rollout_wg, "actor")
        batch, dealt, metrics = self.mixer.mix(self.prompts, rollouts, self.demonstrations, ranks, self.global_steps)
        self.metrics.update(metrics)
        row_ids = self.prompts.non_tensor_batch["row_id"]
        groups = [[int(row_id), group.successes, group.zone] for row_id, group in zip(row_ids, self.mixer.plan, strict=True)]
        run_logs.append(self.run_dir / "gate.jsonl", {"step": self.global_steps, "groups": groups})
        if dealt:
            self._log_balance(batch, ranks)
        else:
            self._balance(batch)
        return batch

    def _balance(self, batch: DataProto) -> None:
        if self.config.trainer.balance_batch:
            self._balance_batch(batch, metrics=self.metrics)

    def _log_balance(self, batch: DataProto, ranks: int) -> None:
        """verl's balance metrics of rows that the mixer has dealt."""
        lengths = batch.batch["attention_mask"].sum(dim=-1).tolist()
        blocks = np.arange(len(lengths)).reshape(ranks, -1).tolist()
        self.metrics.update(log_seqlen_unbalance(seqlen_list=lengths, partitions=blocks, prefix="global_seqlen"))

    # Log-probabilities, only for rows whose terms read them

    def _fit_compute_log_prob(self, batch: DataProto) -> DataProto:
        compared = ROLLOUT_PROB_METRICS if self.config.actor_rollout_ref.rollout.calculate_log_probs else ()
        return self._on_rows_reading(batch, "old_log_probs", super()._fit_compute_log_prob, (*LOG_PROB_METRICS, *compared))

    def _fit_compute_ref_log_prob(self, batch: DataProto) -> DataProto:
        if not self.use_reference_policy:
            return batch
        return self._on_rows_reading(batch, "ref_log_prob", super()._fit_compute_ref_log_prob, ())

    def _on_rows_reading(
        self, batch: DataProto, stream: str, stage: Callable[[DataProto], DataProto], metrics: tuple[str, ...]
    ) -> DataProto:
        """Run a stage on the rows that have a token of which a term reads `stream`; the others get zeros, which nobody reads."""
        if KIND_COLUMN not in batch.non_tensor_batch:
            return stage(batch)
        needed = torch.zeros(len(batch), dtype=torch.bool)
        for which in self.algorithm.token_classes_reading(stream):
            needed |= token_class(batch.batch, which).any(dim=-1)
        if bool(needed.all()):
            return stage(batch)
        values = torch.zeros(batch.batch["responses"].shape, dtype=torch.float32)
        if bool(needed.any()):
            index = needed.nonzero().squeeze(-1)
            ranks = self._get_dp_size(self.actor_rollout_wg, "actor")
            selected, pad_size = pad_dataproto_to_divisor(batch.select_idxs(index), ranks)
            if pad_size:
                selected.batch["response_mask"][-pad_size:] = 0  # padding must not enter verl's entropy and debug metrics
            values[index] = unpad_dataproto(stage(selected), pad_size).batch[stream]
        else:
            self.metrics.update(dict.fromkeys(metrics, 0.0))
        batch.batch[stream] = values
        return batch

    # Advantages and update

    def _fit_compute_advantage(self, batch: DataProto) -> DataProto:
        batch = super()._fit_compute_advantage(batch)
        self.mixer.replace_advantages(batch)
        return batch

    def _fit_update_actor(self, batch: DataProto) -> DataProto:
        batch.meta_info["mini_batches"] = self.mini_batches
        batch.meta_info["term_scales"] = dict(self.algorithm.scales(self.mixer.plan))
        return super()._fit_update_actor(batch)

    def _fit_update_weights(self) -> None:
        """Save before the engine wakes and takes the memory; wake it only if it will be used."""
        super()._fit_save_checkpoint()
        validates = self.config.trainer.test_freq > 0 and (
            self.is_last_step or self.global_steps % self.config.trainer.test_freq == 0
        )
        if self.experience.rollouts(True) or self.experience.rollouts(False) or validates:
            super()._fit_update_weights()
            self._engine_awake = True
        else:
            self.timing_raw["update_weights"] = 0.0

    def _fit_save_checkpoint(self) -> None:
        """Done in `_fit_update_weights`."""

    def _fit_collect_metrics(self, batch: DataProto) -> None:
        """verl's statistics, of trained rows only."""
        super()._fit_collect_metrics(without_padding(batch))

    def _fit_dump_data(self, batch: DataProto) -> None:
        names = kind_names(batch)
        if names is not None:
            self.reward_extra_infos_dict = {**self.reward_extra_infos_dict, "row_kind": names}
        super()._fit_dump_data(batch)

    # Checkpoints

    def _save_checkpoint(self) -> None:
        super()._save_checkpoint()
        folder = Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"
        own = {
            "format": state.FORMAT,
            "version": __version__,
            "global_step": self.global_steps,
            "identity": state.identity(self.config),
            "demonstrations": None if self.demonstrator is None else self.demonstrator.state,
        }
        state.write_json(folder / state.STATE, own)
        state.mark_complete(folder)

    def _load_checkpoint(self) -> int:
        folder = state.resume_folder(self.config)
        self._engine_awake = True  # fit() pushes the weights right after this
        if folder is None:
            self._restore_logs()
            return 0
        own = state.read_state(folder)
        state.check_identity(own, self.config, folder)
        with open_dict(self.config):
            self.config.trainer.resume_mode, self.config.trainer.resume_from_path = "resume_path", str(folder.resolve())
            # What an uninterrupted run would have validated at this step it has validated; once is enough.
            self.config.trainer.val_before_train = self.config.trainer.val_only
        super()._load_checkpoint()
        if own is not None and own["demonstrations"] is not None and self.demonstrator is not None:
            self.demonstrator.state = own["demonstrations"]
        if self.global_steps and self.global_steps % len(self.train_dataloader) == 0:
            # Saved on the last batch of an epoch, the loader believes that epoch is still open: let it end, so that the next
            # pass is the next epoch in the order of an uninterrupted run.
            leftover = next(iter(self.train_dataloader), None)
            if leftover is not None:
                raise RuntimeError(f"{folder}: the data loader is not where step {self.global_steps} left it")
        self._restore_logs()
        return self.global_steps

    def _restore_logs(self) -> None:
        """Keep the lines of the steps that are kept, drop the others: verl's file logger starts an empty file, ours appends."""
        logger_file = self.logger.logger.get("file") if self.logger is not None else None
        if logger_file is not None:
            for line in run_logs.up_to(self._metrics_before, self.global_steps):
                logger_file.fp.write(line.encode() + b"\n")
        gate = self.run_dir / "gate.jsonl"
        kept = run_logs.up_to(run_logs.complete_lines(gate), self.global_steps)
        gate.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def _drop_targets(batch: DataProto) -> None:
    for name in TARGET_COLUMNS:
        batch.non_tensor_batch.pop(name, None)

"""The trainer: verl's stage hooks, with demonstrations mixed in between the rewards and the log-probabilities.

It asks the algorithm's experience rule two questions (what rollouts begin with, which rows are trained) and carries out the
answer; it knows no algorithm by name. One step: prompts and targets -> rollouts -> rewards -> gate plan -> mixed rows -> log-probs
where a term reads them -> advantages -> update (and a replayed fine-tuning step when one is due) -> checkpoint -> weights.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from verl import DataProto
from verl.protocol import pad_dataproto_to_divisor, unpad_dataproto
from verl.trainer.ppo.ray_trainer import RayPPOTrainer, compute_response_mask
from verl.trainer.ppo.reward import extract_reward
from verl.utils.debug import marked_timer
from verl.utils.seqlen_balancing import log_seqlen_unbalance

from unify_posttrain.algorithms import Algorithm, build_algorithm
from unify_posttrain.experience.demonstrations import PROBABILITY_COLUMN, TARGET_COLUMNS, Demonstration
from unify_posttrain.experience.rules import Experience, ResponsePrefix
from unify_posttrain.rollout.agent_loop import SEED_COLUMN, rollout_seeds
from unify_posttrain.runs import run_logs, state
from unify_posttrain.startup.reader import make_reader
from unify_posttrain.trainer.batch_mixer import BatchMixer, without_padding
from unify_posttrain.trainer.checkpointing import mean_accuracy
from unify_posttrain.trainer.demonstrator import Demonstrator
from unify_posttrain.trainer.dump import DumpStage
from unify_posttrain.trainer.dynamic_sampling import DynamicSampling
from unify_posttrain.trainer.loader import TrainLoader
from unify_posttrain.trainer.log_probs import LogProbStages
from unify_posttrain.trainer.phases import PhaseClock
from unify_posttrain.trainer.preemption import Preemptible
from unify_posttrain.trainer.replayer import Replayer, ReplayStage
from unify_posttrain.trainer.response_prefixes import HINT_COLUMN, draw_response_prefixes, prefix_columns, prefix_metrics
from unify_posttrain.trainer.validation import ValidationStage
from unify_posttrain.workers.metrics import UPDATE_METRICS

logger = logging.getLogger(__name__)

OWN_COLUMNS = (*TARGET_COLUMNS, PROBABILITY_COLUMN, HINT_COLUMN)  # no business of agent loops and reward workers


class FusionTrainer(Preemptible, LogProbStages, ReplayStage, ValidationStage, DumpStage):
    """RayPPOTrainer for every algorithm of this package."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.train_dataloader = TrainLoader(self.train_dataloader)
        root = build_algorithm(OmegaConf.to_container(config.actor_rollout_ref.actor, resolve=True))
        self.fusion = root.fusion
        self.clock = PhaseClock(root.phases)
        self.has_phases = len(root.phases) > 1 or self.fusion.lr_schedule is not None
        self.sampling = DynamicSampling.from_config(config)
        self.mini_batches = config.data.train_batch_size // config.actor_rollout_ref.actor.ppo_mini_batch_size
        self.run_dir = Path(config.trainer.run_dir)
        self._metrics_before = run_logs.guarded_lines(self.run_dir / "metrics.jsonl")
        self.demonstrator: Demonstrator | None = None
        self.replayer: Replayer | None = None
        self.demonstrations: dict[str, Demonstration] = {}
        self.response_prefixes: list[tuple[ResponsePrefix, ...]] = []
        self.prompts: DataProto | None = None
        self._engine_awake = False

    @property
    def algorithm(self) -> Algorithm:
        return self.clock.phase.algorithm

    @property
    def experience(self) -> Experience:
        return self.algorithm.experience

    def init_workers(self) -> None:
        # The separation trainer's own version is for disjoint pools; ours are colocated, as in RayPPOTrainer.
        RayPPOTrainer.init_workers(self)
        data, rollout = self.config.data, self.config.actor_rollout_ref.rollout
        packing = {
            "prompt_length": data.max_prompt_length,
            "response_length": data.max_response_length,
            "pad_id": self.tokenizer.pad_token_id,
        }
        if any(phase.algorithm.experience.needs_target for phase in self.clock.phases):
            self.demonstrator = Demonstrator(
                make_reader(self.tokenizer, self.fusion, data.get("apply_chat_template_kwargs", {})),
                self.fusion,
                self.reward_loop_manager.compute_rm_score,
                workers=self.config.reward.num_workers,
                **packing,
            )
        buffer = self.algorithm.replay
        if buffer is not None:
            mini_batch = self.algorithm.replay_step.mini_batch
            self.replayer = Replayer(buffer, mini_batch, temperature=rollout.temperature, **packing)
        self.mixer = BatchMixer(
            self.fusion,
            self.demonstrator,
            self.mini_batches,
            temperature=rollout.temperature,
            log_probs=bool(rollout.calculate_log_probs),
            normalise_by_std=self.config.algorithm.norm_adv_by_std_in_grpo,
        )

    def fit(self) -> None:
        finished = state.nothing_left(self.config, self.total_training_steps)
        if finished:
            logger.warning(finished)
            return
        super().fit()

    # Phases

    def _fit_prepare_step(self) -> None:
        self._step_began = time.perf_counter()
        super()._fit_prepare_step()
        if self.clock.advance(self.global_steps):
            logger.info("step %d: phase %d, algorithm=%s", self.global_steps, self.clock.index, self.algorithm.name)
            self._start_phase()
        self.metrics["fusion/phase"] = float(self.clock.index)
        self.metrics.update(self.algorithm.step_metrics(self.global_steps))

    def _fit_validate(self) -> None:
        super()._fit_validate()
        if mean_accuracy(self.metrics) is not None:
            self._note_validation(self.metrics)

    # Prompts and rollouts

    def _fit_get_batch(self, batch_dict: dict) -> DataProto:
        batch = super()._fit_get_batch(batch_dict)
        self.demonstrations = {}
        self.metrics.update({"fusion/demo_missing": 0.0, "fusion/demo_overlong": 0.0})
        if self.demonstrator is not None and self.experience.needs_target:
            with marked_timer("demonstrations", self.timing_raw):
                self.demonstrations, counted = self.demonstrator.read(batch, self.global_steps)
            self.metrics.update(counted)
        self.response_prefixes = draw_response_prefixes(
            self.experience, batch, self.demonstrations, self._encode, self.global_steps
        )
        self.metrics.update(prefix_metrics(self.response_prefixes))
        _drop_own_columns(batch)
        self.prompts = DataProto(batch=batch.batch, non_tensor_batch=dict(batch.non_tensor_batch), meta_info=dict(batch.meta_info))
        return batch

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _get_gen_batch(self, batch: DataProto) -> DataProto:
        """verl's, without target columns, and with a seed per row (validation rows are already repeated here)."""
        _drop_own_columns(batch)
        gen_batch = super()._get_gen_batch(batch)
        columns = gen_batch.non_tensor_batch
        if "row_id" in columns:
            columns[SEED_COLUMN] = rollout_seeds(self.fusion.seed, self.global_steps, columns["row_id"], validate=True)
        return gen_batch

    def _fit_generate(self, batch: DataProto = None) -> DataProto:
        """Rollouts, as many per prompt as the experience rule asks for. Rows are balanced after mixing, not here."""
        numbers = [len(prefixes) for prefixes in self.response_prefixes]
        if not sum(numbers):
            self._sleep_engine()
            self.timing_raw["gen"] = 0.0
            return batch
        repeated = np.repeat(np.arange(len(batch)), numbers)
        gen_batch = self._get_gen_batch(batch).select_idxs(repeated)
        row_ids = gen_batch.non_tensor_batch["row_id"]
        gen_batch.non_tensor_batch[SEED_COLUMN] = rollout_seeds(self.fusion.seed, self.global_steps, row_ids)
        given = prefix_columns([prefix for prefixes in self.response_prefixes for prefix in prefixes])
        gen_batch.non_tensor_batch.update(given)
        gen_batch.meta_info["global_steps"] = self.global_steps
        with marked_timer("gen", self.timing_raw, color="red"):
            if self.curr_step_profile:
                self.async_rollout_manager.start_profile(global_step=self.global_steps)
            padded, pad_size = pad_dataproto_to_divisor(gen_batch, self.config.actor_rollout_ref.rollout.agent.num_workers)
            rollouts = unpad_dataproto(self.async_rollout_manager.generate_sequences(padded), pad_size)
            if self.sampling is None:
                self._sleep_engine()
            if self.curr_step_profile:
                self.async_rollout_manager.stop_profile()
            self.timing_raw.update(rollouts.meta_info.pop("timing"))
        batch = batch.select_idxs(repeated).union(rollouts)
        batch.non_tensor_batch.update(given)
        if "response_mask" not in batch.batch:
            batch.batch["response_mask"] = compute_response_mask(batch)
        return batch

    def _sleep_engine(self) -> None:
        if self._engine_awake:
            self.checkpoint_manager.sleep_replicas()
            self._engine_awake = False

    def _replenish(self, rollouts: DataProto) -> tuple[DataProto, dict[str, bool]]:
        """Dynamic sampling: draw and generate further prompts until enough groups have rewards that differ."""
        parts, prompts, values = [rollouts], [self.prompts], []
        spread: dict[str, bool] = {}
        while True:
            values = self.mixer.reward_field(parts[-1], self.sampling.metric)
            spread |= self.sampling.spread(parts[-1].non_tensor_batch["uid"], values)
            if self.sampling.enough(spread, len(parts)):
                break
            more = self._fit_generate(self._fit_get_batch(self.train_dataloader.extra()))
            more.meta_info = dict(rollouts.meta_info)
            parts.append(super()._fit_compute_reward(more))
            prompts.append(self.prompts)
        self._sleep_engine()
        self.prompts = DataProto.concat(prompts) if len(prompts) > 1 else self.prompts
        self.metrics["fusion/gen_batches"] = float(len(parts))
        return (DataProto.concat(parts) if len(parts) > 1 else rollouts), spread

    # Rewards, gate and mixing

    def _fit_compute_reward(self, batch: DataProto) -> DataProto:
        rollouts, spread = (batch, None) if "responses" in batch.batch else (None, None)
        if rollouts is not None:
            rollouts = super()._fit_compute_reward(rollouts)
            if self.sampling is not None:
                rollouts, spread = self._replenish(rollouts)
        with marked_timer("mix", self.timing_raw):
            batch = self._mix(rollouts, spread)
        self.reward_tensor, self.reward_extra_infos_dict = extract_reward(batch)
        batch.meta_info["global_token_num"] = batch.batch["attention_mask"].sum(dim=-1).tolist()
        batch.meta_info["images_seqlens"] = [
            length
            for inputs in batch.non_tensor_batch["multi_modal_inputs"]
            if "images_seqlens" in inputs
            for length in inputs["images_seqlens"].tolist()
        ]
        return batch

    def _mix(self, rollouts: DataProto | None, spread: dict[str, bool] | None) -> DataProto:
        """Decide the plan, record it, apply it, and spread the rows over ranks."""
        ranks = self._get_dp_size(self.actor_rollout_wg, "actor")
        select = None if spread is None else lambda plan: self.sampling.select(plan, spread)
        batch, dealt, metrics = self.mixer.mix(
            self.algorithm, self.prompts, rollouts, self.demonstrations, ranks, self.global_steps, select
        )
        self.metrics.update(metrics)
        self._remember_dropped(rollouts, self.mixer.plan)
        row_ids = self.prompts.non_tensor_batch["row_id"]
        groups = [[int(row_id), group.successes, group.zone] for row_id, group in zip(row_ids, self.mixer.plan, strict=True)]
        run_logs.append(self.run_dir / "gate.jsonl", {"step": self.global_steps, "groups": groups})
        if self.replayer is not None:
            self.replayer.collect(self.mixer.plan, self.demonstrations, self.global_steps)
        if dealt:
            lengths = batch.batch["attention_mask"].sum(dim=-1).tolist()
            blocks = np.arange(len(lengths)).reshape(ranks, -1).tolist()
            self.metrics.update(log_seqlen_unbalance(seqlen_list=lengths, partitions=blocks, prefix="global_seqlen"))
        elif self.config.trainer.balance_batch:
            self._balance_batch(batch, metrics=self.metrics)
        return batch

    # Advantages and update

    def _fit_compute_advantage(self, batch: DataProto) -> DataProto:
        batch = super()._fit_compute_advantage(batch)
        self.metrics.update(self.mixer.replace_advantages(self.algorithm, batch))
        return batch

    def _fit_update_actor(self, batch: DataProto) -> DataProto:
        batch.meta_info["mini_batches"] = self.mini_batches
        batch.meta_info["term_scales"] = dict(self.algorithm.scales(self.mixer.plan, self.global_steps))
        if self.global_steps < self.config.trainer.critic_warmup:  # verl trains the critic alone
            self.metrics.update(dict.fromkeys(UPDATE_METRICS, 0.0))
        batch = self._trained = super()._fit_update_actor(batch)
        self._fit_replay()
        return batch

    def _fit_update_weights(self) -> None:
        """Save before the engine wakes and takes the memory; wake it only if it will be used."""
        super()._fit_save_checkpoint()
        validates = self.config.trainer.test_freq > 0 and (
            self.is_last_step or self.global_steps % self.config.trainer.test_freq == 0
        )
        upcoming = self.clock.at(self.global_steps + 1).algorithm.experience
        if not self.leaves and (upcoming.rollouts(True) or upcoming.rollouts(False) or validates):
            # Also while only the critic is trained (trainer.critic_warmup), when verl would not: the engine sleeps without weights.
            with marked_timer("update_weights", self.timing_raw, color="red"):
                self.checkpoint_manager.update_weights(self.global_steps)
            self._engine_awake = True
        else:
            self.timing_raw["update_weights"] = 0.0

    def _fit_save_checkpoint(self) -> None:
        """Done in `_fit_update_weights`."""

    def _fit_collect_metrics(self, batch: DataProto) -> None:
        """verl's statistics, of trained rows only."""
        super()._fit_collect_metrics(without_padding(batch))


def _drop_own_columns(batch: DataProto) -> None:
    for name in OWN_COLUMNS:
        batch.non_tensor_batch.pop(name, None)

"""The trainer: verl's stage hooks in the order of a step, each of them about one call of a collaborator.

It asks the algorithm's experience rule two questions (what rollouts begin with, which rows are trained) and carries out the answer;
it knows no algorithm by name. Collaborators do not know the trainer; `Step` holds what the step has decided so far.
"""

from __future__ import annotations

import logging
from typing import Any

from omegaconf import OmegaConf
from verl import DataProto
from verl.experimental.separation.ray_trainer import SeparateRayPPOTrainer
from verl.trainer.ppo.ray_trainer import RayPPOTrainer
from verl.trainer.ppo.reward import extract_reward
from verl.utils.debug import marked_timer

from unify_posttrain.algorithms import build_algorithm
from unify_posttrain.backend.seams import rollout_manager, wait_for_dump
from unify_posttrain.runs import run_logs, state
from unify_posttrain.runs.failures import stop_request
from unify_posttrain.runs.signals import time_limit
from unify_posttrain.trainer.advantages import set_advantages
from unify_posttrain.trainer.balance import balance_rows
from unify_posttrain.trainer.batch_mixer import BatchMixer
from unify_posttrain.trainer.checkpoints import Checkpoints
from unify_posttrain.trainer.demonstrator import Demonstrator
from unify_posttrain.trainer.dump import RolloutDump
from unify_posttrain.trainer.engine import Engine, request_seed, rollout_requests, seed_rows, with_rollouts
from unify_posttrain.trainer.loader import TrainLoader
from unify_posttrain.trainer.log_probs import LogProbs
from unify_posttrain.trainer.mixed_batch import note_lengths, without_padding
from unify_posttrain.trainer.phases import PhaseClock
from unify_posttrain.trainer.port import ActorPort, WorkerPort
from unify_posttrain.trainer.prompts import Generated, PromptReader, drop_own_columns
from unify_posttrain.trainer.replayer import Replayer
from unify_posttrain.trainer.rewards import RewardReader
from unify_posttrain.trainer.sessions import apart
from unify_posttrain.trainer.step import Step
from unify_posttrain.trainer.validation import validated_fields, validated_metrics
from unify_posttrain.workers.metrics import OWN_METRICS, UPDATE_METRICS

logger = logging.getLogger(__name__)


class FusionTrainer(SeparateRayPPOTrainer):
    """RayPPOTrainer for every algorithm of this package."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        root = build_algorithm(OmegaConf.to_container(config.actor_rollout_ref.actor, resolve=True))
        self.fusion = root.fusion
        self.clock = PhaseClock(root.phases, own_schedule=root.fusion.lr_schedule is not None)
        self.train_dataloader, self.val_dataloader = TrainLoader(apart(self.train_dataloader)), apart(self.val_dataloader)
        self.logs = run_logs.ResumableLogs(config.trainer.run_dir)
        self.stop = stop_request(config)

    def init_workers(self) -> None:
        # The separation trainer's own version is for disjoint pools; ours are colocated, as in RayPPOTrainer.
        RayPPOTrainer.init_workers(self)
        config, demonstrator = self.config, None
        self.rewards = RewardReader.from_config(config, self._compute_reward_colocate)
        if self.clock.needs_target:
            demonstrator = Demonstrator.from_config(config, self.fusion, self.tokenizer, self.rewards.score, self.processor)
        self.port: ActorPort = WorkerPort.of(self)
        self.engine = self.checkpoint_manager = Engine(config, rollout_manager(self), self.checkpoint_manager)
        self.reader = PromptReader(demonstrator, self.tokenizer)
        self.mixer = BatchMixer.from_config(config, demonstrator)
        self.log_probs = LogProbs.from_config(config, self.port, self.use_reference_policy, self.processor is not None)
        self.replayer = Replayer.from_config(config, self.clock.phase.algorithm, self.tokenizer.pad_token_id, self.processor)
        self.dump = RolloutDump(config.trainer.get("rollout_data_dir"), self.tokenizer)
        self.checkpoints = Checkpoints(config, self.clock, demonstrator, self.replayer, self.train_dataloader, self.logs)

    # The run, from its checkpoint to its last step or to a signal

    def fit(self) -> None:
        if finished := state.nothing_left(self.config, self.total_training_steps):
            logger.warning(finished)
            return
        with self.stop.listening():
            super().fit()

    def fit_step(self, batch_dict: Any = None) -> None:
        """Raises StepTimeoutError after `trainer.step_timeout`, and PreemptedError if the process was asked to leave and saved."""
        number = self.global_steps
        with time_limit(self.config.trainer.step_timeout, f"step {number}"):
            super().fit_step(batch_dict)
        if self.leaves and self.checkpoints.holds(number):  # else the signal came too late for this step; the next one heeds it
            self.stop.leave(number, self.checkpoints.latest)

    @property
    def leaves(self) -> bool:
        """Whether this step is the last one of this process, though not of the run: nothing more than saving is done for it."""
        return bool(self.stop) and not self.is_last_step

    def _load_checkpoint(self) -> int:
        return self.checkpoints.load(self.port, self.total_training_steps, super()._load_checkpoint, self.logger.logger.get("file"))

    def _save_checkpoint(self) -> None:
        self.checkpoints.save(self.global_steps, super()._save_checkpoint, self._metrics_so_far)

    def _validate(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        self.engine.wake(self.timing_raw)
        return self.checkpoints.with_line_held_back(self.global_steps, super()._validate(*args, **kwargs))

    def _val_metrics_update(self, sources: Any, uids: list[str], fields: dict[str, list], turns: list) -> dict[str, Any]:
        return validated_metrics(self.rewards, super()._val_metrics_update, self.fusion, sources, uids, fields, turns)

    def _dump_generations(self, reward_extra_infos_dict: dict[str, list], **samples: Any) -> None:
        super()._dump_generations(reward_extra_infos_dict=validated_fields(reward_extra_infos_dict), **samples)
        wait_for_dump(self)

    def _compute_reward_colocate(self, batch: DataProto) -> DataProto:
        self.engine.give_way()
        return super()._compute_reward_colocate(batch)

    # One step, in verl's order

    def _fit_prepare_step(self) -> None:
        super()._fit_prepare_step()
        if self.clock.advance(self.global_steps):
            logger.info("step %d: phase %d, algorithm=%s", self.global_steps, self.clock.index, self.clock.phase.algorithm.name)
            self.clock.announce(self.port, self.total_training_steps)
        self.step = Step.begin(self.global_steps, self.clock.phase, self.config)
        own = {**dict.fromkeys(OWN_METRICS, 0.0), **self.step.algorithm.step_metrics(self.step.number)}
        self.metrics |= {"fusion/phase": float(self.clock.index), **own}

    def _fit_get_batch(self, batch_dict: dict) -> DataProto:
        batch = super()._fit_get_batch(batch_dict)
        self.step.prompts, counted = self.reader.read(self.step.algorithm, batch, self.step.number, self.timing_raw)
        self.metrics.update(counted)
        return batch

    def _get_gen_batch(self, batch: DataProto) -> DataProto:
        """verl's, without target columns, and with a seed per row if they have one (validation rows are already repeated here)."""
        drop_own_columns(batch)
        return seed_rows(super()._get_gen_batch(batch), request_seed(self.config), self.global_steps, validate=True)

    def _fit_generate(self, batch: DataProto = None) -> DataProto:
        """Rollouts, as many per prompt as the experience rule asks for. Rows are balanced after mixing, not here."""
        prefixes = self.step.prompts.prefixes
        if not any(prefixes):
            self.engine.sleep_replicas()
            self.timing_raw["gen"] = 0.0
            return batch
        limit = self.step.algorithm.experience.max_new_tokens
        requests = rollout_requests(self._get_gen_batch(batch), prefixes, request_seed(self.config), self.step.number, limit)
        rollouts = self.engine.generate(requests, self.timing_raw, self.step.sampling is None, self.curr_step_profile)
        return with_rollouts(batch, rollouts, prefixes)

    def _fit_compute_reward(self, batch: DataProto) -> DataProto:
        """Rewards, then the gate: what it decides is recorded, and the batch that comes of it goes on."""
        generated = self._scored(batch)
        if self.step.sampling is not None and generated.rollouts is not None:
            generated, counted = self.step.sampling.replenish(generated, self._more)
            self.engine.sleep_replicas()
            self.metrics.update(counted)
        step = self.step
        step.prompts = generated.prompts
        with marked_timer("mix", self.timing_raw):
            mixed = self.mixer.mix(step.algorithm, generated, self.port.ranks, step.mini_batches, step.number)
            self.metrics.update(mixed.metrics)
            self.logs.append_gate(mixed.gate_record(step.prompts, step.number))
            self.replayer.collect(mixed.plan, step.prompts.demonstrations, step.number)
            if not mixed.dealt and self.config.trainer.balance_batch:
                balance_rows(self, mixed.batch, self.metrics)
        step.mixed, step.dropped = mixed, self.dump.dropped(generated.rollouts, mixed.plan)
        self.reward_tensor, self.reward_extra_infos_dict = extract_reward(mixed.batch)
        note_lengths(mixed.batch)
        return mixed.batch

    def _scored(self, batch: DataProto) -> Generated:
        rollouts = self.rewards.read(super()._fit_compute_reward(batch)) if "responses" in batch.batch else None
        return Generated(self.step.prompts, rollouts)

    def _more(self) -> Generated:
        """Another batch of prompts within the step."""
        return self._scored(self._fit_generate(self._fit_get_batch(self.train_dataloader.extra())))

    def _fit_compute_log_prob(self, batch: DataProto) -> DataProto:
        batch, absent = self.log_probs.old(self.step, batch, super()._fit_compute_log_prob)
        self.metrics.update(absent)
        return batch

    def _compute_old_log_prob(self, batch: DataProto) -> tuple[DataProto, float]:
        return self.log_probs.present(self.step.algorithm, batch, self.step.number)

    def _fit_compute_ref_log_prob(self, batch: DataProto) -> DataProto:
        return self.log_probs.reference(self.step.algorithm, batch, super()._fit_compute_ref_log_prob)

    def _compute_values(self, batch: DataProto) -> DataProto:
        return self.port.values(batch)

    def _update_critic(self, batch: DataProto) -> DataProto:
        return self.port.update_critic(batch)

    def _compute_ref_log_prob(self, batch: DataProto) -> DataProto:
        return self.port.reference(batch)

    def _fit_compute_advantage(self, batch: DataProto) -> DataProto:
        with self.log_probs.comparing(batch, self.metrics):
            batch = super()._fit_compute_advantage(batch)
        self.metrics.update(set_advantages(self.step.algorithm, self.step.mixed, batch, self.mixer.turns))
        return batch

    def _fit_update_actor(self, batch: DataProto) -> DataProto:
        step = self.step
        batch.meta_info |= {"mini_batches": step.mini_batches, "term_scales": step.term_scales}
        if step.number < self.config.trainer.critic_warmup:  # verl trains the critic alone
            self.metrics.update(dict.fromkeys(UPDATE_METRICS, 0.0))
        else:
            with marked_timer("update_actor", self.timing_raw, color="red"):
                self.metrics.update(self.port.update(batch))
        step.trained = batch
        self.metrics.update(self.replayer.fine_tune(self.port, step.number, self.timing_raw))
        return batch

    def _fit_update_weights(self) -> None:
        """Save before the engine wakes and takes the memory; wake it only if it will be used."""
        super()._fit_save_checkpoint()
        self._save_before_leaving()
        frequency = self.config.trainer.test_freq
        validates = frequency > 0 and (self.is_last_step or self.global_steps % frequency == 0)
        used = not self.leaves and (self.clock.generates_at(self.global_steps + 1) or validates)
        # Also while only the critic is trained (trainer.critic_warmup), when verl would not: the engine sleeps without weights.
        self.engine.receive_weights(used, self.global_steps, self.timing_raw)

    def _fit_dump_data(self, batch: DataProto) -> None:
        self.reward_extra_infos_dict = self.dump.fields(batch, self.step.prompts, self.reward_extra_infos_dict)
        super()._fit_dump_data(batch)
        self.dump.append_dropped(self.step.dropped, self.step.prompts, self.step.number)

    def _fit_validate(self) -> None:
        if self.leaves:
            return  # the next process makes up for it
        super()._fit_validate()
        self.checkpoints.note_validation(self.global_steps, self.metrics)

    def _fit_save_checkpoint(self) -> None:
        """Done in `_fit_update_weights`."""

    def _fit_collect_metrics(self, batch: DataProto) -> None:
        """verl's statistics, of trained rows only."""
        super()._fit_collect_metrics(without_padding(batch))

    def _fit_postprocess_step(self) -> None:
        self._save_before_leaving()  # asked while the engine woke or the step was validated
        super()._fit_postprocess_step()

    def _save_before_leaving(self) -> None:
        if self.leaves and not self.checkpoints.holds(self.global_steps):
            self.engine.sleep_replicas()
            with marked_timer("save_checkpoint", self.timing_raw, color="green"):
                self._save_checkpoint()

    def _metrics_so_far(self) -> dict[str, float]:
        """What will be logged of this step, except what follows its checkpoint: validation, and the times of what is left."""
        metrics, timing = self.metrics, self.timing_raw
        self.metrics, self.timing_raw = dict(metrics), {**timing, "step": self.step.seconds}
        try:
            self._fit_collect_metrics(self.step.trained)
            return {key: float(value) for key, value in self.metrics.items()}
        finally:
            self.metrics, self.timing_raw = metrics, timing

"""Checkpoints of a run: verl's files, our own state beside them, a marker when all is written; and the way back."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import open_dict
from verl import DataProto
from verl.experimental.separation.ray_trainer import SeparateRayPPOTrainer

from unify_posttrain import __version__
from unify_posttrain.runs import run_logs, state
from unify_posttrain.trainer.demonstrator import Demonstrator
from unify_posttrain.trainer.loader import TrainLoader
from unify_posttrain.trainer.phases import PhaseClock
from unify_posttrain.trainer.replayer import Replayer

logger = logging.getLogger(__name__)


class CheckpointError(Exception):
    """A checkpoint could not be written."""


def mean_accuracy(metrics: Mapping[str, Any]) -> float | None:
    """Mean over sources of verl's main validation figures; None if there is none."""
    values = [float(value) for key, value in metrics.items() if key.startswith("val-core/")]
    return sum(values) / len(values) if values else None


class Checkpointing(SeparateRayPPOTrainer):
    """Part of FusionTrainer."""

    run_dir: Path
    demonstrator: Demonstrator | None
    replayer: Replayer | None
    clock: PhaseClock
    has_phases: bool
    train_dataloader: TrainLoader
    _metrics_before: list[str]
    _engine_awake: bool
    _saved: Path | None = None
    _step_began: float
    _trained: DataProto  # the rows of this step
    _validated: int = -1  # the step that was validated last
    _validation_due: bool = False  # the step resumed from has not been validated: the process before ended too early
    _line_held_back: Mapping[str, Any] = {}  # its metrics, logged together with that validation

    def _start_phase(self) -> None:
        """Tell the workers which phase begins: its terms, a fresh optimizer, its learning-rate schedule."""
        if self.has_phases:
            self.actor_rollout_wg.start_phase(self.clock.index, self.clock.length(self.total_training_steps))

    def _save_checkpoint(self) -> None:
        """Write, mark as complete, and only then delete what `trainer.max_actor_ckpt_to_keep` no longer wants.

        Raises:
            CheckpointError: it could not be written, for want of space most often; the part that was is removed.
        """
        trainer = self.config.trainer
        checkpoints = Path(trainer.default_local_dir)
        folder = checkpoints / f"global_step_{self.global_steps}"
        keep = trainer.get("max_actor_ckpt_to_keep")
        try:
            with open_dict(self.config):  # verl would delete the old before the new is written, with 1 the last one there is
                trainer.max_actor_ckpt_to_keep = trainer.max_critic_ckpt_to_keep = None
            super()._save_checkpoint()
            self._save_own(folder)
        except Exception as error:
            free = shutil.disk_usage(checkpoints).free
            shutil.rmtree(folder, ignore_errors=True)
            raise CheckpointError(f"{folder} could not be written; {free / 1e9:.2f} GB were free on its disk") from error
        finally:
            trainer.max_actor_ckpt_to_keep = keep
        self._saved = folder
        state.keep_newest(checkpoints, keep)

    def _save_own(self, folder: Path) -> None:
        own = {
            "format": state.FORMAT,
            "version": __version__,
            "global_step": self.global_steps,
            "identity": state.identity(self.config),
            "demonstrations": None if self.demonstrator is None else self.demonstrator.state,
            "batches": self.train_dataloader.batches,
            "replay": None if self.replayer is None else self.replayer.buffer.state,
        }
        state.write_json(folder / state.STATE, own)
        state.write_json(folder / state.LINE, {"step": self.global_steps, "data": self._metrics_so_far()})
        state.write_json(folder / state.PHASE, {**self.clock.state, "validated": self._validated == self.global_steps})
        state.mark_complete(folder)

    def _metrics_so_far(self) -> dict[str, Any]:
        """What will be logged of this step, except what follows its checkpoint: validation, and the times of what is left."""
        metrics, timing = self.metrics, self.timing_raw
        self.metrics = dict(metrics)
        self.timing_raw = {**timing, "step": time.perf_counter() - self._step_began}
        try:
            self._fit_collect_metrics(self._trained)
            return {key: float(value) for key, value in self.metrics.items()}
        finally:
            self.metrics, self.timing_raw = metrics, timing

    def _saved_at(self, step: int) -> bool:
        return self._saved is not None and state.step_of(self._saved) == step

    def _note_validation(self, metrics: Mapping[str, Any]) -> None:
        """Validation follows the checkpoint of its step; a resume must know of it, and makes up for it otherwise."""
        accuracy = mean_accuracy(metrics)
        if accuracy is not None:
            self.clock.validated(accuracy)
        self._validated = self.global_steps
        if self._saved_at(self.global_steps):
            state.write_json(self._saved / state.PHASE, {**self.clock.state, "validated": True})

    def _validate(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        metrics = super()._validate(*args, **kwargs)
        if self._validation_due:
            self._validation_due = False
            self._note_validation(metrics)
            metrics = {**self._line_held_back, **metrics}
        return metrics

    def _load_checkpoint(self) -> int:
        folder = state.resume_folder(self.config)
        self._engine_awake = True  # fit() pushes the weights right after this
        if folder is None:
            self._restore_logs()
            self._start_phase()
            return 0
        own = state.read_state(folder)
        state.check_identity(own, self.config, folder)
        with open_dict(self.config):
            self.config.trainer.resume_mode, self.config.trainer.resume_from_path = "resume_path", str(folder.resolve())
            # What an uninterrupted run would have validated at this step is validated once: before the interruption or now.
            self._validation_due = state.awaits_validation(folder, self.config, self.total_training_steps)
            last = self._validation_due and state.step_of(folder) >= self.total_training_steps
            self.config.trainer.val_only = self.config.trainer.val_only or last
            self.config.trainer.val_before_train = self.config.trainer.val_only or self._validation_due
        if folder.parent.resolve() == Path(self.config.trainer.default_local_dir).resolve():
            self._saved = folder  # another run's checkpoint is read, never written to
        if (folder / state.PHASE).exists():
            self.clock.state = json.loads((folder / state.PHASE).read_text(encoding="utf-8"))
        self._start_phase()  # before the moments are loaded, which a phase begins without
        super()._load_checkpoint()
        self._restore_own(own or {})
        self._restore_logs()
        return self.global_steps

    def _restore_own(self, own: dict[str, Any]) -> None:
        if own.get("demonstrations") is not None and self.demonstrator is not None:
            self.demonstrator.state = own["demonstrations"]
        if own.get("replay") is not None and self.replayer is not None:
            self.replayer.buffer.state = own["replay"]
        self.train_dataloader.restore(own.get("batches", self.global_steps))

    def _restore_logs(self) -> None:
        """Keep the lines of the steps that are kept, drop the others: verl's file logger starts an empty file, ours appends.

        The line of the step resumed from is in its checkpoint, in case the process before had no time to log it."""
        metrics, gate = self.run_dir / "metrics.jsonl", self.run_dir / "gate.jsonl"
        entries = [json.loads(line) for line in run_logs.up_to(self._metrics_before, self.global_steps)]
        line = None if self._saved is None else self._saved / state.LINE
        if line is not None and line.exists() and not any(each["step"] == self.global_steps for each in entries):
            entries.append(json.loads(line.read_text(encoding="utf-8")))
        logger_file = self.logger.logger.get("file") if self.logger is not None else None
        for entry in entries if logger_file is not None else ():
            if self._validation_due and entry["step"] == self.global_steps:
                self._line_held_back = entry["data"]
            else:
                logger_file.fp.write(json.dumps(entry, separators=(",", ":")).encode() + b"\n")
        run_logs.release(metrics)
        run_logs.replace(gate, run_logs.up_to(run_logs.complete_lines(gate), self.global_steps))

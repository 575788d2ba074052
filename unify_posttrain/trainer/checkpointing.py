"""Checkpoints of a run: verl's files, our own state beside them, a marker when all is written; and the way back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omegaconf import open_dict
from verl.experimental.separation.ray_trainer import SeparateRayPPOTrainer

from unify_posttrain import __version__
from unify_posttrain.trainer import run_logs, state
from unify_posttrain.trainer.demonstrator import Demonstrator
from unify_posttrain.trainer.loader import TrainLoader
from unify_posttrain.trainer.phases import PhaseClock
from unify_posttrain.trainer.replayer import Replayer


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

    def _start_phase(self) -> None:
        """Tell the workers which phase begins: its terms, a fresh optimizer, its learning-rate schedule."""
        if self.has_phases:
            self.actor_rollout_wg.start_phase(self.clock.index, self.clock.length(self.total_training_steps))

    def _save_checkpoint(self) -> None:
        super()._save_checkpoint()
        folder = Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"
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
        state.write_json(folder / state.PHASE, self.clock.state)
        state.mark_complete(folder)
        self._saved = folder

    def _note_validation(self, accuracy: float) -> None:
        """Validation follows the checkpoint of its step; a resume must know of it."""
        self.clock.validated(accuracy)
        if self._saved is not None and state.step_of(self._saved) == self.global_steps:
            state.write_json(self._saved / state.PHASE, self.clock.state)

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
            # What an uninterrupted run would have validated at this step it has validated; once is enough.
            self.config.trainer.val_before_train = self.config.trainer.val_only
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
        """Keep the lines of the steps that are kept, drop the others: verl's file logger starts an empty file, ours appends."""
        logger_file = self.logger.logger.get("file") if self.logger is not None else None
        if logger_file is not None:
            for line in run_logs.up_to(self._metrics_before, self.global_steps):
                logger_file.fp.write(line.encode() + b"\n")
        gate = self.run_dir / "gate.jsonl"
        kept = run_logs.up_to(run_logs.complete_lines(gate), self.global_steps)
        gate.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

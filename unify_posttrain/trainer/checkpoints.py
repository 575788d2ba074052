"""Checkpoints of a run: verl's files, our own state beside them, a marker when all is written; and the way back."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, open_dict

from unify_posttrain import __version__
from unify_posttrain.runs import continuity, run_logs, state
from unify_posttrain.runs.lineage import lineage_in
from unify_posttrain.runs.origin import ORIGIN, check_origin, origin
from unify_posttrain.trainer.demonstrator import Demonstrator
from unify_posttrain.trainer.loader import TrainLoader
from unify_posttrain.trainer.phases import PhaseClock
from unify_posttrain.trainer.port import ActorPort
from unify_posttrain.trainer.replayer import Replayer
from unify_posttrain.trainer.validation import mean_accuracy

logger = logging.getLogger(__name__)


class CheckpointError(Exception):
    """A checkpoint could not be written."""


class Checkpoints:
    """Saves and restores what a run must remember, and knows whether the step of a checkpoint has been validated.

    Args:
        config: of the run; `trainer.val_*` are changed to what a resume makes of them, for verl to read.
        clock, demonstrator, replayer, loader: whose state is saved; a run without demonstrations has no demonstrator.
        logs: which a resume cuts back.
    """

    def __init__(
        self,
        config: DictConfig,
        clock: PhaseClock,
        demonstrator: Demonstrator | None,
        replayer: Replayer,
        loader: TrainLoader,
        logs: run_logs.ResumableLogs,
    ) -> None:
        self.config, self.clock = config, clock
        self.demonstrator, self.replayer, self.loader, self.logs = demonstrator, replayer, loader, logs
        # As the run was started: verl changes some of it, and so does a resume.
        self.settings = continuity.settings(config)
        self.lineage = lineage_in(config.trainer.run_dir)
        self.latest: Path | None = None  # the folder that this run wrote or was resumed from
        self._validated = -1  # the step that was validated last
        self._validation_due = False  # the step resumed from has not been validated: the process before ended too early
        self._line_held_back: Mapping[str, Any] = {}  # its metrics, logged together with that validation

    def holds(self, step: int) -> bool:
        """Whether a step is saved."""
        return self.latest is not None and state.step_of(self.latest) == step

    # The way there

    def save(self, step: int, write: Callable[[], None], line: Callable[[], Mapping[str, float]]) -> None:
        """Write, mark as complete, and only then delete what `trainer.max_actor_ckpt_to_keep` no longer wants.

        Args:
            write: verl's own saving.
            line: what will be logged of the step, as far as it is known; called once verl's files are written.

        Raises:
            CheckpointError: it could not be written, and why; the part that was is removed.
        """
        trainer = self.config.trainer
        checkpoints = Path(trainer.default_local_dir)
        folder = checkpoints / f"global_step_{step}"
        keep = trainer.get("max_actor_ckpt_to_keep")
        try:
            with open_dict(self.config):  # verl would delete the old before the new is written, with 1 the last one there is
                trainer.max_actor_ckpt_to_keep = trainer.max_critic_ckpt_to_keep = None
            write()
            self._write_own(folder, step, line())
        except Exception as error:
            why = self._cause(error, folder)
            shutil.rmtree(folder, ignore_errors=True)
            raise CheckpointError(f"{folder} could not be written{why}") from error
        finally:
            trainer.max_actor_ckpt_to_keep = keep
        self.latest = folder
        state.keep_newest(checkpoints, keep, self.lineage)

    @staticmethod
    def _cause(error: Exception, folder: Path) -> str:
        """The error in its own words. The disk is spoken of only if it is to blame: the system says so, or what is free is less
        than the part that was written (torch's writer tells no reason)."""
        lines = str(error).strip().splitlines()
        own = f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"
        free, written = (
            shutil.disk_usage(folder.parent).free,
            sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        )
        if isinstance(error, OSError) or free < written:
            return f"; {free / 1e9:.2f} GB were free on its disk ({own})"
        return f": {own}"

    def _write_own(self, folder: Path, step: int, line: Mapping[str, float]) -> None:
        own = {
            "format": state.FORMAT,
            "version": __version__,
            "global_step": step,
            "run": None if self.lineage is None else self.lineage.run,
            "lineage": None if self.lineage is None else self.lineage.state,
            "identity": state.identity(self.config),
            ORIGIN: origin(self.config),
            "settings": self.settings,
            "demonstrations": None if self.demonstrator is None else self.demonstrator.state,
            "batches": self.loader.batches,
            "replay": self.replayer.state,
        }
        state.write_json(folder / state.STATE, own)
        state.write_json(folder / state.LINE, {"step": step, "data": line})
        self._write_phase(folder, validated=self._validated == step)
        state.mark_complete(folder)

    def _write_phase(self, folder: Path, validated: bool) -> None:
        state.write_json(folder / state.PHASE, {**self.clock.state, "validated": validated})

    # Validation, which follows the checkpoint of its step: a resume must know of it, and makes up for it otherwise.

    def note_validation(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Tell the clock and the step's checkpoint how a validation ended, if the metrics hold one."""
        accuracy = mean_accuracy(metrics)
        if accuracy is None:
            return
        self.clock.validated(accuracy)
        self._validated = step
        if self.holds(step):
            self._write_phase(self.latest, validated=True)

    def with_line_held_back(self, step: int, metrics: dict[str, Any]) -> dict[str, Any]:
        """Metrics of a validation; of the one that a resume makes up for, together with those of its step."""
        if not self._validation_due:
            return metrics
        self._validation_due = False
        self.note_validation(step, metrics)
        return {**self._line_held_back, **metrics}

    # The way back

    def load(self, port: ActorPort, total_steps: int, read: Callable[[], Any], file_logger: Any | None) -> int:
        """Go on from the checkpoint that `trainer.resume_mode` means, if there is one.

        Args:
            port: to the workers, which are told the phase.
            total_steps: of the run.
            read: verl's own loading, which reads `trainer.resume_from_path`.
            file_logger: verl's; None if it is not among the loggers.

        Returns:
            the step that was saved; 0 for a run that begins.

        Raises:
            ValueError: the checkpoint is not usable, or another run's; names the remedy.
        """
        folder = state.resume_folder(self.config)
        if folder is None:
            self._restore_logs(0, file_logger)
            self.clock.announce(port, total_steps)
            return 0
        own = state.read_state(folder)
        state.check_identity(own, self.config, folder)
        check_origin(own, folder)
        for remark in continuity.remarks(own or {}, self.settings):
            logger.warning(remark)
        self._note_what_is_due(folder, total_steps)
        if folder.parent.resolve() == Path(self.config.trainer.default_local_dir).resolve():
            self.latest = folder  # another run's checkpoint is read, never written to
        if (folder / state.PHASE).exists():
            self.clock.state = json.loads((folder / state.PHASE).read_text(encoding="utf-8"))
        self.clock.announce(port, total_steps)  # before the moments are loaded, which a phase begins without
        with self._told_to_verl(folder):
            read()
        step = state.step_of(folder)
        self._restore_own(own or {}, step)
        self._restore_logs(step, file_logger)
        return step

    @contextmanager
    def _told_to_verl(self, folder: Path) -> Iterator[None]:
        """Settings from which verl reads what to load; afterwards they say again what the user has said."""
        trainer = self.config.trainer
        said = trainer.resume_mode, trainer.resume_from_path
        with open_dict(self.config):
            trainer.resume_mode, trainer.resume_from_path = "resume_path", str(folder.resolve())
        try:
            yield
        finally:
            trainer.resume_mode, trainer.resume_from_path = said

    def _note_what_is_due(self, folder: Path, total_steps: int) -> None:
        """Whether verl is to validate before it trains."""
        trainer = self.config.trainer
        with open_dict(self.config):
            # What an uninterrupted run would have validated at this step is validated once: before the interruption or now.
            self._validation_due = state.awaits_validation(folder, self.config, total_steps)
            last = self._validation_due and state.step_of(folder) >= total_steps
            trainer.val_only = trainer.val_only or last
            trainer.val_before_train = trainer.val_only or self._validation_due

    def _restore_own(self, own: Mapping[str, Any], step: int) -> None:
        if own.get("demonstrations") is not None and self.demonstrator is not None:
            self.demonstrator.state = own["demonstrations"]
        if own.get("replay") is not None:
            self.replayer.state = own["replay"]
        self.loader.restore(own.get("batches", step))

    def _restore_logs(self, step: int, file_logger: Any | None) -> None:
        """Put back the lines of the steps that are kept; the one of a step that is still to be validated waits for that."""
        line = None if self.latest is None else self.latest / state.LINE
        entries = [] if file_logger is None else self.logs.kept(step, line)
        if self._validation_due:
            self._line_held_back = next((entry["data"] for entry in entries if entry["step"] == step), {})
            entries = [entry for entry in entries if entry["step"] != step]
        self.logs.restore(step, entries, None if file_logger is None else file_logger.fp)

"""A run that can be interrupted: asked to leave it saves and leaves, and a step that hangs ends with an error."""

from __future__ import annotations

from typing import Any

from verl.experimental.separation.ray_trainer import SeparateRayPPOTrainer
from verl.utils.debug import marked_timer

from unify_posttrain.runs.signals import PreemptedError, StopRequest, time_limit
from unify_posttrain.trainer.checkpointing import Checkpointing


class Preemptible(Checkpointing, SeparateRayPPOTrainer):
    """Part of FusionTrainer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stop = StopRequest()

    @property
    def leaves(self) -> bool:
        """Whether this step is the last one of this process, though not of the run: nothing more than saving is done for it."""
        return bool(self.stop) and not self.is_last_step

    def fit(self) -> None:
        with self.stop.listening():
            try:
                super().fit()
            finally:
                if getattr(self, "progress_bar", None) is not None:
                    self.progress_bar.close()  # it would draw itself once more below the last line, which says how the run ended

    def fit_step(self, batch_dict: Any = None) -> None:
        """
        Raises:
            StepTimeoutError: the step takes longer than `trainer.step_timeout`.
            PreemptedError: the step is done and saved, and the process was asked to leave.
        """
        step = self.global_steps
        with time_limit(self.config.trainer.step_timeout, f"step {step}"):
            super().fit_step(batch_dict)
        if self.leaves and self._saved_at(step):  # else the signal came too late for this step; the next one heeds it
            raise PreemptedError(
                f"{self.stop.signal.name}: step {step} is saved in {self._saved}; the same command goes on from there"
            )

    def _fit_save_checkpoint(self) -> None:
        super()._fit_save_checkpoint()
        if self.leaves and not self._saved_at(self.global_steps):
            with marked_timer("save_checkpoint", self.timing_raw, color="green"):
                self._save_checkpoint()

    def _fit_validate(self) -> None:
        if not self.leaves:  # the next process makes up for it
            super()._fit_validate()

    def _fit_postprocess_step(self) -> None:
        if self.leaves and not self._saved_at(self.global_steps):  # asked while the engine woke or the step was validated
            self._sleep_engine()
            self._save_checkpoint()
        super()._fit_postprocess_step()

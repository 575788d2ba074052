"""The log-prob stages of a step: only rows of which a term reads the result, and what else is measured at its start."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from verl import DataProto

from unify_posttrain.algorithms import Algorithm
from unify_posttrain.experience.ragged import Source, Spans, gather, token_counts, zeros
from unify_posttrain.objective import Entropy, token_class
from unify_posttrain.trainer.comparison import ACTOR, ENGINE, correction_metrics, engine_hidden, probability_metrics
from unify_posttrain.trainer.mixed_batch import KIND_COLUMN
from unify_posttrain.trainer.port import ActorPort
from unify_posttrain.trainer.step import Step
from unify_posttrain.workers.transport import travelling

# What verl logs in the log-prob stage; reported as 0 in a step that needs no log-probabilities, so that keys do not come and go.
LOG_PROB_METRICS = ("actor/entropy", "perf/mfu/actor_infer")
ROLLOUT_PROB_METRICS = tuple(
    f"training/rollout_{name}"
    for name in ("probs_diff_valid", "probs_diff_max", "probs_diff_mean", "probs_diff_std", "actor_probs_pearson_corr")
)
START_ENTROPYS = "start_entropys"
BATCH_ENTROPY = "batch_entropy"

Stage = Callable[[DataProto], DataProto]


class LogProbs:
    """Runs verl's log-prob stages on the rows that need them.

    With one optimizer step per batch the update takes the policy's own probabilities for those of the start of the step
    (`objective.update.old_is_current`), and so does the first of several under `fusion.first_step_is_current`. What is computed
    here for its sampled tokens is overwritten: it serves `actor/entropy` and the comparison of engine and actor alone, which need
    not be looked at in every step. Under `fusion.engine_log_probs_are_old` the same holds for all sampled tokens: an engine that
    does what the actor does has computed theirs already.

    Args:
        port: the workers.
        warmup: `trainer.critic_warmup`, before which the actor is not updated.
        epochs: `actor_rollout_ref.actor.ppo_epochs`.
        frequency: `trainer.old_log_prob_freq`: of the steps whose values would be overwritten, every how many-th computes them, the
            first one included; 0: none.
        compared: rollouts carry the engine's log-probabilities, which verl's stage compares with the actor's.
        first_is_current: `fusion.first_step_is_current`.
        engine_is_old: `fusion.engine_log_probs_are_old`, and the engine is exact (:func:`engine_is_exact`).
        reference: rows that need the reference policy: `none`, `read` (by a term), or `all` (by verl, with
            `algorithm.use_kl_in_reward`).
        corrects: verl's advantage stage compares them once more (`algorithm.rollout_correction` is not null).
    """

    def __init__(
        self,
        port: ActorPort,
        warmup: int,
        epochs: int,
        frequency: int,
        compared: bool,
        first_is_current: bool,
        engine_is_old: bool,
        reference: str,
        corrects: bool,
    ) -> None:
        self.port, self.warmup, self.epochs, self.frequency, self.corrects = port, warmup, epochs, frequency, corrects
        self.compared, self.first_is_current, self.reference_rows = compared, first_is_current, reference
        self.engine_is_old = engine_is_old
        self.complete = True  # every sampled token of the last batch has its old log-probability

    @classmethod
    def from_config(cls, config: Any, port: ActorPort, use_reference: bool, sees: bool = False) -> LogProbs:
        return cls(
            port,
            warmup=config.trainer.critic_warmup,
            epochs=config.actor_rollout_ref.actor.ppo_epochs,
            frequency=config.trainer.old_log_prob_freq,
            compared=bool(config.actor_rollout_ref.rollout.calculate_log_probs),
            first_is_current=config.fusion.first_step_is_current,
            engine_is_old=config.fusion.engine_log_probs_are_old and engine_is_exact(config, sees),
            reference=("all" if config.algorithm.use_kl_in_reward else "read") if use_reference else "none",
            corrects=config.algorithm.get("rollout_correction") is not None,
        )

    def old(self, step: Step, batch: DataProto, stage: Stage) -> tuple[DataProto, dict[str, float]]:
        """Old log-probabilities, and the mean entropy of each mini-batch where a term reads it.

        Args:
            stage: verl's, which asks `present` for log-probabilities.

        Returns:
            the batch, and verl's comparison of engine and actor; or zeros in place of all metrics of a stage that did not run
            because the algorithm does not need it. What it only does not need in this step is not measured, and not reported as 0.
        """
        algorithm = step.algorithm
        reads_entropy = bool(algorithm.token_classes_reading(BATCH_ENTROPY))
        streams = ("old_log_probs", START_ENTROPYS) if reads_entropy else ("old_log_probs",)
        classes = algorithm.token_classes_reading("old_log_probs") | ({"trained"} if reads_entropy else set())
        needed = rows_with(batch, classes)
        read = self._read(step, batch, classes, needed)
        due = self.frequency > 0 and (step.number - 1) % self.frequency == 0
        known = needed & self._known_to_engine(step, batch, classes)
        computed = needed if due else read & ~known
        compared: dict[str, float] = {}

        def comparing(part: DataProto) -> DataProto:
            with engine_hidden(part):
                part = stage(part)
            _adopt_given(part)
            compared.update(probability_metrics(part))
            return part

        batch, ran = self._on_rows(batch, computed, streams, comparing)
        adopted = (known & ~computed).unsqueeze(-1)
        if bool(adopted.any()):
            batch.batch[ACTOR] = torch.where(adopted, batch.batch[ENGINE].float(), batch.batch[ACTOR])
        self.complete = bool((computed | ~_with_sampled_tokens(batch)).all())
        entropys = batch.batch.pop(START_ENTROPYS) if START_ENTROPYS in batch.batch else None
        if reads_entropy:
            mask = batch.batch["response_mask"]
            batch.batch[BATCH_ENTROPY] = batch_entropy(entropys, mask, self.port.ranks, step.mini_batches)
        absent = (*LOG_PROB_METRICS, *(ROLLOUT_PROB_METRICS if self.compared else ()))
        return batch, compared if ran or bool(needed.any()) else dict.fromkeys(absent, 0.0)

    @contextmanager
    def comparing(self, batch: DataProto, metrics: dict[str, Any]) -> Iterator[None]:
        """Around verl's advantage stage, in place of its own comparison of engine and actor. Its metrics are added, unless nobody
        computed the old log-probabilities of some row."""
        if self.complete and self.corrects:
            metrics.update(correction_metrics(batch))
        with engine_hidden(batch):
            yield

    def _read(self, step: Step, batch: DataProto, classes: Collection[str], needed: Tensor) -> Tensor:
        """(B,) which of the rows in need are read before they are overwritten, if they are: those with given tokens
        (`prefix_mask`), which the update leaves alone, and all where the advantage, the KL in the reward or a batch entropy is made
        of them."""
        overwrites = self.epochs == 1 and (step.mini_batches == 1 or self.first_is_current)
        if not overwrites or self._read_by_others(step):
            return needed
        read = needed & (mini_batch_of(len(batch), self.port.ranks, step.mini_batches) > 0)  # by the steps after the first
        if "prefix_mask" in batch.batch:
            read = read | rows_with(batch, classes, batch.batch["prefix_mask"].bool())
        return read

    def _read_by_others(self, step: Step) -> bool:
        """Than terms that the update sums up, for which rounding is no matter: the advantage, the KL in the reward, and a batch
        entropy, which comes with them."""
        algorithm = step.algorithm
        entropy = bool(algorithm.token_classes_reading(BATCH_ENTROPY))
        return "old_log_probs" in algorithm.advantage.streams or self.reference_rows == "all" or entropy

    def _known_to_engine(self, step: Step, batch: DataProto, classes: Collection[str]) -> Tensor:
        """(B,) which rows' old log-probabilities the engine has sent with what it sampled: all but those with given tokens."""
        if not self.engine_is_old or ENGINE not in batch.batch or self._read_by_others(step):
            return torch.zeros(len(batch), dtype=torch.bool)
        if "prefix_mask" not in batch.batch:
            return torch.ones(len(batch), dtype=torch.bool)
        return ~rows_with(batch, classes, batch.batch["prefix_mask"].bool())

    def present(self, algorithm: Algorithm, batch: DataProto, step: int) -> tuple[DataProto, float]:
        """Log-probabilities under the present policy: in place of the method that verl's stage calls.

        Keeps the entropies that verl drops, and has none computed that nobody reads.
        """
        output, mfu = self.port.log_probs(batch, entropy=self._entropy_is_read(algorithm, step))
        batch.batch[START_ENTROPYS] = output.batch["entropys"]
        return output, mfu

    def _entropy_is_read(self, algorithm: Algorithm, step: int) -> bool:
        """By a term, or as `actor/entropy`: an update with an entropy bonus reports that metric itself, over this stage's."""
        if algorithm.token_classes_reading(BATCH_ENTROPY):
            return True
        updates = self.warmup == 0 or step >= self.warmup
        return not (updates and any(isinstance(term.loss, Entropy) for term in algorithm.terms))

    def reference(self, algorithm: Algorithm, batch: DataProto, stage: Stage) -> DataProto:
        """Log-probabilities of the reference policy."""
        if self.reference_rows == "none":
            return batch
        if self.reference_rows == "all":
            return stage(batch)
        needed = rows_with(batch, algorithm.token_classes_reading("ref_log_prob"))
        return self._on_rows(batch, needed, ("ref_log_prob",), stage)[0]

    def _on_rows(self, batch: DataProto, needed: Tensor, streams: tuple[str, ...], stage: Stage) -> tuple[DataProto, bool]:
        """Run a stage on the rows (B,) that need it; the others get zeros, which nobody reads.

        Returns:
            the batch, and whether the stage ran.
        """
        if bool(needed.all()):
            return stage(batch), True
        values = {stream: zeros(batch.batch["responses"].shape, torch.float32) for stream in streams}
        if bool(needed.any()):
            index = needed.nonzero().squeeze(-1).numpy()
            # As many rows as the ranks can share: the first ones again.
            filled = np.resize(index, -(-len(index) // self.port.ranks) * self.port.ranks)
            selected = travelling(batch).select_idxs(filled)
            selected.batch["response_mask"][len(index) :] = 0  # these must not enter verl's entropy and debug metrics
            computed = {stream: value.float() for stream, value in stage(selected).batch.items() if stream in streams}
            spans = Spans.of(dict(selected.batch.items()))
            values = gather([Source(computed, np.arange(len(index)), index, spans)], len(batch))
        for stream in streams:
            batch.batch[stream] = values[stream]
        return batch, bool(needed.any())


def _adopt_given(batch: DataProto) -> None:
    """In place: tokens that the engine did not sample get the actor's log-probability, so that no comparison sees them."""
    tensors = batch.batch
    if "prefix_mask" in tensors and ENGINE in tensors:
        for row in np.flatnonzero(token_counts(tensors["prefix_mask"])):
            given = tensors["prefix_mask"][row]
            tensors[ENGINE][row, given] = tensors[ACTOR][row, given].to(tensors[ENGINE].dtype)


def engine_is_exact(config: Any, sees: bool) -> bool:
    """Whether the engine draws from what the actor computes, so that its log-probabilities are the actor's but for rounding: the
    same library and precision, all tokens allowed. A model that `sees` never draws the tokens that stand for pictures."""
    rollout, fsdp = config.actor_rollout_ref.rollout, config.actor_rollout_ref.actor.fsdp_config
    whole = rollout.top_p == 1 and rollout.top_k in (-1, 0) and rollout.temperature > 0 and not sees
    precise = rollout.dtype == fsdp.dtype == "float32" and fsdp.model_dtype in ("fp32", "float32")
    return rollout.name == "hf" and whole and precise


def rows_with(batch: DataProto, classes: Collection[str], among: Tensor | None = None) -> Tensor:
    """(B,) whether a row has a token of one of the classes, `among` (B, T) of its tokens if given. A batch that was not mixed has
    rollouts alone, and goes through verl's stage as a whole."""
    if KIND_COLUMN not in batch.non_tensor_batch:
        return torch.ones(len(batch), dtype=torch.bool)
    needed = torch.zeros(len(batch), dtype=torch.bool)
    for which in classes:
        tokens = token_class(batch.batch, which)
        needed |= (tokens if among is None else tokens & among).any(dim=-1)
    return needed


def _with_sampled_tokens(batch: DataProto) -> Tensor:
    """(B,) whether a row has a trained token that the engine sampled."""
    trained = batch.batch["response_mask"].bool()
    return (trained & ~batch.batch["prefix_mask"].bool() if "prefix_mask" in batch.batch else trained).any(dim=-1)


def mini_batch_of(rows: int, ranks: int, mini_batches: int) -> Tensor:
    """(rows,) the mini-batch that each row goes to: rank r gets the blocks r·S to r·S + S - 1, one for each of its S steps."""
    return torch.arange(rows) // max(1, rows // (ranks * mini_batches)) % mini_batches


def batch_entropy(entropys: Tensor, response_mask: Tensor, ranks: int, mini_batches: int) -> Tensor:
    """(B,) mean entropy over the trained tokens of the mini-batch that a row belongs to.

    Args:
        entropys, response_mask: (B, T), rows in the order in which they go to ranks and mini-batches: block r·S + m of equal size.
        ranks, mini_batches: R and S.
    """
    mask = response_mask.bool()
    mini = mini_batch_of(len(mask), ranks, mini_batches)
    totals = torch.zeros(mini_batches).index_add(0, mini, torch.where(mask, entropys.float(), 0.0).sum(dim=-1))
    tokens = torch.zeros(mini_batches).index_add(0, mini, mask.sum(dim=-1).float())
    return (totals / tokens.clamp(min=1))[mini]

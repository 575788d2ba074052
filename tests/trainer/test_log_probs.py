"""The log-prob stages, through verl's own code with workers that answer at once: which rows are computed, and batch entropies."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from verl import DataProto
from verl.experimental.separation.ray_trainer import SeparateRayPPOTrainer

from unify_posttrain.algorithms import Algorithm, Settings
from unify_posttrain.algorithms.srft import SRFT
from unify_posttrain.experience.rows import DEMONSTRATION, PADDING, ROLLOUT
from unify_posttrain.trainer.fusion_trainer import FusionTrainer
from unify_posttrain.trainer.log_probs import (
    BATCH_ENTROPY,
    LOG_PROB_METRICS,
    ROLLOUT_PROB_METRICS,
    LogProbs,
    batch_entropy,
    engine_is_exact,
    mini_batch_of,
)
from unify_posttrain.trainer.mixed_batch import KIND_COLUMN
from unify_posttrain.trainer.port import WorkerPort
from unify_posttrain.trainer.step import Step
from unify_posttrain.workers.micro_batches import CALCULATE_ENTROPY

WIDTH = 4
ACTOR_ALONE = "fusion.engine_log_probs_are_old=false"
TENSORS = ("responses", "response_mask", "attention_mask", "rollout_log_probs")


class Workers:
    """log π of a token is -token/100, its entropy token/10; remembers which rows it was asked for, and whether for entropies."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.wanted: list[bool] = []

    def compute_log_prob(self, batch: DataProto) -> DataProto:
        self.asked.append(list(batch.non_tensor_batch["uid"]))
        self.wanted.append(batch.meta_info[CALCULATE_ENTROPY])
        tokens = batch.batch["responses"].float()
        return DataProto.from_dict(tensors={"old_log_probs": -tokens / 100, "entropys": tokens / 10})

    def compute_ref_log_prob(self, batch: DataProto) -> DataProto:
        self.asked.append(list(batch.non_tensor_batch["uid"]))
        return DataProto.from_dict(tensors={"ref_log_prob": -batch.batch["responses"].float() / 50})


class Stages(FusionTrainer):
    """A trainer of which only the log-prob stages are used."""

    def __init__(
        self, config: DictConfig, algorithm: Algorithm, ranks: int = 1, mini_batches: int = 1, step: int = 1, reference: bool = True
    ) -> None:
        self.config, self.use_reference_policy, self.use_legacy_worker_impl = config, reference, "enable"
        self.metrics, self.timing_raw = {}, {}
        self.workers = Workers()
        self.port = WorkerPort(self.workers, self.workers, ranks)
        self.log_probs = LogProbs.from_config(config, self.port, reference)
        self.step = Step(step, algorithm, mini_batches)
        self.mixer = SimpleNamespace(turns=None)

    @property
    def asked(self) -> list[list[str]]:
        return self.workers.asked


@pytest.fixture(scope="session")
def stages(composed: Callable[..., DictConfig], algorithm: Callable[..., Algorithm]) -> Callable[..., Stages]:
    def build(name: str, *overrides: str, **keys: int) -> Stages:
        flags = (f"algorithm={name}", *overrides)
        return Stages(composed(*flags), algorithm(*flags), **keys)

    return build


def rows(kinds: list[int], hints: tuple[int, ...] = (), mixed: bool = True) -> DataProto:
    """Row i's tokens are 10 i, 10 i + 1, ...; three of four are trained. Rows in `hints` begin with a token of a hint."""
    kind = torch.tensor(kinds)
    responses = 10 * torch.arange(len(kinds)).unsqueeze(-1) + torch.arange(WIDTH)
    mask = (torch.arange(WIDTH) < 3).long() * (kind != PADDING).long().unsqueeze(-1)
    prefix = mask.bool() & (kind == DEMONSTRATION).unsqueeze(-1)
    for row in hints:
        mask[row, 0], prefix[row, 0] = 0, True
    columns = {"uid": np.array([f"{row}" for row in range(len(kinds))], dtype=object)}
    tensors = {"responses": responses, "response_mask": mask, "attention_mask": torch.ones_like(mask)}
    tensors["rollout_log_probs"] = -responses / 90
    if mixed:
        columns[KIND_COLUMN], tensors["prefix_mask"] = np.array(kinds, dtype=np.int8), prefix
    return DataProto.from_dict(tensors=tensors, non_tensors=columns)


MIXED = [ROLLOUT, DEMONSTRATION, ROLLOUT, PADDING]


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("hpt", ["0", "2"]),  # π_old of rollouts alone
        ("luffy", ["0", "2"]),  # its demonstrations share the count, not the ratio
        ("chord", ["0", "2"]),
        ("psft", ["1"]),  # ... of demonstrations alone
        ("prefix_rft", ["0", "1", "2"]),
        ("srft", []),  # log-likelihoods need none
        ("sft", []),
    ],
)
def test_only_rows_of_which_a_term_reads_it_are_computed(stages: Callable[..., Stages], name: str, asked: list[str]) -> None:
    it = stages(name)
    batch = it._fit_compute_log_prob(rows(MIXED))
    assert it.asked == ([asked] if asked else [])
    wanted = torch.tensor([str(row) in asked for row in range(4)]).unsqueeze(-1)
    assert torch.equal(batch.batch["old_log_probs"], torch.where(wanted, -batch.batch["responses"].float() / 100, 0.0))
    assert not {"start_entropys", "entropys", BATCH_ENTROPY} & set(batch.batch.keys())
    # the same keys whether or not something was computed
    assert set(it.metrics) >= {*LOG_PROB_METRICS, *ROLLOUT_PROB_METRICS}


def test_an_unmixed_batch_is_left_to_verl(stages: Callable[..., Stages]) -> None:
    it = stages("grpo")
    batch = it._fit_compute_log_prob(rows([ROLLOUT] * 3, mixed=False))
    assert it.asked == [["0", "1", "2"]]
    assert torch.equal(batch.batch["old_log_probs"], -batch.batch["responses"].float() / 100)
    assert "start_entropys" not in batch.batch


def test_rows_are_filled_up_to_the_ranks_without_entering_statistics(stages: Callable[..., Stages]) -> None:
    it, alone = stages("hpt", ranks=4), stages("hpt")
    kinds = [ROLLOUT, ROLLOUT, ROLLOUT, DEMONSTRATION]
    mine, reference = it._fit_compute_log_prob(rows(kinds)), alone._fit_compute_log_prob(rows(kinds))
    assert it.asked == [["0", "1", "2", "0"]]
    assert torch.equal(mine.batch["old_log_probs"], reference.batch["old_log_probs"])
    assert it.metrics == pytest.approx(alone.metrics)


def test_given_tokens_do_not_enter_the_comparison_of_engine_and_actor(stages: Callable[..., Stages]) -> None:
    """A prefix was not sampled by the engine, whose log-probability of it is 0."""
    it = stages("prefix_rft")
    batch = rows([ROLLOUT, ROLLOUT])
    batch.batch["rollout_log_probs"] = -batch.batch["responses"].float() / 100
    batch.batch["prefix_mask"][1, :2] = True
    batch.batch["rollout_log_probs"][1, :2] = 0.0
    it._fit_compute_log_prob(batch)
    assert it.metrics["training/rollout_probs_diff_max"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("name", "asked"), [("uft", ["0", "2"]), ("online_sft", ["0", "2"]), ("hpt", [])])
def test_the_reference_is_asked_for_rows_with_sampled_tokens(stages: Callable[..., Stages], name: str, asked: list[str]) -> None:
    it = stages(name)
    batch = it._fit_compute_ref_log_prob(rows(MIXED, hints=(2,)))
    assert it.asked == ([asked] if asked else [])
    wanted = torch.tensor([str(row) in asked for row in range(4)]).unsqueeze(-1)
    assert torch.equal(batch.batch["ref_log_prob"], torch.where(wanted, -batch.batch["responses"].float() / 50, 0.0))


def test_without_a_reference_policy_there_is_no_stage(stages: Callable[..., Stages]) -> None:
    it = stages("grpo", reference=False)
    assert "ref_log_prob" not in it._fit_compute_ref_log_prob(rows(MIXED)).batch and not it.asked


# Under dynamic sampling (algorithm.filter_groups) a batch of rollouts is a mixed one too: groups were left out of it.


def test_online_sft_knows_its_log_probs_under_dynamic_sampling(stages: Callable[..., Stages]) -> None:
    it = stages("online_sft")
    batch = it._fit_compute_log_prob(rows([ROLLOUT, ROLLOUT, PADDING]))
    assert it.asked == [["0", "1"]]
    assert torch.equal(batch.batch["old_log_probs"][:2], -batch.batch["responses"][:2].float() / 100)


def test_the_kl_in_the_reward_knows_the_reference_under_dynamic_sampling(stages: Callable[..., Stages]) -> None:
    it = stages("dapo", "algorithm.use_kl_in_reward=true")  # no term of it reads ref_log_prob
    batch = it._fit_compute_ref_log_prob(rows([ROLLOUT, ROLLOUT, PADDING]))
    assert torch.equal(batch.batch["ref_log_prob"][:2], -batch.batch["responses"][:2].float() / 50)


@pytest.mark.parametrize(
    ("name", "overrides", "wanted"),
    [
        ("grpo", (), False),  # the update's bonus reports actor/entropy over the stage's
        ("grpo", ("trainer.critic_warmup=5",), True),  # ... unless there is no update
        ("dapo", (), True),  # no bonus: the stage's is the one logged
        ("srft", ("fusion.srft.entropy_scope=batch",), True),
        ("relift", ("actor_rollout_ref.actor.entropy_coeff=0",), True),  # the bonus of its replay is not that of the update
    ],
)
def test_entropies_are_computed_only_if_they_are_read(
    stages: Callable[..., Stages], name: str, overrides: tuple[str, ...], wanted: bool
) -> None:
    it, batch = stages(name, *overrides), rows([ROLLOUT, ROLLOUT], mixed=False)
    output, _ = it._compute_old_log_prob(batch)
    assert it.workers.wanted == [wanted] and CALCULATE_ENTROPY not in batch.meta_info
    batch.select(batch_keys=["responses"]).union(output)  # verl merges meta_info next and refuses differences


# --- What the update overwrites -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "overrides", "mini_batches", "asked"),
    [
        ("hpt", (), 1, []),  # the update puts its own in their place
        ("hpt", (), 2, ["2"]),  # ... and those of the first of two steps
        ("hpt", ("fusion.first_step_is_current=false",), 2, ["0", "2"]),
        ("psft", (), 2, ["1"]),  # given tokens of the first step are read as well
        ("hpt", ("actor_rollout_ref.actor.ppo_epochs=2",), 1, ["0", "2"]),
        ("psft", (), 1, ["1"]),  # ratios of demonstrations stay those of the start of the step
        ("prefix_rft", (), 1, ["1"]),
        ("online_sft", (), 1, ["0", "2"]),  # its advantage is made of them
        ("dapo", ("algorithm.use_kl_in_reward=true",), 1, ["0", "2"]),  # its reward is
        ("srft", ("fusion.srft.entropy_scope=batch",), 1, ["0", "1", "2"]),  # entropies come with them
    ],
)
def test_what_the_update_overwrites_is_computed_only_where_it_is_read_before(
    stages: Callable[..., Stages], name: str, overrides: tuple[str, ...], mini_batches: int, asked: list[str]
) -> None:
    it = stages(name, "trainer.old_log_prob_freq=0", ACTOR_ALONE, *overrides, mini_batches=mini_batches)
    batch = it._fit_compute_log_prob(rows(MIXED))
    assert it.asked == ([asked] if asked else [])
    assert batch.batch["old_log_probs"].shape == batch.batch["responses"].shape
    assert not asked or set(it.metrics) >= {*LOG_PROB_METRICS, *ROLLOUT_PROB_METRICS}
    assert asked or not {*LOG_PROB_METRICS, *ROLLOUT_PROB_METRICS} & set(it.metrics)  # not measured is not zero


def test_the_first_step_is_every_ranks_own() -> None:
    """Block r·S + m of the batch is what rank r takes in its step m."""
    assert mini_batch_of(12, ranks=2, mini_batches=3).tolist() == [0, 0, 1, 1, 2, 2, 0, 0, 1, 1, 2, 2]
    assert mini_batch_of(4, ranks=2, mini_batches=1).tolist() == [0] * 4


@pytest.mark.parametrize(("frequency", "computed"), [(0, []), (1, [1, 2, 3, 4, 5, 6, 7]), (3, [1, 4, 7])])
@pytest.mark.parametrize("mixed", [True, False])
def test_they_are_measured_at_the_first_step_and_every_so_many_later(
    stages: Callable[..., Stages], frequency: int, computed: list[int], mixed: bool
) -> None:
    asked = []
    for step in range(1, 8):
        it = stages("grpo", f"trainer.old_log_prob_freq={frequency}", step=step)
        batch = it._fit_compute_log_prob(rows([ROLLOUT, ROLLOUT], mixed=mixed))
        assert "old_log_probs" in batch.batch  # a term names the stream: it is shipped in any case
        asked += [step] * bool(it.asked)
    assert asked == computed


@pytest.mark.parametrize(
    ("name", "overrides", "mini_batches", "complete"),
    [
        ("hpt", (), 1, True),  # the first step measures
        ("hpt", ("trainer.old_log_prob_freq=0",), 1, False),
        ("hpt", ("trainer.old_log_prob_freq=0",), 2, False),  # half of the rollouts
        ("hpt", ("trainer.old_log_prob_freq=0", "fusion.first_step_is_current=false"), 2, True),
        ("srft", (), 1, False),  # reads none
        ("online_sft", ("trainer.old_log_prob_freq=0",), 1, True),
    ],
)
def test_what_verl_compares_without_the_actors_numbers_is_not_reported(
    stages: Callable[..., Stages], name: str, overrides: tuple[str, ...], mini_batches: int, complete: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Its advantage stage compares all rows of engine and actor, zeros as well."""
    it = stages(name, ACTOR_ALONE, *overrides, mini_batches=mini_batches)
    batch = it._fit_compute_log_prob(rows(MIXED))
    assert it.log_probs.complete is complete
    monkeypatch.setattr(SeparateRayPPOTrainer, "_fit_compute_advantage", lambda self, batch: batch)
    monkeypatch.setattr("unify_posttrain.trainer.fusion_trainer.set_advantages", lambda *_: {})
    it._fit_compute_advantage(batch)
    assert ("rollout_corr/kl" in it.metrics) == complete


# --- What the engine knows already --------------------------------------------------------------------------------------

ENGINE_IS_OLD = ("trainer.old_log_prob_freq=0", "fusion.engine_log_probs_are_old=true", "hardware=cpu")


@pytest.mark.parametrize(
    ("name", "overrides", "asked", "engine"),
    [
        ("hpt", (), [], [0, 2]),  # rollouts are the engine's
        ("hpt", ("actor_rollout_ref.actor.ppo_epochs=2",), [], [0, 2]),
        ("psft", (), ["1"], []),  # demonstrations are not
        ("prefix_rft", (), ["1"], [0, 2]),
        ("online_sft", (), ["0", "2"], []),  # its advantage is made of them
        ("dapo", ("algorithm.use_kl_in_reward=true",), ["0", "2"], []),
        ("srft", ("fusion.srft.entropy_scope=batch",), ["0", "1", "2"], []),  # entropies come with them
        # Engines that do something else than the actor.
        ("hpt", ("actor_rollout_ref.rollout.top_p=0.9",), ["2"], []),
        ("hpt", ("actor_rollout_ref.rollout.top_k=5",), ["2"], []),
        ("hpt", ("actor_rollout_ref.rollout.dtype=bfloat16",), ["2"], []),
        ("hpt", ("actor_rollout_ref.actor.fsdp_config.dtype=bfloat16",), ["2"], []),
        ("hpt", ("actor_rollout_ref.rollout.name=vllm",), ["2"], []),
        ("hpt", (ACTOR_ALONE,), ["2"], []),
    ],
)
def test_the_engines_log_probs_are_old_ones_where_it_does_what_the_actor_does(
    stages: Callable[..., Stages], name: str, overrides: tuple[str, ...], asked: list[str], engine: list[int]
) -> None:
    it, batch = stages(name, *ENGINE_IS_OLD, *overrides, mini_batches=2), rows(MIXED)
    batch = it._fit_compute_log_prob(batch)
    assert it.asked == ([asked] if asked else [])
    tokens, old = batch.batch["responses"].float(), batch.batch["old_log_probs"]
    for row in range(len(MIXED)):
        expected = -tokens[row] / 90 if row in engine else -tokens[row] / 100 if str(row) in asked else torch.zeros(WIDTH)
        assert torch.equal(old[row], expected)
    assert "rollout_log_probs" in batch.batch and not (engine and it.log_probs.complete), "nothing was compared"


def test_rows_with_a_given_beginning_are_computed_if_it_is_read(stages: Callable[..., Stages]) -> None:
    for name, asked in (("prefix_rft", [["1"]]), ("uft", [])):  # uft's hints are taught, without a ratio
        it, batch = stages(name, *ENGINE_IS_OLD, mini_batches=2), rows([ROLLOUT, DEMONSTRATION, ROLLOUT], hints=(2,))
        batch.batch["prefix_mask"][1, 1:] = False
        batch = it._fit_compute_log_prob(batch)
        assert it.asked == asked
        assert torch.equal(batch.batch["old_log_probs"][2], -batch.batch["responses"][2].float() / 90)


def test_a_model_that_sees_draws_from_fewer_tokens_than_the_actor(composed: Callable[..., DictConfig]) -> None:
    config = composed("algorithm=hpt", "hardware=cpu")
    assert engine_is_exact(config, sees=False) and not engine_is_exact(config, sees=True)
    assert (
        config.fusion.engine_log_probs_are_old
        and not composed("algorithm=hpt", "hardware=node_8gpu").fusion.engine_log_probs_are_old
    )


def test_an_unmixed_batch_takes_them_as_a_whole_and_is_measured_now_and_then(stages: Callable[..., Stages]) -> None:
    for step, divisor in ((1, 100), (2, 90)):
        it = stages("grpo", *ENGINE_IS_OLD, "trainer.old_log_prob_freq=10", mini_batches=2, step=step)
        batch = it._fit_compute_log_prob(rows([ROLLOUT] * 4, mixed=False).select(batch_keys=[*TENSORS]))
        assert torch.equal(batch.batch["old_log_probs"], -batch.batch["responses"].float() / divisor)


# --- SRFT's batch entropy --------------------------------------------------------------------------------------------


def test_batch_entropy_by_hand() -> None:
    # one rank, two mini-batches of two rows: (1 + 2 + 3)/3 and (4 + 5 + 6 + 7)/4; what is not trained does not count
    entropys = torch.tensor([[1.0, 2.0, 9.0], [3.0, 9.0, 9.0], [4.0, 5.0, 6.0], [7.0, 9.0, float("nan")]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 0, 0]])
    assert batch_entropy(entropys, mask, ranks=1, mini_batches=2).tolist() == [2.0, 2.0, 5.5, 5.5]
    assert batch_entropy(entropys, mask, ranks=1, mini_batches=1).tolist() == pytest.approx([28 / 7] * 4)
    # two ranks, whose first halves are mini-batch 0: rows 0 and 2, and rows 1 and 3
    assert batch_entropy(entropys, mask, ranks=2, mini_batches=2).tolist() == pytest.approx([3.6, 5.0, 3.6, 5.0])
    assert batch_entropy(entropys, mask, ranks=2, mini_batches=1).tolist() == pytest.approx([4.0] * 4)
    assert batch_entropy(entropys, torch.zeros_like(mask), ranks=1, mini_batches=2).tolist() == [0.0] * 4  # nothing is trained


def test_batch_entropy_is_that_of_what_the_actor_sees_together() -> None:
    """Rank r's rows are block r of the batch, and mini-batch m is block m of those: as the actor splits them."""
    generator = torch.Generator().manual_seed(0)
    ranks, mini_batches, each = 3, 2, 4
    entropys = torch.rand(ranks * mini_batches * each, 5, generator=generator)
    mask = torch.rand(entropys.shape, generator=generator) < 0.6
    found = batch_entropy(entropys, mask.long(), ranks, mini_batches)
    numbers = torch.arange(len(mask))
    for step in range(mini_batches):
        together = torch.cat([part.split(each)[step] for part in numbers.split(mini_batches * each)])
        torch.testing.assert_close(found[together], entropys[together][mask[together]].mean().expand(len(together)))


def test_srft_measures_it_where_its_weights_ask_for_it(stages: Callable[..., Stages], settings: Callable[..., Settings]) -> None:
    it = stages("srft", mini_batches=2)
    it.step.algorithm = SRFT(settings("algorithm=srft").changed({"srft": {"entropy_scope": "batch"}}, {}, "test"))
    batch = it._fit_compute_log_prob(rows(MIXED))
    assert it.asked == [["0", "1", "2"]]  # every trained row, padding excepted
    # entropy is token/10: tokens 0 1 2 and 10 11 12, mean 6, and 20 21 22 beside a row of padding, mean 21
    assert batch.batch[BATCH_ENTROPY].tolist() == pytest.approx([0.6, 0.6, 2.1, 2.1])
    assert "start_entropys" not in batch.batch

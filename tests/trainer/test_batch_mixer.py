"""From prompts to the batch that is trained, for every algorithm: prefixes, plan, mixed rows, streams, advantages; no Ray.

Two prompts of n = 4: `a` has a target, `b` has none. Tokens are small numbers, rollouts are made up, rewards are given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from verl import DataProto
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

from tests.algorithms.cases import CASES, method
from unify_posttrain.algorithms import ALGORITHMS, Algorithm, Settings
from unify_posttrain.experience.demonstrations import Demonstration, DemonstrationReader, demonstration_tensors
from unify_posttrain.experience.plan import BatchPlan
from unify_posttrain.experience.rows import DEMONSTRATION, PADDING, ROLLOUT, object_column
from unify_posttrain.experience.rules import NO_PREFIX
from unify_posttrain.experience.transcript import TurnFrame
from unify_posttrain.objective import compute_loss, count_members, token_class
from unify_posttrain.trainer import demonstrator as demonstrators
from unify_posttrain.trainer.advantages import set_advantages
from unify_posttrain.trainer.batch_mixer import BatchMixer
from unify_posttrain.trainer.demonstrator import Demonstrator
from unify_posttrain.trainer.mixed_batch import KIND_COLUMN
from unify_posttrain.trainer.prompts import Generated, Prompts
from unify_posttrain.trainer.response_prefixes import draw_response_prefixes, prefix_columns

PROMPT, RESPONSE, EOS, PAD, N = 2, 8, 2, 0, 4
STAGES = {"advantages", "old_log_probs", "ref_log_prob", "batch_entropy"}  # what verl's stages add afterwards
TARGET = "56785"


def encode(text: str) -> list[int]:
    return [int(character) for character in text]


@pytest.fixture(scope="session")
def small(settings: Callable[..., Settings]) -> Callable[..., Algorithm]:
    """small("luffy", shaping={"name": "reject"}): the composed algorithm at n = 4 and a horizon of 8 tokens."""

    def build(name: str, **fusion: Any) -> Algorithm:
        plain = settings(f"algorithm={name}")
        hints = {"uft": {"max_new_tokens": 4, **fusion.pop("uft", {})}} if "uft" in plain.fusion.own else {}
        return ALGORITHMS[name](plain.changed({"group_size": N, "horizon": RESPONSE, **hints, **fusion}, {}, "test"))

    return build


def prompts(targets: Sequence[Any] = (TARGET, None), hints: bool = False) -> DataProto:
    rows = len(targets)
    columns = {
        "uid": object_column(list("abcd"[:rows])),
        "row_id": np.arange(rows) + 30,
        "raw_prompt": object_column([[{"role": "user", "content": str(row)}] for row in range(rows)]),
        "target": object_column(list(targets)),
        "target_probs": object_column([[0.5] * len(target or "") for target in targets]),
        "data_source": object_column(["sums"] * rows),
    }
    if hints:
        columns["hint"] = object_column([["5", "6", "7", "8"]] * rows)
    return DataProto.from_dict(non_tensors=columns)


def score_rows(data: DataProto) -> DataProto:
    """Every demonstration is right."""
    scores = torch.zeros(data.batch["responses"].shape)
    scores[:, 0] = 1.0
    columns = {"acc": np.ones(len(data))}
    return DataProto.from_dict(tensors={"rm_scores": scores}, non_tensors=columns, meta_info={"reward_extra_keys": ["acc"]})


class Step:
    """A training step of an algorithm up to its advantages."""

    def __init__(self, built: Algorithm, step: int = 1, ranks: int = 1, mini_batches: int = 1) -> None:
        self.built, self.step, self.ranks, self.mini_batches = built, step, ranks, mini_batches
        reader = DemonstrationReader(
            encode, lambda messages: ("1", [1]), EOS, RESPONSE, with_probabilities=built.fusion.shaping.name == "target_prob",
            frame=lambda: TurnFrame((3,), (4,)),
        )  # fmt: skip
        needs_target = built.experience.needs_target
        self.demonstrator = Demonstrator(reader, score_rows, 1, PROMPT, RESPONSE, PAD) if needs_target else None
        self.mixer = BatchMixer(self.demonstrator, 1.0, log_probs=True)

    def mix(
        self, batch: DataProto, solved: dict[str, list[float]], changed: Callable[[DataProto], None] | None = None
    ) -> DataProto:
        """`solved`: uid -> scores of its rollouts, as many as the rule asks for (or more: the rest is not needed); `changed` may
        make others of them."""
        found = self.demonstrator.read(self.built.fusion, batch, self.step)[0] if self.demonstrator else {}
        prefixes = draw_response_prefixes(self.built.experience, batch, found, encode, self.step)
        for name in ("target", "target_probs"):
            batch.non_tensor_batch.pop(name, None)
        rollouts = generated(batch, prefixes, solved)
        if changed is not None and rollouts is not None:
            changed(rollouts)
        self.mix_rollouts(Prompts(batch, found, prefixes), rollouts)
        return self.mixed.batch

    def mix_rollouts(self, drawn: Prompts, rollouts: DataProto | None) -> None:
        self.mixed = self.mixer.mix(self.built, Generated(drawn, rollouts), self.ranks, self.mini_batches, self.step)

    def advantages(self, batch: DataProto, old: float = 0.0, reference: float = 0.0) -> dict[str, float]:
        """verl's estimator, then the algorithm's advantage. Log-probabilities are the same on every token."""
        t = batch.batch
        t["token_level_scores"] = t["token_level_rewards"] = t["rm_scores"]
        uids, std = batch.non_tensor_batch["uid"], self.built.fusion.norm_adv_by_std
        t["advantages"], t["returns"] = compute_grpo_outcome_advantage(
            t["rm_scores"], t["response_mask"], uids, norm_adv_by_std_in_grpo=std
        )
        t["old_log_probs"], t["ref_log_prob"] = (torch.full(t["rm_scores"].shape, value) for value in (old, reference))
        return set_advantages(self.built, self.mixed, batch)


def generated(batch: DataProto, prefixes: list, solved: dict[str, list[float]]) -> DataProto | None:
    """Rollouts that the engine would return: prefix, then own tokens 9, to six tokens in all."""
    packed, uids, scores, given = [], [], [], []
    for uid, row in zip(batch.non_tensor_batch["uid"], prefixes, strict=True):
        for number, prefix in enumerate(row):
            packed.append(Demonstration(0, 0, (1,), (*prefix.ids, *[9] * max(1, 6 - len(prefix.ids)))))
            uids.append(uid)
            scores.append(solved[uid][number])
            given.append(prefix)
    if not packed:
        return None
    tensors = demonstration_tensors(packed, PROMPT, RESPONSE, PAD)
    del tensors["prefix_mask"]
    for row, prefix in enumerate(given):
        tensors["response_mask"][row, : len(prefix.ids)] = int(prefix.trained)
    tensors["rm_scores"] = torch.zeros(tensors["responses"].shape)
    tensors["rm_scores"][:, 5] = torch.tensor(scores)
    tensors["rollout_log_probs"] = torch.zeros(tensors["responses"].shape)
    columns = {"uid": object_column(uids), "acc": np.array([float(score >= 1) for score in scores]), **prefix_columns(given)}
    return DataProto.from_dict(tensors=tensors, non_tensors=columns, meta_info={"reward_extra_keys": ["acc"]})


SCORES = {"a": [1.0, 0.0, 0.0, 0.0], "b": [0.0, 1.0, 1.0, 0.0]}


def weights(batch: DataProto) -> set[str]:
    """The streams of the plan's coefficients."""
    return {name for name in dict(batch.batch.items()) if name.endswith("_weight")}


def values(batch: DataProto, name: str = "advantages") -> dict[tuple[str, int], set[float]]:
    """(uid, kind) -> values of a stream on the rows' own tokens, or of a row stream."""
    found: dict[tuple[str, int], set[float]] = {}
    kinds = batch.non_tensor_batch.get(KIND_COLUMN, np.zeros(len(batch), dtype=int))
    for row, (uid, kind) in enumerate(zip(batch.non_tensor_batch["uid"], kinds, strict=True)):
        value = batch.batch[name][row]
        value = value[batch.batch["response_mask"][row].bool()] if value.ndim else value[None]
        found.setdefault((uid, int(kind)), set()).update(round(number, 5) for number in value.tolist())
    return found


# --- every algorithm -------------------------------------------------------------------------------------------------


def one_phase(name: str) -> bool:
    return name != "sft_then_rl"


@pytest.mark.parametrize("name", sorted(filter(one_phase, ALGORITHMS)))
def test_every_stream_that_a_term_names_is_in_the_batch(small: Callable[..., Algorithm], name: str) -> None:
    """... and its loss and gradient on that batch are finite, on any number of ranks."""
    built = small(name, **({"prefix": {"min_ratio": 0.5, "max_ratio": 0.5}} if name == "prefix_rft" else {}))
    for ranks, mini_batches in ((1, 1), (2, 2)):
        step = Step(built, ranks=ranks, mini_batches=mini_batches)
        batch = step.mix(prompts(hints=built.experience.needs_hint), SCORES)
        named = {stream for term in built.terms for stream in term.streams}
        assert named - STAGES - {"scores"} <= set(batch.batch.keys())
        assert len(batch) % (ranks * mini_batches) == 0 or KIND_COLUMN not in batch.non_tensor_batch
        step.advantages(batch, old=-1.0, reference=-1.2)
        tensors = {**batch.batch, "log_probs": torch.full((len(batch), RESPONSE), -1.1, requires_grad=True)}
        tensors["entropys"] = torch.ones(len(batch), RESPONSE)
        loss, _ = compute_loss(built.terms, tensors)
        gradient = torch.autograd.grad(loss, tensors["log_probs"])[0]
        assert torch.isfinite(loss) and torch.isfinite(gradient).all() and gradient.any()
        if KIND_COLUMN in batch.non_tensor_batch:
            padding = torch.from_numpy(batch.non_tensor_batch[KIND_COLUMN] == PADDING)
            assert not gradient[padding].any() and not tensors["advantages"][padding].any()


@pytest.mark.parametrize("name", sorted(filter(one_phase, ALGORITHMS)))
def test_only_coefficients_that_a_term_reads_are_shipped(small: Callable[..., Algorithm], name: str) -> None:
    """A batch plan weighs the rows of the terms that say so, as of HPT's gate; others weigh theirs alike, by token class."""
    built = small(name)
    batch = Step(built, ranks=3).mix(prompts(hints=built.experience.needs_hint), SCORES)
    members = {f"{term}_weight": shown for term, _, shown, *_ in CASES[method(name)].terms}
    assert weights(batch) == {stream for stream, shown in members.items() if shown.endswith(f"*{stream}")}


def test_all_rows_of_a_group_carry_its_coefficients(small: Callable[..., Algorithm]) -> None:
    """`a` solves one of three beside its demonstration (x = 1 + 7/3 of the published table), `b` has no demonstration."""
    batch = Step(small("hpt", hpt={"strategy": "soft"}), ranks=5).mix(prompts(), SCORES)
    # x = 10/3: a third of the way from row 3 (.25, 1, .25) to row 4 (.5, .5, .125)
    soft = {"rl_weight": 0.33333, "off_weight": 0.83333, "sft_weight": 0.20833}
    for name, weight in soft.items():
        assert values(batch, name) == {
            ("a", ROLLOUT): {weight},
            ("a", DEMONSTRATION): {weight},
            ("b", ROLLOUT): {float(name == "rl_weight")},
            **{(f"padding-{number}", PADDING): {0.0} for number in range(2)},
        }


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "ppo", "online_sft"])
def test_plain_rollouts_stay_as_verl_made_them(small: Callable[..., Algorithm], name: str) -> None:
    batch = Step(small(name)).mix(prompts(), SCORES)
    assert KIND_COLUMN not in batch.non_tensor_batch
    assert "prefix_mask" not in batch.batch and not weights(batch)


def test_hints_are_attended_and_not_sampled(small: Callable[..., Algorithm]) -> None:
    step = Step(small("uft", uft={"hint_mode": "stage"}))
    batch = step.mix(prompts(hints=True), SCORES)
    hint = token_class(batch.batch, "hint")
    assert hint.sum(dim=-1).tolist() == [4] * 8  # all four sentences at step 1, within the room of 4
    assert not batch.batch["response_mask"][hint].any() and batch.batch["attention_mask"][:, PROMPT:][hint].all()
    step.advantages(batch)
    assert not batch.batch["advantages"][hint].any()
    assert values(batch)["a", ROLLOUT] == {1.5, -0.5}  # 1 of 4 solved: mean .25, deviation .5


# --- advantages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "std", "expected"),
    [
        # n - 1 rollouts and the demonstration: 1 0 0 and 1, mean .5, variance 1/3; b alone: 0 1 1 0
        ("luffy", False, [{0.5, -0.5}, {0.5}, {0.5, -0.5}]),
        ("srft", True, [{0.86602, -0.86602}, {0.86602}, {0.86602, -0.86602}]),
        # the rollouts' own mean 1/3
        ("rl_with_sft_loss", False, [{0.66667, -0.33333}, {0.0}, {0.5, -0.5}]),
        # four rollouts beside the demonstration: mean .25, deviation .5
        ("chord", True, [{1.5, -0.5}, {0.0}, {0.86602, -0.86602}]),
        ("relift", False, [{0.75, -0.25}, None, {0.5, -0.5}]),
    ],
)  # fmt: skip
def test_advantages(small: Callable[..., Algorithm], name: str, std: bool, expected: list) -> None:
    """Of the rollouts of `a`, its demonstration, and the rollouts of `b`."""
    step = Step(small(name, norm_adv_by_std=std))
    batch = step.mix(prompts(), SCORES)
    step.advantages(batch)
    keys = [("a", ROLLOUT), ("a", DEMONSTRATION), ("b", ROLLOUT)]
    assert values(batch) == {key: value for key, value in zip(keys, expected, strict=True) if value is not None}


def test_a_prefixed_rollout_is_compared_within_its_group(small: Callable[..., Algorithm]) -> None:
    step = Step(small("prefix_rft", norm_adv_by_std=False, prefix={"min_ratio": 0.5, "max_ratio": 0.5}))
    batch = step.mix(prompts(), SCORES)
    step.advantages(batch)
    # row 0 of `a` begins with int(6*.5) tokens of the demonstration, is solved, and carries its advantage on all of its tokens
    demo = token_class(batch.batch, "demo")
    assert demo.sum(dim=-1).tolist() == [3, 0, 0, 0, 0, 0, 0, 0]
    assert batch.batch["responses"][0, :3].tolist() == [5, 6, 7]
    assert batch.batch["advantages"][0, :6].tolist() == pytest.approx([0.75] * 6)


def test_a_baseline_of_rollouts_leaves_prefixed_ones_out(small: Callable[..., Algorithm]) -> None:
    step = Step(small("luffy", luffy={"baseline": "rollouts"}, prefix={"min_ratio": 0.5, "max_ratio": 0.5}))
    batch = step.mix(prompts(), SCORES)
    step.advantages(batch)
    assert values(batch)["a", ROLLOUT] == {1.0, 0.0}  # the three on-policy rows all failed: mean 0
    assert values(batch)["b", ROLLOUT] == {0.5, -0.5}


def test_a_phase_has_a_baseline_of_its_own(algorithm: Callable[..., Algorithm]) -> None:
    """LUFFY compares a group with its demonstration; the RL with an SFT loss that follows compares rollouts alone."""
    root = algorithm(
        "algorithm=sft_then_rl",
        "fusion.phases=[{algorithm: luffy, steps: 1}, {algorithm: rl_with_sft_loss}]",
        f"actor_rollout_ref.rollout.n={N}",
        f"data.max_response_length={RESPONSE}",
    )
    for phase, expected in zip(root.phases, ({0.5, -0.5}, {0.66667, -0.33333}), strict=True):
        step = Step(phase.algorithm)
        batch = step.mix(prompts(), SCORES)
        step.advantages(batch)
        assert values(batch)["a", ROLLOUT] == expected


@pytest.mark.parametrize("form", ["analytic", "pseudo"])
def test_online_sft_advantages_and_rewards(small: Callable[..., Algorithm], form: str) -> None:
    # six tokens, log π_old - log π_ref = .2 each: k1 = 1.2; R - .1*1.2
    step = Step(small("online_sft", online_sft={"form": form}))
    batch = step.mix(prompts(), SCORES)
    metrics = step.advantages(batch, old=-1.0, reference=-1.2)
    assert values(batch) == {("a", ROLLOUT): {0.88, -1.12}, ("b", ROLLOUT): {0.88, -1.12}}
    assert ("scores" in batch.batch) == (form == "pseudo")  # whose loss reads R; the analytic one has it in its advantage
    if form == "pseudo":
        assert values(batch, "scores") == {("a", ROLLOUT): {1.0, -1.0}, ("b", ROLLOUT): {1.0, -1.0}}
    assert metrics["fusion/kl_seq"] == pytest.approx(1.2)


def test_online_sft_keeps_a_penalty_beside_the_verdict(small: Callable[..., Algorithm]) -> None:
    """The reward manager's score is the verdict (`acc`) and a penalty; ±1 replaces the verdict alone."""
    step = Step(small("online_sft", online_sft={"form": "pseudo"}))
    rollouts = generated(prompts(), [(NO_PREFIX,) * N] * 2, SCORES)
    rollouts.batch["rm_scores"][:, 5] -= 0.25
    step.mix_rollouts(Prompts(prompts(), {}, []), rollouts)
    batch = step.mixed.batch
    step.advantages(batch)
    assert values(batch, "scores")["a", ROLLOUT] == values(batch)["a", ROLLOUT] == {0.75, -1.25}


def test_what_verls_estimator_computed_stands(small: Callable[..., Algorithm]) -> None:
    """... except on padding, which is in no group and is scored as if it were one."""
    step = Step(small("ppo"), ranks=3)
    rollouts = generated(prompts(), [(NO_PREFIX,) * N] * 2, SCORES)
    rollouts.non_tensor_batch["gold_ok"] = np.array([float(uid != "a") for uid in rollouts.non_tensor_batch["uid"]])
    step.mix_rollouts(Prompts(prompts(), {}, []), rollouts)
    batch = step.mixed.batch
    batch.batch["token_level_scores"] = batch.batch["token_level_rewards"] = batch.batch["rm_scores"]
    batch.batch["advantages"], batch.batch["returns"] = (torch.full((6, RESPONSE), value) for value in (0.7, 0.9))
    assert set_advantages(step.built, step.mixed, batch) == {}
    padding = torch.from_numpy(batch.non_tensor_batch[KIND_COLUMN] == PADDING)
    assert padding.sum() == 2  # 4 rows on 3 ranks
    for name, value in (("advantages", 0.7), ("returns", 0.9)):
        assert torch.equal(batch.batch[name], torch.where(padding.unsqueeze(-1), 0.0, torch.tensor(value)).expand(6, RESPONSE))


def test_a_stream_that_an_advantage_reads_must_be_there(small: Callable[..., Algorithm]) -> None:
    step = Step(small("online_sft"))
    batch = step.mix(prompts(), SCORES)
    batch.batch["token_level_scores"] = batch.batch["token_level_rewards"] = batch.batch["rm_scores"]
    batch.batch["old_log_probs"] = torch.zeros(batch.batch["responses"].shape)
    with pytest.raises(KeyError, match=r"algorithm=online_sft needs \['ref_log_prob'\]"):
        set_advantages(step.built, step.mixed, batch)


# --- streams of single terms -----------------------------------------------------------------------------------------


def test_solved_rows_are_those_of_the_success_field(small: Callable[..., Algorithm]) -> None:
    step = Step(small("srft"), ranks=3)
    batch = step.mix(prompts(), {"a": [1.0, 0.5, 0.0, 0.0], "b": [1.0, 1.5, 0.0, 0.9]})
    assert values(batch, "solved") == {
        ("a", ROLLOUT): {1.0, 0.0},
        ("a", DEMONSTRATION): {1.0},
        ("b", ROLLOUT): {1.0, 0.0},
        ("padding-0", PADDING): {0.0},
    }
    assert int(batch.batch["solved"].sum()) == 1 + 1 + 2  # at least the threshold: 1 of a, its demonstration, 1 and 1.5 of b
    assert torch.equal(batch.batch["solved"] + batch.batch["unsolved"], torch.ones(len(batch)))
    by_field = Step(small("srft", success_key="acc")).mix(prompts(), SCORES)
    assert int(by_field.batch["solved"].sum()) == 1 + 1 + 2


def test_uniform_numbers_belong_to_prompt_and_step(small: Callable[..., Algorithm]) -> None:
    """The same wherever a row is trained: on more ranks, or after a resume."""
    built = small("luffy", shaping={"name": "reject"})

    def drawn(**keys: int) -> dict[str, list]:
        batch = Step(built, **keys).mix(prompts(), SCORES)
        uids = batch.non_tensor_batch["uid"]
        return {uid: batch.batch["uniforms"][list(uids).index(uid)].tolist() for uid in "ab"}

    first = drawn()
    assert drawn(ranks=3, mini_batches=2) == first
    assert first["a"] != first["b"] and drawn(step=2)["a"] != first["a"]
    assert all(0 <= number < 1 for row in first.values() for number in row)


def test_teacher_probabilities_stand_on_the_demonstration(small: Callable[..., Algorithm]) -> None:
    batch = Step(small("luffy", shaping={"name": "target_prob"})).mix(prompts(), SCORES)
    (row,) = np.flatnonzero(batch.non_tensor_batch[KIND_COLUMN] == DEMONSTRATION)
    assert batch.batch["target_probs"][row].tolist() == [0.5] * 5 + [1.0] * 3  # five tokens; EOS has none of its own


@pytest.mark.parametrize(("name", "targets"), [("hpt", (TARGET, TARGET)), ("luffy", (None, None))])
def test_a_batch_without_demonstrations_has_the_stream_too(small: Callable[..., Algorithm], name: str, targets: tuple) -> None:
    """HPT's gate found every prompt solved; LUFFY's prompts had no target."""
    built = small(name, shaping={"name": "target_prob"})
    batch = Step(built).mix(prompts(targets), {"a": [1.0, 1.0, 1.0, 0.0], "b": [0.0, 1.0, 1.0, 0.0]})
    assert not (batch.non_tensor_batch[KIND_COLUMN] == DEMONSTRATION).any()
    named = {stream for term in built.terms for stream in term.streams}
    assert named - STAGES <= set(batch.batch.keys())


def test_a_teacher_needs_whole_demonstrations(small: Callable[..., Algorithm]) -> None:
    """Prefix tokens of a rollout carry no probabilities."""
    for prefix in ({"min_ratio": 0.5}, {"strategy": "linear"}, {"strategy": "reverse_linear"}):
        with pytest.raises(ValueError, match=r"shaping\.name=target_prob needs whole demonstrations"):
            small("luffy", shaping={"name": "target_prob"}, prefix=prefix)


def test_chord_skips_prompts_without_a_target_if_told_to(small: Callable[..., Algorithm]) -> None:
    experience = small("chord", demo={"missing": "skip"}).experience
    assert experience.rollouts(has_demonstration=False) == 0


@pytest.mark.parametrize("name", ["grpo", "hpt", "luffy", "relift"])
def test_a_prompt_that_cannot_be_graded_is_masked_and_counted(small: Callable[..., Algorithm], name: str) -> None:
    """Its rollouts score 0 because its ground truth is unusable, not because they are wrong: nothing of it is trained."""
    built = small(name)
    step = Step(built)
    found = step.demonstrator.read(built.fusion, prompts(), step.step)[0] if step.demonstrator else {}
    solved = {"a": [0.0] * N, "b": [0.0, 1.0, 1.0, 0.0]}
    rollouts = generated(prompts(), [(NO_PREFIX,) * built.experience.rollouts(uid in found) for uid in "ab"], solved)
    usable = np.array([float(uid != "a") for uid in rollouts.non_tensor_batch["uid"]])
    faults = np.zeros(len(rollouts))
    faults[-1] = 1.0
    rollouts.non_tensor_batch |= {"gold_ok": usable, "grader_fault": faults}
    step.mix_rollouts(Prompts(prompts(), found, []), rollouts)
    batch, plan, metrics = step.mixed.batch, step.mixed.plan, step.mixed.metrics
    kept = batch.non_tensor_batch.get(KIND_COLUMN, np.zeros(len(batch))) != PADDING
    assert set(batch.non_tensor_batch["uid"][kept]) == {"b"}
    assert (metrics["fusion/gold_masked"], metrics["fusion/grader_faults"]) == (1.0, 1.0)
    # the other prompt alone makes the rates: 2 of 4 solved, none unsolved
    assert (metrics["fusion/solve_rate"], metrics["fusion/solve_none"], metrics["fusion/prompts_skipped"]) == (0.5, 0.0, 1.0)
    assert plan.to_dict()["groups"][0]["graded"] is False
    assert BatchPlan.from_dict(plan.to_dict()) == plan
    # prompts 30 and 31: solved rollouts and zone of each
    zones = [group.zone for group in plan]
    assert step.mixed.gate_record(Prompts(prompts(), found, []), 7) == {
        "step": 7,
        "groups": [[30, 0, zones[0]], [31, 2, zones[1]]],
    }


def test_the_step_s_algorithm_says_what_counts(small: Callable[..., Algorithm]) -> None:
    """The demonstrator is the run's; what is solved, required or missing is a matter of the phase that a step belongs to."""
    step, lenient = Step(small("hpt")), small("hpt").fusion
    strict = dataclasses.replace(
        lenient, success_threshold=2.0, demo=dataclasses.replace(lenient.demo, require_verified=True, missing="error")
    )
    found, _ = step.demonstrator.read(lenient, prompts((TARGET, TARGET)), 1)
    assert set(found) == {"a", "b"} and all(step.demonstrator.solved(lenient, each) for each in found.values())
    assert not any(step.demonstrator.solved(strict, each) for each in found.values())
    assert step.demonstrator.read(strict, prompts((TARGET, TARGET)), 1)[0] == {}
    assert set(step.demonstrator.read(lenient, prompts((None, TARGET)), 1)[0]) == {"b"}
    with pytest.raises(ValueError, match="training row 30 has no usable target"):
        step.demonstrator.read(strict, prompts((None, TARGET)), 1)


# --- rollouts without a score ----------------------------------------------------------------------------------------


def unscored(rollouts: DataProto, *rows: int) -> DataProto:
    """As `RewardReader.read` leaves rollouts of which the reward function gave some no score."""
    lacking = np.isin(np.arange(len(rollouts)), rows)
    rollouts.batch["rm_scores"][torch.from_numpy(lacking)] = 0.0
    rollouts.non_tensor_batch["acc"] = np.where(lacking, np.nan, rollouts.non_tensor_batch["acc"])
    rollouts.non_tensor_batch["unscored"] = lacking.astype(float)
    return rollouts


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", sorted(filter(one_phase, ALGORITHMS)))
def test_a_rollout_without_a_score_leaves_its_group(small: Callable[..., Algorithm], name: str, ranks: int) -> None:
    """Rollout 1 of `b` has no score: advantages are those of the group without it, and the others are trained."""
    built = small(name, **({"prefix": {"min_ratio": 0.5, "max_ratio": 0.5}} if name == "prefix_rft" else {}))
    step = Step(built, ranks=ranks)
    rows = prompts(hints=built.experience.needs_hint)
    found = step.demonstrator.read(built.fusion, rows, step.step)[0] if step.demonstrator else {}
    prefixes = draw_response_prefixes(built.experience, rows, found, encode, step.step)
    rollouts = generated(rows, prefixes, SCORES)
    of_b = [] if rollouts is None else np.flatnonzero(rollouts.non_tensor_batch["uid"] == "b")
    if not len(of_b):
        return  # nothing is generated
    lost = int(of_b[1])
    step.mix_rollouts(Prompts(rows, found, prefixes), unscored(rollouts, lost))
    batch, metrics = step.mixed.batch, step.mixed.metrics
    kinds = batch.non_tensor_batch.get(KIND_COLUMN, np.zeros(len(batch), dtype=int))
    kept = (kinds == ROLLOUT) & (batch.non_tensor_batch["uid"] == "b")
    assert kept.sum() in (0, len(of_b) - 1), "all of the others, or none of the group"
    assert metrics["fusion/reward_unscored"] == 1.0 and "unscored" not in batch.non_tensor_batch
    assert list(step.mixed.scores["b"]) == [SCORES["b"][number] for number in range(len(of_b)) if number != 1]
    group = next(group for group in step.mixed.plan if group.uid == "b")
    assert group.rollouts == len(of_b) - 1 and group.graded and group.kept in (0, group.rollouts)
    step.advantages(batch, old=-1.0, reference=-1.2)
    tensors = {**batch.batch, "log_probs": torch.full((len(batch), RESPONSE), -1.1, requires_grad=True)}
    tensors |= {"entropys": torch.full((len(batch), RESPONSE), 0.5), "batch_entropy": torch.full((len(batch),), 0.5)}
    loss, _ = compute_loss(built.terms, tensors)
    assert torch.isfinite(loss) and torch.isfinite(batch.batch["advantages"]).all()


def test_the_advantages_are_those_of_the_rows_that_are_left(small: Callable[..., Algorithm]) -> None:
    step = Step(small("dr_grpo"))
    rollouts = unscored(generated(prompts(), [(NO_PREFIX,) * N] * 2, {"a": [1.0, 0.0, 0.0, 0.0], "b": [0.0, 9.0, 1.0, 0.5]}), 5)
    step.mix_rollouts(Prompts(prompts(), {}, []), rollouts)
    batch = step.mixed.batch
    step.advantages(batch)
    # a: 1 of 4 is right, so 1 - 1/4 and -1/4; b: the mean of 0, 1 and 0.5 is 0.5
    assert values(batch)["a", ROLLOUT] == {0.75, -0.25}
    assert values(batch)["b", ROLLOUT] == {-0.5, 0.5, 0.0}
    assert step.mixed.metrics["fusion/rollout_score"] == pytest.approx((1 + 1 + 0.5) / 7)


@pytest.mark.parametrize("name", ["grpo", "hpt", "luffy"])
def test_a_group_without_any_score_is_masked(small: Callable[..., Algorithm], name: str) -> None:
    built = small(name)
    step = Step(built)
    found = step.demonstrator.read(built.fusion, prompts(), step.step)[0] if step.demonstrator else {}
    rollouts = generated(prompts(), [(NO_PREFIX,) * built.experience.rollouts(uid in found) for uid in "ab"], SCORES)
    of_a = np.flatnonzero(rollouts.non_tensor_batch["uid"] == "a")
    step.mix_rollouts(Prompts(prompts(), found, []), unscored(rollouts, *of_a))
    kept = step.mixed.batch.non_tensor_batch[KIND_COLUMN] != PADDING
    assert set(step.mixed.batch.non_tensor_batch["uid"][kept]) == {"b"}
    assert step.mixed.metrics["fusion/gold_masked"] == 1.0


def test_a_batch_without_any_score_trains_nothing(small: Callable[..., Algorithm]) -> None:
    step = Step(small("grpo"))
    rollouts = generated(prompts(), [(NO_PREFIX,) * N] * 2, SCORES)
    step.mix_rollouts(Prompts(prompts(), {}, []), unscored(rollouts, *range(len(rollouts))))
    assert (step.mixed.batch.non_tensor_batch[KIND_COLUMN] == PADDING).all()
    assert step.mixed.metrics["fusion/rollout_score"] == 0.0


def test_a_demonstration_without_a_score_counts_as_missing(small: Callable[..., Algorithm]) -> None:
    built = small("luffy")
    step = Step(built)

    def score(data: DataProto) -> DataProto:
        scored = score_rows(data)
        scored.non_tensor_batch["unscored"] = np.ones(len(data))
        return scored

    step.demonstrator.score_rows = score
    found, metrics = step.demonstrator.read(built.fusion, prompts(), 1)
    assert found == {} and metrics["fusion/demo_missing"] == 2.0, "one has none, the other's has no score"
    assert step.demonstrator.state["scores"][0][2]["unscored"] == 1.0


# --- several turns -----------------------------------------------------------------------------------------------------

# 5 6 end | 3 7 4, what the user says with what is around it | 8 end
CONVERSATION = [{"role": role, "content": text} for role, text in (("assistant", "56"), ("user", "7"), ("assistant", "8"))]


def two_turns(rollouts: DataProto) -> None:
    """The fourth and fifth token of every second rollout was said by the user."""
    rollouts.batch["response_mask"][::2, 3:5] = 0


@pytest.mark.parametrize("name", sorted(filter(one_phase, ALGORITHMS)))
def test_feedback_has_no_gradient_and_no_share(small: Callable[..., Algorithm], name: str) -> None:
    """A batch of rows of one and two turns, demonstrations as well: the same loss in one micro-batch and in several."""
    ratios = {"min_ratio": 0.5, "max_ratio": 0.5} if name == "prefix_rft" else {}
    built = small(name, **({"prefix": ratios} if ratios else {}))
    step = Step(built)
    batch = step.mix(prompts((CONVERSATION, CONVERSATION), hints=built.experience.needs_hint), SCORES, two_turns)
    if step.mixed.plan.mean_weight("sft") and KIND_COLUMN in batch.non_tensor_batch:
        demonstrations = batch.non_tensor_batch[KIND_COLUMN] == DEMONSTRATION
        masks = batch.batch["response_mask"][torch.from_numpy(demonstrations)]
        assert masks.tolist() == [[1, 1, 1, 0, 0, 0, 1, 1]] * int(demonstrations.sum())
    step.advantages(batch, old=-1.0, reference=-1.2)
    generator = torch.Generator().manual_seed(0)
    log_probs = (-1.1 + 0.1 * torch.rand(len(batch), RESPONSE, generator=generator)).requires_grad_()
    tensors = {**batch.batch, "log_probs": log_probs, "entropys": torch.ones(len(batch), RESPONSE)}
    loss, _ = compute_loss(built.terms, tensors)
    gradient = torch.autograd.grad(loss, log_probs)[0]
    said = ~tensors["response_mask"].bool()
    if "prefix_mask" in tensors:
        said &= ~token_class(tensors, "hint")
    assert said.any() and gradient.any() and not gradient[said].any()
    counts = count_members(built.terms, tensors)
    parts = [{key: value[rows] for key, value in tensors.items()} for rows in torch.arange(len(batch)).split(3)]
    split = sum(compute_loss(built.terms, part, counts)[0] for part in parts)
    torch.testing.assert_close(split, loss, atol=1e-6, rtol=1e-5)


def test_what_rollouts_begin_with_is_of_the_first_answer(small: Callable[..., Algorithm]) -> None:
    """The first answer is 5 6 end: half of it is 5, and no part reaches what the user said."""
    built = small("luffy", prefix={"n_prefix": -1, "strategy": "fixed", "min_ratio": 0.5, "max_ratio": 0.9})
    step, batch = Step(built), prompts((CONVERSATION, None))
    found = step.demonstrator.read(built.fusion, batch, 1)[0]
    prefixes = draw_response_prefixes(built.experience, batch, found, encode, 1)
    assert {prefix.ids for prefix in prefixes[0]} <= {(5,), (5, 6)} and len(prefixes[0]) == 4


def test_without_an_environment_the_last_answer_of_a_demonstration_is_scored(small: Callable[..., Algorithm]) -> None:
    seen: list[list[int]] = []

    def scored(data: DataProto) -> DataProto:
        seen.extend(
            ids[mask.bool()].tolist() for ids, mask in zip(data.batch["responses"], data.batch["response_mask"], strict=True)
        )
        return score_rows(data)

    step = Step(small("sft"))
    step.demonstrator.score_rows = scored
    batch = step.mix(prompts((CONVERSATION, TARGET)), SCORES)
    assert seen == [[8, EOS], [5, 6, 7, 8, 5, EOS]]
    row = batch.non_tensor_batch["uid"].tolist().index("a")
    assert batch.batch["rm_scores"][row].tolist() == [0] * 7 + [1], "on its last token, whatever the mask sums to"
    assert batch.non_tensor_batch["__num_turns__"][row] == 4


def test_a_demonstration_whose_episode_met_an_outage_is_played_again(small: Callable[..., Algorithm], monkeypatch: Any) -> None:
    """What a search that failed has made of it is nobody's score: it is missing in this step, and asked about in the next one."""
    outages = [True, False]

    def played(*_: Any) -> SimpleNamespace:
        outage = outages.pop(0)
        return SimpleNamespace(outage=outage, fields=lambda: {"score": 0.0 if outage else 1.0})

    monkeypatch.setattr(demonstrators, "played", played)
    built = small("sft")
    demonstrator = Step(built).demonstrator
    demonstrator.environment, demonstrator.decode = {}, str
    for missing, score in ((1.0, None), (0.0, 1.0), (0.0, 1.0)):
        found, metrics = demonstrator.read(built.fusion, prompts((CONVERSATION, TARGET)), 1)
        assert metrics["fusion/demo_missing"] == missing and len(found) == 2 - missing
        scores = [entry["reward"] for *_, entry in demonstrator.state["scores"]]
        assert len(scores) == 2 - missing and (score is None or score in scores)
    assert outages == [], "a score that stands is not asked for again"

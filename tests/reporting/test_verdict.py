"""The sentence at the top, and the warnings below it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unify_posttrain.reporting.alerts import alerts
from unify_posttrain.reporting.run import Run, read_run
from unify_posttrain.reporting.settings import load_settings
from unify_posttrain.reporting.verdict import Validation, ends, judge, validations

SETTINGS = load_settings()
RULES = SETTINGS.verdict


def curve(*values: float, problems: int | None = 100, is_share: bool = True) -> Validation:
    return Validation("sums", "sums", tuple(range(len(values))), values, 1, problems, False, is_share)


def run_of(**series: list[float]) -> Run:
    """A run whose metrics are given by series from step 1 on; `a__b` stands for a/b."""
    metrics: dict[int, dict[str, float]] = {}
    for name, values in series.items():
        for step, value in enumerate(values, start=1):
            metrics.setdefault(step, {"training/global_step": step})[name.replace("__", "/")] = value
    return Run(Path("run"), "run", {"trainer": {"total_training_steps": 4}, "fusion": {"max_grad_norm": 80}}, metrics)


def test_change_is_measured_against_chance() -> None:
    # N = 100: 1.96 √((.16·.84 + .22·.78)/100) = 0.108 > 0.06; 1.96 √((.1344 + .30·.70)/100) = 0.115 < 0.14
    assert curve(0.16, 0.22).change(RULES) == 0 and curve(0.16, 0.30).change(RULES) == 1 and curve(0.30, 0.16).change(RULES) == -1
    # N = 1000: 0.108/√10 = 0.034
    assert curve(0.16, 0.22, problems=1000).change(RULES) == 1
    assert curve(0.16, 0.22, problems=None).change(RULES) == 1 and curve(0.16, 0.20, problems=None).change(RULES) == 0
    assert curve(-3.0, -2.0, is_share=False).change(RULES) == 1, "rewards have no binomial error"
    assert curve(1.0, 1.0).change(RULES) == 0


def test_ends() -> None:
    assert ends([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 0.2) == (1.5, 9.5)
    assert ends([1, 4], 0.2) == (1, 4) and ends([1], 0.2) is None and ends([], 0.2) is None


def test_the_sentence_of_a_run(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    verdict = judge(read_run(make_run(tmp_path / "run")), RULES)
    # steps 1, 2: 2 and 1 of 4 prompts routed, (0.5 + 0.25)/2; solved (3/16 + 6/16)/2; steps 9, 10: (15/16 + 16/16)/2
    assert verdict.status == "learning"
    assert verdict.sentence == (
        "Accuracy: hard 10 % → 90 %; easy (100 %) within the noise; the share of prompts trained on demonstrations fell from "
        "37.5 % to 0 %; the share of rollouts solved rose from 28.1 % to 96.9 %."
    )


A, B, REWARD, NESTED = "val-core__a__acc__mean@1", "val-core__b__acc__mean@1", "val-core__a__reward__mean@4", "val-core__x/y__acc__"
FEW = "Fewer than two validations so far"


@pytest.mark.parametrize(
    ("series", "status", "said"),
    [
        ({A: [0.1, 0.9], B: [0.9, 0.1]}, "mixed", "Accuracy: a 10 % → 90 %; b 90 % → 10 %."),
        ({A: [0.9, 0.1]}, "worse", "Accuracy: a 90 % → 10 %."),
        ({A: [0.5, 0.51]}, "unchanged", "Accuracy: a (50 % → 51 %) about as before."),
        ({REWARD: [-3.5, 2.25]}, "learning", "Validation: a -3.5 → 2.25."),
        ({f"{NESTED}mean@8": [0.1, 0.9], f"{NESTED}best@8/mean": [0.5, 0.4]}, "learning", "Accuracy: x/y 10 % → 90 %."),
        ({A: [0.5]}, "early", f"{FEW}."),
        ({"fusion__solve_rate": [0.1, 0.5]}, "learning", f"{FEW}; the share of rollouts solved rose from 10 % to 50 %."),
        (
            {"actor__lr": [1.0], "fusion__demo_token_ratio": [0.5, 0.5]},
            "early",
            f"{FEW}; the share of demonstrations among trained tokens stayed at 50 %.",
        ),
    ],
)
def test_verdicts(series: dict[str, list[float]], status: str, said: str) -> None:
    verdict = judge(run_of(**series), RULES)
    assert (verdict.status, verdict.sentence) == (status, said)


def test_nothing_yet() -> None:
    verdict = judge(Run(Path("run"), "run"), RULES)
    assert (verdict.status, verdict.sentence) == ("early", "No step has been trained yet.")


def test_problems_are_recorded_or_estimated() -> None:
    series: dict[str, Any] = {"val-core__a__acc__mean@2": [0.1, 0.9], "val-core__b__acc__mean@2": [0.1, 0.9]}
    [first, _] = validations(run_of(**series))
    assert (first.problems, first.n) == (None, 2)
    guessed = run_of(**series)
    guessed = Run(guessed.folder, guessed.label, guessed.config, guessed.metrics, validated=80)
    assert [(c.problems, c.estimated) for c in validations(guessed)] == [(20, True)] * 2  # 80 / (2 sources x 2 samples)
    [first, _] = validations(run_of(**series, **{"val-eval__a__problems": [30.0, 30.0]}))
    assert (first.problems, first.estimated) == (30, False)


def texts(run: Run, level: str) -> list[str]:
    return [alert.text for alert in alerts(run, SETTINGS) if alert.level == level]


def test_a_sound_run_has_no_warnings(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    assert alerts(read_run(make_run(tmp_path / "run")), SETTINGS) == []


def test_what_is_wrong_is_said() -> None:
    run = run_of(
        fusion__grad_skipped=[1, 0, 2, 0], fusion__optimizer_steps=[1, 2, 0, 2], fusion__grader_faults=[0, 3, 0, 0],
        fusion__reward_unscored=[0, 0, 2, 0],
        fusion__gold_masked=[0, 1, 1, 0], fusion__prompts_rl=[5, 5, 5, 5], fusion__demo_missing=[1, 1, 1, 0],
        fusion__demo_overlong=[1, 1, 0, 0], response_length__clip_ratio=[0, 0, 0, 0.25], fusion__tokens_generated=[9, 9, 0, 9],
        training__rollout_actor_probs_pearson_corr=[1, 0.5, 0, 1], fusion__empty_updates=[1, 0, 0, 0],
        **{"val-core__hard__acc__mean@1": [0.2, 0.8, 0.7]}, **{"val-core__easy__acc__mean@1": [0.9, 0.5, 0.95]},
    )  # fmt: skip
    run = Run(
        run.folder, run.label, run.config, run.metrics, {"actor/grad_norm": [2], "actor/kl": [1, 2]}, damage=("gate.jsonl: torn",)
    )
    assert texts(run, "warning") == [
        "gate.jsonl: torn",
        "NaN or infinite at steps 1 to 2: actor/kl, actor/grad_norm; these points are missing from the curves",
        "3 of 8 optimizer steps skipped (norm over fusion.max_grad_norm=80, or not finite)",
        "3 rollouts could not be graded (exception, hang, crash or memory) and scored as wrong",
        "2 rollouts were given no score (NaN or None) and left out of their groups",
        "2 prompts (10 %) masked: their ground truth cannot be graded against",
        "15 % of the prompts have no usable demonstration (2 too long: fusion.demo.max_length)",
        "25 % of the responses were cut off at ? tokens towards the end",
        "the engine's probabilities and the actor's disagree at step 2: correlation down to 0.50",  # step 3 generated nothing
        "hard ends at 70 %, below its best of 80 % at step 2",
    ]
    assert texts(run, "note") == [
        "1 optimizer steps had nothing to train: no row of their mini-batch carried a term",
        "easy fell from 90 % at step 1 to 50 % at step 2, and recovered",
    ]


def test_a_loss_within_the_noise_is_no_warning() -> None:
    # N = 100: 1.96 √((.81·.19 + .74·.26)/100) = 0.115 > 0.07; N = 1000: 0.036
    for problems, count in ((100, 0), (1000, 1)):
        run = run_of(**{A: [0.81, 0.74, 0.74, 0.74], "val-eval__a__problems": [problems] * 4})
        assert len(texts(run, "warning")) == count


def test_a_run_in_progress() -> None:
    assert texts(run_of(actor__lr=[1.0, 1.0]), "note") == ["in progress or stopped early: 2 of 4 steps"]
    assert texts(run_of(actor__lr=[1.0] * 4), "note") == []

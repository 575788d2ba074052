"""The chain of commands and its page: what is run, in which order, what is repeated, what is said. Steps are played in here."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from unify_posttrain.analyze import run as analyse
from unify_posttrain.analyze import with_what_key
from unify_posttrain.config import compose_config
from unify_posttrain.evaluate import compose_evaluation
from unify_posttrain.healing import conduct as module
from unify_posttrain.healing.conduct import chosen_starts, conduct, missing_steps
from unify_posttrain.healing.plan import Healing, first_steps, later_steps, rl_name
from unify_posttrain.healing.records import begin, finished, read_done, record_path
from unify_posttrain.healing.results import collect, verdict_of
from unify_posttrain.study.processes import FAILED, FINISHED, Ended, Job, Stop

from ..tasks.environments import task_settings

HANDS = 120
SFT = {0: (0, 0), 40: (60, 70), 80: (90, 60), 120: (110, 20)}  # step -> hands solved in and out of distribution
RL = {"base": (60, 10), "peak": (100, 80), "end": (118, 66)}


def healing(tmp_path: Path, **values: Any) -> Healing:
    config = compose_config([], "heals")
    OmegaConf.set_struct(config, False)
    given = {
        "folder": str(tmp_path / "heals"),
        "seeds": [0, 1],
        "methods": ["grpo"],
        "kl": [0.0, 0.05],
        "poll_seconds": 0.01,
        **values,
    }
    for key, value in given.items():
        config[key] = value
    return Healing.from_config(config)


def write_evaluation(folder: Path, models: dict[int, tuple[int, int]], shift: int) -> None:
    """What `evaluate` leaves; `shift` makes seeds differ."""
    entries = []
    for step, solved in models.items():
        sources = []
        for benchmark, count in zip(("gp_id", "gp_ood"), solved, strict=True):
            rows = {row: int((row * 7 + shift) % HANDS < count) for row in range(HANDS)}
            place = folder / "samples" / f"step_{step}" / benchmark
            place.mkdir(parents=True, exist_ok=True)
            (place / "settings.json").write_text('{"benchmark": "d"}')
            lines = [{"row": row, "number": 0, "correct": right, "gold_ok": 1} for row, right in rows.items()]
            (place / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            episodes = {"first_acc": 0.1, "turns": 2.0, "other_rule": 0.25, "outcomes": {"illegal_formula": 0.5}}
            sources.append({"benchmark": benchmark, "source": benchmark, "accuracy": {"mean": count / HANDS}, "episodes": episodes,
                            "loss": {"per_token": 0.01 + step / 1e4}})  # fmt: skip
        entries.append({"label": f"step_{step}", "step": step, "sources": sources})
    content = {"models": entries, "settings": {"benchmarks": {"gp_id": {}, "gp_ood": {}}}}
    (folder / "results.json").write_text(json.dumps(content))


class World:
    """Plays the commands of a chain; `fails` are names of steps that end with exit code 3."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: Sequence[str] = ()) -> None:
        self.calls: list[str] = []
        self.fails = set(fails)
        monkeypatch.setattr(module, "run_jobs", self.run_jobs)
        self.setenv = monkeypatch.setenv

    def run_jobs(
        self, jobs: Sequence[Job], environment: dict[str, str], limits: Any, stop: Stop, ended: Callable[[Ended], None]
    ) -> None:
        self.setenv("UNIFY_HOME", environment["UNIFY_HOME"])
        home = Path(environment["UNIFY_HOME"])
        for job in jobs:
            self.calls.append(job.name)
            assert job.before is not None
            job.before()
            job.log.parent.mkdir(parents=True, exist_ok=True)
            job.log.write_text("last words")
            if job.name in self.fails:
                ended(Ended(job, FAILED, 3, "2026-01-01T00:00:00+00:00", 1.0))
                continue
            self.play(home, job.command[2].removeprefix("unify_posttrain."), job.command[3:])
            ended(Ended(job, FINISHED, 0, "2026-01-01T00:00:00+00:00", 60.0))

    def play(self, home: Path, command: str, overrides: Sequence[str]) -> None:
        values = dict(each.split("=", 1) for each in overrides if "=" in each)
        name = values.get("name", "")
        if command == "evaluate":
            seed = int(name.rpartition("-")[2])
            models = SFT if name.startswith("sft") else {30: RL[name.split("-")[-2]]}
            write_evaluation(home / "evaluations" / name, models, seed)
        elif command == "analyze" and overrides[0] == "forgetting":
            list(analyse(compose_config(with_what_key(overrides), "analyze")))
        elif command == "analyze":
            folder = home / "analyses" / name
            folder.mkdir(parents=True)
            content = RECOVERY if overrides[0] == "recovery" else {"what": "angles", "summary": {}, "factor": 1.25}
            (folder / f"{overrides[0]}.json").write_text(json.dumps(content))


def restored(label: str, kind: str, left: float, mean: float) -> dict[str, Any]:
    accuracy = {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}
    return {"label": label, "kind": kind, "mode": kind, "left": left, "close_cuts": 0, "accuracy": {"gp_ood: gp_ood": accuracy},
            "against_tuned": {"gp_ood: gp_ood": {"mean": 0.4, "low": 0.3, "high": 0.5}}}  # fmt: skip


RECOVERY = {
    "nothing_tuned": False,
    "rows": [
        restored("tuned", "tuned", 1.0, 0.17), restored("direction_top0.1", "direction", 0.8, 0.4),
        restored("interpolate_top0.1", "interpolate", 0.9, 0.3), restored("base", "base", 0.0, 0.58),
    ],
}  # fmt: skip


def test_the_whole_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "docs" / "heals.md"
    study, world = healing(tmp_path, page=str(page)), World(monkeypatch)
    assert conduct(study) == 0 and missing_steps(study) == []
    assert world.calls[:5] == ["prepare", "sft-0", "sft-1", "evaluate-sft-0", "evaluate-sft-1"]
    assert len(world.calls) == 5 + 2 * (2 * 2 * 3) + 2 + 2  # seeds x variants x starts, trained and evaluated; analyses
    assert world.calls.index("grpo-kl0.05-end-1") < world.calls.index("evaluate-grpo-base-0") < world.calls.index("forgetting-grpo")
    assert chosen_starts(study) == {seed: {"base": 0, "peak": 40, "end": 120} for seed in (0, 1)}
    text = (study.folder / "heals.md").read_text()
    for expected in (
        "Does reinforcement heal", "seed 1: peak at step 40, end at step 120", "| 40 | 50.0 ± 0.0 | 58.3 ± 0.0 | 25.0 ± 0.0 |",
        "| grpo-kl0.05 | end |", "OOD forgotten in 2 of 2 seeds", "RL from the end of fine-tuning, over methods and seeds: yes 4.",
        "RL from the end reaches at least the OOD accuracy of RL from the peak in 0 of 4 runs", "RL from the base in 4 of 4 runs",
        "the OOD loss rose in 2 of 2 seeds, 0.0140 to 0.0220", "| direction_top0.1 | direction | 0.80 | 40.0 |", "best control",
    ):  # fmt: skip
        assert expected in text, expected
    assert "have not finished" not in text
    assert page.read_text() == text.replace("(heals.png)", "(images/heals.png)")
    assert (page.parent / "images" / "heals.png").stat().st_size > 1000
    found = json.loads((study.folder / "heals.json").read_text())
    assert found["starts"]["0"] == {"base": 0, "peak": 40, "end": 120} and found["missing"] == []
    world.calls.clear()
    assert conduct(study) == 0 and world.calls == [], "what is finished is not run again"
    changed = healing(tmp_path, rl={**study.rl, "data": {"train_batch_size": 8}})
    trained = {rl_name(*variant, start, seed) for variant in study.variants for start in study.starts for seed in study.seeds}
    behind = {f"evaluate-{name}" for name in trained} | {"forgetting-grpo", "forgetting-grpo-kl0.05"}
    assert set(missing_steps(changed)) == trained | behind, "what stands behind a change is done again, and nothing else"


def test_a_training_of_other_settings_leaves_nothing_behind(tmp_path: Path) -> None:
    study = healing(tmp_path)
    step, other = first_steps(study)[1][0], first_steps(healing(tmp_path, sft={**study.sft, "algorithm": "dft"}))[1][0]
    checkpoint = study.run("sft-0") / "checkpoints" / "x"
    for begun, kept in ((step, True), (step, True), (other, False)):
        checkpoint.mkdir(parents=True, exist_ok=True)
        begin(study, begun)
        assert checkpoint.exists() == kept and not finished(study, begun)


def test_what_failed_is_waited_for_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "heals-page.md"
    study = healing(tmp_path, kl=[0.0], page=str(page))
    world = World(monkeypatch, ["sft-1", "grpo-end-0"])
    assert conduct(study) == 1 and not page.exists()
    assert (
        "evaluate-sft-1" not in world.calls and "evaluate-grpo-end-0" not in world.calls and "evaluate-grpo-peak-0" in world.calls
    )
    assert "forgetting-grpo" not in world.calls
    missing = missing_steps(study)
    assert {"sft-1", "evaluate-sft-1", "grpo-end-0", "evaluate-grpo-end-0", "forgetting-grpo", "RL of seed 1"} == set(missing)
    assert f"**{len(missing)} steps have not finished**" in (study.folder / "heals.md").read_text()
    assert read_done(study)["sft-1"].exit_code == 3
    world.fails.clear()
    world.calls.clear()
    assert conduct(study) == 0 and page.exists()
    assert "prepare" not in world.calls and "sft-0" not in world.calls and "grpo-peak-0" not in world.calls
    record_path(study, "prepare").write_text("{")  # as a kill in the middle of a foreign write leaves it
    world.calls.clear()
    monkeypatch.setattr(module, "write_page", lambda *_: None)
    assert conduct(study) == 0 and world.calls == ["prepare"]


def test_steps_of_fine_tuning_may_be_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, world = healing(tmp_path, seeds=[0], kl=[0.0], starts=["end", 80]), World(monkeypatch)
    RL["80"] = (100, 40)
    assert conduct(study) == 0
    assert "grpo-80-0" in world.calls and "grpo-base-0" not in world.calls
    assert set(collect(study, chosen_starts(study))["variants"]["grpo"]["seeds"][0]["rl"]) == {"80", "120"}
    with pytest.raises(
        ValueError, match="starts: step 50 of fine-tuning was not evaluated; choose among base, peak, end, 0, 40, 80, 120"
    ):
        chosen_starts(healing(tmp_path, seeds=[0], starts=[50]))


@pytest.mark.parametrize(
    ("forgot", "low", "high", "expected"),
    [
        (False, 0.1, 0.2, "nothing forgotten"),
        (True, 0.1, 0.2, "yes"),
        (True, -0.2, -0.1, "no"),
        (True, -0.1, 0.1, "not told apart"),
    ],
)
def test_verdicts(forgot: bool, low: float, high: float, expected: str) -> None:
    assert verdict_of({"forgot": forgot}, {"against_end": {"low": low, "high": high}}) == expected


def test_every_command_composes(tmp_path: Path) -> None:
    """conf/heals.yaml as it is: trainings, evaluations and analyses with their own configuration."""
    study = healing(tmp_path, seeds=[0], methods=["grpo", "ppo", "hpt"])
    groups = [*first_steps(study), *later_steps(study, {0: {"base": 0, "peak": 40, "end": 120}})]
    steps = {step.name: step for group in groups for step in group}
    assert len(steps) == 3 + 2 * 18 + 6 + 2
    sft = compose_config(list(steps["sft-0"].overrides))
    assert (sft.fusion.algorithm, sft.fusion.seed, sft.trainer.experiment_name) == ("sft", 0, "sft-0")
    assert sft.data.train_max_samples < task_settings("general_points_small")["rows"]["train"], (
        "RL has hands that it can learn from"
    )
    swept = compose_evaluation(steps["evaluate-sft-0"].overrides).steps
    assert list(swept) == list(range(0, 801, 40)), "the base model and every checkpoint"
    assert "steps=[0,30,50]" in first_steps(healing(tmp_path, steps=[0, 30, 50]))[2][0].overrides
    budgets = set()
    for method in ("grpo", "ppo", "hpt"):
        config = compose_config(list(steps[f"{method}-kl0.05-peak-0"].overrides))
        actor = config.actor_rollout_ref.actor
        assert (actor.use_kl_loss, actor.kl_loss_coef) == (True, 0.05)
        assert config.actor_rollout_ref.model.path == str(study.folder / "runs" / "sft-0" / "export" / "step_40")
        rollouts = config.data.train_batch_size * config.actor_rollout_ref.rollout.n * config.trainer.total_training_steps
        budgets.add((rollouts, actor.ppo_mini_batch_size, actor.optim.lr, config.environment.max_turns))
    assert len(budgets) == 1, "equal budgets"
    base = compose_config(list(steps["grpo-base-0"].overrides))
    assert not base.actor_rollout_ref.actor.use_kl_loss and base.actor_rollout_ref.model.path.endswith("tiny_qwen2_points")
    evaluation = compose_evaluation(steps["evaluate-grpo-base-0"].overrides)
    assert (
        evaluation.likelihood
        and evaluation.steps == "latest"
        and evaluation.environment == {"max_turns": base.environment.max_turns}
    )
    recovery = compose_config(with_what_key(steps["recovery-0"].overrides), "analyze")
    assert recovery.evaluation.define.benchmarks.gp_ood.files == [str(study.folder / "data/general_points_small/test.parquet")]
    assert recovery.evaluation.environment == {
        key: base.environment[key] for key in ("max_turns", "max_tokens_per_turn", "min_turn_tokens")
    }
    compose_config(with_what_key(steps["angles-0"].overrides), "analyze")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"methods": ["chess"]}, r"methods=\['chess'\]: choose among grpo, ppo, hpt"),
        ({"starts": ["middle"]}, r"starts=\['middle'\]: choose among base, peak, end, or steps"),
        ({"starts": []}, r"starts=\[\]"),
        ({"seeds": [1, 1]}, r"seeds=\[1, 1\]: give different integers"),
        ({"kl": [-1]}, r"kl=\[-1\]: give coefficients"),
        ({"steps": "latest"}, "steps=latest: give all, or a list"),
        ({"select": "best"}, "select=best is unknown"),
        ({"verbose": 1}, "verbose: no such key in conf/heals.yaml"),
    ],
)
def test_bad_settings(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        healing(tmp_path, **values)

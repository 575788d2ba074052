"""conf/evaluate.yaml: published protocols, what a run decides, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from unify_posttrain.evaluate import compose_evaluation
from unify_posttrain.evaluation.settings import Evaluation

REPEATED = ("aime24", "aime25", "amc")
ONCE = ("math500", "minerva", "olympiad", "arc_c", "gpqa_diamond", "mmlu_pro")
RUN = {
    "fusion": {"seed": 7, "success_threshold": 0.5, "algorithm": "hpt"},
    "data": {
        "val_files": "val.parquet", "max_prompt_length": 16, "max_response_length": 64, "filter_overlong_prompts": False,
        "apply_chat_template_kwargs": {"enable_thinking": False}, "val_max_samples": 10, "shuffle": True, "seed": 3,
    },
    "reward": {"custom_reward_function": {"path": "pkg://unify_posttrain.tasks.countdown", "name": "compute_score"}},
    "actor_rollout_ref": {
        "model": {"path": "base-model", "custom_chat_template": "T", "override_config": {"attn_implementation": "sdpa"}},
        "rollout": {
            "name": "hf", "dtype": "float32", "max_model_len": None, "max_num_seqs": 512, "tensor_model_parallel_size": 2,
            "enforce_eager": True,
            "val_kwargs": {"n": 2, "temperature": 0.7, "top_p": 0.8, "top_k": 5, "do_sample": True},
            "engine_kwargs": {"vllm": {"hf_overrides": {"rope_theta": 40000}}},
        },
    },
}  # fmt: skip


def evaluation(*overrides: str) -> Evaluation:
    return Evaluation.from_config(compose_evaluation(overrides))


@pytest.fixture()
def run(tmp_path: Path) -> Path:
    """A run with a marked checkpoint of step 4 and an unmarked one of step 8."""
    folder = tmp_path / "run"
    for step in (4, 8):
        weights = folder / "checkpoints" / f"global_step_{step}" / "actor" / "huggingface"
        weights.mkdir(parents=True)
        (weights / "config.json").write_text("{}")
    (folder / "checkpoints" / "global_step_4" / "actor" / "huggingface" / "model.safetensors").touch()
    OmegaConf.save(OmegaConf.create(RUN), folder / "config.yaml")
    return folder


def test_published_protocol() -> None:
    found = evaluation("model=x", f"benchmarks=[{','.join((*REPEATED, *ONCE))}]", "define.folder=/data")
    by_name = {benchmark.name: benchmark for benchmark in found.benchmarks}
    assert {by_name[name].n for name in REPEATED} == {32} and {by_name[name].n for name in ONCE} == {1}
    assert {benchmark.temperature for benchmark in found.benchmarks} == {0.6}
    assert {name for name, benchmark in by_name.items() if benchmark.group == "ood"} == {"arc_c", "gpqa_diamond", "mmlu_pro"}
    assert by_name["amc"].files == (Path("/data/benchmarks/amc.parquet"),)
    for benchmark in found.benchmarks:
        assert benchmark.reward == {
            "path": "pkg://unify_posttrain.rewards.math", "name": "compute_score",
            "reward_kwargs": {"version": 6, "workers": 4, "timeout_seconds": 5.0, "memory_mb": 1024},
        }  # fmt: skip
    assert (found.engine.name, found.engine.max_context, found.max_response_length) == ("vllm", 1024 + 8192, 8192)


def test_published_numbers_are_those_of_the_specification() -> None:
    rows = {
        (row["model"], row["base"], row["average"]): row["scores"] for row in evaluation("model=x", "benchmarks=[amc]").published
    }
    math = ("aime24", "aime25", "amc", "math500", "minerva", "olympiad")
    assert rows["HPT", "Qwen2.5-Math-7B", 52.7] == dict(zip(math, (33.0, 21.9, 69.4, 89.2, 46.0, 56.9), strict=True))
    assert rows["LUFFY", "Qwen2.5-Math-7B", 50.1] == dict(zip(math, (29.4, 23.1, 65.6, 87.6, 37.5, 57.2), strict=True))
    for (model, _, average), scores in rows.items():
        if scores:  # averages of the rows themselves, rounded as published (SRFT reports 59.5 for 59.48 without AIME25)
            assert sum(scores.values()) / len(scores) == pytest.approx(average, abs=0.1), model


def test_generated_tasks() -> None:
    found = evaluation("model=x", "benchmarks=[arithmetic,countdown]", "define.folder=/data")
    assert [benchmark.files[0] for benchmark in found.benchmarks] == [
        Path("/data/arithmetic/test.parquet"),
        Path("/data/countdown/test.parquet"),
    ]
    assert [benchmark.reward["path"].rsplit(".", 1)[1] for benchmark in found.benchmarks] == ["arithmetic", "countdown"]
    assert {benchmark.answers["name"] for benchmark in found.benchmarks} == {"final_answer"}


def test_overrides_of_all_benchmarks() -> None:
    found = evaluation("model=x", "benchmarks=[amc,math500]", "n=4", "temperature=1", "top_p=0.9", "top_k=3")
    assert {(b.n, b.temperature, b.top_p, b.top_k) for b in found.benchmarks} == {(4, 1, 0.9, 3)}


def test_a_file_is_a_benchmark() -> None:
    (benchmark,) = evaluation("model=x", "benchmarks=[a/my set.parquet]", "file.reward={path: r.py, name: f}").benchmarks
    assert (benchmark.name, benchmark.files, benchmark.n) == ("my_set", (Path("a/my set.parquet"),), 1)
    assert benchmark.reward == {"path": "r.py", "name": "f"}


def test_a_run_decides_what_is_not_set(run: Path) -> None:
    found = evaluation(f"run={run}", "engine=vllm")
    (benchmark,) = found.benchmarks
    assert (benchmark.name, benchmark.files) == ("validation", (Path("val.parquet"),))
    assert (benchmark.n, benchmark.temperature, benchmark.top_p, benchmark.top_k) == (2, 0.7, 0.8, 5)
    assert (benchmark.max_samples, benchmark.sample_seed) == (10, 3)
    assert benchmark.reward["path"].endswith("countdown") and benchmark.answers["name"] == "final_answer"
    assert (found.seed, found.threshold, found.max_response_length) == (7, 0.5, 64)
    assert (found.prompts.max_length, found.prompts.drop_overlong, found.prompts.template) == (16, False, "T")
    assert found.prompts.template_options == {"enable_thinking": False}
    assert (found.engine.name, found.engine.dtype, found.engine.max_context, found.engine.max_batch) == ("vllm", "float32", 80, 512)
    assert found.engine.vllm["enforce_eager"] is True, "as the run's engine"
    assert found.engine.vllm["tensor_parallel_size"] == 2 and found.engine.vllm["hf_overrides"] == {"rope_theta": 40000}
    assert [(model.label, model.step) for model in found.models] == [("step_4", 4)]


def test_the_command_line_wins_over_the_run(run: Path) -> None:
    found = evaluation(f"run={run}", "seed=1", "max_response_length=8", "benchmarks=[amc,validation]", "steps=[0,4]", "n=1")
    assert (found.seed, found.max_response_length, found.engine.max_context) == (1, 8, 24)
    assert [benchmark.name for benchmark in found.benchmarks] == ["amc", "validation"]
    assert [(model.label, model.path, model.step) for model in found.models] == [
        ("step_0", "base-model", 0),
        ("step_4", str(run), 4),
    ]


# Environments


ENVIRONMENT = {"name": "general_points", "max_turns": 4, "score": "sum"}
PLAYED = (
    "gp_id",
    "gp_id_seen",
    "gp_ood",
    "gp_ood_target",
    "gp_ood_visual",
    "nav_id",
    "nav_ood",
    "nav_city",
    "det_id",
    "det_ood",
    "rank_id",
    "rank_ood",
)


def played_run(run: Path) -> Path:
    """The run, trained on general points with settings and files of its own."""
    OmegaConf.save(OmegaConf.create({**RUN, "environment": ENVIRONMENT}), run / "config.yaml")
    return run


def test_benchmarks_of_environments_have_the_settings_of_their_task_file() -> None:
    found = evaluation("model=x", f"benchmarks=[{','.join(PLAYED)}]", "define.folder=/data")
    by_name = {benchmark.name: benchmark for benchmark in found.benchmarks}
    assert {name: each.environment["name"] for name, each in by_name.items() if each.environment} == {
        name: {"gp": "general_points", "nav": "navigation"}.get(name.partition("_")[0], "matrices") for name in PLAYED
    }
    for name, each in by_name.items():
        assert (each.sources, each.n, each.temperature) == ((name,), 1, 0.0)
        task = "general_points_images" if name == "gp_ood_visual" else str((each.environment or {})["name"])
        assert each.files == (Path("/data") / task / "test.parquet",)
        assert each.reward["reward_kwargs"] == {"environment": each.environment}
        assert (each.group == "ood") == name.endswith(("_ood", "_target", "_city", "_visual"))
    assert by_name["gp_ood"].split_by == ("seen_labels", "other_rule_playable") and by_name["nav_ood"].split_by == ()


def test_a_run_of_the_same_environment_brings_settings_and_files(run: Path) -> None:
    hands, routes = evaluation(f"run={played_run(run)}", "benchmarks=[gp_ood,nav_ood]", "define.folder=/data").benchmarks
    assert (hands.environment, hands.files) == (ENVIRONMENT, (Path("val.parquet"),))
    assert (routes.environment or {})["name"] == "navigation" and routes.files == (Path("/data/navigation/test.parquet"),)


def test_the_validation_of_a_run_with_an_environment_is_played(run: Path) -> None:
    played_run(run)
    for name in ("validation", "x.parquet"):
        (benchmark,) = evaluation(f"run={run}", f"benchmarks=[{name}]", "environment={max_turns: 1}").benchmarks
        assert benchmark.environment == {**ENVIRONMENT, "max_turns": 1}
    (scored,) = evaluation(f"run={run}", "benchmarks=[x.parquet]", "file.reward={path: r.py, name: f}").benchmarks
    assert scored.environment is None, "a reward of one's own scores an answer"


def test_environments_that_are_refused(run: Path) -> None:
    with pytest.raises(ValueError, match=r"environment=\{'max_turns': 5\}: none of benchmarks=\['amc'\] plays an environment"):
        evaluation("model=x", "benchmarks=[amc]", "environment={max_turns: 5}")
    with pytest.raises(
        ValueError, match=r"benchmark gp_id: environment='poker' is unknown; choose one of general_points, matrices"
    ):
        evaluation("model=x", "benchmarks=[gp_id]", "define.benchmarks.gp_id.environment=poker")


def test_a_file_takes_the_runs_reward(run: Path) -> None:
    (benchmark,) = evaluation(f"run={run}", "benchmarks=[x.parquet]").benchmarks
    assert benchmark.reward["path"].endswith("countdown")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["benchmarks=[amc]"], "either model=FOLDER"),
        (["model=x"], "benchmarks=None: give names"),
        (["model=x", "benchmarks=[amcc]"], r"'amcc' is unknown; choose among aime24.*or give a \.parquet file"),
        (["model=x", "benchmarks=[validation]"], "'validation' is unknown"),
        (["model=x", "benchmarks=[a.parquet]"], "benchmark a has no reward function; set file.reward"),
        (["model=x", "benchmarks=[amc,amc]"], "amc is there twice"),
        (["model=x", "benchmarks=[amc]", "engine=sglang"], "engine='sglang' is unknown"),
        (["model=x", "benchmarks=[amc]", "n=0"], "benchmark amc: n=0"),
        (["model=x", "benchmarks=[amc]", "temperature=0"], "n=32 samples at temperature=0 are all the same"),
        (["model=x", "benchmarks=[amc]", "top_p=0"], "top_p=0"),
        (["model=x", "benchmarks=[amc]", "chunk_size=0"], "chunk_size=0 must be at least 1"),
        (["run=nowhere"], r"run=nowhere holds no config\.yaml"),
    ],
)
def test_refusals(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluation(*overrides)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("[8]", r"step=8: .* is incomplete .*complete ones: 4"),
        ("[5]", "step=5: .* does not exist; complete ones: 4"),
        ("[]", r"steps=\[\]"),
        ("best", "step='best': give latest or the step"),
    ],
)
def test_steps_that_cannot_be_used(steps: str, message: str, run: Path) -> None:
    with pytest.raises(ValueError, match=message):
        evaluation(f"run={run}", f"steps={steps}")


def test_keys_that_do_not_exist_are_refused() -> None:
    with pytest.raises(Exception, match="temprature"):
        compose_evaluation(["model=x", "temprature=1"])


def test_a_run_without_a_needed_key(run: Path) -> None:
    broken: dict[str, Any] = {**RUN, "fusion": {"success_threshold": 1.0}}
    OmegaConf.save(OmegaConf.create(broken), run / "config.yaml")
    with pytest.raises(ValueError, match=r"seed is not set, and the run's configuration has no fusion\.seed"):
        evaluation(f"run={run}")

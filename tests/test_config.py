"""Composition: every algorithm with every model on every hardware, in process, and once through the real command."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

import unify_posttrain
from unify_posttrain.algorithms import ALGORITHMS, build_algorithm
from unify_posttrain.config import compose_config, conf_dir, passive_threads_per_rank, run_command, threads_per_rank

GROUPS = {
    name: sorted(path.stem for path in (conf_dir() / name).glob("*.yaml"))
    for name in ("backend", "algorithm", "model", "hardware", "task")
}
PATHS = {
    "tiny_qwen2": "outputs/models/tiny_qwen2",
    "qwen2_5_math_1_5b": "Qwen/Qwen2.5-Math-1.5B",
    "qwen2_5_math_7b": "Qwen/Qwen2.5-Math-7B",
    "qwen2_5_0_5b": "Qwen/Qwen2.5-0.5B",
    "qwen2_5_1_5b": "Qwen/Qwen2.5-1.5B",
    "qwen2_5_3b": "Qwen/Qwen2.5-3B",
    "qwen2_5_7b": "Qwen/Qwen2.5-7B",
    "qwen2_5_7b_instruct": "Qwen/Qwen2.5-7B-Instruct",
    "qwen2_5_vl_3b": "Qwen/Qwen2.5-VL-3B-Instruct",
    "qwen2_5_vl_7b": "Qwen/Qwen2.5-VL-7B-Instruct",
    "tiny_qwen2_5_vl": "outputs/models/tiny_qwen2_5_vl",
    "tiny_qwen2_5_vl_pages": "outputs/models/tiny_qwen2_5_vl_pages",
    "qwen3_4b": "Qwen/Qwen3-4B-Base",
    "qwen3_8b": "Qwen/Qwen3-8B-Base",
    "llama3_1_8b": "meta-llama/Llama-3.1-8B",
    "llama3_1_8b_instruct": "meta-llama/Llama-3.1-8B-Instruct",
    "tiny_qwen2_countdown": "outputs/models/tiny_qwen2_countdown",
    "tiny_qwen2_points": "outputs/models/tiny_qwen2_points",
    "tiny_llama_points": "outputs/models/tiny_llama_points",
    "pythia_1b": "cleanrl/EleutherAI_pythia-1b-deduped__sft__tldr",
}


def plain(config: DictConfig) -> dict:
    return OmegaConf.to_container(config, resolve=True)


def test_groups_are_what_the_tests_know() -> None:
    assert set(GROUPS["algorithm"]) == set(ALGORITHMS)
    assert set(GROUPS["model"]) == set(PATHS)
    assert set(GROUPS["hardware"]) >= {"cpu", "gpu_1", "node_8gpu"}


# Every algorithm once, the models of five families in turn, the other models once; the hardware goes round.
FAMILIES = ["tiny_qwen2", "qwen2_5_math_7b", "qwen2_5_vl_7b", "llama3_1_8b", "qwen3_8b"]
PAIRS = [(algorithm, FAMILIES[number % len(FAMILIES)]) for number, algorithm in enumerate(GROUPS["algorithm"])]
PAIRS += [("hpt", model) for model in GROUPS["model"] if model not in FAMILIES]
MATRIX = [(*pair, GROUPS["hardware"][number % len(GROUPS["hardware"])]) for number, pair in enumerate(PAIRS)]


@pytest.mark.parametrize(("algorithm", "model", "hardware"), MATRIX)
def test_everything_composes(algorithm: str, model: str, hardware: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNIFY_HOME", raising=False)
    config = plain(compose_config([f"algorithm={algorithm}", f"model={model}", f"hardware={hardware}"]))
    actor = config["actor_rollout_ref"]["actor"]
    assert config["fusion"]["algorithm"] == config["trainer"]["experiment_name"] == algorithm
    assert actor["fusion"] == config["fusion"]  # workers see the actor's subtree only
    assert config["actor_rollout_ref"]["model"]["path"] == PATHS[model]
    assert config["actor_rollout_ref"]["rollout"]["name"] == ("hf" if hardware == "cpu" else "vllm")
    assert config["trainer"]["n_gpus_per_node"] == (8 if hardware == "node_8gpu" else 1)
    assert config["data"]["train_batch_size"] % actor["ppo_mini_batch_size"] == 0
    n = 4 if algorithm.startswith("uft") else 8
    assert config["fusion"]["group_size"] == config["actor_rollout_ref"]["rollout"]["n"] == n
    assert config["fusion"]["horizon"] == actor["loss_scale_factor"] == config["data"]["max_response_length"]
    mirrored = {"sum-norm": "seq-mean-token-sum-norm"}.get(config["fusion"]["agg"]["rl"], config["fusion"]["agg"]["rl"])
    assert actor["loss_agg_mode"] == mirrored  # verl's copy, for its metrics; verl has no sum-norm
    assert type(build_algorithm(actor)) is ALGORITHMS[algorithm]


def test_interpolations_follow_what_the_user_sets(composed: Callable[..., DictConfig]) -> None:
    config = plain(
        composed(
            "algorithm=luffy",
            "hardware=node_8gpu",
            "actor_rollout_ref.rollout.n=4",
            "data.max_prompt_length=1024",
            "data.max_response_length=8192",
            "fusion.seed=7",
            "fusion.agg.rl=sum-norm",
        )
    )
    assert (config["fusion"]["group_size"], config["fusion"]["horizon"], config["data"]["seed"]) == (4, 8192, 7)
    assert config["fusion"]["demo"]["max_length"] == config["actor_rollout_ref"]["actor"]["loss_scale_factor"] == 8192
    assert config["actor_rollout_ref"]["actor"]["loss_agg_mode"] == "seq-mean-token-sum-norm"  # verl has no sum-norm
    assert config["actor_rollout_ref"]["rollout"]["max_model_len"] == 9216
    assert config["actor_rollout_ref"]["actor"]["ppo_max_token_len_per_gpu"] == 18432


def test_home_moves_every_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UNIFY_HOME", str(tmp_path))
    config = compose_config(["algorithm=hpt", "trainer.experiment_name=x"])
    for path in (
        config.trainer.run_dir,
        config.trainer.default_local_dir,
        config.data.train_files,
        config.actor_rollout_ref.model.path,
    ):
        assert path.startswith(str(tmp_path))
    assert config.trainer.run_dir == f"{tmp_path}/runs/x"


@pytest.mark.parametrize("override", ["algorithm=hptt", "model=gpt2", "hardware=tpu", "fusion.sft_coef=1", "trainer.switch_gat=1"])
def test_what_does_not_exist_is_refused(override: str) -> None:
    with pytest.raises(Exception, match=re.escape(override.split("=")[0].rsplit(".", 1)[-1])):
        compose_config([override])


def test_printing_a_configuration_imports_neither_torch_nor_verl_nor_ray(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "unify_posttrain.train", "--cfg", "job"]
    overrides = ["algorithm=luffy", "model=qwen3_8b", "hardware=node_8gpu"]
    environment = {**os.environ, "PYTHONPATH": str(Path(unify_posttrain.__file__).parents[1])}
    done = subprocess.run([*command, *overrides], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    config = OmegaConf.create(done.stdout)
    assert (config.fusion.algorithm, config.trainer.n_gpus_per_node) == ("luffy", 8)
    assert config.actor_rollout_ref.model.path == "Qwen/Qwen3-8B-Base"
    imported = {
        line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines() if line.startswith("import time:")
    }
    assert {"hydra", "omegaconf"} <= imported  # the listing is what it is taken for
    assert not imported & {"torch", "verl", "ray", "transformers", "vllm"}
    assert list(tmp_path.iterdir()) == []  # and writes nothing


def test_a_collective_operation_waits_longer_than_a_step_may_take() -> None:
    """verl's 600 seconds would end the processes of a step that trainer.step_timeout still allows."""
    timeouts = {given: compose_config([f"trainer.step_timeout={given}"]).actor_rollout_ref.nccl_timeout for given in (14400, 60)}
    assert timeouts == {14400: 15000, 60: 660}
    assert compose_config(["trainer.step_timeout=null"]).actor_rollout_ref.nccl_timeout == 7 * 24 * 3600


def test_ctrl_c_ends_a_command_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["prepare"])
    with pytest.raises(SystemExit) as stop:
        run_command(interrupted)
    assert stop.value.code == 130 and capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    ("cores", "ranks", "spinning", "passive"),
    [(1, 1, 1, 1), (2, 1, 1, 2), (2, 2, 1, 1), (4, 1, 2, 2), (8, 1, 4, 4), (8, 2, 2, 2), (8, 16, 1, 1)],
)
def test_threads_of_a_rank(cores: int, ranks: int, spinning: int, passive: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert (threads_per_rank(ranks), passive_threads_per_rank(ranks)) == (spinning, passive)
    variables = compose_config(["algorithm=grpo", f"trainer.n_gpus_per_node={ranks}"]).ray_kwargs.ray_init.runtime_env.env_vars
    assert str(passive) == variables.OMP_NUM_THREADS and variables.OMP_WAIT_POLICY == "passive"

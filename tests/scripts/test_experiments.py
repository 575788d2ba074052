"""exp_scripts/*.sh: one command per published run, which hands on what it is given, composes, and can be planned without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from unify_posttrain.config import compose_config

SCRIPTS = Path(__file__).resolve().parents[2] / "exp_scripts"
NOT_EXPERIMENTS = ("common", "cpu_study", "smoke_gpu", "cpu_heals", "heals")  # these have tests of their own
EXPERIMENTS = sorted(path.stem for path in SCRIPTS.glob("*.sh") if path.stem not in NOT_EXPERIMENTS)
FILES = {"TRAIN_FILES": "/data/train.parquet", "VAL_FILES": "/data/val.parquet", "REWARD_FILE": "/data/reward.py"}
QWEN_7B, QWEN_1_5B, LLAMA = "qwen2_5_math_7b", "qwen2_5_math_1_5b", "llama3_1_8b"
LLAMA_PROMPTS = {"prepare.task.system": "none", "prepare.task.template": "boxed"}
HPT_PROMPTS = {"prepare.task.system": "none", "actor_rollout_ref.model.custom_chat_template": None}
VALIDATION = {
    "trainer.test_freq": 10,
    **{f"actor_rollout_ref.rollout.val_kwargs.{k}": v for k, v in (("do_sample", True), ("temperature", 0.6))},
}
TOP_P, SAMPLES = (f"actor_rollout_ref.rollout.val_kwargs.{key}" for key in ("top_p", "n"))
HPT_VALIDATION = VALIDATION | {"trainer.val_before_train": True, TOP_P: 0.95, SAMPLES: 8}
LUFFY_VALIDATION = VALIDATION | {"trainer.val_before_train": False, TOP_P: 1.0, SAMPLES: 1}
OPTIM, ACTOR = "actor_rollout_ref.actor.optim", "actor_rollout_ref.actor"
# script, model (None: the script's own) -> what was published with it
PUBLISHED: dict[tuple[str, str | None], dict[str, object]] = {
    ("hpt", None): {"fusion.hpt.switch_gate": 0, "fusion.sft_loss_coef": 1.0, "fusion.max_grad_norm": 80}
    | HPT_PROMPTS
    | HPT_VALIDATION,
    ("hpt", QWEN_1_5B): {"fusion.hpt.switch_gate": 0, "fusion.sft_loss_coef": 0.3, "fusion.max_grad_norm": 80} | HPT_PROMPTS,
    ("hpt", LLAMA): {"fusion.hpt.switch_gate": 2, "fusion.sft_loss_coef": 1.0, "fusion.max_grad_norm": None} | LLAMA_PROMPTS,
    ("luffy", None): {"data.reward_impl_version": 3, "fusion.clip": "none", "fusion.shaping.name": "p_div_p"} | LUFFY_VALIDATION,
    ("luffy", QWEN_1_5B): {"data.reward_impl_version": 6} | HPT_PROMPTS | HPT_VALIDATION,
    ("luffy", LLAMA): {"data.reward_impl_version": 6} | LLAMA_PROMPTS | HPT_VALIDATION,
    ("relift", None): {
        "data.reward_impl_version": 3,
        f"{ACTOR}.grad_clip": 0.7,
        "fusion.relift.sft_data_size": 128,
        "trainer.total_epochs": 3,
        "trainer.total_training_steps": None,
    }
    | LUFFY_VALIDATION,
    ("relift", QWEN_1_5B): {"data.reward_impl_version": 3, f"{ACTOR}.grad_clip": 0.7, "trainer.total_epochs": 3},
    ("srft", None): {"data.reward_impl_version": 6, "algorithm.norm_adv_by_std_in_grpo": True} | HPT_PROMPTS | HPT_VALIDATION,
    # The hint stands in the response: room for it and 1024 new tokens.
    ("uft", None): {
        "actor_rollout_ref.model.path": "Qwen/Qwen2.5-3B",
        "data.max_response_length": 2048,
        "data.train_batch_size": 256,
    },
    ("uft", "qwen2_5_0_5b"): {"actor_rollout_ref.model.path": "Qwen/Qwen2.5-0.5B", "actor_rollout_ref.rollout.n": 4},
    ("uft", "qwen2_5_1_5b"): {"actor_rollout_ref.model.path": "Qwen/Qwen2.5-1.5B", "fusion.uft.max_new_tokens": 1024},
    # ceil(50000 / 128) = 391 steps; 30000 / 16 = 1875
    ("online_sft", None): {"trainer.total_training_steps": 391, "data.max_response_length": 3072, "actor_rollout_ref.rollout.n": 8},
    ("online_sft_tldr", None): {
        "trainer.total_training_steps": 1875,
        "actor_rollout_ref.rollout.n": 4,
        f"{OPTIM}.lr": 3e-6,
        "fusion.lr_schedule.min_lr": 1e-7,
        "fusion.online_sft.task": "model",
        "trainer.experiment_name": "online_sft_tldr",
    },
    ("sft", None): {
        f"{OPTIM}.lr": 5e-5,
        f"{OPTIM}.lr_warmup_steps_ratio": 0.1,
        f"{OPTIM}.lr_scheduler_type": "cosine",
        f"{OPTIM}.min_lr_ratio": 0.1,
        f"{OPTIM}.weight_decay": 0,
        f"{OPTIM}.betas": [0.9, 0.95],
        "data.train_batch_size": 64,
        "actor_rollout_ref.rollout.max_model_len": 16384,
        "trainer.total_epochs": 3,
    },
    ("sft", QWEN_1_5B): {"actor_rollout_ref.model.path": "Qwen/Qwen2.5-Math-1.5B", f"{OPTIM}.min_lr_ratio": 0.1},
    ("grpo", None): {"actor_rollout_ref.model.path": "Qwen/Qwen2.5-Math-7B", "fusion.clip": "ppo"} | HPT_PROMPTS,
    ("grpo", QWEN_1_5B): {"actor_rollout_ref.model.path": "Qwen/Qwen2.5-Math-1.5B"} | HPT_PROMPTS,
    ("grpo", LLAMA): {"actor_rollout_ref.model.path": "meta-llama/Llama-3.1-8B"} | LLAMA_PROMPTS,
    ("sft_then_rl", None): {"trainer.total_training_steps": 500},
    ("rl_with_sft_loss", None): {"data.reward_impl_version": 3, "fusion.clip": "none"} | LUFFY_VALIDATION,
    ("dr_grpo", None): {"data.reward_impl_version": 3, "algorithm.norm_adv_by_std_in_grpo": False} | LUFFY_VALIDATION,
    ("dapo", None): {
        "data.train_batch_size": 512,
        "data.max_response_length": 20480,
        "reward.reward_kwargs.overlong_buffer_cfg.len": 4096,
        "algorithm.filter_groups.metric": "acc",
        "actor_rollout_ref.rollout.n": 16,
        f"{ACTOR}.ppo_mini_batch_size": 32,
    },
    ("ppo", None): {"algorithm.adv_estimator": "gae"},
    ("chord", None): {
        "fusion.chord.expert_share": 0.2,
        "actor_rollout_ref.model.path": "Qwen/Qwen2.5-7B-Instruct",
        "data.max_response_length": 10240,
    },
    ("dft", None): {
        "fusion.sft_form": "dft",
        "data.train_batch_size": 256,
        "actor_rollout_ref.rollout.max_model_len": 2048,
        "prepare.task.split": "train[:100000]",
        f"{OPTIM}.lr_scheduler_type": "cosine",
        f"{OPTIM}.min_lr_ratio": 0.0,
        "trainer.total_epochs": 1,
    },
    ("dft", QWEN_7B): {"fusion.sft_form": "dft", "actor_rollout_ref.model.override_config.rope_theta": 10000.0},
    ("vrag", None): {
        "data.train_batch_size": 32,
        "actor_rollout_ref.rollout.n": 5,
        "actor_rollout_ref.rollout.limit_images": 4,
        f"{ACTOR}.kl_loss_coef": 0.01,
        f"{ACTOR}.entropy_coeff": 0,
        "environment.max_tokens_per_turn": 2048,
        "data.max_response_length": 5 * 2048 + 4 * (512 + 11),
        "fusion.success_key": "acc",
    },
    ("vrag", "qwen2_5_vl_3b"): {"actor_rollout_ref.model.path": "Qwen/Qwen2.5-VL-3B-Instruct"},
    ("hpt_vl", None): {"fusion.hpt.switch_gate": 0, "fusion.sft_loss_coef": 1.0, "environment.name": "vrag"},
    ("hpt_vl", "qwen2_5_vl_3b"): {"actor_rollout_ref.model.path": "Qwen/Qwen2.5-VL-3B-Instruct"},
    ("psft", None): {"fusion.sft_form": "psft"},
    ("prefix_rft", None): {"fusion.prefix_rft.entropy_top": 0.2},
}
# script, model -> the same under algorithm=NAME_released
RELEASED: dict[tuple[str, str | None], dict[str, object]] = {
    ("hpt", None): {"fusion.sft_loss_coef": 4.0, f"{ACTOR}.entropy_coeff": 0.004, "fusion.max_grad_norm": 80, f"{OPTIM}.lr": 5e-6},
    ("hpt", QWEN_1_5B): {"fusion.sft_loss_coef": 1.2},  # 0.3 x 4 micro-batches
    ("hpt", LLAMA): {"fusion.hpt.switch_gate": 2, "fusion.max_grad_norm": None, "fusion.sft_loss_coef": 4.0},
    ("luffy", None): {f"{ACTOR}.entropy_coeff": 0.004, "fusion.entropy_on": "all", f"{OPTIM}.lr": 1e-6},
    ("relift", None): {
        "fusion.relift.dedup": False,
        "fusion.relift.entropy_coeff": 1e-3,
        f"{ACTOR}.grad_clip": 0.7,
        "trainer.total_epochs": 3,
        "trainer.total_training_steps": None,
    },
    ("srft", None): {"algorithm.norm_adv_by_std_in_grpo": False, "fusion.srft.counts": "released", "fusion.srft.demo_weight": 2.0},
    ("rl_with_sft_loss", None): {"fusion.clip": "none", "fusion.sft_loss_coef": 4.0},
    ("dr_grpo", None): {"fusion.clip": "ppo", "fusion.dual_clip": None, f"{ACTOR}.clip_ratio_high": 0.2},
    ("uft", None): {"fusion.uft.limit_new_tokens": True, "fusion.uft.max_new_tokens": 1024, "fusion.dual_clip": None},
    ("chord", None): {
        "data.train_batch_size": 96,
        f"{ACTOR}.ppo_mini_batch_size": 96,
        "data.max_response_length": 10240,
        "fusion.dual_clip": 3.0,
        f"{ACTOR}.entropy_coeff": 0,
    },
}


def run(name: str, folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run a script from another folder with an interpreter that prints its arguments."""
    echo = folder / "python"
    echo.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    echo.chmod(0o755)
    path = {"PATH": os.environ["PATH"], "PYTHON": str(echo)}
    command = [str(SCRIPTS / f"{name}.sh"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=path | environment)


def composed(done: subprocess.CompletedProcess) -> DictConfig:
    assert done.returncode == 0, done.stderr
    module, *overrides = done.stdout.splitlines()[1:]
    assert module == "unify_posttrain.train"
    return compose_config(overrides)


def plan(config: DictConfig) -> str:
    """What unify_posttrain.train does for +dry_run=true."""
    from unify_posttrain.startup.checks import check_config
    from unify_posttrain.startup.data_checks import check_data_if_there
    from unify_posttrain.startup.dry_run import describe_run

    assert config.dry_run
    check_config(config)
    return describe_run(config, *check_data_if_there(config))


def test_every_method_has_its_experiment_and_every_experiment_its_expectation() -> None:
    """Of every method in the index of papers. A released balance is no experiment of its own: it shares the method's script."""
    from unify_posttrain.algorithms import METHODS
    from unify_posttrain.algorithms import RELEASED as BALANCES

    index = (SCRIPTS.parent / "docs" / "papers.md").read_text()
    assert {method.name for method in METHODS if f"| `{method.name}` |" in index} <= set(EXPERIMENTS)
    assert not [name for name in EXPERIMENTS if name.endswith("_released")]
    assert {name for name, _ in PUBLISHED} == set(EXPERIMENTS)
    assert {name for name, _ in RELEASED} == {method.name for method in BALANCES}
    for name in EXPERIMENTS:  # every `published MODEL` is expected above
        lines = [line.split()[1] for line in (SCRIPTS / f"{name}.sh").read_text().splitlines() if line.startswith("published ")]
        assert lines and set(lines[1:]) == {model for script, model in PUBLISHED if script == name and model}


def check_plan(done: subprocess.CompletedProcess, expected: Mapping[str, object], experiment: str, home: Path) -> None:
    assert not done.stderr
    config = composed(done)
    for key, value in expected.items():
        assert OmegaConf.select(config, key, throw_on_missing=True) == value, key
    if config.data.reward_impl_version is not None:
        assert config.reward.custom_reward_function.reward_kwargs.version == config.data.reward_impl_version
    assert config.trainer.n_gpus_per_node == 8 and config.actor_rollout_ref.rollout.name == "vllm"
    assert config.trainer.experiment_name == experiment
    text = plan(config)
    assert f"data.train_files: {home}" in text and "not read, see below" in text
    assert f"write it by: python -m unify_posttrain.prepare task={config.prepare.task.name}" in text
    assert "nothing was started" in text
    assert not list(home.glob("runs"))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "model"), PUBLISHED)
def test_published_runs_are_planned_without_gpu_data_or_weights(
    name: str, model: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNIFY_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    done = run(name, tmp_path, "--dry-run", *([f"model={model}"] if model else []), UNIFY_HOME=str(tmp_path))
    check_plan(done, PUBLISHED[name, model], f"{name}-{model}" if model else name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "model"), RELEASED)
def test_released_balances_share_the_methods_script(
    name: str, model: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNIFY_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    arguments = ["--dry-run", f"algorithm={name}_released", *([f"model={model}"] if model else [])]
    done = run(name, tmp_path, *arguments, UNIFY_HOME=str(tmp_path))
    assert done.stdout.splitlines().count(f"algorithm={name}_released") == 1
    check_plan(done, RELEASED[name, model], f"{name}_released-{model}" if model else f"{name}_released", tmp_path)


def test_another_algorithm_has_a_folder_of_its_own(tmp_path: Path) -> None:
    done = run("hpt", tmp_path, ALGORITHM="grpo")
    assert {"algorithm=grpo", "trainer.experiment_name=hpt-grpo"} <= set(done.stdout.splitlines())
    assert "hpt.sh: nothing is published here for algorithm=grpo" in done.stderr


@pytest.mark.slow
def test_a_dry_run_through_the_real_command(tmp_path: Path) -> None:
    """The command that makes the data says what this run says about it."""
    environment = {**os.environ, "PYTHON": sys.executable, "UNIFY_HOME": str(tmp_path), "PYTHONPATH": str(SCRIPTS.parent)}
    command = [str(SCRIPTS / "hpt.sh"), f"model={LLAMA}", "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    folder = f"prepare.task.folder={tmp_path}/data/openr1_math_llama"
    prepare = f"python -m unify_posttrain.prepare task=openr1_math {folder} prepare.task.system=none prepare.task.template=boxed"
    assert f"write it by: {prepare}\n" in done.stdout
    assert "downloaded when the run starts, or before by: hf download meta-llama/Llama-3.1-8B\n" in done.stdout


@pytest.mark.parametrize("flags", [["--dry-run"], ["+dry_run=true"], ["--dry-run", "+dry_run=true", "a=b"]])
def test_both_spellings_of_a_dry_run(flags: list[str], tmp_path: Path) -> None:
    assert run("grpo", tmp_path, *flags).stdout.splitlines().count("+dry_run=true") == 1


def test_arguments_arrive_as_they_were_given_and_last(tmp_path: Path) -> None:
    odd = ["fusion.phases=[{algorithm: luffy, stall: 3}]", "trainer.experiment_name='a b'", "--cfg", "job", "x=$HOME *"]
    assert run("hpt", tmp_path, *odd).stdout.splitlines()[-len(odd) :] == odd


def test_later_overrides_win_over_published_ones(tmp_path: Path) -> None:
    config = composed(run("hpt", tmp_path, "model=llama3_1_8b", "trainer.switch_gate=5", "data.val_batch_size=7"))
    assert (config.trainer.switch_gate, config.data.val_batch_size) == (5, 7)


@pytest.mark.parametrize("name", ["hpt", "luffy", "dapo", "uft", "online_sft_tldr"])
def test_experiments_take_files_of_your_own(name: str, tmp_path: Path) -> None:
    from unify_posttrain.startup.checks import check_config

    files = {key: str(tmp_path / Path(path).name) for key, path in FILES.items()}
    for path in files.values():
        Path(path).touch()
    config = composed(run(name, tmp_path, "+dry_run=true", **files))
    assert (config.data.train_files, config.data.val_files) == (files["TRAIN_FILES"], files["VAL_FILES"])
    assert config.reward.custom_reward_function.path == files["REWARD_FILE"]
    check_config(config)


@pytest.mark.parametrize("name", ["hpt", "luffy", "uft"])
def test_another_task_does_not_get_the_settings_of_the_scripts_data(name: str, tmp_path: Path) -> None:
    config = composed(run(name, tmp_path, "task=custom", "model=llama3_1_8b", **FILES))
    assert OmegaConf.select(config, "prepare.task") is None and config.data.reward_impl_version is None


@pytest.mark.parametrize("missing", sorted(FILES))
def test_a_missing_file_is_named(missing: str, tmp_path: Path) -> None:
    done = run("hpt", tmp_path, TASK="custom", **{key: value for key, value in FILES.items() if key != missing})
    assert done.returncode != 0
    assert f"{missing}: set {missing}" in done.stderr
    assert not done.stdout


def test_choices_by_environment_or_argument(tmp_path: Path) -> None:
    first = run("hpt", tmp_path, MODEL=LLAMA, HARDWARE="gpu_1", TASK="arithmetic")
    second = run("hpt", tmp_path, f"model={LLAMA}", "hardware=gpu_1", "task=arithmetic")
    assert first.stdout == second.stdout and not first.stderr
    assert {f"model={LLAMA}", "hardware=gpu_1", "task=arithmetic"} <= set(first.stdout.splitlines())


def test_a_model_without_published_settings_is_said(tmp_path: Path) -> None:
    done = run("hpt", tmp_path, "model=qwen3_8b")
    assert done.returncode == 0 and "model=qwen3_8b" in done.stdout.splitlines()
    assert f"hpt.sh: nothing is published here for model=qwen3_8b (published: {QWEN_7B} {QWEN_1_5B} {LLAMA})" in done.stderr


def test_a_script_becomes_the_run_so_that_signals_reach_it(tmp_path: Path) -> None:
    show = tmp_path / "show"
    show.write_text("#!/bin/sh\necho $$\n")
    show.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "PYTHON": str(show)}
    process = subprocess.Popen([str(SCRIPTS / "hpt.sh")], stdout=subprocess.PIPE, text=True, env=environment)
    assert int(process.communicate()[0]) == process.pid


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_headers_say_what_is_known(name: str, tmp_path: Path) -> None:
    """The paper, the data, and that nobody ran it here; --help prints it and starts nothing."""
    done = run(name, tmp_path, "--help")
    assert done.returncode == 0
    assert "arXiv" in done.stdout or "Online SFT" in done.stdout or name == "sft"
    assert "Data: " in done.stdout and "Not run here" in done.stdout
    assert "unify_posttrain.train" not in done.stdout and "set -euo" not in done.stdout


def test_cpu_study_hands_its_arguments_on(tmp_path: Path) -> None:
    done = run("cpu_study", tmp_path, "algorithms=[hpt,grpo]", "seeds=[0]")
    assert done.stdout.splitlines() == ["-m", "unify_posttrain.study", "algorithms=[hpt,grpo]", "seeds=[0]"]


def test_the_chain_of_the_cpu_is_what_its_arguments_say(tmp_path: Path) -> None:
    assert run("cpu_heals", tmp_path, "seeds=[0]").stdout.splitlines() == ["-m", "unify_posttrain.healing", "seeds=[0]"]
    assert "PYTHON: interpreter" in run("cpu_heals", tmp_path, "--help").stdout


@pytest.mark.parametrize(("model", "end"), [("qwen2_5_7b", 800), ("llama3_1_8b_instruct", 1100)])
def test_the_published_chain_composes(model: str, end: int, tmp_path: Path) -> None:
    """Fine-tuning, PPO and GRPO with the published settings, and the evaluation of five turns."""
    from unify_posttrain.healing.plan import Healing, first_steps, later_steps

    lines = run("heals", tmp_path, "seeds=[3]", MODEL=model).stdout.splitlines()
    assert lines[:2] == ["-m", "unify_posttrain.healing"]
    healing = Healing.from_config(compose_config(lines[2:], "heals"))
    assert healing.seeds == (3,) and healing.folder.name == f"heals-{model}"
    groups = [*first_steps(healing), *later_steps(healing, {3: {"base": 0, "peak": 140, "end": end}})]
    steps = {step.name: step for group in groups for step in group}
    sft = compose_config(list(steps["sft-3"].overrides))
    optim = sft.actor_rollout_ref.actor.optim
    assert (optim.lr, optim.lr_warmup_steps_ratio, list(optim.betas), optim.weight_decay) == (1e-6, 0.03, [0.9, 0.98], 0.0)
    assert (sft.data.train_batch_size, sft.trainer.total_training_steps, sft.trainer.n_gpus_per_node) == (64, end, 4)
    assert sft.data.train_max_samples == -1, "all hands"
    ppo = compose_config(list(steps["ppo-peak-3"].overrides))
    assert {key: ppo.environment[key] for key in ("score", "credit", "gae", "max_turns")} == {
        "score": "sum", "credit": "turn", "gae": "turn", "max_turns": 5,
    }  # fmt: skip
    actor = ppo.actor_rollout_ref.actor
    assert (ppo.algorithm.gamma, ppo.algorithm.lam, ppo.actor_rollout_ref.rollout.temperature) == (0.9, 0.95, 0.2)
    assert (actor.clip_ratio_high, ppo.critic.cliprange_value, actor.ppo_epochs, actor.optim.lr) == (0.1, 0.1, 4, 1e-6)
    assert compose_config(list(steps["grpo-end-3"].overrides)).fusion.algorithm == "grpo"
    shown = run("heals", tmp_path, "--help").stdout
    assert "Not run here: needs 4 GPUs" in shown and "arXiv 2509.12235" in shown


def test_smoke_gpu_prepares_examines_and_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model through what real runs use: vLLM, rows without padding, FSDP. A dry run starts with the plan."""
    monkeypatch.setenv("UNIFY_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    lines = run("smoke_gpu", tmp_path, "fusion.seed=3").stdout.splitlines()
    modules = [lines[at + 1].removeprefix("unify_posttrain.") for at, line in enumerate(lines) if line == "-m"]
    assert modules == ["prepare", "doctor", "train"]
    given = lines[lines.index("unify_posttrain.train") + 1 :]
    assert given == lines[lines.index("unify_posttrain.doctor") + 1 : lines.index("unify_posttrain.train") - 1]
    for flag in ("+dry_run=true", "--dry-run"):
        done = run("smoke_gpu", tmp_path, "fusion.seed=3", flag)
        config = composed(done)
        assert done.stdout.splitlines()[2:] == [*given, "+dry_run=true"] and config.fusion.seed == 3
    assert config.actor_rollout_ref.rollout.name == "vllm" and config.actor_rollout_ref.model.use_remove_padding
    assert config.actor_rollout_ref.actor.strategy == "fsdp" and config.trainer.device == "cuda"
    assert "write it by: python -m unify_posttrain.prepare task=arithmetic model=tiny_qwen2" in plan(config)
    shown = run("smoke_gpu", tmp_path, "--help").stdout
    assert "Not run here: needs a GPU" in shown and "unify_posttrain.train" not in shown

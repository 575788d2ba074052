"""Start-up checks: every mistake names key, value and remedy before Ray, and good input passes."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

from unify_posttrain import __version__
from unify_posttrain.algorithms import ALGORITHMS
from unify_posttrain.config import check_choices, compose_config
from unify_posttrain.runs import state
from unify_posttrain.runs.continuity import settings
from unify_posttrain.startup.checks import check_config
from unify_posttrain.startup.data_checks import check_data
from unify_posttrain.startup.dry_run import describe_run
from unify_posttrain.tasks.arithmetic import write_splits
from unify_posttrain.tasks.tiny_model import build_base_model

ROOT = Path(__file__).resolve().parents[2]
SPLITS = {
    name: {"digits": [digits], "train": train, "test": 4}
    for name, digits, train in (("easy", 1, 0), ("hard", 2, 64), ("ood", 3, 0))
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and an untrained model folder."""
    home = tmp_path_factory.mktemp("home")
    model = yaml.safe_load((ROOT / "conf" / "model" / "tiny_qwen2.yaml").read_text())["prepare"]["model"]
    model |= {"layers": 1, "hidden_size": 32, "heads": 1, "kv_heads": 1, "intermediate_size": 32, "folder": None}
    model["pretraining"] |= {"steps": 1, "batch_size": 2, "digits": {1: 1.0}, "careless": {}}
    build_base_model(home / "models" / "tiny_qwen2", model)
    write_splits(home / "data" / "arithmetic", {"name": "arithmetic", "folder": "-", "seed": 0, "splits": SPLITS})
    return home


@pytest.fixture
def compose(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("UNIFY_HOME", str(home))

    def build(*overrides: str):
        small = ["data.train_batch_size=16", "actor_rollout_ref.actor.ppo_mini_batch_size=8", f"trainer.run_dir={tmp_path / 'run'}"]
        return compose_config([*small, *overrides])

    return build


@pytest.fixture
def train_file(home: Path, tmp_path: Path):
    """A changed copy of the training data; gives the override that selects it."""

    def write(change) -> str:
        frame = pd.read_parquet(home / "data" / "arithmetic" / "train.parquet")
        path = tmp_path / "changed.parquet"
        change(frame).to_parquet(path)
        return f"data.train_files={path}"

    return write


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(compose, home: Path, tmp_path: Path) -> None:
    frame = pd.read_parquet(home / "data" / "arithmetic" / "train.parquet")
    frame.head(40).to_parquet(tmp_path / "rows[1].parquet")
    frame.to_parquet(tmp_path / "rows1.parquet")
    assert check_data(compose(f"data.train_files=['{tmp_path}/rows[1].parquet']", "algorithm=grpo")).train_rows == 40


@pytest.mark.parametrize("algorithm", ["hpt", "luffy", "sft", "grpo", "dr_grpo", "ppo"])
def test_good_input_passes_and_is_described(compose, algorithm) -> None:
    config = compose(f"algorithm={algorithm}", "trainer.total_training_steps=8")
    assert check_config(config).name == algorithm
    report = check_data(config)
    assert (report.train_rows, report.train_dropped, report.val_rows) == (64, 0, 12)
    text = describe_run(config, report)
    # 16 x 8; a prompt without a target gets eight rollouts of LUFFY too (fusion.demo.missing=rl), and the plan says the most
    rollouts = {"hpt": 128, "luffy": 128, "sft": 0, "grpo": 128, "dr_grpo": 128, "ppo": 128}[algorithm]
    assert f"16 prompts -> {rollouts} rollouts" in text and "nothing was started" in text
    assert ("\ncritic  " in text) == (algorithm == "ppo")


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["actor_rollout_ref.rollout.n=1"], r"rollout\.n=1.*2 or more"),
        (["actor_rollout_ref.rollout.n=1", "algorithm=luffy"], r"rollout\.n=1.*2 or more"),
        (["actor_rollout_ref.rollout.n=1", "algorithm=grpo"], r"rollout\.n=1.*2 or more"),
        (["trainer.switch_gate=9"], r"trainer\.switch_gate=9.*rollout\.n=8"),
        (["trainer.switch_gate=-2"], r"trainer\.switch_gate=-2"),
        (["fusion.hpt.gate_rate=1.5"], r"gate_rate=1\.5.*\[0, 1\]"),
        (["trainer.unify_strategy=balance"], r"unify_strategy='balance'.*switch, soft, no"),
        (["trainer.switch_gate=1", "fusion.hpt.switch_gate=2"], r"switch_gate=1 and fusion\.hpt\.switch_gate=2"),
        (["actor_rollout_ref.rollout.custom.portions=0"], r"rollout\.custom\.portions=0 must be .* at least 1"),
        (["actor_rollout_ref.rollout.custom.lanes=0"], r"rollout\.custom\.lanes=0 must be .* at least 1"),
        (["actor_rollout_ref.rollout.custom.lanes=two"], r"rollout\.custom\.lanes=two must be"),
        (["actor_rollout_ref.rollout.custom.portions=null"], r"rollout\.custom\.portions=None must be"),
        (["data.train_batch_size=15"], r"train_batch_size=15 must be a multiple of .*ppo_mini_batch_size=8"),
        (["actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=48"], r"64 rows.*ppo_micro_batch_size_per_gpu=48 does not divide"),
        (["trainer.n_gpus_per_node=3", "algorithm=grpo"], r"cannot be dealt to 3 ranks"),
        (["+fusion.shapping=1"], r"fusion\.shapping is unknown to algorithm=hpt; did you mean fusion\.shaping\?"),
        (["fusion.agg.rl=mean"], r"fusion\.agg.*'mean'.*token-mean"),
        (["actor_rollout_ref.actor.loss_agg_mode=token-mean"], r"set fusion\.agg\.rl"),
        (["fusion.clip=always"], r"fusion\.clip='always'.*none, ppo"),
        (["fusion.demo.overlong=cut", "algorithm=hpt"], r"fusion\.demo\.overlong='cut'"),
        (["fusion.demo.max_length=100"], r"fusion\.demo\.max_length=100.*64"),
        (["fusion.shaping.gamma=0", "algorithm=luffy"], r"fusion\.shaping\.gamma=0"),
        (["actor_rollout_ref.rollout.temperature=0.7"], r"temperature=0\.7.*allow_tempered_nll"),
        (["algorithm=sft_then_rl", "actor_rollout_ref.rollout.temperature=0.7"], r"temperature=0\.7.*allow_tempered_nll"),
        (["algorithm=srft", "fusion.luffy.on_adv_weight=2"], r"fusion\.luffy\.on_adv_weight=2.*set it to 1"),
        (["algorithm=srft", "fusion.luffy.prefix_adv_weight=0"], r"fusion\.luffy\.prefix_adv_weight=0.*set it to 1"),
        (["algorithm=sft", "fusion.demo.missing=rl"], r"fusion\.demo\.missing=rl.*sft"),
        (["algorithm.adv_estimator=gae"], r"adv_estimator=gae.*algorithm=hpt has no critic; use grpo, or algorithm=ppo"),
        (["algorithm.adv_estimator=gae", "algorithm=grpo"], r"adv_estimator=gae.*algorithm=grpo has no critic"),
        (["critic.enable=true", "algorithm=grpo"], r"critic\.enable=true: algorithm=grpo.*null, or use algorithm=ppo"),
        (["trainer.critic_warmup=3"], r"critic_warmup=3: algorithm=hpt has no critic.*set it to 0"),
        (["algorithm.adv_estimator=remax"], r"adv_estimator=remax needs a greedy rollout.*use grpo"),
        (["algorithm.use_kl_in_reward=true"], r"use_kl_in_reward=true.*use_kl_loss"),
        (["actor_rollout_ref.actor.policy_loss.loss_mode=gspo"], r"loss_mode=gspo is not supported"),
        (["actor_rollout_ref.rollout.skip_rollout=true"], r"skip_rollout=True is not supported"),
        (["+distillation.enabled=true"], r"distillation.enabled=True is not supported \(no term reads a teacher\)"),
        (["+skip.rollout.enable=true"], r"skip.rollout.enable=True is not supported"),
        (["+trainer.checkpoint_callback_class=a.B"], r"checkpoint_callback_class=a.B is not supported"),
        (["+data.mm_processor_kwargs={fps: 2}"], r"data.mm_processor_kwargs=.*is not supported"),
        (["algorithm.rollout_correction.rollout_is=token"], r"rollout_is=token is not supported"),
        (["data.reward_impl_version=6"], r"reward_impl_version=6.*compute_score"),
        (["actor_rollout_ref.model.path=/nowhere/model"], r"model\.path=/nowhere/model does not exist; check the path"),
        (["data.train_files=/nowhere/train.parquet"], r"/nowhere/train\.parquet does not exist"),
        (["data.max_response_length=600"], r"616 exceeds.*max_position_embeddings=512"),
        (["actor_rollout_ref.actor.strategy=fsdp"], r"strategy=fsdp cannot run on CPU"),
        (["task=custom"], r"data\.\w+_files is not set"),
        (["trainer.resume_mode=resume_path", "trainer.resume_from_path=/nowhere/step_3"], r"global_step_N"),
    ],
)
def test_configuration_mistakes(compose, overrides, message) -> None:
    with pytest.raises(ValueError, match=message):
        check_all(compose("algorithm=hpt", *overrides))


def test_an_extended_context_counts(compose) -> None:
    """conf/model/qwen2_5_math_7b.yaml extends the context without touching the folder."""
    key = "+actor_rollout_ref.model.override_config.max_position_embeddings=1024"
    check_all(compose("algorithm=grpo", "data.max_response_length=600", key))


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["algorithm.adv_estimator=grpo"], r"adv_estimator=grpo does not read the critic of algorithm=ppo; set it to gae"),
        (["critic.enable=false"], r"critic\.enable=false: algorithm=ppo.*set it to null"),
        (["trainer.critic_warmup=40"], r"critic_warmup=40 exceeds trainer\.total_training_steps=36.*lower it"),
        (["critic.loss_agg_mode=seq-mean-token-sum-norm"], r"critic\.loss_agg_mode=seq.*-norm; choose one of token-mean"),
        (["critic.shuffle=true"], r"critic\.shuffle=true is not supported"),
        (["algorithm.use_pf_ppo=true"], r"use_pf_ppo=true is not supported"),
        (["critic.strategy=megatron"], r"critic\.strategy=megatron is not supported"),
        (["critic.strategy=fsdp"], r"critic\.strategy=fsdp cannot run on CPU; use fsdp2"),
        (["critic.model.path=/nowhere/critic"], r"critic\.model\.path=/nowhere/critic holds no config\.json"),
        (["critic.ppo_mini_batch_size=6"], r"train_batch_size=16 must be a multiple of critic\.ppo_mini_batch_size=6"),
        (["critic.ppo_micro_batch_size_per_gpu=48"], r"64 rows.*critic\.ppo_micro_batch_size_per_gpu=48 does not divide"),
        (["critic.ppo_micro_batch_size_per_gpu=null"], r"critic\.ppo_micro_batch_size_per_gpu=None is not set"),
        (["critic.forward_micro_batch_size_per_gpu=0"], r"critic\.forward_micro_batch_size_per_gpu=0 is not set"),
        (
            ["critic.use_dynamic_bsz=true", "critic.forward_max_token_len_per_gpu=79"],
            r"forward_max_token_len_per_gpu=79 is smaller than one row.*= 80; raise it",
        ),
        (
            ["trainer.n_gpus_per_node=2", "actor_rollout_ref.rollout.n=1", "critic.ppo_mini_batch_size=1",
             "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4"],
            r"critic\.ppo_mini_batch_size=1 x rollout\.n=1 rows cannot be dealt to 2 ranks",
        ),
    ],
)  # fmt: skip
def test_critic_mistakes(compose, overrides, message) -> None:
    with pytest.raises(ValueError, match=message):
        check_config(compose("algorithm=ppo", *overrides))


@pytest.mark.parametrize("hardware", [(), ("hardware=gpu_1", "+dry_run=true"), ("hardware=node_8gpu", "+dry_run=true")])
def test_one_rollout_is_enough_for_a_critic(compose, hardware) -> None:
    single = ("actor_rollout_ref.rollout.n=1", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8", *hardware)
    assert check_config(compose("algorithm=ppo", *single)).needs_critic
    with pytest.raises(ValueError, match=r"rollout\.n=1.*2 or more"):
        check_config(compose("algorithm=grpo", *single))


def check_all(config) -> None:
    check_config(config)
    check_data(config)


def test_unknown_group_choice_lists_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match=rf"algorithm=hpd is unknown; choose one of {', '.join(sorted(ALGORITHMS))}; did you mean hpt"
    ):
        check_choices(["algorithm=hpd"])
    with pytest.raises(ValueError, match="hardware=gpu is unknown"):
        compose_config(["hardware=gpu"])


def test_missing_prepared_model_names_the_command(compose, home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = compose("algorithm=hpt")
    monkeypatch.setenv("UNIFY_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"does not exist; build it with: python -m unify_posttrain\.prepare"):
        check_config(config)
    with pytest.raises(ValueError, match=r"train_files.*python -m unify_posttrain\.prepare task=arithmetic"):
        check_config(compose("algorithm=hpt", f"actor_rollout_ref.model.path={home / 'models' / 'tiny_qwen2'}"))


@pytest.mark.slow
def test_missing_target_column(compose, train_file) -> None:
    override = train_file(lambda frame: frame.drop(columns="target"))
    with pytest.raises(ValueError, match=r"no column 'target'.*algorithm=hpt trains demonstrations.*algorithm=grpo"):
        check_all(compose("algorithm=hpt", override))
    check_all(compose("algorithm=grpo", override))


@pytest.mark.parametrize("column", ["prompt", "reward_model", "data_source"])
def test_missing_required_column(compose, train_file, column) -> None:
    with pytest.raises(ValueError, match=rf"changed\.parquet: column '{column}' is missing"):
        check_all(compose("algorithm=grpo", train_file(lambda frame: frame.drop(columns=column))))


@pytest.mark.slow
def test_empty_unreadable_and_malformed_files(compose, train_file, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no rows|cannot be read"):
        check_all(compose("algorithm=hpt", train_file(lambda frame: frame.iloc[:0])))
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 this is no parquet file")
    with pytest.raises(ValueError, match=r"broken\.parquet cannot be read as parquet"):
        check_all(compose("algorithm=hpt", f"data.train_files={broken}"))
    with pytest.raises(ValueError, match=r"row 0: column 'prompt' must be a non-empty list"):
        check_all(compose("algorithm=hpt", train_file(lambda frame: frame.assign(prompt="12+34="))))
    with pytest.raises(ValueError, match=r"hold 8 usable prompts, fewer than data\.train_batch_size=16"):
        check_all(compose("algorithm=hpt", train_file(lambda frame: frame.iloc[:8])))


@pytest.mark.slow
def test_long_prompts_are_left_out_or_refused_never_cut(compose, train_file) -> None:
    def lengthen(frame):
        frame = frame.copy()
        frame["prompt"] = [[{"role": "user", "content": "1" * 30}] if row < 3 else list(p) for row, p in enumerate(frame["prompt"])]
        return frame

    override = train_file(lengthen)
    assert check_data(compose("algorithm=hpt", override)).train_dropped == 3
    with pytest.raises(ValueError, match=r"prompt of row 0 \(and 2 more\) is longer than data\.max_prompt_length=16"):
        check_all(compose("algorithm=hpt", override, "data.filter_overlong_prompts=false"))
    with pytest.raises(ValueError, match="every one of 64 prompts is longer"):
        check_all(compose("algorithm=hpt", "data.max_prompt_length=4"))


@pytest.mark.slow
def test_demonstrations_over_the_limit_under_each_policy(compose) -> None:
    short = ("algorithm=hpt", "fusion.demo.max_length=20")  # worked two-digit sums need about 28 tokens
    with pytest.raises(ValueError, match=r"training row \d+: the demonstration has 2\d tokens.*overlong=drop or truncate"):
        check_all(compose(*short, "fusion.demo.overlong=error"))
    with pytest.raises(ValueError, match=r"no usable target and fusion\.demo\.missing=error"):
        check_all(compose(*short, "fusion.demo.overlong=drop", "fusion.demo.missing=error"))
    check_all(compose(*short, "fusion.demo.overlong=drop"))
    check_all(compose(*short, "fusion.demo.overlong=truncate", "fusion.demo.missing=error"))


@pytest.mark.slow
def test_more_steps_than_data(compose) -> None:
    with pytest.raises(ValueError, match=r"total_training_steps=36.*2 epochs have 8 steps; raise trainer\.total_epochs"):
        check_all(compose("algorithm=hpt", "trainer.total_epochs=2"))


def test_resuming_with_other_data_is_refused(compose, train_file, tmp_path: Path) -> None:
    from unify_posttrain.runs import state

    config = compose("algorithm=hpt")
    folder = Path(config.trainer.default_local_dir) / "global_step_2"
    folder.mkdir(parents=True)
    state.write_json(folder / state.STATE, {"format": 1, "identity": state.identity(config), "demonstrations": None})
    state.mark_complete(folder)
    check_config(config)
    with pytest.raises(ValueError, match=r"data\.train_files=.*trainer\.experiment_name"):
        check_config(compose("algorithm=hpt", train_file(lambda frame: frame.iloc[:60])))
    newer = json.loads((folder / state.STATE).read_text()) | {"format": 99}
    state.write_json(folder / state.STATE, newer)
    state.mark_complete(folder)
    with pytest.raises(ValueError, match="newer unify_posttrain"):
        check_config(config)


# --- a resume ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.train_max_samples=32", r"data\.train_max_samples=-1, this run has 32"),
        ("data.shuffle=false", r"data\.shuffle=True, this run has False"),
        ("data.seed=3", r"data\.seed=0, this run has 3"),
        ("data.train_batch_size=32", r"data\.train_batch_size=16, this run has 32"),
        ("fusion.seed=3", r"fusion\.seed=0, this run has 3"),
    ],
)
def test_data_that_changed_before_a_resume_is_refused_before_ray(compose, tmp_path, override, words) -> None:
    """They failed after Ray had started, by an error of the loader without a text."""
    config = compose()
    folder = tmp_path / "run" / "checkpoints" / "global_step_2"
    folder.mkdir(parents=True)
    own = {"format": state.FORMAT, "version": __version__, "identity": state.identity(config), "settings": settings(config)}
    state.write_json(folder / state.STATE, own)
    state.mark_complete(folder)
    check_config(compose())
    with pytest.raises(ValueError, match=words + r"; set it back, .*trainer\.experiment_name.*trainer\.resume_mode=disable"):
        check_config(compose(override))

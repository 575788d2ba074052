"""Start-up checks: every mistake that can be known before Ray starts is reported here, naming key, value and remedy."""

from __future__ import annotations

import json
import logging
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from unify_posttrain.algorithms import Algorithm, build_algorithm
from unify_posttrain.algorithms.schedules import warmup_cosine
from unify_posttrain.config import steps_of_episodes
from unify_posttrain.experience.rules import RolloutsOnly
from unify_posttrain.objective import CurrentPolicy, PolicyGradient
from unify_posttrain.rollout.vllm_cpu_checks import check_vllm_on_cpu, declares_ranks
from unify_posttrain.startup.critic_checks import check_critic
from unify_posttrain.startup.forward_checks import check_fused_kernels
from unify_posttrain.startup.inputs import missing_files, missing_model
from unify_posttrain.startup.parallel_checks import check_parallelism
from unify_posttrain.startup.reward_checks import check_reward

logger = logging.getLogger(__name__)

TESTED_VERL = "0.7.1"
SEED_KEYS = {
    "trainer.unify_strategy": "fusion.hpt.strategy",
    "trainer.switch_gate": "fusion.hpt.switch_gate",
    "trainer.switch_gate_off": "fusion.hpt.switch_gate_off",
}
REQUIRED = (
    "fusion.algorithm",
    "data.train_files",
    "data.val_files",
    "actor_rollout_ref.model.path",
    "reward.custom_reward_function.path",
)
WITHOUT_GROUP_BASELINE = ("gae", "reinforce_plus_plus")  # estimators that do not compare the rollouts of a prompt
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+$")


def check_config(config: DictConfig) -> Algorithm:
    """Everything that the configuration alone can tell. Returns the algorithm.

    Raises:
        ValueError: a contradiction, an unknown value, or something that this release does not support.
    """
    _check_versions()
    for key in REQUIRED:
        if OmegaConf.is_missing(config, key) or OmegaConf.select(config, key) is None:
            raise ValueError(f"{key} is not set; give it on the command line: {key}=…")
    _check_spellings(config)
    algorithm = build_algorithm(OmegaConf.to_container(config.actor_rollout_ref.actor, resolve=True))
    _check_unsupported(config, algorithm)
    check_critic(config, algorithm)
    _check_likelihood_temperature(config, algorithm)
    _check_batch(config, algorithm)
    check_reward(config)
    _check_hardware(config)
    check_parallelism(config)
    check_fused_kernels(config)
    _check_model(config)
    _check_resume(config)
    return algorithm


def _check_versions() -> None:
    try:
        installed = version("verl")
    except PackageNotFoundError:
        raise ValueError(f"verl is not installed; pip install verl=={TESTED_VERL}") from None
    if installed != TESTED_VERL:
        raise ValueError(f"verl {installed} is installed, this release extends verl {TESTED_VERL}: pip install verl=={TESTED_VERL}")


def _check_spellings(config: DictConfig) -> None:
    for seed_key, own in SEED_KEYS.items():
        given, value = OmegaConf.select(config, seed_key), OmegaConf.select(config, own)
        if given is not None and given != value:
            raise ValueError(f"{seed_key}={given} and {own}={value} say different things; set one of them")
    expected = OmegaConf.select(config, "fusion.agg.rl")
    mirrored = config.actor_rollout_ref.actor.loss_agg_mode
    if mirrored != expected and not (expected == "sum-norm" and mirrored == "seq-mean-token-sum-norm"):
        raise ValueError(
            f"actor_rollout_ref.actor.loss_agg_mode={mirrored} is verl's copy of fusion.agg.rl={expected}; set fusion.agg.rl"
        )


def _check_unsupported(config: DictConfig, algorithm: Algorithm) -> None:
    """Options of verl that our terms would silently ignore, or that break with changed rows."""
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    refuse = [
        (
            "trainer.use_legacy_worker_impl",
            config.trainer.use_legacy_worker_impl,
            {"enable"},
            "the FSDP workers are the ones extended",
        ),
        (
            "actor_rollout_ref.actor.policy_loss.loss_mode",
            actor.policy_loss.loss_mode,
            {"vanilla"},
            "losses are terms: choose an algorithm",
        ),
        ("actor_rollout_ref.actor.use_prefix_grouper", actor.use_prefix_grouper, {False}, "groups change their size here"),
        (
            "actor_rollout_ref.rollout.skip_rollout",
            rollout.skip_rollout,
            {False},
            "it wraps an object that this trainer does not use",
        ),
        ("transfer_queue.enable", config.transfer_queue.enable, {False}, "this trainer passes batches by itself"),
        ("algorithm.rollout_correction.bypass_mode", config.algorithm.rollout_correction.bypass_mode, {False}, "no term reads it"),
        ("algorithm.rollout_correction.rollout_is", config.algorithm.rollout_correction.rollout_is, {None}, "no term reads it"),
        ("algorithm.rollout_correction.rollout_rs", config.algorithm.rollout_correction.rollout_rs, {None}, "no term reads it"),
        (
            "actor_rollout_ref.actor.checkpoint.async_save",
            actor.checkpoint.async_save,
            {False},
            "a checkpoint is marked complete as soon as it is written",
        ),
        ("actor_rollout_ref.actor.shuffle", actor.shuffle, {False}, "rows are dealt to mini-batches by the trainer"),
    ]
    for key, value, supported, why in refuse:
        if value not in supported:
            raise ValueError(f"{key}={value} is not supported ({why}); set it to {next(iter(supported))}")
    if str(config.algorithm.adv_estimator) == "remax":
        raise ValueError(
            "algorithm.adv_estimator=remax needs a greedy rollout beside the sampled ones, which this trainer does not generate; "
            "use grpo"
        )
    needs_target = any(phase.algorithm.experience.needs_target for phase in algorithm.phases)
    if OmegaConf.select(config, "algorithm.filter_groups.enable") and needs_target:
        raise ValueError(
            "algorithm.filter_groups.enable=true removes the groups that the gate sends to demonstrations; set it to false"
        )
    if config.algorithm.use_kl_in_reward and algorithm.one_update:
        raise ValueError(
            f"algorithm.use_kl_in_reward=true counts the KL of algorithm={algorithm.name} twice: its reward holds it, times "
            "fusion.online_sft.beta; set it to false"
        )
    if config.algorithm.use_kl_in_reward and needs_target:
        raise ValueError(
            "algorithm.use_kl_in_reward=true has no meaning for demonstrations; use actor_rollout_ref.actor.use_kl_loss=true"
        )


def _check_likelihood_temperature(config: DictConfig, algorithm: Algorithm) -> None:
    temperature = config.actor_rollout_ref.rollout.temperature
    terms = [term for phase in algorithm.phases for term in (*phase.algorithm.terms, *phase.algorithm.replay_terms)]
    likelihood = any(
        isinstance(term.loss, PolicyGradient) and isinstance(term.loss.reference, CurrentPolicy) and term.members.tokens != "on"
        for term in terms
    )
    if likelihood and temperature != 1 and not algorithm.fusion.allow_tempered_nll:
        raise ValueError(
            f"actor_rollout_ref.rollout.temperature={temperature} would also temper the likelihood of demonstrations; set it to 1, "
            "or fusion.allow_tempered_nll=true"
        )


def _check_batch(config: DictConfig, algorithm: Algorithm) -> None:
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    batch, mini, ranks = config.data.train_batch_size, actor.ppo_mini_batch_size, _ranks(config)
    if min(batch, mini, ranks, rollout.n) < 1:
        raise ValueError(
            f"data.train_batch_size={batch}, ppo_mini_batch_size={mini}, rollout.n={rollout.n} and ranks={ranks} must be >= 1"
        )
    if batch % mini:
        raise ValueError(f"data.train_batch_size={batch} must be a multiple of actor_rollout_ref.actor.ppo_mini_batch_size={mini}")
    if algorithm.one_update and (batch != mini or actor.ppo_epochs != 1):
        raise ValueError(
            f"algorithm={algorithm.name} holds for rollouts of the current policy: one update per batch, so set "
            f"actor_rollout_ref.actor.ppo_mini_batch_size={batch} (it is {mini}) and ppo_epochs=1 (it is {actor.ppo_epochs})"
        )
    for phase in algorithm.phases:
        schedule, lr = phase.algorithm.fusion.lr_schedule, phase.lr or actor.optim.lr
        if schedule is not None:
            warmup_cosine(0, 1, schedule.start, schedule.warmup_ratio, schedule.min_lr / lr)  # checks its own numbers
    episodes = algorithm.fusion.online_sft.episodes
    if episodes is not None and config.trainer.total_training_steps != steps_of_episodes(episodes, batch):
        raise ValueError(
            f"fusion.online_sft.episodes={episodes} at {batch} prompts a step are {steps_of_episodes(episodes, batch)} steps, "
            f"trainer.total_training_steps={config.trainer.total_training_steps}; set one of them"
        )
    shards = ranks // actor.ulysses_sequence_parallel_size
    if not actor.use_dynamic_bsz and batch * rollout.n % ranks:
        raise ValueError(
            f"data.train_batch_size={batch} x rollout.n={rollout.n} rows cannot be dealt to {ranks} ranks; change one of them, "
            "or set actor_rollout_ref.actor.use_dynamic_bsz=true"
        )
    if isinstance(algorithm.experience, RolloutsOnly):
        compares = algorithm.group_baseline and str(config.algorithm.adv_estimator) not in WITHOUT_GROUP_BASELINE
        if rollout.n < 2 and compares:
            raise ValueError(f"actor_rollout_ref.rollout.n={rollout.n}: a group of one has no baseline, set it to 2 or more")
        if mini * rollout.n % shards:
            raise ValueError(
                f"ppo_mini_batch_size={mini} x rollout.n={rollout.n} rows cannot be dealt to {shards} ranks; change one of them"
            )
    micro = actor.ppo_micro_batch_size_per_gpu
    if not actor.use_dynamic_bsz:
        if micro is None or micro < 1:
            raise ValueError("actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu is not set; set it, or use_dynamic_bsz=true")
        rows = mini * rollout.n // shards
        if rows < 1 or rows % micro:
            raise ValueError(
                f"ppo_mini_batch_size={mini} x rollout.n={rollout.n} / {shards} ranks = {rows} rows, which "
                f"ppo_micro_batch_size_per_gpu={micro} does not divide; change one of them"
            )
    width = config.data.max_prompt_length + config.data.max_response_length
    if actor.use_dynamic_bsz and actor.ppo_max_token_len_per_gpu < width:
        raise ValueError(
            f"actor_rollout_ref.actor.ppo_max_token_len_per_gpu={actor.ppo_max_token_len_per_gpu} is smaller than one row: "
            f"max_prompt_length + max_response_length = {width}"
        )
    if not 0 < algorithm.fusion.demo.max_length <= config.data.max_response_length:
        raise ValueError(
            f"fusion.demo.max_length={algorithm.fusion.demo.max_length} must lie in 1..data.max_response_length="
            f"{config.data.max_response_length}"
        )


def _check_hardware(config: DictConfig) -> None:
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    if rollout.name == "hf":
        if rollout.tensor_model_parallel_size != 1:
            raise ValueError(
                "rollout.name=hf has no tensor parallelism; set actor_rollout_ref.rollout.tensor_model_parallel_size=1"
            )
        if not rollout.get("custom") or "gather_seconds" not in rollout.custom:
            raise ValueError("rollout.name=hf needs actor_rollout_ref.rollout.custom.gather_seconds; hardware=cpu sets it")
        if actor.strategy != "fsdp2":
            raise ValueError(
                f"actor_rollout_ref.actor.strategy={actor.strategy} cannot run on CPU; use fsdp2 (hardware=cpu sets it)"
            )
    elif rollout.name == "vllm":
        import torch

        # A dry run may plan for GPUs that are elsewhere; ranks that are declared to Ray are this machine's.
        elsewhere = OmegaConf.select(config, "dry_run", default=False) and not declares_ranks(config)
        if not torch.cuda.is_available() and not elsewhere:
            check_vllm_on_cpu(config)


def _check_model(config: DictConfig) -> None:
    path = str(config.actor_rollout_ref.model.path)
    folder = Path(path).expanduser()
    if not folder.is_dir():
        if HUB_NAME.match(path) and not path.startswith((".", "outputs/")) and OmegaConf.select(config, "prepare.model") is None:
            return  # a name on the hub; its download reports its own errors
        built = missing_model(config)
        if built and OmegaConf.select(config, "dry_run", default=False):
            return
        remedy = f"build it with: {built[0].command}" if built else "check the path"
        raise ValueError(f"actor_rollout_ref.model.path={path} does not exist; {remedy}")
    description = folder / "config.json"
    if not description.is_file():
        raise ValueError(f"actor_rollout_ref.model.path={path} holds no config.json: not a model folder of transformers")
    model = json.loads(description.read_text(encoding="utf-8"))
    if "auto_map" in model and not config.actor_rollout_ref.model.get("trust_remote_code", False):
        logger.warning(
            "%s brings code of its own (auto_map); it is not run here, but verl's reward workers load the tokenizer with "
            "trust_remote_code=True. Use only model folders you trust.",
            folder,
        )
    override = OmegaConf.select(config, "actor_rollout_ref.model.override_config.max_position_embeddings")
    context = override or model.get("max_position_embeddings")
    width = config.data.max_prompt_length + config.data.max_response_length
    if context is not None and width > context:
        raise ValueError(
            f"data.max_prompt_length + data.max_response_length = {width} exceeds the model's max_position_embeddings={context}; "
            "shorten them, or extend the model's context by actor_rollout_ref.model.override_config (as model=qwen2_5_math_7b does)"
        )


def _check_resume(config: DictConfig) -> None:
    from unify_posttrain.runs import state

    there = _check_files(config)
    folder = state.resume_folder(config)
    if folder is not None and there:
        state.check_identity(state.read_state(folder), config, folder)


def _check_files(config: DictConfig) -> bool:
    """Whether all data files are there. A dry run goes on without those that `prepare` writes (`trainer.inputs`)."""
    missing = missing_files(config)
    if missing and not OmegaConf.select(config, "dry_run", default=False):
        raise ValueError(f"{missing[0].what} does not exist; write it with: {missing[0].command}")
    return not missing


def _ranks(config: DictConfig) -> int:
    return config.trainer.nnodes * config.trainer.n_gpus_per_node

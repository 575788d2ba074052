"""Start-up checks: every mistake that can be known before Ray starts is reported here, naming key, value and remedy."""

from __future__ import annotations

import re
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from unify_posttrain.algorithms import Algorithm, Phase, build_algorithm
from unify_posttrain.config import verl_agg, verl_dual
from unify_posttrain.objective import CurrentPolicy, PolicyGradient
from unify_posttrain.paths import is_remote
from unify_posttrain.rollout.vllm_cpu_checks import check_vllm_on_cpu, declares_ranks
from unify_posttrain.startup.backend_checks import check_backend, check_versions
from unify_posttrain.startup.batch_checks import check_batch
from unify_posttrain.startup.critic_checks import check_critic
from unify_posttrain.startup.environment_checks import check_environment
from unify_posttrain.startup.episode_checks import check_episodes
from unify_posttrain.startup.forward_checks import check_fused_kernels
from unify_posttrain.startup.inputs import missing_files, missing_model
from unify_posttrain.startup.memory_checks import check_memory
from unify_posttrain.startup.model_checks import TRUST, check_code, check_weights
from unify_posttrain.startup.parallel_checks import check_parallelism
from unify_posttrain.startup.place_checks import check_places
from unify_posttrain.startup.reward_checks import check_reward
from unify_posttrain.untrusted.documents import read_object

REQUIRED = (
    "fusion.algorithm",
    "data.train_files",
    "data.val_files",
    "actor_rollout_ref.model.path",
    "reward.custom_reward_function.path",
)
# Keys that verl has, too, and what decides: (verl's key or our copy for workers, the deciding key, values that go together).
COPIES = (
    ("actor_rollout_ref.actor.loss_agg_mode", "fusion.agg.rl", verl_agg),
    ("actor_rollout_ref.actor.clip_ratio_c", "fusion.dual_clip", verl_dual),
    ("fusion.adv_estimator", "algorithm.adv_estimator", str),
    ("fusion.norm_adv_by_std", "algorithm.norm_adv_by_std_in_grpo", bool),
    ("data.trust_remote_code", TRUST, bool),
)
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+$")


def check_config(config: DictConfig) -> Algorithm:
    """Everything that the configuration alone can tell. Returns the algorithm.

    Raises:
        ValueError: a contradiction, an unknown value, or something that this release does not support.
    """
    check_versions()
    check_backend(config)  # before what depends on it: verl's own settings differ with its version
    check_environment(config)
    check_places(config)
    for key in REQUIRED:
        if OmegaConf.is_missing(config, key) or OmegaConf.select(config, key) is None:
            raise ValueError(f"{key} is not set; give it on the command line: {key}=…")
    _check_spellings(config)
    algorithm = build_algorithm(OmegaConf.to_container(config.actor_rollout_ref.actor, resolve=True))
    _check_unsupported(config, algorithm)
    for phase in algorithm.phases:
        phase.algorithm.check_run(config)
    check_critic(config, algorithm)
    _check_likelihood_temperature(config, algorithm)
    check_batch(config, algorithm)
    check_reward(config)
    check_episodes(config)
    _check_hardware(config)
    check_parallelism(config)
    check_fused_kernels(config)
    _check_model(config)
    there = _check_files(config)
    check_code(config, algorithm.needs_critic)
    check_weights(config, algorithm.needs_critic)
    check_memory(config, algorithm)
    _check_resume(config, there)
    return algorithm


def _check_spellings(config: DictConfig) -> None:
    for copy, key, as_verl in COPIES:
        given, decides = OmegaConf.select(config, copy), OmegaConf.select(config, key)
        if given != as_verl(decides):
            raise ValueError(f"{copy}={given} is a copy of {key}={decides}; set {key}")


# Options of verl 0.9.1 alone, which are off as verl has them.
NEWER = (
    ("distillation.enabled", "no term reads a teacher"),
    *(
        (f"skip.{part}.enable", "it wraps an object that this trainer does not use")
        for part in ("rollout", "async_rollout", "rollout_tq")
    ),
    ("trainer.checkpoint_callback_class", "checkpoints are written and counted here"),
    ("data.mm_processor_kwargs", "prompts and demonstrations are tokenised without them"),
)


def _check_unsupported(config: DictConfig, algorithm: Algorithm) -> None:
    """Options of verl that our terms would silently ignore, or that break with changed rows."""
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    refuse = [
        (
            "trainer.use_legacy_worker_impl",
            config.trainer.use_legacy_worker_impl,
            {"enable"},
            "verl's trainer calls the workers as its FSDP workers are called, whichever backend answers",
        ),
        (
            "trainer.use_v1",  # of verl 0.9.1, where it is on; backend=engine turns it off
            config.trainer.get("use_v1", False),
            {False},
            "verl's newer trainer keeps batches elsewhere and has no stages to extend",
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
            rollout.get("skip_rollout", False),
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
    for key, why in NEWER:
        value = OmegaConf.select(config, key)
        if value:
            raise ValueError(f"{key}={value} is not supported ({why}); leave it as verl has it")
    if str(config.algorithm.adv_estimator) == "remax":
        raise ValueError(
            "algorithm.adv_estimator=remax needs a greedy rollout beside the sampled ones, which this trainer does not generate; "
            "use grpo"
        )
    for phase in algorithm.phases:
        _check_demonstrations(config, phase)


def _check_demonstrations(config: DictConfig, phase: Phase) -> None:
    """Options that have no meaning for groups in which demonstrations stand."""
    if not phase.algorithm.experience.needs_target:
        return
    filtered = config.algorithm.filter_groups if phase.filter_groups is None else phase.filter_groups
    if filtered and filtered["enable"]:
        raise ValueError(
            f"algorithm.filter_groups.enable=true removes groups that algorithm={phase.algorithm.name} needs for demonstrations; "
            "set it to false"
        )
    if config.algorithm.use_kl_in_reward:
        raise ValueError(
            "algorithm.use_kl_in_reward=true has no meaning for demonstrations; use actor_rollout_ref.actor.use_kl_loss=true"
        )


def _check_likelihood_temperature(config: DictConfig, algorithm: Algorithm) -> None:
    temperature = config.actor_rollout_ref.rollout.temperature
    strict = [phase.algorithm for phase in algorithm.phases if not phase.algorithm.fusion.allow_tempered_nll]
    likelihood = any(
        isinstance(term.loss, PolicyGradient) and isinstance(term.loss.reference, CurrentPolicy) and term.members.tokens != "on"
        for each in strict
        for term in (*each.terms, *each.replay_terms)
    )
    if likelihood and temperature != 1:
        raise ValueError(
            f"actor_rollout_ref.rollout.temperature={temperature} would also temper the likelihood of demonstrations; set it to 1, "
            "or fusion.allow_tempered_nll=true"
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
        lanes = rollout.custom.get("lanes", 1)
        if not isinstance(lanes, int) or isinstance(lanes, bool) or lanes < 1:
            raise ValueError(
                f"actor_rollout_ref.rollout.custom.lanes={lanes} must be a number of processes that decode, at least 1; "
                "hardware=cpu takes as many as a rank has threads"
            )
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
    if is_remote(path):
        return  # verl fetches it
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
    model = read_object(description)
    override = OmegaConf.select(config, "actor_rollout_ref.model.override_config.max_position_embeddings")
    context = override or model.get("max_position_embeddings")
    width = config.data.max_prompt_length + config.data.max_response_length
    if context is not None and width > context:
        raise ValueError(
            f"data.max_prompt_length + data.max_response_length = {width} exceeds the model's max_position_embeddings={context}; "
            "shorten them, or extend the model's context by actor_rollout_ref.model.override_config (as model=qwen2_5_math_7b does)"
        )


def _check_resume(config: DictConfig, there: bool) -> None:
    """`there`: the data files are, so that a resume can be compared with them."""
    from unify_posttrain.runs import beginning, origin, state

    folder = beginning.plan(config).folder
    if folder is not None and there:
        written = state.read_state(folder)
        state.check_identity(written, config, folder)
        origin.check_origin(written, folder)


def _check_files(config: DictConfig) -> bool:
    """Whether all data files are there. A dry run goes on without those that `prepare` writes (`trainer.inputs`)."""
    missing = missing_files(config)
    if missing and not OmegaConf.select(config, "dry_run", default=False):
        raise ValueError(f"{missing[0].what} does not exist; write it with: {missing[0].command}")
    return not missing

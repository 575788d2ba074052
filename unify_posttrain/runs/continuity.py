"""What a resume makes of a setting that is not what it was when the checkpoint was written: one list for every key.

A checkpoint carries the settings that matter (`settings`), and a resume compares. The first pattern that fits a key decides:

    REFUSED    another value would be another run, or could not be loaded: an error before Ray starts
    USED       the new value counts from the next step on, and one line of the log names it with the old one
    SAID       the new value has no effect on a run that is resumed, and one line says so
    HARMLESS   nothing that is learned depends on it: names, places, speed

Patterns are those of `fnmatch`; `*` crosses dots. A test holds the list against every key that a command line composes to.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from enum import Enum
from fnmatch import translate
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf

from unify_posttrain import __version__
from unify_posttrain.backend.seams import completed
from unify_posttrain.redaction import redacted


class Resume(Enum):
    """What becomes of a changed setting."""

    REFUSED = "refused"
    USED = "used"
    SAID = "said"
    HARMLESS = "harmless"


def _below(node: str, names: str) -> tuple[str, ...]:
    """Patterns below a node, from their names."""
    return tuple(f"{node}.{name}" for name in names.split())


_MODEL, _ACTOR = "actor_rollout_ref.model", "actor_rollout_ref.actor"
_LORA = "lora_rank lora_alpha target_modules exclude_modules"
_SHARDS = "fsdp_config.strategy fsdp_config.fsdp_size fsdp_config.use_orig_params fsdp_config.qat.*"
_OPTIMIZER = "optimizer optimizer_impl override_optimizer_config*"

REFUSED = (
    "model_engine",
    "fusion.algorithm",
    "fusion.seed",
    "algorithm.adv_estimator",  # decides whether there is a critic, whose state is loaded
    # The rows and their order: the loader's saved place means another row otherwise.
    *_below("data", "train_max_samples shuffle seed train_batch_size gen_batch_size dataloader_num_workers sampler.* datagen.*"),
    *_below("data", "custom_cls.* prompt_key max_prompt_length filter_overlong_prompts tokenizer apply_chat_template_kwargs*"),
    "actor_rollout_ref.rollout.n",
    # What the weights and moments of a checkpoint fit.
    *_below(_MODEL, f"hf_config_path tokenizer_path custom_chat_template lora_adapter_path mtp.* {_LORA}"),
    *_below(_ACTOR, f"strategy qat.* {_SHARDS}"),
    *_below(f"{_ACTOR}.optim", _OPTIMIZER),
    *_below("critic", "enable strategy"),
    # verl 0.9.1's place for adapters, and how it makes tokens of pictures.
    f"{_MODEL}.lora.*",
    "data.mm_processor_kwargs*",
    *_below("critic.model", f"path {_LORA} {_SHARDS}"),
    *_below("critic.optim", _OPTIMIZER),
)
SAID = (
    "trainer.val_before_train",  # a resume validates only what the process before had still to do
    *_below(f"{_ACTOR}.fsdp_config", "seed full_determinism"),  # the state of the generators is loaded
    *_below("critic.model.fsdp_config", "seed full_determinism"),
)
HARMLESS = (
    # Places, names and what is shown.
    *_below("trainer", "project_name experiment_name logger log_val_generations progress wandb_proxy"),
    *_below("trainer", "run_dir default_local_dir default_hdfs_dir validation_data_dir rollout_data_dir"),
    *_below("trainer", "resume_mode resume_from_path val_only save_freq esi_redundant_time del_local_ckpt_after_load"),
    *_below("trainer", "max_actor_ckpt_to_keep max_critic_ckpt_to_keep step_timeout ray_wait_register_center_timeout"),
    *_below("trainer", "device backend use_v1 use_legacy_worker_impl old_log_prob_freq worker_in_driver"),
    *_below("trainer", "nnodes n_gpus_per_node"),  # their product, the ranks, is compared by itself (`state.identity`)
    "dry_run",
    "allow_pickle",
    "prepare.*",
    "shape*",
    "accelerator*",
    "hide_gpus",
    "ray_kwargs.*",
    "global_profiler.*",
    "transfer_queue.*",
    # Of verl 0.9.1, off here (`startup.checks`), with what it would read if it were on.
    *_below("trainer", "v1.* checkpoint_callback_class"),
    "distillation.*",
    "skip.*",
    "*.profiler.*",
    "*._target_",
    # Copies of other keys.
    f"{_ACTOR}.fusion*",
    "critic.model.tokenizer_path",
    # Compared by content or spelling elsewhere (`state.identity`).
    "data.train_files",
    f"{_MODEL}.path",
    # Speed and memory.
    *_below("data", "use_shm filter_overlong_prompts_workers val_batch_size cache_dir"),
    *_below("*model", "override_config.attn_implementation use_shm enable_gradient_checkpointing enable_activation_offload"),
    *_below("*model", "use_remove_padding use_liger use_fused_kernels fused_kernel_options.* tiled_mlp.*"),
    *_below("actor_rollout_ref", "hybrid_engine nccl_timeout"),
    "*micro_batch_size*",
    "*max_token_len_per_gpu",
    "*use_dynamic_bsz",
    "*_offload",
    *_below("fusion", "logits_chunk trim_padding share_prompts first_step_is_current engine_log_probs_are_old"),
    *_below("fusion", "skip_zero_advantage"),
)
# The rest of what HARMLESS names one key of.
REFUSED_REST = (f"{_MODEL}.override_config*", "critic.model.override_config*")
USED = (
    *_below("data", "val_files val_max_samples validation_shuffle max_response_length truncation trust_remote_code"),
    *_below("data", "reward_fn_key reward_impl_version reward_kind tool_config_path"),
    *_below("data", "return_raw_input_ids return_raw_chat return_full_prompt return_multi_modal_inputs"),
    *_below("data", "image_key video_key audio_key image_patch_size image_root function_tool_path"),
    *_below("trainer", "total_epochs total_training_steps test_freq critic_warmup seed_rollouts balance_batch"),
    *_below("trainer", "unify_strategy switch_gate*"),
    "fusion.*",
    "environment*",
    "episode*",
    "algorithm.*",
    "reward.*",
    # Spellings of older releases of verl, which it moves to `reward`.
    "reward_model.*",
    "custom_reward_function.*",
    "sandbox_fusion.*",
    "actor_rollout_ref.actor.*",
    "actor_rollout_ref.ref.*",
    "actor_rollout_ref.rollout.*",
    *_below(_MODEL, "trust_remote_code external_lib"),
    "critic.*",
)
RULES = (
    (Resume.REFUSED, REFUSED),
    (Resume.SAID, SAID),
    (Resume.HARMLESS, HARMLESS),
    (Resume.REFUSED, REFUSED_REST),
    (Resume.USED, USED),
)


# One expression per rule: to match 700 keys of a run with 150 patterns one by one takes a quarter of a second.
_EXPRESSIONS = tuple((kind, re.compile("|".join(map(translate, patterns)))) for kind, patterns in RULES)


@cache
def resume_class(key: str) -> Resume | None:
    """What a resume does with a key; None: no pattern fits, as with a key that was added by `+`."""
    return next((kind for kind, expression in _EXPRESSIONS if expression.match(key)), None)


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything that is not a mapping with entries."""
    for name, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def settings(config: DictConfig) -> dict[str, Any]:
    """What a checkpoint remembers of a configuration, as JSON: every setting that is not harmless, secrets left out.

    Start-up checks have it as it was composed, the trainer as verl wants it (`seams.adapted`): both are remembered alike.
    """
    config = config.copy()
    completed(config)
    content = redacted(OmegaConf.to_container(config, resolve=True))
    return {key: value for key, value in leaves(content) if resume_class(key) is not Resume.HARMLESS}


def changes(saved: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys whose values differ: (before, now).

    Args:
        saved: what a checkpoint carries: `{"version": …, "settings": …}`; nothing from before there were settings in it.
    """
    before = saved.get("settings")
    if before is None:
        return {}
    # A key that another release did not have has not been changed by the user.
    names = {*before, *now} if saved.get("version") == __version__ else {*before} & {*now}
    return {name: (before.get(name), now.get(name)) for name in sorted(names) if before.get(name) != now.get(name)}


def refusal(saved: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first setting that a resume must not change: key, value before, value now; None if there is none."""
    found = changes(saved, now).items()
    return next(((key, before, value) for key, (before, value) in found if resume_class(key) is Resume.REFUSED), None)


def remarks(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Lines about settings that were changed and are used, or have no effect."""
    found, lines = changes(saved, now), []
    for kind, text in (
        (Resume.USED, "settings changed since the checkpoint was written, used from the next step on: %s"),
        (Resume.SAID, "settings changed since the checkpoint was written, without effect on a run that is resumed: %s"),
    ):
        named = [f"{key} {old} -> {new}" for key, (old, new) in found.items() if (resume_class(key) or Resume.USED) is kind]
        lines += [text % ", ".join(named)] if named else []
    return lines

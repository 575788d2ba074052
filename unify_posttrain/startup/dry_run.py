"""What a run is going to do, in one screen: the output of `+dry_run=true`."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from unify_posttrain.algorithms import Algorithm, build_algorithm
from unify_posttrain.experience.row_plan import plan_rows
from unify_posttrain.startup.data_checks import DataReport
from unify_posttrain.startup.inputs import DOWNLOAD, Missing
from unify_posttrain.startup.memory import memory_of_a_rank, model_size


def describe_run(config: DictConfig, data: DataReport | None, missing: Sequence[Missing] = ()) -> str:
    """The plan as text: data, batch arithmetic, terms, steps, memory of a rank, files.

    Args:
        data: None: it could not be read, and the plan says what is known without.
        missing: what is not there yet, and the commands that make it.
    """
    algorithm = build_algorithm(OmegaConf.to_container(config.actor_rollout_ref.actor, resolve=True))
    n, batch = config.actor_rollout_ref.rollout.n, config.data.train_batch_size
    mini_batches = batch // config.actor_rollout_ref.actor.ppo_mini_batch_size
    ranks = config.trainer.nnodes * config.trainer.n_gpus_per_node
    rules = [phase.algorithm.experience for phase in algorithm.phases]
    rollouts = batch * max(rule.rollouts(given) for rule in rules for given in (True, False))
    rows = plan_rows(batch * max(rule.most_rows for rule in rules), ranks, mini_batches)
    width = config.data.max_prompt_length + config.data.max_response_length
    lines = [
        *_algorithm_lines(algorithm),
        f"model        {_model(config.actor_rollout_ref.model.path)}",
        *([f"critic       {_model(config.critic.model.path)}, not counted below"] if algorithm.needs_critic else []),
        f"memory       {memory_of_a_rank(config)}",
        f"engine       {config.actor_rollout_ref.rollout.name}, {config.actor_rollout_ref.actor.strategy}, {ranks} rank(s)",
        f"data         {_data(data)}",
        f"a step       {batch} prompts -> {rollouts} rollouts (n={n}) -> at most {rows.rows} rows in {mini_batches} "
        "optimizer step(s), "
        f"{rows.per_mini_batch} rows per rank and optimizer step",
        f"a row        at most {width} tokens; at most {rows.rows * width} tokens per step",
        f"steps        {_steps(config, data)}, validation every {config.trainer.test_freq}, "
        f"checkpoint every {config.trainer.save_freq}",
        f"run folder   {config.trainer.run_dir} (config.yaml, metrics.jsonl, gate.jsonl, samples/, checkpoints/)",
        *_missing_lines(missing),
        f"checks       passed{'' if data else ', those of the data wait for it'}; nothing was started",
    ]
    return "\n".join(lines) + "\n"


def _model(path: str) -> str:
    size = model_size(path)
    return f"{path}, {size.parameters / 1e6:.2f} M parameters" if size else path


def _data(data: DataReport | None) -> str:
    if data is None:
        return "not read, see below"
    targets = "not needed" if data.without_target is None else f"{data.train_rows - data.without_target} usable"
    return f"{data.train_rows} prompts ({data.train_dropped} too long), targets {targets}; validation {data.val_rows}"


def _steps(config: DictConfig, data: DataReport | None) -> str:
    if config.trainer.total_training_steps:
        return str(config.trainer.total_training_steps)
    if data is None:
        return f"{config.trainer.total_epochs} epochs of the data"
    return str(data.train_rows // config.data.train_batch_size * config.trainer.total_epochs)


def _missing_lines(missing: Sequence[Missing]) -> list[str]:
    """What is not there yet, by the command that makes it; what the run fetches itself comes last."""
    lines = []
    for command in dict.fromkeys(each.command for each in missing):
        fetched = command.startswith(DOWNLOAD)
        lines += [f"             {each.what}" for each in missing if each.command == command]
        lines.append(f"               {'downloaded when the run starts, or before by' if fetched else 'write it by'}: {command}")
    return [f"missing      {lines[0].lstrip()}", *lines[1:]] if lines else []


def _algorithm_lines(algorithm: Algorithm) -> list[str]:
    """The terms, phase by phase."""
    paper = f" ({algorithm.paper})" if algorithm.paper else ""
    lines = [f"algorithm    {algorithm.name}{paper}"]
    for phase in algorithm.phases:
        until = f"{phase.steps} steps" if phase.steps else f"until {phase.stall} validations stall" if phase.stall else "to the end"
        which = "terms" if len(algorithm.phases) == 1 else f"{phase.algorithm.name}, {until}: terms"
        lines.append(f"             {which} {', '.join(term.name for term in phase.algorithm.terms)}")
        lines += [
            f"             {key}={theirs} of its file holds for a whole run: {key}={ours}" for key, theirs, ours in phase.kept
        ]
    return lines

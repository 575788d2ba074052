"""What a run is going to do, in one screen: the output of `+dry_run=true`."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from unify_posttrain.algorithms import Algorithm, build_algorithm
from unify_posttrain.experience.row_plan import plan_rows
from unify_posttrain.output import clean_line
from unify_posttrain.shapes import Shape
from unify_posttrain.startup.data_checks import DataReport
from unify_posttrain.startup.disk import checkpoints_of
from unify_posttrain.startup.episode_checks import episode_limits
from unify_posttrain.startup.inputs import DOWNLOAD, Missing
from unify_posttrain.startup.memory import MOMENTS, RankPlan, parts_of, totals
from unify_posttrain.startup.memory_plan import actor_shape, critic_shape, rank_plan
from unify_posttrain.text import lines_of

HEADS = {"update": "update", "critic": "critic's", "generation": "generation", "scoring": "scoring"}


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
    rules = [(phase.algorithm.experience, phase.mini_batches or mini_batches) for phase in algorithm.phases]
    rollouts = batch * max(rule.rollouts(given) for rule, _ in rules for given in (True, False))
    rows, mini_batches = max((plan_rows(batch * rule.most_rows, ranks, mini), mini) for rule, mini in rules)
    width = config.data.max_prompt_length + config.data.max_response_length
    plan = rank_plan(config, algorithm, None if data is None else data.seen_tokens)
    lines = [
        *_algorithm_lines(algorithm),
        f"model        {_model(config.actor_rollout_ref.model.path, actor_shape(config))}",
        *([f"critic       {_model(config.critic.model.path, critic_shape(config))}"] if algorithm.needs_critic else []),
        *_memory_lines(plan, algorithm.needs_critic),
        f"engine       {config.actor_rollout_ref.rollout.name}, {config.actor_rollout_ref.actor.strategy}, {ranks} rank(s)",
        f"data         {_data(data)}",
        *_picture_lines(config, data),
        f"a step       {batch} prompts -> {rollouts} rollouts (n={n}) -> at most {rows.rows} rows in {mini_batches} "
        "optimizer step(s), "
        f"{rows.per_mini_batch} rows per rank and optimizer step",
        f"a row        at most {width} tokens; at most {rows.rows * width} tokens per step",
        *_episode_lines(config, data),
        f"steps        {_steps(config, data)}, validation every {config.trainer.test_freq}, "
        f"checkpoint every {config.trainer.save_freq}",
        *_checkpoint_lines(config, plan, _number_of_steps(config, data)),
        f"run folder   {config.trainer.run_dir} (config.yaml, metrics.jsonl, gate.jsonl, samples/, checkpoints/)",
        *_missing_lines(missing),
        f"checks       passed{'' if data else ', those of the data wait for it'}; nothing was started",
    ]
    return lines_of(map(clean_line, lines))


def _model(path: str, shape: Shape | None) -> str:
    return f"{path}, {shape.parameters / 1e6:.2f} M parameters" if shape and shape.parameters else path


def _memory_lines(plan: RankPlan | None, critic: bool) -> list[str]:
    """Every part of a rank's memory and their sum, a column for each moment."""
    if plan is None:
        return [
            "memory       not estimated: the model's files are not on this disk or name their numbers otherwise, and no "
            "conf/model file has the shape of a model of this name"
        ]
    absent = {*(() if critic else ("critic",)), *(() if plan.reward else ("scoring",))}
    parts, moments = parts_of(plan), [each for each in MOMENTS if each not in absent]
    rows = [(f"{'~ ' if part.largest else ''}{part.name}", [getattr(part, each) for each in moments]) for part in parts]
    rows.append(("at least (of ~ only the largest)", [totals(parts)[each] for each in moments]))
    width = max(len(name) for name, _ in rows)
    limit = (
        f"{plan.accelerator.memory / 1e9:.1f} on {plan.accelerator.name}" if plan.accelerator else "accelerator=null: not checked"
    )
    head = f"GB of a rank ({limit})"
    unknown = ["             the critic's own is not counted: its model is not known"] if critic and plan.critic is None else []
    return [
        f"memory       {head:<{width}}" + "".join(f"{HEADS[each]:>12}" for each in moments),
        *(f"             {name:<{width}}" + "".join(f"{_gigabytes(size):>12}" for size in sizes) for name, sizes in rows),
        *unknown,
    ]


def _gigabytes(size: float) -> str:
    return "-" if not size else f"{size / 1e9:.2f}" if size >= 5e6 else f"{size / 1e9:.5f}"


def _checkpoint_lines(config: DictConfig, plan: RankPlan | None, steps: int | None) -> list[str]:
    """What they take of the disk."""
    if plan is None or config.trainer.save_freq < 1:
        return []
    saved = checkpoints_of(config, plan, steps)
    contents = ", ".join(f"{_round(size)} {name}" for name, size in saved.contents.items())
    keep = config.trainer.get("max_actor_ckpt_to_keep")
    kept = "all stay" if saved.kept is None else f"{saved.kept} of {saved.written} stay" if saved.written else f"{saved.kept} stay"
    total = "" if saved.kept is None else f": {_round(saved.kept * saved.each)} GB"
    # A new one is complete before an old one is deleted (Checkpoints.save).
    some_go = saved.kept is not None and (saved.written is None or saved.kept < saved.written)
    more = f", and {_round(saved.each)} GB more while one is written" if some_go else ""
    return [
        f"checkpoints  {_round(saved.each)} GB each ({contents}); {kept} (trainer.max_actor_ckpt_to_keep={_spelt(keep)})"
        f"{total}{more}"
    ]


def _round(size: float) -> str:
    return f"{size / 1e9:.0f}" if size >= 1e11 else f"{size / 1e9:.3g}"


def _spelt(value: object) -> str:
    return "null" if value is None else str(value)


def _data(data: DataReport | None) -> str:
    if data is None:
        return "not read, see below"
    targets = "not needed" if data.without_target is None else f"{data.train_rows - data.without_target} usable"
    masked = f"; {data.masked_truths} ground truths that cannot be graded" if data.masked_truths else ""
    return f"{data.train_rows} prompts ({data.train_dropped} too long), targets {targets}; validation {data.val_rows}{masked}"


def _picture_lines(config: DictConfig, data: DataReport | None) -> list[str]:
    """What the prompts show, as the model sees it."""
    if data is None or not data.pictures:
        return []
    tower = "frozen" if config.actor_rollout_ref.actor.get("freeze_vision_tower", False) else "trained"
    return [
        f"pictures     at most {data.pictures} per prompt and {data.picture_tokens} tokens of them, among data.max_prompt_length="
        f"{config.data.max_prompt_length}; the vision tower is {tower}"
    ]


def _episode_lines(config: DictConfig, data: DataReport | None) -> list[str]:
    """Turns of a rollout, where it has several. How long a feedback is, the chat template and the data tell."""
    plan, found = None if data is None else data.episode, episode_limits(config)
    if found is None:
        return []
    budget, limits = found if plan is None else (plan.budget, plan.limits)
    feedback = "" if plan is None else f", feedback of about {plan.around + plan.feedback}: {plan.longest}"
    shown = [f"             at most {limits.images} images of {limits.tokens} tokens among them"] if limits.images else []
    return [
        f"an episode   at most {budget.max_turns} turns of {budget.max_tokens_per_turn} tokens{feedback or ','} of "
        f"{budget.response_length} tokens",
        *shown,
    ]


def _steps(config: DictConfig, data: DataReport | None) -> str:
    steps = _number_of_steps(config, data)
    return f"{config.trainer.total_epochs} epochs of the data" if steps is None else str(steps)


def _number_of_steps(config: DictConfig, data: DataReport | None) -> int | None:
    """None: it depends on data that could not be read."""
    if config.trainer.total_training_steps:
        return int(config.trainer.total_training_steps)
    return None if data is None else data.train_rows // config.data.train_batch_size * config.trainer.total_epochs


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

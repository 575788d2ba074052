"""Print what an algorithm is: its rows, its advantage, its terms as a table of the estimator, and every setting that is read.

python -m unify_posttrain.explain algorithm=luffy
python -m unify_posttrain.explain algorithm=all --json
python -m unify_posttrain.explain algorithm=hpt fusion.shaping.gamma=0.3      # any override of the configuration
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from unify_posttrain.config import compose_config
from unify_posttrain.output import cell, guarded_output
from unify_posttrain.provenance import GIVEN_WAY, REFERENCE, VERL, Provenance
from unify_posttrain.redaction import redacted
from unify_posttrain.tasks.episodes import NODE, EpisodeSettings, episode_node, read_settings
from unify_posttrain.typos import with_hint

COLUMNS = ("term", "tokens", "mask", "pi_ref", "advantage", "weight", "aggregation", "coefficient")
SETTINGS = ("key", "value", "from")
FILTERED = "; groups of one reward are replaced by those of further prompts"  # algorithm.filter_groups
# Read by the run whatever the algorithm, beside what it reads itself.
OF_EVERY_RUN = (
    "fusion.success_threshold",
    "fusion.success_key",
    "fusion.max_grad_norm",
    "fusion.logits_chunk",
    "fusion.lr_schedule",
    "data.train_batch_size",
    "data.max_prompt_length",
    "data.max_response_length",
    "actor_rollout_ref.rollout.n",
    "actor_rollout_ref.rollout.temperature",
    "actor_rollout_ref.actor.ppo_mini_batch_size",
    "actor_rollout_ref.actor.ppo_epochs",
    "actor_rollout_ref.actor.optim.lr",
    "actor_rollout_ref.actor.optim.lr_scheduler_type",
    "actor_rollout_ref.actor.optim.lr_warmup_steps_ratio",
    "actor_rollout_ref.actor.optim.min_lr_ratio",
    "actor_rollout_ref.actor.optim.weight_decay",
    "actor_rollout_ref.actor.optim.betas",
    "actor_rollout_ref.actor.grad_clip",
    "algorithm.filter_groups.enable",
    "reward.reward_manager.name",
    "trainer.total_epochs",
    "trainer.total_training_steps",
)
OF_DEMONSTRATIONS = (
    "fusion.demo.missing",
    "fusion.demo.overlong",
    "fusion.demo.select",
    "fusion.demo.require_verified",
    "fusion.demo.max_length",
    "fusion.allow_tempered_nll",
)
OF_A_CRITIC = (
    "critic.model.path",
    "critic.data_loader_seed",
    "critic.loss_agg_mode",
    "critic.cliprange_value",
    "critic.ppo_epochs",
    "critic.grad_clip",
    "critic.optim.lr",
    "critic.optim.lr_scheduler_type",
    "critic.optim.lr_warmup_steps_ratio",
    "critic.optim.min_lr_ratio",
    "critic.optim.weight_decay",
    "critic.optim.betas",
    "trainer.critic_warmup",
)
# Of what only some runs have: the key that says whether, its value, and what is read then.
OF_SOME_RUNS = (
    ("algorithm.filter_groups.enable", True, ("algorithm.filter_groups.metric", "algorithm.filter_groups.max_num_gen_batches")),
    (
        "reward.reward_kwargs.overlong_buffer_cfg.enable",
        True,
        (
            "reward.reward_kwargs.max_resp_len",
            "reward.reward_kwargs.overlong_buffer_cfg.enable",
            "reward.reward_kwargs.overlong_buffer_cfg.len",
            "reward.reward_kwargs.overlong_buffer_cfg.penalty_factor",
            "reward.reward_kwargs.overlong_buffer_cfg.log",
        ),
    ),
)


def explain(overrides: Sequence[str]) -> dict[str, Any]:
    """Rows, advantage, terms and settings of the algorithm that the overrides select, as plain data.

    Raises:
        ValueError: the configuration cannot be composed, or the algorithm refuses it.
    """
    return explain_config(compose_config(overrides), overrides)


def explain_config(config: DictConfig, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The same of a configuration that has been composed from these overrides."""
    from unify_posttrain.algorithms import build_algorithm

    algorithm = build_algorithm(OmegaConf.to_container(config.actor_rollout_ref.actor, resolve=True))
    parts = [(phase.algorithm, "" if len(algorithm.phases) == 1 else f"{phase.algorithm.name}: ") for phase in algorithm.phases]
    turns = _of_turns(config) if algorithm.needs_critic else ""  # nobody else may credit them
    terms = [_row(term, part, prefix, turns) for part, prefix in parts for term in part.terms]
    terms += [_row(term, part, f"{prefix}replay: ", turns) for part, prefix in parts for term in part.replay_terms]
    rules = [part.experience for part, _ in parts]
    filtered = [
        config.algorithm.filter_groups if phase.filter_groups is None else phase.filter_groups for phase in algorithm.phases
    ]
    rows = [f"{rule.describe()}{FILTERED if each and each['enable'] else ''}" for rule, each in zip(rules, filtered, strict=True)]
    return {
        "algorithm": algorithm.name,
        "paper": algorithm.paper,
        "rows": "; then ".join(f"{prefix}{text}" for (_, prefix), text in zip(parts, rows, strict=True)),
        "most_rows": max(rule.most_rows for rule in rules),
        "advantage": "; then ".join(f"{prefix}{part.advantage.describe()}{turns}" for part, prefix in parts),
        "experience": " then ".join(type(rule).__name__ for rule in rules),
        "needs_target": any(rule.needs_target for rule in rules),
        "needs_hint": any(rule.needs_hint for rule in rules),
        "needs_entropy": any(part.needs_entropy for part, _ in parts),
        "needs_reference": algorithm.needs_reference,
        "needs_critic": algorithm.needs_critic,
        "terms": terms,
        "settings": list(_settings(algorithm, config, overrides)),
    }


def _of_turns(config: DictConfig) -> str:
    """What episodes of several turns make of an advantage: nothing, unless turns are credited."""
    node = episode_node(config)
    if node is None:
        return ""
    settings, _ = read_settings(node)
    if settings.gae == "turn":
        return ", over turns: one number for all tokens of a turn"
    return ", each turn's reward on its last token" if settings.credit == "turn" else ""


def _row(term: Any, algorithm: Any, prefix: str, turns: str) -> dict[str, Any]:
    from unify_posttrain.objective import PolicyGradient

    loss = term.loss
    gradient = isinstance(loss, PolicyGradient)
    counted = "" if term.counted is None else f" over all {term.counted.key} tokens"
    advantage = loss.describe() if not gradient else f"{loss.advantage:g}" if isinstance(loss.advantage, float) else loss.advantage
    if advantage == "advantages":
        advantage = algorithm.advantage.describe(term.members.tokens) + turns
    token_weight = getattr(loss, "token_weight", None)
    weights = [term.members.row_weight, token_weight if isinstance(token_weight, str | None) else token_weight.describe()]
    bound = term.members.max_probability
    return {
        "term": prefix + term.name,
        "tokens": term.members.tokens + ("" if bound is None else f", π ≤ {bound:g}"),
        "mask": loss.stabiliser.describe() if gradient else "-",
        "pi_ref": loss.reference.describe() if gradient else "-",
        "advantage": advantage,
        "weight": " · ".join(weight for weight in weights if weight) or "1",
        "aggregation": term.aggregation.mode + counted,
        "coefficient": term.coefficient,
    }


def _settings(algorithm: Any, config: DictConfig, overrides: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Every setting that is read, with its value and where that comes from. Phases have theirs from their own files."""
    from unify_posttrain.algorithms.reading import settings_read

    provenance = Provenance(overrides)
    if len(algorithm.phases) > 1:
        keys = ["fusion.phases", *OF_EVERY_RUN]
    else:
        keys = [*sorted(settings_read(algorithm)), *algorithm.advantage.settings, *OF_EVERY_RUN]
        keys += OF_DEMONSTRATIONS if algorithm.experience.needs_target else ()
    keys += OF_A_CRITIC if algorithm.needs_critic else ()
    keys += (key for switch, on, read in OF_SOME_RUNS if OmegaConf.select(config, switch) == on for key in read)
    if episode_node(config) is not None:
        keys += (f"{NODE}.{item.name}" for item in fields(EpisodeSettings))
    for key in dict.fromkeys(keys):
        value = OmegaConf.select(config, key)
        if key == "fusion.phases":
            value = [{name: each.get(name) for name in ("algorithm", "steps", "stall", "lr") if name in each} for each in value]
        value = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        yield {"key": key, "value": redacted(value, key), "from": _source(provenance, config, key)}


def _source(provenance: Provenance, config: DictConfig, key: str) -> str:
    """Where a setting was set; of one that verl copies from another, where that one was."""
    source = provenance.source(key)
    if source != VERL:
        return source
    parent, _, name = key.rpartition(".")
    above = OmegaConf.select(config, parent)
    text = str(above._get_node(name)._value()) if OmegaConf.is_interpolation(above, name) else ""
    copied = REFERENCE.findall(text) + GIVEN_WAY.findall(text)
    return next((f"{found} ({each})" for each in copied if (found := provenance.source(each)) != VERL), VERL)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `unify-explain`."""
    with guarded_output():
        _main(list(sys.argv[1:] if arguments is None else arguments))


def _main(arguments: list[str]) -> None:
    from unify_posttrain.algorithms import ALGORITHMS

    as_json = "--json" in arguments
    overrides = [argument for argument in arguments if argument != "--json"]
    if any(argument in ("-h", "--help") for argument in overrides):
        sys.stdout.write(__doc__ or "")
        return
    rest = [override for override in overrides if override != "algorithm=all"]
    wanted = [[f"algorithm={name}", *rest] for name in sorted(ALGORITHMS)] if "algorithm=all" in overrides else [overrides]
    try:
        explained = [explain(each) for each in wanted]
    except ValueError as error:
        sys.exit(with_hint(f"error: {error}"))
    if as_json:
        sys.stdout.write(json.dumps(explained if len(explained) > 1 else explained[0], indent=2, ensure_ascii=False) + "\n")
        return
    console = Console(width=None if sys.stdout.isatty() else 150)
    for algorithm in explained:
        _print(algorithm, console)


def _print(algorithm: dict[str, Any], console: Console) -> None:
    """All as cells: brackets of a formula are no markup."""
    paper = f" ({algorithm['paper']})" if algorithm["paper"] else ""
    console.print(cell(algorithm["algorithm"] + paper, style="bold"))
    console.print(cell(f"rows       {algorithm['rows']}"))
    console.print(cell(f"advantage  {algorithm['advantage']}"))
    terms = [
        {**term, "coefficient": f"{term['coefficient']:g}" if isinstance(term["coefficient"], float | int) else term["coefficient"]}
        for term in algorithm["terms"]
    ]
    for columns, rows in ((COLUMNS, terms), (SETTINGS, algorithm["settings"])):
        table = Table()
        for column in columns:
            table.add_column(column)
        for row in rows:
            table.add_row(*(cell("null" if row[column] is None else row[column]) for column in columns))
        console.print(table)


if __name__ == "__main__":
    main()

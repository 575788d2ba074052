"""The README.md of an exported model: what it is, how it was trained, how it did, and all settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from unify_posttrain.redaction import redacted
from unify_posttrain.text import one_line

LIBRARY = "unify_posttrain"


def model_card(run: Path, config: DictConfig, step: int, paper: str | None, version: str) -> str:
    """Markdown with the front matter of the hub.

    Args:
        run: folder with metrics.jsonl.
        config: of the run, whose secrets are left out; absolute paths are cut to their last part.
        step: of the checkpoint.
        paper: of the algorithm, if known.
        version: of this package.
    """
    plain = without_folders(redacted(OmegaConf.to_container(config)))
    base, algorithm = str(_select(plain, "actor_rollout_ref.model.path")), str(_select(plain, "fusion.algorithm"))
    validated, metrics = last_validation(run / "metrics.jsonl", step)
    parts = [
        _front_matter(base, algorithm),
        f"# {base.rsplit('/', 1)[-1]}, {algorithm}, step {step}",
        f"Step {step} of a run of `{LIBRARY}` {version}.",
        _table(plain, base, algorithm, paper, step),
        "## Validation",
        _metrics(validated, metrics),
        "## Settings",
        f"<details><summary>config.yaml</summary>\n\n```yaml\n{_yaml(plain)}```\n\n</details>",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(base: str, algorithm: str) -> str:
    # A local folder is no name on the hub, and its front matter would not be accepted.
    entry: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": [LIBRARY, algorithm, "verl"],
    }
    if base.count("/") == 1:
        entry["base_model"] = base
    return f"---\n{_yaml(entry)}---"


def _yaml(node: Any) -> str:
    return yaml.safe_dump(node, sort_keys=True, allow_unicode=True)


def _table(config: Mapping[str, Any], base: str, algorithm: str, paper: str | None, step: int) -> str:
    def said(*keys: str, between: str = ", ") -> str:
        return between.join(_listed(_select(config, key)) for key in keys)

    rows = {
        "algorithm": f"{algorithm} ({paper})" if paper else algorithm,
        "base model": base,
        "training data": said("data.train_files"),
        "validation data": said("data.val_files"),
        "reward": said("reward.custom_reward_function.path", "reward.custom_reward_function.name", between=" "),
        "steps": f"{step} of {said('trainer.total_training_steps')}",
        "prompts per step, rollouts per prompt": said("data.train_batch_size", "actor_rollout_ref.rollout.n"),
        "learning rate": said("actor_rollout_ref.actor.optim.lr"),
        "longest prompt, longest response": said("data.max_prompt_length", "data.max_response_length"),
        "seed": said("fusion.seed"),
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in rows.items())])


def _metrics(step: int | None, metrics: Mapping[str, float]) -> str:
    if step is None:
        return "The run was not validated up to this step."
    lines = [f"| {_cell(name)} | {value:.4g} |" for name, value in sorted(metrics.items())]
    return "\n".join([f"At step {step}, as logged by the trainer:", "", "| metric | value |", "|---|---:|", *lines])


def last_validation(path: Path, step: int) -> tuple[int | None, dict[str, float]]:
    """The last step up to `step` that was validated, and its `val-core/` metrics; (None, {}) if there is none. A line that a kill
    cut short is passed over."""
    found: tuple[int | None, dict[str, float]] = (None, {})
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        core = {name: value for name, value in entry["data"].items() if name.startswith("val-core/")}
        if core and entry["step"] <= step:
            found = entry["step"], core
    return found


def without_folders(node: Any) -> Any:
    """A copy in which absolute paths are cut to their last part: folders of the training machine are nobody's business."""
    if isinstance(node, dict):
        return {key: without_folders(value) for key, value in node.items()}
    if isinstance(node, list):
        return [without_folders(value) for value in node]
    absolute = isinstance(node, str) and "\n" not in node and (node.startswith(("/", "~/", "file:///")))
    return Path(node).name if absolute else node


def _select(config: Mapping[str, Any], key: str) -> Any:
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _listed(files: Any) -> str:
    return ", ".join(map(str, files)) if isinstance(files, list) else str(files)


def _cell(value: Any) -> str:
    return one_line(value).replace("|", "\\|")

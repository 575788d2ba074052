"""The steps of the study: names, commands and what each needs, all of it decided by the configuration and the chosen peaks.

prepare -> sft-SEED -> evaluate-sft-SEED -> rl-METHOD-KL-START-SEED -> evaluate-… -> forgetting-METHOD-KL
                                         -> recovery-SEED, angles-SEED (peak against end)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from unify_posttrain.redaction import redacted_overrides
from unify_posttrain.study.grid import LABEL, as_overrides

STARTS = ("base", "peak", "end")
SELECTS = ("half", "none")
MODEL = "actor_rollout_ref.model.path"
Chosen = Mapping[int, Mapping[str, int]]  # seed -> start -> step of fine-tuning: base, peak, end, and steps that are asked for


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: unique; of its record and its log.
        module: of this package, run with `python -m`.
        overrides: its arguments.
        needs: names of the steps that must have finished.
        digest: of the command and of everything that it needs: a step behind one that changed is another step.
    """

    name: str
    module: str
    overrides: tuple[str, ...]
    needs: tuple[str, ...] = ()
    digest: str = ""


@dataclass(frozen=True)
class Healing:
    """The settings of conf/heals.yaml, checked; see there for the meanings."""

    folder: Path
    page: Path | None
    seeds: tuple[int, ...]
    starts: tuple[str, ...]
    methods: dict[str, tuple[str, ...]]
    kl: tuple[float, ...]
    id: str
    ood: str
    select: str
    split_seed: int
    confidence: float
    parallel: int
    timeout_seconds: float
    grace_seconds: float
    poll_seconds: float
    log_tail_lines: int
    environment: dict[str, str]
    common: dict[str, Any]
    sft: dict[str, Any]
    rl: dict[str, Any]
    steps: Any
    evaluation: tuple[str, ...]
    recovery: tuple[str, ...]
    angles: tuple[str, ...]
    claims: dict[str, str]

    @classmethod
    def from_config(cls, config: DictConfig) -> Healing:
        """Read and check.

        Raises:
            ValueError: names key, value and remedy.
        """
        values: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
        define = values.pop("define")["methods"]
        values.pop("hydra", None)
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"{', '.join(sorted(unknown))}: no such key in conf/heals.yaml")
        for key, known in (("starts", STARTS), ("methods", tuple(define))):
            wrong = [each for each in values[key] if each not in known and not (key == "starts" and type(each) is int and each > 0)]
            if wrong or not values[key]:
                steps = ", or steps of fine-tuning" if key == "starts" else ""
                raise ValueError(f"{key}={values[key]}: choose among {', '.join(known)}{steps}")
        for label in define:
            if not LABEL.fullmatch(str(label)):
                raise ValueError(f"define.methods.{label}: a label names folders; use letters, digits and _ only")
        if values["select"] not in SELECTS:
            raise ValueError(f"select={values['select']} is unknown; choose one of {', '.join(SELECTS)}")
        if not values["seeds"] or len(set(values["seeds"])) != len(values["seeds"]):
            raise ValueError(f"seeds={values['seeds']}: give different integers")
        if not values["kl"] or any(isinstance(each, str | bool) or each < 0 for each in values["kl"]):
            raise ValueError(f"kl={values['kl']}: give coefficients of at least 0, e.g. [0.0,0.05]")
        if values["steps"] != "all" and (
            not isinstance(values["steps"], list) or not all(type(each) is int for each in values["steps"])
        ):
            raise ValueError(f"steps={values['steps']}: give all, or a list of steps, e.g. [0,40,80]")
        tuples = {key: tuple(values[key]) for key in ("seeds", "evaluation", "recovery", "angles")}
        return cls(
            **values
            | tuples
            | {
                "folder": Path(values["folder"]).expanduser().resolve(),
                "page": None if values["page"] is None else Path(values["page"]).expanduser(),
                "methods": {name: tuple(map(str, define[name])) for name in values["methods"]},
                "starts": tuple(map(str, values["starts"])),
                "kl": tuple(float(each) for each in values["kl"]),
                "environment": {key: str(value) for key, value in values["environment"].items()},
            }
        )

    @property
    def variants(self) -> list[tuple[str, float]]:
        """(method, coefficient of the KL term)."""
        return [(method, kl) for method in self.methods for kl in self.kl]

    def run(self, name: str) -> Path:
        """The folder of a training."""
        return self.folder / "runs" / name

    def checkpoint(self, seed: int, step: int) -> Path:
        """A checkpoint of fine-tuning as a model: what its evaluation has exported."""
        return self.run(sft_name(seed)) / "export" / f"step_{step}"


def sft_name(seed: int) -> str:
    """Of the fine-tuning run of a seed and of its evaluation."""
    return f"sft-{seed}"


def variant_name(method: str, kl: float) -> str:
    """Of a method with or without the KL term.

    >>> variant_name("grpo", 0.0), variant_name("hpt", 0.05)
    ('grpo', 'hpt-kl0.05')
    """
    return method if not kl else f"{method}-kl{kl:g}"


def rl_name(method: str, kl: float, start: str, seed: int) -> str:
    """Of an RL run and of its evaluation."""
    return f"{variant_name(method, kl)}-{start}-{seed}"


def first_steps(healing: Healing) -> list[list[Step]]:
    """Groups of steps that do not depend on what comes out; those of a group may run side by side."""
    common = tuple(as_overrides(healing.common))
    groups = ("task", "model", "hardware")
    prepared = tuple(each for each in common if each.partition("=")[0] in groups)
    prepare = Step("prepare", "prepare", (*prepared, f"hydra.run.dir={healing.folder}/hydra/prepare"))
    train, evaluate = [], []
    for seed in healing.seeds:
        name = sft_name(seed)
        own = (*common, *as_overrides(healing.sft), f"fusion.seed={seed}", f"trainer.experiment_name={name}")
        train.append(Step(name, "train", own, ("prepare",)))
        evaluate.append(_evaluation(healing, name, _steps(healing)))
    return _sealed([[prepare], train, evaluate], {})


def later_steps(healing: Healing, chosen: Chosen) -> list[list[Step]]:
    """The steps of the seeds whose starts are known.

    Args:
        chosen: seed -> start -> step; base is step 0.
    """
    common, rl = tuple(as_overrides(healing.common)), tuple(as_overrides(healing.rl))
    train, evaluate = [], []
    for seed, starts in chosen.items():
        for method, kl in healing.variants:
            for start in healing.starts:
                name, step = rl_name(method, kl, start, seed), starts[start]
                model = (f"{MODEL}={healing.checkpoint(seed, step)}",) if step else ()
                own = (*common, *healing.methods[method], *rl, *_kl(kl), *model, f"fusion.seed={seed}")
                needs = (f"evaluate-{sft_name(seed)}",)  # it exports the checkpoints
                train.append(Step(name, "train", (*own, f"trainer.experiment_name={name}"), needs))
                evaluate.append(_evaluation(healing, name, "latest"))
    first = {step.name: step.digest for group in first_steps(healing) for step in group}
    return _sealed([train, evaluate, [*_forgetting(healing, chosen), *_weights(healing, chosen)]], first)


def _sealed(groups: Sequence[Sequence[Step]], digests: dict[str, str]) -> list[list[Step]]:
    """The steps with their digests; groups are in the order in which steps need each other."""
    sealed = []
    for group in groups:
        made = []
        for step in group:
            # Secrets, which no record holds, may differ.
            identity = [step.module, redacted_overrides(step.overrides), [digests[name] for name in step.needs]]
            made.append(replace(step, digest=hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]))
        digests = {**digests, **{step.name: step.digest for step in made}}
        sealed.append(made)
    return sealed


def _kl(coefficient: float) -> tuple[str, ...]:
    actor = "actor_rollout_ref.actor"
    return (f"{actor}.use_kl_loss=true", f"{actor}.kl_loss_coef={coefficient!r}") if coefficient else ()


def _evaluation(healing: Healing, name: str, steps: str) -> Step:
    given = (
        f"run={healing.run(name)}",
        f"benchmarks=[{healing.id},{healing.ood}]",
        f"name={name}",
        f"steps={steps}",
        "overwrite=true",
    )
    return Step(f"evaluate-{name}", "evaluate", (*given, *healing.evaluation), (name,))


def _steps(healing: Healing) -> str:
    """Checkpoints of fine-tuning that are evaluated; `all` with the base model, which `evaluate` counts as step 0."""
    if healing.steps != "all":
        return f"[{','.join(map(str, healing.steps))}]"
    every, last = (int(healing.sft["trainer"][key]) for key in ("save_freq", "total_training_steps"))
    return f"[{','.join(map(str, sorted({0, *range(every, last, every), last})))}]"


def _forgetting(healing: Healing, chosen: Chosen) -> list[Step]:
    """Per variant one analysis over all seeds. Starts that are the same checkpoint are one start."""
    steps = []
    for method, kl in healing.variants:
        runs = [{starts[start]: rl_name(method, kl, start, seed) for start in healing.starts} for seed, starts in chosen.items()]
        rl = ",".join(f"{{{','.join(f'{step}: {name}' for step, name in sorted(each.items()))}}}" for each in runs)
        given = (f"sft=[{','.join(map(sft_name, chosen))}]", f"rl=[{rl}]", f"id={healing.id}", f"ood={healing.ood}")
        how = (f"select={healing.select}", f"seed={healing.split_seed}", f"statistics.confidence={healing.confidence}")
        name = f"forgetting-{variant_name(method, kl)}"
        needs = tuple(f"evaluate-{run}" for each in runs for run in each.values())
        steps.append(Step(name, "analyze", ("forgetting", *given, *how, f"name={name}", "overwrite=true"), needs))
    return steps


def _weights(healing: Healing, chosen: Chosen) -> list[Step]:
    """The peak against the end of the first seed: what turned, and what is restored."""
    seed = next(iter(chosen), None)
    if seed is None or chosen[seed]["peak"] == chosen[seed]["end"]:
        return []
    folders = {start: healing.checkpoint(seed, chosen[seed][start]) for start in ("peak", "end")}
    models = (f"base={folders['peak']}", f"tuned={folders['end']}")
    needs = (f"evaluate-{sft_name(seed)}",)
    return [
        Step(f"{what}-{seed}", "analyze", (what, *models, f"name={what}-{seed}", *given, "overwrite=true"), needs)
        for what, given in (("recovery", healing.recovery), ("angles", healing.angles))
    ]

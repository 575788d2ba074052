"""What a reader should know before believing the curves: skipped steps, faults, masked prompts, values that are not numbers."""

from __future__ import annotations

from typing import NamedTuple

from unify_posttrain.reporting.panels import GENERATED
from unify_posttrain.reporting.run import Run
from unify_posttrain.reporting.settings import Settings
from unify_posttrain.reporting.text import number, percent, steps
from unify_posttrain.reporting.verdict import Validation, ends, validations


class Alert(NamedTuple):
    """`level` is warning (something is wrong) or note (good to know)."""

    level: str
    text: str


def alerts(run: Run, settings: Settings) -> list[Alert]:
    """Warnings first, then notes."""
    found = [
        *_progress(run),
        *(Alert("warning", text) for text in run.damage),
        *_not_finite(run),
        *_updates(run),
        *_data(run, settings),
        *_generation(run, settings),
        *_validation(run, settings),
    ]
    return sorted(found, key=lambda alert: alert.level != "warning")


def _progress(run: Run) -> list[Alert]:
    if run.planned is None or run.done >= run.planned:
        return []
    return [Alert("note", f"in progress or stopped early: {run.done} of {run.planned} steps")]


def _not_finite(run: Run) -> list[Alert]:
    if not run.not_finite:
        return []
    names = sorted(run.not_finite, key=lambda name: run.not_finite[name][0])
    where = sorted({step for found in run.not_finite.values() for step in found})
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return [Alert("warning", f"NaN or infinite at {steps(where)}: {shown}; these points are missing from the curves")]


def _updates(run: Run) -> list[Alert]:
    found = []
    skipped, made = run.total("fusion/grad_skipped"), run.total("fusion/optimizer_steps")
    if skipped:
        bound = run.setting("fusion.max_grad_norm")
        why = "norm not finite" if bound is None else f"norm over fusion.max_grad_norm={bound}, or not finite"
        found.append(Alert("warning", f"{number(skipped)} of {number(skipped + made)} optimizer steps skipped ({why})"))
    empty = run.total("fusion/empty_updates")
    if empty:
        found.append(
            Alert("note", f"{number(empty)} optimizer steps had nothing to train: no row of their mini-batch carried a term")
        )
    return found


def _data(run: Run, settings: Settings) -> list[Alert]:
    found = []
    faults = run.total("fusion/grader_faults")
    if faults:
        found.append(
            Alert(
                "warning", f"{number(faults)} rollouts could not be graded (exception, hang, crash or memory) and scored as wrong"
            )
        )
    unscored = run.total("fusion/reward_unscored")
    if unscored:
        found.append(
            Alert("warning", f"{number(unscored)} rollouts were given no score (NaN or None) and left out of their groups")
        )
    prompts = sum(run.total(f"fusion/prompts_{zone}") for zone in ("rl", "sft", "off", "skipped"))
    masked = run.total("fusion/gold_masked")
    if masked and prompts:
        share = percent(masked / prompts)
        found.append(Alert("warning", f"{number(masked)} prompts ({share}) masked: their ground truth cannot be graded against"))
    missing = run.total("fusion/demo_missing")
    if prompts and missing / prompts > settings.alerts.missing:
        overlong = run.total("fusion/demo_overlong")
        text = f"{percent(missing / prompts)} of the prompts have no usable demonstration"
        found.append(Alert("warning", text + (f" ({number(overlong)} too long: fusion.demo.max_length)" if overlong else "")))
    return found


def _generation(run: Run, settings: Settings) -> list[Alert]:
    found = []
    truncated = ends(run.series("response_length/clip_ratio", GENERATED)[1], settings.verdict.window)
    if truncated is not None and truncated[1] > settings.alerts.truncated:
        limit = run.setting("data.max_response_length", "?")
        found.append(Alert("warning", f"{percent(truncated[1])} of the responses were cut off at {limit} tokens towards the end"))
    where, correlations = run.series("training/rollout_actor_probs_pearson_corr", GENERATED)
    low = [step for step, value in zip(where, correlations, strict=True) if value < settings.alerts.correlation]
    if low:
        text = f"the engine's probabilities and the actor's disagree at {steps(low)}: correlation down to {min(correlations):.2f}"
        found.append(Alert("warning", text))
    return found


def _validation(run: Run, settings: Settings) -> list[Alert]:
    found = []
    for curve in (curve for curve in validations(run) if curve.is_share):
        step, best = curve.best
        if _lost(curve, best, curve.last, settings):
            text = f"{curve.name} ends at {curve.text(curve.last)}, below its best of {curve.text(best)} at step {step}"
            found.append(Alert("warning", text))
        elif falls := [at for at in range(len(curve.values) - 1) if _lost(curve, *curve.values[at : at + 2], settings)]:
            deepest = max(falls, key=lambda at: curve.values[at] - curve.values[at + 1])
            texts = [f"{curve.text(curve.values[at])} at step {curve.steps[at]}" for at in (deepest, deepest + 1)]
            found.append(Alert("note", f"{curve.name} fell from {texts[0]} to {texts[1]}, and recovered"))
    return found


def _lost(curve: Validation, before: float, after: float, settings: Settings) -> bool:
    """Whether an accuracy fell by more than `below_best` and by more than chance."""
    return before - after > max(settings.alerts.below_best, curve.noise(before, after, settings.verdict))

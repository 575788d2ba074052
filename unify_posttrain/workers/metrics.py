"""From the estimator's metrics to what is logged: verl's names with verl's meanings, and `fusion/*` beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from unify_posttrain.algorithms import ALGORITHMS, Algorithm

# Always present, 0 when a term does not exist: loggers and readers need not know the algorithm.
FUSION = {
    "fusion/rl_loss": "rl_loss",
    "fusion/off_loss": "off_loss",
    "fusion/sft_loss": "sft_loss",
    "fusion/hint_loss": "hint_loss",
    "fusion/total_loss": "total_loss",
    "fusion/sft_nll": "demo_nll",
    "fusion/on_p": "on_p",
    "fusion/demo_p": "demo_p",
    "fusion/rho_on_mean": "on_rho",
    "fusion/rho_demo_mean": "demo_rho",
    "fusion/off_ratio_mean": "off_ratio",
    "fusion/mask_frac": "rl_kept",
    "fusion/hint_p": "hint_p",
}
UPDATE_METRICS = (*FUSION, "fusion/optimizer_steps", "fusion/skipped_rows", "fusion/grad_skipped", "fusion/empty_updates")

# Those of single algorithms: present in every run, 0 where they mean nothing.
OWN_METRICS = tuple(dict.fromkeys(name for cls in ALGORITHMS.values() for name in cls.own_metrics))


def verl_metrics(
    record: Mapping[str, Sequence[float]],
    algorithm: Algorithm,
    *,
    steps: int,
    grad_norm: float,
    grad_skipped: int,
    steps_without_members: int,
) -> dict[str, float]:
    """Metrics of one `update_policy`.

    Args:
        record: estimator metric -> global value per optimizer step.
        algorithm: decides whether entropy and KL are reported.
        steps: optimizer steps taken or skipped for their norm.
        grad_norm: mean over steps, before clipping.
        grad_skipped: steps skipped because of the norm.
        steps_without_members: mini-batches with nothing to train on.

    verl adds up `actor/pg_loss` and `actor/kl_loss` over mini-batches and averages the rest; so do we, to keep the names' meaning.
    `fusion/*` are means over mini-batches.
    """

    def mean(name: str) -> float:
        values = record.get(name, ())
        return sum(values) / len(values) if values else 0.0

    # verl subtracts the entropy bonus from its loss in place (in float32), so that its pg_loss contains it; the name keeps that
    # meaning here, and fusion/rl_loss is the policy-gradient loss alone.
    pg_loss = np.float32(record.get("rl_loss", 0.0))
    if algorithm.settings.entropy_coeff and "entropy_loss" in record:
        pg_loss = pg_loss - np.float32(record["entropy_loss"]) * np.float32(algorithm.settings.entropy_coeff)
    metrics = {
        "actor/pg_loss": float(np.sum(pg_loss, dtype=np.float64)),
        "actor/kl_loss": sum(record.get("kl_loss", ())),
        "actor/ppo_kl": mean("ppo_kl"),
        "actor/pg_clipfrac": mean("rl_clipfrac"),
        "actor/pg_clipfrac_lower": mean("rl_clipfrac_lower"),
        "actor/grad_norm": grad_norm,
    }
    if algorithm.needs_entropy:
        metrics["actor/entropy"] = mean("entropy_loss" if "entropy_loss" in record else "entropy")
    if algorithm.settings.use_kl_loss:
        metrics["actor/kl_coef"] = algorithm.settings.kl_loss_coef
    own = {name: source for name, source in algorithm.own_metrics.items() if source is not None}
    metrics.update({name: mean(source) for name, source in {**FUSION, **own}.items()})
    metrics["fusion/optimizer_steps"] = float(steps - grad_skipped)
    metrics["fusion/skipped_rows"] = sum(record.get("skipped_rows", ()))
    metrics["fusion/grad_skipped"] = float(grad_skipped)
    metrics["fusion/empty_updates"] = float(steps_without_members)
    return metrics

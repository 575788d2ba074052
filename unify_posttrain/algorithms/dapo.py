"""DAPO (arXiv 2503.14476 eq. 8-13): GRPO with four changes.

    L = 1/N_tok Σ -min(r Â, clip(r, 1-ε_low, 1+ε_high) Â),    only groups with std R > 0,    R including the overlong penalty

It differs from GRPO in configuration alone (conf/algorithm/dapo.yaml): a higher upper bound, a token mean, no KL, dynamic sampling
(`algorithm.filter_groups`) and overlong shaping (verl's reward manager `dapo`).
"""

from unify_posttrain.algorithms.grpo import GRPO


class DAPO(GRPO):
    """Its rollouts, if their rewards differ."""

    name = "dapo"
    paper = "arXiv 2503.14476"

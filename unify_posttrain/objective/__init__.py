"""The Unified Policy Gradient Estimator (arXiv 2509.04419) as a library: torch only, usable from any trainer."""

from unify_posttrain.objective.aggregation import MODES, Aggregation, Count
from unify_posttrain.objective.loss import compute_loss, count_members, member_sets
from unify_posttrain.objective.references import (
    RATIO_SHAPES,
    SHAPES,
    CurrentPolicy,
    OldPolicy,
    One,
    Reference,
    Shaped,
    ShapedRatio,
)
from unify_posttrain.objective.sequence import LENGTH_NORMS, PseudoLikelihood
from unify_posttrain.objective.stabilisers import NoStabiliser, PPOClip, Stabiliser
from unify_posttrain.objective.streams import TOKEN_CLASSES, token_class
from unify_posttrain.objective.terms import KL, Entropy, Members, PolicyGradient, Term
from unify_posttrain.objective.update import MiniBatchUpdate, Ranks, UpdateRecord, may_step, old_is_current
from unify_posttrain.objective.weights import (
    ENTROPY_SCOPES,
    AboveFloor,
    ExpEntropy,
    Probability,
    TokenWeight,
    TopEntropy,
    Uncertainty,
)

__all__ = [
    "ENTROPY_SCOPES",
    "KL",
    "LENGTH_NORMS",
    "MODES",
    "RATIO_SHAPES",
    "SHAPES",
    "TOKEN_CLASSES",
    "AboveFloor",
    "Aggregation",
    "Count",
    "CurrentPolicy",
    "Entropy",
    "ExpEntropy",
    "Members",
    "MiniBatchUpdate",
    "NoStabiliser",
    "OldPolicy",
    "One",
    "PPOClip",
    "PolicyGradient",
    "Probability",
    "PseudoLikelihood",
    "Ranks",
    "Reference",
    "Shaped",
    "ShapedRatio",
    "Stabiliser",
    "Term",
    "TokenWeight",
    "TopEntropy",
    "Uncertainty",
    "UpdateRecord",
    "compute_loss",
    "count_members",
    "may_step",
    "member_sets",
    "old_is_current",
    "token_class",
]

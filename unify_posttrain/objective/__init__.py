"""The Unified Policy Gradient Estimator (arXiv 2509.04419) as a library: torch only, usable from any trainer."""

from unify_posttrain.objective.aggregation import MODES, Aggregation, Count
from unify_posttrain.objective.loss import compute_loss, count_members, member_sets
from unify_posttrain.objective.references import SHAPES, CurrentPolicy, OldPolicy, One, Reference, Shaped
from unify_posttrain.objective.stabilisers import NoStabiliser, PPOClip, Stabiliser
from unify_posttrain.objective.streams import TOKEN_CLASSES, token_class
from unify_posttrain.objective.terms import KL, Entropy, Members, PolicyGradient, Term

__all__ = [
    "KL",
    "MODES",
    "SHAPES",
    "TOKEN_CLASSES",
    "Aggregation",
    "Count",
    "CurrentPolicy",
    "Entropy",
    "Members",
    "NoStabiliser",
    "OldPolicy",
    "One",
    "PPOClip",
    "PolicyGradient",
    "Reference",
    "Shaped",
    "Stabiliser",
    "Term",
    "compute_loss",
    "count_members",
    "member_sets",
    "token_class",
]

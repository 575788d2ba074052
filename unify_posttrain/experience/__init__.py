"""Experience: which rows a training step is made of. Torch and numpy only."""

from unify_posttrain.experience.advantages import Advantage, Centred, Estimated, Reward, ScoredRows, Split, row_advantages
from unify_posttrain.experience.demonstrations import Demonstration, DemonstrationReader, demonstration_tensors
from unify_posttrain.experience.gate import SOFT_TABLES, gate, soft_coefficients
from unify_posttrain.experience.mixer import Mixed, mix
from unify_posttrain.experience.plan import BatchPlan, GatePlan, GroupPlan
from unify_posttrain.experience.row_plan import RowPlan, deal, plan_rows
from unify_posttrain.experience.rows import Rows

__all__ = [
    "SOFT_TABLES",
    "Advantage",
    "BatchPlan",
    "Centred",
    "Demonstration",
    "DemonstrationReader",
    "Estimated",
    "GatePlan",
    "GroupPlan",
    "Mixed",
    "Reward",
    "RowPlan",
    "Rows",
    "ScoredRows",
    "Split",
    "deal",
    "demonstration_tensors",
    "gate",
    "mix",
    "plan_rows",
    "row_advantages",
    "soft_coefficients",
]

"""Experience: which rows a training step is made of. Torch and numpy only."""

from unify_posttrain.experience.advantages import override_advantages
from unify_posttrain.experience.demonstrations import Demonstration, DemonstrationReader, demonstration_tensors
from unify_posttrain.experience.gate import SOFT_TABLES, BatchPlan, GroupPlan, gate, soft_coefficients
from unify_posttrain.experience.mixer import Mixed, mix
from unify_posttrain.experience.row_plan import RowPlan, deal, plan_rows
from unify_posttrain.experience.rows import Rows

__all__ = [
    "SOFT_TABLES",
    "BatchPlan",
    "Demonstration",
    "DemonstrationReader",
    "GroupPlan",
    "Mixed",
    "RowPlan",
    "Rows",
    "deal",
    "demonstration_tensors",
    "gate",
    "mix",
    "override_advantages",
    "plan_rows",
    "soft_coefficients",
]

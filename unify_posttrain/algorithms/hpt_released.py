"""HPT with the balance of the published runs (arXiv 2509.04419, released scripts): L_RL + λ L_SFT, each by its own divisor.

It differs from HPT in configuration alone (conf/algorithm/hpt_released.yaml): `fusion.agg.rl=sum-norm`, i.e. Σ/(L_max·8) with the 8
ranks of those runs as a constant, and `fusion.hpt.term_scale=own`, under which one gated prompt weighs as much as all the others.
"""

from unify_posttrain.algorithms.hpt import HPT


class HPTReleased(HPT):
    """HPT's gate and terms under the released normalisation."""

    name = "hpt_released"
    paper = "arXiv 2509.04419"

"""Dr. GRPO (arXiv 2503.20783 §3.2): GRPO without the two normalisations that bias it.

    L = 1/n Σ_i 1/L_max Σ_t -r Â,    Â_i = R_i - mean R    (no division by std R, none by |o_i|)

It differs from GRPO in configuration alone (conf/algorithm/dr_grpo.yaml): `norm_adv_by_std_in_grpo=false` and
`fusion.agg.rl=seq-mean-token-sum-norm`. The ratio is not clipped by default, as HPT, LUFFY and ReLIFT run their own rollouts, so
that `algorithm=hpt trainer.switch_gate=-1` is this algorithm. The paper clips, and so do the RL baselines that LUFFY and ReLIFT
compare with: `fusion.clip=ppo`, and `dr_grpo_released`, which has their balance.
"""

from unify_posttrain.algorithms.grpo import GRPO


class DrGRPO(GRPO):
    """Its rollouts."""

    name = "dr_grpo"
    paper = "arXiv 2503.20783"

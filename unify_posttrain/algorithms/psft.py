"""PSFT, proximal supervised fine-tuning (arXiv 2508.17784 eq. 6): SFT inside PPO's trust region.

    L = -1/N_tok Σ min(r, clip(r, 1-ε_low, 1+ε_high)),    r = π_θ/π_old on demonstration tokens, Â = 1

It differs from SFT in configuration alone: `fusion.sft_form=psft` (conf/algorithm/psft.yaml). π_old is the policy at the start of
the step, so it takes more than one optimizer step per batch for the clip to act. `fusion/sft_nll` logs the likelihood beside it.
"""

from unify_posttrain.algorithms.sft import SFT


class PSFT(SFT):
    """A demonstration, under a clipped ratio; nothing is generated."""

    name = "psft"
    paper = "arXiv 2508.17784"

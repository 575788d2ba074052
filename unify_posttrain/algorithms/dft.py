"""DFT, dynamic fine-tuning (arXiv 2508.05629 eq. 9): SFT without the 1/π that inflates the gradient of unlikely tokens.

    L = -1/N_tok Σ sg(π_θ) log π_θ

As an estimator: π_ref = 1, Â = 1. It differs from SFT in configuration alone: `fusion.sft_form=dft` (conf/algorithm/dft.yaml),
which every other algorithm with a likelihood term takes too.
"""

from unify_posttrain.algorithms.sft import SFT


class DFT(SFT):
    """A demonstration, whose tokens weigh what the policy thinks of them; nothing is generated."""

    name = "dft"
    paper = "arXiv 2508.05629"

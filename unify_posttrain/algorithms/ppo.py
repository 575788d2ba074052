"""PPO with a critic (arXiv 1707.06347 eq. 7 and 11).

    L = 1/N Σ_t -min(r Â, clip(r, 1-ε, 1+ε) Â),    Â from generalised advantage estimation (arXiv 1506.02438) over a critic's values

The mean is over all sampled tokens; where Â < 0 the ratio is bounded at c as well (dual clip, arXiv 1912.09729). With γ = λ = 1,
the default, Â is the reward minus the value of the token, and a group of one rollout is enough: the critic is the baseline.
The critic itself is trained by `objective.value.value_loss` on the same rows.
"""

from unify_posttrain.algorithms.grpo import GRPO


class PPO(GRPO):
    """Its rollouts, any number."""

    name = "ppo"
    paper = "arXiv 1707.06347"
    needs_critic = True
    single_phase = True

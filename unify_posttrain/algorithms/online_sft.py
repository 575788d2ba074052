"""Online SFT ("Online SFT = RLHF"): the policy gradient of a KL-regularised reward, written as weighted likelihood of own samples.

    analytic:  L = -1/N_seq Σ_i c_i l_i,    c_i = sg(R_i - β k1_i - b_i),    l = Σ_t log π_θ(y_t),    k1 = l - l_ref
    pseudo:    the published loss (`objective.sequence.PseudoLikelihood`), whose gradient is the analytic one with baseline β

b is 0, β, the leave-one-out or group mean, or a whitening over the batch. Rule-based rewards become ±1 before the penalty of the
reward manager (DAPO's overlong, say) is added; a reward model's score is taken as it is. Deviation from the released code: the
analytic form is the default and never divides by l; settings under which the published gradient is wrong need `legacy=true`.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from unify_posttrain.algorithms.base import Algorithm, ScoredRows, group_sums
from unify_posttrain.experience.rules import Experience, RolloutsOnly
from unify_posttrain.objective import CurrentPolicy, Members, PolicyGradient, PseudoLikelihood, Term
from unify_posttrain.objective.terms import TokenLoss

FORMS, TASKS = ("analytic", "pseudo"), ("rule", "model")
BASELINES = ("none", "beta", "rloo", "group_mean", "batch_whiten")


class OnlineSFT(Algorithm):
    """Rollouts only, one update per batch, advantages per sequence."""

    name = "online_sft"
    paper = "Online SFT = RLHF"
    advantage = "R - β(l - l_ref) - b"
    needs_reference = True
    one_update = True
    advantage_streams = ("old_log_probs", "ref_log_prob")

    def check(self) -> None:
        own = self.fusion.online_sft
        for key, known in {"form": FORMS, "baseline": BASELINES, "task": TASKS}.items():
            if getattr(own, key) not in known:
                raise ValueError(f"fusion.online_sft.{key}={getattr(own, key)!r}; choose one of {', '.join(known)}")
        legacy = {
            "length_norm=published": own.length_norm == "published",
            f"clip_weight_value={own.clip_weight_value}": own.clip_weight_value is not None,
            f"clip_logprob_min={own.clip_logprob_min}": own.clip_logprob_min is not None,
        }
        for setting in (name for name, used in legacy.items() if used and not (own.legacy and own.form == "pseudo")):
            raise ValueError(
                f"fusion.online_sft.{setting} reverses, erases or shrinks the gradient of the reward; it exists to reproduce "
                "published runs: set it back, or fusion.online_sft.form=pseudo fusion.online_sft.legacy=true"
            )
        if own.form == "pseudo" and own.baseline != "none":
            raise ValueError(f"fusion.online_sft.baseline={own.baseline}: form=pseudo has the fixed baseline β; set it to none")
        if self.fusion.clip != "none" or self.fusion.shaping.on != "none":
            raise ValueError("fusion.clip and fusion.shaping.on act on a ratio, algorithm=online_sft has none; set both to none")
        super().check()

    @property
    def group_baseline(self) -> bool:  # type: ignore[override]
        return self.fusion.online_sft.baseline in ("rloo", "group_mean")

    @property
    def terms(self) -> tuple[Term, ...]:
        own = self.fusion.online_sft
        loss: TokenLoss = PolicyGradient(CurrentPolicy(), "advantages")
        if own.form == "pseudo":
            loss = PseudoLikelihood(own.beta, own.length_norm, own.clip_weight_value, own.clip_logprob_min)
        return (Term("rl", loss, Members("on"), self.aggregation("rl")), *self.regularisers)

    @property
    def experience(self) -> Experience:
        return RolloutsOnly(self.fusion.group_size)

    def rewards(self, rows: ScoredRows) -> Tensor:
        """(B,) R: of rule-based tasks the success becomes correct_reward or incorrect_reward, penalties stay."""
        own = self.fusion.online_sft
        if own.task == "model":
            return rows.scores
        solved = rows.success >= self.fusion.success_threshold
        return torch.where(solved, own.correct_reward, own.incorrect_reward) + (rows.scores - rows.success)

    def row_advantages(self, rows: ScoredRows) -> tuple[Tensor, Mapping[str, float]]:
        own = self.fusion.online_sft
        k1 = torch.where(rows.mask, rows.old_log_probs - rows.ref_log_prob, 0.0).sum(dim=-1)
        metrics = {"fusion/kl_seq": float(k1.mean())}
        length = rows.mask.sum(dim=-1).clamp(min=1) if own.length_norm == "consistent" else torch.ones_like(k1)
        return centred(self.rewards(rows) - own.beta * k1 / length, rows.uids, own.baseline, own.beta) / length, metrics


def centred(penalised: Tensor, uids: Sequence[str], baseline: str, beta: float) -> Tensor:
    """(B,) R - β k1 minus its baseline; `rloo` and `group_mean` over the rows of one uid, `batch_whiten` over all."""
    if baseline in ("none", "beta"):
        return penalised - (beta if baseline == "beta" else 0.0)
    if baseline == "batch_whiten":
        return (penalised - penalised.mean()) / (penalised.std() + 1e-6)
    sums, sizes = group_sums(penalised, uids)
    return penalised - ((sums - penalised) / (sizes - 1).clamp(min=1) if baseline == "rloo" else sums / sizes)

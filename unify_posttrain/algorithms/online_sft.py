"""Online SFT ("Online SFT = RLHF"): the policy gradient of a KL-regularised reward, written as weighted likelihood of own samples.

    analytic:  L = -1/N_seq Σ_i c_i l_i,    c_i = sg(R_i - β k1_i - b_i),    l = Σ_t log π_θ(y_t),    k1 = l - l_ref
    pseudo:    the published loss (`objective.sequence.PseudoLikelihood`), whose gradient is the analytic one with baseline β

b is 0, β, the leave-one-out or group mean, or a whitening over the batch. Rule-based rewards become ±1 before the penalty of the
reward manager (DAPO's overlong, say) is added; a reward model's score is taken as it is. Deviation from the released code: the
analytic form is the default and never divides by l; settings under which the published gradient is wrong need `legacy=true`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from unify_posttrain.algorithms.base import Algorithm
from unify_posttrain.config import steps_of_episodes
from unify_posttrain.experience.advantages import Advantage, ScoredRows
from unify_posttrain.experience.rules import Experience, RolloutsOnly
from unify_posttrain.objective import CurrentPolicy, Members, PolicyGradient, PseudoLikelihood, Term
from unify_posttrain.objective.terms import TokenLoss

FORMS, TASKS = ("analytic", "pseudo"), ("rule", "model")
BASELINES = ("none", "beta", "rloo", "group_mean", "batch_whiten")


@dataclass(frozen=True)
class OnlineSFTSettings:
    """`fusion.online_sft`."""

    form: str
    beta: float
    baseline: str
    length_norm: str
    legacy: bool
    clip_weight_value: float | None
    clip_logprob_min: float | None
    task: str
    correct_reward: float
    incorrect_reward: float
    episodes: int | None


@dataclass(frozen=True)
class KLPenalised(Advantage):
    """Â = (R - β k1 - b) / length, one number per sequence; k1 = l - l_ref at the start of the step.

    Attributes:
        beta: β.
        baseline: b: `none` 0, `beta` β, `rloo` mean of the prompt's other rollouts, `group_mean` of all of them; `batch_whiten`:
            minus the mean of the batch, divided by its deviation + 1e-6.
        per_token: `length` is that of the response, which divides k1 as well; otherwise 1.
        verdict_rewards: (correct, incorrect) replace a verdict by this R, to which penalties are added; None: R is the score.
        threshold: of the verdict.
    """

    beta: float
    baseline: str
    per_token: bool
    verdict_rewards: tuple[float, float] | None
    threshold: float
    streams: ClassVar[tuple[str, ...]] = ("old_log_probs", "ref_log_prob")  # type: ignore[misc]

    @property
    def compares(self) -> bool:  # type: ignore[override]
        return self.baseline in ("rloo", "group_mean")

    def rewards(self, rows: ScoredRows) -> Tensor:
        if self.verdict_rewards is None:
            return rows.scores
        correct, incorrect = self.verdict_rewards
        success = rows.scores if rows.success is None else rows.success
        return torch.where(success >= self.threshold, correct, incorrect) + (rows.scores - success)

    def __call__(self, rows: ScoredRows) -> Tensor:
        k1 = _sequence_k1(rows)
        length = rows.mask.sum(dim=-1).clamp(min=1) if self.per_token and rows.mask is not None else torch.ones_like(k1)
        return centred(self.rewards(rows) - self.beta * k1 / length, rows.uids, self.baseline, self.beta) / length

    def metrics(self, rows: ScoredRows) -> Mapping[str, float]:
        return {"fusion/kl_seq": float(_sequence_k1(rows).mean())}

    def describe(self, tokens: str = "trained") -> str:
        length = "/len" if self.per_token else ""
        baselines = {"none": "", "beta": f" - {self.beta:g}", "rloo": " - mean of the others", "group_mean": " - mean of the group"}
        if self.baseline == "batch_whiten":
            return f"whitened R - {self.beta:g} (l - l_ref){length}"
        formula = f"R - {self.beta:g} (l - l_ref){length}{baselines[self.baseline]}"
        return f"({formula}) / len" if self.per_token else formula


class OnlineSFT(Algorithm):
    """Its rollouts, one update per batch."""

    name = "online_sft"
    paper = "Online SFT = RLHF"
    nodes: ClassVar[Mapping[str, type]] = {"online_sft": OnlineSFTSettings}
    online_sft: OnlineSFTSettings
    own_metrics: ClassVar[Mapping[str, str | None]] = {"fusion/kl_seq": None}
    needs_reference = True
    one_update = True

    def check(self) -> None:
        own = self.online_sft
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

    def check_run(self, config: Any) -> None:
        """The number of steps follows from the episodes; the KL must not be counted twice."""
        episodes, batch, steps = self.online_sft.episodes, config.data.train_batch_size, config.trainer.total_training_steps
        if episodes is not None and steps != steps_of_episodes(episodes, batch):
            raise ValueError(
                f"fusion.online_sft.episodes={episodes} at {batch} prompts a step are {steps_of_episodes(episodes, batch)} steps, "
                f"trainer.total_training_steps={steps}; set one of them"
            )
        if config.algorithm.use_kl_in_reward:
            raise ValueError(
                f"algorithm.use_kl_in_reward=true counts the KL of algorithm={self.name} twice: its reward holds it, times "
                "fusion.online_sft.beta; set it to false"
            )

    @property
    def advantage(self) -> Advantage:
        own = self.online_sft
        rewards = None if own.task == "model" else (own.correct_reward, own.incorrect_reward)
        return KLPenalised(own.beta, own.baseline, own.length_norm == "consistent", rewards, self.fusion.success_threshold)

    @property
    def terms(self) -> tuple[Term, ...]:
        own = self.online_sft
        loss: TokenLoss = PolicyGradient(CurrentPolicy(), "advantages")
        if own.form == "pseudo":
            loss = PseudoLikelihood(own.beta, own.length_norm, own.clip_weight_value, own.clip_logprob_min)
        return (Term("rl", loss, Members("on"), self.aggregation("rl")), *self.regularisers)

    @property
    def experience(self) -> Experience:
        return RolloutsOnly(self.fusion.group_size)


def centred(penalised: Tensor, uids: Sequence[str], baseline: str, beta: float) -> Tensor:
    """(B,) R - β k1 minus its baseline; `rloo` and `group_mean` over the rows of one uid, `batch_whiten` over all."""
    if baseline in ("none", "beta"):
        return penalised - (beta if baseline == "beta" else 0.0)
    if baseline == "batch_whiten":
        return (penalised - penalised.mean()) / (penalised.std() + 1e-6)
    sums, sizes = group_sums(penalised, uids)
    return penalised - ((sums - penalised) / (sizes - 1).clamp(min=1) if baseline == "rloo" else sums / sizes)


def group_sums(values: Tensor, uids: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Sum of each row's group and its size, both (B,)."""
    index = {uid: number for number, uid in enumerate(dict.fromkeys(uids))}
    groups = torch.tensor([index[uid] for uid in uids], device=values.device)
    sums = torch.zeros(len(index), dtype=values.dtype, device=values.device).index_add(0, groups, values)
    sizes = torch.bincount(groups, minlength=len(index)).to(values.dtype)
    return sums[groups], sizes[groups]


def _sequence_k1(rows: ScoredRows) -> Tensor:
    """(B,) Σ_t log π_old - log π_ref over sampled tokens."""
    if rows.mask is None or rows.old_log_probs is None or rows.ref_log_prob is None:
        raise KeyError("the advantage of algorithm=online_sft reads old_log_probs and ref_log_prob, which the batch does not hold")
    return torch.where(rows.mask, rows.old_log_probs - rows.ref_log_prob, 0.0).sum(dim=-1)

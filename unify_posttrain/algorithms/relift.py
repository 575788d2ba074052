"""ReLIFT (arXiv 2506.07527 §3): reinforcement learning interleaved with fine-tuning on the questions it does not solve.

    RL step:           L = -Â r,  Â = R - mean R,  on all rollouts
    fine-tuning step:  L = NLL - α H  on the demonstrations of M buffered questions, right after the RL step that filled the buffer

A question enters the buffer when none of its rollouts is solved. The fine-tuning step has an optimizer of its own
(`fusion.relift.optimizer=separate`) or RL's moments with its learning rate (`shared`). Deviations from the released code: the
buffer holds a question once (`dedup`), buffer and optimizer survive a resume, a step without unsolved questions does nothing, and
the fine-tuning gradient does not shrink with the number of ranks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from unify_posttrain.algorithms.base import Algorithm, ReplayStep
from unify_posttrain.experience.replay import ReplayBuffer
from unify_posttrain.experience.rules import Experience, RolloutsOnly
from unify_posttrain.objective import Entropy, Members, Term

OPTIMIZERS = ("separate", "shared")


@dataclass(frozen=True)
class ReLIFTSettings:
    """`fusion.relift`: the buffer (see `experience.replay`) and its fine-tuning step."""

    sft_data_size: int
    order: str
    dedup: bool
    max_buffer: int | None
    optimizer: str
    lr: float
    grad_clip: float
    entropy_coeff: float
    sft_epochs: int
    sft_mini_batch_size: int | None


class ReLIFT(Algorithm):
    """Its rollouts; now and then a batch of questions that were not solved."""

    name = "relift"
    paper = "arXiv 2506.07527"
    nodes: ClassVar[Mapping[str, type]] = {"relift": ReLIFTSettings}
    relift: ReLIFTSettings
    single_phase = True

    def check(self) -> None:
        super().check()
        relift = self.relift
        if self.fusion.sft_form == "psft":
            raise ValueError(
                "fusion.sft_form=psft compares with the policy that a batch began with, which replay does not keep; use nll"
            )
        if relift.optimizer not in OPTIMIZERS:
            raise ValueError(f"fusion.relift.optimizer={relift.optimizer!r}; choose one of {', '.join(OPTIMIZERS)}")
        for name, value in (("lr", relift.lr), ("grad_clip", relift.grad_clip), ("sft_epochs", relift.sft_epochs)):
            if not value > 0:
                raise ValueError(f"fusion.relift.{name}={value} must be > 0")
        size, mini = relift.sft_data_size, relift.sft_mini_batch_size
        if mini is not None and (mini < 1 or size % mini):
            raise ValueError(f"fusion.relift.sft_mini_batch_size={mini} must divide fusion.relift.sft_data_size={size}")
        self.replay  # noqa: B018 - checks its own numbers

    @property
    def terms(self) -> tuple[Term, ...]:
        return (self.on_policy_term(), *self.regularisers)

    @property
    def experience(self) -> Experience:
        return RolloutsOnly(self.fusion.group_size, needs_target=True)

    @property
    def replay(self) -> ReplayBuffer:
        relift = self.relift
        return ReplayBuffer(relift.sft_data_size, relift.order, relift.dedup, relift.max_buffer, self.fusion.seed)

    @property
    def replay_step(self) -> ReplayStep:
        relift = self.relift
        separate = relift.optimizer == "separate"
        return ReplayStep(relift.lr, relift.grad_clip, relift.sft_epochs, relift.sft_mini_batch_size, separate)

    @property
    def replay_terms(self) -> tuple[Term, ...]:
        alpha = self.relift.entropy_coeff
        nll = self.likelihood_term()
        bonus = Term("sft_entropy", Entropy(), Members("demo"), self.aggregation("entropy"), -alpha)
        return (nll, bonus) if alpha else (nll,)

"""The book-keeping of an episode: rewards, counts and the end, for every environment that judges one answer after another."""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from unify_posttrain.tasks.episodes import EpisodeSettings, trajectory_score

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ImagePart:
    """An image of feedback, as the model is shown it.

    Attributes:
        image: of Pillow, RGB, in the size that the model's processor leaves as it is.
        tokens: that the model makes of it.
        origin: where it comes from, as JSON has it, so that it can be made again.
    """

    image: Any
    tokens: int
    origin: Mapping[str, Any]


@dataclass(frozen=True)
class Server:
    """A server that an environment asks.

    Attributes:
        key: the setting that names it.
        url: its address.
        instead: what happens where it does not answer; empty: no run begins.
    """

    key: str
    url: str
    instead: str = ""


@dataclass(frozen=True)
class ImageLimits:
    """The most that an episode shows beside its prompt: images, and tokens of each."""

    images: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class Step:
    """What an environment says to an answer.

    Attributes:
        reward: of this turn.
        done: the episode is over.
        feedback: parts of the next message of the user, texts or :class:`ImagePart`; empty if it is over.
        solved: it is over because the answer is right.
        outcome: what the answer was found to be, in a word.
    """

    reward: float
    done: bool
    feedback: tuple[Any, ...] = ()
    solved: bool = False
    outcome: str = ""


@dataclass(frozen=True)
class Verdict:
    """What a verifier found in one answer.

    Attributes:
        outcome: one of the environment's OUTCOMES.
        reward: of the turn.
        solved: it is right.
        feedback: what a wrong answer is told.
        pred: what was read in it.
        other_rule: it would be right under the rule that is not asked for.
    """

    outcome: str
    reward: float
    solved: bool = False
    feedback: str = ""
    pred: str = ""
    other_rule: bool = False


class TurnEnvironment(ABC):
    """The book-keeping of turns. A task says how a row is read (`load`) and how an answer is judged (`judge`).

    A judge that raises costs its turn: the lowest reward, the end of the episode, and a count in `faults`.
    """

    OUTCOMES: ClassVar[tuple[str, ...]]

    def __init__(self, settings: EpisodeSettings, extra_turn: bool = False) -> None:
        self.settings, self.extra_turn = settings, extra_turn
        self._begin()

    @property
    def generations(self) -> int:
        """Answers that are generated at most: a published protocol has one more than it verifies."""
        return self.max_turns + self.extra_turn

    @property
    def max_turns(self) -> int:
        """Answers that are verified; a row may have fewer than the settings allow."""
        return self.settings.max_turns

    @property
    @abstractmethod
    def lowest(self) -> float:
        """The lowest reward of a turn."""

    @abstractmethod
    def load(self, row: Mapping[str, Any]) -> None:
        """Take over a row, see :meth:`Environment.reset`."""

    @abstractmethod
    def judge(self, text: str) -> Verdict:
        """Judge an answer to the row."""

    def reset(self, row: Mapping[str, Any]) -> None:
        """See :class:`Environment`."""
        self._begin()
        self.load(row)

    def _begin(self) -> None:
        self.rewards: list[float] = []
        self.verdicts: list[Verdict] = []
        self.faults, self.truncated = 0, False

    def step(self, text: str, complete: bool) -> Step:
        """See :class:`Environment`."""
        self.truncated = not complete
        if len(self.verdicts) == self.max_turns:  # the answer that nobody reads
            self.rewards.append(self.settings.limit_penalty)
            return Step(self.settings.limit_penalty, done=True)
        try:
            verdict = self.judge(text)
        except Exception as error:  # a fault of ours must cost a turn, not a run of days
            logger.warning("environment.name=%s: an answer could not be judged: %r", self.settings.name, error)
            self.faults += 1
            verdict = Verdict("", self.lowest)
        self.verdicts.append(verdict)
        last = len(self.verdicts) == self.max_turns and complete and not self.extra_turn
        reward = verdict.reward + (self.settings.limit_penalty if last and not verdict.solved else 0.0)
        self.rewards.append(reward)
        done = verdict.solved or last or not verdict.outcome
        return Step(reward, done, () if done else (verdict.feedback,), verdict.solved, verdict.outcome)

    def fields(self) -> dict[str, float | str]:
        """See :class:`Environment`."""
        turns = len(self.verdicts)
        solved = any(verdict.solved for verdict in self.verdicts)
        found: dict[str, float | str] = {
            "score": trajectory_score(self.rewards, solved, self.settings.score),
            "acc": float(solved),
            "turns": float(turns),
            "right_turns": float(sum(verdict.solved for verdict in self.verdicts)),
            "first_acc": float(turns > 0 and self.verdicts[0].solved),
            "truncated": float(self.truncated),
            "faults": float(self.faults),
            "other_rule": sum(verdict.other_rule for verdict in self.verdicts) / max(turns, 1),
        }
        for outcome in self.OUTCOMES:
            found[f"outcome_{outcome}"] = float(sum(verdict.outcome == outcome for verdict in self.verdicts))
        return {**found, "pred": readable(self.verdicts[-1].pred) if turns else ""}


def readable(text: str) -> str:
    """Text that any file can hold: halves of a UTF-16 pair, which models can produce, become question marks."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def ground_truth(row: Mapping[str, Any], keys: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Any]:
    """The JSON object that a generated row has as its ground truth.

    Args:
        row: of the data.
        keys: that the object has.
        optional: that it may have besides.

    Raises:
        TypeError, ValueError: it has none, or one with other keys.
    """
    found = (row.get("reward_model") or {}).get("ground_truth")
    where = f"reward_model.ground_truth of data_source={row.get('data_source')!r}"
    if not isinstance(found, str):
        raise TypeError(f"{where} must be text, got {type(found).__name__}; make the data with unify_posttrain.prepare")
    try:
        truth = json.loads(found)
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{where}={found[:200]!r} is no JSON ({error}); make the data anew") from None
    if not isinstance(truth, dict) or set(truth) - set(optional) != set(keys):
        raise ValueError(f"{where}={found[:200]!r} must be a JSON object with the keys {', '.join(keys)}; make the data anew")
    return truth

"""Transcripts of several turns: ids, mask, turns and budget. An agent loop, replayed targets and evaluation all lay out turns here.

A transcript is exact in tokens: what was sampled is never decoded and encoded again. Sampled tokens have mask 1, feedback and what
the chat template puts around it mask 0, and a transcript ends on a sampled token:

    transcript = Transcript(len(prompt_ids), budget)
    while cap := transcript.room():
        ids, complete = …                              # at most `cap` tokens, with seed turn_seed(seed, transcript.turns)
        transcript.answer(ids)
        step = environment.step(text, complete)
        transcript.judged(step.reward, complete, step.done, step.solved)
        if transcript.stop is None:
            transcript.feedback(frame.around(feedback_ids(step.feedback, encode, image_frame)), images_of(step.feedback))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unify_posttrain.chat import ChatTemplate
from unify_posttrain.experience.feedback import Encode
from unify_posttrain.experience.turn_targets import Replayed as Replayed
from unify_posttrain.experience.turn_targets import replay as replay

SOLVED, LENGTH, TURNS, ENDED = "solved", "length", "turns", "ended"  # why a transcript ended; the last: by the environment

_ANSWER, _FEEDBACK = "0123456789answer", "feedback9876543210"  # marks that no template writes by itself
_KEY = "environment"


def turn_seed(seed: int, turn: int) -> int:
    """Seed of a turn, counted from 0, of a rollout with this seed.

    >>> [turn_seed(12345, turn) for turn in range(3)]
    [12345, 671067976, 1175421177]
    """
    return seed if turn == 0 else int(np.random.SeedSequence([seed, turn]).generate_state(1)[0]) & 0x7FFFFFFF


@dataclass(frozen=True)
class TurnFrame:
    """Tokens that a chat template puts between an answer's end token and feedback, and between feedback and the next answer."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    @classmethod
    def from_template(cls, template: ChatTemplate, encode: Encode, end: str) -> TurnFrame:
        """Render an answer and feedback once, and cut at them.

        Args:
            template: of the model.
            encode: text -> token ids, adding none.
            end: the end token, as it is written.

        Raises:
            TemplateRefusedError: the template takes no such messages.
            ValueError: it changes them, or does not end an answer with the end token; names the template.
        """
        messages = [("user", "user"), ("assistant", _ANSWER), ("user", _FEEDBACK)]
        text = template.text([{"role": role, "content": content} for role, content in messages])
        if text.count(_ANSWER) != 1 or text.count(_FEEDBACK) != 1 or text.index(_ANSWER) > text.index(_FEEDBACK):
            raise ValueError(f"{template.name} does not repeat an answer and the message after it as they are; {_remedy(template)}")
        between, _, after = text.partition(_ANSWER)[2].partition(_FEEDBACK)
        if not between.startswith(end):
            raise ValueError(
                f"{template.name} ends an answer with {between[:20]!r} and not with the end token {end}, so that tokens of several "
                f"turns would not be those of the template; {_remedy(template)}"
            )
        return cls(tuple(encode(between[len(end) :])), tuple(encode(after)))

    def around(self, feedback: Sequence[int]) -> list[int]:
        """Feedback as it is appended to a transcript."""
        return [*self.before, *feedback, *self.after]

    def __len__(self) -> int:
        """Tokens around a feedback."""
        return len(self.before) + len(self.after)


def _remedy(template: ChatTemplate) -> str:
    return f"give a template that does: {template.key}=…"


@dataclass(frozen=True)
class TurnBudget:
    """What an episode may take, in tokens and turns.

    Attributes:
        max_turns: answers that are generated.
        max_tokens_per_turn: of one answer.
        min_turn_tokens: no turn begins with less room.
        response_length: T, of the whole transcript.
        max_model_len: of prompt and transcript together; None: not limited.
    """

    max_turns: int
    max_tokens_per_turn: int
    min_turn_tokens: int
    response_length: int
    max_model_len: int | None = None

    def check(self, prompt_length: int, around: int, feedback: int) -> str | None:
        """Whether an episode has room.

        Args:
            prompt_length: of the longest prompt, in tokens.
            around: tokens that the chat template puts around feedback.
            feedback: tokens of a typical feedback.

        Returns:
            A sentence with the arithmetic if not all turns have room for answers of full length; else None.

        Raises:
            ValueError: not even one turn has room.
        """
        room = self._left(0, prompt_length)
        if room < self.min_turn_tokens:
            raise ValueError(
                f"{_KEY}.min_turn_tokens={self.min_turn_tokens}: behind a prompt of {prompt_length} tokens an episode has room for "
                f"{max(room, 0)} (data.max_response_length={self.response_length}, rollout.max_model_len={self.max_model_len}), so "
                "no turn could begin; raise these, or shorten the prompts"
            )
        full = self.max_turns * self.max_tokens_per_turn + (self.max_turns - 1) * (around + feedback)
        if full <= room:
            return None
        return (
            f"{_KEY}.max_turns={self.max_turns}: so many answers of {_KEY}.max_tokens_per_turn={self.max_tokens_per_turn} tokens, "
            f"and {self.max_turns - 1} feedbacks of about {around + feedback}, are {full} tokens, and an episode has room for "
            f"{room}: long ones end before their last turn"
        )

    def _left(self, length: int, prompt_length: int) -> int:
        left = self.response_length - length
        return left if self.max_model_len is None else min(left, self.max_model_len - prompt_length - length)


class Transcript:
    """One episode as it grows.

    Attributes:
        ids, mask, log_probs: one entry per token of the response; log_probs are 0 where nothing was sampled.
        spans: [begin, end) of the sampled tokens of each turn.
        rewards: of each turn that was judged.
        images: that were shown in feedback, in the order of their blocks in ids.
        stop: None while it goes on, then `solved`, `length`, `turns` or `ended`.
    """

    def __init__(self, prompt_length: int, budget: TurnBudget) -> None:
        self.prompt_length, self.budget = prompt_length, budget
        self.ids: list[int] = []
        self.mask: list[int] = []
        self.log_probs: list[float] = []
        self.spans: list[tuple[int, int]] = []
        self.rewards: list[float] = []
        self.images: list[Any] = []
        self.stop: str | None = None

    @property
    def turns(self) -> int:
        """Answers so far."""
        return len(self.spans)

    def begin_with(self, ids: Sequence[int], trained: bool) -> None:
        """The tokens that the first answer is given to begin with (a hint, a part of a demonstration)."""
        if self.ids:
            raise ValueError("only the first answer begins with given tokens")
        self._append(ids, int(trained))

    def room(self) -> int:
        """Most tokens of the next answer; 0 if there is none, which `stop` explains."""
        if self.stop is not None:
            return 0
        budget = self.budget
        cap = min(budget.max_tokens_per_turn, budget._left(len(self.ids), self.prompt_length))
        if cap < budget.min_turn_tokens:
            self.stop = LENGTH
            return 0
        return cap

    def answer(self, ids: Sequence[int], log_probs: Sequence[float] | None = None) -> None:
        """Append what was sampled, its end token included.

        Raises:
            ValueError: no tokens, more than there is room for, or the answer before was not judged.
        """
        if self.turns > len(self.rewards):
            raise ValueError(f"answer {self.turns} was not judged")
        if not 0 < len(ids) <= self.room():
            raise ValueError(f"an answer of {len(ids)} tokens, where 1 to {self.room()} have room")
        begin = 0 if self.turns == 0 and 1 in self.mask else len(self.ids)  # a trained beginning is part of the first run of ones
        self._append(ids, 1, log_probs)
        self.spans.append((begin, len(self.ids)))

    def judged(self, reward: float, complete: bool, done: bool, solved: bool) -> None:
        """Note the reward of the last answer.

        Args:
            complete: it ended with its end token.
            done: the environment ended the episode.
            solved: because it is right.
        """
        if self.turns != len(self.rewards) + 1:
            raise ValueError(f"{len(self.rewards)} rewards for {self.turns} answers; judge every answer once")
        self.rewards.append(reward)
        if solved:
            self.stop = SOLVED
        elif not complete:  # cut: it is verified, but nobody answers it
            self.stop = LENGTH
        elif self.turns == self.budget.max_turns:
            self.stop = TURNS
        elif done:
            self.stop = ENDED

    def feedback(self, ids: Sequence[int], images: Sequence[Any] = ()) -> None:
        """Append what the user says, with what is around it; or stop, if no turn would fit behind it.

        Args:
            ids: of all of it.
            images: that it shows; not shown, if it is not appended.
        """
        if self.stop is not None or self.turns != len(self.rewards):
            raise ValueError("feedback follows a judged answer of an episode that goes on")
        if self.budget._left(len(self.ids) + len(ids), self.prompt_length) < self.budget.min_turn_tokens:
            self.stop = LENGTH
            return
        self._append(ids, 0)
        self.images += images

    def _append(self, ids: Sequence[int], mask: int, log_probs: Sequence[float] | None = None) -> None:
        self.ids += [int(token) for token in ids]
        self.mask += [mask] * len(ids)
        self.log_probs += [0.0] * len(ids) if log_probs is None else list(log_probs)

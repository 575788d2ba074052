"""The agent loop of all environments: the policy answers, the environment judges and tells what is wrong, until the episode ends.

It has no rule of its own: what an answer is worth says the environment (`unify_posttrain.tasks.environment`), how tokens, mask and
budget are laid out the transcript (`unify_posttrain.experience.transcript`). Ids are those that were sampled, never encoded again.
An episode knows its reward, so no reward worker is asked. Training and validation, and every engine, go this way.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any
from uuid import uuid4

from omegaconf import OmegaConf
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput
from verl.utils.fs import copy_to_local
from verl.utils.profiler import simple_timer

from unify_posttrain.chat import ChatTemplate
from unify_posttrain.experience.feedback import feedback_ids, images_of
from unify_posttrain.experience.transcript import Transcript, TurnBudget, TurnFrame, turn_seed
from unify_posttrain.rewards.calling import OUTCOME
from unify_posttrain.rewards.contract import Contract, Scored
from unify_posttrain.rollout.agent_loop import (
    NEW_TOKENS_COLUMN,
    PREFIX_COLUMN,
    PREFIX_TRAINED_COLUMN,
    SEED_COLUMN,
    WithoutSystemPrompt,
    room_for_tokens,
)
from unify_posttrain.rollout.decoding import end_tokens
from unify_posttrain.rollout.pictures import banned_bias, image_frame
from unify_posttrain.tasks.environment import Environment, begin
from unify_posttrain.tasks.episodes import NODE, EpisodeSettings, read_settings
from unify_posttrain.tasks.turns import ImagePart, Step

logger = logging.getLogger(__name__)

STOP = "stop"  # the field that says why an episode ended
TURN_SCORES = "turn_scores"  # verl's column of the rewards of turns
TURN_OUTCOMES = "turn_outcomes"  # what each answer was found to be
SHOWN = "shown_images"  # of a model that sees: where each image of feedback comes from


class EnvironmentAgentLoop(WithoutSystemPrompt):
    """Plays the environment of `environment` with one row.

    What comes back beside tokens, in columns that every row has: `turn_scores` and `turn_outcomes`, reward and verdict of each
    turn, and `reward_outcome`, the fields of the episode as a reward worker would say them, with `stop`: solved, length, turns or
    ended.
    """

    async def run(self, sampling_params: dict[str, Any], **row: Any) -> AgentLoopOutput:
        """Play one episode.

        Args:
            sampling_params: verl's, of the batch; `max_tokens` and `seed` are the turn's.
            row: the columns of a row; what rollouts begin with, their seed and limit as for a single turn.

        Raises:
            TypeError, ValueError: the row is none of the environment, the template makes no turns, or there is no room for one.
        """
        node = OmegaConf.to_container(self.config[NODE], resolve=True)
        messages = list(row["raw_prompt"])
        shown = await self.process_vision_info(messages)
        prompt_ids = await self.apply_chat_template(messages, images=shown.get("images"), videos=shown.get("videos"))
        banned = {} if self.processor is None else {"logit_bias": banned_bias(self.tokenizer)}
        frame = TurnFrame.from_template(self._template(), self._encode, self.tokenizer.eos_token)
        environment = begin(node, {**row, "prompt": messages})
        prefix = [int(token) for token in row.get(PREFIX_COLUMN, ())]
        transcript = Transcript(len(prompt_ids), self._budget(node, environment, len(prompt_ids), len(prefix), row))
        if prefix:
            transcript.begin_with(prefix, bool(row[PREFIX_TRAINED_COLUMN]))
        conversation, timing, preempted = uuid4().hex, {"generate_sequences": 0.0, "tool_calls": 0.0}, -1
        fault: str | None = None
        outcomes: list[str] = []
        while cap := transcript.room():
            seed = {"seed": turn_seed(int(row[SEED_COLUMN]), transcript.turns)} if SEED_COLUMN in row else {}
            with simple_timer("generate_sequences", timing):
                output = await self.server_manager.generate(
                    request_id=conversation,  # the same server for all turns
                    prompt_ids=[*prompt_ids, *transcript.ids],
                    sampling_params={**sampling_params, "max_tokens": cap, **seed, **banned},
                    image_data=_images(shown, transcript),
                    video_data=shown.get("videos"),
                )
            ids = output.token_ids[:cap]
            transcript.answer(ids, output.log_probs[:cap] if output.log_probs else None)
            complete = ids[-1] in self._ends
            preempted = max(preempted, -1 if output.num_preempted is None else output.num_preempted)
            with simple_timer("tool_calls", timing):
                step, fault = await _judged(environment, self._decode([*prefix, *ids]), complete)
            prefix = []  # of the first answer alone
            transcript.judged(step.reward, complete, step.done, step.solved)
            outcomes.append(step.outcome)
            if transcript.stop is None:
                transcript.feedback(frame.around(self._said(step.feedback)), images_of(step.feedback))
        scored = Scored.failed("error", fault) if fault else self._scored(environment, transcript)
        return AgentLoopOutput(
            prompt_ids=prompt_ids,
            response_ids=transcript.ids,
            response_mask=transcript.mask,
            response_logprobs=transcript.log_probs if sampling_params.get("logprobs") else None,
            routed_experts=output.routed_experts,  # of the last request, whose prompt was everything before
            multi_modal_data={**shown, **({"images": _images(shown, transcript)} if transcript.images else {})},
            reward_score=scored.score,
            num_turns=2 * transcript.turns,
            metrics=AgentLoopMetrics(**timing, num_preempted=preempted),
            extra_fields={
                **output.extra_fields,
                "tool_rewards": [],
                TURN_SCORES: transcript.rewards,
                TURN_OUTCOMES: outcomes,
                **({SHOWN: [dict(part.origin) for part in transcript.images]} if self.processor is not None else {}),
                "reward_extra_info": {OUTCOME: scored.to_dict()},
            },
        )

    def _budget(self, node: Mapping[str, Any], environment: Environment, prompt: int, prefix: int, row: Any) -> TurnBudget:
        """What the episode may take. The first turn needs room for one token only: a response prefix may leave little."""
        config, settings = self.rollout_config, _settings(json.dumps(node, sort_keys=True))
        limit = int(row.get(NEW_TOKENS_COLUMN, config.response_length))
        room = room_for_tokens(prefix, config.response_length, limit)
        first = room if config.max_model_len is None else min(room, config.max_model_len - prompt - prefix)
        if first < 1:
            raise ValueError(
                f"a prompt of {prompt} tokens and a response prefix of {prefix} leave no room to generate in "
                f"actor_rollout_ref.rollout.max_model_len={config.max_model_len}; raise it, or shorten the prompts"
            )
        return TurnBudget(
            max_turns=environment.generations,
            max_tokens_per_turn=settings.max_tokens_per_turn,
            min_turn_tokens=min(settings.min_turn_tokens, first),
            response_length=prefix + room,
            max_model_len=config.max_model_len,
        )

    def _scored(self, environment: Environment, transcript: Transcript) -> Scored:
        contract = Contract(f"{NODE}.name={self.config[NODE].name}", self.config.reward.protection.field_characters)
        return contract.read({**environment.fields(), STOP: transcript.stop})

    def _said(self, parts: Sequence[Any]) -> list[int]:
        """Ids of feedback; an image is as many pads as the model makes tokens of it.

        Raises:
            TypeError: a part that is neither text nor image.
            ValueError: an image for a model that sees none.
        """
        images = images_of(parts)
        other = next((part for part in images if not isinstance(part, ImagePart)), None)
        if other is not None:
            raise TypeError(
                f"{NODE}.name={self.config[NODE].name} answers with {type(other).__name__}; feedback is of texts and ImageParts"
            )
        return feedback_ids(parts, self._encode, image_frame(self.tokenizer) if images and self.processor else None)

    def _template(self) -> ChatTemplate:
        return ChatTemplate(self.tokenizer, dict(self.apply_chat_template_kwargs))

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    @property
    def _ends(self) -> frozenset[int]:
        model = self.config.actor_rollout_ref.model
        return _end_tokens(str(model.path), self.tokenizer.eos_token_id, bool(model.get("trust_remote_code", False)))


async def _judged(environment: Environment, text: str, complete: bool) -> tuple[Step, str | None]:
    """What the environment says to an answer, and its fault if it raised: that costs the episode, not the run."""
    try:
        step = environment.step(text, complete)
        return (await step if inspect.isawaitable(step) else step), None
    except Exception as error:
        logger.exception("an environment could not judge an answer")
        return Step(0.0, done=True), f"{type(error).__name__}: {error}"


def _images(shown: Mapping[str, Any], transcript: Transcript) -> list[Any] | None:
    """All images so far, in the order of their pads: the prompt's, then those of feedback."""
    images = [*(shown.get("images") or ()), *(part.image for part in transcript.images)]
    return images or None


@lru_cache(maxsize=8)
def _settings(node: str) -> EpisodeSettings:
    return read_settings(json.loads(node))[0]


@lru_cache(maxsize=8)
def _end_tokens(path: str, eos_id: int, trust: bool) -> frozenset[int]:
    """What the engines stop at."""
    return frozenset(end_tokens(copy_to_local(path), eos_id, trust))

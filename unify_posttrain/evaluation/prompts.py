"""Prompts as token ids, rendered as training renders them: chat template, generation prompt, nothing added.

(verl.experimental.agent_loop.AgentLoopBase.apply_chat_template; the template of a run overrides the tokenizer's own, as in
unify_posttrain.startup.tokenizers.)
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unify_posttrain.chat import ChatTemplate
from unify_posttrain.evaluation.benchmarks import Problem

if TYPE_CHECKING:
    from unify_posttrain.evaluation.seeing import Sight

logger = logging.getLogger(__name__)

ADVICE = "prepare the benchmark with prepare.task.system=none, or put the system text into the user's message"


@dataclass(frozen=True)
class PromptSettings:
    """How prompts are made.

    Attributes:
        max_length: tokens; `data.max_prompt_length` of training.
        drop_overlong: leave out problems with longer prompts (and count them) instead of refusing; `data.filter_overlong_prompts`.
        template_options: `data.apply_chat_template_kwargs`.
        template: `actor_rollout_ref.model.custom_chat_template`; None: the tokenizer's.
    """

    max_length: int
    drop_overlong: bool
    template_options: Mapping[str, Any]
    template: str | None


def load_tokenizer(folder: Path, template: str | None) -> Any:
    """The tokenizer of a model with the template to use.

    Raises:
        ValueError: there is neither a template of its own nor one given.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if template is not None:
        tokenizer.chat_template = template
    if tokenizer.chat_template is None:
        raise ValueError(
            f"the tokenizer of {folder} has no chat template; set custom_chat_template=…, or run=FOLDER of its training"
        )
    return tokenizer


def chat_template(tokenizer: Any, settings: PromptSettings) -> ChatTemplate:
    """The template with the options of the evaluation; its messages name the keys of conf/evaluate.yaml."""
    return ChatTemplate(tokenizer, settings.template_options, "custom_chat_template", ADVICE)


def render(
    tokenizer: Any, problems: Sequence[Problem], settings: PromptSettings, name: str = "benchmark", sight: Sight | None = None
) -> dict[int, list[int]]:
    """Prompt ids by row; rows with too long a prompt are missing.

    Args:
        tokenizer: with its template.
        problems: of a benchmark.
        settings: how prompts are made.
        name: of the benchmark, for messages.
        sight: of pictures; None: the benchmark has none.

    Raises:
        ValueError: the chat template does not take a prompt, one is too long and may not be dropped, or none is left.
    """
    template = chat_template(tokenizer, settings)
    prompts = {
        problem.row: sight.ids(problem, f"{name}, row {problem.row}")
        if sight is not None and problem.pictures
        else template.ids(problem.messages, f"{name}, row {problem.row}")
        for problem in problems
    }
    for warning in template.warnings(problems[0].messages) if problems else ():
        logger.warning("%s", warning)
    kept = {row: ids for row, ids in prompts.items() if len(ids) <= settings.max_length}
    overlong = [row for row in prompts if row not in kept]
    limit = f"max_prompt_length={settings.max_length}"
    if overlong and not settings.drop_overlong:
        raise ValueError(
            f"{name}: the prompt of row {overlong[0]} (and {len(overlong) - 1} more) is longer than {limit}; raise the limit, or "
            "set filter_overlong_prompts=true to leave such problems out"
        )
    if not kept:
        raise ValueError(f"{name}: every one of {len(prompts)} prompts is longer than {limit}; raise the limit")
    if overlong:
        logger.warning("%s: %d of %d prompts are longer than %s and are left out", name, len(overlong), len(prompts), limit)
    return kept


def prompts_digest(prompts: Mapping[int, Sequence[int]]) -> str:
    """sha256 over rows and token ids: covers tokenizer, template and limits."""
    return hashlib.sha256(json.dumps([[row, list(prompts[row])] for row in sorted(prompts)]).encode()).hexdigest()

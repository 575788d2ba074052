"""Words of navigation: the instructions, the way so far, what is seen now, and the answer of an expert, in two styles."""

from __future__ import annotations

import json
from collections.abc import Sequence

from unify_posttrain.tasks.navigation.routes import DIRECTIONS, TURNS, Position

STYLES = ("native", "upstream")

_DIRECTIONS = {"absolute": DIRECTIONS, "relative": TURNS}


def question(style: str, rule: str, sentences: Sequence[str], history: Sequence[Position], here: Position) -> str:
    """The message of the user at a position.

    Args:
        sentences: the instructions of the route.
        history: the positions before, whose right actions are known.
        here: the position; its action is not.
    """
    actions = f"forward(), turn_direction(x), stop(); x is one of {', '.join(_DIRECTIONS[rule])}"
    steps = [f"{number}. {each.observation} -> {each.action(rule)}" for number, each in enumerate(history, start=1)]
    if style == "upstream":
        return (
            "[Task Description]\n"
            "Navigate by the instructions. Choose the next action from the action space.\n\n"
            f"[Instruction]\n{_numbered(sentences)}\n\n"
            f"[Action Space]\n{actions}.\n\n"
            f"[Observations and Actions]\n{''.join(f'{step}' + chr(10) for step in steps)}{len(steps) + 1}. {here.observation}\n\n"
            '[Output]\n{\n"current observation": "…",\n"current instruction": "…",\n"action": "…",\n}'
        )
    return (
        "Walk through a city by written instructions, one action at a time.\n"
        f"Actions: {actions}.\n"
        f"Instructions:\n{_numbered(sentences)}\n"
        f"So far (what you saw -> what you did):\n{chr(10).join(steps) or 'nothing'}\n"
        f"Now you see: {here.observation}\n"
        'Answer with a JSON object and nothing besides, one key per line: "current observation", what you see now; "current '
        'instruction", the instruction that you carry out; "action", one of the actions.'
    )


def _numbered(sentences: Sequence[str]) -> str:
    return "\n".join(f"{number}. {sentence}" for number, sentence in enumerate(sentences, start=1))


def answer(style: str, rule: str, sentences: Sequence[str], here: Position) -> str:
    """What the expert says: the demonstration."""
    said = {
        "current observation": here.observation,
        "current instruction": sentences[here.instruction],
        "action": here.action(rule),
    }
    if style == "upstream":
        return "{\n" + "".join(f'"{key}": "{value}",\n' for key, value in said.items()) + "}"
    return "{\n" + ",\n".join(f'  "{key}": {json.dumps(value)}' for key, value in said.items()) + "\n}"


def feedback(style: str, outcome: str) -> str:
    """The message of the user after an answer that is not right."""
    said = {
        "no_action": "there is no action in it",
        "wrong_observation": "the intersection is not as it was seen",
        "wrong_action": "the action is wrong",
    }[outcome]
    if style == "upstream":
        return f"You failed this trial because {said}."
    return f"That is not right: {said}. Answer again, in the same form."

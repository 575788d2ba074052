"""Keys of VRAG's released training script, as ours: `max_turns=4`, `retriever.url=…`, `actor_rollout_ref.rollout.n_agent=5`, and
those of a node `agent`.

A command line is translated before anything is composed. A key that says what holds here anyway is left out, one that asks for
something else is refused with what to give instead. Nothing of it is looked for where none of these keys stands.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

logger = logging.getLogger(__name__)

ENVIRONMENT = "environment"
VERLS = "actor_rollout_ref.rollout.agent"  # has keys of verl, too, which are left to it
AGENTS = ("agent", "unify.agent", VERLS)  # nodes that hold the keys of the agent
OVERLONG, MANAGER = "target.overlong", "reward_model.reward_manager"
ROLLOUTS, GROUP = "actor_rollout_ref.rollout.n", "actor_rollout_ref.rollout.n_agent"
# What an agent's keys are called in our node `environment`; keys below the last three keep their names.
AGENT_KEYS = (
    *("max_turns", "max_tokens_per_turn", "min_turn_tokens", "crop_tag", "crop_pad_px", "min_crop_px", "min_pixels", "max_pixels"),
    *("images_per_search", "top_k", "retriever", "reward", "judge"),
)

_WRITTEN = re.compile(r"(?P<sign>\+{0,2})(?P<key>[\w.]+)=(?P<value>.*)", re.DOTALL)

Overrides = Sequence[str]


@dataclass(frozen=True)
class _Given:
    """A key and its value, as they stand on the command line."""

    key: str
    value: str

    @property
    def text(self) -> str:
        return f"{self.key}={self.value}"

    def refused(self, why: str, remedy: str) -> ValueError:
        return ValueError(f"{self.text} {why}; {remedy}")


Translation = Callable[[_Given], list[str]]


def translated(overrides: Overrides) -> list[str]:
    """A command line with released keys replaced by ours; each replacement is logged.

    Args:
        overrides: a command line.

    Raises:
        ValueError: a key that has no meaning here, or one beside ours of another value; names key, value and remedy.
    """
    found: list[str] = []
    made: dict[str, tuple[str, str]] = {}  # our key -> value, and what it was made of
    for override in overrides:
        written = _WRITTEN.fullmatch(override)
        translation = None if written is None else _translation(written["key"], written["value"])
        if written is None or translation is None:
            found.append(override)
            continue
        given = _Given(written["key"], written["value"])
        ours = translation(given)
        logger.warning("%s is %s here", given.text, " ".join(ours) if ours else "what holds in every run")
        for each in ours:
            key, _, value = each.partition("=")
            if made.setdefault(key, (value, given.text))[0] != value:
                raise ValueError(f"{given.text} and {made[key][1]} both set {key}; give one of them")
    return [*_without_twins(found, made), *(f"{key}={value}" for key, (value, _) in made.items())]


def _without_twins(overrides: list[str], made: Mapping[str, tuple[str, str]]) -> list[str]:
    """The rest, in which no key has another value than the one that was made. The released script has one rollout of each of
    `n_agent` copies of a prompt, so there `rollout.n=1` says nothing."""
    kept = []
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        if key not in made:
            kept.append(override)
        elif value != made[key][0] and not (key == ROLLOUTS and value == "1"):
            raise ValueError(f"{override} and {made[key][1]} both set {key}; give one of them")
    return kept


def _translation(key: str, value: str) -> Translation | None:
    if key == MANAGER and value.strip("'\"") != "rm":
        return None  # verl's key has other values, too
    if key in RELEASED:
        return RELEASED[key]
    for node in AGENTS:
        name = key.removeprefix(f"{node}.")
        if name != key and (node != VERLS or name == OVERLONG or name.partition(".")[0] in AGENT_KEYS):
            return partial(_of_agent, name)
    return None


def _of_agent(name: str, given: _Given) -> list[str]:
    if name == OVERLONG:
        return [f"fusion.demo.overlong={given.value}"]
    if name == "retriever.url":
        return _server(given)
    if name.partition(".")[0] not in AGENT_KEYS:
        raise given.refused(f"has no meaning here: an agent has the keys {', '.join(AGENT_KEYS)}", "leave it out")
    return [f"{ENVIRONMENT}.{name}={given.value}"]


def _renamed(key: str) -> Translation:
    return lambda given: [f"{key}={given.value}"]


def _server(given: _Given) -> list[str]:
    """The released server is asked at /search, which our client adds."""
    url = given.value.strip("'\"").rstrip("/").removesuffix("/search")
    return [f"{ENVIRONMENT}.retriever.kind=http", f"{ENVIRONMENT}.retriever.url={url}"]


def _vrag(given: _Given) -> list[str]:
    if given.value != "vrag":
        raise given.refused("names no agent: what answers a model belongs to its task", "give task=…, e.g. task=vrag")
    return ["task=vrag"]


def _always(value: str, why: str, remedy: str) -> Translation:
    """A switch that stands one way here."""

    def read(given: _Given) -> list[str]:
        if given.value.strip("'\"").lower() != value:
            raise given.refused(why, remedy)
        return []

    return read


def _never(why: str, remedy: str) -> Translation:
    def read(given: _Given) -> list[str]:
        raise given.refused(why, remedy)

    return read


JUDGES = (
    "judge by rule, which is the default, or give environment.judge.kind=llm, environment.judge.model=NAME and the address of a "
    "server with OpenAI's interface, environment.judge.url=http://HOST:PORT/v1"
)
RELEASED: Mapping[str, Translation] = {
    "agent": _vrag,
    "max_turns": _renamed(f"{ENVIRONMENT}.max_turns"),
    "search_url": _server,
    "retriever.url": _server,
    "retriever.topk": _renamed(f"{ENVIRONMENT}.top_k"),
    GROUP: _renamed(ROLLOUTS),
    "actor_rollout_ref.actor.state_masking": _always(
        "true", "would train what the environment said", "leave it out: tokens that nobody sampled are never trained here"
    ),
    "algorithm.no_think_rl": _always("false", "drops the thoughts of a rollout, which are trained here", "leave it out"),
    "rm_url": _never("is the released server of verdicts, whose format nobody but its own code speaks", JUDGES),
    "reward_model.rm_url": _never("is the released server of verdicts, whose format nobody but its own code speaks", JUDGES),
    MANAGER: _never("would never be asked: an episode is scored by its environment", f"leave it out; {JUDGES}"),
}

"""The settings of VRAG: the node `environment` of conf/task/vrag.yaml beside what all environments share, read and refused here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar
from urllib.parse import urlsplit

from unify_posttrain.tasks.episodes import NODE, EpisodeSettings, number, own_settings
from unify_posttrain.tasks.vrag.protocol import CROP_TAGS
from unify_posttrain.tasks.vrag.views import Showing

RETRIEVERS, WIRES = ("bm25", "dense", "http"), ("get", "post")
JUDGES, RULES = ("rule", "llm"), ("em", "f1", "anls")
KEYS = (
    *("crop_tag", "crop_pad_px", "min_crop_px", "min_pixels", "max_pixels", "largest_page_px", "images_per_search", "top_k"),
    *("threads", "retriever", "reward", "judge"),
)

Node = TypeVar("Node")


@dataclass(frozen=True)
class RetrieverSettings:
    """`environment.retriever`; conf/task/vrag.yaml has the meanings."""

    kind: str
    corpus: str
    k1: float
    b: float
    vectors: str | None
    embedder: str | None
    url: str
    wire: str
    timeout_s: float
    retries: int
    pause_s: float
    batch: int
    connections: int
    largest_answer_bytes: int
    threads: int

    def __post_init__(self) -> None:
        key = f"{NODE}.retriever"
        _choice(f"{key}.kind", self.kind, RETRIEVERS)
        _choice(f"{key}.wire", self.wire, WIRES)
        _http(key, self)
        _integers(key, self, {"retries": 0, "batch": 1, "connections": 1, "largest_answer_bytes": 1, "threads": 1})
        for name, least in (("k1", 0.0), ("b", 0.0), ("pause_s", 0.0)):
            if number(f"{key}.{name}", getattr(self, name)) < least:
                raise ValueError(f"{key}.{name}={getattr(self, name)}: give a number of at least {least:g}")
        if not isinstance(self.corpus, str) or not self.corpus:
            raise ValueError(f"{key}.corpus={self.corpus!r}: give the folder of the pages")
        if self.kind == "dense" and not (self.vectors and self.embedder):
            raise ValueError(
                f"{key}.kind=dense needs {key}.vectors (a file of numpy, a row per page) and {key}.embedder (module:function)"
            )


@dataclass(frozen=True)
class RewardSettings:
    """`environment.reward`: weights of judge, format and ndcg, and whether an answer needs a search before it."""

    weights: Mapping[str, float]
    require_search: bool

    def __post_init__(self) -> None:
        key = f"{NODE}.reward"
        if not isinstance(self.weights, Mapping) or set(self.weights) != {"judge", "format", "ndcg"}:
            raise ValueError(f"{key}.weights={self.weights}: give exactly judge, format, ndcg")
        for name, value in self.weights.items():
            number(f"{key}.weights.{name}", value)
        if type(self.require_search) is not bool:
            raise ValueError(f"{key}.require_search={self.require_search!r}: give true or false")


@dataclass(frozen=True)
class JudgeSettings:
    """`environment.judge`; conf/task/vrag.yaml has the meanings."""

    kind: str
    rule: str
    threshold: float
    url: str | None
    model: str | None
    key_env: str | None
    timeout_s: float
    retries: int
    pause_s: float
    concurrency: int
    max_tokens: int
    read_characters: int
    remembered: int
    largest_answer_bytes: int

    def __post_init__(self) -> None:
        key = f"{NODE}.judge"
        _choice(f"{key}.kind", self.kind, JUDGES)
        _choice(f"{key}.rule", self.rule, RULES)
        if not 0 < number(f"{key}.threshold", self.threshold) <= 1:
            raise ValueError(f"{key}.threshold={self.threshold}: give a number above 0 and up to 1")
        _integers(
            key,
            self,
            {"retries": 0, "concurrency": 1, "max_tokens": 1, "read_characters": 1, "remembered": 0, "largest_answer_bytes": 1},
        )
        if number(f"{key}.pause_s", self.pause_s) < 0:
            raise ValueError(f"{key}.pause_s={self.pause_s}: give a number of at least 0")
        if self.kind == "llm":
            if not self.model:
                raise ValueError(f"{key}.kind=llm needs {key}.model, as the server of {key}.url names it")
            _http(key, self)


@dataclass(frozen=True)
class VragSettings:
    """What VRAG alone reads of `environment`.

    Raises:
        ValueError: a key that is missing or unknown, or a value of a wrong type or outside its choices.
    """

    crop_tag: str
    showing: Showing
    largest_page_px: int
    images_per_search: int
    top_k: int
    threads: int
    retriever: RetrieverSettings
    reward: RewardSettings
    judge: JudgeSettings

    def __post_init__(self) -> None:
        _choice(f"{NODE}.crop_tag", self.crop_tag, CROP_TAGS)
        _integers(NODE, self, {"largest_page_px": 1, "images_per_search": 1, "top_k": 1, "threads": 1})
        if self.top_k < self.images_per_search:
            raise ValueError(
                f"{NODE}.top_k={self.top_k} is less than {NODE}.images_per_search={self.images_per_search}; raise it, so that a "
                "search has so many pages to show"
            )

    @classmethod
    def read(cls, own: Mapping[str, Any]) -> VragSettings:
        """From the node without what all environments share."""
        own_settings(own, KEYS)
        return cls(
            crop_tag=own["crop_tag"],
            showing=Showing(own["min_pixels"], own["max_pixels"], own["crop_pad_px"], own["min_crop_px"]),
            largest_page_px=own["largest_page_px"],
            images_per_search=own["images_per_search"],
            top_k=own["top_k"],
            threads=own["threads"],
            retriever=_made("retriever", own, RetrieverSettings),
            reward=_made("reward", own, RewardSettings),
            judge=_made("judge", own, JudgeSettings),
        )


def check_episode(settings: EpisodeSettings) -> None:
    """Refuse settings of episodes that VRAG's one reward, that of the answer, makes no sense of; ValueError names the key."""
    if settings.credit != "trajectory":
        raise ValueError(
            f"{NODE}.credit={settings.credit}: only the answer of an episode is rewarded, and what led to it is not told apart; "
            f"set {NODE}.credit=trajectory"
        )


def _node(name: str, own: Mapping[str, Any], keys: tuple[str, ...]) -> Mapping[str, Any]:
    found = own[name]
    if not isinstance(found, Mapping) or set(found) != set(keys):
        wrong = sorted(set(found) ^ set(keys)) if isinstance(found, Mapping) else [str(found)]
        raise ValueError(f"{NODE}.{name}: {', '.join(map(str, wrong))} is unknown or missing; give exactly {', '.join(keys)}")
    return found


def _made(name: str, own: Mapping[str, Any], kind: type[Node]) -> Node:
    keys = tuple(item.name for item in fields(kind))  # type: ignore[arg-type]
    return kind(**_node(name, own, keys))


def _choice(key: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{key}={value!r} is unknown; choose one of {', '.join(known)}")


def _integers(key: str, node: Any, least: Mapping[str, int]) -> None:
    for name, lowest in least.items():
        value = getattr(node, name)
        if type(value) is not int or value < lowest:
            raise ValueError(f"{key}.{name}={value!r}: give an integer of at least {lowest}")


def _http(key: str, node: Any) -> None:
    parts = urlsplit(str(node.url or ""))
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise ValueError(f"{key}.url={node.url!r}: give the address of a server, http://HOST:PORT, without a password in it")
    if not 0 < number(f"{key}.timeout_s", node.timeout_s) < math.inf:
        raise ValueError(f"{key}.timeout_s={node.timeout_s}: give a number of seconds above 0")

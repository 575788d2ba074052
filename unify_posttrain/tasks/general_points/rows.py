"""Rows of general points: training hands with worked answers, and four sources of test hands.

    gp_id            values that no training hand has
    gp_id_seen       training hands, the published protocol
    gp_ood           the other rule, at least one face
    gp_ood_target    the rule of training, another target

Rows of `gp_ood` say whether a training hand has the same labels (`seen_labels`), since these tempt a model to recite, and all rows
whether the hand is playable under the other rule (`other_rule_playable`).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from unify_posttrain.tasks import files, sharegpt
from unify_posttrain.tasks.environment import make_environment
from unify_posttrain.tasks.general_points import prompts
from unify_posttrain.tasks.general_points.cards import (
    RULES,
    Hand,
    check_count,
    check_rule,
    check_style,
    check_target,
    labels_of,
)
from unify_posttrain.tasks.general_points.environment import GeneralPoints
from unify_posttrain.tasks.general_points.pools import Pools, Puzzle, Ranks
from unify_posttrain.tasks.general_points.solver import OPERATORS, solve

KEY = "prepare.task"
NAME = "general_points"
SOURCES = ("gp_id", "gp_id_seen", "gp_ood", "gp_ood_target")
VISUAL = "gp_ood_visual"  # of hands that are shown as pictures: the other colour
TRAIN = "gp_train"
SOLUTIONS, CHOICES, EXPORTS = ("one", "all"), ("shortest", "random"), (None, "sharegpt")
MANIFEST_FORMAT = 1  # raise it when the rows for equal settings change: old folders are then rebuilt
EXPORT_FILE = "train.sharegpt.json"

SCHEMA = files.schema(
    faces=pa.int64(), solutions=pa.int64(), seen_labels=pa.bool_(), other_rule_playable=pa.bool_(), revised=pa.bool_()
)
S = TypeVar("S", bound="Settings")


@dataclass(frozen=True)
class Settings:
    """The node `prepare.task` of general points; conf/task/general_points.yaml has the meanings.

    Raises:
        ValueError: a value of a wrong type or outside its choices; names key, value and remedy.
    """

    seed: int
    cards: int
    rule: str
    target: int
    other_target: int
    held_out: float
    held_out_ood: float
    rows: Mapping[str, int]
    prompt_style: str
    prompt_file: str | None
    solutions_per_hand: str
    choose: str
    revise: float
    export: str | None
    environment: Mapping[str, Any]

    task: ClassVar[str] = NAME
    sources: ClassVar[tuple[str, ...]] = SOURCES

    def __post_init__(self) -> None:
        check_count(f"{KEY}.cards", self.cards)
        check_rule(f"{KEY}.rule", self.rule)
        check_style(f"{KEY}.prompt_style", self.prompt_style)
        for key in ("target", "other_target"):
            check_target(f"{KEY}.{key}", getattr(self, key))
        if self.other_target == self.target:
            raise ValueError(f"{KEY}.other_target={self.other_target} is {KEY}.target; give another one")
        if type(self.seed) is not int:
            raise ValueError(f"{KEY}.seed={self.seed!r}: give an integer")
        for key in ("held_out", "held_out_ood", "revise"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ValueError(f"{KEY}.{key}={value!r}: give a share from 0 to 1")
        for key, known in (("solutions_per_hand", SOLUTIONS), ("choose", CHOICES), ("export", EXPORTS)):
            if getattr(self, key) not in known:
                named = ", ".join("null" if each is None else each for each in known)
                raise ValueError(f"{KEY}.{key}={getattr(self, key)!r} is unknown; choose one of {named}")
        if self.revise and self.solutions_per_hand == "all":
            raise ValueError(f"{KEY}.revise={self.revise} makes one demonstration per hand; set {KEY}.solutions_per_hand=one")
        check_rows(f"{KEY}.rows", self.rows, ("train", *self.sources))

    @classmethod
    def from_node(cls: type[S], node: Mapping[str, Any]) -> S:
        """From the configuration."""
        return cls(**cls.decisive(node))

    @classmethod
    def decisive(cls, node: Mapping[str, Any]) -> dict[str, Any]:
        """What decides the rows, of the node."""
        return files.row_settings(cls.task, node, [item.name for item in fields(cls)])

    @property
    def template(self) -> str | None:
        """The text of `prompt_file`; ValueError if it cannot be read or used."""
        if self.prompt_file is None:
            return None
        key = f"{KEY}.prompt_file={self.prompt_file}"
        try:
            text = Path(self.prompt_file).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{key} cannot be read ({error}); give a text file") from error
        return self.read_template(key, text)

    def read_template(self, key: str, text: str) -> str:
        """A template; ValueError if it has no place for the cards."""
        return prompts.read_template(key, text)

    def suits_of(self, labels: Sequence[str], source: str) -> tuple[str, ...]:
        """Of the cards of a row; empty: they are named, not shown."""
        return ()


def check_rows(key: str, rows: Any, names: Sequence[str]) -> None:
    """Numbers of rows by name; ValueError names the key."""
    if not isinstance(rows, Mapping) or set(rows) != set(names):
        raise ValueError(f"{key}={rows}: give exactly {', '.join(names)}")
    for name, value in rows.items():
        if type(value) is not int or value < 0:
            raise ValueError(f"{key}.{name}={value!r}: give a number of rows, an integer >= 0")
    if not rows["train"] or not sum(value for name, value in rows.items() if name != "train"):
        raise ValueError(f"{key}={dict(rows)}: train.parquet and test.parquet need at least one row each")


def draw(key: str, pool: Sequence[Any], count: int, seed: str) -> list[Any]:
    """``count`` members of a pool without repetition; ValueError names the key if there are not so many."""
    if count > len(pool):
        raise ValueError(f"{key}={count}: only {len(pool)} distinct ones exist; ask for fewer")
    return random.Random(seed).sample(pool, count)


def build_rows(settings: Settings) -> list[files.Row]:
    """All rows, train rows first; equal settings give equal rows.

    Raises:
        ValueError: more rows than there are hands, or a template without a place for the cards.
    """
    asked = settings.cards, settings.rule, settings.target, settings.other_target
    pools = Pools.draw(*asked, settings.held_out, settings.seed, settings.held_out_ood)
    template = settings.template
    game = make_environment(settings.environment)
    if not isinstance(game, GeneralPoints):
        raise ValueError(f"{KEY}.environment.name={settings.environment['name']!r}: {NAME} is verified by its own environment")

    def drawn(name: str, pool: Sequence[Ranks]) -> list[Ranks]:
        return draw(f"{KEY}.rows.{name}", pool, settings.rows[name], f"{settings.seed}-{name}")

    train = drawn("train", pools.train())
    seen = {tuple(sorted(hand)) for hand in train}
    test = {
        "gp_id": (pools.id, drawn("gp_id", pools.unseen() if settings.rows["gp_id"] else [])),
        "gp_id_seen": (pools.id, drawn("gp_id_seen", train)),
        "gp_ood": (pools.ood, drawn("gp_ood", pools.other_rule())),
        "gp_ood_target": (pools.ood_target, drawn("gp_ood_target", pools.other_target() if settings.rows["gp_ood_target"] else [])),
    }
    if settings.rows.get(VISUAL):  # hands of `gp_id`, so that the two differ in what is seen alone
        hands = draw(f"{KEY}.rows.{VISUAL}", pools.unseen(), settings.rows[VISUAL], f"{settings.seed}-gp_id")
        test[VISUAL] = (pools.id, hands)
    made = [_row(settings, TRAIN, "train", index, hand, pools.id, seen, template, game) for index, hand in enumerate(train)]
    hands = [(source, puzzle, hand) for source, (puzzle, of_source) in test.items() for hand in of_source]
    return made + [
        _row(settings, source, "test", index, hand, puzzle, seen, template, game)
        for index, (source, puzzle, hand) in enumerate(hands)
    ]


def _row(
    settings: Settings,
    source: str,
    split: str,
    index: int,
    ranks: Ranks,
    puzzle: Puzzle,
    seen: set[Ranks],
    template: str | None,
    game: GeneralPoints,
) -> files.Row:
    labels = labels_of(ranks)
    hand = Hand(labels, puzzle.rule, puzzle.target, settings.prompt_style, settings.suits_of(labels, source))
    texts = solve(hand.values, hand.target).texts
    generator = random.Random(f"{settings.seed}-{hand.labels}-{source}")
    formula = min(texts, key=lambda text: (len(text), text)) if settings.choose == "shortest" else generator.choice(texts)
    worked = prompts.answer(hand, formula)
    wrong = None
    if split == "train" and generator.random() < settings.revise:
        wrong = _wrong_turns(hand, formula, generator, game)
    row = files.make_row(
        NAME,
        prompts.question(hand, template),
        worked,
        json.dumps(hand.truth()),
        faces=hand.faces,
        solutions=len(texts),
        seen_labels=tuple(sorted(ranks)) in seen,
        other_rule_playable=Puzzle(RULES[1 - RULES.index(puzzle.rule)], puzzle.target).playable(ranks),
        revised=wrong is not None,
    )
    row["data_source"], row["hint"] = source, prompts.hint(hand, worked)
    row["target"] = [*(wrong or []), *row["target"]]
    row["extra_info"] |= {"index": index, "split": split}
    if settings.solutions_per_hand == "all":
        row["target_lst"] = [prompts.answer(hand, text) for text in texts]
    return row


def _wrong_turns(hand: Hand, formula: str, generator: random.Random, game: GeneralPoints) -> list[dict[str, str]] | None:
    """A wrong answer and what it is told: the formula with another operator, so that a model learns to read the feedback."""
    places = [place for place, sign in enumerate(formula) if sign in OPERATORS]
    changes = [(place, sign) for place in places for sign in OPERATORS if sign != formula[place]]
    generator.shuffle(changes)
    for place, sign in changes:
        text = prompts.answer(hand, f"{formula[:place]}{sign}{formula[place + 1 :]}")
        game.reset({"data_source": TRAIN, "reward_model": {"ground_truth": json.dumps(hand.truth())}})
        step = game.step(text, True)
        if game.verdicts[0].outcome == "no_solution" and step.feedback:
            return [{"role": "assistant", "content": text}, {"role": "user", "content": str(step.feedback[0])}]
    return None


def write_splits(folder: Path, settings: Mapping[str, Any]) -> dict[str, Path]:
    """See :func:`write_rows`; the cards are named."""
    return write_rows(folder, settings, Settings, SCHEMA, build_rows)


def write_rows(
    folder: Path, settings: Mapping[str, Any], kind: type[S], schema: pa.Schema, build: Callable[[S], list[files.Row]]
) -> dict[str, Path]:
    """Write ``train.parquet``, ``test.parquet``, ``manifest.json`` and what is exported; nothing to do if they match.

    Args:
        folder: made if missing.
        settings: the node `prepare.task`.
        kind: how it is read.
        schema: columns of the rows, without those of several solutions.
        build: makes the rows, if they have to be written.

    Returns:
        {"train": path, "test": path}, and the exported file under "sharegpt".

    Raises:
        ValueError: settings that are refused.
    """
    read = kind.from_node(settings)
    identity = {"format": MANIFEST_FORMAT, "settings": kind.decisive(settings)}
    if read.prompt_file is not None:
        identity["template"] = read.template
    several = schema.append(pa.field("target_lst", pa.list_(pa.string())))
    columns = several if read.solutions_per_hand == "all" else schema
    paths = files.write_files(folder, identity, columns, lambda: build(read))
    if read.export == "sharegpt":
        paths = {**paths, "sharegpt": Path(folder) / EXPORT_FILE}
        sharegpt.write(paths["sharegpt"], pq.read_table(paths["train"]).to_pylist())
    return paths

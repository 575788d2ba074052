"""Rows of general points whose cards are shown as a picture, and the pictures, in the folder `images` beside the data files.

    gp_ood_visual    hands and rule of `gp_id`, in the colour that no training hand has

The other sources are those of :mod:`~unify_posttrain.tasks.general_points.rows`, in the colour of training. Suits mean nothing;
they are what a model can hold on to instead of the labels.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from unify_posttrain.preparation.store import replace_file
from unify_posttrain.tasks import files
from unify_posttrain.tasks.general_points import prompts, rendering
from unify_posttrain.tasks.general_points.cards import COLOURS, Hand
from unify_posttrain.tasks.general_points.rows import KEY, SCHEMA, SOURCES, VISUAL, Settings, build_rows, write_rows

NAME = "general_points_images"
IMAGES = "images"  # column of the rows, in verl's form, and folder of the pictures
OTHER = {"black": "red", "red": "black"}
IMAGE_SCHEMA = SCHEMA.append(pa.field(IMAGES, pa.list_(pa.struct([("image", pa.string())]))))


@dataclass(frozen=True)
class ImageSettings(Settings):
    """The node `prepare.task` of general points with pictures; conf/task/general_points_images.yaml has the meanings.

    Raises:
        ValueError: see :class:`Settings`; a colour or a resolution that is none, or rows of another colour where there is none.
    """

    suits: str
    resolution: int

    task: ClassVar[str] = NAME
    sources: ClassVar[tuple[str, ...]] = (*SOURCES, VISUAL)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.suits not in COLOURS:
            raise ValueError(f"{KEY}.suits={self.suits!r} is unknown; choose one of {', '.join(COLOURS)}")
        rendering.check_resolution(f"{KEY}.resolution", self.resolution)
        if self.rows[VISUAL] and self.suits not in OTHER:
            raise ValueError(
                f"{KEY}.rows.{VISUAL}={self.rows[VISUAL]} asks for the other colour, and {KEY}.suits={self.suits} has none; set "
                f"it to 0, or {KEY}.suits to black or red"
            )

    def read_template(self, key: str, text: str) -> str:
        """A template; ValueError if it names the cards."""
        return prompts.read_template(key, text, pictures=True)

    def suits_of(self, labels: Sequence[str], source: str) -> tuple[str, ...]:
        """Drawn for each card by itself, from the colour of the source."""
        colour = OTHER[self.suits] if source == VISUAL else self.suits
        generator = random.Random(f"{self.seed}-{labels}-{source}-suits")
        return tuple(generator.choice(COLOURS[colour]) for _ in labels)

    def image_name(self, hand: Hand) -> str:
        """Where the picture of a hand lies, from the folder of the data files on."""
        return f"{IMAGES}/{rendering.fingerprint(hand.labels, hand.suits, self.resolution)}.png"


def build_image_rows(settings: ImageSettings) -> list[files.Row]:
    """See :func:`~unify_posttrain.tasks.general_points.rows.build_rows`; every row names its picture."""
    return [{**row, IMAGES: [{"image": settings.image_name(_hand(row))}]} for row in build_rows(settings)]


def write_splits(folder: Path, settings: Mapping[str, Any]) -> dict[str, Path]:
    """Write the pictures, and what :func:`~unify_posttrain.tasks.general_points.rows.write_rows` writes, unless all is there.

    Args:
        folder: made if missing.
        settings: the node `prepare.task`.

    Raises:
        ValueError: settings that are refused.
    """
    read, folder = ImageSettings.from_node(settings), Path(folder)

    def build(asked: ImageSettings) -> list[files.Row]:
        rows = build_image_rows(asked)
        _draw(rows, folder, read.resolution)  # before the files that name them
        return rows

    paths = write_rows(folder, settings, ImageSettings, IMAGE_SCHEMA, build)
    for role in files.ROLES:  # of files that were there already, somebody may have removed some
        _draw(pq.read_table(paths[role], columns=["reward_model", IMAGES]).to_pylist(), folder, read.resolution)
    return paths


def _draw(rows: Sequence[Mapping[str, Any]], folder: Path, resolution: int) -> None:
    """The pictures of rows, where they are absent: a name says what a picture shows, and it is there whole or not at all."""
    (folder / IMAGES).mkdir(parents=True, exist_ok=True)
    for row in rows:
        path, hand = folder / row[IMAGES][0]["image"], _hand(row)
        if not path.is_file():
            picture = rendering.draw(hand.labels, hand.suits, resolution)
            replace_file(path, partial(picture.save, format="PNG"))


def _hand(row: Mapping[str, Any]) -> Hand:
    return Hand.from_truth(json.loads(row["reward_model"]["ground_truth"]))

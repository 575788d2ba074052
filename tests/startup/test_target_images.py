"""Images that worked answers show, before Ray, whatever `fusion.demo` says of bad rows: they are opened when the row is trained."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from omegaconf import OmegaConf
from transformers import AutoProcessor

from tests.tasks.vrag.kit import make_corpus, settings
from unify_posttrain.algorithms import build_algorithm
from unify_posttrain.chat import ChatTemplate
from unify_posttrain.config import compose_config
from unify_posttrain.startup.target_checks import check_targets

PAGE = json.dumps({"page_id": "deck_2", "rect": [0, 0, 300, 200]})


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_corpus(tmp_path_factory.mktemp("pages") / "corpus", size=(300, 200))
    content = (folder / "pages" / "deck_3.png").read_bytes()
    (folder / "pages" / "deck_3.png").write_bytes(content[: len(content) // 2])  # its size can still be read
    return folder


@cache
def _composed() -> Any:
    return compose_config(["algorithm=hpt", "task=vrag_small"])


def composed() -> Any:
    return copy.deepcopy(_composed())


@pytest.fixture
def check(corpus: Path, seeing_folder: Path) -> Callable[..., int]:
    """check(images, marks=…, sees=…, …): the check of two rows, the second with these images in its target."""
    processor = AutoProcessor.from_pretrained(seeing_folder)

    def run(images: list[str], marks: int = 1, sees: bool = True, **demo: Any) -> int:
        config = composed()
        for node in (config.fusion, config.actor_rollout_ref.actor.fusion):
            node.demo.update(demo)
        algorithm = build_algorithm(OmegaConf.to_container(config.actor_rollout_ref.actor, resolve=True))
        config.environment = settings(corpus, **{key: config.environment[key] for key in ("min_pixels", "max_pixels")})
        asked = [{"role": "user", "content": "How much?"}]
        target = [
            {"role": "assistant", "content": "<search>table</search>"},
            {"role": "user", "content": "<image>" * marks or "nothing"},
            {"role": "assistant", "content": "<answer>12</answer>"},
        ]
        rows = [
            {"prompt": asked, "target": target[-1:], "target_images": [], "row_id": 0},
            {"prompt": asked, "target": target, "target_images": images, "row_id": 1},
        ]
        train = SimpleNamespace(
            dataframe=datasets.Dataset.from_list(rows),
            prompt_key="prompt",
            place=lambda row_id: f"train.parquet, row {row_id}",
            processor=processor if sees else None,
            tokenizer=processor.tokenizer,
            messages=lambda row: row["prompt"],
        )
        return check_targets(config, algorithm.phases[0].algorithm, train, ChatTemplate(processor.tokenizer))

    return run


FAULTS = {
    "no such page": ([PAGE.replace("deck_2", "deck_9")], 1, "page 'deck_9' is none of the corpus"),
    "a part outside of its page": ([PAGE.replace("300", "301")], 1, r"rect=\[0, 0, 301, 200\] is no part of the page"),
    "a damaged page": ([PAGE.replace("deck_2", "deck_3")], 1, r"deck_3\.png cannot be read"),
    "no such file": (["/nowhere/a.png"], 1, r"a\.png cannot be opened"),
    "no JSON": (['{"page_id": "deck_2"}'], 1, "must be"),
    "too narrow to be shown": ([PAGE.replace("300, 200", "300, 1")], 1, "more than 200 times"),
    "fewer images than marks": ([PAGE], 2, "2 marks <image> for 1 target_images"),
    "more images than marks": ([PAGE, PAGE], 1, "1 marks <image> for 2 target_images"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_images_is_said_before_ray(check: Callable[..., int], fault: str) -> None:
    images, marks, said = FAULTS[fault]
    with pytest.raises(ValueError, match=rf"train\.parquet, row 1 \(training row 1\): .*{said}"):
        check(images, marks)


def test_whatever_becomes_of_bad_rows(check: Callable[..., int]) -> None:
    """The default and the settings in which targets are laid out here already."""
    for demo in ({"overlong": "truncate"}, {"missing": "error"}, {"missing": "skip"}):
        with pytest.raises(ValueError, match="is none of the corpus"):
            check([PAGE.replace("deck_2", "deck_9")], **demo)
        assert check([PAGE], **demo) == 0
    assert check([PAGE, PAGE], 2) == 0 and check([], 0) == 0


def test_a_model_that_sees_nothing_is_shown_nothing(check: Callable[..., int]) -> None:
    with pytest.raises(ValueError, match=r"row 1 .*the target shows 1 images, and the model has no processor"):
        check([PAGE], sees=False)
    assert check([], 0, sees=False) == 0

"""A corpus of five pages of plain colours, the settings of conf/task/vrag.yaml with it, and rows, for the tests of VRAG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from PIL import Image

from tests.tasks.environments import node
from unify_posttrain.config import conf_dir
from unify_posttrain.tasks.environment import make_environment
from unify_posttrain.tasks.vrag.corpus import PageRecord, write_pages
from unify_posttrain.tasks.vrag.environment import Vrag

TEXTS = {
    "deck_1": "quarterly revenue by region chart",
    "deck_2": "revenue growth revenue forecast table",
    "deck_3": "headcount by department",
    "memo_1": "forecast of regional headcount growth and revenue",
    "memo_2": "photo of the headquarters building",
}


def make_corpus(folder: Path, size: tuple[int, int] = (1600, 1200)) -> Path:
    (folder / "pages").mkdir(parents=True)
    pages = []
    for place, (page, text) in enumerate(TEXTS.items()):
        Image.new("RGB", size, (40 * place, 100, 200)).save(folder / "pages" / f"{page}.png")
        document, _, number = page.partition("_")
        pages.append(PageRecord(page, f"pages/{page}.png", text, f"{document}.pdf", int(number)))
    write_pages(folder, pages)
    return folder


def settings(corpus: Path, **changes: Any) -> dict[str, Any]:
    """The node `environment`; a change may lead into a node below it, `judge__kind`."""
    found = node("vrag", max_turns=4)
    found["retriever"] = {**found["retriever"], "corpus": str(corpus)}
    for key, value in changes.items():
        name, _, below = key.partition("__")
        if below:
            found[name] = {**found[name], below: value}
        else:
            found[name] = value
    return found


def environment(corpus: Path, **changes: Any) -> Vrag:
    made = make_environment(settings(corpus, **changes))
    assert isinstance(made, Vrag)
    return made


def row(answer: Any = "12", split: str = "train", pages: tuple[int, ...] = (2,), document: str = "deck.pdf") -> dict[str, Any]:
    extra = {"split": split, "question": "How much?", "file_name": document, "reference_page": list(pages)}
    return {"data_source": "vrag", "reward_model": {"ground_truth": answer}, "extra_info": extra}


def whole_file() -> Any:
    return OmegaConf.load(conf_dir() / "task" / "vrag.yaml")

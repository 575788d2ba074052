"""Evaluation of prompts that show pictures: the ids and pixels of training, from every file, to the page of samples."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from transformers import AutoProcessor

from tests.reporting.test_page import Reader
from tests.tasks.environments import task_settings
from unify_posttrain.chat import ChatTemplate
from unify_posttrain.evaluate import compose_evaluation, write_page
from unify_posttrain.evaluation.benchmarks import Problem, read_problems
from unify_posttrain.evaluation.conduct import conduct
from unify_posttrain.evaluation.prompts import PromptSettings, load_tokenizer, render
from unify_posttrain.evaluation.requests import Output, Request
from unify_posttrain.evaluation.seeing import picture_messages, sight_of
from unify_posttrain.evaluation.settings import Evaluation
from unify_posttrain.rollout.pictures import PictureReader
from unify_posttrain.tasks.general_points.image_rows import write_splits

ROWS = {"train": 4, "gp_id": 3, "gp_id_seen": 0, "gp_ood": 0, "gp_ood_target": 0, "gp_ood_visual": 3}
SETTINGS = PromptSettings(48, True, {}, None)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cards")
    write_splits(folder, {**task_settings("general_points_images_small"), "rows": ROWS})
    return folder


@pytest.fixture(scope="module")
def tokenizer(seeing_folder: Path) -> Any:
    return load_tokenizer(seeing_folder, None)


def test_prompts_are_those_of_training_and_requests_of_a_row_share_their_picture(
    data: Path, tokenizer: Any, seeing_folder: Path
) -> None:
    problems = read_problems([data / "test.parquet"])
    sight = sight_of(seeing_folder, ChatTemplate(tokenizer), problems, "hf", "benchmark gp")
    assert sight is not None
    prompts = render(tokenizer, problems, SETTINGS, "benchmark gp", sight)
    reader = PictureReader(AutoProcessor.from_pretrained(seeing_folder))
    for problem in problems:
        assert prompts[problem.row] == list(reader.read(picture_messages(problem)).ids)
        assert prompts[problem.row].count(reader.processor.image_token_id) == 25
    by_row = {problem.row: problem for problem in problems}
    requests = [Request(row, number, tuple(prompts[row]), 0.0, 1.0, -1, 9, seed=number) for row in (0, 1) for number in (0, 1)]
    shown = sight.shown(requests, by_row)
    assert [request.images[0].size for request in shown] == [(140, 140)] * 4
    assert shown[0].images[0] is shown[1].images[0] is not shown[2].images[0]
    with pytest.raises(ValueError, match="longer than max_prompt_length=40"):
        render(tokenizer, problems, PromptSettings(40, False, {}, None), "b", sight)


def test_other_pictures_are_other_prompts(data: Path, tokenizer: Any, seeing_folder: Path, tmp_path: Path) -> None:
    """Files of the same names with other contents: samples of before are not continued."""
    problems = read_problems([data / "test.parquet"])
    sight = sight_of(seeing_folder, ChatTemplate(tokenizer), problems, "hf", "b")
    assert sight is not None and sight.digest("x", problems) == sight.digest("x", problems) != sight.digest("y", problems)
    changed = tmp_path / "a.png"
    Image.new("RGB", (140, 140)).save(changed)
    others = [Problem(0, "s", problems[0].messages, "t", {}, None, ({"image": str(changed)},)), *problems[1:]]
    assert sight.digest("x", others) != sight.digest("x", problems)


def test_pictures_in_the_file(data: Path, tokenizer: Any, seeing_folder: Path, tmp_path: Path) -> None:
    """Bytes and data URIs are shown as files are; a row of text stands beside them."""
    table = pq.read_table(data / "test.parquet")
    content = (data / table["images"][0].as_py()[0]["image"]).read_bytes()
    inline = [{"bytes": content, "path": "x.png"}]
    rows = table.to_pylist()[:2]
    rows[1]["prompt"][0]["content"] = "JQK=10|3 3 8"
    plain = [{key: row[key] for key in ("data_source", "prompt", "reward_model", "extra_info")} for row in rows]
    kind = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    pq.write_table(pa.Table.from_pylist(plain).append_column("images", pa.array([inline, None], kind)), tmp_path / "t.parquet")
    problems = read_problems([tmp_path / "t.parquet"])
    [picture] = problems[0].pictures
    assert Image.open(io.BytesIO(base64.b64decode(picture["image"].partition(",")[2]))).size == (140, 140)
    assert problems[1].pictures == ()
    sight = sight_of(seeing_folder, ChatTemplate(tokenizer), problems, "hf", "b")
    assert sight is not None
    prompts = render(tokenizer, problems, SETTINGS, "b", sight)
    whole = read_problems([data / "test.parquet"])
    assert (
        prompts[0] == render(tokenizer, whole, SETTINGS, "b", sight_of(seeing_folder, ChatTemplate(tokenizer), whole, "hf", "b"))[0]
    )
    [seen, text] = sight.shown(
        [Request(row, 0, tuple(prompts[row]), 0.0, 1.0, -1, 9, seed=0) for row in (0, 1)], dict(enumerate(problems))
    )
    assert len(seen.images) == 1 and text.images == ()


def test_what_cannot_be_shown_is_refused(data: Path, tokenizer: Any, seeing_folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    problems = read_problems([data / "test.parquet"])
    template = ChatTemplate(tokenizer)
    with pytest.raises(ValueError, match=r"^b: row 0 shows pictures, and engine=vllm is asked by text alone; set engine=hf"):
        sight_of(seeing_folder, template, problems, "vllm", "b")
    with pytest.raises(ValueError, match=r"^b: row 0 shows pictures, and model .* sees none; take a multimodal model"):
        sight_of(tiny_model, template, problems, "hf", "b")
    assert sight_of(tiny_model, template, [Problem(0, "s", problems[0].messages, "t", {})], "hf", "b") is None
    damaged = tmp_path / "a.png"
    damaged.write_text("no picture")
    sight = sight_of(seeing_folder, template, problems, "hf", "b")
    assert sight is not None
    with pytest.raises(ValueError, match=r"^b, row 0: its pictures cannot be read"):
        render(tokenizer, [Problem(0, "s", problems[0].messages, "t", {}, None, ({"image": str(damaged)},))], SETTINGS, "b", sight)
    with pytest.raises(ValueError, match=r"^b, row 0: the prompt has 1 marks <image> for 2 pictures"):
        render(tokenizer, [Problem(0, "s", problems[0].messages, "t", {}, None, problems[0].pictures * 2)], SETTINGS, "b", sight)


def test_an_evaluation_plays_hands_that_are_shown_and_writes_its_page(data: Path, seeing_folder: Path, tmp_path: Path) -> None:
    asked: list[Request] = []

    class Engine:
        def generate(self, requests: list[Request]) -> list[Output]:
            asked.extend(requests)
            tokenizer = load_tokenizer(seeing_folder, None)
            return [
                Output([*tokenizer("{c:A A A;f:1=24}")["input_ids"], tokenizer.eos_token_id], truncated=False) for _ in requests
            ]

        def close(self) -> None: ...

    evaluation = Evaluation.from_config(compose_evaluation([
        f"model={seeing_folder}", "benchmarks=[gp_id,gp_ood_visual]", "engine=hf", "dtype=float32", f"output={tmp_path / 'out'}",
        f"define.benchmarks.gp_id.files=[{data}/test.parquet]", f"define.benchmarks.gp_ood_visual.files=[{data}/test.parquet]",
        "max_prompt_length=48", "max_response_length=208", "max_context=256",
        "environment={max_turns: 2, max_tokens_per_turn: 44, min_turn_tokens: 12}",
    ]))  # fmt: skip
    results = conduct(evaluation, lambda folder, settings: Engine())  # type: ignore[arg-type,return-value]
    assert len(asked) == 2 * 6 and all(len(request.images) == 1 for request in asked), "two turns, the picture in both"
    sources = {entry["source"]: entry for entry in results["models"][0]["sources"]}
    assert sources["gp_ood_visual"]["accuracy"]["mean"] == 0 and "incorrect_vision" in json.dumps(sources)
    page = Reader(write_page(evaluation).read_text(encoding="utf-8"))
    prompts = page.data["evaluations"][0]["steps"][0]["prompts"]
    assert len(prompts) == 6 and all(prompt["pictures"][0]["picture"] is not None for prompt in prompts)
    assert len(page.data["pictures"]) == 6 and "suits" in prompts[0]["gold"]

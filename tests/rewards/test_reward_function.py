"""The reward function around the classifier: what reaches it, what it returns, and how it fails. No Ray."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from aiohttp import web
from omegaconf import OmegaConf
from verl import DataProto
from verl.trainer.ppo.reward import load_reward_manager

from unify_posttrain.config import compose_config
from unify_posttrain.experience.rows import object_column
from unify_posttrain.rewards.classifier import ClassifierSettings, RewardClassifier
from unify_posttrain.startup.reward_checks import check_reward
from unify_posttrain.tasks.tiny_model import build_tokenizer
from unify_posttrain.workers import reward_classifier
from unify_posttrain.workers.reward_classifier import ClassifierServer, compute_score

from .tiny_classifier import build_classifier

OPTIONS = {
    "model_path": "somewhere/model", "max_length": 128, "batch_size": 4, "gather_seconds": 0.01, "dtype": "float32",
    "device": "cpu", "template": "{prompt}{response}{eos}", "scale": 2.0, "shift": 1.0, "sigmoid": False,
}  # fmt: skip
ROW = {"prompt_text": "TL;DR:", "eos_text": "<|end|>", "row_id": 17}
MESSAGES = [{"role": "system", "content": "Sum up.\n"}, {"role": "user", "content": "POST\n\nTL;DR:"}]


def score(extra_info=None, **changes) -> dict[str, float]:
    answer = " short"
    return asyncio.run(compute_score("tldr", answer, "", ROW if extra_info is None else extra_info, **{**OPTIONS, **changes}))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Texts that reach the server; the logit is the text's length."""
    texts: list[str] = []

    async def ask(settings, text: str) -> float:
        texts.append(text)
        return float(len(text))

    monkeypatch.setattr(reward_classifier, "_ask_server", ask)
    return texts


def test_score_and_raw_reward(asked) -> None:
    # 6 + 6 + 7 characters: 2 * 19 + 1
    assert score() == {"score": 39.0, "raw_reward": 19.0}
    assert asked == ["TL;DR: short<|end|>"]


def test_missing_prompt_names_the_manager(asked) -> None:
    with pytest.raises(ValueError, match=r"reward\.reward_manager\.name=PromptRewardManager"):
        score({})
    with pytest.raises(ValueError, match=r"unknown \['scales'\]"):
        score(scales=1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logit_that_is_no_number_names_the_row(monkeypatch, value) -> None:
    async def ask(settings, text: str) -> float:
        return value

    monkeypatch.setattr(reward_classifier, "_ask_server", ask)
    with pytest.raises(ValueError, match=r"somewhere/model gave (nan|inf) for training row 17.*'tldr'.*'TL;DR: short<\|end\|>'"):
        score()


def manager():
    config = OmegaConf.create(OmegaConf.to_container(compose_config(["task=tldr"]).reward, resolve=False))
    config.reward_model.model_path = "somewhere/model"
    return load_reward_manager(OmegaConf.create({"reward": config}), build_tokenizer(256))


def rows(answers: list[str], end: bool, **columns) -> DataProto:
    """Rows as the agent loop sends them: prompts padded left, responses right."""
    tokenizer = build_tokenizer(256)
    ids = [tokenizer(answer)["input_ids"] + [tokenizer.eos_token_id] * end for answer in answers]
    responses = torch.full((len(ids), 16), tokenizer.pad_token_id)
    mask = torch.zeros(len(ids), 4 + 16, dtype=torch.long)
    mask[:, 2:4] = 1
    for index, row in enumerate(ids):
        responses[index, : len(row)] = torch.tensor(row)
        mask[index, 4 : 4 + len(row)] = 1
    return DataProto.from_dict(
        tensors={"responses": responses, "attention_mask": mask},
        non_tensors={
            "data_source": object_column(["tldr"] * len(ids)),
            "reward_model": object_column([{"style": "model", "ground_truth": ""}] * len(ids)),
            "raw_prompt": object_column([MESSAGES] * len(ids)),
            **columns,
        },
    )


def run_manager(data: DataProto) -> list[dict]:
    async def run() -> list[dict]:
        built = manager()
        return [await built.run_single(data[index : index + 1]) for index in range(len(data))]

    return asyncio.run(run())


def test_manager_of_the_task_file_hands_over_prompt_and_end(asked) -> None:
    shared = {"index": 3}
    data = rows([" one", " two"], end=True, extra_info=object_column([shared, shared]), row_id=np.array([5, 6]))
    results = run_manager(data)
    assert asked == ["Sum up.\nPOST\n\nTL;DR: one<|end|>", "Sum up.\nPOST\n\nTL;DR: two<|end|>"]
    assert results[0] == {"reward_score": float(len(asked[0])), "reward_extra_info": {"score": 31.0, "raw_reward": 31.0}}
    assert shared == {"index": 3}, "rows that share extra_info do not see each other's prompt"
    # cut off: no end token; a demonstration's row has neither row_id nor, perhaps, extra_info
    run_manager(rows([" cut"], end=False))
    run_manager(rows([" null"], end=False, extra_info=object_column([None])))
    assert [text[-4:] for text in asked[2:]] == [" cut", "null"]


def test_prompt_that_is_not_text_is_refused(asked) -> None:
    data = rows(["a"], end=True)
    data.non_tensor_batch["raw_prompt"] = object_column([[{"role": "user", "content": [{"type": "image"}]}]])
    with pytest.raises(ValueError, match="reads text"):
        run_manager(data)
    data.non_tensor_batch.pop("raw_prompt")
    with pytest.raises(ValueError, match=r"data\.return_raw_chat=true"):
        run_manager(data)


def served(handler) -> dict[str, float]:
    """compute_score against a stand-in of verl's router."""

    async def run() -> dict[str, float]:
        app = web.Application()
        app.router.add_post("/classify", handler)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        try:
            return await compute_score("tldr", " short", "", ROW, reward_router_address=f"127.0.0.1:{port}", **OPTIONS)
        finally:
            await runner.cleanup()

    return asyncio.run(run())


def test_verl_reward_model_worker_is_asked_for_the_raw_logit() -> None:
    async def classify(request: web.Request) -> web.Response:
        assert await request.json() == {"model": "somewhere/model", "input": "TL;DR: short<|end|>", "use_activation": False}
        return web.json_response({"data": [{"probs": [-0.5]}]})

    assert served(classify) == {"score": 0.0, "raw_reward": -0.5}  # 2 * -0.5 + 1


def test_verl_reward_model_worker_that_refuses_or_is_gone(monkeypatch) -> None:
    async def refuse(request: web.Request) -> web.Response:
        return web.Response(status=400, text="longer than max_model_len")

    with pytest.raises(RuntimeError, match=r"answered 400: longer than max_model_len"):
        served(refuse)
    monkeypatch.setattr(reward_classifier, "ATTEMPTS", 1)
    with pytest.raises(RuntimeError, match=r"127\.0\.0\.1:1 does not answer"):
        score(reward_router_address="127.0.0.1:1")


def test_server_batches_what_waits_and_answers_each(tmp_path: Path) -> None:
    settings = ClassifierSettings(str(build_classifier(tmp_path)), 64, 4, 0.01, "float32", "cpu")
    texts = [f"{number}+{number}" for number in range(10)]

    async def run() -> tuple[list[float], list[int]]:
        server = ClassifierServer(vars(settings))
        batches, logits = [], server.classifier.logits
        server.classifier.logits = lambda batch: batches.append(len(batch)) or logits(batch)
        return await asyncio.gather(*map(server.logit, texts)), batches

    answers, batches = asyncio.run(run())
    assert answers == pytest.approx(RewardClassifier(settings).logits(texts), abs=1e-5)
    assert batches == [4, 4, 2]


def test_server_tells_every_waiting_caller_of_a_failure_and_goes_on(tmp_path: Path) -> None:
    settings = ClassifierSettings(str(build_classifier(tmp_path)), 64, 4, 0.01, "float32", "cpu")

    async def run() -> tuple[list, float]:
        server = ClassifierServer(vars(settings))
        failed = await asyncio.gather(server.logit("a"), server.logit(""), return_exceptions=True)
        return failed, await server.logit("a")

    failed, after = asyncio.run(run())
    assert [type(error) for error in failed] == [ValueError, ValueError] and math.isfinite(after)


LOCAL = "reward.reward_model.model_path=/nowhere/classifier"
KWARGS = "reward.custom_reward_function.reward_kwargs"


@pytest.mark.parametrize(
    "overrides, message",
    [
        ([LOCAL], r"model_path=/nowhere/classifier does not exist; check the path"),
        (["reward.reward_model.model_path=null"], r"model_path=None: no reward model.*reward\.reward_model\.model_path"),
        ([f"{KWARGS}.dtype=fp32"], r"dtype='fp32'"),
        ([f"+{KWARGS}.scales=2"], r"unknown \['scales'\]"),
        (["reward.reward_manager.name=naive", "reward.reward_manager.source=register"], r"name=naive.*PromptRewardManager"),
        (["reward.reward_model.enable=true"], r"reward_model\.enable=true.*hardware=cpu lacks"),
        (["reward.reward_model.enable=true", f"{KWARGS}.model_path=other/model"], r"model_path=.*other/model differ"),
    ],
)
def test_start_up_mistakes(overrides, message) -> None:
    with pytest.raises(ValueError, match=message):
        check_reward(compose_config(["algorithm=grpo", "task=tldr", *overrides]))


def test_task_file_makes_online_sft_take_the_score_as_it_is() -> None:
    fusion = compose_config(["algorithm=online_sft", "model=pythia_1b", "task=tldr"]).fusion
    assert (fusion.success_key, fusion.online_sft.task) == (None, "model"), "a reward model has no field `acc`"


def test_start_up_accepts_the_task_file() -> None:
    check_reward(compose_config(["algorithm=grpo", "task=tldr"]))
    check_reward(compose_config(["algorithm=grpo", "task=tldr", "hardware=gpu_1", "reward.reward_model.enable=true"]))
    check_reward(compose_config(["algorithm=grpo", "task=arithmetic"]))

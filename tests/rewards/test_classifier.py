"""The neural reward: options, text, formula, and logits that do not depend on what shares a batch."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from unify_posttrain.config import compose_config
from unify_posttrain.rewards.classifier import NODE, ClassifierSettings, RewardClassifier, RewardFormula, read_options

from .tiny_classifier import CONTEXT, build_classifier, build_pythia

TEXTS = ["12+34=46", "a", "The quick brown fox jumps over the lazy dog.", "1+1=2<|end|>", "x" * 100]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_classifier(tmp_path_factory.mktemp("classifier"))


def settings(folder: Path, **changes) -> ClassifierSettings:
    values = {"max_length": 128, "batch_size": 4, "gather_seconds": 0.0, "dtype": "float32", "device": "cpu"}
    return ClassifierSettings(**{"model_path": str(folder), **values, **changes})


def formula(**changes) -> RewardFormula:
    return RewardFormula(**{"template": "{prompt}{response}{eos}", "scale": 1.0, "shift": 0.0, "sigmoid": False, **changes})


def expected(folder: Path, text: str) -> float:
    """One text, no padding, the score head read at the last token by hand."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        hidden = model.base_model(**tokenizer(text, return_tensors="pt")).last_hidden_state
        return model.score(hidden)[0, -1, 0].item()


def test_formula() -> None:
    assert formula().score(-3.25) == -3.25
    assert formula(scale=0.5, shift=1.0).score(4.0) == 3.0  # 0.5 * 4 + 1
    assert formula(sigmoid=True).score(0.0) == 0.5
    # 2 * ln 3 - ln 3 = ln 3, and sigmoid(ln 3) = 3 / 4
    assert formula(scale=2.0, shift=-math.log(3), sigmoid=True).score(math.log(3)) == pytest.approx(0.75)
    assert formula(sigmoid=True).score(-1e4) == 0.0 and formula(sigmoid=True).score(1e4) == 1.0


def test_text_is_inserted_as_it_is() -> None:
    assert formula().text("POST: {x}\n\nTL;DR:", " it {y} works", "<|end|>") == "POST: {x}\n\nTL;DR: it {y} works<|end|>"
    assert formula(template="Q: {prompt}\nA: {response}").text("a", "b", "<|end|>") == "Q: a\nA: b"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"template": "{response}"}, r"template='\{response\}' must hold \{prompt\} and \{response\}"),
        ({"template": "{prompt}{response}{answer}"}, r"unknown: answer"),
        ({"template": "{prompt}{response}{"}, r"a literal brace is written \{\{"),
        ({"template": "{prompt}{response}{}"}, r"must hold"),
        ({"scale": 0.0}, r"scale=0\.0"),
        ({"shift": float("nan")}, r"shift=nan"),
    ],
)
def test_formula_mistakes(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        formula(**changes)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_path": None}, r"reward_kwargs\.model_path=None: no reward model"),
        ({"max_length": 0}, r"max_length=0"),
        ({"batch_size": 0}, r"batch_size=0"),
        ({"gather_seconds": -1}, r"gather_seconds=-1"),
        ({"dtype": "int8"}, r"dtype='int8'; choose one of float32"),
        ({"device": "tpu"}, r"device='tpu'; give cpu, cuda or cuda:N"),
    ],
)
def test_settings_mistakes(tmp_path: Path, changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        settings(tmp_path, **changes)


def test_options_of_the_task_file_are_exactly_the_known_ones() -> None:
    options = OmegaConf.to_container(OmegaConf.select(compose_config(["task=tldr"]), NODE), resolve=True)
    read, made = read_options(options)
    assert made == formula(), "the task scores with the raw logit"
    assert (read.device, read.max_length) == ("cpu", 1024)
    with pytest.raises(ValueError, match=r"missing \['scale'\], unknown \['scales'\]"):
        read_options({**{key: value for key, value in options.items() if key != "scale"}, "scales": 1})


@pytest.mark.parametrize("build", [build_classifier, build_pythia])
def test_logits_equal_the_unpadded_model(tmp_path: Path, build) -> None:
    folder = build(tmp_path)
    logits = RewardClassifier(settings(folder)).logits(TEXTS)
    assert logits == pytest.approx([expected(folder, text) for text in TEXTS], abs=1e-5)
    assert max(logits) - min(logits) > 0.1, "the stand-in tells texts apart"
    for batch_size in (1, 2, 64):
        reverse = RewardClassifier(settings(folder, batch_size=batch_size)).logits(TEXTS[::-1])
        assert reverse == pytest.approx(logits[::-1], abs=1e-5)


def test_end_token_that_is_also_the_padding_token_is_read(folder: Path, tmp_path: Path) -> None:
    """Tokenizers such as pythia's pad with the end token; padding by it would hide it from the classifier."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    AutoModelForSequenceClassification.from_pretrained(folder).save_pretrained(tmp_path)
    for token in (tokenizer.eos_token, None):
        tokenizer.pad_token = token
        tokenizer.save_pretrained(tmp_path)
        texts = ["1+1=2<|end|>", "a longer text without an end"]
        logits = RewardClassifier(settings(tmp_path)).logits(texts)
        assert logits == pytest.approx([expected(folder, text) for text in texts], abs=1e-5)
    assert abs(expected(folder, "1+1=2<|end|>") - expected(folder, "1+1=2")) > 1e-3, "the end token matters"


def test_long_texts_lose_their_beginning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    classifier = RewardClassifier(settings(folder, max_length=8))
    assert classifier.logits(["prompt:12345678", "short"]) == pytest.approx(
        [expected(folder, "12345678"), expected(folder, "short")], abs=1e-5
    )
    classifier.logits(["prompt:12345678"])
    assert [record.message for record in caplog.records if "loses its beginning" in record.message] == [
        f"a text of 15 tokens exceeds {NODE}.max_length=8 and loses its beginning"
    ]


def test_empty_text_is_an_error(folder: Path) -> None:
    with pytest.raises(ValueError, match="empty text of row 1 of 2"):
        RewardClassifier(settings(folder)).logits(["a", ""])


def test_models_that_are_no_reward_models(folder: Path, tmp_path: Path) -> None:
    for name, kind in (("language", {"head": False}), ("two", {"labels": 2})):
        build_classifier(tmp_path / name, **kind)
    with pytest.raises(ValueError, match=r"model_path=.*language lacks \['score\.weight'\]: not a trained classifier"):
        RewardClassifier(settings(tmp_path / "language"))
    with pytest.raises(ValueError, match=r"model_path=.*two cannot be loaded as a sequence classifier with one output"):
        RewardClassifier(settings(tmp_path / "two"))
    with pytest.raises(ValueError, match=r"model_path=.*nothing cannot be loaded"):
        RewardClassifier(settings(tmp_path / "nothing"))
    with pytest.raises(ValueError, match=rf"max_length={CONTEXT + 1} exceeds the classifier's context of {CONTEXT}"):
        RewardClassifier(settings(folder, max_length=CONTEXT + 1))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"device=cuda:0, but no CUDA device is visible"):
            RewardClassifier(settings(folder, device="cuda:0"))

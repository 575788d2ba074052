"""The tiny base model: tokenizer, chat template, training rows, and the folder as Hugging Face classes see it."""

from __future__ import annotations

import copy
import json
import string
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen2ForCausalLM

from unify_posttrain.tasks import arithmetic, tiny_model

CONF = Path(__file__).parents[2] / "conf"
PRINTABLE = "\n" + "".join(chr(code) for code in range(32, 127))
SETTINGS = {
    "name": "tiny_qwen2",
    "folder": "ignored",
    "seed": 5,
    "layers": 1,
    "hidden_size": 16,
    "heads": 2,
    "kv_heads": 1,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "pretraining": {
        "steps": 4,
        "batch_size": 8,
        "lr": 1.0e-2,
        "betas": [0.9, 0.95],
        "weight_decay": 0.01,
        "warmup_ratio": 0.25,
        "grad_clip": 1.0,
        "digits": {1: 0.5, 2: 0.5},
        "careless": {2: 0.5},
    },
}
USER = {"role": "user", "content": "1+2="}


def changed(path: str, value: object) -> dict:
    settings = copy.deepcopy(SETTINGS)
    *parents, key = path.split(".")
    node = settings
    for parent in parents:
        node = node[parent]
    node[key] = value
    return settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.build_base_model(tmp_path_factory.mktemp("models") / "tiny", SETTINGS)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(folder)


# --- tokenizer -------------------------------------------------------------------------------------------------------


def test_special_tokens_survive_saving(tokenizer: PreTrainedTokenizerFast) -> None:
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}) == 3
    assert tokenizer.padding_side == "left" and tokenizer.model_max_length == 64
    assert set(tokenizer("12")) == {"input_ids", "attention_mask"}  # what generate() accepts


def test_every_printable_character_is_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    assert set(PRINTABLE) == set(string.printable) - set("\t\r\x0b\x0c")
    ids = tokenizer(PRINTABLE, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(set(ids)) == 96 and tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == PRINTABLE


@given(text=st.text(alphabet=PRINTABLE))
def test_decoding_inverts_encoding(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    padded = [tokenizer.pad_token_id, *ids, tokenizer.eos_token_id, tokenizer.pad_token_id]
    if "<|" not in text:  # a special token written out is that token, as in every Hugging Face tokenizer
        assert len(ids) == len(text)
        assert tokenizer.decode(padded, skip_special_tokens=True) == text


def test_spaces_before_punctuation_survive(tokenizer: PreTrainedTokenizerFast) -> None:
    text = " a , b . c ? n't  's "
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_other_characters_are_unknown_one_by_one(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer("1\u0661\u06622")["input_ids"].count(tokenizer.unk_token_id) == 2


# --- chat template ---------------------------------------------------------------------------------------------------


def test_chat_template_by_hand(tokenizer: PreTrainedTokenizerFast) -> None:
    def render(messages: list, **options: bool) -> str:
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)

    assert render([USER]) == render([USER], add_generation_prompt=False) == "<|user|>1+2=<|end|>"
    assert render([USER], add_generation_prompt=True) == "<|user|>1+2=<|end|><|assistant|>"
    assert render([USER, USER]) == "<|user|>1+2=<|end|><|user|>1+2=<|end|>"
    assert render([{"role": "user", "content": ""}]) == "<|user|><|end|>"
    system, answer = {"role": "system", "content": "add"}, {"role": "assistant", "content": "3\n"}
    # a line break at the end of a message belongs to the message
    assert render([system, USER, answer]) == "<|system|>add<|end|><|user|>1+2=<|end|><|assistant|>3\n<|end|>"


def test_chat_template_tokenizes_one_token_per_mark(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer.apply_chat_template([USER], add_generation_prompt=True)
    assert len(ids) == len("1+2=") + 3
    # how verl finds the length of a system prompt: one message against two
    empty = {"role": "user", "content": ""}
    assert len(tokenizer.apply_chat_template([empty] * 2)) == 2 * len(tokenizer.apply_chat_template([empty]))


def test_chat_template_refuses_unknown_roles(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(Exception, match="unknown role robot; use one of system, user, assistant, tool"):
        tokenizer.apply_chat_template([{"role": "robot", "content": "1"}])


# --- training rows ---------------------------------------------------------------------------------------------------


def test_training_rows_are_what_post_training_shows(tokenizer: PreTrainedTokenizerFast) -> None:
    ids, labels = tiny_model.encode_examples(tokenizer, [(1, 2), (58, 67)], [False, False])
    assert ids.shape == labels.shape == (2, 9 + 28 + 1)  # prompt 6 + 3 marks; two lines of 9 and "answer 125"; eos
    chat = [{"role": "user", "content": "58+67="}, {"role": "assistant", "content": arithmetic.worked_solution(58, 67)}]
    assert ids[1].tolist() == tokenizer.apply_chat_template(chat)
    for row, (a, b) in enumerate([(1, 2), (58, 67)]):
        mask = labels[row] != tiny_model.IGNORE_INDEX
        trained = labels[row][mask]
        assert torch.equal(trained, ids[row][mask])
        assert tokenizer.decode(trained) == arithmetic.worked_solution(a, b) + "<|end|>"


def test_careless_rows_forget_the_carries(tokenizer: PreTrainedTokenizerFast) -> None:
    ids, _ = tiny_model.encode_examples(tokenizer, [(58, 67), (58, 67)], [True, False])
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert texts == ["58+67=8+7+0=15\n5+6+0=11\nanswer 115", "58+67=8+7+0=15\n5+6+1=12\nanswer 125"]


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (1.0, 8)])
def test_the_share_of_careless_rows_is_per_digit_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, expected: int
) -> None:
    settings = changed("pretraining.careless", {2: share})
    settings["pretraining"].update(steps=1, digits={1: 0.0, 2: 1.0})
    seen: list[bool] = []
    encode = tiny_model.encode_examples

    def record(tokenizer: PreTrainedTokenizerFast, problems: list, careless: list) -> tuple:
        seen.extend(careless)
        return encode(tokenizer, problems, careless)

    monkeypatch.setattr(tiny_model, "encode_examples", record)
    tiny_model.build_base_model(tmp_path / "m", settings)
    assert len(seen) == 8 and sum(seen) == expected


# --- model folder ----------------------------------------------------------------------------------------------------


def test_folder_is_an_ordinary_model(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(model, Qwen2ForCausalLM)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.config.pad_token_id == model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert model.config.vocab_size == len(tokenizer) == 96 + 3 + 4
    rows = [[USER], [{"role": "user", "content": "12+34="}]]
    batch = tokenizer.apply_chat_template(rows, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True)
    out = model.generate(**batch, do_sample=True, max_new_tokens=5)
    assert out.shape[0] == 2 and out.shape[1] <= batch["input_ids"].shape[1] + 5
    assert sorted(path.name for path in folder.parent.iterdir()) == ["tiny"]  # no temporary folder left


def test_training_reports_progress_and_lowers_the_loss(tmp_path: Path) -> None:
    seen: list[tuple[int, int, float]] = []
    settings = changed("pretraining.steps", 30)
    tiny_model.build_base_model(tmp_path / "m", settings, lambda *report: seen.append(report))
    assert [(step, total) for step, total, _ in seen] == [(i, 30) for i in range(1, 31)]
    # a fresh net is near uniform over 103 tokens: ln 103 = 4.63
    assert seen[0][2] == pytest.approx(4.63, abs=0.3)
    assert seen[-1][2] < seen[0][2] - 1


def test_equal_settings_equal_weights_and_untouched_random_state(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    again = tiny_model.build_base_model(tmp_path / "again", SETTINGS)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    other = tiny_model.build_base_model(tmp_path / "other", changed("seed", 6))
    assert (other / "model.safetensors").read_bytes() != (folder / "model.safetensors").read_bytes()


def test_cache_hit_other_settings_and_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tiny_model.build_base_model(tmp_path / "m", SETTINGS)
    assert json.loads((target / "base_model.json").read_text())["settings"]["pretraining"]["digits"] == {
        "1": 0.5,
        "2": 0.5,
    }
    weights = target / "model.safetensors"
    before = weights.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(tiny_model, "_pretrain", lambda *_: pytest.fail("rebuilt although nothing changed"))
        assert tiny_model.build_base_model(target, OmegaConf.create(SETTINGS)) == target
    (target / "stale.txt").write_text("of the old build")
    tiny_model.build_base_model(target, changed("seed", 6))
    assert weights.read_bytes() != before and not (target / "stale.txt").exists()
    weights.unlink()
    tiny_model.build_base_model(target, changed("seed", 6))
    assert weights.is_file() and sorted(path.name for path in tmp_path.iterdir()) == ["m"]


def test_a_failed_build_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tiny_model.build_base_model(tmp_path / "m", SETTINGS)
    before = (target / "model.safetensors").read_bytes()

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tiny_model, "_pretrain", fail)
    with pytest.raises(KeyboardInterrupt):
        tiny_model.build_base_model(target, changed("seed", 6))
    assert (target / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


def test_foreign_folders_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileExistsError, match=r"without base_model.json.*choose another actor_rollout_ref.model.path"):
        tiny_model.build_base_model(tmp_path, SETTINGS)
    assert (tmp_path / "config.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (changed("dropout", 0.1), r"unknown \['dropout'\]"),
        (changed("pretraining.epochs", 1), r"unknown \['pretraining.epochs'\]"),
        ({k: v for k, v in SETTINGS.items() if k != "seed"}, r"missing \['seed'\]"),
        (changed("heads", 3), r"hidden_size=16, heads=3, kv_heads=1: each must be a multiple"),
        (changed("pretraining.steps", 0), r"pretraining.steps=0: give an integer >= 1"),
        (changed("pretraining.digits", {}), r"pretraining.digits=\{\}: give"),
        (changed("pretraining.digits", {2: -1.0, 3: 2.0}), r"shares >= 0"),
        (changed("pretraining.careless", {3: 0.5}), r"pretraining.careless=.*that are in pretraining.digits"),
        (changed("pretraining.careless", {2: 1.5}), r"pretraining.careless=\{2: 1.5\}: give .* 0 to 1"),
        (changed("pretraining.digits", {2: 0.5, 0: 1.0}), r"digits=0: a number has at least 1 digit"),
        # 6 digits: prompt 3 + 14, worked solution 6 * 9 + 7 + 7, eos: beyond 64 positions
        (changed("pretraining.digits", {2: 0.5, 6: 1.0}), r"max_position_embeddings=64: problems of 6 digits need"),
    ],
)
def test_bad_settings(tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_model.build_base_model(tmp_path / "m", settings)
    assert not list(tmp_path.iterdir())


def test_the_shipped_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The shipped model has the size it claims, and one step of it trains."""
    monkeypatch.setenv("UNIFY_HOME", str(tmp_path))
    assert (CONF / "model" / "tiny_qwen2.yaml").read_text().startswith("# @package _global_\n")
    config = OmegaConf.load(CONF / "model" / "tiny_qwen2.yaml")
    assert config.prepare.model.folder == config.actor_rollout_ref.model.path == f"{tmp_path}/models/tiny_qwen2"
    assert isinstance(config.actor_rollout_ref.actor.optim.lr, float)
    config.prepare.model.pretraining.update(steps=1, batch_size=2)
    built = tiny_model.build_base_model(Path(config.prepare.model.folder), config.prepare.model)
    model = AutoModelForCausalLM.from_pretrained(built)
    assert 0.4e6 < model.num_parameters() < 0.5e6
    assert model.config.hidden_size / model.config.num_attention_heads == 32

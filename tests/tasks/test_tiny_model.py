"""The tiny base model: its pretraining, and the folder as Hugging Face classes see it."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2ForCausalLM

from unify_posttrain.tasks import pretraining, tiny_model

CONF = Path(__file__).parents[2] / "conf"
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
        "task": "arithmetic",
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
COUNTDOWN = {
    **SETTINGS,
    "pretraining": {
        **{key: value for key, value in SETTINGS["pretraining"].items() if key not in ("digits", "careless")},
        **{"task": "countdown", "largest": 5, "numbers": {3: 0.5, 4: 0.5}, "careless": {4: 0.5}, "stops": [2, 1, 1]},
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


# --- training rows ---------------------------------------------------------------------------------------------------


def test_training_rows_are_what_post_training_shows(tokenizer: PreTrainedTokenizerFast) -> None:
    examples = [("1+2=", "1+2+0=03\nanswer 3"), ("58+67=", "8+7+0=15\n5+6+1=12\nanswer 125")]
    ids, labels = pretraining.encode_examples(tokenizer, examples)
    assert ids.shape == labels.shape == (2, 9 + 28 + 1)  # prompt 6 + 3 marks; two lines of 9 and "answer 125"; eos
    chat = [{"role": "user", "content": examples[1][0]}, {"role": "assistant", "content": examples[1][1]}]
    assert ids[1].tolist() == tokenizer.apply_chat_template(chat)
    for row, (_, solution) in enumerate(examples):
        mask = labels[row] != pretraining.IGNORE_INDEX
        trained = labels[row][mask]
        assert torch.equal(trained, ids[row][mask])
        assert tokenizer.decode(trained) == solution + "<|end|>"


@pytest.mark.parametrize("settings", [SETTINGS, COUNTDOWN], ids=["arithmetic", "countdown"])
def test_every_step_trains_on_fresh_examples_of_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict) -> None:
    seen: list[list[tuple[str, str]]] = []
    encode = pretraining.encode_examples

    def record(tokenizer: PreTrainedTokenizerFast, examples: list) -> tuple:
        seen.append(examples)
        return encode(tokenizer, examples)

    monkeypatch.setattr(pretraining, "encode_examples", record)
    tiny_model.build_base_model(tmp_path / "m", settings)
    generator = random.Random(settings["seed"])
    source = pretraining.SOURCES[settings["pretraining"]["task"]](settings["pretraining"])
    assert seen == [source.draw(generator, 8) for _ in range(4)] and seen[0] != seen[1]


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
        patch.setattr(tiny_model, "pretrain", lambda *_: pytest.fail("rebuilt although nothing changed"))
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

    monkeypatch.setattr(tiny_model, "pretrain", fail)
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
        (changed("pretraining.digits", {2: 0.5, 0: 1.0}), r"pretraining.digits=.*: 0 is no digit count; use integers >= 1"),
        # 6 digits: prompt 3 + 14, worked solution 6 * 9 + 7 + 7, eos
        (changed("pretraining.digits", {2: 0.5, 6: 1.0}), r"max_position_embeddings=64: .*, '999999\+999999=', needs 86; raise"),
        (changed("pretraining.task", "chess"), r"pretraining.task='chess' is unknown; choose one of arithmetic, countdown"),
        (changed("pretraining.task", "countdown"), r"missing \['pretraining.largest', .*'pretraining.stops'\], unknown .*digits"),
        (changed("pretraining", {}), r"pretraining.task=None is unknown"),
    ],
)
def test_bad_settings(tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_model.build_base_model(tmp_path / "m", settings)
    assert not list(tmp_path.iterdir())


def test_two_architectures(tmp_path: Path) -> None:
    built = tiny_model.build_base_model(tmp_path / "m", {**SETTINGS, "architecture": "llama"})
    model = AutoModelForCausalLM.from_pretrained(built)
    assert isinstance(model, LlamaForCausalLM) and model.config.eos_token_id is not None
    with pytest.raises(ValueError, match="architecture='gpt' is unknown; choose one of llama, qwen2"):
        tiny_model.build_base_model(tmp_path / "m", {**SETTINGS, "architecture": "gpt"})


SHIPPED = [
    ("tiny_qwen2", "arithmetic"),
    ("tiny_qwen2_countdown", "countdown"),
    ("tiny_qwen2_points", "general_points"),
    ("tiny_llama_points", "general_points"),
]


@pytest.mark.parametrize(("name", "task"), SHIPPED)
def test_the_shipped_configurations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, task: str) -> None:
    """The shipped models have the size they claim, and one step of them trains."""
    monkeypatch.setenv("UNIFY_HOME", str(tmp_path))
    assert (CONF / "model" / f"{name}.yaml").read_text().startswith("# @package _global_\n")
    config = OmegaConf.load(CONF / "model" / f"{name}.yaml")
    assert config.prepare.model.folder == config.actor_rollout_ref.model.path == f"{tmp_path}/models/{name}"
    assert config.prepare.model.pretraining.task == task
    assert isinstance(config.actor_rollout_ref.actor.optim.lr, float)
    config.prepare.model.pretraining.update(steps=1, batch_size=2)
    built = tiny_model.build_base_model(Path(config.prepare.model.folder), config.prepare.model)
    model = AutoModelForCausalLM.from_pretrained(built)
    assert 0.4e6 < model.num_parameters() < 0.5e6
    assert model.config.hidden_size / model.config.num_attention_heads == 32

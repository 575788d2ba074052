"""Export: FSDP shards of one or several ranks, tied weights, LoRA, full weights; what is refused; the model card."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from omegaconf import OmegaConf
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from unify_posttrain.evaluation.checkpoints import usable_steps
from unify_posttrain.evaluation.exporting import STAMP, cached_export, export, push
from unify_posttrain.evaluation.model_card import last_validation, model_card, without_folders
from unify_posttrain.runs import state

SECRET = "<redacted>"
CONFIG = {
    "fusion": {"algorithm": "hpt", "seed": 0},
    "trainer": {"total_training_steps": 6, "run_dir": "/home/somebody/runs/mine"},
    "data": {"train_files": ["/home/somebody/data/train.parquet"], "val_files": "val.parquet", "max_prompt_length": 16},
    "reward": {"custom_reward_function": {"path": "pkg://unify_posttrain.tasks.arithmetic", "name": "compute_score"}},
    "actor_rollout_ref": {
        "model": {"path": "Qwen/Qwen2.5-0.5B", "lora_alpha": 32},
        "rollout": {"dtype": "float32", "n": 8},
        "actor": {"optim": {"lr": 1e-6}},
    },
    "env": {"WANDB_API_KEY": SECRET},
}


def sharded(tensor: Tensor) -> DTensor:
    """A shard as FSDP2 saves it: a DTensor split along its first dimension, on a mesh of one rank."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", init_method=f"file://{tempfile.mktemp()}", rank=0, world_size=1)
    return DTensor.from_local(tensor, init_device_mesh("cpu", (1,), mesh_dim_names=("fsdp",)), [Shard(0)])


def trained_weights(tiny_model: Path) -> dict[str, Tensor]:
    """The tiny model's weights, moved a little, with both names of the tied one, as a module's state has them."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def write_checkpoint(run: Path, tiny_model: Path, step: int, shards: list[Mapping[str, Any]]) -> Path:
    folder = run / "checkpoints" / f"global_step_{step}"
    described = folder / "actor" / "huggingface"
    described.mkdir(parents=True)
    for path in tiny_model.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, described)
    for rank, shard in enumerate(shards):
        torch.save(dict(shard), folder / "actor" / f"model_world_size_{len(shards)}_rank_{rank}.pt")
    (folder / "actor" / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": len(shards)}))
    (folder / state.STATE).write_text("{}")
    state.mark_complete(folder)
    return folder


@pytest.fixture()
def run(tmp_path: Path, tiny_model: Path) -> Path:
    """A run with a checkpoint of one rank at step 3."""
    folder = tmp_path / "run"
    folder.mkdir()
    OmegaConf.save(OmegaConf.create(CONFIG), folder / "config.yaml")
    lines = [{"step": 0, "data": {"val-core/a/acc/mean@1": 0.25}}, {"step": 3, "data": {"val-core/a/acc/mean@1": 0.5, "lr": 1.0}}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    weights = trained_weights(tiny_model)
    write_checkpoint(folder, tiny_model, 3, [{name: sharded(tensor) for name, tensor in weights.items()}])
    return folder


def loaded(folder: Path) -> dict[str, Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict())


def test_exported_weights_are_the_trained_ones(run: Path, tiny_model: Path) -> None:
    folder = export(run)
    assert folder == run / "export" / "step_3"
    expected, found = trained_weights(tiny_model), loaded(folder)
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert "lm_head.weight" not in set(file.keys())  # tied, so written once
    assert AutoTokenizer.from_pretrained(folder).chat_template == AutoTokenizer.from_pretrained(tiny_model).chat_template
    assert (folder / "generation_config.json").is_file()
    assert "| algorithm | hpt (arXiv 2509.04419) |" in (folder / "README.md").read_text()


def test_a_second_call_does_nothing(run: Path) -> None:
    folder = export(run)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert export(run, step=3) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_other_settings_need_another_folder_or_overwrite(run: Path, tmp_path: Path) -> None:
    export(run)
    with pytest.raises(ValueError, match=r"holds another export.*overwrite=true"):
        export(run, dtype="bfloat16")
    half = export(run, dtype="bfloat16", overwrite=True)
    assert {tensor.dtype for tensor in loaded(half).values()} == {torch.bfloat16}
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").touch()
    with pytest.raises(ValueError, match="other files than an export"):
        export(run, output=other, overwrite=True)
    assert (other / "thesis.tex").exists()


def test_evaluation_keeps_an_export_in_another_precision(run: Path) -> None:
    mine = export(run, dtype="bfloat16")
    evaluated = cached_export(run, 3, "auto")
    assert evaluated.name == "step_3-evaluated" and {tensor.dtype for tensor in loaded(evaluated).values()} == {torch.float32}
    assert {tensor.dtype for tensor in loaded(mine).values()} == {torch.bfloat16}
    before = (evaluated / "model.safetensors").stat().st_mtime_ns
    assert cached_export(run, 3, "auto") == evaluated and (evaluated / "model.safetensors").stat().st_mtime_ns == before
    assert {tensor.dtype for tensor in loaded(cached_export(run, 3, "float16")).values()} == {torch.float16}


def test_several_ranks(run: Path, tiny_model: Path) -> None:
    """Two shards of each weight, unequal where the length is odd; a plain tensor beside them is a buffer, the same on both."""
    from unify_posttrain.evaluation.merging import ModelMergerConfig, _Merger

    weights = {"a": torch.arange(10.0).reshape(5, 2), "b": torch.arange(4.0)}
    buffer = torch.ones(3)
    halves = [{name: sharded(part) for name, part in zip(weights, parts, strict=True)} for parts in
              zip(*(tensor.chunk(2) for tensor in weights.values()), strict=True)]  # fmt: skip
    folder = write_checkpoint(run, tiny_model, 5, [{**half, "inv_freq": buffer} for half in halves])
    config = ModelMergerConfig(
        operation="merge",
        backend="fsdp",
        local_dir=str(folder / "actor"),
        hf_model_config_path=str(folder / "actor" / "huggingface"),
    )
    merged = _Merger(config, folder, torch.float32, None)._load_and_merge_state_dicts(2, 2, (2,), ("fsdp",))
    assert {name: tensor.tolist() for name, tensor in merged.items()} == {
        **{name: tensor.tolist() for name, tensor in weights.items()},
        "inv_freq": [1.0, 1.0, 1.0],
    }


def test_full_weights_are_copied(run: Path, tiny_model: Path) -> None:
    folder = write_checkpoint(run, tiny_model, 4, [])
    shutil.copy(tiny_model / "model.safetensors", folder / "actor" / "huggingface")
    state.mark_complete(folder)
    exported = export(run, 4)
    assert (exported / "model.safetensors").read_bytes() == (tiny_model / "model.safetensors").read_bytes()
    assert (exported / "README.md").is_file()


def test_a_model_that_sees_takes_its_processor_along(run: Path, seeing_folder: Path) -> None:
    """And its config.json says above the parts what newer transformers look for there, whichever version wrote it."""
    model = AutoModelForImageTextToText.from_pretrained(seeing_folder, dtype=torch.float32)
    write_checkpoint(run, seeing_folder, 4, [{name: sharded(tensor) for name, tensor in model.state_dict().items()}])
    folder = export(run, 4)
    assert type(AutoProcessor.from_pretrained(folder)).__name__ == "Qwen2_5_VLProcessor"
    described = json.loads((folder / "config.json").read_text())
    assert described["tie_word_embeddings"] is True and described["architectures"] == ["Qwen2_5_VLForConditionalGeneration"]
    found = AutoModelForImageTextToText.from_pretrained(folder).state_dict()
    assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())


def test_incomplete_checkpoints_are_refused(run: Path, tiny_model: Path) -> None:
    weights = {name: sharded(tensor) for name, tensor in trained_weights(tiny_model).items()}
    cut = write_checkpoint(run, tiny_model, 6, [weights])
    (cut / state.MARKER).unlink()
    assert usable_steps(run) == [3]
    assert export(run, "latest").name == "step_3"
    with pytest.raises(ValueError, match=r"step=6: .*global_step_6 is incomplete .*complete ones: 3"):
        export(run, 6)
    (cut / state.STATE).unlink()  # now it looks like plain verl's, which has no marker, and all its shards are there
    assert usable_steps(run) == [3, 6]
    (cut / "actor" / "model_world_size_1_rank_0.pt").unlink()
    with pytest.raises(ValueError, match=r"model_world_size_1_rank_0\.pt is missing"):
        export(run, 6)
    with pytest.raises(ValueError, match=r"step=7: .* does not exist; complete ones: 3"):
        export(run, 7)
    with pytest.raises(ValueError, match=r"holds no config\.yaml"):
        export(run / "checkpoints")
    with pytest.raises(ValueError, match="dtype=int8; choose one of auto"):
        export(run, 3, dtype="int8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.norm.weight": None}, "missing_keys.*model.norm.weight"),
        ({"model.extra.weight": torch.ones(2)}, "unexpected_keys.*model.extra.weight"),
        ({"model.norm.weight": torch.ones(3)}, "cannot load|mismatched_keys"),
        ({"lm_head.weight": torch.zeros(2, 2)}, "lm_head.weight and model.embed_tokens.weight differ"),
    ],
)
def test_weights_that_do_not_fit_leave_no_export(change: dict[str, Any], message: str, run: Path, tiny_model: Path) -> None:
    weights = {**trained_weights(tiny_model), **change}
    write_checkpoint(run, tiny_model, 9, [{name: sharded(tensor) for name, tensor in weights.items() if tensor is not None}])
    with pytest.raises(ValueError, match=message):
        export(run, 9)
    assert not (run / "export" / "step_9").exists() and not list((run / "export").iterdir())


def test_lora_is_merged() -> None:
    from unify_posttrain.evaluation.merging import merge_lora

    state_dict = {
        "base_model.model.q.base_layer.weight": torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        "base_model.model.q.base_layer.bias": torch.tensor([3.0, 4.0]),
        "base_model.model.q.lora_A.default.weight": torch.tensor([[1.0, 2.0]]),  # r = 1
        "base_model.model.q.lora_B.default.weight": torch.tensor([[10.0], [20.0]]),
        "base_model.model.norm.weight": torch.tensor([5.0]),
    }
    merged = merge_lora(state_dict, alpha=0.5)
    # B A = [[10, 20], [20, 40]], times alpha/r = .5, on top of the identity
    assert merged["q.weight"].tolist() == [[6.0, 10.0], [10.0, 21.0]]
    assert merged["q.bias"].tolist() == [3.0, 4.0] and merged["norm.weight"].tolist() == [5.0] and len(merged) == 3
    plain = {"a.weight": torch.ones(1)}
    assert merge_lora(plain, None) == plain
    with pytest.raises(ValueError, match="lora_alpha"):
        merge_lora(state_dict, None)
    with pytest.raises(ValueError, match="lora_embedding_A"):
        merge_lora({"base_model.model.e.lora_embedding_A.default": torch.ones(1)}, 1.0)
    del state_dict["base_model.model.q.base_layer.weight"]
    with pytest.raises(ValueError, match=r"belongs to q\.weight, which the checkpoint does not hold"):
        merge_lora(state_dict, 1.0)


def test_an_adapted_checkpoint_exports_as_a_plain_model(run: Path, tiny_model: Path) -> None:
    weights, layer = trained_weights(tiny_model), "model.layers.0.self_attn.q_proj"
    down, up = torch.randn(4, 16), torch.randn(16, 4)
    named = {f"base_model.model.{name.replace(layer, f'{layer}.base_layer')}": tensor for name, tensor in weights.items()}
    named[f"base_model.model.{layer}.lora_A.default.weight"], named[f"base_model.model.{layer}.lora_B.default.weight"] = down, up
    write_checkpoint(run, tiny_model, 8, [{name: sharded(tensor) for name, tensor in named.items()}])
    found = loaded(export(run, 8))
    torch.testing.assert_close(found[f"{layer}.weight"], weights[f"{layer}.weight"] + 32 / 4 * up @ down)  # lora_alpha 32
    assert torch.equal(found["model.norm.weight"], weights["model.norm.weight"])


def test_model_card(run: Path) -> None:
    config = OmegaConf.load(run / "config.yaml")
    card = model_card(run, config, 3, "arXiv 2509.04419", "9.9")
    assert card.startswith("---\nbase_model: Qwen/Qwen2.5-0.5B\n")
    assert "| val-core/a/acc/mean@1 | 0.5 |" in card and "At step 3" in card and "lr |" not in card
    assert "/home/somebody" not in card and "| training data | train.parquet |" in card
    assert f"WANDB_API_KEY: {SECRET}" in card
    assert "| steps | 3 of 6 |" in card
    local = OmegaConf.merge(config, {"actor_rollout_ref": {"model": {"path": "/models/secret/mine"}}})
    assert "base_model" not in model_card(run, local, 3, None, "9.9").split("---")[1]


def test_last_validation(run: Path) -> None:
    path = run / "metrics.jsonl"
    assert last_validation(path, 2) == (0, {"val-core/a/acc/mean@1": 0.25})
    path.write_text(path.read_text() + '{"step": 3, "da')  # cut short by a kill
    assert last_validation(path, 9) == (3, {"val-core/a/acc/mean@1": 0.5})
    assert last_validation(run / "none", 9) == (None, {})


def test_absolute_paths_are_cut() -> None:
    node = {"a": ["/x/y.parquet", "outputs/z", "~/w/v"], "b": 3, "c": "/multi\nline", "d": "Qwen/x"}
    assert without_folders(node) == {"a": ["y.parquet", "outputs/z", "v"], "b": 3, "c": "/multi\nline", "d": "Qwen/x"}


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    from unify_posttrain.export import main

    monkeypatch.setattr(sys, "argv", ["export", *arguments])
    main()


def test_the_command(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    command(monkeypatch, str(run), "step=3")
    assert str(run / "export" / "step_3") in capsys.readouterr().out
    command(monkeypatch, f"run={run}", f"output={tmp_path / 'there'}", "dtype=float16")
    assert (tmp_path / "there" / STAMP).is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "there"]  # no log folder beside
    with pytest.raises(SystemExit, match=r"error: step=5: .* does not exist"):
        command(monkeypatch, str(run), "step=5")
    with pytest.raises(SystemExit, match="error: run is not set"):
        command(monkeypatch)


def test_positional_run(tmp_path: Path) -> None:
    from unify_posttrain.export import with_run_key

    odd = tmp_path / "a=b it's"
    odd.mkdir()
    assert with_run_key(["outputs/x", "step=3", "--cfg", "job"]) == ["run='outputs/x'", "step=3", "--cfg", "job"]
    assert with_run_key([str(odd)]) == [f"run='{tmp_path}/a=b it\\'s'"]


def test_push(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    class Api:
        def create_repo(self, name: str, **options: Any) -> str:
            calls.append((name, options))
            return f"https://hub/{name}"

        def upload_folder(self, **options: Any) -> None:
            if options["repo_id"] == "me/forbidden":
                raise OSError("403")
            calls.append(("upload", options))

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert push(tmp_path, "me/model", private=True) == "https://hub/me/model"
    assert calls == [
        ("me/model", {"private": True, "exist_ok": True}),
        ("upload", {"folder_path": tmp_path, "repo_id": "me/model", "ignore_patterns": [STAMP]}),
    ]
    with pytest.raises(ValueError, match="push_to_hub=me/forbidden: 403; set HF_TOKEN"):
        push(tmp_path, "me/forbidden", private=False)

"""Restored folders: what they hold, that they load, that a killed analysis goes on, and what is said about them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from tests.analysis.conftest import low_rank, save_model
from tests.analysis.test_pairs import DEFAULT, Q0
from unify_posttrain.analysis.weights import recovery as module
from unify_posttrain.analysis.weights.conduct import Comparison, compare
from unify_posttrain.analysis.weights.measures import Precision
from unify_posttrain.analysis.weights.pairs import Selection
from unify_posttrain.analysis.weights.recovery import Recovery, recover
from unify_posttrain.analysis.weights.restore import MODES

CPU = torch.device("cpu")


def settings(models: tuple[Path, Path], output: Path, **changed: Any) -> Recovery:
    given: dict[str, Any] = {
        "selection": DEFAULT, "modes": MODES, "tops": (0, 0.25, 1.0), "tail": 0, "gap": 1e-6, "seed": 0, "dtype": torch.float64,
        "device": CPU, "shard_mb": 1, "overwrite": False,
    }  # fmt: skip
    return Recovery(base=models[0], tuned=models[1], output=output, **{**given, **changed})


@pytest.fixture(scope="module")
def done(models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Recovery, dict[str, Any]]:
    recovery = settings(models, tmp_path_factory.mktemp("recovery") / "out")
    return recovery, recover(recovery)


def rows_of(results: Mapping[str, Any]) -> dict[str, Any]:
    return {row["label"]: row for row in results["rows"]}


def test_controls_stand_beside_every_restoration(done: tuple[Recovery, dict[str, Any]]) -> None:
    labels = list(rows_of(done[1]))
    assert labels[0] == "tuned" and labels[-1] == "base"
    kinds = ["vector", "direction", "values", "aligned", "interpolate", "drop"]
    random = ["random_vector", "random_direction", "random_values"]
    assert labels[1:-1] == [f"{each}_top0.25" for each in kinds + random] + [f"{each}_top1.0" for each in kinds]


def test_distances(done: tuple[Recovery, dict[str, Any]]) -> None:
    rows = rows_of(done[1])
    assert (rows["tuned"]["left"], rows["base"]["left"]) == (1.0, 0.0)
    assert rows["vector_top1.0"]["left"] < 0.03 and rows["interpolate_top1.0"]["left"] < 0.03  # the rounding of bfloat16
    assert rows["interpolate_top0.25"]["left"] == pytest.approx(0.75, abs=0.01)
    assert rows["drop_top0.25"]["left"] < 0.1  # the change has rank two
    assert rows["random_direction_top0.25"]["left"] > 1
    assert 0 < rows["vector_top0.25"]["rounding"] < 0.01
    assert rows["vector_top0.25"]["close_cuts"] == 0 and rows["aligned_top0.25"]["close_cuts"] is None


def test_restored_folders_load_in_transformers(done: tuple[Recovery, dict[str, Any]], models: tuple[Path, Path]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, tuned = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict() for folder in models)
    folder = done[0].folders["vector_top1.0"]
    model, loading = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(loading.values())
    for name, tensor in model.state_dict().items():
        expected = base[name].bfloat16().float() if "_proj.weight" in name else tuned[name]
        assert torch.allclose(tensor, expected, atol=1e-3 if "_proj.weight" in name else 0.0), name
    assert AutoTokenizer.from_pretrained(folder)("1+2=").input_ids == AutoTokenizer.from_pretrained(models[1])("1+2=").input_ids
    assert json.loads((folder / "unify_restored.json").read_text())["variant"] == "vector_top1.0"
    with safe_open(folder / "model-matrix-00001.safetensors", framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in list(file.keys())} == {torch.bfloat16}


def test_folders_of_both_families_load(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    pair = save_model(tmp_path / "a", llama=True), save_model(tmp_path / "b", low_rank, llama=True)
    recovery = settings(pair, tmp_path / "out", tops=(1,), modes=("aligned",))
    recover(recovery)
    _, loading = AutoModelForCausalLM.from_pretrained(recovery.folders["aligned_top1"], output_loading_info=True)
    assert not any(loading.values())


def test_the_page_names_controls_and_says_what_was_not_measured(done: tuple[Recovery, dict[str, Any]]) -> None:
    text = (done[0].output / "recovery.md").read_text()
    for expected in (
        "Controls, by what they leave",
        "interpolate_top0.25 0.75",
        "random_direction_top0.25",
        "Nothing was evaluated",
    ):
        assert expected in text
    assert json.loads((done[0].output / "recovery.json").read_text()) == json.loads(json.dumps(done[1]))
    assert (done[0].output / "left_over_top.png").stat().st_size > 1000


def test_what_moves_away_is_said(models: tuple[Path, Path], tmp_path: Path) -> None:
    recovery = settings(models, tmp_path / "out", tops=(1,), modes=("direction",))
    results = recover(recovery)
    assert rows_of(results)["direction_top1"]["left"] > 1
    assert "**Farther from the base than the tuned model is**: direction_top1" in (recovery.output / "recovery.md").read_text()


class KilledError(Exception):
    pass


def test_a_killed_recovery_goes_on_at_the_next_matrix(
    models: tuple[Path, Path], tmp_path: Path, done: tuple[Recovery, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    recovery = settings(models, tmp_path / "out")
    restored, worked = module._restore_matrix, []

    def dying(name: str, *rest: Any) -> Any:
        if len(worked) == 5:
            raise KilledError
        worked.append(name)
        return restored(name, *rest)

    monkeypatch.setattr(module, "_restore_matrix", dying)
    with pytest.raises(KilledError):
        recover(recovery)
    assert not list(recovery.output.rglob("unify_restored.json")) and not (recovery.output / "recovery.json").exists()
    with open(recovery.output / "matrices.jsonl", "ab") as file:
        file.write(b'{"matrix": "model.lay')  # what a kill leaves of a line
    again: list[str] = []
    monkeypatch.setattr(module, "_restore_matrix", lambda name, *rest: (again.append(name), restored(name, *rest))[1])
    results = recover(recovery)
    assert len(worked) == 5 and len(again) == 9 and not set(worked) & set(again)
    assert [{**row, "folder": None} for row in results["rows"]] == [{**row, **({"folder": None})} for row in done[1]["rows"]]
    for label, folder in recovery.folders.items():
        for file in done[0].folders[label].glob("*.safetensors"):
            assert (folder / file.name).read_bytes() == file.read_bytes(), (label, file.name)
    again.clear()
    recover(recovery)
    assert again == []


def test_a_matrix_whose_file_is_gone_is_restored_again(models: tuple[Path, Path], tmp_path: Path) -> None:
    recovery = settings(models, tmp_path / "out", tops=(1,), modes=("vector",))
    recover(recovery)
    gone = recovery.folders["drop_top1"] / "model-matrix-00003.safetensors"
    content = gone.read_bytes()
    gone.unlink()
    recover(recovery)
    assert gone.read_bytes() == content


def test_other_settings_need_another_folder_or_overwrite(models: tuple[Path, Path], tmp_path: Path) -> None:
    recovery = settings(models, tmp_path / "out", tops=(1,), modes=("vector",))
    recover(recovery)
    other = dataclasses.replace(recovery, tops=(2,))
    with pytest.raises(
        ValueError, match=r"holds an analysis with top=\[1\], which is now \[2\]; give another output=…, or overwrite=true"
    ):
        recover(other)
    recover(dataclasses.replace(other, overwrite=True))
    assert not recovery.folders["vector_top1"].exists() and other.folders["vector_top2"].is_dir()


def test_folders_of_others_are_never_deleted(models: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match=r"holds other files than an analysis \(thesis.tex\); give another output"):
        recover(settings(models, tmp_path, overwrite=True))
    assert (tmp_path / "thesis.tex").is_file()


def test_too_little_disk_is_said_before_anything_is_computed(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(ValueError, match=r"15 restored models need 0\.0 GB and 0\.0 GB are free; .*layers= and modules="):
        recover(settings(models, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_links_out_of_the_tuned_folder_are_not_passed_on(models: tuple[Path, Path], tmp_path: Path) -> None:
    tuned = shutil.copytree(models[1], tmp_path / "tuned")
    (tmp_path / "secret").write_text("{}")
    (tuned / "generation_config.json").unlink(missing_ok=True)
    (tuned / "generation_config.json").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="is a link to"):
        recover(settings((models[0], tuned), tmp_path / "out", tops=(1,), modes=("vector",)))


@pytest.mark.parametrize(
    ("low", "said"),
    [(-0.1, "Base and tuned are not told apart here"), (0.05, "The base is 10.0 [5.0, 20.0] points from the tuned")],
)
def test_what_is_evaluated_is_every_model(models: tuple[Path, Path], tmp_path: Path, low: float, said: str) -> None:
    def evaluate(given: Mapping[str, Path]) -> dict[str, Any]:
        accuracies = {label: 0.5 + 0.01 * number for number, label in enumerate(given)}
        sources = {
            label: [
                {"benchmark": "gp", "source": "gp_ood", "accuracy": {"mean": value, "low": value - 0.1, "high": value + 0.1}},
                {"benchmark": "gp_id", "source": "gp_id", "accuracy": None},
            ]
            for label, value in accuracies.items()
        }
        difference = {"benchmark": "gp", "source": "gp_ood", "difference": {"mean": 0.1, "low": low, "high": 0.2}}
        return {
            "models": [{"label": label, "sources": each} for label, each in sources.items()],
            "comparisons": [{"model": label, "sources": [difference]} for label in list(sources)[1:]],
        }

    recovery = settings(models, tmp_path / "out", tops=(1, 2), modes=("values",))
    results = recover(recovery, evaluate)
    assert [row["accuracy"]["gp: gp_ood"]["mean"] for row in results["rows"][:1]] == [0.5]
    assert all("gp: gp_ood" in row["accuracy"] for row in results["rows"])
    text = (recovery.output / "recovery.md").read_text()
    assert "Best restoration values_top2" in text and "best control random_values_top2" in text and "too high" in text
    assert said in text
    assert (recovery.output / "accuracy_over_top.png").is_file()


def test_equal_models_are_said(models: tuple[Path, Path], tmp_path: Path) -> None:
    results = recover(settings((models[1], models[1]), tmp_path / "out", tops=(1,), modes=("direction",)))
    assert results["nothing_tuned"] and rows_of(results)["tuned"]["left"] is None
    assert "The two models are the same" in (tmp_path / "out" / "recovery.md").read_text()


# Angles and spectra of two models


def comparison(models: tuple[Path, Path], output: Path, what: str, **changed: Any) -> Comparison:
    how = Precision((0.1, 4), 1e-3, 5, 10, 0.05, 0, torch.float32, CPU)
    given: dict[str, Any] = {"selection": DEFAULT, "how": how, "overwrite": False, "factor": 1.25, "tuned": {"tuned": models[1]}}
    return Comparison(what=what, base=models[0], output=output, **{**given, **changed})


@pytest.mark.parametrize("what", ["angles", "spectrum"])
def test_a_comparison_goes_on_where_it_was(
    models: tuple[Path, Path], tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unify_posttrain.analysis.weights import conduct

    whole = compare(comparison(models, tmp_path / "whole", what))
    entry, worked = conduct._entry, []

    def dying(name: str, *rest: Any) -> Any:
        if len(worked) == 3:
            raise KilledError
        worked.append(name)
        return entry(name, *rest)

    monkeypatch.setattr(conduct, "_entry", dying)
    with pytest.raises(KilledError):
        compare(comparison(models, tmp_path / "killed", what))
    monkeypatch.setattr(conduct, "_entry", lambda name, *rest: (worked.append(name), entry(name, *rest))[1])
    assert compare(comparison(models, tmp_path / "killed", what)) == whole
    assert len(worked) == len(set(worked)) == 14
    assert (tmp_path / "killed" / f"{what}.json").read_bytes() == (tmp_path / "whole" / f"{what}.json").read_bytes()


def test_angles_stand_beside_their_null_lines(models: tuple[Path, Path], tmp_path: Path) -> None:
    tuned = {"tuned": models[1], "same": models[0]}
    results = compare(comparison(models, tmp_path, "angles", tuned=tuned))
    part = results["summary"]["tuned"]["subspaces"][0]
    assert part["left"]["mean"] > 0 and part["left_noise"]["mean"] > 0 and part["left_random"]["mean"] > part["left_noise"]["mean"]
    assert results["summary"]["same"]["subspaces"][0]["left"]["mean"] == 0.0
    text = (tmp_path / "angles.md").read_text()
    for expected in (
        "an unstructured update of this size",
        "random subspaces stand at",
        "an angle alone proves nothing",
        "**same**: ΔW is 0",
        "look untrained",
    ):
        assert expected in text
    assert {path.name for path in tmp_path.glob("*.png")} == {"ranks.png", "heat.png"}


def test_values_stand_beside_theirs(models: tuple[Path, Path], tmp_path: Path) -> None:
    results = compare(comparison(models, tmp_path, "spectrum", selection=Selection("q_proj", None)))
    assert results["summary"]["tuned"]["matrices"] == 2 and results["matrices"][0]["matrix"] == Q0
    assert "noise of the same norm" in (tmp_path / "spectrum.md").read_text()


def test_structure_is_told_from_noise(tmp_path: Path) -> None:
    """A rotation of the base's own singular vectors, against noise of the same norm in another model."""

    def trained(name: str, weight: torch.Tensor) -> torch.Tensor:
        parts = torch.linalg.svd(weight, full_matrices=False)
        return parts.U @ torch.diag(torch.logspace(1, -2, len(parts.S))) @ parts.Vh

    def rotated(name: str, weight: torch.Tensor) -> torch.Tensor:
        parts = torch.linalg.svd(trained(name, weight), full_matrices=False)
        turn = torch.eye(len(parts.S))
        turn[:2, :2] = torch.tensor([[0.0, -1.0], [1.0, 0.0]])  # the first two are exchanged
        return parts.U @ turn @ torch.diag(parts.S) @ parts.Vh

    pair = save_model(tmp_path / "a", trained), save_model(tmp_path / "b", rotated)
    how = Precision((1,), 1e-3, 5, 10, 0.05, 0, torch.float64, CPU)
    results = compare(comparison(pair, tmp_path / "out", "angles", how=how, tuned={"b": pair[1]}))
    (part,) = results["summary"]["b"]["subspaces"]
    assert part["left"]["mean"] == pytest.approx(90) and part["left_noise"]["mean"] < 60
    assert "more than an unstructured update" in (tmp_path / "out" / "angles.md").read_text()
    assert results["summary"]["b"]["looks_random"] == 0

"""Checkpoint bookkeeping: atomic files, the completeness marker, which folder to resume from, whose run it was."""

from __future__ import annotations

import json
import logging
import os
import zlib
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from unify_posttrain.runs import state


def checkpoint(root: Path, step: int, complete: bool = True) -> Path:
    folder = root / f"global_step_{step}"
    (folder / "actor").mkdir(parents=True)
    (folder / "actor" / "model.pt").write_bytes(b"weights" * step)
    (folder / "data.pt").write_bytes(b"loader")
    state.write_json(folder / state.STATE, {"format": state.FORMAT, "global_step": step})
    if complete:
        state.mark_complete(folder)
    return folder


# --- writing ---------------------------------------------------------------------------------------------------------


def test_write_json_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    state.write_json(path, {"a": 1})
    state.write_json(path, {"b": [1, 2]})
    assert json.loads(path.read_text()) == {"b": [1, 2]}
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.json"]


def test_a_failed_write_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    state.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        state.write_json(path, {"first": "written", "then": object()})
    assert json.loads(path.read_text()) == {"a": 1}


def test_a_crash_before_the_rename_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.json"
    state.write_json(path, {"a": 1})
    monkeypatch.setattr(state.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        state.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}


# --- completeness ----------------------------------------------------------------------------------------------------


def test_marker_lists_every_file_with_its_size_and_checksum(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 2)
    assert state.is_complete(folder)
    marker = json.loads((folder / state.MARKER).read_text())
    files = ("actor/model.pt", "data.pt", state.STATE)
    expected = {name: [len(content), zlib.crc32(content)] for name in files for content in [(folder / name).read_bytes()]}
    assert marker == {"format": state.FORMAT, "files": expected}
    assert marker["files"]["actor/model.pt"][0] == 14


def test_a_checksum_does_not_depend_on_how_a_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"123456789")
    assert state.checksum(path) == 0xCBF43926  # the check value of CRC-32 (ISO-HDLC) for these nine bytes
    monkeypatch.setattr(state, "CHUNK", 2)
    assert state.checksum(path) == 0xCBF43926


def test_changed_content_of_the_same_size_is_damage(tmp_path: Path) -> None:
    older, folder = checkpoint(tmp_path, 1), checkpoint(tmp_path, 3)
    assert state.damage(folder) is None
    file = folder / "actor" / "model.pt"
    content = bytearray(file.read_bytes())
    content[3] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(1, 1))
    assert state.damage(folder, contents=False) is None  # sizes do not show it
    assert state.damage(folder) == "the content of model.pt has changed since it was written"
    assert state.newest_complete(tmp_path) == older
    with pytest.raises(ValueError, match=r"global_step_3 is not usable: the content of model\.pt has changed.*choose an earlier"):
        state.resume_folder(trainer_config(tmp_path, "resume_path", folder))


def test_a_checkpoint_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, reads = checkpoint(tmp_path, 3), []
    whole = state.checksum
    monkeypatch.setattr(state, "checksum", lambda path: reads.append(path.name) or whole(path))
    assert state.damage(folder) is None and state.damage(folder) is None
    assert sorted(reads) == sorted(["model.pt", "data.pt", state.STATE])


@pytest.mark.parametrize(
    ("number", "left"), [(None, [1, 2, 9, 10]), (0, [1, 2, 9, 10]), (1, [1, 10]), (2, [1, 9, 10]), (7, [1, 2, 9, 10])]
)
def test_only_complete_checkpoints_count_as_kept(tmp_path: Path, number: int | None, left: list[int]) -> None:
    checkpoint(tmp_path, 1, complete=False)  # neither counted nor deleted
    for step in (2, 9, 10):
        checkpoint(tmp_path, step)
    state.keep_newest(tmp_path, number)
    assert [state.step_of(folder) for folder in state.step_folders(tmp_path)] == left


@pytest.mark.parametrize(
    ("validated", "frequency", "steps", "due"),
    [
        (False, 2, 9, True),
        (True, 2, 9, False),
        (None, 2, 9, False),
        (False, 3, 9, False),
        (False, 3, 4, True),
        (False, -1, 4, False),
    ],
    ids=["killed before", "done", "older state", "not its step", "last step", "never validates"],
)
def test_validation_that_a_kill_prevented(tmp_path: Path, validated: bool | None, frequency: int, steps: int, due: bool) -> None:
    folder = checkpoint(tmp_path, 4)
    state.write_json(folder / state.PHASE, {"index": 0} if validated is None else {"index": 0, "validated": validated})
    config = trainer_config(tmp_path, "auto")
    config.trainer.test_freq = frequency
    assert state.awaits_validation(folder, config, steps) is due
    assert (state.nothing_left(config, steps) is None) is (due or steps > 4)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "data.pt").unlink(),
        lambda folder: (folder / "actor" / "model.pt").write_bytes(b"weight"),
        lambda folder: (folder / "actor" / "model.pt").write_bytes(b""),
        lambda folder: (folder / state.STATE).unlink(),
        lambda folder: (folder / state.MARKER).unlink(),
        lambda folder: (folder / state.MARKER).write_text('{"format": 1, "fi'),
        lambda folder: (folder / state.MARKER).write_text("{}"),
    ],
    ids=["missing", "truncated", "empty", "no state", "no marker", "half a marker", "empty marker"],
)
def test_damage_is_seen(tmp_path: Path, damage: object) -> None:
    folder = checkpoint(tmp_path, 3)
    assert state.is_complete(folder)
    damage(folder)
    assert not state.is_complete(folder)


def test_a_folder_that_is_not_there_is_not_complete(tmp_path: Path) -> None:
    assert not state.is_complete(tmp_path / "global_step_1")


def test_marking_again_covers_new_files(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 1)
    (folder / "late.pt").write_bytes(b"x")
    assert state.is_complete(folder)  # a file more does no harm
    state.mark_complete(folder)
    (folder / "late.pt").unlink()
    assert not state.is_complete(folder)


# --- which one -------------------------------------------------------------------------------------------------------


def test_step_of() -> None:
    assert state.step_of(Path("runs/x/global_step_120")) == 120
    for name in ("global_step_", "step_3", "global_step_3_old", "latest"):
        with pytest.raises(ValueError, match="global_step_N"):
            state.step_of(Path("runs") / name)


def test_newest_complete_skips_what_was_cut_short(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (2, 9, 10):  # by number, not by name
        checkpoint(tmp_path, step)
    checkpoint(tmp_path, 100, complete=False)
    (checkpoint(tmp_path, 50) / "data.pt").unlink()
    (tmp_path / "global_step_999").write_text("a file")
    (tmp_path / "global_step_777_backup").mkdir()
    with caplog.at_level(logging.WARNING):
        assert state.newest_complete(tmp_path) == tmp_path / "global_step_10"
    assert "global_step_100" in caplog.text
    assert "global_step_50" in caplog.text
    assert "global_step_9 " not in caplog.text


def test_newest_complete_of_nothing(tmp_path: Path) -> None:
    assert state.newest_complete(tmp_path / "absent") is None
    checkpoint(tmp_path, 1, complete=False)
    assert state.newest_complete(tmp_path) is None


def trainer_config(folder: Path, mode: str, path: Path | None = None) -> DictConfig:
    return OmegaConf.create(
        {
            "trainer": {
                "resume_mode": mode,
                "test_freq": -1,
                "default_local_dir": str(folder),
                "resume_from_path": path and str(path),
            }
        }
    )


def test_a_finished_run_is_told_before_anything_starts(tmp_path: Path) -> None:
    last = checkpoint(tmp_path, 4)
    config = trainer_config(tmp_path, "auto")
    assert state.nothing_left(config, 5) is None and state.nothing_left(config, None) is None
    for steps in (4, 3):
        message = state.nothing_left(config, steps)
        assert f"{last} is the last of {steps} steps: nothing to train" in message and "total_training_steps" in message
    assert state.nothing_left(trainer_config(tmp_path, "disable"), 4) is None


def test_resume_modes(tmp_path: Path) -> None:
    older, newer = checkpoint(tmp_path, 1), checkpoint(tmp_path, 2)
    assert state.resume_folder(trainer_config(tmp_path, "disable")) is None
    assert state.resume_folder(trainer_config(tmp_path, "auto")) == newer
    assert state.resume_folder(trainer_config(tmp_path, "resume_path", older)) == older
    with pytest.raises(ValueError, match=r"trainer\.resume_mode='always'"):
        state.resume_folder(trainer_config(tmp_path, "always"))
    with pytest.raises(ValueError, match="does not exist"):
        state.resume_folder(trainer_config(tmp_path, "resume_path", tmp_path / "global_step_7"))
    with pytest.raises(ValueError, match="global_step_N"):
        state.resume_folder(trainer_config(tmp_path, "resume_path", tmp_path))


def test_a_damaged_path_is_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 4)
    (folder / "data.pt").unlink()
    with pytest.raises(ValueError, match=r"not usable: data\.pt is missing; choose an earlier one"):
        state.resume_folder(trainer_config(tmp_path, "resume_path", folder))


def test_a_path_of_ours_without_marker_is_refused(tmp_path: Path) -> None:
    """The module: a folder without a marker "is never resumed from". One of ours is known by its state file."""
    folder = checkpoint(tmp_path, 4, complete=False)
    with pytest.raises(ValueError, match="not usable: the run was stopped while writing it"):
        state.resume_folder(trainer_config(tmp_path, "resume_path", folder))


# --- state and identity ----------------------------------------------------------------------------------------------


def test_read_state(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 5)
    assert state.read_state(folder) == {"format": state.FORMAT, "global_step": 5}
    (folder / state.STATE).unlink()
    assert state.read_state(folder) is None  # plain verl wrote it
    state.write_json(folder / state.STATE, {"format": state.FORMAT + 1})
    with pytest.raises(ValueError, match="newer unify_posttrain"):
        state.read_state(folder)


def run_config(data: Path, **changes: object) -> DictConfig:
    values = {
        "fusion.algorithm": "hpt",
        "fusion.seed": 0,
        "data.train_files": [str(data)],
        "data.train_batch_size": 32,
        "actor_rollout_ref.rollout.n": 8,
        "actor_rollout_ref.model.path": "Qwen/Qwen2.5-Math-7B",
        "trainer.nnodes": 1,
        "trainer.n_gpus_per_node": 8,
    }
    config = OmegaConf.create({})
    for key, value in {**values, **changes}.items():
        OmegaConf.update(config, key, value)
    return config


def test_identity_is_json_and_accepts_its_own_run(tmp_path: Path) -> None:
    data = tmp_path / "train.parquet"
    data.write_bytes(b"rows")
    own = json.loads(json.dumps({"identity": state.identity(run_config(data))}))
    state.check_identity(own, run_config(data), tmp_path)
    state.check_identity(own, run_config(data, **{"data.train_files": str(data)}), tmp_path)  # one file, not a list
    state.check_identity(None, run_config(data), tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("fusion.algorithm", "luffy", r"fusion\.algorithm=hpt, this run has luffy"),
        ("fusion.seed", 1, r"fusion\.seed"),
        ("data.train_batch_size", 64, r"data\.train_batch_size=32"),
        ("actor_rollout_ref.rollout.n", 4, r"rollout\.n=8"),
        ("actor_rollout_ref.model.path", "other", r"model\.path"),
        ("trainer.n_gpus_per_node", 4, "ranks=8, this run has 4"),
    ],
)
def test_another_runs_checkpoint_is_refused(tmp_path: Path, key: str, value: object, named: str) -> None:
    data = tmp_path / "train.parquet"
    data.write_bytes(b"rows")
    own = {"identity": state.identity(run_config(data))}
    with pytest.raises(ValueError, match=named):
        state.check_identity(own, run_config(data, **{key: value}), tmp_path)


def test_other_data_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "train.parquet"
    data.write_bytes(b"rows")
    own = {"identity": state.identity(run_config(data))}
    data.write_bytes(b"raws")
    with pytest.raises(ValueError, match=r"data\.train_files"):
        state.check_identity(own, run_config(data), tmp_path)


def test_fingerprint_follows_the_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    seen = set()
    for content in (b"", b"a" * 100, b"a" * 99 + b"b", b"b" + b"a" * 99, b"a" * 101):
        path.write_bytes(content)
        first, again = state.fingerprint(path, edge=10), state.fingerprint(path, edge=10)
        assert first == again
        seen.add(first)
    assert len(seen) == 5
    copy = tmp_path / "copy"
    copy.write_bytes(path.read_bytes())
    assert state.fingerprint(copy, edge=10) == state.fingerprint(path, edge=10)  # the name does not count


def deep() -> list:
    value: list = []
    for _ in range(100_000):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": [1, {"b": object()}]}, r"x\.json: a\[1\]\.b is object, which JSON cannot say"),
        ({"a": {(1, 2): 3}}, r"x\.json: a key of a is tuple, which JSON cannot say"),
        ({"a": b"x"}, r"a is bytes"),
        ({"a": deep()}, r"is nested more than 100 deep"),
    ],
    ids=["object", "key", "bytes", "depth"],
)
def test_what_cannot_be_said_names_its_place_and_leaves_the_file(content: dict, message: str, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    state.write_json(file, {"fine": 1})
    with pytest.raises(TypeError, match=message):
        state.write_json(file, content)
    assert json.loads(file.read_text()) == {"fine": 1} and list(tmp_path.iterdir()) == [file]

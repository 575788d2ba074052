"""Names and links that lead out of a folder."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from unify_posttrain.untrusted.folders import leads_out, linked_elsewhere, member, refuse_links, say_links


@pytest.mark.parametrize(
    "name",
    [
        "../x.json", "a/../../x", "/etc/passwd", "~/x", "~root/x", "https://x.org/a.jsonl", "hf://datasets/a/b/c.jsonl", "s3://b/k",
        "file:///etc/passwd", "zip://a.jsonl::https://x.org/a.zip", "a.zip::b", "..\\x", "C:\\x", "C:x", "\\\\host\\share", "a\0b",
    ],
)  # fmt: skip
def test_names_that_lead_out(name: str, tmp_path: Path) -> None:
    assert leads_out(name)
    with pytest.raises(ValueError, match=r"the index names .*, which is outside of"):
        member(tmp_path, name, "the index")


@pytest.mark.parametrize("name", ["x.json", "data/x.parquet", "data/*-of-*.parquet", "**", "a..b/..x", "train[0-9].jsonl", "a~b"])
def test_names_of_the_folder(name: str, tmp_path: Path) -> None:
    assert not leads_out(name) and member(tmp_path, name, "the index") == tmp_path / name


def test_links(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, secret = tmp_path / "data", tmp_path / "secret"
    (folder / "sub").mkdir(parents=True)
    secret.write_text("s")
    (folder / "own").write_text("o")
    for name, target in {"out": secret, "sub/up": Path("../../secret"), "in": folder / "own"}.items():
        (folder / name).symlink_to(target)
    assert [linked_elsewhere(folder, folder / name) for name in ("own", "in", "out", "sub/up")] == [None, None, secret, secret]
    with pytest.raises(ValueError, match=r"key: .*data/out is a link to .*secret, outside of .*put the file itself there"):
        refuse_links(folder, [folder / "own", folder / "out"], "key")
    refuse_links(folder, [folder / "own", folder / "in"], "key")
    (tmp_path / "alias").symlink_to(folder)  # the folder itself may be a link
    refuse_links(tmp_path / "alias", [tmp_path / "alias" / "own"], "key")
    with caplog.at_level(logging.WARNING):
        say_links(folder, [folder / "in", folder / "out"])
    assert len(caplog.messages) == 1 and "out is a link to" in caplog.messages[0]


def test_a_snapshot_of_the_hub_owns_the_blobs_beside_it(tmp_path: Path) -> None:
    for name in ("models--a--b", "models--c--d"):
        (tmp_path / name / "blobs").mkdir(parents=True)
        (tmp_path / name / "blobs" / "x").touch()
    snapshot = tmp_path / "models--a--b" / "snapshots" / "revision"
    (snapshot / "data").mkdir(parents=True)
    (snapshot / "data" / "own").symlink_to("../../../blobs/x")
    (snapshot / "other").symlink_to(tmp_path / "models--c--d" / "blobs" / "x")
    assert linked_elsewhere(snapshot, snapshot / "data" / "own") is None
    assert linked_elsewhere(snapshot / "data", snapshot / "data" / "own") is None
    assert linked_elsewhere(snapshot, snapshot / "other") is not None

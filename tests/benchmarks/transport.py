"""What a batch costs the driver of a step: seconds and memory of every stage, from the engine's answers to the logged metrics.

    python -m tests.benchmarks.transport                                        # 1024 rows of 1024 + 8192 tokens
    python -m tests.benchmarks.transport --size 1024x32768 --size 10240x32768   # the last one: 6 GB, minutes
    python -m tests.benchmarks.transport --against CHECKOUT                     # and the same of another version of the package

The stages are the trainer's own, with stand-ins for what answers them: engines that send responses in the order in which they end,
reward workers, and ranks that return log-probabilities. Everything that passes between them and the driver is pickled and
unpickled, and that counts; what the stand-ins compute does not. Responses are as long as an exponential distribution of the given
mean says, at most the whole width; half of the prompts are solved by nobody, so that HPT trains their demonstrations.

One process per line. Memory is the highest resident size within a stage, less what the process held before the batch.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("generate", "mix", "log_probs", "advantages", "update", "metrics")
PROMPT, GROUP, VOCABULARY, PAD = 1024, 8, 151936, 151643


def resident(field: str = "VmRSS") -> float:
    """GB of this process: `VmRSS` now, `VmHWM` at most since :func:`forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1e6


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


class Meter:
    """Seconds and peak memory by stage; what stand-ins compute is `outside`."""

    def __init__(self) -> None:
        self.base, self.seconds, self.peaks, self.away = resident(), {}, {}, 0.0
        self.answered = asyncio.Event()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        forget_peak()
        self.away, began = 0.0, time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - began - self.away
        self.peaks[name] = resident("VmHWM") - self.base

    @contextmanager
    def outside(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.away += time.perf_counter() - began


class Remote:
    """A method as a Ray handle has it."""

    def __init__(self, method: Any) -> None:
        self.remote = method


class Engine:
    """Sends responses in portions, the shortest first."""

    def __init__(self, meter: Meter, lengths: Any) -> None:
        self.meter, self.lengths, self.generate_batch = meter, lengths, Remote(self.answer)

    async def answer(self, requests: Any) -> AsyncIterator[Any]:
        import numpy as np

        from unify_posttrain.rollout.rows import Responses

        order, draw = np.argsort(self.lengths, kind="stable"), np.random.default_rng(0)
        for start in range(0, len(order), requests.portion):
            with self.meter.outside():
                rows = order[start : start + requests.portion]
                tokens = int(self.lengths[rows].sum())
                ids = draw.integers(0, VOCABULARY, tokens, dtype=np.int32)
                log_probs = -draw.random(tokens, dtype=np.float32)
                sent = pickle.dumps(Responses(rows, self.lengths[rows], ids, log_probs), protocol=5)
            reference = asyncio.get_running_loop().create_future()
            reference.set_result(pickle.loads(sent))
            yield reference
            await asyncio.sleep(0)
        self.meter.answered.set()


class Judge:
    """Scores the portions that it is sent."""

    def __init__(self, meter: Meter, solved: Any) -> None:
        self.meter, self.solved, self.compute_score_batch = meter, solved, Remote(self.ask)
        self.seen: dict[int, int] = {}  # prompt -> which of its rollouts was scored last

    def ask(self, given: Any) -> Any:
        """Pickled when asked; answered when every response is there, so that all messages wait at once."""
        pickle.dumps(given, protocol=5)
        return self.score(given.non_tensor_batch["extra_info"])

    async def score(self, numbers: Any) -> list[dict[str, Any]]:
        await self.meter.answered.wait()
        scores = []
        for number in numbers.tolist():
            seen = self.seen[number] = self.seen.get(number, -1) + 1
            scores.append(float(self.solved[number * GROUP + seen]))
        return [{"reward_score": score, "reward_extra_info": {"acc": score}} for score in scores]


class Workers:
    """The ranks: take their shares, and return log-probabilities as rank workers do."""

    def __init__(self, meter: Meter, ranks: int) -> None:
        self.meter, self.ranks, self.sent = meter, ranks, 0.0

    def _send(self, batch: Any) -> tuple[list[Any], list[bytes]]:
        shares = batch.chunk(self.ranks)
        messages = [pickle.dumps(share, protocol=5) for share in shares]
        self.sent = sum(map(len, messages)) / 1e9
        return shares, messages

    def compute_log_prob(self, batch: Any) -> Any:
        import torch
        from verl import DataProto

        from unify_posttrain.workers import transport

        shares, messages = self._send(batch)
        with self.meter.outside():
            replies = []
            for share in shares:
                values = -torch.rand(share.batch["responses"].shape)
                values *= share.batch["attention_mask"][:, -values.shape[1] :]
                made = DataProto.from_dict(tensors={"old_log_probs": values, "entropys": -values})
                made.meta_info = {"temperature": 1.0}
                reply = transport.reply(made, share) if hasattr(transport, "reply") else transport.travelling(made)
                replies.append(pickle.dumps(reply, protocol=5))
                del values, made, reply
        del messages
        arrived = [pickle.loads(reply) for reply in replies]
        return type(arrived[0]).concat(arrived)

    def update_actor(self, batch: Any) -> Any:
        from verl import DataProto

        self._send(batch)
        return DataProto(meta_info={"metrics": {}})


def build(meter: Meter, rows: int, response: int, mean: int, ranks: int, algorithm: str, folder: Path) -> tuple[Any, dict]:
    """The trainer, as far as a step's batch passes through it, and the prompts of a step."""
    import numpy as np
    import torch
    from omegaconf import OmegaConf

    from unify_posttrain import cpu_compat
    from unify_posttrain.algorithms import build_algorithm
    from unify_posttrain.config import compose_config
    from unify_posttrain.experience.demonstrations import DemonstrationReader
    from unify_posttrain.experience.rows import object_column
    from unify_posttrain.rollout import manager as managers
    from unify_posttrain.trainer import fusion_trainer as trainers
    from unify_posttrain.trainer.prompts import PromptReader

    cpu_compat.install()
    draw = np.random.default_rng(1)
    prompts = rows // GROUP
    flags = {
        "algorithm": algorithm, "data.train_batch_size": prompts, "actor_rollout_ref.actor.ppo_mini_batch_size": prompts,
        "actor_rollout_ref.rollout.n": GROUP, "data.max_prompt_length": PROMPT, "data.max_response_length": response,
        "actor_rollout_ref.rollout.calculate_log_probs": "true", "trainer.balance_batch": "true", "trainer.run_dir": folder,
        "actor_rollout_ref.model.path": folder,
    }  # fmt: skip
    config = compose_config([f"{key}={value}" for key, value in flags.items()])
    lengths = np.clip(draw.exponential(mean, rows), 1, response).astype(np.int64)
    solvable = np.arange(prompts) % 2 == 0
    solved = np.repeat(solvable, GROUP) & (draw.random(rows) < 0.5)

    class Manager(managers.RolloutManager):
        processor, tokenizer = None, SimpleNamespace(pad_token_id=PAD, eos_token_id=0)

    manager = Manager.__new__(Manager)
    manager.config, manager.rollout_config, manager.model_config = (
        config,
        config.actor_rollout_ref.rollout,
        config.actor_rollout_ref.model,
    )
    manager.server_handles, manager.agent_loop_workers = [Engine(meter, lengths)], []
    manager.reward_loop_worker_handles = [Judge(meter, solved)]
    texts = [draw.integers(0, VOCABULARY, size).astype(np.int32) for size in draw.integers(PROMPT // 8, PROMPT // 2, prompts)]
    managers._tokenised = lambda messages, _: [texts[message[0]["number"]] for message in messages]

    class Trainer(trainers.FusionTrainer):
        def __init__(self) -> None:
            self.config, self.use_rm, self.use_critic, self.use_reference_policy = config, False, False, False

        def _get_dp_size(self, *_: Any) -> int:
            return ranks

    trainer = Trainer()
    root = build_algorithm(OmegaConf.to_container(config.actor_rollout_ref.actor, resolve=True))
    trainer.fusion, trainer.clock = root.fusion, trainers.PhaseClock(root.phases)
    trainer.processor, trainer.tokenizer = None, Manager.tokenizer
    trainer.async_rollout_manager = manager
    weights = SimpleNamespace(update_weights=lambda _: None, sleep_replicas=lambda: None)
    trainer.engine = trainers.Engine(config, manager, weights)
    trainer.actor_rollout_wg = Workers(meter, ranks)
    trainer.port = trainers.LegacyPort(trainer.actor_rollout_wg, None, ranks)
    trainer.rewards = trainers.RewardReader.from_config(config, None)

    def score(batch: Any) -> Any:
        import torch
        from verl import DataProto

        scores = torch.zeros(batch.batch["responses"].shape)
        scores[:, 0] = 1
        columns = {**batch.non_tensor_batch, "acc": np.ones(len(batch))}
        return DataProto.from_dict({"rm_scores": scores}, columns, meta_info={"reward_extra_keys": ["acc"]})

    target = lambda text: draw.integers(0, VOCABULARY, int(text)).tolist()  # noqa: E731
    reader = DemonstrationReader(target, lambda messages: ("", texts[messages[0]["number"]].tolist()), 0, response)
    demonstrator = trainers.Demonstrator(reader, score, ranks, PROMPT, response, PAD) if trainer.clock.needs_target else None
    trainer.reader = PromptReader(demonstrator, None)
    trainer.mixer = trainers.BatchMixer.from_config(config, demonstrator)
    trainer.log_probs = trainers.LogProbs.from_config(config, trainer.port, False)
    trainer.replayer = trainers.Replayer.from_config(config, root.phases[0].algorithm, PAD)
    trainer.dump = trainers.RolloutDump(None, None)
    trainer.logs = SimpleNamespace(append_gate=lambda _: None)
    trainer.resource_pool_manager = SimpleNamespace(get_n_gpus=lambda: ranks)
    trainer.metrics, trainer.timing_raw, trainer.curr_step_profile, trainer.global_steps = {}, {"step": 1.0}, False, 1
    trainer.step = trainers.Step.begin(1, root.phases[0], config)
    given = {
        "dummy": torch.zeros(prompts, 1),
        "row_id": np.arange(prompts),
        "extra_info": np.arange(prompts),
        "raw_prompt": object_column([[{"role": "user", "number": number}] for number in range(prompts)]),
        "target": object_column([str(min(response - 1, mean))] * prompts),
        "data_source": object_column(["synthetic"] * prompts),
        "reward_model": object_column([{"ground_truth": ""}] * prompts),
    }

    return trainer, given


def measure(size: str, mean: int, ranks: int, algorithm: str) -> dict[str, Any]:
    import torch
    import verl  # noqa: F401

    rows, response = (int(number) for number in size.split("x"))
    meter = Meter()
    with tempfile.TemporaryDirectory() as folder:
        trainer, given = build(meter, rows, response, mean, ranks, algorithm, Path(folder))
    torch.manual_seed(0)
    batch = trainer._fit_get_batch(given)
    meter.base = resident()
    for name, hook in zip(
        STAGES,
        (
            trainer._fit_generate, trainer._fit_compute_reward, trainer._fit_compute_log_prob, trainer._fit_compute_advantage,
            trainer._fit_update_actor, trainer._fit_collect_metrics,
        ),
        strict=True,
    ):  # fmt: skip
        with meter.stage(name):
            batch = hook(batch)
    found = {
        "tokens": float(trainer.metrics["response_length/mean"]),
        "demonstrations": trainer.metrics.get("fusion/rows_demo", 0.0),
        "seconds": meter.seconds,
        "peaks": meter.peaks,
        "sent": trainer.actor_rollout_wg.sent,
        "base": meter.base,
    }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", action="append", help="ROWSxRESPONSE, may be given several times")
    parser.add_argument("--mean", type=int, default=4096, help="tokens of a response")
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--algorithm", default="hpt")
    parser.add_argument("--against", type=Path, help="a checkout of another version, measured beside this one")
    parser.add_argument("--here", action="store_true", help="measure the one size in this process and print JSON")
    options = parser.parse_args()
    sizes = options.size or ["1024x8192"]
    if options.here:
        sys.stdout.write(json.dumps(measure(sizes[0], options.mean, options.ranks, options.algorithm)) + "\n")
        return
    head = f"| rows x response | package | {' | '.join(STAGES)} | all | peak, GB | sent, GB |"
    sys.stdout.write(f"{head}\n|{'---|' * (len(STAGES) + 5)}\n")
    variants = {**({"before": options.against.resolve()} if options.against else {}), "after": ROOT}
    for size in sizes:
        for variant, folder in variants.items():
            flags = [f"--size={size}", f"--mean={options.mean}", f"--ranks={options.ranks}", f"--algorithm={options.algorithm}"]
            command = [sys.executable, str(Path(__file__).resolve()), "--here", *flags]
            environment = {**os.environ, "PYTHONPATH": str(folder)}
            output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder, env=environment).stdout
            found = json.loads(output.splitlines()[-1])
            times = [found["seconds"][stage] for stage in STAGES]
            row = [size, variant, *(f"{each:.2f}" for each in (*times, sum(times), max(found["peaks"].values()), found["sent"]))]
            sys.stdout.write(f"| {' | '.join(row)} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()

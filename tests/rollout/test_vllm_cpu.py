"""verl's vLLM replica without CUDA, as far as it can be tested without vLLM: registration, settings, start-up messages, and that
both ends of a weight channel have the same name. tests/vllm runs the real thing."""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from verl.workers.rollout.base import _ROLLOUT_REGISTRY
from verl.workers.rollout.replica import RolloutReplicaRegistry

from unify_posttrain.rollout import register_engines, vllm_cpu_checks
from unify_posttrain.rollout.vllm_cpu_checks import check_vllm_on_cpu
from unify_posttrain.startup import checks
from unify_posttrain.startup.memory_checks import check_bucket

OURS = ("unify_posttrain.rollout.vllm_cpu", "unify_posttrain.rollout.vllm_cpu_server")
ROLLOUT = "actor_rollout_ref.rollout"
MODEL = {"hidden_size": 128, "num_attention_heads": 4, "vocab_size": 103, "num_hidden_layers": 2, "max_position_embeddings": 512}


@pytest.fixture
def wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if vllm-cpu were installed."""
    monkeypatch.setattr(vllm_cpu_checks, "version", lambda name: {"vllm-cpu": "0.12.0.post2"}[name])


@pytest.fixture
def configured(composed: Any, tmp_path: Path) -> Any:
    """configured(model, overrides) -> hardware=cpu_vllm with a model folder of that description."""

    def build(model: dict[str, Any] | None = None, **overrides: Any) -> DictConfig:
        config = OmegaConf.create(OmegaConf.to_container(composed("hardware=cpu_vllm"), resolve=False))
        (tmp_path / "config.json").write_text(json.dumps(MODEL if model is None else model))
        config.actor_rollout_ref.model.path = str(tmp_path)
        for key, value in overrides.items():
            OmegaConf.update(config, key, value, force_add=True)
        return config

    return build


# Registration


def test_without_cuda_vllm_means_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_ROLLOUT_REGISTRY, ("vllm", "async"), "verl's")
    monkeypatch.setitem(RolloutReplicaRegistry._registry, "vllm", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    register_engines()
    assert _ROLLOUT_REGISTRY[("vllm", "async")] == "verl's"
    assert RolloutReplicaRegistry._registry["vllm"].__name__ == "load_batch_replica"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    register_engines()
    register_engines()
    assert _ROLLOUT_REGISTRY[("vllm", "async")] == "unify_posttrain.rollout.vllm_cpu.CPUServerAdapter"
    assert RolloutReplicaRegistry._registry["vllm"].__name__ == "load_cpu_replica"
    assert _ROLLOUT_REGISTRY[("hf", "async")] == "unify_posttrain.rollout.hf_replica.HFServerAdapter"


# Settings and messages


def test_the_hardware_group_passes_its_own_checks(configured: Any, wheel: None) -> None:
    config = configured()
    check_vllm_on_cpu(config)
    rollout = config.actor_rollout_ref.rollout
    assert rollout.name == "vllm" and rollout.max_model_len == config.data.max_prompt_length + config.data.max_response_length
    variables = config.ray_kwargs.ray_init.runtime_env.env_vars
    assert all(isinstance(value, str) for value in variables.values()), "Ray takes text only"
    assert {"OMP_NUM_THREADS", "VLLM_CPU_KVCACHE_SPACE", "VLLM_CPU_OMP_THREADS_BIND"} <= set(variables)


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"actor_rollout_ref.actor.strategy": "fsdp"}, r"actor\.strategy=fsdp .*set it to fsdp2"),
        ({f"{ROLLOUT}.enforce_eager": False}, r"enforce_eager=false .*set it to true"),
        ({f"{ROLLOUT}.dtype": "bfloat16"}, r"rollout\.dtype=bfloat16 .*set it to float32"),
        ({f"{ROLLOUT}.enable_sleep_mode": True}, r"enable_sleep_mode=true .*set it to false"),
        ({f"{ROLLOUT}.free_cache_engine": True}, r"free_cache_engine=true .*set it to false"),
        ({f"{ROLLOUT}.tensor_model_parallel_size": 2}, r"tensor_model_parallel_size=2 .*set it to 1"),
        ({f"{ROLLOUT}.data_parallel_size": 2}, r"data_parallel_size=2 .*set it to 1"),
        ({f"{ROLLOUT}.max_model_len": None}, r"max_model_len=None must hold .* = 80; set it to 80"),
        ({f"{ROLLOUT}.max_model_len": 79}, r"max_model_len=79 must hold .* = 80; set it to 80"),
        ({f"{ROLLOUT}.max_model_len": 513}, r"max_model_len=513 exceeds the model's max_position_embeddings=512; lower it"),
        ({"ray_kwargs.ray_init.num_gpus": None}, r"needs a CUDA device.*hardware=cpu .*hardware=cpu_vllm"),
    ],
)
def test_settings_that_vllm_on_cpu_cannot_have(configured: Any, wheel: None, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_vllm_on_cpu(configured(**{"data.max_prompt_length": 16, "data.max_response_length": 64, **overrides}))


def test_sleep_mode_is_on_unless_it_is_switched_off(configured: Any, wheel: None) -> None:
    config = configured()
    del config.actor_rollout_ref.rollout.enable_sleep_mode  # verl's own default
    with pytest.raises(ValueError, match=r"enable_sleep_mode=true .*set it to false"):
        check_vllm_on_cpu(config)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_attention_heads": 8}, r"head_dim=16 \(128 hidden / 8 heads\).*32, 64, 96, 128"),
        ({"head_dim": 80}, r"head_dim=80"),
        ({"head_dim": 64, "num_attention_heads": 8}, None),  # a head_dim of its own, as Qwen3 has
        # 200,000 x 128 x 4 bytes = 97.7 MiB, and the bucket has 64.
        ({"vocab_size": 200_000}, r"update_weights_bucket_megabytes=64 .*200000 x 128 .*set it to 98 or more"),
        ({"vocab_size": 131_072}, None),  # 131,072 x 128 x 4 bytes are 64 MiB
        ({"hidden_size": None, "text_config": {"hidden_size": 128, "num_attention_heads": 8}}, r"head_dim=16"),
        ({"hidden_size": None}, None),  # names of another architecture
    ],
)
def test_models_that_do_not_suit(configured: Any, wheel: None, changes: dict[str, Any], message: str | None) -> None:
    config = configured({**MODEL, **changes})
    with nullcontext() if message is None else pytest.raises(ValueError, match=message):
        check_vllm_on_cpu(config)
        check_bucket(config)  # for engines on GPUs, too


def test_an_extended_context_counts(configured: Any, wheel: None) -> None:
    key = "actor_rollout_ref.model.override_config.max_position_embeddings"
    check_vllm_on_cpu(configured(**{f"{ROLLOUT}.max_model_len": 1024, key: 1024}))


@pytest.mark.parametrize("installed", [None, "0.11.2"])
def test_the_wheel_is_named(configured: Any, monkeypatch: pytest.MonkeyPatch, installed: str | None) -> None:
    def version(name: str) -> str:
        if installed is None:
            raise vllm_cpu_checks.PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(vllm_cpu_checks, "version", version)
    with pytest.raises(ValueError, match=rf"vllm-cpu{'' if installed is None else ' 0.11.2'}.*constraints-vllm\.txt"):
        check_vllm_on_cpu(configured())


def test_a_dry_run_plans_for_gpus_elsewhere_but_not_for_missing_wheels(configured: Any, composed: Any, wheel: None) -> None:
    checks._check_hardware(composed("hardware=gpu_1", "+dry_run=true"))
    with pytest.raises(ValueError, match="needs a CUDA device and none is visible"):
        checks._check_hardware(composed("hardware=gpu_1"))
    for dry in (True, False):
        checks._check_hardware(configured(dry_run=dry))
        with pytest.raises(ValueError, match="enforce_eager"):
            checks._check_hardware(configured(**{"dry_run": dry, f"{ROLLOUT}.enforce_eager": False}))


# The adapter, with stand-ins for the classes that it extends


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The names of vllm_cpu and vllm_cpu_server over stand-ins that ask the questions of verl's classes (verl 0.7.1)."""
    verls, server, utils = (ModuleType(f"verl.workers.rollout.vllm_rollout{part}") for part in ("", ".vllm_async_server", ".utils"))
    rollout, transfer = (ModuleType(f"{verls.__name__}.{part}") for part in ("vllm_rollout", "bucketed_weight_transfer"))

    def get_device_uuid(_: Any) -> str:
        raise NotImplementedError("a CPU has no UUID")

    class ServerAdapter:
        def __init__(self, rank: int, size: int = 1) -> None:
            self.replica_rank, self.rollout_rank = rank // size, rank % size
            self.device_uuid = rollout.get_device_uuid("cpu")
            if rank < 0:
                raise RuntimeError("broken")

    class HttpServer:
        def __init__(self, replica_rank: int, settings: dict[str, Any] | None) -> None:
            self.replica_rank, self.config = replica_rank, SimpleNamespace(engine_kwargs={"vllm": settings})
            self.model_config = SimpleNamespace(processor=None)

    class Replica:
        async def launch_servers(self) -> None:
            self.resource = server.get_resource_name()

    class Receiver:
        """verl's: answers that a bucket arrived, then loads what is in it."""

        def receive_weights(self, load: Any) -> None:
            self._init_socket()
            for _ in range(2):
                self.socket.recv_pyobj()
                self.socket.send(b"")
                load()
            self.socket.close()

    class Extension:
        device, device_uuid, rank = None, "", 0

        def update_weights_from_ipc(self, use_shm: bool) -> None:
            self.received = (str(self.device), self.device_uuid, use_shm)
            self.receiver = transfer.BucketedWeightReceiver
            self.connected = self._get_zmq_handle()

    rollout.ServerAdapter, rollout.get_device_uuid = ServerAdapter, get_device_uuid
    server.vLLMHttpServer, server.vLLMReplica, server.get_resource_name = HttpServer, Replica, lambda: "NPU"
    utils.vLLMColocateWorkerExtension = Extension
    transfer.BucketedWeightReceiver = Receiver
    verls.vllm_async_server, verls.vllm_rollout, verls.utils = server, rollout, utils
    verls.bucketed_weight_transfer = transfer
    for module in (verls, server, utils, rollout, transfer, ModuleType("vllm")):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for name in OURS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    ends, servers = (importlib.import_module(name) for name in OURS)
    monkeypatch.setattr(ends.ray, "remote", lambda cls: cls)
    monkeypatch.setenv(ends.CHANNEL, "")  # restored afterwards
    at(ends, monkeypatch, "127.0.0.1:1")
    yield SimpleNamespace(**{**vars(ends), **vars(servers)})
    for name in OURS:
        sys.modules.pop(name, None)


def at(module: Any, monkeypatch: pytest.MonkeyPatch, cluster: str) -> None:
    """In a Ray cluster of that address."""
    context = SimpleNamespace(gcs_address=cluster, get_job_id=lambda: "01000000")
    monkeypatch.setattr(module.ray, "get_runtime_context", lambda: context)


@pytest.mark.parametrize("rank", [0, 1, 5])
def test_both_ends_of_a_weight_channel_have_one_name(adapter: Any, rank: int) -> None:
    sender = adapter.CPUServerAdapter(rank)
    adapter.CPUHttpServer(rank, {})  # exports the name to the processes that vLLM starts
    receiver = adapter.CPUWorkerExtension()
    receiver.update_weights_from_ipc(use_shm=True)
    assert receiver.received == ("cpu", sender.device_uuid, True)
    assert receiver.connected == sender.zmq_handle


def test_channels_differ_between_ranks_and_runs(adapter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [adapter.CPUServerAdapter(rank).device_uuid for rank in range(3)]
    names += [adapter.CPUServerAdapter(rank, size=2).device_uuid for rank in (1, 3)]  # second ranks of replicas 0 and 1
    at(adapter, monkeypatch, "127.0.0.1:2")
    names.append(adapter.CPUServerAdapter(0).device_uuid)
    assert len(set(names)) == 6
    # verl makes it a path of a socket, of which Linux takes 107 bytes; a prefix of 22 and a suffix of 5 are verl's.
    assert all(len(name) < 60 and name.replace("-", "").isalnum() for name in names)


def test_a_bucket_is_loaded_before_its_memory_is_given_back(adapter: Any) -> None:
    """On CPU what arrives is the sender's memory; also verl's receiver is as it was afterwards."""
    happened: list[str] = []

    class Socket:
        def recv_pyobj(self) -> None:
            happened.append("bucket")

        def send(self, _reply: bytes) -> None:
            happened.append("answered")

        def close(self) -> None:
            happened.append("closed")

    def socket(self: Any) -> None:
        self.socket = Socket()

    verls = adapter.bucketed_weight_transfer.BucketedWeightReceiver
    verls._init_socket = socket
    verls().receive_weights(lambda: happened.append("loaded"))
    assert happened == ["bucket", "answered", "loaded"] * 2 + ["closed"]
    happened.clear()
    worker = adapter.CPUWorkerExtension()
    worker.update_weights_from_ipc(use_shm=True)
    worker.receiver().receive_weights(lambda: happened.append("loaded"))
    assert happened == ["bucket", "loaded", "answered"] * 2 + ["closed"]
    assert adapter.bucketed_weight_transfer.BucketedWeightReceiver is verls


def test_weights_travel_through_a_folder_of_this_user_alone(adapter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What arrives through the socket is unpickled: nobody else may make it, its folder, or a link in its place."""
    with tempfile.TemporaryDirectory() as short:  # pytest's folders are too long for a socket in some runs
        _through_a_folder_of_one_user(adapter, monkeypatch, Path(short))


def _through_a_folder_of_one_user(adapter: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    handle = adapter.CPUServerAdapter(0).zmq_handle
    folder = Path(handle.removeprefix("ipc://")).parent
    assert folder.parent == tmp_path and folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o755)
    with pytest.raises(RuntimeError, match="not a folder of this user alone"):
        adapter.CPUServerAdapter(0)
    folder.rmdir()
    folder.symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(RuntimeError, match="not a folder of this user alone"):
        adapter.CPUServerAdapter(0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "a".ljust(90, "a")))
    Path(str(tmp_path / "a".ljust(90, "a"))).mkdir()
    with pytest.raises(RuntimeError, match="set TMPDIR to a shorter folder"):
        adapter.CPUServerAdapter(0)


def test_verls_question_is_put_back(adapter: Any) -> None:
    adapter.CPUServerAdapter(0)
    with pytest.raises(RuntimeError, match="broken"):
        adapter.CPUServerAdapter(-1)
    with pytest.raises(NotImplementedError):
        adapter.vllm_rollout.get_device_uuid(0)


def test_servers_load_our_extension_and_keep_other_settings(adapter: Any) -> None:
    for given in (None, {}, {"block_size": 64}):
        server = adapter.CPUHttpServer(2, given)
        expected = {"worker_extension_cls": "unify_posttrain.rollout.vllm_cpu.CPUWorkerExtension", **(given or {})}
        assert server.config.engine_kwargs["vllm"] == expected
        assert os.environ[adapter.CHANNEL] == adapter.channel(2)


def test_ranks_are_found_as_declared(adapter: Any) -> None:
    import asyncio

    replica = adapter.CPUReplica()
    assert replica.server_class is adapter.CPUHttpServer
    asyncio.run(replica.launch_servers())
    assert replica.resource == "GPU"

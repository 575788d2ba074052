"""What verl puts on vLLM's command line, read by vLLM's own parser: for every model file and every hardware that runs vLLM.

No engine starts, except for the last test: it generates with an overridden rotary base and compares with the actor's forward pass.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, Qwen2Config, Qwen2ForCausalLM

from unify_posttrain.backend.seams import LOST_OVERRIDES
from unify_posttrain.config import compose_config
from unify_posttrain.tasks.tokenizer import build_tokenizer

from ..e2e.conftest import ROOT
from .conftest import LIMIT

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(LIMIT)]

HARDWARE = sorted(
    path.stem for path in (ROOT / "conf" / "hardware").glob("*.yaml")
    if compose_config(["algorithm=grpo", "model=tiny_qwen2", f"hardware={path.stem}"]).actor_rollout_ref.rollout.name == "vllm"
)  # fmt: skip
# The folder's own positions and rotary base: those of Qwen2.5-Math, which the published runs override, and common ones.
OWN = {"qwen2_5_math_1_5b": (4096, 10_000.0), "qwen2_5_math_7b": (4096, 10_000.0)}
OTHERS = (32_768, 1_000_000.0)
# Where transformers does not read them, such a model is refused before anything starts.
OVERRIDDEN = pytest.mark.skipif("rope_theta" in LOST_OVERRIDES, reason="this verl refuses an overridden rotary base")
MODELS = [
    pytest.param(path.stem, marks=[OVERRIDDEN] if path.stem in OWN else [])
    for path in sorted((ROOT / "conf" / "model").glob("*.yaml"))
]
TINY = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 128}
RESPONSE = 40
# float32 in both; see test_rollouts.py
LOG_PROB_BOUND = 1e-4


def folder_of(folder: Path, name: str, architecture: str) -> Path:
    """A model folder without weights: that architecture, small, with the context that the published one has by itself."""
    positions, theta = OWN.get(name, OTHERS)
    numbers = {**TINY, "max_position_embeddings": positions}
    # GPT-NeoX has a name of its own for the base, and as many key heads as heads.
    numbers |= {"rotary_emb_base": theta} if architecture == "gpt_neox" else {"rope_theta": theta, "num_key_value_heads": 1}
    if "vl" in architecture:
        numbers["rope_scaling"] = {"type": "mrope", "mrope_section": [4, 6, 6]}
    config = AutoConfig.for_model(architecture, **numbers)
    models = AutoModelForImageTextToText if "vl" in architecture else AutoModelForCausalLM
    config.architectures = [models._model_mapping[type(config)].__name__]
    config.save_pretrained(folder)
    build_tokenizer(positions).save_pretrained(folder)
    return folder


Built = Callable[..., tuple[Any, Any, Any]]


@pytest.fixture
def engine_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Built:
    """engine_config(model, hardware, *overrides) -> (the rollout node, the actor's config as verl reads it, vLLM's config)."""
    from verl.workers.rollout.replica import RolloutMode
    from verl.workers.rollout.vllm_rollout import vllm_async_server

    class Server(vllm_async_server.vLLMHttpServer):
        """verl's server up to the point where it starts an engine."""

        async def run_server(self, args: Any) -> None:
            self.engine_config = vllm_async_server.AsyncEngineArgs.from_cli_args(args).create_engine_config()

    def build(model: str, hardware: str, *more: str) -> tuple[Any, Any, Any]:
        task = "arithmetic" if model.startswith("tiny") else "openr1_math"
        overrides = ["algorithm=hpt", f"model={model}", f"task={task}", f"hardware={hardware}", *more]
        architecture = compose_config(overrides).shape.architecture
        overrides.append(f"actor_rollout_ref.model.path={folder_of(tmp_path / model, model, architecture)}")
        overrides.append("++actor_rollout_ref.rollout.enable_sleep_mode=false")  # the one thing that vLLM refuses without a GPU
        node = OmegaConf.create(OmegaConf.to_container(compose_config(overrides).actor_rollout_ref, resolve=True))
        devices = os.environ["CUDA_VISIBLE_DEVICES"]
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)  # the server sets it, and nothing takes that back
        server = Server(node.rollout, node.model, RolloutMode.HYBRID, [], 0, 0, 1, 1, devices)
        asyncio.run(server.launch_server())
        return node.rollout, server.model_config.hf_config, server.engine_config

    return build


def rope(config: Any) -> float:
    """The rotary base; vLLM reads `rope_parameters`, which it makes of the names that transformers 4 uses."""
    parameters = getattr(config, "rope_parameters", None) or {}
    return float(parameters.get("rope_theta") or getattr(config, "rope_theta", None) or config.rotary_emb_base)


@pytest.mark.parametrize("hardware", HARDWARE)
@pytest.mark.parametrize("model", MODELS)
def test_the_engine_has_the_actors_positions(model: str, hardware: str, engine_config: Built) -> None:
    rollout, actor, engine = engine_config(model, hardware)
    found, wanted = engine.model_config.hf_config.get_text_config(), actor.get_text_config()
    assert rope(found) == rope(wanted)
    assert found.max_position_embeddings == wanted.max_position_embeddings
    assert engine.model_config.max_model_len == rollout.max_model_len <= found.max_position_embeddings
    if model in OWN:
        assert (rope(found), found.max_position_embeddings) == (40_000.0, 16_384), "the published values, not the folder's"


@OVERRIDDEN
@pytest.mark.parametrize("model", sorted(OWN))
def test_without_the_overrides_it_would_have_others(model: str, engine_config: Built) -> None:
    """The comparison above can fail: the engine reads the folder unless it is told otherwise."""
    without = ("actor_rollout_ref.rollout.engine_kwargs.vllm.hf_overrides=null", "actor_rollout_ref.rollout.max_model_len=4096")
    _, actor, engine = engine_config(model, "gpu_1", *without)
    found = engine.model_config.hf_config
    assert (rope(found), rope(actor)) == (10_000.0, 40_000.0)
    assert (found.max_position_embeddings, actor.max_position_embeddings) == (4096, 16_384)


@OVERRIDDEN
def test_log_probs_with_an_overridden_base_are_the_actors(tmp_path: Path, record_property: Any) -> None:
    """A random model of 40 positions and base 10,000, continued to position 90 as Qwen2.5-Math is beyond its 4096."""
    config = compose_config(["algorithm=hpt", "model=qwen2_5_math_7b", "task=openr1_math", "hardware=node_8gpu"])
    overrides = OmegaConf.to_container(config.actor_rollout_ref.rollout.engine_kwargs.vllm.hf_overrides, resolve=True)
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=64, hidden_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            intermediate_size=192, max_position_embeddings=40, rope_theta=10_000.0, tie_word_embeddings=False, eos_token_id=1,
        )
    )  # fmt: skip
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(6)  # attention that is nearly even would not show the base
    model.save_pretrained(tmp_path)
    prompt = torch.randint(3, 64, (50,)).tolist()
    arguments = (str(tmp_path), json.dumps(overrides), "96", json.dumps(prompt), str(RESPONSE))
    limits = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    ended = subprocess.run(
        [sys.executable, "-m", "tests.vllm.overridden_rope", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT,
        env={**os.environ, **limits, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-6000:]
    engine = json.loads(ended.stdout.splitlines()[-1])

    def difference(**changed: Any) -> float:
        """Largest |engine's log-prob - the actor's|, of a model that is loaded as verl loads it."""
        actor_config = AutoConfig.from_pretrained(tmp_path)
        update_model_config(actor_config, changed)
        actor = AutoModelForCausalLM.from_pretrained(tmp_path, config=actor_config, dtype=torch.float32)
        with torch.inference_mode():
            logits = actor(torch.tensor([prompt + engine["sampled"]])).logits[0, len(prompt) - 1 : -1]
        chosen = logits.log_softmax(-1).gather(-1, torch.tensor(engine["sampled"]).unsqueeze(-1)).squeeze(-1)
        return float((chosen - torch.tensor(engine["log_probs"])).abs().max())

    from verl.utils.model import update_model_config

    override = OmegaConf.to_container(config.actor_rollout_ref.model.override_config, resolve=True)
    found, without = difference(**override), difference()
    record_property("log-prob difference", f"{found:.1e} with the overrides, {without:.1e} without")
    print(f"log-prob difference: {found:.1e} with the overrides of the actor, {without:.1e} without")
    assert len(engine["sampled"]) == RESPONSE and found < LOG_PROB_BOUND < 100 * LOG_PROB_BOUND < without

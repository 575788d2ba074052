"""A FusionActor on a tiny random model in one process, and batches to update it with."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import OmegaConf
from transformers import Qwen2Config, Qwen2ForCausalLM
from verl import DataProto
from verl.utils.config import omega_conf_to_dataclass

from unify_posttrain import cpu_compat
from unify_posttrain.config import compose_config
from unify_posttrain.experience.rows import object_column
from unify_posttrain.workers.process_group import use_one_thread

PROMPT, RESPONSE, VOCABULARY = 6, 10, 50
BASE = (
    "actor_rollout_ref.model.path=unused",
    f"data.max_prompt_length={PROMPT}",
    f"data.max_response_length={RESPONSE}",
    "data.train_batch_size=8",
    "actor_rollout_ref.actor.ppo_mini_batch_size=8",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=64",
    "actor_rollout_ref.rollout.n=4",
    "actor_rollout_ref.actor.grad_clip=1e9",
    "fusion.max_grad_norm=null",
    "fusion.skip_zero_advantage=false",  # what the model sees is then all of a batch; test_skipping.py sets it
)


class RecordingSteps:
    """Keeps the gradient of every optimizer step instead of taking it, so that each is a function of the batch alone."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.clips: list[float] = []

    def _clip_and_step(self, grad_clip):
        def full(gradient):
            return gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient.clone()

        named = {name: full(p.grad) for name, p in self.actor_module.named_parameters() if p.grad is not None}
        self.gradients.append(named)
        self.clips.append(grad_clip)
        norm = torch.sqrt(sum(g.double().square().sum() for g in named.values()))
        return float(norm), True


def start_group(rank: int = 0, world: int = 1, meeting: str | None = None) -> None:
    """A process group, once per process: gloo, and NCCL for what lies on a GPU. Ranks meet in a file, so that no port can be
    taken."""
    cpu_compat.install()
    use_one_thread()
    if not dist.is_initialized():
        meeting = meeting or tempfile.mktemp()
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, init_method=f"file://{meeting}", rank=rank, world_size=world)


def make_model() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=48, max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).float()


@cache
def composed_actor(*overrides: str):
    return OmegaConf.to_container(compose_config([*BASE, *overrides]).actor_rollout_ref.actor, resolve=True)


class Built:
    """verl's objects of configuration nodes. To build one costs more than an update with it, so it is done once for each node."""

    def __init__(self) -> None:
        self._kept: dict[bytes, bytes] = {}

    def __call__(self, node: Mapping[str, Any], settings: Mapping[str, Any] | None = None) -> Any:
        """Of a node with `settings` (dotted keys) in it; the caller's own."""
        key = pickle.dumps((node, settings))
        if key not in self._kept:
            composed = OmegaConf.create(dict(node))
            for name, value in (settings or {}).items():
                OmegaConf.update(composed, name, value)
            self._kept[key] = pickle.dumps(omega_conf_to_dataclass(composed))
        return pickle.loads(self._kept[key])


built = Built()


def make_actor(*overrides: str, module=None, recording: bool = True, settings: Mapping[str, Any] | None = None):
    """`settings` are dotted keys of the actor's node from which nothing is derived: to compose them anew costs as much as ten
    updates."""
    start_group()
    actor_config = built(composed_actor(*overrides), settings)
    module = make_model() if module is None else module
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    from unify_posttrain.workers.fusion_actor import FusionActor  # verl 0.7.1 has it

    class RecordingActor(RecordingSteps, FusionActor):
        """On verl's DataParallelPPOActor."""

    return (RecordingActor if recording else FusionActor)(actor_config, module, optimizer)


def make_batch(rows: int, demonstrations: int, padding: int = 0, seed: int = 0, hints: int = 0) -> DataProto:
    """Random rows with every stream that a term can name: `demonstrations` of them off-policy (first), `padding` silent (last),
    `hints` of the rollouts begin with up to two tokens of a hint; lengths from 1 to T."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, RESPONSE + 1, (rows,), generator=generator)
    prompts = torch.randint(1, PROMPT + 1, (rows,), generator=generator)
    input_ids = torch.randint(3, VOCABULARY, (rows, PROMPT + RESPONSE), generator=generator)
    position = torch.arange(PROMPT + RESPONSE).expand(rows, -1)
    attention = ((position >= PROMPT - prompts[:, None]) & (position < PROMPT + lengths[:, None])).long()
    response_mask = attention[:, PROMPT:].clone()
    kinds = torch.zeros(rows, dtype=torch.long)
    kinds[:demonstrations] = 1
    if padding:
        kinds[-padding:] = 2
        response_mask[-padding:] = 0
    demo = kinds == 1
    advantage = torch.randn(rows, 1, generator=generator)
    hint = torch.zeros(rows, RESPONSE, dtype=torch.bool)
    hint[demonstrations : demonstrations + hints, :2] = response_mask[demonstrations : demonstrations + hints, :2].bool()
    response_mask[hint] = 0
    solved = (torch.rand(rows, generator=torch.Generator().manual_seed(seed)) < 0.5).float()
    tensors = {
        "input_ids": input_ids * attention,
        "responses": (input_ids * attention)[:, PROMPT:],
        "attention_mask": attention,
        "position_ids": (attention.cumsum(-1) - 1).clamp(min=0),
        "response_mask": response_mask,
        "prefix_mask": response_mask.bool() & demo[:, None] | hint,
        "old_log_probs": -4 + torch.randn(rows, RESPONSE, generator=generator),
        "ref_log_prob": -4 + torch.randn(rows, RESPONSE, generator=generator),
        "advantages": advantage * response_mask,
        # As the plan gives them: whatever a row is; which terms train it is a matter of its tokens.
        "rl_weight": torch.where(kinds != 2, torch.rand(rows, generator=generator) + 0.5, 0.0),
        "off_weight": torch.where(kinds != 2, 0.5, 0.0),
        "sft_weight": torch.where(kinds != 2, 1.0, 0.0),
        "solved": solved,
        "unsolved": 1 - solved,
        "scores": 2 * solved - 1,
        "batch_entropy": torch.full((rows,), 1.5),
        "uniforms": torch.rand(rows, RESPONSE, generator=torch.Generator().manual_seed(seed)),
        "target_probs": torch.rand(rows, RESPONSE, generator=torch.Generator().manual_seed(seed)),
    }
    uids = object_column([f"group-{row // 4}" for row in range(rows)])
    meta = {"temperature": 1.0, "mini_batches": 1, "term_scales": {"rl": 0.75, "off": 0.5, "sft": 0.25}, "pad_token_id": 0}
    return DataProto.from_dict(tensors=tensors, non_tensors={"uid": uids}, meta_info=meta)


def gradient_distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Relative distance of two gradients in the 2-norm over all parameters."""
    difference = sum((a[name].double() - b[name].double()).square().sum() for name in a)
    size = sum(a[name].double().square().sum() for name in a)
    return float((difference / size).sqrt())

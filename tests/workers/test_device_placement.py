"""On a GPU the workers' tensors lie on one device, and the host waits for it at known places. Both are held here, without a GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from verl import DataProto
from verl.workers.actor import DataParallelPPOActor

from unify_posttrain.algorithms import ALGORITHMS
from unify_posttrain.config import compose_config
from unify_posttrain.objective import Members, MiniBatchUpdate
from unify_posttrain.workers.forward import ChunkedForward
from unify_posttrain.workers.fusion_actor import FusionActor
from unify_posttrain.workers.optimizers import load_moments, save_moments

from .actor_kit import BASE, gradient_distance, make_actor, make_model, start_group
from .critic_kit import make_critic, make_value_batch, make_value_model
from .device_stand_in import NAME, Device, DeviceTensor, WrongDeviceError, present
from .packed_kit import FEW, TOKENS, TOLERANCE, assert_same, attended, for_log_probs, outcome, rows_of_every_kind, updates
from .packed_kit import Path as Layout

pytestmark = pytest.mark.usefixtures("flash_attn")

PACKED, CHUNKED = Layout(dynamic=True), Layout(chunk=7, dynamic=True)


@pytest.fixture
def device() -> Iterator[Device]:
    start_group()
    with present() as found:
        yield found


def run(actor: FusionActor) -> Counter[str]:
    """Every update of the algorithm, and verl's log-prob stage. Returns how many forward passes there were, how many of them with a
    gradient, how many of these with entropies; updates, optimizer steps, and mini-batches that were empty."""
    numbers: Counter[str] = Counter()

    def count(_module: torch.nn.Module, _args: object) -> None:
        numbers["forward"] += 1
        numbers["trained"] += torch.is_grad_enabled()
        numbers["entropies"] += torch.is_grad_enabled() and actor.needs_entropy

    actor.actor_module.register_forward_pre_hook(count)
    for metrics in updates(actor):
        numbers["updates"] += 1
        numbers["steps"] += int(metrics["fusion/optimizer_steps"])
        numbers["empty"] += int(metrics["fusion/empty_updates"])
    actor.compute_log_prob(for_log_probs(rows_of_every_kind(), dynamic=True), calculate_entropy=True)
    return numbers


def soon(name: str, layout: Layout) -> bool:
    """A few methods; the others are left to the slow tests."""
    return name in FEW and layout.chunk is not None


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        pytest.param(name, layout, id=f"{name}-{layout.chunk}", marks=() if soon(name, layout) else pytest.mark.slow)
        for name in sorted(ALGORITHMS)
        for layout in (CHUNKED, PACKED)
    ],
)
def test_everything_is_on_the_device_and_the_host_waits_where_it_must(name: str, layout: Layout, device: Device) -> None:
    """No operation mixes devices, or it would have raised. Of the places to wait none is new:

    per mini-batch   its counts go to the ranks, come back, and, unless it is empty, stand beside its losses; before that, the ranks
                     agree on how many rows they compute
    per step         the gradient's norm decides whether it is taken
    per update       the metrics come back
    per micro-batch  by chunks only, before the model runs: which tokens are attended, and which of them are read; and once before
                     the backward pass, if there are entropies: whether they have a gradient
    """
    settings = {**layout.settings, "fusion.skip_zero_advantage": True}
    actor = make_actor(f"algorithm={name}", module=make_model().to(NAME), recording=False, settings=settings)
    numbers = run(actor)
    steps = numbers["steps"]
    demonstrations_alone = all(term.members.tokens == "demo" for term in actor.terms)  # too few of them here for a second one
    assert steps > 0 and (numbers["trained"] > steps or demonstrations_alone), "several micro-batches to a step"
    expected = {
        "update.py largest _to_copy": steps + numbers["empty"],
        "update.py largest _local_scalar_dense": steps + numbers["empty"],
        "update.py total _to_copy": 2 * (steps + numbers["empty"]) + numbers["updates"],
        "update.py _counts_for _to_copy": steps,
        "actor_update.py clip_gradient _local_scalar_dense": steps,
    }
    if layout.chunk:
        expected |= {"forward.py _in_layout nonzero": numbers["forward"], "output_head.py on nonzero": numbers["forward"]}
        if numbers["entropies"]:
            expected["log_probs.py backward _local_scalar_dense"] = numbers["entropies"]
    assert dict(device.waits) == expected


@pytest.mark.parametrize(
    ("name", "layout"),
    [("hpt", Layout(packed=False)), *((name, Layout(chunk=7, dynamic=True, checkpointing=True)) for name in FEW)],
)
def test_the_device_changes_nothing(name: str, layout: Layout) -> None:
    """The stand-in computes: the outcome is that of the CPU, up to another kernel of attention."""
    expected = outcome(name, layout)
    with present():
        found = outcome(name, layout, NAME)
    assert_same(found, expected)


# The other models, and what is kept of an optimizer


@pytest.mark.parametrize("chunk", [None, 7])
def test_the_reference_policy_is_on_the_device(chunk: int | None, device: Device) -> None:
    config = OmegaConf.to_container(compose_config([*BASE, "algorithm=hpt"]).actor_rollout_ref.ref, resolve=True)
    ref_config = OmegaConf.create({**config, "use_remove_padding": True, "use_torch_compile": False})
    module = make_model().to(NAME)
    policy = DataParallelPPOActor(ref_config, module) if chunk is None else ChunkedForward(ref_config, module, None, chunk)
    batch = for_log_probs(rows_of_every_kind(), dynamic=True)
    log_probs = policy.compute_log_prob(batch)["log_probs"]
    assert isinstance(log_probs, DeviceTensor) and bool((attended(batch, {"": log_probs})[""] < 0).all())
    waits = {"forward.py _in_layout nonzero", "output_head.py on nonzero"} if chunk else set()
    assert set(device.waits) == waits and len(set(device.waits.values())) <= 1


def test_the_critic_is_on_the_device() -> None:
    flags = ("critic.model.use_remove_padding=true", "critic.use_dynamic_bsz=true", f"critic.ppo_max_token_len_per_gpu={TOKENS}")
    halves = "critic.ppo_mini_batch_size=6"
    recording = make_critic(*flags, halves)
    expected = recording.update_critic(make_value_batch(12))
    with present() as device:
        critic = make_critic(*flags, halves, module=make_value_model().to(NAME))
        assert critic.update_critic(make_value_batch(12)) == pytest.approx(expected, rel=1e-5)
        gradients = [{name: gradient.cpu() for name, gradient in step.items()} for step in critic.gradients]
        # Per mini-batch its counts to the ranks and back, and the norm; per update the metrics back; per micro-batch nothing.
        assert dict(device.waits) == {
            "critic_update.py update_critic _local_scalar_dense": 2,
            "update.py total _to_copy": 2 * 2 + 1,
        }
        stepping = make_critic(*flags, halves, module=make_value_model().to(NAME), record=False)
        assert stepping.update_critic(make_value_batch(12))["critic/grad_norm"] > 0
        silent = make_value_batch(12)
        silent.batch["response_mask"][:] = 0
        assert set(critic.update_critic(silent).values()) == {0.0}
        values = critic.compute_values(for_log_probs(make_value_batch(12), dynamic=True))
        assert isinstance(values, DeviceTensor) and bool(values.isfinite().all())
    for one, two in zip(gradients, recording.gradients, strict=True):
        assert gradient_distance(one, two) < TOLERANCE


def test_moments_return_to_the_device(device: Device, tmp_path: Path) -> None:
    def parameters() -> list[torch.nn.Parameter]:
        torch.manual_seed(0)
        return [torch.nn.Parameter(torch.randn(3, 2).to(NAME))]

    def step(optimizer: torch.optim.Optimizer, times: int) -> Tensor:
        (parameter,) = optimizer.param_groups[0]["params"]
        for _ in range(times):
            parameter.grad = torch.ones_like(parameter) * 0.5
            optimizer.step()
        return parameter.detach().cpu()

    whole, first, second = (torch.optim.AdamW(parameters(), lr=0.1) for _ in range(3))
    expected = step(whole, 3)
    step(first, 2)
    save_moments(first, tmp_path / "moments.safetensors")
    with torch.no_grad():
        second.param_groups[0]["params"][0].copy_(first.param_groups[0]["params"][0])
    load_moments(second, tmp_path / "moments.safetensors")
    assert torch.equal(step(second, 1), expected)


# The check has power


def on_device(*shape: int) -> Tensor:
    return torch.ones(shape).to(NAME)


def add_in_place(number: Tensor, other: Tensor) -> None:
    number += other


REFUSED: dict[str, Callable[[], object]] = {
    "sum": lambda: on_device(3) + torch.ones(3),
    "matrix product": lambda: on_device(3, 3) @ torch.ones(3, 3),
    "a list of tensors": lambda: torch.cat([on_device(3), torch.ones(3)]),
    "numbers in a list": lambda: torch.stack([on_device(), torch.ones(())]),
    "the CPU indexed by the device": lambda: torch.ones(3)[on_device(2).long()],
    "the CPU masked by the device": lambda: torch.ones(3)[on_device(3).bool()],
    "an index to gather": lambda: on_device(3).gather(0, torch.zeros(2, dtype=torch.long)),
    "a mask": lambda: torch.where(torch.ones(3).bool(), on_device(3), 0.0),
    "values for an index": lambda: on_device(3).index_put_((on_device(2).long(),), torch.ones(2)),
    "numbers of the CPU added to": lambda: add_in_place(torch.zeros(()), on_device()),
    "results for the CPU": lambda: torch.add(on_device(3), 1, out=torch.empty(3)),
    "numpy": lambda: on_device(3).numpy(),
    "the backward pass": lambda: (on_device(3).requires_grad_() * on_device(3)).backward(torch.ones(3)),
    "a module of the CPU": lambda: torch.nn.Linear(3, 1)(on_device(3)),
}
ALLOWED: dict[str, tuple[Callable[[], object], str | None]] = {  # with what the host waits for
    "arithmetic": (lambda: (on_device(3) * 2 + 1).sum().sqrt().expand(4).clone(), None),
    "a number of the CPU": (lambda: on_device(3) * torch.tensor(2.0), None),
    "a number for a mask": (lambda: on_device(3).masked_fill(on_device(3).bool(), torch.tensor(0.0)), None),
    "made beside another": (lambda: on_device(3) + torch.zeros(3, device=on_device().device), None),
    "a slice": (lambda: on_device(3)[1:], None),
    "an index of the device": (lambda: on_device(3)[on_device(2).long()], None),
    "not waited for": (lambda: on_device(3).to("cpu", non_blocking=True), None),
    "an index of the CPU": (lambda: on_device(3)[torch.zeros(2, dtype=torch.long)], "index"),
    "a mask as index": (lambda: on_device(3)[on_device(3).bool()], "index"),
    "numbers of Python": (lambda: on_device(3) + torch.tensor([1.0, 2.0, 3.0], device=on_device().device), "_to_copy"),
    "numbers of Python beside another": (lambda: on_device(2) + on_device(3).new_tensor([1.0, 2.0]), "_to_copy"),
    "item": (lambda: on_device().item(), "_local_scalar_dense"),
    "float": (lambda: float(on_device()), "_local_scalar_dense"),
    "bool": (lambda: bool(on_device(3).any()), "_local_scalar_dense"),
    "tolist": (lambda: on_device(3).tolist(), "_to_copy"),
    "back": (lambda: on_device(3).cpu(), "_to_copy"),
    "into the CPU": (lambda: torch.empty(3).copy_(on_device(3)), "copy_"),
    "nonzero": (lambda: on_device(3).nonzero(), "nonzero"),
    "equal": (lambda: torch.equal(on_device(3), on_device(3)), "equal"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cuda_refuses_is_refused(case: str) -> None:
    with present(), pytest.raises(WrongDeviceError):
        REFUSED[case]()


@pytest.mark.parametrize("case", ALLOWED)
def test_what_cuda_allows_is_allowed_and_waits_are_counted(case: str) -> None:
    do, waits = ALLOWED[case]
    with present(Path(__file__).parent) as device:
        do()
    own = {site.split()[-1]: times for site, times in device.waits.items() if " on_device " not in site}
    assert own == ({} if waits is None else {waits: 1})


def test_a_tensor_of_the_device_is_nothing_outside() -> None:
    with present():
        tensor = on_device(3)
    with pytest.raises(WrongDeviceError):
        tensor + 1


def _batch_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DataProto, "to", lambda self, _device: self)


def _labels_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    original = ChunkedForward._in_layout
    monkeypatch.setattr(ChunkedForward, "_in_layout", lambda self, *args: tuple(each.cpu() for each in original(self, *args)))


def _mask_is_made_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Members.mask
    monkeypatch.setattr(Members, "mask", lambda self, tensors: original(self, tensors).cpu())


def _shares_are_brought_back(monkeypatch: pytest.MonkeyPatch) -> None:
    original = MiniBatchUpdate.loss

    def loss(self: MiniBatchUpdate, *args: object) -> Tensor:
        value = original(self, *args)
        self.shares["total_loss"] = self.shares["total_loss"].cpu()
        return value

    monkeypatch.setattr(MiniBatchUpdate, "loss", loss)


@pytest.mark.parametrize("damage", [_batch_stays, _labels_stay, _mask_is_made_on_the_cpu, _shares_are_brought_back])
def test_a_tensor_left_behind_in_the_update_is_noticed(
    damage: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch, device: Device
) -> None:
    damage(monkeypatch)
    actor = make_actor("algorithm=hpt", module=make_model().to(NAME), settings=CHUNKED.settings)
    with pytest.raises(WrongDeviceError):
        run(actor)

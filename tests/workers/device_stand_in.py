"""A device that is not there: tensors that say they are on it, and every operation held to what CUDA would demand.

`Device` watches torch's dispatcher, where each operation arrives as its kernel would get it, those of the backward pass and of
optimizers too. A tensor "on the device" is a `DeviceTensor`: its `device` is not the CPU, so that code which asks for it, or makes
new tensors beside it, does as on a GPU; its numbers lie in an ordinary tensor, so that everything can be computed and read.

torch's name for the device is `meta`. A tensor that says `cuda` cannot take part in a backward pass without a driver, because
autograd asks for its stream. FakeTensorMode has the same limit, and no numbers: the packed path asks which tokens are attended.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

import unify_posttrain

NAME = "meta"
PACKAGE = Path(unify_posttrain.__file__).parent
aten = torch.ops.aten
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
# Beside pointwise operations these take a number (a 0-dim tensor) from the CPU.
TAKE_NUMBERS = {aten.fill, aten.fill_, aten.masked_fill, aten.masked_fill_, aten.index_put, aten.index_put_, aten._index_put_impl_}
# The host needs a number of the device, or the size of a result that depends on the numbers, before it can go on.
WAIT = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
# Files in which nobody asks for anything: torch itself, and what only passes a request on.
PASSED_OVER = ("/torch/", "/tensordict/", "/contextlib.py", Path(__file__).name)


class WrongDeviceError(RuntimeError):
    """What CUDA would have refused."""


class DeviceTensor(Tensor):
    """A tensor on the device; `numbers` are its values, on the CPU."""

    numbers: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, numbers: Tensor) -> DeviceTensor:
        return torch.Tensor._make_wrapper_subclass(
            cls, numbers.size(), strides=numbers.stride(), storage_offset=numbers.storage_offset(), dtype=numbers.dtype, device=NAME
        )

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise WrongDeviceError(f"{func} on a tensor of the device, outside of `Device`")

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise WrongDeviceError("numpy() of a tensor on the device; use .cpu() first")

    __array__ = numpy

    def new_tensor(self, data: Any, **options: Any) -> Tensor:
        return torch.tensor(data, **{"dtype": self.dtype, "device": self.device, **options})

    def tolist(self) -> Any:
        return self.cpu().tolist()  # torch refuses subclasses; CUDA copies


class Device(TorchDispatchMode):
    """While entered: operations on `DeviceTensor`s are computed, checked and, where the host would wait, counted.

    Attributes:
        waits: "file function operation", of files under `folder` -> how often the host waited there for the device.

    Raises (from the operation itself):
        WrongDeviceError: tensors of device and CPU meet in one operation. As on CUDA, copies may cross, numbers (0-dim) of the CPU
            may meet tensors of the device in pointwise operations, and indices of the CPU may pick from one.
    """

    def __init__(self, folder: Path = PACKAGE) -> None:
        super().__init__()
        self.folder = folder
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = _tensors((*args, *kwargs.values()))
        on_device = any(isinstance(each, DeviceTensor) for each in tensors)
        if _waits(func, args, kwargs, tensors, on_device) and (site := self._site()):
            self.waits[f"{site} {func.overloadpacket.__name__}"] += 1
        if kwargs.get("device") is not None:
            on_device, kwargs["device"] = torch.device(kwargs["device"]).type == NAME, torch.device("cpu")
        result = func(
            *_mapped(DeviceTensor, _numbers, args), **{name: _mapped(DeviceTensor, _numbers, each) for name, each in kwargs.items()}
        )
        if func.overloadpacket is aten.copy_:
            return args[0]
        if not on_device:
            return result
        return return_and_correct_aliasing(func, args, kwargs, _mapped(Tensor, DeviceTensor, result))

    def _site(self) -> str | None:
        """Innermost "file function" of the code that asked, if it is one of the folder."""
        frame = sys._getframe(2)
        while frame is not None and any(part in frame.f_code.co_filename for part in PASSED_OVER):
            frame = frame.f_back
        if frame is None or self.folder not in Path(frame.f_code.co_filename).parents:
            return None
        return f"{Path(frame.f_code.co_filename).name} {frame.f_code.co_name}"


def _numbers(tensor: DeviceTensor) -> Tensor:
    return tensor.numbers


def _mapped(kind: type, change: Callable[[Any], Any], value: Any) -> Any:
    """Arguments and results of operations are nested in lists and tuples alone: torch's pytrees take half of the time for that."""
    if isinstance(value, kind):
        return change(value)
    return type(value)([_mapped(kind, change, each) for each in value]) if isinstance(value, list | tuple) else value


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for each in value for tensor in _tensors(each)] if isinstance(value, list | tuple) else []


@cache
def _names(func: Any) -> list[str]:
    return [argument.name for argument in func._schema.arguments]


def _waits(func: Any, args: Any, kwargs: dict[str, Any], tensors: list[Tensor], on_device: bool) -> bool:
    """Whether the host waits for the device. Refuses what CUDA refuses."""
    given = {**dict(zip(_names(func), args, strict=False)), **kwargs}
    if func.overloadpacket in (aten.copy_, aten._to_copy):
        target = given["self"].device if func.overloadpacket is aten.copy_ else given.get("device")
        crosses = target is not None and tensors[-1].device.type != torch.device(target).type
        return crosses and not given.get("non_blocking")
    if not on_device:
        return False
    brought_over = _meet(func, given, tensors)
    if func.overloadpacket in INDEXING:  # their size depends on the numbers of masks alone
        return brought_over or any(each.dtype in (torch.bool, torch.uint8) for each in _tensors(given["indices"]))
    return brought_over or bool(WAIT & set(func.tags))


def _meet(func: Any, given: dict[str, Any], tensors: list[Tensor]) -> bool:
    """Refuse what CUDA refuses. Returns whether something of the CPU has to be brought over first.

    Raises:
        WrongDeviceError: see `Device`.
    """
    here = [each for each in tensors if not isinstance(each, DeviceTensor)]
    if not here:
        return False
    if any(each.is_meta for each in here):
        raise WrongDeviceError(f"{func}: a tensor was made on the device unseen, and so without numbers; teach `present` that way")
    if func.overloadpacket in INDEXING and isinstance(given["self"], DeviceTensor):
        indices = {id(each) for each in _tensors(given["indices"])}
        here = [each for each in here if id(each) not in indices]
        if not here:
            return True
    written = {id(given.get(each.name)) for each in func._schema.arguments if each.alias_info and each.alias_info.is_write}
    takes_numbers = torch.Tag.pointwise in func.tags or func.overloadpacket in TAKE_NUMBERS
    if takes_numbers and all(each.ndim == 0 and id(each) not in written for each in here):
        return False
    described = ", ".join(f"{tuple(each.shape)} on {'the device' if isinstance(each, DeviceTensor) else 'CPU'}" for each in tensors)
    raise WrongDeviceError(f"{func}: {described}")


def _made(make: Callable[..., Tensor], data: Any, **options: Any) -> Tensor:
    """`make(data, device=…)` as on CUDA: made on the CPU, then copied."""
    device = options.pop("device", None)
    made = make(data, **options)
    return made if device is None else made.to(device)


@contextmanager
def present(folder: Path = PACKAGE) -> Iterator[Device]:
    """The device is verl's current one: workers move their batches to it, tensors made for it are of it.

    Three things that CUDA has and `meta` lacks are filled in: autocast, which float32 switches off anyway, a choice of kernels for
    attention, and tensors made of Python's numbers, which the dispatcher does not see.
    """
    autocast, enabled = torch.autocast, torch.is_autocast_enabled
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cpu, "current_device", lambda: torch.device(NAME))
        patch.setattr(torch, "is_autocast_enabled", lambda *device: device != (NAME,) and enabled(*device))
        patch.setattr(
            torch,
            "autocast",
            lambda device_type, **kwargs: contextlib.nullcontext() if device_type == NAME else autocast(device_type, **kwargs),
        )
        for make in (torch.tensor, torch.as_tensor):
            patch.setattr(torch, make.__name__, partial(_made, make))
        with sdpa_kernel(SDPBackend.MATH), Device(folder) as device:
            yield device

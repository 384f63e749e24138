"""Tensors of the emulated device: they say ``cuda:0``, and what is done with them is enqueued.

A :class:`DeviceTensor` wraps a tensor on the host, its memory. Operations reach :func:`dispatch`, below autograd and
after torch has taken composite ones apart, just as they would reach the kernels of CUDA.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from device.machine import Machine, Stream, active
from device.memory import Block, spoil

_READS_BACK = {
    "_local_scalar_dense",
    "equal",
    "is_nonzero",
    "masked_select",
    "nonzero",
    "_unique2",
    "unique_consecutive",
    "unique_dim",
    "bincount",
}
"""Operations whose result, or its size, the host has to know."""

_CHANGES_VIEW = {"squeeze_", "unsqueeze_", "transpose_", "t_", "as_strided_", "swapaxes_"}
"""They change how a tensor looks at its memory, which the host sees at once, and not the memory."""

_EMPTY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
_MATH = 0
"""Attention without a fused kernel: what torch chooses where it does not know the properties of the device."""

_TAKES_HOST_INDICES = {"index", "index_put", "index_put_", "_index_put_impl_"}


class DeviceTensor(Tensor):
    """A tensor on the device.

    Attributes
    ----------
    raw
        Its memory, which only the scheduler may read and write.
    block
        The lifetime of that memory, shared by all views.
    """

    raw: Tensor
    block: Block

    @staticmethod
    def __new__(cls, raw: Tensor, block: Block | None = None, *, requires_grad: bool = False) -> Any:
        if block is None:  # accelerate makes a parameter from a tensor by the type of the one before
            return torch.nn.Parameter(raw, requires_grad)
        out = Tensor._make_wrapper_subclass(
            cls,
            raw.shape,
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=torch.device("cuda", block.memory.index),
        )
        out.raw, out.block = raw, block
        return out

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: DeviceTensor) -> None:
        Tensor.data.__set__(self, value)
        self.raw, self.block = value.raw, value.block

    def record_stream(self, stream: Stream) -> None:
        active().call("record_stream")
        self.block.record_stream(stream)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def data_ptr(self) -> int:
        return self.raw.data_ptr()

    def untyped_storage(self) -> Any:
        return self.raw.untyped_storage()

    def is_pinned(self, device: Any = None) -> bool:
        return False

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copy = self.detach().clone().requires_grad_(self.requires_grad)
        if getattr(self, "_is_param", False):
            copy._is_param = True
        return memo.setdefault(id(self), copy)

    def __repr__(self) -> str:
        return f"DeviceTensor({tuple(self.shape)}, {self.dtype}, {self.device})"


class Mode(TorchDispatchMode):
    """Brings operations here that have no tensor of the device: new ones, and copies to it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})


@contextlib.contextmanager
def visible() -> Iterator[None]:
    """Inside, this thread sees the device: modes of torch belong to one thread."""
    lifts = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(
        True
    )  # torch.tensor(..., device="cuda") makes a tensor on the host and moves it
    try:
        with Mode():
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(lifts)


def is_pinned(tensor: Tensor) -> bool:
    """Whether a host tensor is in pinned memory; its storage knows, whatever view of it this is."""
    return getattr(tensor.untyped_storage(), "pinned", False)


def pin(tensor: Tensor) -> Tensor:
    tensor.untyped_storage().pinned = True
    return tensor


def on_device(host: Tensor, device: int = 0) -> DeviceTensor:
    """A copy of a host tensor, which is there at once."""
    machine = active()
    raw = host.detach().clone()
    return DeviceTensor(raw, machine.memory[device].allocate(raw, machine.defaults[device]))


def dispatch(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Do one operation of torch as a device would: at once, only what the host sees of it."""
    tensors = _tensors(args, kwargs)
    devices = {t.device.index for t in tensors if isinstance(t, DeviceTensor)}
    wanted = kwargs.get("device")
    wanted = None if wanted is None else torch.device(wanted)
    if not devices and (wanted is None or wanted.type != "cuda"):
        return _on_host(func, args, kwargs)
    machine, name = active(), func._schema.name.partition("::")[2]
    if name == "is_pinned":
        return False
    if wanted is not None and wanted.type not in ("cpu", "cuda"):  # meta
        return func(*_mapped(_raw_or_self, args), **kwargs)
    if name == "_to_copy" and wanted is not None:
        return _moved(machine, func, args, kwargs, wanted)
    if name == "copy_":
        return _copied(machine, func, *args, **kwargs)
    if len(devices) > 1:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {sorted(devices)} ({name})"
        )
    if wanted is not None:
        kwargs = {**kwargs, "device": torch.device("cpu"), "pin_memory": False}
        if wanted.type == "cpu":
            return func(*_mapped(_raw_or_self, args), **kwargs)
        if devices and devices != {machine.index_of(wanted)}:
            raise NotImplementedError(f"{name} of one device on another")
    device = devices.pop() if devices else machine.index_of(wanted)
    return _Call(machine, func, name, device).run(args, kwargs)


class _Call:
    """One operation on one device, enqueued on the stream that is current there."""

    def __init__(self, machine: Machine, func: Any, name: str, device: int) -> None:
        self.machine, self.func, self.name, self.device = machine, func, name, device
        self.stream = machine.current_stream(device)

    def run(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        func, name = self.func, self.name
        if name in ("resize_", "set_"):
            raise NotImplementedError(f"{name} is not emulated")
        raw_args, raw_kwargs = _mapped(self._memory_of, args), _mapped(self._memory_of, kwargs)
        if self._reads_back(args):
            self.machine.forbid(name)
            self.machine.wait(self.stream.mark())
            result = func(*raw_args, **raw_kwargs)
            return args[0] if func._schema.is_mutable else self._wrapped(result, {})
        if name == "_fused_sdp_choice":
            return _MATH
        if name in _CHANGES_VIEW:
            view = func(raw_args[0].detach(), *raw_args[1:], **raw_kwargs)
            args[0].data = DeviceTensor(view, args[0].block)
            return args[0]
        work: Callable[[], Any] = functools.partial(func, *raw_args, **raw_kwargs)
        if torch.Tag.nondeterministic_seeded in func.tags and name.partition("_")[0] in _RANDOM:
            work = self._drawn(work, args, kwargs)
        if func._schema.is_mutable:
            self.stream.enqueue(work)
            return kwargs.get("out", args[0])
        # What the host sees at once: shapes, strides, views. The values of this call mean nothing.
        result = work()
        owners = {t.raw.untyped_storage()._cdata: t.block for t in _tensors(args, kwargs) if _is_device(t)}
        outputs = _tensors((result,), {})
        if all(out.untyped_storage()._cdata in owners for out in outputs):
            return self._wrapped(result, owners)
        wrapped = self._wrapped(result, owners)
        for out in outputs:
            spoil(out)
        if name not in _EMPTY:
            self.stream.enqueue(functools.partial(_write, outputs, work))
        return wrapped

    def _memory_of(self, value: Any) -> Any:
        """The memory of a device's tensor; a single number on the host is read now, as the argument of a kernel."""
        if isinstance(value, DeviceTensor):
            return value.raw
        if value.dim() == 0:
            return value.clone()
        if self.name in _TAKES_HOST_INDICES:
            self.machine.forbid(f"{self.name} by an index on the host")
            return value.clone()
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, cuda and cpu ({self.name})"
        )

    def _reads_back(self, args: Sequence[Any]) -> bool:
        if self.name in ("index", "index_put", "index_put_"):
            return any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1])
        if self.name == "repeat_interleave":
            return True
        return self.name in _READS_BACK

    def _wrapped(self, result: Any, owners: dict[int, Block]) -> Any:
        """Tensors of the device: views in the block of what they view, others in a new one."""

        def wrap(out: Tensor) -> Tensor:
            place = out.untyped_storage()._cdata
            if place not in owners:
                owners[place] = self.machine.memory[self.device].allocate(out, self.stream)
            return DeviceTensor(out, owners[place])

        return _mapped(wrap, (result,))[0]

    def _drawn(self, work: Callable[[], Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Callable[[], Any]:
        """Random numbers are drawn when the host asks for them: the order of the streams does not change them."""
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type != "cuda":
            raise RuntimeError(f"Expected a 'cuda' device type for generator but found '{generator.device.type}'")
        self.machine.forbid(f"{self.name}: random numbers in a capture are not emulated")
        if not self.func._schema.is_mutable:
            values = work()
            return lambda: values.clone()
        target = args[0].raw
        values = self.func(torch.empty_like(target), *args[1:], **kwargs)
        return lambda: target.copy_(values)


_RANDOM = {"normal", "uniform", "bernoulli", "rand", "randn", "randint", "randperm", "exponential", "multinomial"}


def _write(outputs: list[Tensor], work: Callable[[], Any]) -> None:
    for out, value in zip(outputs, _tensors((work(),), {}), strict=True):
        out.copy_(value)


def _on_host(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """An operation of the CPU. Some of them are about pinned memory."""
    name = func._schema.name
    if name == "aten::_pin_memory":
        return pin(args[0].clone())
    if name == "aten::is_pinned":
        return is_pinned(args[0])
    if kwargs.get("pin_memory"):
        out = func(*args, **{**kwargs, "pin_memory": False})
        if name.startswith("aten::empty"):
            spoil(out)
        return pin(out)
    return func(*args, **kwargs)


def _moved(machine: Machine, func: Any, args: Sequence[Any], kwargs: dict[str, Any], wanted: torch.device) -> Tensor:
    """``Tensor.to``: from the host, to the host, on one device or between two."""
    source: Tensor = args[0]
    options = {key: value for key, value in kwargs.items() if key not in ("device", "non_blocking", "pin_memory")}
    options["device"] = torch.device("cpu")
    non_blocking = kwargs.get("non_blocking", False)
    to = None if wanted.type == "cpu" else machine.index_of(wanted)
    if isinstance(source, DeviceTensor) and to == source.device.index:
        return _Call(machine, func, "_to_copy", to).run((source,), options)
    raw = func(source.raw if isinstance(source, DeviceTensor) else source, **options)
    spoil(raw)
    target: Tensor = raw
    if to is not None:
        target = DeviceTensor(raw, machine.memory[to].allocate(raw, machine.current_stream(to)))
    elif non_blocking:
        pin(target)  # as torch does
    _copied(machine, torch.ops.aten.copy_.default, target, source, non_blocking)
    return target


def _copied(machine: Machine, func: Any, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """``Tensor.copy_``. Pinned memory is read or written when the copy happens, other memory of the host now."""
    if isinstance(target, DeviceTensor) and isinstance(source, DeviceTensor):
        if target.device != source.device:
            return _between(machine, target, source)
        machine.current_stream(target.device).enqueue(functools.partial(target.raw.copy_, source.raw))
        return target
    device = target.device if isinstance(target, DeviceTensor) else source.device
    stream = machine.current_stream(device)
    host, to = (source, "device") if isinstance(target, DeviceTensor) else (target, "host")
    free = non_blocking and is_pinned(host)
    if not free:
        machine.forbid(f"a copy to the {to} that is not of pinned memory")
        if to == "device":
            source = source.clone()
    into, of = (t.raw if isinstance(t, DeviceTensor) else t for t in (target, source))
    stream.enqueue(functools.partial(into.copy_, of))
    if not free and not (to == "device" and non_blocking):
        machine.wait(stream.mark())
    return target


def _between(machine: Machine, target: DeviceTensor, source: DeviceTensor) -> Tensor:
    """A copy from one device to another: both streams wait for each other."""
    ours, theirs = (machine.current_stream(t.device) for t in (target, source))
    if ours.capture is not None or theirs.capture is not None:
        machine.refuse("a copy between devices")
    ours.put(theirs.mark())
    ours.enqueue(functools.partial(target.raw.copy_, source.raw))
    theirs.put(ours.mark())
    return target


def _is_device(tensor: Tensor) -> bool:
    return isinstance(tensor, DeviceTensor)


def _raw_or_self(tensor: Tensor) -> Tensor:
    return tensor.raw if isinstance(tensor, DeviceTensor) else tensor


def _mapped(of: Callable[[Tensor], Any], value: Any) -> Any:
    """``value`` with ``of`` of each tensor, in sequences and dicts too."""
    if isinstance(value, Tensor):
        return of(value)
    if isinstance(value, (list, tuple)):
        return type(value)([_mapped(of, item) for item in value]) if type(value) in (list, tuple) else value
    if isinstance(value, dict):
        return {key: _mapped(of, item) for key, item in value.items()}
    return value


def _tensors(args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    found = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += [item for item in value if isinstance(item, Tensor)]
    return found

"""The device "rehearsal" of this process: torch's PrivateUse1, with tensors that lie in CPU memory.

All private names of torch that the rehearsal needs are here. A tensor of the device is a wrapper
around a tensor of the CPU that does its work. As on a GPU

- a product of it with a tensor of the CPU raises an error, unless that is a single number;
- reading it (`item`, `bool`, `tolist`, `cpu`, a mask as an index) and filling it from the CPU wait
  for the device: `on_wait` is told;
- it has random numbers of its own, and figures of its memory.

Unlike on a GPU an operation cannot resize its `out=`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet, _ExcludeDispatchKeyGuard
from torch.utils import backend_registration
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from sora_cli.core.device import is_accelerated

NAME = "rehearsal"
ROOM = 2**34
REAL = is_accelerated()
"""A real accelerator is there: the cases run on it, and this device is left out."""

aten = torch.ops.aten
_AUTOCAST = DispatchKeySet(DispatchKey.AutocastPrivateUse1)

# the lists of CUDA's autocast (aten/src/ATen/autocast_mode.h), as far as models use them
LOWERED = ["addbmm", "addmm", "addmv", "addr", "baddbmm", "bmm", "conv1d", "conv2d", "conv3d",
           "conv_transpose1d", "conv_transpose2d.input", "conv_transpose3d.input", "einsum",
           "linear", "matmul", "mm", "mv", "prelu", "scaled_dot_product_attention"]  # fmt: skip
RAISED = ["binary_cross_entropy_with_logits", "cosine_similarity", "exp",
          "expm1", "group_norm", "kl_div", "l1_loss", "layer_norm", "log", "log10", "log1p", "log2",
          "log_softmax.int", "logsumexp", "mse_loss", "nll_loss", "nll_loss_nd", "prod",
          "reciprocal", "rsqrt", "smooth_l1_loss", "softmax.int", "softplus", "sum",
          "sum.dim_IntList", "cumsum"]  # fmt: skip

_READS = {aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default,
          aten.masked_select.default, aten._unique2.default, aten.unique_consecutive.default,
          aten.bincount.default, aten.repeat_interleave.Tensor}  # fmt: skip
"""Operations that end on the CPU, or whose result has a size that only the device knows."""
_MADE = ["arange", "arange.start", "arange.start_step", "eye", "eye.m", "linspace", "randperm",
         "randperm.generator"]  # fmt: skip
"""Operations that torch would do by resizing an empty tensor."""
_TAKES_BOTH = {aten.copy_.default, aten._to_copy.default}
_INDEXES = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default,
            aten._index_put_impl_.default, aten._unsafe_index.Tensor}  # fmt: skip


class State:
    """The device's switch, its random numbers, its memory, and the listener to its waits.

    Attributes:
        live, peak: bytes of the tensors alive now, and at most since the last reset.
        room: bytes that may be alive; a tensor beyond them raises torch's OutOfMemoryError.
    """

    def __init__(self) -> None:
        self.on = False
        self.bf16 = False
        self.on_wait: Callable[[Any], None] = lambda _: None
        self.random = torch.Generator()
        self.live, self.peak, self.room = 0, 0, ROOM
        self.late: torch.OutOfMemoryError | None = None
        self._storages: set[int] = set()

    def hold(self, tensor: Tensor) -> None:
        """Count the memory of a tensor until its storage is freed."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._storages:
            if self.live + size > self.room:
                text = f"{NAME} out of memory. Tried to allocate {size / 1e6:.2f} MB."
                self.late = torch.OutOfMemoryError(text)
                self.raise_late()
            self._storages.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._free, key, size)

    def raise_late(self) -> None:
        """Raise an error that is due, but not in a backward pass: torch's guards end the process.

        It comes with the next operation or `synchronize`, as CUDA's own errors may.
        """
        if self.late is not None and torch._C._current_autograd_node() is None:
            error, self.late = self.late, None
            raise error

    def _free(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.live -= size


STATE = State()


class Module:
    """`torch.rehearsal`: the functions that torch and this project ask of a device's module."""

    _initialized = True  # torch's checkpoints keep the random numbers of such devices alone
    is_initialized = staticmethod(lambda: True)
    device = staticmethod(lambda _: nullcontext())
    is_available = staticmethod(lambda: STATE.on)
    device_count = staticmethod(lambda: int(STATE.on))
    current_device = staticmethod(lambda: 0)
    set_device = staticmethod(lambda _: None)
    _is_in_bad_fork = staticmethod(lambda: False)
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16, torch.float16])
    is_bf16_supported = staticmethod(lambda **_: STATE.bf16)
    get_device_name = staticmethod(lambda: "rehearsed")
    empty_cache = staticmethod(lambda: None)
    manual_seed_all = staticmethod(lambda seed: STATE.random.manual_seed(seed))
    get_rng_state = staticmethod(lambda *_: STATE.random.get_state())
    set_rng_state = staticmethod(lambda state, *_: STATE.random.set_state(state))
    memory_allocated = staticmethod(lambda *_: STATE.live)
    memory_reserved = staticmethod(lambda *_: STATE.live)
    max_memory_allocated = staticmethod(lambda *_: STATE.peak)
    mem_get_info = staticmethod(lambda *_: (STATE.room - STATE.live, STATE.room))

    @staticmethod
    def synchronize(*_: Any) -> None:
        STATE.raise_late()
        STATE.on_wait("synchronize")

    @staticmethod
    def reset_peak_memory_stats(*_: Any) -> None:
        STATE.peak = STATE.live


class Rehearsed(Tensor):
    """A tensor of the device; `held` is the CPU's that does the work."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> Rehearsed:
        STATE.hold(held)
        made = Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, layout=held.layout, device=f"{NAME}:0",
        )  # fmt: skip
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, *args, **(kwargs or {}))

    # torch then swaps a moved parameter's content, so that it stays the same object as on a GPU
    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *_: Any) -> Rehearsed:
        return Rehearsed(inner["held"])

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        return self.detach()

    @data.setter
    def data(self, value: Rehearsed) -> None:
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.held = value.held

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            made = self.detach().clone().requires_grad_(self.requires_grad)
            memo[id(self)] = made
            made.__dict__.update({k: v for k, v in self.__dict__.items() if k != "held"})
        copied: Tensor = memo[id(self)]
        return copied

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()

    def storage(self) -> Any:
        return self.held.storage()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError(f"can't convert {self.device} device type tensor to numpy")
        return self.detach().cpu().numpy()

    def __array__(self, *_: Any) -> Any:
        return self.numpy()

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.dim() == 0 else str(self)

    def __repr__(self, **_: Any) -> str:
        return f"{self.held!r} of {self.device}"


def _run(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Do an operation on the tensors that are held; wrap the results that stay on the device."""
    STATE.raise_late()
    target = kwargs.get("device")
    leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if func not in _TAKES_BOTH:
        indices = tree_leaves(args[1]) if func in _INDEXES else ()
        _check_together(func, leaves, {id(index) for index in indices})
    to_cpu = target is not None and target.type == "cpu"
    if _reads(func, args, to_cpu):
        STATE.on_wait(func)
    if target is not None and not to_cpu:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    with _Random(func):
        out = func(*tree_map(_held, args), **tree_map(_held, kwargs))
    if to_cpu or func is aten._local_scalar_dense.default:
        return out
    if func is aten.copy_.default:
        return args[0]
    assert all(leaf.shape == _held(leaf).shape for leaf in leaves), f"{func} has resized a tensor"
    wrapped = tree_map(lambda x: Rehearsed(x) if isinstance(x, Tensor) else x, out)
    if not any(type(leaf) is Rehearsed for leaf in leaves) or not _writes(func):
        return wrapped
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, Rehearsed) else value


@cache
def _writes(func: Any) -> bool:
    """Return True if an operation returns an argument that it has changed."""
    aliases = (each.alias_info for each in func._schema.returns)
    return any(alias is not None and alias.is_write for alias in aliases)


def _check_together(func: Any, leaves: list[Tensor], indices: set[int]) -> None:
    strange = [
        leaf for leaf in leaves
        if not isinstance(leaf, Rehearsed) and leaf.dim() and id(leaf) not in indices
    ]  # fmt: skip
    if strange:
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in strange)
        raise RuntimeError(
            f"{func}: expected all tensors to be on the same device, but found at least two, "
            f"{NAME}:0 and cpu: {shapes}"
        )


def _reads(func: Any, args: Any, to_cpu: bool) -> bool:
    """Return True if the CPU has to wait for the device's work."""
    if func is aten.copy_.default:  # `target, source, non_blocking`, which CUDA heeds
        blocking = not (len(args) > 2 and args[2]) and args[0].numel() > 0
        return blocking and not all(isinstance(arg, Rehearsed) for arg in args[:2])
    if func in _INDEXES:
        places = [leaf for leaf in tree_leaves(args[1]) if isinstance(leaf, Tensor)]
        return any(i.dtype is torch.bool or not isinstance(i, Rehearsed) for i in places)
    return func in _READS or (to_cpu and func is aten._to_copy.default)


@cache
def _draws(func: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in func.tags


class _Random:
    """Let an operation that draws numbers draw the device's: the CPU's stay as they are."""

    def __init__(self, func: Any) -> None:
        self.draws = _draws(func)

    def __enter__(self) -> None:
        if self.draws:
            self.cpu = torch.get_rng_state()
            torch.set_rng_state(STATE.random.get_state())

    def __exit__(self, *_: Any) -> None:
        if self.draws:
            STATE.random.set_state(torch.get_rng_state())
            torch.set_rng_state(self.cpu)


def _cast(op: Any, dtype: torch.dtype | None) -> Callable[..., Any]:
    """Return an operation that autocast runs in another precision; None: in autocast's own."""

    def run(*args: Any, **kwargs: Any) -> Any:
        wanted = dtype or torch.get_autocast_dtype(NAME)

        def cast(value: Any) -> Any:
            meant = isinstance(value, Tensor) and value.device.type == NAME
            if not meant or not value.is_floating_point() or value.dtype == torch.float64:
                return value
            return value.to(wanted)

        with _ExcludeDispatchKeyGuard(_AUTOCAST):
            return op(*tree_map(cast, args), **tree_map(cast, kwargs))

    return run


_tensor = torch.tensor


def tensor(data: Any, *, device: Any = None, **options: Any) -> Tensor:
    """`torch.tensor` that moves: torch's own fills the new tensor's memory, which is not there."""
    device = torch.empty(0).device if device is None else device  # of `with torch.device(...)`
    with torch._C.DisableTorchFunction():
        made = _tensor(data, **options)
    return made.to(device)


def _overload(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(aten, packet), overload or "default")


_libraries: list[Any] = []  # their registrations end with them


def lacks() -> str | None:
    """Return the reason why this torch cannot rehearse a device; None: it can, or need not."""
    if REAL:
        return None
    if torch.accelerator.is_available():
        return "torch has an accelerator here that the program does not use"
    private = "_setup_privateuseone_for_python_backend"
    return None if hasattr(backend_registration, private) else f"this torch has no {private}"


def register() -> None:
    """Make the device known to torch, once a process; it stays unavailable until `STATE.on`.

    It must be known before the first backward pass, which counts the devices.
    """
    # experimental: a torch may lack it
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend as set_up

    _device_constructors()  # keeps torch's functions, `tensor` among them, from its first call on
    set_up(NAME, backend_module=Module())
    every = torch.library.Library("_", "IMPL")
    every.fallback(_run, "PrivateUse1")
    every.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    some = torch.library.Library("aten", "IMPL")
    for names, dtype in ((LOWERED, None), (RAISED, torch.float32)):
        for name in names:
            some.impl(name, _cast(_overload(name), dtype), "AutocastPrivateUse1")
    for name in _MADE:
        some.impl(name, partial(_run, _overload(name)), "PrivateUse1")
    _libraries.extend([every, some])

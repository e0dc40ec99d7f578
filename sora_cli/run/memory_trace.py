"""The memory that a model's tensors take at the worst moment of a pass, mostly without running it.

The model runs on tensors without data (`FakeTensorMode`): every operation gives the shapes and
types of its results, and `StorageTracker` follows how long each storage lives. What a mask picks is
taken to be all of it. A model that looks at the values of its tensors cannot run so; then real
batches of one and two rows are traced and extrapolated to the full one.
"""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from methods.torch_internals import (
    FakeTensor,
    FakeTensorMode,
    TorchDispatchMode,
    storage_key,
    tree_leaves,
)
from sora_cli.model.activation_offload import offloaded
from sora_cli.model.gradient_checkpointing import checkpointed
from sora_cli.tasks.base import Encoded, Task

MMAP_LIMIT = 1 << 30  # bytes: larger blocks are mapped each on its own (`allocator`) and given back

Tensors = Mapping[str, Any]


@dataclass(frozen=True)
class Trace:
    """The largest sum of tensors alive during a piece of work, in bytes.

    Attributes:
        peak: at the worst moment; `small` of it in blocks the heap holds.
        kept: after the forward pass: what the backward pass needs.
        moved: the most that waits in another memory (`training.activation_offload`).
    """

    peak: float
    small: float
    kept: float
    moved: float = 0.0


class StorageTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sums the storages that operations make, for as long as they live.

    Args:
        known: tensors that are there already and count nothing.
        small: blocks up to that many bytes are summed by themselves, too.
    """

    def __init__(self, known: list[Tensor], *, small: float = MMAP_LIMIT) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.limit = small
        self.live, self.small, self.peak, self.small_at_peak = 0, 0, 0, 0
        self.moved, self.moved_peak, self._moving = 0, 0, False
        self._sizes: dict[int, int] = {storage_key(t): 0 for t in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        out = func(*_without_masks(func, args), **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._born(leaf)
        return out

    def move(self, tensor: Tensor) -> Tensor:
        """Return a copy that counts as being in another memory."""
        self._moving = True
        try:
            return torch.empty_like(tensor).copy_(tensor)
        finally:
            self._moving = False

    def _born(self, tensor: Tensor) -> None:
        key, storage = storage_key(tensor), tensor.untyped_storage()
        if key in self._sizes:
            return
        if self._moving:
            self._sizes[key] = 0
            self._move(storage.nbytes())
            weakref.finalize(storage, self._back, key, storage.nbytes())
            return
        self._sizes[key] = storage.nbytes()
        self._add(storage.nbytes(), 1)
        weakref.finalize(storage, self._gone, key)
        if self.live > self.peak:
            self.peak, self.small_at_peak = self.live, self.small

    def _gone(self, key: int) -> None:
        self._add(self._sizes.pop(key), -1)

    def _move(self, size: int) -> None:
        self.moved += size
        self.moved_peak = max(self.moved_peak, self.moved)

    def _back(self, key: int, size: int) -> None:
        self._sizes.pop(key)
        self._move(-size)

    def _add(self, size: int, sign: int) -> None:
        self.live += sign * size
        if size <= self.limit:
            self.small += sign * size


def _without_masks(func: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Replace the mask of `x[mask]` on tensors without data by all of x, the most it can be."""
    if func is not torch.ops.aten.index.Tensor or not isinstance(args[0], FakeTensor):
        return args
    indices: list[Any] = []
    for index in args[1]:
        if index is None or index.dtype != torch.bool:
            indices.append(index)
        else:  # as `mask.nonzero()` would give them
            every = torch.zeros(index.numel(), dtype=torch.long, device=index.device)
            indices += [every] * index.ndim
    return args[0], indices


@dataclass(frozen=True)
class Passes:
    """The model's forward and backward passes, on tensors with or without data.

    Attributes:
        task: says what a model is given and what is kept of its outputs when it is scored.
        checkpointing, offload: of the activations, as `training.gradient_checkpointing` and
            `training.activation_offload` have it.
    """

    model: nn.Module
    collate: Callable[[list[Any]], Tensors]
    device: str
    precision: str
    task: Task | None = None
    checkpointing: bool = False
    offload: bool = False

    def trace(self, rows: Encoded, passes: int) -> tuple[Trace, bool]:
        """Trace a batch of rows, and return also whether the result is exact (not extrapolated).

        `passes` is the number of backward passes; 0 is an evaluation.
        """
        try:
            return self._without_data(self._batch(rows, len(rows.lengths)), passes), True
        except Exception:  # whatever an architecture does with the values of its tensors
            return self._extrapolated(rows, passes), False

    def _without_data(self, batch: Tensors, passes: int) -> Trace:
        mode = FakeTensorMode(allow_non_fake_inputs=True)

        def fake(tensor: Tensor) -> Tensor:
            with mode:
                made: Tensor = mode.from_tensor(tensor.detach()).to(self.device)
            return made

        with mode, _unlogged():
            return self._run(batch, passes, fake)

    def _extrapolated(self, rows: Encoded, passes: int) -> Trace:
        """Draw a straight line through batches of one and two rows, on the CPU."""
        n = len(rows.lengths)
        one, two = (
            self._run(self._batch(rows, k), passes, lambda t: t.detach(), small=MMAP_LIMIT * k / n)
            for k in (min(1, n), min(2, n))
        )

        def line(a: float, b: float) -> float:
            return a + (b - a) * (n - 1)

        names = ("peak", "small", "kept", "moved")
        return Trace(**{name: line(getattr(one, name), getattr(two, name)) for name in names})

    def _run(
        self,
        batch: Tensors,
        passes: int,
        convert: Callable[[Tensor], Tensor],
        *,
        small: float = MMAP_LIMIT,
    ) -> Trace:
        inputs = {k: convert(v) if isinstance(v, Tensor) else v for k, v in batch.items()}
        state = {
            **{
                n: convert(p).requires_grad_(p.requires_grad)
                for n, p in self.model.named_parameters()
                if p.is_floating_point()  # packed weights are more than a tensor, and stay
            },
            **{n: convert(b) for n, b in self.model.named_buffers()},
        }
        known = [t for t in (*state.values(), *inputs.values()) if isinstance(t, Tensor)]
        tracker = StorageTracker(known, small=small)
        checkpointing = checkpointed(self.model, on=self.checkpointing and passes > 0)
        kept = 0
        with _mode(self.model, training=passes > 0), checkpointing, tracker, self._autocast():
            if not passes:
                self._score(state, inputs)
            for _ in range(passes):
                before = tracker.live
                with self._offloaded(known, tracker):
                    loss = torch.func.functional_call(self.model, state, (), kwargs=inputs)["loss"]
                kept = tracker.live - before
                loss.backward()
                del loss
        return Trace(tracker.peak, tracker.small_at_peak, kept, tracker.moved_peak)

    def _offloaded(
        self, stays: list[Tensor], tracker: StorageTracker
    ) -> contextlib.AbstractContextManager[None]:
        # of a GPU's run extrapolated on the CPU, all tensors are there
        device = stays[0].device.type
        return offloaded(stays, device=device, on=self.offload, move=tracker.move)

    @torch.no_grad()
    def _score(self, state: dict[str, Tensor], inputs: dict[str, Any]) -> None:
        """Run an evaluation batch as the trainer does."""
        given = inputs if self.task is None else dict(self.task.scored_inputs(inputs))
        out = torch.func.functional_call(self.model, state, (), kwargs=given)
        if self.task is not None:
            self.task.outputs_to_keep(out, inputs)

    def _batch(self, rows: Encoded, n: int) -> Tensors:
        return self.collate([rows.dataset[i] for i in range(n)])

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "fp32":
            return contextlib.nullcontext()
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
        return torch.autocast(self.device, dtype=dtype)


@contextlib.contextmanager
def _mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    before = model.training
    model.train(training)
    try:
        yield
    finally:
        model.train(before)


@contextlib.contextmanager
def _unlogged() -> Iterator[None]:
    """Keep torch from printing a traceback where an operation cannot be followed without data.

    The experts of a mixture are such an operation in 32 bits (torch 2.13: `_grouped_mm`).
    """
    log = logging.getLogger(FakeTensorMode.__module__)
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before

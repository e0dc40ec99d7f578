"""Trace the memory of a model's tensors during a pass, mostly without running the model.

The model runs on tensors without data (`FakeTensorMode`): every operation yields only shapes and
types, and `StorageTracker` follows the lifetime of each storage. A boolean mask is taken to select
everything. A model that looks at the values of its tensors cannot run this way; then real batches
of one and two rows are traced and extrapolated to the full batch.
"""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from sora_cli.tasks.base import Task
from sora_cli.tasks.encoded import Encoded
from sora_cli.train.precision import autocast

MMAP_LIMIT = 1 << 30  # bytes: glibc maps larger blocks separately (`core.allocator`)

Tensors = Mapping[str, Any]


@dataclass(frozen=True)
class Trace:
    """The largest sum of tensors alive at one moment of some work, in bytes.

    Attributes:
        peak: that sum.
        small: the part of `peak` in blocks that the heap holds.
        kept: alive after the forward pass, for the backward pass.
        moved: peak of the tensors moved to another memory (`training.activation_offload`).
    """

    peak: float
    small: float
    kept: float
    moved: float = 0.0


class StorageTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sums the storages that operations create, for as long as they live.

    Args:
        known: tensors that exist already; they are not counted.
        small: blocks up to this many bytes are also summed separately.
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
                self._created(leaf)
        return out

    def move(self, tensor: Tensor) -> Tensor:
        """Return a copy that is counted as lying in another memory."""
        self._moving = True
        try:
            return torch.empty_like(tensor).copy_(tensor)
        finally:
            self._moving = False

    def _created(self, tensor: Tensor) -> None:
        key, storage = storage_key(tensor), tensor.untyped_storage()
        if key in self._sizes:
            return
        if self._moving:
            self._sizes[key] = 0
            self._move(storage.nbytes())
            weakref.finalize(storage, self._moved_back, key, storage.nbytes())
            return
        self._sizes[key] = storage.nbytes()
        self._count(storage.nbytes(), 1)
        weakref.finalize(storage, self._freed, key)
        if self.live > self.peak:
            self.peak, self.small_at_peak = self.live, self.small

    def _freed(self, key: int) -> None:
        self._count(self._sizes.pop(key), -1)

    def _move(self, size: int) -> None:
        self.moved += size
        self.moved_peak = max(self.moved_peak, self.moved)

    def _moved_back(self, key: int, size: int) -> None:
        self._sizes.pop(key)
        self._move(-size)

    def _count(self, size: int, sign: int) -> None:
        self.live += sign * size
        if size <= self.limit:
            self.small += sign * size


def _without_masks(func: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Replace the mask in `x[mask]` on tensors without data: take all of x, the largest result."""
    if func is not torch.ops.aten.index.Tensor or not isinstance(args[0], FakeTensor):
        return args
    indices: list[Any] = []
    for index in args[1]:
        if index is None or index.dtype != torch.bool:
            indices.append(index)
        else:  # the form of `mask.nonzero()`: an index for each dimension
            every = torch.zeros(index.numel(), dtype=torch.long, device=index.device)
            indices += [every] * index.ndim
    return args[0], indices


@dataclass(frozen=True)
class Passes:
    """Forward and backward passes of a model, on tensors with or without data.

    Attributes:
        task: computes the loss, and selects inputs and outputs of an evaluation batch; None: the
            model's own loss.
        checkpointing, offload: of the activations: `training.gradient_checkpointing` and
            `training.activation_offload`.
    """

    model: nn.Module
    collate: Callable[[list[Any]], Tensors]
    device: str
    precision: str
    task: Task | None = None
    checkpointing: bool = False
    offload: bool = False

    def trace(self, rows: Encoded, passes: int) -> tuple[Trace, bool]:
        """Trace a batch of rows; the second value is False if the result is extrapolated.

        `passes` is the number of backward passes; 0 traces an evaluation.
        """
        try:
            return self._without_data(self._batch(rows, len(rows.lengths)), passes), True
        except Exception:  # a model that reads its tensors' values may raise anything
            return self._extrapolated(rows, passes), False

    def measure(self, rows: Encoded, passes: int) -> Trace:
        """Trace a batch of rows with its data, where the model is; see `trace`."""
        return self._run(self._batch(rows, len(rows.lengths)), passes, self._there())

    def _there(self) -> Callable[[Tensor], Tensor]:
        device = next(self.model.parameters()).device
        return lambda tensor: tensor.detach().to(device)

    def _without_data(self, batch: Tensors, passes: int) -> Trace:
        mode = FakeTensorMode(allow_non_fake_inputs=True)

        def fake(tensor: Tensor) -> Tensor:
            with mode:
                made: Tensor = mode.from_tensor(tensor.detach()).to(self.device)
            return made

        with mode, _unlogged():
            return self._run(batch, passes, fake)

    def _extrapolated(self, rows: Encoded, passes: int) -> Trace:
        """Extrapolate linearly from batches of one and two rows, run where the model is."""
        n = len(rows.lengths)
        one, two = (
            self._run(self._batch(rows, k), passes, self._there(), small=MMAP_LIMIT * k / n)
            for k in (min(1, n), min(2, n))
        )

        def line(a: float, b: float) -> float:
            return a + (b - a) * (n - 1)

        # blocks grow with the rows: those of k rows are compared with k / n of the limit (above)
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
                if p.is_floating_point()  # packed weights have scales beside them: they stay
            },
            **{n: convert(b) for n, b in self.model.named_buffers()},
        }
        known = [t for t in (*state.values(), *inputs.values()) if isinstance(t, Tensor)]
        tracker = StorageTracker(known, small=small)
        checkpointing = checkpointed(self.model, on=self.checkpointing and passes > 0)
        kept = 0
        with (
            _mode(self.model, training=passes > 0),
            checkpointing,
            tracker,
            autocast(self.precision, self.device),
        ):
            if not passes:
                self._score(state, inputs)

            def step() -> None:
                nonlocal kept
                for batch in self._compared([inputs] * passes):
                    before = tracker.live
                    with self._offloaded(known, tracker):
                        loss = self._loss(batch)
                    kept = tracker.live - before
                    loss.backward()
                    del loss  # the next pass would count it

            # around both passes: a checkpoint runs its part of the model again in the backward pass
            replaced = {f"model.{name}": tensor for name, tensor in state.items()}
            if passes:
                torch.func.functional_call(_Around(self.model), replaced, (step,))
        return Trace(tracker.peak, tracker.small_at_peak, kept, tracker.moved_peak)

    @torch.no_grad()
    def _compared(self, batches: list[Tensors]) -> Sequence[Tensors]:
        return batches if self.task is None else self.task.before_step(self.model, batches)

    def _loss(self, batch: Tensors) -> Any:
        if self.task is not None:
            return self.task.batch_loss(self.model, batch)[0]
        return self.model(**batch)["loss"]

    def _offloaded(
        self, stays: list[Tensor], tracker: StorageTracker
    ) -> contextlib.AbstractContextManager[None]:
        # an extrapolated run happens where the model is, often on the CPU still: ask the tensors
        device = stays[0].device.type
        return offloaded(stays, device=device, on=self.offload, move=tracker.move)

    @torch.no_grad()
    def _score(self, state: dict[str, Tensor], inputs: dict[str, Any]) -> None:
        """Run an evaluation batch with the trainer's inputs and outputs."""
        given = inputs if self.task is None else dict(self.task.scored_inputs(inputs))
        out = torch.func.functional_call(self.model, state, (), kwargs=given)
        if self.task is not None:
            self.task.outputs_to_keep(out, inputs)

    def _batch(self, rows: Encoded, n: int) -> Tensors:
        return self.collate([rows.dataset[i] for i in range(n)])


class _Around(nn.Module):
    """Calls a function while `functional_call` replaces a model's tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[], None]) -> None:
        """Call the function."""
        work()


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
    """Silence torch's log, which prints a traceback for every operation that needs data.

    The experts of a mixture are such an operation in 32 bits (torch 2.13: `_grouped_mm`).
    """
    # until: torch > 2.13
    log = logging.getLogger(FakeTensorMode.__module__)
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before

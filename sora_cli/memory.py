"""Predicted peak memory of a training run, without running it.

On a CPU the peak is the largest resident set of the process, as `report.peak_memory` measures it:

    peak = resident + runtime + moments + max(step, evaluation)
    step, evaluation = traced + HEAP_SLACK * small blocks among it

`resident` is this process after model, adapters and data are loaded; `runtime` what the first
steps take once (thread pools, kernels' work space, late imports); `moments` AdamW's two averages
of every trained parameter. `traced` is the largest sum of tensors alive at any moment: of a
forward and backward pass over the longest training rows (activations, gradients, temporaries), or
of an evaluation batch. It is found by running the model on tensors without data
(`FakeTensorMode`) while following the life of every storage. Where a model can not run on such
tensors, real batches of one and two rows are traced and extrapolated.

On a GPU the peak is the allocator's: base parameters and buffers instead of `resident`, cuBLAS's
workspace instead of `runtime`, and no heap slack.

Not followed: temporaries inside a kernel, and what a method keeps between steps.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sora_cli.prepare import Prepared
from sora_cli.recipe import Recipe
from sora_cli.report import peak_memory
from sora_cli.tasks.base import Encoded

CPU_RUNTIME = 75_000_000  # bytes, measured on a run of two-row batches
CUDA_RUNTIME = 33_000_000  # bytes of cuBLAS workspace
MMAP_LIMIT = 32 << 20  # bytes: glibc maps larger blocks each on its own and gives them back
HEAP_SLACK = 0.2  # holes in glibc's heap, as a share of the smaller blocks; measured

Tensors = Mapping[str, Any]


@dataclass(frozen=True)
class Trace:
    """Largest sum of tensors alive during a piece of work, in bytes.

    Attributes:
        peak: at the worst moment; `small` of it in blocks the heap holds.
        kept: after the forward pass: what the backward pass needs.
    """

    peak: float
    small: float
    kept: float


@dataclass(frozen=True)
class MemoryPrediction:
    """Peak memory of a run and what it is made of, all in bytes.

    Attributes:
        device: "cpu" or "cuda".
        resident: the process (GPU: the model) before the first step.
        runtime: taken once, at the first step.
        gradients, moments: of the trained parameters.
        training, evaluation: largest of a step and of an evaluation batch, each with its
            (rows, tokens).
        exact: False if extrapolated from small batches.
    """

    device: str
    resident: float
    runtime: float
    gradients: float
    moments: float
    training: Trace
    training_shape: tuple[int, int]
    evaluation: Trace
    evaluation_shape: tuple[int, int]
    exact: bool

    @property
    def activations(self) -> float:
        """What the forward pass of the worst batch keeps for the backward pass."""
        return self.training.kept

    @property
    def temporaries(self) -> float:
        """Alive at the worst moment of a step beyond activations and gradients."""
        return max(self.training.peak - self.activations - self.gradients, 0.0)

    @property
    def fixed(self) -> float:
        """There in training and evaluation alike."""
        return self.resident + self.runtime + self.moments

    def slack(self, trace: Trace) -> float:
        """Holes in the heap."""
        return HEAP_SLACK * trace.small if self.device == "cpu" else 0.0

    @property
    def training_peak(self) -> float:
        """Largest during an optimiser step."""
        return self.fixed + self.training.peak + self.slack(self.training)

    @property
    def evaluation_peak(self) -> float:
        """Largest during an evaluation."""
        return self.fixed + self.evaluation.peak + self.slack(self.evaluation)

    @property
    def peak(self) -> float:
        """Largest of the whole run."""
        return max(self.training_peak, self.evaluation_peak)


def predict_memory(ready: Prepared, recipe: Recipe, *, micro_batch: int) -> MemoryPrediction:
    """Predict the peak memory of training a prepared recipe.

    Call it right after `prepare`, in a process that did nothing else: on a CPU the prediction
    builds on the memory the process has.

    Args:
        micro_batch: rows per forward pass and process.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: nn.Module = ready.base.model
    trained = sum(_bytes(p) for p in model.parameters() if p.requires_grad)
    weights = sum(_bytes(t) for t in (*model.parameters(), *model.buffers()))
    resident = resident_memory() if device == "cpu" else weights
    collate = ready.task.collator(ready.base.tokenizer)
    training = _longest(ready.train, micro_batch)
    evaluation = max(
        (
            _longest(part, recipe.training.eval_batch_size)
            for part in (ready.select, *ready.report.values())
        ),
        key=lambda rows: _cells(rows),
    )
    passes = 2 if recipe.training.gradient_accumulation > 1 else 1  # the second finds gradients
    work = _Work(model, collate, device, recipe.training.precision)
    step, exact = work.trace(training, passes)
    scoring, exact_too = work.trace(evaluation, 0)
    return MemoryPrediction(
        device=device,
        resident=resident,
        runtime=CPU_RUNTIME if device == "cpu" else CUDA_RUNTIME,
        gradients=trained,
        moments=2 * trained,
        training=step,
        training_shape=_shape(training),
        evaluation=scoring,
        evaluation_shape=_shape(evaluation),
        exact=exact and exact_too,
    )


def resident_memory() -> float:
    """Resident memory of this process now, in bytes; its peak so far where that is unknown."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return float(peak_memory() or 0)


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
        self._sizes: dict[int, int] = {t.untyped_storage()._cdata: 0 for t in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._born(leaf.untyped_storage())
        return out

    def _born(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self._add(storage.nbytes(), 1)
        weakref.finalize(storage, self._gone, key)
        if self.live > self.peak:
            self.peak, self.small_at_peak = self.live, self.small

    def _gone(self, key: int) -> None:
        self._add(self._sizes.pop(key), -1)

    def _add(self, size: int, sign: int) -> None:
        self.live += sign * size
        if size <= self.limit:
            self.small += sign * size


@dataclass(frozen=True)
class _Work:
    """The model's forward and backward passes, on tensors with or without data."""

    model: nn.Module
    collate: Callable[[list[Any]], Tensors]
    device: str
    precision: str

    def trace(self, rows: Encoded, passes: int) -> tuple[Trace, bool]:
        """Trace a batch of rows; `passes` backward passes, 0: evaluation. False: extrapolated."""
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

        with mode:
            return self._run(batch, passes, fake)

    def _extrapolated(self, rows: Encoded, passes: int) -> Trace:
        """A straight line through batches of one and two rows, on the CPU."""
        n = len(rows.lengths)
        one, two = (
            self._run(self._batch(rows, k), passes, lambda t: t.detach(), small=MMAP_LIMIT * k / n)
            for k in (min(1, n), min(2, n))
        )

        def line(a: float, b: float) -> float:
            return a + (b - a) * (n - 1)

        return Trace(line(one.peak, two.peak), line(one.small, two.small), line(one.kept, two.kept))

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
            },
            **{n: convert(b) for n, b in self.model.named_buffers()},
        }
        known = [t for t in (*state.values(), *inputs.values()) if isinstance(t, Tensor)]
        tracker = StorageTracker(known, small=small)
        kept = 0
        with _mode(self.model, training=passes > 0), tracker, self._autocast():
            for _ in range(max(passes, 1)):
                before = tracker.live
                with torch.set_grad_enabled(passes > 0):
                    out = torch.func.functional_call(self.model, state, (), kwargs=inputs)
                kept = tracker.live - before
                if passes:
                    out["loss"].backward()
                del out
        return Trace(tracker.peak, tracker.small_at_peak, kept)

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


def _longest(rows: Encoded, n: int) -> Encoded:
    """The n longest rows, longest first: in one batch they are the most a run can meet."""
    order = np.argsort(-rows.lengths, kind="stable")[:n]
    return Encoded(rows.dataset.select(order), rows.lengths[order], 0)


def _shape(rows: Encoded) -> tuple[int, int]:
    return len(rows.lengths), int(rows.lengths.max())


def _cells(rows: Encoded) -> int:
    n, tokens = _shape(rows)
    return n * tokens


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()

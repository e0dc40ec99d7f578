"""Predict the peak memory of a training run without running it.

On a CPU the peak is the largest resident set of the process (`environment.peak_memory`):

    peak = max(loading, resident + runtime + moments + max(step, evaluation))
    step, evaluation = traced + HEAP_SLACK * small blocks among it

`loading` is the peak until model, adapters and data are loaded (a GGUF file is unpacked by then),
`resident` the memory of the process at that moment. `runtime` is taken once by the first steps
(thread pools, kernels' work space, late imports). `moments` are AdamW's two averages of every
trained parameter, in the parameters' precision or, with `training.optimizer`, in 8 bits. `traced`
is the largest sum of tensors alive at any moment: in a forward and backward pass over the longest
training rows (activations, gradients, temporaries), or in an evaluation batch (see `memory_trace`).
Text generation during an evaluation is not traced: it needs the logits of only one token at a time.

On a GPU the peak is the allocator's: base parameters and buffers replace `resident`, cuBLAS's
workspace replaces `runtime`, there is no heap slack, and the rows count that are on the device: all
of a step, or an evaluation batch.

Attention kernels that run only on a GPU (`model.attention`) are counted as torch's own attention.

Not counted: temporaries inside a kernel, and of a method's own state between steps all but averages
of its factors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from sora_cli.core.device import device_type
from sora_cli.core.environment import peak_memory, process_memory
from sora_cli.model.attention import usual_attention
from sora_cli.recipe.recipe import Recipe
from sora_cli.run.memory_trace import Passes, Trace
from sora_cli.run.prepare import Prepared
from sora_cli.tasks.corpus import search_bytes
from sora_cli.tasks.encoded import Encoded
from sora_cli.train.optimizers import moment_bytes

CPU_RUNTIME = 75_000_000  # bytes, measured on a run with batches of two rows
CUDA_RUNTIME = 33_000_000  # bytes: cuBLAS's workspace
HEAP_SLACK = 0.2  # measured: holes in glibc's heap, as a share of the smaller blocks


@dataclass(frozen=True)
class MemoryPrediction:
    """The predicted peak memory of a run and its parts, all in bytes.

    Attributes:
        device: "cpu", or the accelerator's type.
        resident: memory of the process (on a GPU: of the model) before the first step.
        runtime: taken once, by the first step.
        gradients, moments: of the trained parameters. averages: a method's own, of its factors.
        training, evaluation: traces of the largest step and the largest evaluation batch.
        training_shape, evaluation_shape: (rows, tokens) of these batches.
        exact: False if extrapolated from small batches.
        loading: peak of the process before the first step (on a GPU: not counted).
        search: of an evaluation in a corpus: the vectors of a part, and its cosines.
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
    loading: float = 0.0
    averages: float = 0.0
    search: float = 0.0

    @property
    def activations(self) -> float:
        """Memory of the tensors that the largest forward pass keeps for the backward pass."""
        return self.training.kept

    @property
    def temporaries(self) -> float:
        """Memory at a step's peak that is neither activations nor gradients."""
        # a difference of different moments: the peak may come before all gradients are there
        return max(self.training.peak - self.activations - self.gradients, 0.0)

    @property
    def fixed(self) -> float:
        """Memory needed by training and evaluation alike."""
        return self.resident + self.runtime + self.moments + self.averages

    def slack(self, trace: Trace) -> float:
        """Estimate the memory lost to holes in the heap."""
        return HEAP_SLACK * trace.small if self.device == "cpu" else 0.0

    @property
    def training_peak(self) -> float:
        """The peak during an optimiser step."""
        return self.fixed + self.training.peak + self.slack(self.training)

    @property
    def evaluation_peak(self) -> float:
        """The peak during an evaluation."""
        return self.fixed + self.evaluation.peak + self.slack(self.evaluation) + self.search

    @property
    def peak(self) -> float:
        """The peak of the whole run."""
        return max(self.loading, self.training_peak, self.evaluation_peak)


def predict_memory(ready: Prepared, recipe: Recipe, *, rows_per_pass: int) -> MemoryPrediction:
    """Predict the peak memory of training a prepared recipe.

    Call it right after `prepare`, before anything else takes memory: on a CPU the prediction starts
    from the memory that the process holds.

    Args:
        rows_per_pass: rows in one forward pass of one process.
    """
    device = device_type()
    model: nn.Module = ready.base.model
    trained = sum(_bytes(p) for p in model.parameters() if p.requires_grad)
    factors = sum(_bytes(p) for m in ready.layers.values() for _, p in m.named_factors())
    weights = sum(_bytes(t) for t in _distinct(model))
    # the first step takes the memory of the trial of layers again: do not count it twice
    resident = resident_memory() - ready.trial_memory if device == "cpu" else weights
    loading = float(peak_memory() or 0) if device == "cpu" else 0.0
    collate = ready.task.collator(ready.base.processor)
    training = longest_rows(ready.train, rows_per_pass)
    rows = recipe.training.eval_batch_size
    scored = [ready.select, *ready.report.values(), *_longest_documents(ready, rows)]
    evaluation = max((longest_rows(part, rows) for part in scored), key=lambda part: _cells(part))
    # in the second pass of a step the gradients of the first are alive
    passes = 2 if recipe.training.gradient_accumulation > 1 else 1
    block = recipe.training
    work = Passes(
        model,
        collate,
        device,
        block.precision,
        ready.task,
        checkpointing=block.gradient_checkpointing,
        offload=block.activation_offload,
    )
    with usual_attention(model, on_gpus=True):  # GPU kernels need tensors with data
        step, exact = work.trace(training, passes)
        scoring, exact_too = work.trace(evaluation, 0)
    if device != "cpu":
        parts = recipe.training.gradient_accumulation
        step = replace(step, peak=step.peak + parts * _inputs(training, collate))
        scoring = replace(scoring, peak=scoring.peak + _inputs(evaluation, collate))
    return MemoryPrediction(
        device=device,
        resident=resident,
        runtime=CPU_RUNTIME if device == "cpu" else CUDA_RUNTIME,
        gradients=trained,
        moments=moment_bytes(block.optimizer, model, device),
        training=step,
        training_shape=_shape(training),
        evaluation=scoring,
        evaluation_shape=_shape(evaluation),
        exact=exact and exact_too,
        loading=loading,
        averages=ready.method.averages * factors,
        search=_search(ready) if device == "cpu" else 0.0,
    )


def _longest_documents(ready: Prepared, n: int) -> Iterator[Encoded]:
    """Yield the longest documents of the corpus, if there is one."""
    processor = ready.base.processor
    corpus = ready.task.corpus_tokens(processor)
    if corpus is not None:
        longest = np.argsort(-corpus.lengths, kind="stable")[:n]
        documents = ready.task.some_documents(processor, longest)
        assert documents is not None
        yield documents


def _search(ready: Prepared) -> int:
    """Return the bytes of a search in the corpus; 0: there is none."""
    corpus, width = ready.task.corpus, getattr(ready.base.model.config, "hidden_size", 0)
    queries = max(len(part.lengths) for part in (ready.select, *ready.report.values()))
    return 0 if corpus is None else search_bytes(queries, len(corpus), width)


def resident_memory() -> float:
    """Return this process's resident memory in bytes; some systems report only its peak."""
    return float(process_memory("VmRSS") or peak_memory() or 0)


def longest_rows(rows: Encoded, n: int) -> Encoded:
    """Return the n longest rows, longest first: the batch that needs the most memory."""
    order = np.argsort(-rows.sizes, kind="stable")[:n]
    return Encoded(rows.dataset.select(order), rows.sizes[order], 0)


def _inputs(rows: Encoded, collate: Callable[[list[Any]], Mapping[str, Any]]) -> int:
    """Return the bytes of a batch."""
    batch = collate(list(rows.dataset)).values()
    return sum(_bytes(tensor) for tensor in batch if isinstance(tensor, Tensor))


def _shape(rows: Encoded) -> tuple[int, int]:
    return len(rows.lengths), int(rows.lengths.max())


def _cells(rows: Encoded) -> int:
    n, tokens = _shape(rows)
    return n * tokens


def _distinct(model: nn.Module) -> list[Tensor]:
    """Return a model's tensors, each once, with the tensors that unpack packed weights."""
    tensors = (*model.state_dict().values(), *model.buffers())
    return list({t.data_ptr(): t for t in tensors if isinstance(t, Tensor)}.values())


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()

"""The sides of a row: LoRA (or SoRA) as in `sora train`, PEFT LoRA, and the floor.

Our side is prepared from the recipe by `prepare`, with its trainer's optimiser and all the method's
hooks. The other sides are copies of this model without adapters that share its frozen weights. PEFT
has LoRA of the same rank on the same layers and the same optimiser. The floor has frozen weights
only; its embedding's output requires a gradient, so that the backward pass goes through every
layer. All sides get the same batch; only our side runs the head at learned places alone, as in
`sora train`.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import Trainer

from benchmarks.stepping import Batch, Stepping
from methods.base import StepInfo
from methods.inject import adapted_layers, remove
from sora_cli.core.device import device_module
from sora_cli.model.gradient_checkpointing import checkpointed
from sora_cli.recipe.recipe import Recipe
from sora_cli.run.memory_trace import StorageTracker
from sora_cli.run.prepare import Prepared
from sora_cli.tasks.learned import LEARNED
from sora_cli.train.callback import attach
from sora_cli.train.compiled import compiled_blocks
from sora_cli.train.kernels import Kernels
from sora_cli.train.trainer import AdapterTrainer, build_trainer

FLOOR, PEFT, OURS = "floor", "PEFT LoRA", "ours"


class Side(Stepping):
    """One model that takes optimiser steps on one batch, with a measure of its memory."""

    def peak_bytes(self) -> float:
        """Take a step and return its peak memory: weights, moments and the step's own tensors.

        On a GPU the step's own part is the allocator's figure, on a CPU the sum of living tensors.
        """
        kept = {t.untyped_storage().data_ptr(): t for t in self._held()}
        held = sum(t.untyped_storage().nbytes() for t in kept.values())
        if self.device.type != "cpu":
            self.wait()
            device_module().reset_peak_memory_stats()
            before = device_module().memory_allocated()
            self.step()
            return float(held + device_module().max_memory_allocated() - before)
        with StorageTracker([*kept.values()]) as tracker:
            self.step()
        return float(held + tracker.peak)

    def _held(self) -> Iterator[Tensor]:
        yield from self.model.parameters()
        yield from self.model.buffers()
        yield from (t for t in self.batch.values() if isinstance(t, Tensor))
        states = self.optimizer.state.values() if self.optimizer else ()
        for values in [*states, *(state.as_dict() for state in _packings(self.model))]:
            yield from (t for t in values.values() if isinstance(t, Tensor))


@contextlib.contextmanager
def sides_of(recipe: Recipe, ready: Prepared, device: str) -> Iterator[dict[str, Side]]:
    """Yield the sides of a recipe, in the order floor, PEFT, ours; frees them at the end."""
    model = ready.base.model
    if model.device.type != device:  # a quantised model is on its device already
        model.to(device)
    batch = batch_of(ready, device)
    plain = {name: value for name, value in batch.items() if name != LEARNED}
    precision, checkpointing = recipe.training.precision, recipe.training.gradient_checkpointing
    floor, peft = (without_adapters(model) for _ in range(2))
    trainer = build_trainer(
        recipe, ready.task, ready.base, Path(recipe.output.dir or "run"), train=ready.train
    )
    with ExitStack() as stack:
        sides = {
            FLOOR: Side(_floored(floor), plain, precision),
            PEFT: _peft(peft, trainer, ready, plain, precision),
            OURS: _ours(trainer, ready, batch, precision),
        }
        for side in sides.values():
            side.offload = recipe.training.activation_offload
        if recipe.training.kernels is not None:
            sides[OURS].kernels = Kernels(model)
        for inner in (floor, peft, model):
            stack.enter_context(checkpointed(inner.train(), on=checkpointing))
        if recipe.training.compile:
            stack.enter_context(compiled_blocks(model))
        yield sides
        sides.clear()


def batch_of(ready: Prepared, device: str) -> Batch:
    """Return a batch of all training rows except the last, a short row for the trial of layers."""
    rows = [ready.train.dataset[row] for row in range(len(ready.train.lengths) - 1)]
    collated = ready.task.collator(ready.base.processor)(rows)
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in collated.items()}


def sharing_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a model that shares its frozen weights and its buffers."""
    shared: list[Any] = [p for p in model.parameters() if not p.requires_grad]
    shared += [*model.buffers(), *_packings(model)]
    return copy.deepcopy(model, {id(each): each for each in shared})


def without_adapters(model: nn.Module) -> nn.Module:
    """Return a copy without adapters that shares the frozen weights."""
    plain = sharing_copy(model)
    remove(plain, adapted_layers(plain))
    return plain


def _packings(model: nn.Module) -> list[Any]:
    """Return the quantisation states that bitsandbytes keeps beside packed weights."""
    states = (getattr(module, "quant_state", None) for module in model.modules())
    return [state for state in states if state is not None]


def _floored(model: Any) -> nn.Module:
    embedding: nn.Module = model.get_input_embeddings()
    embedding.register_forward_hook(lambda _module, _args, output: output.requires_grad_())
    frozen: nn.Module = model
    return frozen


def _peft(
    model: Any, trainer: AdapterTrainer, ready: Prepared, batch: Batch, precision: str
) -> Side:
    import peft

    layer = next(iter(ready.layers.values()))
    alpha: Any = layer.rank * layer.scaling  # PEFT accepts a float, despite its annotation
    config = peft.LoraConfig(r=layer.rank, lora_alpha=alpha, target_modules=[*ready.layers])
    adapted: Any = peft.get_peft_model(model, config)
    cls, options = Trainer.get_optimizer_cls_and_kwargs(trainer.args, adapted)
    trained = [p for p in adapted.parameters() if p.requires_grad]
    return Side(adapted, batch, precision, cls(trained, **options))


def _ours(trainer: AdapterTrainer, ready: Prepared, batch: Batch, precision: str) -> Side:
    method, layers = ready.method, ready.layers
    attach(trainer, method, layers)
    optimizer: Any = trainer.create_optimizer()
    steps = trainer.args.max_steps

    def after(step: int) -> None:
        rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
        method.after_step(layers, StepInfo(step, steps, rates, optimizer.state))
        method.alive(layers)  # a run counts the live components in every step

    penalty = lambda: method.penalty(layers)  # noqa: E731
    return Side(ready.base.model, batch, precision, optimizer, penalty, after)

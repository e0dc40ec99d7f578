"""Find the origin of a non-finite number by running the step's micro-batches once more.

Rows, random generator states and parameters are the same, so the number appears again. The model is
not changed, and no other process is waited for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from transformers import Trainer

from sora_cli.core.errors import first_line
from sora_cli.train.checkpoint import generators
from sora_cli.train.checkpoint.trainer_internals import prepare_inputs


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass of a step, recorded so that it can be run again.

    Attributes:
        random: states of torch's generators before the pass.
        loss: the pass's share of the step's loss, a scalar.
    """

    inputs: Any
    random: dict[str, Tensor]
    loss: Tensor


@dataclass(frozen=True)
class Origin:
    """The origin of a non-finite number.

    Attributes:
        text: one line for a person, such as "the loss is nan, first in the output of x.y".
        frozen: name of the frozen parameter that is not finite, if that is the cause.
    """

    text: str
    frozen: str | None = None


@dataclass
class _Watch:
    """A forward hook that records the outputs of modules, in the order of their execution."""

    names: Mapping[int, str]  # id of a module -> its path
    ran: list[str] = field(default_factory=list)
    first: str | None = None  # path of the first module with an output that is not finite
    largest: tuple[float, str] = (0.0, "")  # absolute value in an output, and its module

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        name = self.names.get(id(module))
        if not name:  # the whole model, or another model
            return
        self.ran.append(name)
        for tensor in _floats(output):
            top = float(tensor.detach().abs().max()) if tensor.numel() else 0.0
            if math.isfinite(top):
                self.largest = max(self.largest, (top, name))
            elif self.first is None:
                self.first = name


def find_origin(trainer: Trainer, batches: Sequence[Pass]) -> Origin:
    """Run a step's micro-batches again, and describe the origin of the first non-finite number.

    Args:
        batches: micro-batches of this process. The gradients of `trainer.model` are not touched.
    """
    bad = [batch for batch in batches if not bool(batch.loss.isfinite())]
    try:
        with torch.random.fork_rng():
            return (
                _origin_of_loss(trainer, bad[0]) if bad else _origin_of_gradient(trainer, batches)
            )
    except Exception as error:  # the run ends anyway: report the known part
        what = f"the loss is {float(bad[0].loss)}" if bad else "the gradient is not finite"
        return Origin(f"{what}; running the step again to see where: {first_line(error)}")


def _origin_of_loss(trainer: Trainer, batch: Pass) -> Origin:
    watch = _watch(trainer.model)
    with torch.no_grad():
        _forward(trainer, batch, watch)
    value = f"the loss is {float(batch.loss)}"
    if watch.first is None:
        top, name = watch.largest
        return Origin(
            f"{value}, every module's output finite (largest: {top:.1e}, {name}): "
            "look at the loss and the method's penalty"
        )
    text = f"{value}, first in the output of {watch.first}"
    module = trainer.model.get_submodule(watch.first)
    for name, parameter in module.named_parameters():
        if not bool(parameter.isfinite().all()):
            path = f"{watch.first}.{name}"
            frozen = None if parameter.requires_grad else path
            return Origin(f"{text}, whose {name} is not finite", frozen)
    return Origin(text)


def _origin_of_gradient(trainer: Trainer, batches: Sequence[Pass]) -> Origin:
    trained = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    watch = _watch(trainer.model)
    total: dict[str, Tensor] = {}
    for batch in batches:
        loss = _forward(trainer, batch, watch) / len(batches)
        gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        for name, gradient in zip(trained, gradients, strict=True):
            if gradient is not None:
                total[name] = total[name] + gradient if name in total else gradient
    bad = [name for name, gradient in total.items() if not bool(gradient.isfinite().all())]
    if bad:
        place = {name: i for i, name in enumerate(watch.ran)}
        # backward runs from the last module to the first: the last bad gradient arose first
        name = max(bad, key=lambda n: place.get(n.rpartition(".")[0], -1))
        value = "nan" if bool(total[name].isnan().any()) else "inf"
        return Origin(f"the gradient of {name} is {value}")
    tops = {name: float(gradient.abs().max()) for name, gradient in total.items()}
    name = max(tops, key=lambda n: tops[n])
    # every entry is finite, but their sum of squares may overflow
    if tops[name] ** 2 * total[name].numel() > torch.finfo(total[name].dtype).max:
        return Origin(f"the gradient's norm is inf; its largest part is {name}, {tops[name]:.1e}")
    if trainer.args.world_size > 1:
        return Origin("the loss or gradient of another process is not finite; see its message")
    return Origin("the loss or gradient was not finite, but is finite when the step is run again")


def _forward(trainer: Trainer, batch: Pass, watch: _Watch) -> Tensor:
    """Return a micro-batch's mean loss with the penalty, not weighted by its share of the step."""
    # dropout must drop the same numbers as in the step; numpy and Python stay as they are
    generators.restore(batch.random, generators.other_states())
    # a global hook: an adapted layer with a hook of its own may compute in another way
    handle = register_module_forward_hook(watch)
    try:
        inputs = prepare_inputs(trainer, batch.inputs)
        with trainer.compute_loss_context_manager():
            loss: Tensor = trainer.compute_loss(trainer.model, inputs)
        return loss
    finally:
        handle.remove()


def _watch(model: nn.Module) -> _Watch:
    return _Watch({id(module): name for name, module in model.named_modules()})


def _floats(output: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors in a module's output of any structure."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _floats(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _floats(value)

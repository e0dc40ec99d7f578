"""Compare loss and gradient of a few training rows, computed in two ways before the first step.

Kernels that replace a model's own layers or its attention are other people's code. So their results
for this model and these rows are compared with the results without them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, linalg

from sora_cli.core.errors import SoraError, first_line
from sora_cli.model.attention import KEY, ON_GPUS, usual_attention
from sora_cli.train.precision import autocast

if TYPE_CHECKING:
    from sora_cli.train.trainer import AdapterTrainer

_OFF = f"{KEY}=sdpa"
_ROWS = 2  # rows that are computed both ways
_SCALE = 1024.0  # factor of the loss: keeps small gradients from vanishing in 16 bits
# largest |g - g'| / |g'| in 16 bits and in 32: cosines of about 0.98 and 0.9999
_FAR = {True: 0.2, False: 0.01}
Way = AbstractContextManager[None]


def check_same(
    trainer: AdapterTrainer, plain: Way, other: Way, *, key: str, value: str, hint: str
) -> None:
    """Compare loss and gradient of the shortest training rows, computed in two ways.

    A difference larger than rounding is an error.

    Args:
        key, value: the recipe's setting that chose the other way.
    """
    with plain:
        expected_loss, expected = _gradient(trainer)
    with other:
        loss, gradient = _gradient(trainer)
    low = trainer.recipe.training.precision != "fp32"
    far = _FAR[low or torch.finfo(trainer.model.dtype).bits < 32]
    # relative to the whole gradient: single entries near zero may differ by rounding alone
    apart, norm = (float(linalg.vector_norm(vector)) for vector in (gradient - expected, expected))
    if abs(loss - expected_loss) <= far * abs(expected_loss) and apart <= far * norm:
        return
    raise SoraError(
        f"{key}={value} changes the loss or gradient of {type(trainer.model).__name__}",
        where=f"loss {loss:.6g}, not {expected_loss:.6g}; gradient off by {apart:.3g}, its norm is "
        f"{norm:.3g}",
        hint=hint,
        key=key,
    )


def check_attention_same(trainer: AdapterTrainer) -> None:
    """Compare attention that runs only on GPUs with the attention that transformers would choose.

    Nothing is compared if the model is not yet on the training device. A failure inside the
    implementation is reported as an error of this comparison.
    """
    name, device, model = trainer.recipe.model.attention, trainer.args.device, trainer.model
    if name not in ON_GPUS:
        return
    if any(p.device.type != device.type for p in model.parameters()):
        return
    plain = usual_attention(model)
    try:
        check_same(trainer, plain, nullcontext(), key=KEY, value=name, hint=_OFF)
    except SoraError:
        raise
    except Exception as error:  # other people's code may raise anything
        why = f"fails in {type(model).__name__}: {first_line(error)}"
        raise SoraError(f"{KEY}={name} {why}", hint=_OFF, key=KEY) from error


def _gradient(trainer: AdapterTrainer) -> tuple[float, Tensor]:
    """Return the loss of the shortest rows, and its gradient in all trained parameters."""
    model, rows, block = trainer.model, trainer.train_rows, trainer.recipe.training
    assert rows is not None
    shortest = rows.lengths.argsort(kind="stable")[:_ROWS]
    batch = trainer.data_collator([rows.dataset[int(row)] for row in shortest])
    device = trainer.args.device
    inputs = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
    trained = [p for p in model.parameters() if p.requires_grad]
    before = model.training
    model.eval()  # without dropout both ways compute the same
    try:
        with autocast(block.precision, device.type):
            loss, _ = trainer.task.step_loss(model, inputs)
        gradients = torch.autograd.grad(loss * _SCALE, trained, allow_unused=True)
    finally:
        model.train(before)
    return float(loss.detach()), torch.cat(
        [g.float().flatten() for g in gradients if g is not None]
    )

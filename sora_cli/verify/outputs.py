"""Compute the outputs of a model, with or without an adapter, for a probe's inputs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sora_cli.adapter.apply import apply_adapter
from sora_cli.core.errors import SoraError, first_line
from sora_cli.verify.probes import Probe
from sora_cli.verify.subjects import Subject, load_subject

Values = dict[str, Tensor]
"""Output name -> (rows, ...), float32 on the CPU."""
HIDDEN = "hidden states"
"""Key of the hidden states of all layers of one shape, (layers, rows, ..., width)."""

_NAMES = (
    ("start_logits", "end_logits"),
    ("logits",),
    ("logits_per_image",),
    ("last_hidden_state",),
)
_HIDDEN_NAMES = ("decoder_hidden_states", "hidden_states")
SPANS = ("start_logits", "end_logits")


@dataclass(frozen=True)
class Outputs:
    """The outputs of one subject.

    Attributes:
        values: its outputs.
        without: the outputs of the base model with the adapter's head but without its layers; empty
            if they were not requested.
    """

    values: Values
    without: Values


def compute_outputs(
    subject: Subject, config: Any, auto: str, probe: Probe, dtype: torch.dtype, *, alone: bool
) -> Outputs:
    """Load the subject, run it, and release its memory.

    Args:
        alone: run the base of an adapter without its layers, too.
    """
    model = load_subject(subject, config, auto, dtype)
    if subject.adapter is None:
        return Outputs(run_model(model, probe, subject.reference), {})
    without = run_model(model, probe, subject.reference) if alone else {}
    apply_adapter(model, subject.adapter, fold=True)
    return Outputs(run_model(model, probe, subject.reference), without)


def run_model(model: Any, probe: Probe, name: str) -> Values:
    """Run a model in memory on its own device; its mode is restored afterwards.

    Args:
        name: the model's name in errors.

    Returns:
        The outputs, and as `HIDDEN` the hidden states if the model gives them.
    """
    # kinds of model differ in their inputs: DistilBERT, for one, takes no token_type_ids
    accepted = inspect.signature(model.forward).parameters
    first = next(model.parameters())
    inputs = {k: _fitting(v, first) for k, v in probe.inputs.items() if k in accepted}
    _fill_padding(model.config, probe.padding)
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), _giving_hidden_states(model.config):
            result = model(**inputs)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = first_line(error)
        raise SoraError(
            f"{name} cannot be run on made-up inputs: {reason}",
            where=f"inputs: {probe.what}",
        ) from error
    finally:
        model.train(training)
    names = next((group for group in _NAMES if all(n in result for n in group)), ())
    outputs = {n: result[n] for n in names}
    if not outputs:
        raise SoraError(f"{name} gives no logits and no hidden state: {', '.join(result)}")
    hidden = next((result[n] for n in _HIDDEN_NAMES if result.get(n)), ())
    if hidden:
        # of one shape, since vision models shrink theirs from stage to stage
        outputs[HIDDEN] = torch.stack([h for h in hidden if h.shape == hidden[-1].shape])
    values = {n: tensor.detach().to("cpu", torch.float32) for n, tensor in outputs.items()}
    check_finite(name, *values.values())
    return values


def check_finite(name: str, *outputs: Tensor) -> None:
    """Refuse outputs that cannot be compared.

    Args:
        name: of the models that gave them.
    """
    if not all(bool(output.isfinite().all()) for output in outputs):
        raise SoraError(f"{name} gives NaN or infinity on made-up inputs")


def positions(name: str, values: Tensor, probe: Probe) -> Tensor:
    """Return the part of an output that is not padding: (positions, ...) if there is a mask."""
    mask = probe.mask
    if mask is None:
        return values
    if name == HIDDEN:
        return values[:, mask] if values.shape[1:3] == mask.shape else values
    if name in SPANS or (values.ndim == 3 and values.shape[:2] == mask.shape):
        return values[mask]
    return values


@contextmanager
def _giving_hidden_states(config: Any) -> Iterator[None]:
    """Ask a model for all hidden states inside this block, through its configuration."""
    before = getattr(config, "output_hidden_states", False)
    config.output_hidden_states = True  # by the configuration: not every forward has the argument
    try:
        yield
    finally:
        config.output_hidden_states = before


def _fill_padding(config: Any, padding: int) -> None:
    """Set the padding id: classifiers made of decoders find a row's last token by it."""
    for part in (config, config.get_text_config()):
        if getattr(part, "pad_token_id", None) is None:
            part.pad_token_id = padding


def _fitting(value: Tensor, parameter: Tensor) -> Tensor:
    """Put an input onto the model's device; pixels also get its dtype."""
    value = value.to(parameter.device)
    return value.to(parameter.dtype) if value.is_floating_point() else value

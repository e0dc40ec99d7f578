"""The outputs of a model, with or without an adapter on it, for a probe's inputs."""

from __future__ import annotations

import inspect
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

_NAMES = (
    ("start_logits", "end_logits"),
    ("logits",),
    ("logits_per_image",),
    ("last_hidden_state",),
)


@dataclass(frozen=True)
class Outputs:
    """The outputs of one subject.

    Attributes:
        values: its outputs.
        without: those of the base with the adapter's head but without its layers; empty for a
            subject without an adapter.
    """

    values: Values
    without: Values


def compute_outputs(
    subject: Subject, config: Any, auto: str, probe: Probe, dtype: torch.dtype
) -> Outputs:
    """Load the subject, run it, and release its memory.

    Raises:
        SoraError: it cannot be loaded or run, or its outputs are not finite.
    """
    model = load_subject(subject, config, auto, dtype)
    if subject.adapter is None:
        return Outputs(run_model(model, probe, subject.reference), {})
    without = run_model(model, probe, subject.reference)
    apply_adapter(model, subject.adapter)
    return Outputs(run_model(model, probe, subject.reference), without)


def run_model(model: Any, probe: Probe, name: str) -> Values:
    """Run a model in memory on its own device; its mode is restored afterwards.

    Args:
        name: what errors call it.

    Raises:
        SoraError: the model cannot be run on these inputs, or its outputs are not finite.
    """
    accepted = inspect.signature(model.forward).parameters
    first = next(model.parameters())
    inputs = {k: _fitting(v, first) for k, v in probe.inputs.items() if k in accepted}
    _fill_padding(model.config, probe.padding)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
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
    values = {n: result[n].detach().to("cpu", torch.float32) for n in names}
    if not values:
        raise SoraError(f"{name} gives no logits and no hidden state: {', '.join(result)}")
    if not all(bool(value.isfinite().all()) for value in values.values()):
        raise SoraError(f"{name} gives NaN or infinity on made-up inputs")
    return values


def _fill_padding(config: Any, padding: int) -> None:
    """Set the padding id: classifiers made of decoders find a row's last token by it."""
    for part in (config, config.get_text_config()):
        if getattr(part, "pad_token_id", None) is None:
            part.pad_token_id = padding


def _fitting(value: Tensor, parameter: Tensor) -> Tensor:
    """Put an input onto the model's device; pixels also take its type."""
    value = value.to(parameter.device)
    return value.to(parameter.dtype) if value.is_floating_point() else value

"""The comparison of two sets of files by the outputs that their models give on fixed inputs.

Everything is computed in float32 on the CPU, one model in memory at a time, so that models stored
in other number formats are compared fairly. The same inputs cannot show every difference: what
they do not reach, such as a row of the embeddings that no token uses, goes unnoticed.

The tolerance is relative to the largest output. Two correct ways of computing the same thing in
float32, W x + B (A x) and (W + B A) x, were found 3e-7 to 2e-6 apart: 1e-5 is allowed. Weights that
are rounded to a format with unit roundoff u (2^-8 for bfloat16, 2^-11 for float16) move the outputs
by some u, however deep the model is, since each layer adds its own error to its own part of the
residual stream: 1 u to 5 u were found, 8 u are allowed. What counts is the coarsest format that
either side stores its own weights in (not the base below an adapter).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sora_cli.adapter.classes import BARE, auto_class_for, auto_class_of
from sora_cli.core.checks import check_comparison
from sora_cli.core.errors import SoraError
from sora_cli.model.tensors import dtype_name
from sora_cli.verify.outputs import Outputs, Values, compute_outputs, run_model
from sora_cli.verify.probes import Probe, make_probe
from sora_cli.verify.reload import reload_outputs
from sora_cli.verify.subjects import (
    Subject,
    find_subjects,
    load_config,
    load_tokenizer,
    other_base,
    stored_dtypes,
)

FLOOR = 1e-5
ROUNDINGS = 8
_FORMATS = {
    "F64": ("float64", 2.0**-53),
    "F32": ("float32", 2.0**-24),
    "F16": ("float16", 2.0**-11),
    "BF16": ("bfloat16", 2.0**-8),
    "F8_E4M3": ("float8_e4m3fn", 2.0**-4),
    "F8_E5M2": ("float8_e5m2", 2.0**-3),
}
_ROUNDOFF = dict(_FORMATS.values())
_SPANS = ("start_logits", "end_logits")


@dataclass(frozen=True)
class Difference:
    """The difference of one output of both models; padding does not count.

    Attributes:
        numbers: how many were compared.
        largest, mean: of the absolute differences.
        scale: the largest absolute value on either side.
        agree, decisions: rows (or tokens) where the largest of the classes is the same one, and
            all rows; None where there are no classes.
    """

    name: str
    numbers: int
    largest: float
    mean: float
    scale: float
    agree: int | None
    decisions: int | None

    @property
    def relative(self) -> float:
        """The largest difference over the largest value."""
        if self.largest == 0:
            return 0.0
        return self.largest / self.scale


@dataclass(frozen=True)
class Verification:
    """A comparison and its verdict.

    Attributes:
        inputs: what the models were given, in words.
        effect: relative difference that the adapter's layers make; None without an adapter.
        tolerance_from: where the tolerance comes from, in words.
        notes: what a person should know beside the numbers.
    """

    a: str
    b: str
    inputs: str
    differences: tuple[Difference, ...]
    effect: float | None
    tolerance: float
    tolerance_from: str
    notes: tuple[str, ...]

    @property
    def relative(self) -> float:
        """The largest difference of all outputs, relative to the largest value."""
        return max(d.relative for d in self.differences)

    @property
    def same(self) -> bool:
        """The verdict. Classes that change within the tolerance were ties."""
        return self.relative <= self.tolerance

    def summary(self) -> str:
        """Return one line of numbers."""
        what = "logit" if "logits" in self.differences[0].name else "output"
        text = f"largest difference {self.relative:.1e} of the largest {what}"
        known = [(d.agree, d.decisions) for d in self.differences if d.decisions is not None]
        if not known:
            return text
        agree, decisions = (sum(n or 0 for n in column) for column in zip(*known, strict=True))
        return f"{text}, argmax agrees on {agree:,} of {decisions:,}"


def verify(
    a: str,
    b: str | None = None,
    *,
    base: str | None = None,
    dtype: str = "float32",
    tolerance: float | None = None,
    trained: Any | None = None,
    fresh: bool = True,
    subjects: tuple[Subject, ...] | None = None,
) -> Verification:
    """Compare two adapters or models, or one with its reload.

    Args:
        a, b: each an adapter directory, a run directory, a model directory or a Hub id; `b` None:
            a reload of `a`.
        base: the base model of all adapters; None: the one the first adapter was trained on.
        dtype: number format to compute in, one of `core.checks.COMPUTE`.
        tolerance: largest relative difference that still is the same; None: by stored formats.
        trained: a model in memory (adapters in place, not wrapped for mixed precision) whose
            outputs stand for those of `a`; it is left as it was.
        fresh: make the reload in a new process.
        subjects: what `find_subjects` gave for these references, if that was called before.

    Raises:
        SoraError: something is not there, cannot be loaded or run, or cannot be compared.
    """
    check_comparison(dtype, tolerance)
    if subjects is None:
        subjects = find_subjects((a, a if b is None else b), base=base)
    configs = [load_config(subject) for subject in subjects]
    auto = _common_class(subjects, configs)
    probe = make_probe(configs, auto, load_tokenizer(subjects[0]) or load_tokenizer(subjects[1]))
    computed = getattr(torch, dtype)
    if trained is None:
        first = compute_outputs(subjects[0], configs[0], auto, probe, computed)
    else:
        first = Outputs(run_model(trained, probe, "the model in memory"), {})
    if b is None and fresh:
        second = reload_outputs(a, base=base, auto=auto, probe=probe, dtype=computed)
    else:
        second = compute_outputs(subjects[1], configs[1], auto, probe, computed)
    formats = _formats(subjects, dtype, trained)
    effect = _effect(first, second, probe)
    allowed, source = (tolerance, "as given") if tolerance is not None else tolerance_for(formats)
    return Verification(
        a=a,
        b=b or f"{a}, loaded again{' in a fresh process' if fresh else ''}",
        inputs=probe.what,
        differences=compare(
            first.values, second.values, probe, decides=_decides(auto, configs[0], first.values)
        ),
        effect=effect,
        tolerance=allowed,
        tolerance_from=source,
        notes=_notes(subjects, effect, allowed),
    )


def tolerance_for(formats: Sequence[str]) -> tuple[float, str]:
    """Return the default tolerance for models stored in these formats, and its reason.

    Args:
        formats: names such as "bfloat16"; unknown ones are passed over.
    """
    coarsest = max(formats, key=lambda name: _ROUNDOFF.get(name, 0.0), default="float32")
    allowed = ROUNDINGS * _ROUNDOFF.get(coarsest, 0.0)
    if allowed <= FLOOR:
        return FLOOR, "for float32"
    return allowed, f"{ROUNDINGS} roundings to {coarsest}"


def compare(a: Values, b: Values, probe: Probe, *, decides: bool) -> tuple[Difference, ...]:
    """Measure the difference of two models' outputs.

    Args:
        decides: whether the largest output of a row or token is a decision.

    Raises:
        SoraError: outputs of different shapes.
    """
    for name in a.keys() | b.keys():
        shapes = [list(v[name].shape[1:]) if name in v else "none" for v in (a, b)]
        if shapes[0] != shapes[1]:
            raise SoraError(
                f"these are different kinds of models: their {name} have the shapes "
                f"{shapes[0]} and {shapes[1]} a row",
                hint="is one of them for other classes, or of another base model?",
            )
    return tuple(_difference(name, a[name], b[name], probe.mask, decides) for name in a)


def _difference(name: str, a: Tensor, b: Tensor, mask: Tensor | None, decides: bool) -> Difference:
    """Compare (rows, classes), (rows, positions, classes), or spans (rows, positions)."""
    choices = (a, b)
    if mask is not None and name in _SPANS:
        choices = (a.masked_fill(~mask, -math.inf), b.masked_fill(~mask, -math.inf))
    if mask is not None and (name in _SPANS or (a.ndim == 3 and a.shape[:2] == mask.shape)):
        a, b = a[mask], b[mask]
        choices = choices if name in _SPANS else (a, b)
    apart = (a - b).abs()
    same = choices[0].argmax(-1) == choices[1].argmax(-1) if decides else None
    return Difference(
        name=name,
        numbers=apart.numel(),
        largest=float(apart.max()),
        mean=float(apart.mean(dtype=torch.float64)),
        scale=float(max(a.abs().max(), b.abs().max())),
        agree=None if same is None else int(same.sum()),
        decisions=None if same is None else same.numel(),
    )


def _common_class(subjects: Sequence[Subject], configs: Sequence[Any]) -> str:
    """Return the Auto class that both are loaded with: the adapters', if there is one."""
    models = [auto_class_of(c) for s, c in zip(subjects, configs, strict=True) if not s.adapter]
    adapters = [(s.adapter, c) for s, c in zip(subjects, configs, strict=True) if s.adapter]
    known = [auto_class_for(adapter, c) for adapter, c in adapters if adapter.task_type]
    found = [auto_class_for(adapter, c, [*known, *models]) for adapter, c in adapters] or models
    kinds = [str(config.model_type) for config in configs]
    if len(set(kinds)) == 1:
        kinds = [auto.removeprefix("AutoModel").removeprefix("For") or "no head" for auto in found]
    if len(set(kinds)) > 1:
        first, second = (subject.reference for subject in subjects)
        raise SoraError(
            f"these are different kinds of models: {kinds[0]} and {kinds[1]}",
            where=f"{first} and {second}",
        )
    return found[0]


def _decides(auto: str, config: Any, values: Values) -> bool:
    if auto.endswith("Classification"):
        several = getattr(config, "num_labels", 1) > 1
        kind = getattr(config, "problem_type", None)
        return several and kind not in ("regression", "multi_label_classification")
    return auto != BARE or "logits_per_image" in values  # the text for a picture


def _formats(subjects: Sequence[Subject], dtype: str, trained: Any | None) -> list[str]:
    """Return every number format that enters, by torch's names."""
    stored = {name for subject in subjects for name in stored_dtypes(subject)}
    names = [dtype, *(_FORMATS[name][0] for name in sorted(stored) if name in _FORMATS)]
    if trained is not None:
        names += sorted({dtype_name(p.dtype) for p in trained.parameters()})
    return names


def _effect(first: Outputs, second: Outputs, probe: Probe) -> float | None:
    """Return the change that the layers of the first adapter of the two make to the outputs."""
    for outputs in (first, second):
        if outputs.without:
            changed = compare(outputs.without, outputs.values, probe, decides=False)
            return max(d.relative for d in changed)
    return None


def _notes(subjects: Sequence[Subject], effect: float | None, allowed: float) -> tuple[str, ...]:
    notes = [note for note in dict.fromkeys(other_base(subject) for subject in subjects) if note]
    if effect is not None and effect <= allowed:
        change = f"only {effect:.1e} of the largest" if effect else "nothing"
        notes.append(
            f"the adapter's layers change {change}: within the tolerance of {allowed:.1e}, so that "
            "agreement does not tell whether they are there"
        )
    return tuple(notes)

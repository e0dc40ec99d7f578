"""Compare two sets of files by the outputs that their models give on fixed inputs.

Everything is computed in float32 on the CPU, one model in memory at a time, so that models stored
in other number formats are compared fairly. Fixed inputs cannot show every difference: a part that
they do not reach, such as a row of the embeddings that no token uses, goes unnoticed.

With an adapter, `verdict.judge` decides by the share of its effect that is found. In any case the
outputs may differ by no more than a tolerance, relative to the largest output. Two correct ways to
compute the same thing in float32, W x + B (A x) and (W + B A) x, differed by 3e-7 to 2e-6: 1e-5 is
allowed. Weights rounded to a format with unit roundoff u (2^-8 for bfloat16, 2^-11 for float16)
move the outputs by some u, at any depth of the model, since each layer adds its own error to its
own part of the residual stream: 1 u to 5 u were measured, 8 u are allowed. The coarsest format in
which either side stores its own weights counts (not the base below an adapter).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from sora_cli.adapter.classes import BARE, auto_class_for, auto_class_of
from sora_cli.core.checks import check_comparison
from sora_cli.core.errors import SoraError
from sora_cli.gguf.package import parsed_once
from sora_cli.model.tensors import dtype_name
from sora_cli.verify.described import described_apart
from sora_cli.verify.difference import Difference, compare, largest_relative
from sora_cli.verify.effect import Effect, measure
from sora_cli.verify.outputs import Outputs, Values, compute_outputs, run_model
from sora_cli.verify.probes import Probe, make_probe, vocabulary_of, with_tokens
from sora_cli.verify.reload import reload_outputs
from sora_cli.verify.subjects import (
    Subject,
    check_bases,
    find_subjects,
    load_config,
    load_tokenizer,
    stored_dtypes,
)
from sora_cli.verify.verdict import COMPUTED, Judgement, Rounding, Tolerance, Verdict, judge

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


@dataclass(frozen=True)
class Verification:
    """A comparison and its verdict.

    Attributes:
        inputs: a description of the models' inputs.
        effect: relative change of the outputs by the adapter's layers; None without an adapter.
        effects: the share of this change that is found, in each of the outputs and in the hidden
            states.
        notes: remarks for the user.
    """

    a: str
    b: str
    inputs: str
    differences: tuple[Difference, ...]
    effect: float | None
    effects: tuple[Effect, ...]
    tolerance: Tolerance
    judgement: Judgement
    notes: tuple[str, ...]

    @property
    def relative(self) -> float:
        """The largest difference of all outputs, relative to the largest value."""
        return largest_relative(self.differences)

    def facts(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        judged = self.judgement
        return {
            "a": self.a,
            "b": self.b,
            "inputs": self.inputs,
            "effect": self.effect,
            "effects": [asdict(effect) for effect in self.effects],
            "tolerance": self.tolerance.value,
            "tolerance_from": self.tolerance.source,
            "notes": list(self.notes),
            "outputs": [{**asdict(d), "relative": d.relative} for d in self.differences],
            "relative": self.relative,
            "verdict": judged.verdict.value,
            "reason": judged.reason,
            "same": judged.same,
        }

    def summary(self) -> str:
        """Return one line of numbers."""
        what = "logit" if "logits" in self.differences[0].name else "output"
        text = f"largest difference {self.relative:.1e} of the largest {what}"
        if self.judgement.decisive is not None:
            text = f"{self.judgement.decisive.summary()}; {text}"
        elif self.effect == 0:
            text = f"the adapter's layers change nothing; {text}"
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
    force: bool = False,
    subjects: tuple[Subject, ...] | None = None,
) -> Verification:
    """Compare two adapters or models, or an adapter or model with its reload.

    Args:
        a, b: each an adapter directory, a run directory, a model directory or a Hub id; `b` None: a
            reload of `a`.
        base: the base model of all adapters; None: the base that the first adapter was trained on.
        dtype: number format to compute in, one of `core.checks.COMPUTE`.
        tolerance: largest relative difference that counts as the same; None: by stored formats, and
            by the adapter's effect.
        trained: a model in memory (adapters in place, not wrapped for mixed precision) whose
            outputs stand for those of `a`; it is left unchanged.
        fresh: make the reload in a new process.
        force: the base may hold other weights than an adapter was trained on.
        subjects: the result of `find_subjects` for these references, if it was called before.
    """
    check_comparison(dtype, tolerance)
    if subjects is None:
        subjects = find_subjects((a, a if b is None else b), base=base, force=force)
    again = partial(reload_outputs, a, base=base) if b is None and fresh else None
    with parsed_once(*(subject.source for subject in subjects)):
        first, second, probe, decides = _run_both(subjects, dtype, trained, again)
    notes = check_bases(subjects, force=force)  # now also of a base that was on the Hub
    differences = compare(first.values, second.values, probe, decides=decides)
    # the effect is measured from an adapter's outputs, on whichever side there is one
    pair = (first, second) if _has_layers(subjects[0]) else (second, first)
    change, effects = _effect(*pair, probe)
    names = _formats(subjects, dtype, trained)
    allowed = tolerance_for(names) if tolerance is None else Tolerance(tolerance, "as given", True)
    relative = largest_relative(differences)
    judged = judge(relative, change, effects, _rounding(subjects, dtype, trained), allowed)
    described = described_apart(subjects)
    if described:  # other class names make other answers of the same logits
        judged = Judgement(Verdict.DIFFERENT, "; ".join(described), judged.decisive)
    return Verification(
        a=a,
        b=b or f"{a}, loaded again{' in a fresh process' if fresh else ''}",
        inputs=probe.what,
        differences=differences,
        effect=change,
        effects=effects,
        tolerance=allowed,
        judgement=judged,
        notes=notes,
    )


def _run_both(
    subjects: Sequence[Subject],
    dtype: str,
    trained: Any | None,
    again: Callable[..., Outputs] | None,
) -> tuple[Outputs, Outputs, Probe, bool]:
    """Return both outputs, their inputs, and true if the largest output is a decision.

    The base of an adapter is run without its layers only once, by the first side that loads it.

    Args:
        again: gives the second's outputs in a new process; None: they are computed in this one.
    """
    configs = [load_config(subject) for subject in subjects]
    auto = _common_class(subjects, configs)
    probe = make_probe(configs, auto, load_tokenizer(subjects[0]) or load_tokenizer(subjects[1]))
    probe = with_tokens(probe, _token_rows(subjects, configs))
    options = {"auto": auto, "probe": probe, "dtype": getattr(torch, dtype)}
    alone = trained is None and _has_layers(subjects[0])
    if trained is None:
        first = compute_outputs(subjects[0], configs[0], alone=alone, **options)
    else:
        first = Outputs(run_model(trained, probe, "the model in memory"), {})
    alone = not alone and _has_layers(subjects[1])
    if again is None:
        second = compute_outputs(subjects[1], configs[1], alone=alone, **options)
    else:
        second = again(alone=alone, **options)
    return first, second, probe, _decides(auto, configs[0], first.values)


def _token_rows(subjects: Sequence[Subject], configs: Sequence[Any]) -> list[int]:
    """Return the tokens whose rows an adapter holds, as far as both sides have such rows."""
    held: list[set[int]] = [
        {i for rows in subject.adapter.rows.values() for i in rows.indices}
        if subject.adapter
        else set()
        for subject in subjects
    ]
    sizes = [
        max({vocabulary_of(config) or 0, *(i + 1 for i in rows)})
        for config, rows in zip(configs, held, strict=True)
    ]
    return sorted(i for i in set().union(*held) if i < min(sizes))


def tolerance_for(formats: Sequence[str]) -> Tolerance:
    """Return the default tolerance for models stored in these formats, and its reason.

    Args:
        formats: names such as "bfloat16"; unknown names are ignored.
    """
    coarsest = max(formats, key=lambda name: _ROUNDOFF.get(name, 0.0), default="float32")
    allowed = ROUNDINGS * _ROUNDOFF.get(coarsest, 0.0)
    if allowed <= COMPUTED:
        return Tolerance(COMPUTED, "for float32")
    return Tolerance(allowed, f"{ROUNDINGS} roundings to {coarsest}")


def _has_layers(subject: Subject) -> bool:
    return subject.adapter is not None and len(subject.adapter.layers) > 0


def _effect(
    reference: Outputs, other: Outputs, probe: Probe
) -> tuple[float | None, tuple[Effect, ...]]:
    """Return the change by the reference's adapter, and the share of it that is found."""
    without = reference.without or other.without
    if not without:
        return None, ()
    changed = compare(without, reference.values, probe, decides=False)
    return largest_relative(changed), measure(without, reference.values, other.values, probe)


def _common_class(subjects: Sequence[Subject], configs: Sequence[Any]) -> str:
    """Return the Auto class for loading both: the adapters' class, if there is an adapter."""
    models = [auto_class_of(c) for s, c in zip(subjects, configs, strict=True) if not s.adapter]
    adapters = [(s.adapter, c) for s, c in zip(subjects, configs, strict=True) if s.adapter]
    known = [auto_class_for(adapter, c) for adapter, c in adapters if adapter.task_type]
    classes = [auto_class_for(adapter, c, [*known, *models]) for adapter, c in adapters] or models
    kinds = [str(config.model_type) for config in configs]
    if len(set(kinds)) == 1:
        kinds = [
            auto.removeprefix("AutoModel").removeprefix("For") or "no head" for auto in classes
        ]
    if len(set(kinds)) > 1:
        first, second = (subject.reference for subject in subjects)
        raise SoraError(
            f"these are different kinds of models: {kinds[0]} and {kinds[1]}",
            where=f"{first} and {second}",
        )
    return classes[0]


def _decides(auto: str, config: Any, values: Values) -> bool:
    if auto.endswith("Classification"):
        several = getattr(config, "num_labels", 1) > 1
        kind = getattr(config, "problem_type", None)
        return several and kind not in ("regression", "multi_label_classification")
    return auto != BARE or "logits_per_image" in values  # the text for a picture


def _formats(subjects: Iterable[Subject], dtype: str, trained: Any | None) -> list[str]:
    """Return all number formats in use, by torch's names."""
    stored = {name for subject in subjects for name in stored_dtypes(subject)}
    names = [dtype, *(_FORMATS[name][0] for name in sorted(stored) if name in _FORMATS)]
    if trained is not None:
        names += sorted({dtype_name(p.dtype) for p in trained.parameters()})
    return names


def _rounding(subjects: Sequence[Subject], dtype: str, trained: Any | None) -> Rounding:
    models = [subject for subject in subjects if subject.adapter is None]
    adapters = [subject for subject in subjects if subject.adapter is not None]
    computed = _formats((), dtype, trained)
    return Rounding(
        computed=_coarsest(computed),
        weights=_coarsest(_formats(models, dtype, None)),
        factors=_coarsest(_formats(adapters, dtype, None)),
    )


def _coarsest(formats: Iterable[str]) -> float:
    """Return the largest unit roundoff."""
    return max(_ROUNDOFF.get(name, 0.0) for name in formats)

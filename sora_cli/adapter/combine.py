"""Combine several adapters of one base model into one adapter.

Linear: the weighted sum of the updates. It is exact, since the components of all adapters are put
side by side; with a budget, one cut over all layers together follows (`pruning`). TIES and DARE
(`methods.combining`) work on the dense updates, one layer at a time; their results are of full rank
and are cut by `dense`. The result is read back and compared before the directory appears.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from methods.combining import dare, ties
from methods.factors import LowRankFactors
from methods.keep import Keep
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.base_check import unrecorded
from sora_cli.adapter.card import write_card
from sora_cli.adapter.companions import copy_processor
from sora_cli.adapter.dense import Progress, cut_dense, measure
from sora_cli.adapter.directory import write_adapter
from sora_cli.adapter.metadata import AdapterMeta, BaseReference, read_sora_file, write_sora_file
from sora_cli.adapter.on_demand import OnDemand
from sora_cli.adapter.pruning import (
    Layers,
    Loss,
    check_left,
    check_one_rank,
    grouped_losses,
    prune_layers,
)
from sora_cli.adapter.reading import open_adapter
from sora_cli.adapter.trained_on import write_united
from sora_cli.core.checks import COMBINATIONS, check_choice
from sora_cli.core.errors import SoraError
from sora_cli.core.unpacked import unpacked_from
from sora_cli.model.files import SORA_FILE
from sora_cli.model.fingerprint import fingerprint

LINEAR, TIES, DARE = COMBINATIONS
DENSITIES = {TIES: 0.2, DARE: 0.5}
"""Default share of numbers kept: TIES' is that of its paper; DARE's paper tries 0.1 to 0.9."""
_SHARED = ("task", "labels", "num_labels", "problem_type", "max_length", "input_columns",
           "row_recipe", "quantise")  # fmt: skip


@dataclass(frozen=True)
class Mixing:
    """The settings of a combination.

    Attributes:
        weights: one for each adapter.
        method: one of `core.checks.COMBINATIONS`.
        density: the share of numbers that TIES and DARE keep of each update.
        seed: seed of DARE's random choice of numbers to drop.
    """

    weights: tuple[float, ...]
    method: str = LINEAR
    density: float = 1.0
    seed: int = 0

    def check(self, adapters: int, keep: Keep) -> None:
        """Check the settings against the number of adapters and the rule for ranks."""
        check_choice("method", self.method, COMBINATIONS)
        if len(self.weights) != adapters:
            raise SoraError(f"--weights has {len(self.weights)} numbers for {adapters} adapters")
        if not all(math.isfinite(weight) and weight for weight in self.weights):
            raise SoraError("--weights must be numbers other than 0")
        if self.method == TIES and min(self.weights) < 0:
            raise SoraError("--method ties takes weights above 0 only")
        if not 0 < self.density <= 1:
            raise SoraError(f"--density is a share above 0 and up to 1, not {self.density:g}")
        if self.method != LINEAR and not keep.given():
            raise SoraError(
                f"--method {self.method} gives updates of full rank: say how many of their "
                "components to keep",
                hint="--rank, --mean-rank, --max-params or --energy; --energy 1 keeps all",
            )


@dataclass(frozen=True)
class Combined:
    """The result of a combination.

    Attributes:
        losses: module path -> the part of the combined update that the stored factors miss.
        exact: no component was cut, and each module was found to be the weighted sum, to rounding.
        parameters: numbers in the factors.
        head: modules stored in full, the same in all adapters.
        notes: remarks for the user.
    """

    losses: dict[str, Loss]
    exact: bool
    parameters: int
    head: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def total(self) -> Loss:
        """The loss of all layers together."""
        return reduce(add, self.losses.values())


class Combination:
    """Open adapters of one base model and task, with equal shapes and equal heads."""

    def __init__(self, files: Sequence[Adapter], mixing: Mixing) -> None:
        for file in files:
            file.check_all_in_factors()
        self._files, self._mixing = list(files), mixing
        self.notes = _check_bases(files)
        self._shapes = _shapes(files)
        self._task_type = _common_value("task type", files, [f.task_type for f in files])
        _check_heads(files)

    def write(
        self, output: Path, keep: Keep, *, dtype: str, force: bool, progress: Progress
    ) -> Combined:
        """Write the combined adapter, atomically, after reading it back for comparison."""
        measured: dict[str, Any] = {}
        exact = not keep.given()

        def beside(folder: Path) -> None:
            with open_adapter(folder) as back:
                measured["losses"] = self._losses(back.layers, dtype if exact else None)
                measured["parameters"] = back.parameters if any(back.meta.ranks.values()) else 0
            total = reduce(add, measured["losses"].values())
            _record(folder, self._entry(keep, total.relative_error))
            copy_processor(self._files[0].source.directory, folder)
            write_united(folder, [file.source.directory for file in self._files])

        def finish(layers: Layers) -> None:
            write_adapter(
                output, outline.with_layers(layers), dtype=dtype, force=force, beside=beside,
                describe=write_card,
            )  # fmt: skip

        paths, outline = list(self._shapes), self._outline()
        check_one_rank(outline, keep)
        if self._mixing.method == LINEAR:
            layers: Layers = OnDemand(paths, self.stacked)
            if not exact:
                layers = self._cut(layers, keep)
            finish(layers)
        else:
            with cut_dense(paths, self.dense, keep, output, progress) as layers:
                finish(layers)
        head = self._files[0].head_modules
        measured["losses"] = grouped_losses(measured["losses"], outline.forms)
        return Combined(**measured, exact=exact, head=head, notes=self.notes)

    def _cut(self, layers: Layers, keep: Keep) -> Layers:
        cut, losses = prune_layers(layers, keep)
        left = ((loss.after, loss.squared) for loss in losses.values())
        check_left(keep, left, map(sum, self._shapes.values()))
        return cut

    def stacked(self, path: str) -> LowRankFactors:
        """Return the weighted sum of a module's updates: all components side by side, float32."""
        parts = [
            (file.layers[path], weight)
            for file, weight in zip(self._files, self._mixing.weights, strict=True)
            if path in file.shapes
        ]
        # w1 B1 A1 + w2 B2 A2 = [w1 B1, w2 B2] [A1; A2]: exact, at the sum of the ranks
        a = torch.cat([factors.A for factors, _ in parts])
        b = torch.cat([factors.B * weight for factors, weight in parts], dim=1)
        return LowRankFactors(a, b)

    def dense(self, path: str) -> Tensor:
        """Return a module's combined update by TIES or DARE, (out, in), float32."""
        mixing = self._mixing
        updates = [self._dense(file, path) for file in self._files]
        if mixing.method == TIES:
            return ties(updates, mixing.weights, mixing.density)
        total = torch.zeros_like(updates[0])
        for i, (update, weight) in enumerate(zip(updates, mixing.weights, strict=True)):
            total.add_(dare(update, mixing.density, self._generator(i, path)), alpha=weight)
        return total

    def _dense(self, file: Adapter, path: str) -> Tensor:
        if path not in file.shapes:
            return torch.zeros(self._shapes[path])
        factors = file.layers[path]
        return factors.B @ factors.A

    def _generator(self, adapter: int, path: str) -> torch.Generator:
        """Return DARE's random source for one module, the same at every call.

        A module is asked for several times: to cut it, to cut it at a higher rank, and to compare
        it.
        """
        name = f"{self._mixing.seed} {adapter} {path}".encode()
        # a hash of the name, not a running generator: modules are asked for in any order
        seed = int.from_bytes(hashlib.sha256(name).digest()[:7], "big")
        return torch.Generator().manual_seed(seed)

    def _losses(self, layers: Mapping[str, LowRankFactors], exact: str | None) -> dict[str, Loss]:
        """Return the part of each combined update that the stored factors miss.

        Args:
            exact: the dtype of the stored factors, if nothing was cut: then only the rounding of
                this dtype may be missing. None: a cut may have lost more.
        """
        if self._mixing.method != LINEAR:
            return measure(layers, list(self._shapes), self.dense)
        losses = {}
        for path in self._shapes:
            expected = self._sum(path)
            stored = layers[path].drop_zeros() if path in layers else None
            missing = expected if stored is None else expected.minus(stored)
            loss = Loss(
                expected.rank,
                stored.rank if stored else 0,
                missing.norm() ** 2,
                expected.norm() ** 2,
            )
            if exact is not None:
                _check_sum(path, math.sqrt(loss.dropped), expected, exact)
            losses[path] = loss
        return losses

    def _sum(self, path: str) -> LowRankFactors:
        """Return the weighted sum in float64, computed from each adapter's factors again."""
        n_out, n_in = self._shapes[path]
        total = LowRankFactors(torch.zeros(0, n_in), torch.zeros(n_out, 0))
        for file, weight in zip(self._files, self._mixing.weights, strict=True):
            if path in file.shapes:
                part = file.layers[path]
                total = total.minus(LowRankFactors(part.A.double(), part.B.double() * -weight))
        return total.drop_zeros()

    def _outline(self) -> Adapter:
        """Return the adapter, with each layer as it is in one of the files."""
        metas = [file.meta for file in self._files]
        shared = {
            name: getattr(metas[0], name)
            for name in _SHARED
            if all(getattr(meta, name) == getattr(metas[0], name) for meta in metas)
        }
        layers = {path: part for file in self._files for path, part in file.factored.items()}
        rest = (part for part in self._files[0].parts if part.path not in layers)
        return dataclasses.replace(
            self._files[0].with_parts((*layers.values(), *rest)),
            task_type=self._task_type,
            fan_in_fan_out=any(file.fan_in_fan_out for file in self._files),
            meta=AdapterMeta(**shared),
        )

    def _entry(self, keep: Keep, error: float) -> dict[str, Any]:
        mixing = self._mixing
        entry: dict[str, Any] = {
            "command": "combine",
            "from": [
                str(unpacked_from(f.source.directory) or f.source.directory) for f in self._files
            ],
            "weights": list(mixing.weights),
            "way": mixing.method,
        }
        if mixing.method != LINEAR:
            entry["density"] = mixing.density
        if mixing.method == DARE:
            entry["seed"] = mixing.seed
        return entry | keep.given() | {"relative_error": error}


def _record(folder: Path, entry: Mapping[str, Any]) -> None:
    meta, base = read_sora_file(folder / SORA_FILE)
    assert base is not None  # it has just been written
    write_sora_file(folder / SORA_FILE, meta.model_copy(update={"lineage": (entry,)}), base)


def _check_sum(path: str, distance: float, expected: LowRankFactors, dtype: str) -> None:
    """Check that factors differ from a sum by no more than rounding to their dtype explains."""
    # (1 + u)^2 for the two halves of each term, u = eps / 2, and a few roundings in float32
    rounding = 1.5 * torch.finfo(getattr(torch, dtype)).eps + 4 * torch.finfo(torch.float32).eps
    if distance > rounding * float(expected.component_norms().sum()):
        raise SoraError(f"'{path}' is not the weighted sum of the updates: off by {distance:.2g} "
                        f"of {expected.norm():.2g}")  # fmt: skip


def _shapes(files: Sequence[Adapter]) -> dict[str, tuple[int, int]]:
    shapes: dict[str, tuple[int, int]] = {}
    for file in files:
        for path in file.paths:
            shape = shapes.setdefault(path, file.shapes[path])
            if shape != file.shapes[path]:
                raise SoraError(f"'{path}' has the shape {shape} in one adapter and "
                                f"{file.shapes[path]} in another: their base models differ",
                                where=str(file.source.directory))  # fmt: skip
    return shapes


def _common_value(what: str, files: Sequence[Adapter], values: Sequence[Any]) -> Any:
    """Return the value that all adapters with a known value share; None if none is known."""
    known = {value: file for value, file in zip(values, files, strict=True) if value is not None}
    if len(known) > 1:
        (one, first), (other, second) = list(known.items())[:2]
        raise SoraError(f"the adapters differ in their {what}: {one} and {other}",
                        where=f"{first.source.directory}, {second.source.directory}")  # fmt: skip
    return next(iter(known), None)


def _check_bases(files: Sequence[Adapter]) -> tuple[str, ...]:
    """Refuse adapters of different base models; return a note for each that does not record it."""
    identities = [_identity(file.base) for file in files]
    _common_value("base model", files, identities)
    if not all(identities):
        _common_value("base model", files, [file.base.hub_id for file in files])
    first = next((file for file in files if file.base.fingerprint is not None), files[0])
    return tuple(
        unrecorded(f"the base model of {first.source.directory}", file.source.directory)
        for file in files
        if file is not first and file.base.fingerprint is None
    )


def _identity(base: BaseReference) -> str | None:
    """Return the fingerprint of an adapter's base model, as recorded or from its files here."""
    if base.fingerprint is not None or base.here is None:
        return base.fingerprint
    return fingerprint(Path(base.here))


def _check_heads(files: Sequence[Adapter]) -> None:
    first = files[0]
    for file in files[1:]:
        same = set(file.full) == set(first.full) and all(
            torch.equal(file.head[name], first.head[name]) for name in first.full
        )
        if not same or file.meta.labels != first.meta.labels:
            full = {m for f in (first, file) for m in (*f.head_modules, *f.base_weights)}
            modules = sorted(full) or ["labels"]
            raise SoraError(
                f"the adapters differ in parts stored in full: {', '.join(modules[:3])}",
                where=f"{first.source.directory}, {file.source.directory}",
                hint="heads cannot be combined: train with a frozen head "
                "(training.train_head=false), or without one",
            )

"""Dependencies between a sweep's runs: values taken from a run, and runs to start from.

cases:
  lora: {method.name: lora, training.keep_checkpoints: [0.8]}
  cut: {from: lora, start.mean_rank: 1.2, training.max_steps: 0}
  healed: {from: {case: lora, step: 0.8}, method.name: cut, method.target_r: 1.2}

A case with `from` inherits the keys of that case, and its own keys replace them. No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from methods.schedules import steps_of
from methods.words import did_you_mean
from sora_cli.core.errors import SoraError
from sora_cli.core.words import first_few
from sora_cli.experiments.sweep.axes import Axis
from sora_cli.experiments.sweep.definition import LoadedSweep, Reference
from sora_cli.recipe.recipe import Recipe
from sora_cli.recipe.types import Block, Moment
from sora_cli.train.checkpoint.fork import check_recipe

FROM = "from"
"""Special key of cases; besides `recipe` the only one that is not a key of a recipe."""
_METHOD = "method"
_START = "start"
_OUTPUT = "output"


class Begin(Block):
    """The start of a case: the run of another case with otherwise equal values."""

    case: str = Field(description="name of the other case")
    step: Moment | None = Field(
        None,
        description="checkpoint to continue from: a number of steps, or below 1 a share of that "
        "run. Default: its finished adapter",
    )

    @property
    def key(self) -> str:
        """The recipe's key for the directory of the other run."""
        return f"{_START}.adapter" if self.step is None else f"{_START}.checkpoint"


def begin_of(sweep: LoadedSweep, case: str) -> Begin | None:
    """Read and check the `from` of a case; None if the case has none."""
    given, where = sweep.sweep.cases[case].get(FROM), sweep.place("cases", case, FROM)
    if given is None:
        return None
    try:
        begin = Begin.model_validate({"case": given} if isinstance(given, str) else given)
    except ValidationError as error:
        message = error.errors(include_url=False)[0]["msg"]
        raise SoraError(
            f"case {case}: from: {message}",
            where=where,
            hint="from: CASE, or from: {case: CASE, step: 0.8}",
        ) from error
    others = [name for name in sweep.sweep.cases if name != case]
    if begin.case not in others:
        raise SoraError(
            f"case {case}: there is no other case '{begin.case}' to start from",
            where=where,
            hint=did_you_mean(begin.case, others) if others else None,
        )
    if sweep.sweep.kind != "train":
        raise SoraError(f"case {case}: from needs kind: train", where=where)
    return begin


def whole_cases(sweep: LoadedSweep) -> dict[str, dict[str, Any]]:
    """Return all keys of each case, including inherited keys; an error if cases form a cycle."""
    return {case: _whole(sweep, case, ()) for case in sweep.sweep.cases}


def _whole(sweep: LoadedSweep, case: str, chain: tuple[str, ...]) -> dict[str, Any]:
    if case in chain:
        raise SoraError(
            f"cases start from each other: {' -> '.join((*chain, case))}",
            where=sweep.place("cases", case, FROM),
        )
    own, begin = sweep.sweep.cases[case], begin_of(sweep, case)
    if begin is None:
        return own
    below = _whole(sweep, begin.case, (*chain, case))
    return {key: v for key, v in below.items() if _is_inherited(key, own)} | own


def _is_inherited(key: str, own: Mapping[str, Any]) -> bool:
    """Return True if a case inherits this key from the case in its `from`.

    A case with another method does not inherit the options of the first method. Start, output and
    kept checkpoints are never inherited.
    """
    block = key.partition(".")[0]
    another_method = _METHOD in own or f"{_METHOD}.name" in own
    if block in (FROM, _START, _OUTPUT) or key == "training.keep_checkpoints":
        return False
    return not (block == _METHOD and another_method)


@dataclass(frozen=True)
class BeginsWith:
    """A planned run's start from the adapter or a checkpoint of another run.

    Attributes:
        run: name of the other run.
        begin: the `from` of the case.
        place: file and line of the `from`.
    """

    run: str
    begin: Begin
    place: str

    def values(self, folder: Path) -> dict[str, Any]:
        """Return the recipe's `start` keys and values; `folder` is the directory of the sweep."""
        step = {} if self.begin.step is None else {f"{_START}.step": self.begin.step}
        derived = {"output.derived": [self.begin.key]}
        return {self.begin.key: str(folder / self.run), **step, **derived}

    def check(self, before: Recipe, now: Recipe, name: str) -> None:
        """Check that the other run will leave the needed adapter or checkpoint, and that it fits.

        Args:
            before: recipe of the other run.
            now: recipe of this run, with the name `name`.
        """
        try:
            self._check(before, now)
        except SoraError as error:
            what = f"run {name}: {error.what}"
            raise SoraError(what, where=self.place, hint=error.hint) from error

    def _check(self, before: Recipe, now: Recipe) -> None:
        step = self.begin.step
        if step is not None:
            if not _keeps(before, step):
                raise SoraError(
                    f"{self.run} does not keep its checkpoint of step {step:g}",
                    hint=f"training.keep_checkpoints: [{step:g}] in case {self.begin.case}",
                )
            check_recipe(before.resolved(), now.resolved(), self.run)
        elif not before.method.config.low_rank:
            raise SoraError(
                f"{self.run} ends without an adapter: its method is {before.method.name}"
            )


def _keeps(recipe: Recipe, step: float) -> bool:
    block, total = recipe.training, recipe.training.max_steps
    if total is None:
        return step in block.keep_checkpoints
    return 0 < steps_of(step, total) <= total and steps_of(step, total) in block.kept_steps(total)


def begins_with(
    sweep: LoadedSweep,
    axes: Sequence[Axis],
    point: tuple[int, ...],
    names: Mapping[tuple[int, ...], str],
) -> BeginsWith | None:
    """Return the run to start from: another case at the same point; None without `from`."""
    cases = axes[-1].cases if axes else ()
    case = cases[point[-1]] if cases else None
    begin = None if case is None else begin_of(sweep, case)
    if case is None or begin is None:
        return None
    other = names[(*point[:-1], cases.index(begin.case))]
    return BeginsWith(other, begin, sweep.place("cases", case, FROM))


@dataclass(frozen=True)
class Take:
    """A value to take from another run's report.

    Attributes:
        run: name of the other run.
        what: "mean_rank", "components" or "parameters".
    """

    run: str
    what: str


def value_of(
    sweep: LoadedSweep,
    axes: list[Axis],
    point: tuple[int, ...],
    names: Mapping[tuple[int, ...], str],
    key: str,
    value: Mapping[str, Any],
    place: str,
) -> Take:
    """Find the run to take a value from: another case at the same point of the sweep."""
    try:
        reference = Reference.model_validate(value)
    except ValidationError as error:
        message = error.errors(include_url=False)[0]["msg"]
        raise SoraError(
            f"{key}: {message}", where=place, hint="{of: CASE, take: mean_rank}"
        ) from error
    cases = axes[-1].cases
    if reference.of not in cases:
        raise SoraError(
            f"{key}: there is no case '{reference.of}'",
            where=place,
            hint=did_you_mean(reference.of, cases) if cases else None,
        )
    other = cases.index(reference.of)
    if any(isinstance(v, dict) and "of" in v for v in axes[-1].choices[other].values()):
        raise SoraError(f"{key}: case '{reference.of}' itself takes values", where=place)
    if sweep.sweep.kind != "train":
        raise SoraError(f"{key}: taking values of other runs needs kind: train", where=place)
    return Take(names[(*point[:-1], other)], reference.take)


def check_order(needs: Mapping[str, Sequence[str]]) -> None:
    """Raise an error if runs would wait for each other.

    Args:
        needs: run -> runs that must finish before its start.
    """
    left = dict(needs)
    while left:
        startable = [name for name, others in left.items() if not any(o in left for o in others)]
        if not startable:
            raise SoraError(f"these runs wait for each other: {first_few(left)}")
        for name in startable:
            del left[name]

"""The way from a sweep file to its runs: names, directories, checked recipes. No torch here.

plan = plan_sweep("recipes/sweeps/cola-rmax.yaml", ["data.path=DIR"])
[run.loaded.output_dir for run in plan.runs]
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sora_cli.core.console import count, say
from sora_cli.core.errors import SoraError
from sora_cli.core.words import shown_path
from sora_cli.experiments.sweep.axes import Axis, run_names
from sora_cli.experiments.sweep.definition import RECIPE, LoadedSweep, load_sweep
from sora_cli.experiments.sweep.needs import (
    FROM,
    BeginsWith,
    Take,
    begins_with,
    check_order,
    value_of,
    whole_cases,
)
from sora_cli.recipe.layers import override_layers
from sora_cli.recipe.load import LoadedRecipe, load_recipe
from sora_cli.recipe.yaml_lines import parse_value
from sora_cli.run.preflight import check_precision

MAX_RUNS = 10_000
_MANY = 300  # runs whose planning takes long enough to be announced
_DIRECTORY = "output.dir"
_NOT_COMPUTED = ("output", "paper")  # blocks in which two runs may differ and give the same


@dataclass(frozen=True)
class PlannedRun:
    """One run to be made.

    Attributes:
        name: of its directory in the sweep's.
        recipe: what `sora train` is given.
        words: overrides, without the values to come.
        takes: key -> value to come.
        begins: the run that it begins with, if there is one.
        loaded: the checked recipe, where values to come are at their defaults.
    """

    name: str
    recipe: str
    words: tuple[str, ...]
    takes: Mapping[str, Take]
    loaded: LoadedRecipe
    begins: BeginsWith | None = None

    @property
    def directory(self) -> Path:
        """The run's own directory."""
        return self.loaded.output_dir

    @property
    def needs(self) -> list[str]:
        """The runs that must have finished before it starts."""
        others = [take.run for take in self.takes.values()]
        return list(dict.fromkeys(others if self.begins is None else [*others, self.begins.run]))


@dataclass(frozen=True)
class SweepPlan:
    """All runs of a sweep, in order.

    Attributes:
        sweep: the file.
        directory: where the runs' directories go.
        words: overrides for all runs, from the file and the command line.
    """

    sweep: LoadedSweep
    directory: Path
    words: tuple[str, ...]
    runs: tuple[PlannedRun, ...]

    @property
    def kind(self) -> str:
        """The command that carries out each run: "train", "path" or "auto"."""
        return self.sweep.sweep.kind


def plan_sweep(
    path: str | Path, overrides: Sequence[str] = (), *, most: int = MAX_RUNS
) -> SweepPlan:
    """Plan the runs of a sweep file; those of a search are not known yet.

    Args:
        most: refuse more runs than this; about a thousand are planned in a second.
        overrides: `block.key=value` words for all runs; one for a key of the grid replaces its
            values; `output.dir=DIR` is the sweep's own directory, runs/<file's name> if unset.

    Raises:
        SoraError: anything wrong with the file or with one of its recipes, with file and line;
            more runs than `most`; two runs that compute the same.
    """
    sweep = load_sweep(Path(path))
    override_layers(overrides)  # raises where a word is no override
    typed = {word.partition("=")[0].strip(): word for word in overrides}
    common = {key: word(key, value) for key, value in sweep.sweep.set.items()} | typed
    directory = parse_value(common.pop(_DIRECTORY, f"=runs/{sweep.name}").partition("=")[2])
    if not isinstance(directory, str) or not directory:
        raise SoraError(f"{_DIRECTORY} must be a directory, not {directory}")
    axes = _axes(sweep, typed)
    words = tuple(common.values())
    folder = Path(directory).expanduser()
    if sweep.sweep.search:
        return SweepPlan(sweep, folder, words, ())
    _check_count(sweep, axes, most)
    runs = _planned(sweep, axes, words, folder)
    return SweepPlan(sweep, folder, words, tuple(runs))


def word(key: str, value: Any) -> str:
    """Return an override as typed on a command line, which is read as that value again."""
    plain = isinstance(value, str) and _is_itself(value)
    return f"{key}={value if plain else _in_quotes(value)}"


def _in_quotes(value: Any) -> str:
    """Return JSON that is also YAML: what breaks a line there, or is not allowed, is escaped."""
    text = json.dumps(value, ensure_ascii=False)
    return re.sub("[\x7f-\x9f\u2028\u2029\ufeff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _is_itself(text: str) -> bool:
    """Tell whether a text, as it stands, is read as nothing but itself."""
    try:
        return text == text.strip() != "" and parse_value(text) == text
    except SoraError:  # it is no YAML
        return False


def find_base(sweep: LoadedSweep, reference: str | None = None) -> str:
    """Find a base recipe as `sora train` does: a file beside the sweep's, or a packaged name."""
    name = reference or sweep.sweep.recipe
    beside = sweep.path.expanduser().parent / name
    return shown_path(Path(os.path.normpath(beside))) if beside.is_file() else name


def search_base(plan: SweepPlan) -> PlannedRun:
    """Load the recipe of a search before any of its values is chosen."""
    base = find_base(plan.sweep)
    words = (*plan.words, word(_DIRECTORY, str(plan.directory / "base")))
    return PlannedRun("base", base, words, {}, load_checked(plan.sweep, base, words, dict, "base"))


def _axes(sweep: LoadedSweep, typed: Mapping[str, str]) -> list[Axis]:
    file = sweep.sweep
    for key in typed:
        if key in file.paired or any(key in case for case in file.cases.values()):
            raise SoraError(
                f"{key} is what this sweep varies: it cannot be set for all runs",
                where=sweep.place("paired", key) if key in file.paired else sweep.place("cases"),
                hint=f"change it in a copy of {shown_path(sweep.path)}",
            )
    axes = [
        Axis(
            tuple({key: value} for value in values),
            tuple(("grid", key, str(i)) for i in range(len(values))),
        )
        for key, values in file.grid.items()
        if key not in typed
    ]
    if file.paired:
        count = len(next(iter(file.paired.values())))
        rows = [{key: values[i] for key, values in file.paired.items()} for i in range(count)]
        axes.append(Axis(tuple(rows), tuple(("paired",) for _ in rows)))
    if file.cases:
        names = tuple(file.cases)
        places = tuple(("cases", name) for name in names)
        axes.append(Axis(tuple(whole_cases(sweep).values()), places, names))
    return axes


def _check_count(sweep: LoadedSweep, axes: Sequence[Axis], most: int) -> None:
    """Refuse a sweep of too many runs before any of them is planned."""
    runs = math.prod(len(axis.choices) for axis in axes)
    if runs > most:
        sizes = " x ".join(f"{count(len(axis.choices))} ({axis.name})" for axis in axes)
        raise SoraError(
            f"{count(runs)} runs: {count(most)} is the limit",
            where=f"{shown_path(sweep.path)}: {sizes}",
            hint=f"to raise the limit: --max-runs {runs}",
        )
    if runs >= _MANY:
        say(f"planning {count(runs)} runs ...")


def _planned(
    sweep: LoadedSweep, axes: list[Axis], common: tuple[str, ...], folder: Path
) -> list[PlannedRun]:
    points = list(itertools.product(*(range(len(axis.choices)) for axis in axes)))
    names = dict(zip(points, run_names(axes, points), strict=True))
    runs: list[PlannedRun] = []
    seen: dict[str, int] = {}
    for i, point in enumerate(points):
        runs.append(_run(sweep, axes, point, names, common, folder))
        first = seen.setdefault(_content(runs[-1]), i)
        if first != i:
            both = (
                _described(sweep, axes, points[k], points[j]) for k, j in ((first, i), (i, first))
            )
            raise SoraError(
                f"runs {runs[first].name} and {runs[i].name} compute the same: "
                "their recipes are equal",
                where=" and ".join(both),
                hint="take one of the two out",
            )
    check_order({run.name: run.needs for run in runs})
    recipes = {run.name: run.loaded.recipe for run in runs}
    for run in runs:
        if run.begins is not None:
            run.begins.check(recipes[run.begins.run], recipes[run.name], run.name)
    return runs


def _content(run: PlannedRun) -> str:
    """Return everything that decides what a run computes, as text."""
    blocks = {k: v for k, v in run.loaded.resolved().items() if k not in _NOT_COMPUTED}
    takes = [(key, take.run, take.what) for key, take in run.takes.items()]
    return json.dumps([blocks, takes])


def _described(
    sweep: LoadedSweep, axes: Sequence[Axis], point: tuple[int, ...], other: tuple[int, ...]
) -> str:
    """Return what one point of a sweep sets that another does not, and where."""
    parts = []
    for axis, i, j in zip(axes, point, other, strict=True):
        if i != j:
            words = [word(key, value) for key, value in axis.choices[i].items()]
            what = f"case {axis.cases[i]}" if axis.cases else ", ".join(words)
            parts.append(f"{sweep.place(*axis.places[i])} ({what})")
    return ", ".join(parts)


def _run(
    sweep: LoadedSweep,
    axes: list[Axis],
    point: tuple[int, ...],
    names: Mapping[tuple[int, ...], str],
    common: tuple[str, ...],
    folder: Path,
) -> PlannedRun:
    chosen: dict[str, Any] = {}
    case = None
    for axis, i in zip(axes, point, strict=True):
        chosen |= axis.choices[i]
        case = axis.cases[i] if axis.cases else case
    base = find_base(sweep, chosen.pop(RECIPE, None))
    words = list(common)
    begins = begins_with(sweep, axes, point, names)
    if begins is not None:
        del chosen[FROM]
        words += [word(key, value) for key, value in begins.values(folder).items()]
    takes: dict[str, Take] = {}
    for key, value in chosen.items():
        if isinstance(value, dict) and "of" in value:
            place = _places(sweep, axes, point)[key]
            takes[key] = value_of(sweep, axes, point, names, key, value, place)
        else:
            words.append(word(key, value))
    if case is not None and not any(w.startswith("output.label=") for w in words):
        words.append(word("output.label", case))
    words.append(word(_DIRECTORY, str(folder / names[point])))

    def where() -> dict[str, str]:
        places = _places(sweep, axes, point)
        found = {word(key, value): places[key] for key, value in chosen.items()}
        return found | {base: places.get(RECIPE, sweep.place(RECIPE))}

    loaded = load_checked(sweep, base, words, where, names[point])
    return PlannedRun(names[point], base, tuple(words), takes, loaded, begins)


def _places(sweep: LoadedSweep, axes: Sequence[Axis], point: tuple[int, ...]) -> dict[str, str]:
    """Return the file and line of each key that a point of the sweep sets."""
    return {
        key: sweep.place(*axis.places[i], key)
        for axis, i in zip(axes, point, strict=True)
        for key in axis.choices[i]
    }


def load_checked(
    sweep: LoadedSweep,
    base: str,
    words: Sequence[str],
    where: Callable[[], Mapping[str, str]],
    name: str,
) -> LoadedRecipe:
    """Load and check the recipe of a run; errors say where in the sweep file.

    Args:
        where: asked only after an error for the place of each word, and of the base recipe.
    """
    try:
        loaded = load_recipe(base, words)
        with loaded.recipe.placing():
            check_precision(loaded.recipe, "sora sweep")
        return loaded
    except SoraError as error:
        places = where()
        typed = (error.where or "").removeprefix("command line: ")
        place = places.get(typed) or (
            sweep.place("set", typed.partition("=")[0]) if typed in words else error.where
        )
        origin = places.get(base, shown_path(sweep.path)) if place is None else place
        raise SoraError(f"run {name}: {error.what}", where=origin, hint=error.hint) from error

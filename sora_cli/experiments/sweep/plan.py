"""Plan a sweep: build the names, directories and checked recipes of its runs. No torch here.

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
from sora_cli.core.shell import as_operand
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
_MANY = 300  # from this many runs on, planning takes long enough to be announced
_DIRECTORY = "output.dir"
_NOT_COMPUTED = ("output", "paper")  # blocks without influence on a run's result


@dataclass(frozen=True)
class PlannedRun:
    """A run of a sweep, before it starts.

    Attributes:
        name: its directory inside the sweep's directory.
        recipe: recipe file or name for `sora train`.
        words: overrides, without the values to be taken from other runs.
        takes: key -> value to be taken from another run.
        loaded: the checked recipe; values to be taken from other runs have their defaults.
        begins: the run to start from; None if it starts from scratch.
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
        """Names of the runs that must finish before this run starts."""
        others = [take.run for take in self.takes.values()]
        return list(dict.fromkeys(others if self.begins is None else [*others, self.begins.run]))


@dataclass(frozen=True)
class SweepPlan:
    """All runs of a sweep, in order.

    Attributes:
        directory: parent of the runs' directories.
        words: overrides for all runs, from the file and the command line.
        runs: empty for a search, where Optuna chooses them.
    """

    sweep: LoadedSweep
    directory: Path
    words: tuple[str, ...]
    runs: tuple[PlannedRun, ...]

    @property
    def kind(self) -> str:
        """The command of each run: "train", "path" or "auto"."""
        return self.sweep.sweep.kind


def plan_sweep(
    path: str | Path, overrides: Sequence[str] = (), *, most: int = MAX_RUNS
) -> SweepPlan:
    """Plan the runs of a sweep file, and check all their recipes before any of them starts.

    It is an error if two runs would compute the same.

    Args:
        overrides: `block.key=value` words for all runs. A word for a key of `grid` replaces its
            values. `output.dir=DIR` sets the directory of the sweep (default: runs/NAME).
        most: limit of runs; about a thousand are planned in a second.
    """
    sweep = load_sweep(Path(path))
    override_layers(overrides)  # for its errors only: a word that is no override
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
    """Return an override as a word of a command line; reading the word gives the same value."""
    plain = isinstance(value, str) and _is_itself(value)
    return f"{key}={value if plain else _in_quotes(value)}"


def _in_quotes(value: Any) -> str:
    """Return a value as JSON that is also valid YAML.

    Control characters, line separators and the byte-order mark are escaped: JSON allows them in a
    string, YAML does not or takes them for a line break.
    """
    text = json.dumps(value, ensure_ascii=False)
    return re.sub("[\x7f-\x9f\u2028\u2029\ufeff]", lambda match: f"\\u{ord(match[0]):04x}", text)


def _is_itself(text: str) -> bool:
    """Return True if YAML reads the unquoted text as this same text ("3" and "no" are not)."""
    try:
        return text == text.strip() != "" and parse_value(text) == text
    except SoraError:  # not valid YAML
        return False


def find_base(sweep: LoadedSweep, reference: str | None = None) -> str:
    """Return the base recipe: a file relative to the sweep file, otherwise a packaged name."""
    name = reference or sweep.sweep.recipe
    beside = sweep.path.expanduser().parent / name
    return as_operand(shown_path(Path(os.path.normpath(beside)))) if beside.is_file() else name


def search_base(plan: SweepPlan) -> PlannedRun:
    """Load the base recipe of a search, without chosen values."""
    base = find_base(plan.sweep)
    words = (*plan.words, word(_DIRECTORY, str(plan.directory / "base")))
    return PlannedRun("base", base, words, {}, load_checked(plan.sweep, base, words, dict, "base"))


def _axes(sweep: LoadedSweep, typed: Mapping[str, str]) -> list[Axis]:
    file = sweep.sweep
    for key in typed:
        if key in file.paired or any(key in case for case in file.cases.values()):
            raise SoraError(
                f"this sweep varies {key}: it cannot be set for all runs",
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
    """Raise an error if a sweep has too many runs, before any of them is planned."""
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
                hint="remove one of the two",
            )
    check_order({run.name: run.needs for run in runs})
    recipes = {run.name: run.loaded.recipe for run in runs}
    for run in runs:
        if run.begins is not None:
            run.begins.check(recipes[run.begins.run], recipes[run.name], run.name)
    return runs


def _content(run: PlannedRun) -> str:
    """Return all settings that influence a run's result, as text."""
    blocks = {k: v for k, v in run.loaded.resolved().items() if k not in _NOT_COMPUTED}
    takes = [(key, take.run, take.what) for key, take in run.takes.items()]
    return json.dumps([blocks, takes])


def _described(
    sweep: LoadedSweep, axes: Sequence[Axis], point: tuple[int, ...], other: tuple[int, ...]
) -> str:
    """Return the values in which one point of a sweep differs from another, with their lines."""
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
        words_at = {word(key, value): places[key] for key, value in chosen.items()}
        return words_at | {base: places.get(RECIPE, sweep.place(RECIPE))}

    loaded = load_checked(sweep, base, words, where, names[point])
    return PlannedRun(names[point], base, tuple(words), takes, loaded, begins)


def _places(sweep: LoadedSweep, axes: Sequence[Axis], point: tuple[int, ...]) -> dict[str, str]:
    """Return file and line of each key that a point of the sweep sets."""
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
    """Load and check the recipe of a run; errors name the line of the sweep file.

    Args:
        where: returns the place of each word and of the base recipe. It is slow for a large sweep,
            so it is called only after an error.
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

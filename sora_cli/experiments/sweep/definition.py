"""The sweep file: it defines the runs of an experiment. No torch, no Optuna here.

Unknown keys are errors, as in recipes. An example:

recipe: ../rte.yaml
set: {training.epochs: 3}
grid: {training.seed: [0, 21, 42]}
paired: {data.name: [rte, cola], training.learning_rate: [1e-3, 8e-4]}
cases:
  sora: {method.name: sora}
  adalora: {method.name: adalora, method.target_r: {of: sora, take: mean_rank}}

Instead of grid, paired and cases, a `search` block lets Optuna choose values.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from methods.words import did_you_mean
from sora_cli.core.errors import SoraError
from sora_cli.core.words import shown_path
from sora_cli.recipe.library import find_sweep
from sora_cli.recipe.types import Block, Count, Seed
from sora_cli.recipe.yaml_lines import Tree, parse_file

Values = Annotated[list[Any], Field(min_length=1)]
RECIPE = "recipe"
"""Special key in grid, paired and cases: the base recipe itself, not a key of a recipe."""


class Reference(Block):
    """A value taken from the run of another case with otherwise equal values."""

    of: str = Field(description="name of the other case")
    take: Literal["mean_rank", "components", "parameters"] = Field(
        description="value of the finished run: mean number of live components per module, live "
        "components in all, or parameters left in the adapter"
    )


class SweepFile(Block):
    """The content of a sweep file."""

    recipe: str = Field(
        "", description="base recipe: a file, relative to this one, or a packaged recipe's name"
    )
    kind: Literal["train", "path", "auto"] = Field(
        "train", description="command of each run: sora train, sora path or sora auto"
    )
    set: dict[str, Any] = Field({}, description="recipe keys and their values, for all runs")
    grid: dict[str, Values] = Field(
        {}, description="recipe key -> list of values; every combination is a run"
    )
    paired: dict[str, Values] = Field(
        {},
        description="recipe key -> list of values, all lists of one length; the first values "
        "belong together, the second values, ...",
    )
    cases: dict[str, dict[str, Any]] = Field(
        {},
        description="name -> recipe keys and values, one run each; the name becomes output.label; "
        "`from: CASE` starts from the run of another case",
    )
    search: SearchBlock | None = Field(
        None, description="let Optuna choose values, instead of grid, paired and cases"
    )

    @model_validator(mode="after")
    def _consistent(self) -> SweepFile:
        if self.search and (self.grid or self.paired or self.cases):
            raise ValueError("search cannot be combined with grid, paired or cases")
        if self.search and self.kind != "train":
            raise ValueError("search needs kind: train")
        lengths = {key: len(values) for key, values in self.paired.items()}
        if len(set(lengths.values())) > 1:
            sizes = ", ".join(f"{key} has {n}" for key, n in lengths.items())
            raise ValueError(f"lists in paired must have the same length: {sizes}")
        self._no_key_twice()
        if not self.recipe and not any(RECIPE in keys for keys in self._varied()):
            raise ValueError("no recipe is named; add a line: recipe: FILE")
        return self

    def _varied(self) -> list[dict[str, Any]]:
        return [self.grid, self.paired, *self.cases.values()]

    def _no_key_twice(self) -> None:
        for case, keys in self.cases.items():
            for key in keys:
                if key in self.grid or key in self.paired:
                    block = "grid" if key in self.grid else "paired"
                    raise ValueError(f"{key} is set in {block} and in case {case}")
        for key in self.grid:
            if key in self.paired:
                raise ValueError(f"{key} is set in grid and in paired")


@dataclass(frozen=True)
class LoadedSweep:
    """A valid sweep file with the line numbers of its keys.

    Attributes:
        sweep: the checked content.
        tree: plain values with their lines.
    """

    path: Path
    sweep: SweepFile
    tree: Tree

    @property
    def name(self) -> str:
        """The file's name without its suffix."""
        return self.path.stem

    def place(self, *key: str) -> str:
        """Return the file and line of a key; for a missing key, of the block around the key."""
        return _place(self.tree, shown_path(self.path), key)


def load_sweep(path: Path) -> LoadedSweep:
    """Read and check a sweep file, given by its path or by the name of a packaged sweep."""
    path = find_sweep(path)
    file = shown_path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise SoraError(f"'{file}' cannot be read: {reason}") from error
    tree = parse_file(content, file)
    try:
        return LoadedSweep(path, SweepFile.model_validate(tree.values), tree)
    except ValidationError as error:
        raise _sweep_error(error, tree, file) from error


def _sweep_error(error: ValidationError, tree: Tree, file: str) -> SoraError:
    first = error.errors(include_url=False)[0]
    key = tuple(str(part) for part in first["loc"])
    where = _place(tree, file, key)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] != "extra_forbidden":
        name = ".".join(key)
        return SoraError(f"{name}: {message}" if name else message, where=where)
    if len(key) == 1:
        hint = did_you_mean(key[0], SweepFile.model_fields)
        if "." in key[0]:
            hint = f"put recipe keys into set, grid, paired or cases: set: {{{key[0]}: ...}}"
        return SoraError(f"unknown key '{key[0]}' in a sweep file", where=where, hint=hint)
    known = did_you_mean(key[-1], SearchBlock.model_fields) if key[:-1] == ("search",) else None
    return SoraError(f"unknown key '{key[-1]}' in {'.'.join(key[:-1])}", where=where, hint=known)


def _place(tree: Tree, file: str, key: tuple[str, ...]) -> str:
    for end in range(len(key), 0, -1):
        if key[:end] in tree.origins:
            return str(tree.origins[key[:end]])
    return file


Choice = bool | int | float | str | None
Objective = Literal["metric", "parameters"]


class Range(Block):
    """The values of a searched key: a range of numbers, or a list of choices."""

    low: int | float | None = Field(
        None, description="smallest value; if low, high and step are whole, so are all values"
    )
    high: int | float | None = Field(None, description="largest value")
    log: bool = Field(False, description="draw on a logarithmic scale, as for learning rates")
    step: int | float | None = Field(
        None, gt=0, description="distance between values; not with log"
    )
    choices: Annotated[list[Choice], Field(min_length=2)] | None = Field(
        None, description="list of values, instead of low and high"
    )

    @property
    def whole(self) -> bool:
        """True if all values are whole numbers."""
        return all(isinstance(n, int) for n in (self.low, self.high, self.step or 1))

    @model_validator(mode="after")
    def _one_kind(self) -> Range:
        bounds = self.low is not None and self.high is not None
        if (self.choices is not None) == (self.low is not None or self.high is not None):
            raise ValueError("give low and high, or choices")
        if self.choices is None and not bounds:
            raise ValueError("low and high go together")
        if self.choices is not None and (self.log or self.step):
            raise ValueError("log and step go with low and high")
        if len(set(map(repr, self.choices or ()))) < len(self.choices or ()):
            raise ValueError("choices hold a value twice")
        if bounds and self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low must be below high, not {self.low:g} and {self.high:g}")
        if self.log and self.low is not None and self.low <= 0:
            raise ValueError("log needs a low above 0")
        if self.log and self.step:
            raise ValueError("step does not go with log")
        return self


class SearchBlock(Block):
    """A search: each run is a trial with values that Optuna chooses."""

    space: Annotated[dict[str, Range], Field(min_length=1)] = Field(
        description="recipe key -> {low, high, log, step} or {choices}"
    )
    objectives: Annotated[list[Objective], Field(min_length=1, max_length=2)] = Field(
        ["metric"],
        description="metric: score of the kept weights on the selection rows; parameters: "
        "parameters left in the adapter (fewer is better). With both: the Pareto front",
    )
    trials: Count = Field(20, description="number of runs, including pruned runs")
    seed: Seed = Field(0, description="seed of Optuna's sampler")
    pruning: bool = Field(
        False, description="stop a trial if its evaluations fall behind the median of the others"
    )
    startup_trials: Count = Field(
        5, description="number of first trials with random values; these are not pruned"
    )

    @model_validator(mode="after")
    def _possible(self) -> SearchBlock:
        if len(set(self.objectives)) < len(self.objectives):
            raise ValueError("an objective is given twice")
        if self.pruning and len(self.objectives) > 1:
            raise ValueError("pruning needs a single objective; there are two")
        if self.pruning and self.objectives == ["parameters"]:
            raise ValueError("pruning compares the metric, but the objective is parameters")
        return self

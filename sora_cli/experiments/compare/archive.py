"""Many runs in one file of JSON lines, with what a comparison needs of their reports.

A line holds `directory`, where the run was, relative to what all runs of the file have in common,
and fields of its report as `report.json` has them. Left out is what no comparison shows; absolute
paths, which mean nothing on another machine, are cut to their last part. In the place of a stage's
own seed, which only orders its rows, stands that of its path.

A path below such a file selects runs as if it were a directory: `runs.jsonl/main` or, in quotes,
`'runs.jsonl/main/rte-*'`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import Path, PurePath
from typing import Any

from pydantic import ValidationError

from methods.words import did_you_mean
from sora_cli.core.errors import SoraError, first_mistake, reason
from sora_cli.experiments.compare.runs import SEED, Run, selection_scores
from sora_cli.report import RunReport

SUFFIX = ".jsonl"
_KEPT = {
    "schema_version", "status", "name", "started", "finished", "recipe", "environment", "seconds",
    "peak_memory_bytes", "start", "resumed", "steps", "best_step", "metrics", "main_metric",
    "ranks", "parameters",
}  # fmt: skip


def write_lines(runs: Sequence[Run]) -> str:
    """Return the content of a file that holds these runs, in their order."""
    names = _names([run.directory for run in runs])
    values = [{"directory": name, **_values(run)} for name, run in zip(names, runs, strict=True)]
    lines = [json.dumps(line, ensure_ascii=False, separators=(",", ":")) for line in values]
    return "".join(f"{line}\n" for line in lines)


def find_file(place: Path) -> tuple[Path, PurePath] | None:
    """Split a place into a file of runs and what is selected in it; None if it is in no such file.

    All runs are selected by ".".
    """
    for file in (place, *place.parents):
        if file.suffix == SUFFIX and file.is_file():
            return file, place.relative_to(file)
    return None


def read_lines(file: Path, selection: PurePath) -> Iterator[tuple[Path, RunReport | str]]:
    """Read the selected runs of a file.

    Yields:
        Each run's directory, below the file, and its report or why there is none.

    Raises:
        SoraError: the file cannot be read, or has no run of that name.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise SoraError(f"{file} cannot be read: {reason(error, file)}") from error
    except ValueError as error:
        raise SoraError(f"{file} cannot be read: {error}") from error
    names: dict[str, None] = {}
    found = False
    for number, line in enumerate(lines, 1):
        directory = _directory(line) or selection / f"line {number}"
        names.update(dict.fromkeys(directory.parts[:1]))
        if _is_selected(directory.parts, selection.parts):
            found = True
            yield file / directory, _report(line)
    if not found and selection.parts:
        raise SoraError(
            f"{file} holds no run '{selection}'", hint=did_you_mean(selection.parts[0], names)
        )


def _directory(line: str) -> PurePath | None:
    try:
        return PurePath(json.loads(line)["directory"])
    except (ValueError, TypeError, KeyError):
        return None


def _report(line: str) -> RunReport | str:
    try:
        return RunReport.model_validate_json(line)
    except ValidationError as error:
        return f"no run's report ({first_mistake(error)})"


def _is_selected(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    """Tell whether a directory, or one that it is in, is called so."""
    return len(parts) >= len(patterns) and all(map(fnmatchcase, parts, patterns))


def _names(directories: Sequence[Path]) -> list[str]:
    """Return the directories without what all of them begin with."""
    parts = [_below_file(directory) for directory in directories]
    folders = zip(*(path[:-1] for path in parts), strict=False)
    common = len(list(takewhile(lambda same: len(set(same)) == 1, folders)))
    return ["/".join(path[common:]) for path in parts]


def _below_file(directory: Path) -> tuple[str, ...]:
    """Return the parts of an absolute path; of a run that a file holds, those below the file."""
    found = find_file(directory)
    return directory.absolute().parts if found is None else found[1].parts


def _values(run: Run) -> dict[str, Any]:
    report = run.report
    values: dict[str, Any] = json.loads(report.model_dump_json(include=_KEPT))
    values["start"] = _without_folders(values["start"])
    recipe = _without_folders(values["recipe"])
    block, _, key = SEED.partition(".")
    recipe[block] = {**recipe[block], key: run.seed}
    recipe["output"] = {"label": run.label, "derived": list(run.derived)}
    recipe.pop("resources", None)
    scores = selection_scores(report)
    values |= {
        "recipe": recipe,
        "history": [{"step": step, f"eval_{report.main_metric}": s} for step, s in scores.items()],
        "base": {"fingerprint": report.base.fingerprint},
        "data": {"fingerprints": report.data.fingerprints},
    }
    return values


def _without_folders(value: Any) -> Any:
    """Return a recipe's value with absolute paths cut to their last part."""
    if isinstance(value, dict):
        return {key: _without_folders(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_folders(part) for part in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value

"""Archive of runs: one JSON line per run, with the fields of its report that comparisons use.

Each line holds `directory`, the run's directory relative to the common parent of all runs in the
file, and fields of the report under the same keys as in `report.json`. Absolute paths mean nothing
on another machine and are shortened to their last part. A stage of a path is stored with the seed
of the path, because its own seed only orders its rows.

A path below an archive selects runs as if the archive were a directory: `runs.jsonl/main` or, in
quotes, `'runs.jsonl/main/rte-*'`.
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
    """Return the text of an archive of these runs, in the given order."""
    names = _names([run.directory for run in runs])
    values = [{"directory": name, **_values(run)} for name, run in zip(names, runs, strict=True)]
    lines = [json.dumps(line, ensure_ascii=False, separators=(",", ":")) for line in values]
    return "".join(f"{line}\n" for line in lines)


def find_file(place: Path) -> tuple[Path, PurePath] | None:
    """Split a path into an archive and the selection below it; None if no archive is on the path.

    The selection "." means all runs.
    """
    for file in (place, *place.parents):
        if file.suffix == SUFFIX and file.is_file():
            return file, place.relative_to(file)
    return None


def read_lines(file: Path, selection: PurePath) -> Iterator[tuple[Path, RunReport | str]]:
    """Read the selected runs of an archive; an error if none matches.

    Yields:
        The run's directory (below the file), and its report or the reason why it is invalid.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise SoraError(f"{file} cannot be read: {reason(error, file)}") from error
    except ValueError as error:
        raise SoraError(f"{file} cannot be read: {error}") from error
    names: dict[str, None] = {}
    has_match = False
    for number, line in enumerate(lines, 1):
        directory = _directory(line) or selection / f"line {number}"
        names.update(dict.fromkeys(directory.parts[:1]))
        if _is_selected(directory.parts, selection.parts):
            has_match = True
            yield file / directory, _report(line)
    if not has_match and selection.parts:
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
    """Return True if a directory, or a parent of it, matches the patterns part by part."""
    return len(parts) >= len(patterns) and all(map(fnmatchcase, parts, patterns))


def _names(directories: Sequence[Path]) -> list[str]:
    """Return the directories relative to their common parent."""
    parts = [_below_file(directory) for directory in directories]
    folders = zip(*(path[:-1] for path in parts), strict=False)
    common = len(list(takewhile(lambda same: len(set(same)) == 1, folders)))
    return ["/".join(path[common:]) for path in parts]


def _below_file(directory: Path) -> tuple[str, ...]:
    """Return the parts of the absolute path; for a run from an archive, the parts below it."""
    split = find_file(directory)
    return directory.absolute().parts if split is None else split[1].parts


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

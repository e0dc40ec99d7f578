"""Compare a run's result with its report, by digests of the files that decide its answers.

Weights alone do not decide answers: the class names, the maximum length of rows and the tokenizer
are files beside them, and could be exchanged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any

from sora_cli.adapter.metadata import AdapterMeta, BaseReference, read_sora_file
from sora_cli.adapter.moved import located
from sora_cli.adapter.places import ADAPTER, DELTA, MODEL
from sora_cli.adapter.row_recipe import row_recipe
from sora_cli.core.errors import SoraError
from sora_cli.core.shell import quote
from sora_cli.core.words import listed, shown_value
from sora_cli.model.files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    ASKED,
    CARD,
    CERTIFICATE,
    DELTA_FILE,
    MODEL_CONFIG,
    PROCESSOR_FILES,
    SORA_FILE,
    TRAINED_ON,
)
from sora_cli.model.fingerprint import fingerprint
from sora_cli.model.references import local_checkpoint, resolve_model_path
from sora_cli.recipe.changes import flat
from sora_cli.report import FILE_NAME, RunReport, read_report

_NOT_THE_ADAPTER = ("base_model_name_or_path", "revision")
"""Keys of PEFT's configuration with the place of the base model."""
_DECIDING = {"task", "labels", "num_labels", "problem_type", "max_length", "input_columns"}
"""Keys of `sora.json` that decide a model's input and the names of its answers."""
_FEW = 12  # items of a list that are shown
_BESIDE = (SORA_FILE, MODEL_CONFIG, *PROCESSOR_FILES)
"""Files that decide answers beside the weights."""
_BASE = ""  # the key of the base model's place: no file has this name
_NO_ANSWER = {CARD, CERTIFICATE, ASKED, TRAINED_ON, ".gitattributes"}
"""Files that no answer depends on."""


def result_digest(folder: Path) -> str | None:
    """Return the digest of an adapter, a delta or a whole model; None if it cannot be read.

    Of an adapter or a delta: the SHA-256 of its weights and of its configuration, without the place
    of the base model. Of a whole model: its fingerprint, since the files are large.
    """
    try:
        for name in (ADAPTER_WEIGHTS, DELTA_FILE):
            if (folder / name).is_file():
                return _digest(folder / name, folder / ADAPTER_CONFIG)
        return fingerprint(folder)
    except (OSError, ValueError, SoraError):
        return None


def _digest(weights: Path, config: Path) -> str:
    with weights.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
    digest.update(_settings(config).encode())
    return f"sha256:{digest.hexdigest()}"


def _settings(config: Path) -> str:
    """Return PEFT's configuration but for the base: another lora_alpha changes the outputs, too."""
    if not config.is_file():
        return ""
    read = json.loads(config.read_bytes())
    settings = {key: value for key, value in read.items() if key not in _NOT_THE_ADAPTER}
    return json.dumps(settings, sort_keys=True)


def result_digests(folder: Path) -> dict[str, str]:
    """Return {file name: digest} for a result and for the files in it that decide answers.

    The dictionary is empty if the result cannot be read.
    """
    files = [folder / name for name in _BESIDE if (folder / name).is_file()]
    digests = {place.relative_to(folder.parent).as_posix(): _digest_at(place)
             for place in (folder, *files)}  # fmt: skip
    return {name: digest for name, digest in digests.items() if digest is not None}


def deciding_digests(folder: Path, on: str | None = None) -> dict[str, str] | None:
    """Return {file name: digest} for every file that decides the answers of a model at a place.

    Two places with equal digests give the same answers. All bytes count, of whole models, too: a
    fingerprint samples them. The base model of an adapter or a delta is its resolved place; where
    two places differ, its files are compared: see `same_answers`.

    Args:
        folder: directory of an adapter, a delta or a model.
        on: the base model named by the user; None: the recorded one.

    Returns:
        None if it is not known: a file cannot be read, or the base model is not on this disk.
    """
    try:
        found = _bytes_of(folder)
        found[_BASE] = "" if _is_whole(folder) else str(_base_place(folder, on))
        found[ADAPTER_CONFIG] = _settings(folder / ADAPTER_CONFIG)
        meta = read_sora_file(folder / SORA_FILE)[0]
        facts = {**deciding(meta), "reference": meta.reference}
        found[SORA_FILE] = json.dumps(facts, sort_keys=True)
    except (OSError, ValueError, SoraError):
        return None
    return found


def same_answers(one: tuple[Path, str | None], other: tuple[Path, str | None]) -> bool:
    """Return True if the models at two places are known to give the same answers.

    Args:
        one, other: a place, and the base model named by the user: see `deciding_digests`.
    """
    first, second = deciding_digests(*one), deciding_digests(*other)
    if first is None or second is None:
        return False
    bases = [found.pop(_BASE) for found in (first, second)]
    if first != second or bases[0] == bases[1]:
        return first == second
    try:
        return all(bases) and _bytes_of(Path(bases[0])) == _bytes_of(Path(bases[1]))
    except (OSError, SoraError):
        return False


def _is_whole(folder: Path) -> bool:
    return not any((folder / name).is_file() for name in (ADAPTER_CONFIG, DELTA_FILE))


def _base_place(folder: Path, on: str | None) -> Path:
    """Return the place of the base model on this disk."""
    revision = None
    if on is None:
        base = located(_recorded_base(folder))
        on, revision = base.path if "://" in base.path else base.name(), base.revision
    place = local_checkpoint(resolve_model_path(on), revision)
    if place is None:
        raise SoraError(f"{on} is not on this disk")
    return place.resolve()


def _recorded_base(folder: Path) -> BaseReference:
    if (folder / ADAPTER_CONFIG).is_file():
        from sora_cli.adapter.reading import open_adapter  # heavier than the rest

        with open_adapter(folder) as file:
            return file.base
    base = read_sora_file(folder / SORA_FILE)[1]
    if base is None:
        raise SoraError(f"{folder / SORA_FILE} does not name the base model")
    return base


def _bytes_of(place: Path) -> dict[str, str]:
    """Return {name: digest} for a model's files, but for those that no answer depends on."""
    files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
    found = {}
    for file in files:
        if file.name not in _NO_ANSWER:
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            found["." if file == place else file.relative_to(place).as_posix()] = digest
    if not found:
        raise SoraError(f"{place} holds no files")
    return found


def _digest_at(place: Path) -> str | None:
    if place.is_dir():
        return result_digest(place)
    try:
        if place.name == SORA_FILE:
            content = json.dumps(deciding(read_sora_file(place)[0]), sort_keys=True).encode()
        else:
            content = place.read_bytes()
    except (OSError, SoraError):
        return None
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def deciding(meta: AdapterMeta) -> dict[str, Any]:
    """Return the known facts of `sora.json` about inputs and answers."""
    facts = meta.model_dump(mode="json", include=_DECIDING)
    return _without_unknown({**facts, **_dotted(meta.row_recipe)})


def _dotted(recipe: Mapping[str, Any]) -> dict[str, Any]:
    return {".".join(path): value for path, value in flat(recipe)}


def _without_unknown(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if value not in (None, [])}


def differing_facts(
    one: Mapping[str, Any], other: Mapping[str, Any], names: tuple[str | Path, str | Path]
) -> Iterator[str]:
    """Yield a sentence for each fact that both have with different values; see `deciding`.

    Args:
        names: the two names to use in the sentences.
    """
    for key, value in one.items():
        if key in other and other[key] != value:
            first, second = _value_text(value, other[key]), _value_text(other[key], value)
            yield f"{names[0]} has the {key} {first}, and {names[1]} {second}"


def _value_text(value: Any, other: Any) -> str:
    """Return a value in words; a long list starts at the first item that the other lacks there."""
    if not isinstance(value, list):
        return shown_value(value)
    pairs = zip_longest(value, other)
    same = next(i for i, (a, b) in enumerate(pairs) if a != b) if len(value) > _FEW else 0
    return f"{'..., ' if same else ''}{listed(value[same:], _FEW)}"


def changed_results(run: Path, report: RunReport) -> Iterator[str]:
    """Yield a line for each change of a run's results since its report."""
    for name, digest in report.digests.items():
        if "/" not in name:
            yield from _weights_remark(run / name, name, digest)
            yield from _changed_beside(run / name, report)


def _changed_beside(folder: Path, report: RunReport) -> Iterator[str]:
    if not folder.is_dir():
        return
    recipe, classes = report.recipe, report.data.classes.get("train", {})
    known = {
        "labels": list(classes),
        "task": recipe.get("task", {}).get("name"),
        "max_length": recipe.get("data", {}).get("max_length"),
        **_dotted(row_recipe(recipe)),
    }
    file, name = folder / SORA_FILE, folder.resolve().name
    try:
        recorded = deciding(read_sora_file(file)[0])
    except SoraError:
        recorded = {}
    differences = list(
        differing_facts(recorded, _without_unknown(known), (file, folder.parent / FILE_NAME))
    )
    yield from differences
    for key, digest in report.digests.items():
        place = folder / key.removeprefix(f"{name}/")
        if not key.startswith(f"{name}/") or (differences and place == file):
            continue
        # without its own tokenizer an adapter takes the base model's
        if (place == file or place.is_file()) and _digest_at(place) != digest:
            yield f"{place} has changed since the run, which can change answers"


def former_results(run: Path) -> dict[str, str]:
    """Return the digests of the results in a run's directory, by their names."""
    found = {name: result_digest(run / name) for name in (ADAPTER, DELTA, MODEL)}
    return {name: digest for name, digest in found.items() if digest is not None}


def has_changed(run: Path, report: RunReport) -> bool | None:
    """Return true if a finished run's result differs from its report; None if that is not known.

    Only files that were touched after the end of the run are read. Modification time and inode
    change time both count, since a copy may keep the modification time.
    """
    changed = None
    for name, digest in report.digests.items():
        place = run / name
        if report.finished is None or not place.exists():
            continue
        current = _digest_at(place) if _touched_after(place, report.finished) else digest
        if current is not None:
            changed = bool(changed) or current != digest
    return changed


def _touched_after(place: Path, finished: str) -> bool:
    """Return true if a file, or a file in this folder, was written or copied there after a time."""
    try:
        files = place.iterdir() if place.is_dir() else [place]
        times = [max(s.st_mtime, s.st_ctime) for s in (f.stat() for f in files)]
        return max(times, default=0.0) > datetime.fromisoformat(finished).timestamp()
    except (OSError, ValueError):
        return True


def result_remarks(folder: Path, *, weights: bool = True) -> list[str]:
    """Return a line for each change of a result since its run.

    The list is empty for a result outside the directory of a run. Raises `SoraError` if the run has
    started over and is not finished: the result is that of the run before it.

    Args:
        weights: False: only of the files beside the weights that decide answers.
    """
    place = folder.resolve()
    report = _report_of(place)
    if report is None:
        return []
    if report.status != "completed":
        former = report.former.get(place.name)
        if former is not None and former == result_digest(folder):
            raise _former_error(folder, place.parent)
        return []
    digest = report.digests.get(place.name)
    looked_at = weights and digest is not None
    changed = _weights_remark(folder, place.name, str(digest)) if looked_at else ()
    return [*changed, *_changed_beside(folder, report)]


def _report_of(place: Path) -> RunReport | None:
    """Return the report of the run around a result; None if there is no such run."""
    try:
        return read_report(place.parent) if place.name in (ADAPTER, DELTA, MODEL) else None
    except OSError:
        return None


def _former_error(folder: Path, run: Path) -> SoraError:
    return SoraError(
        f"{folder} is an earlier run's: the run that is there now has not finished",
        where="it will be replaced; to keep it, move it out of that directory",
        hint=f"to see how the run can go on: sora list {quote(str(run))}",
    )


def _weights_remark(folder: Path, name: str, digest: str) -> Iterator[str]:
    current = result_digest(folder) if folder.is_dir() else digest
    if current is None:
        yield f"{folder} cannot be read, so it cannot be compared with the run's report"
    elif current != digest:
        yield f"{folder} has changed since the run: its report describes another {name}"

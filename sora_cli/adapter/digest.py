"""The digest by which a run's report knows its result, and whether what lies there still is it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path

from sora_cli.core.errors import SoraError
from sora_cli.model.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, DELTA_FILE
from sora_cli.model.fingerprint import fingerprint
from sora_cli.report import RunReport, read_report

_NOT_THE_ADAPTER = ("base_model_name_or_path", "revision")
"""Keys of PEFT's configuration that say where the base model is."""


def result_digest(folder: Path) -> str | None:
    """Return the digest of an adapter, a delta or a whole model; None if it cannot be read.

    It is the SHA-256 of an adapter's or a delta's weights and of what the adapter's configuration
    says about them; of a whole model, its fingerprint, for its files are large.
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
    if config.is_file():
        read = json.loads(config.read_bytes())
        said = {key: value for key, value in read.items() if key not in _NOT_THE_ADAPTER}
        digest.update(json.dumps(said, sort_keys=True).encode())
    return f"sha256:{digest.hexdigest()}"


def changed_results(run: Path, digests: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each result in a run's directory that is not the one its report knows.

    Args:
        digests: as in the report; empty in reports of older versions.
    """
    for name, digest in digests.items():
        yield from _remark(run / name, name, digest)


def has_changed(run: Path, report: RunReport) -> bool | None:
    """Tell whether a finished run's result is another than its report's; None: not known.

    Files that were last touched before the report was finished are not read: by their content, or,
    where they were copied since, by their place on the disk.
    """
    changed = None
    for name, digest in report.digests.items():
        folder = run / name
        if report.finished is None or not folder.is_dir():
            continue
        found = result_digest(folder) if _touched(folder, report.finished) else digest
        if found is not None:
            changed = bool(changed) or found != digest
    return changed


def _touched(folder: Path, finished: str) -> bool:
    """Tell whether any file in a folder was written or copied there after a time."""
    try:
        times = [max(s.st_mtime, s.st_ctime) for s in (f.stat() for f in folder.iterdir())]
        return max(times, default=0.0) > datetime.fromisoformat(finished).timestamp()
    except (OSError, ValueError):
        return True


def result_remarks(folder: Path) -> list[str]:
    """Return a line if a result lies in a run's directory whose report describes another one."""
    place = folder.resolve()
    try:
        report = read_report(place.parent)
    except OSError:
        return []
    if report is None or report.status != "completed" or place.name not in report.digests:
        return []
    return list(_remark(folder, place.name, report.digests[place.name]))


def _remark(folder: Path, name: str, digest: str) -> Iterator[str]:
    found = result_digest(folder) if folder.is_dir() else digest
    if found is None:
        yield f"{folder} cannot be read: whether it is what the run's report describes is not known"
    elif found != digest:
        yield f"{folder} has changed since the run: its report describes another {name}"

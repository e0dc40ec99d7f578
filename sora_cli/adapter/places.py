"""Find adapters, results of baselines and models on this disk by the names of their files.

Nothing heavy is imported here, so that a mistyped path is reported at once.
"""

from __future__ import annotations

import atexit
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path

from methods.words import closest
from sora_cli.adapter.metadata import read_sora_file
from sora_cli.adapter.peft.config import FROM_ELSEWHERE
from sora_cli.core.atomic import check_replaceable, new_directory
from sora_cli.core.console import say_notes
from sora_cli.core.errors import SoraError, reason
from sora_cli.core.hub import looks_local, offline_error
from sora_cli.core.shell import quote
from sora_cli.core.words import first_few
from sora_cli.data.source import holds_rows
from sora_cli.model.files import (
    ADAPTER_CONFIG,
    DELTA_FILE,
    MERGE_RECORD,
    MODEL_CONFIG,
    SORA_FILE,
    adapter_files,
    is_there,
)
from sora_cli.model.fingerprint import read_metadata
from sora_cli.model.references import ask_hub, resolve_model_path

PACKED = "sora-packed"
"""The format that a packed file names in its metadata; see `adapter/packed`."""
ADAPTER, DELTA, MODEL = "adapter", "delta", "model"
"""Directories inside a run directory with its result: of a low-rank method, or of a baseline."""
_RECORDS = "report.json", "auto.json", "path.json"
"""Files of a run, a search and a path; not imported: `sora_cli.experiments` imports this module."""


def adapter_folder(directory: Path, *, tokenizer: bool = True) -> Path | None:
    """Return the adapter directory at or inside a run directory; None if there is none.

    A packed file is unpacked into a temporary directory, which is deleted when the process ends.

    Args:
        tokenizer: make files of the tokenizer that a packed file leaves out. False is faster.
    """
    if is_packed(directory):
        state = directory.stat()
        return _unpacked(directory, state.st_mtime_ns, state.st_size, tokenizer)
    candidates = (directory, directory / ADAPTER)
    return next((folder for folder in candidates if (folder / ADAPTER_CONFIG).is_file()), None)


def is_adapter(place: Path) -> bool:
    """Return true for an adapter, a run with one, or a packed file, which is not unpacked."""
    return is_packed(place) or adapter_folder(place) is not None


def is_packed(place: Path) -> bool:
    """Return True for a packed file; only its header is read."""
    if place.suffix != ".safetensors" or not place.is_file():
        return False
    try:
        return read_metadata(place).get("format") == PACKED
    except OSError:
        return False


@cache
def _unpacked(file: Path, _modified: int, _size: int, tokenizer: bool) -> Path:
    """Unpack a file once for this process; another content of the file is another entry."""
    from sora_cli.adapter.packed import unpack_for_reading

    scratch = tempfile.TemporaryDirectory(prefix="sora-")
    atexit.register(scratch.cleanup)
    folder = Path(scratch.name) / file.stem
    try:
        folder.mkdir()
        missing = unpack_for_reading(file, folder, tokenizer=tokenizer)
    except OSError as error:
        raise SoraError(f"{file} cannot be unpacked: {reason(error)}",
                        hint="choose another directory: TMPDIR=DIR") from error  # fmt: skip
    if missing:
        say_notes([f"{file}: {not_made_again(missing)}"])
    return folder


def not_made_again(missing: Sequence[str]) -> str:
    """Return what is told of a tokenizer's files that a packed file leaves out."""
    return (
        f"not made again, since the base model is not here or gives another: {', '.join(missing)}"
    )


def baseline_folder(directory: Path) -> Path | None:
    """Return the directory of a baseline's result, itself or inside a run directory; else None.

    The result is a delta or a model, with the metadata that training adds to it.
    """
    candidates = (directory, directory / DELTA, directory / MODEL)
    return next((folder for folder in candidates if _is_baseline(folder)), None)


def check_adapter_place(path: Path, *, force: bool) -> None:
    """Check that an adapter could be written there, before long work."""
    check_replaceable(path, force=force, markers=(ADAPTER_CONFIG,), names=adapter_files(path))


def new_adapter_place(path: Path, *, force: bool) -> AbstractContextManager[Path]:
    """Give an empty directory for an adapter, which replaces `path` in the end; see `core.atomic`.

    With `force` an adapter directory without other files may be replaced.
    """
    return new_directory(path, force=force, markers=(ADAPTER_CONFIG,), names=adapter_files(path))


def locate_adapter(
    directory: Path, *, missing: str = "there is no adapter to read", tokenizer: bool = True
) -> Path:
    """Return the adapter directory itself, or the adapter directory inside a run directory.

    Args:
        missing: end of the error message for a baseline's run or result, which has no adapter.
        tokenizer: see `adapter_folder`.
    """
    try:
        folder = adapter_folder(directory, tokenizer=tokenizer)
        if folder is not None:
            return folder
        refuse_baseline(directory, missing)
        if not directory.exists():
            near = _near_folder(directory)
            hint = "to list the runs: sora list" if near is None else f"did you mean '{near}'?"
            raise SoraError(f"there is no directory {directory}", hint=hint)
        if not directory.is_dir():
            raise SoraError(f"{directory} is a file, not a PEFT adapter's directory",
                            hint=_parent(directory))  # fmt: skip
        inside = sorted(path.parent for path in directory.glob(f"*/{ADAPTER_CONFIG}"))
    except (OSError, ValueError) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
        raise SoraError(f"{str(directory)!r} cannot be read: {why}") from error
    raise SoraError(
        f"{directory} is not an adapter directory: it holds no {ADAPTER_CONFIG}",
        where=f"there are adapters in {first_few(inside)}" if inside else None,
        hint="name one of them" if inside else _unfinished(directory),
    )


def _unfinished(directory: Path) -> str:
    """Return the hint for a directory without an adapter: a run may not have written it yet."""
    if not any((directory / name).is_file() for name in _RECORDS):
        return FROM_ELSEWHERE
    return f"its run is not finished; to see its state: sora list {quote(str(directory))}"


def with_base(folder: Path) -> list[Path]:
    """Return a result's directory, and its base model's if it is recorded and on this disk."""
    base = read_sora_file(folder / SORA_FILE)[1]
    return [folder] if base is None or base.here is None else [folder, Path(base.here)]


def takes_base(place: Path) -> bool:
    """Return true if a result, or a run's result, is put on a base model: an adapter or a delta."""
    if is_adapter(place):
        return True
    folder = baseline_folder(place)
    return folder is not None and (folder / DELTA_FILE).is_file()


def check_named_base(base: str | None, places: Sequence[Path]) -> None:
    """Refuse `--base` if no result is put on a base model."""
    if base is not None and not any(map(takes_base, places)):
        raise SoraError(
            f"--base is for adapters, and {first_few(map(str, places))} is a whole model",
            hint="leave out --base",
        )


def refuse_baseline(directory: Path, missing: str, *, models: bool = False) -> None:
    """Refuse the run or the result of a method that is not low-rank.

    Args:
        missing: end of the message: the thing that it does not have.
        models: accept the directory of a whole model.
    """
    folder = baseline_folder(directory)
    if folder is None or (models and folder == directory and not (folder / DELTA_FILE).is_file()):
        return
    method = read_sora_file(folder / SORA_FILE)[0].method
    if (folder / DELTA_FILE).is_file():
        hint = f"to score it: sora eval {quote(str(directory))} --recipe RECIPE"
    else:
        hint = f"{folder} is a whole model, which from_pretrained loads as it is"
    raise SoraError(
        f"{directory} was trained by '{method}', which is not a low-rank method: {missing}",
        hint=hint,
    )


def model_source(reference: str) -> str:
    """Return the local path of a model, or its Hub id."""
    source = resolve_model_path(reference)
    if Path(source).is_dir() and not (Path(source) / MODEL_CONFIG).is_file():
        raise SoraError(
            f"{reference} holds neither an adapter ({ADAPTER_CONFIG}) nor a model ({MODEL_CONFIG})",
            hint=FROM_ELSEWHERE,
        )
    if Path(source).is_file() and not source.lower().endswith(".gguf"):
        raise SoraError(f"{reference} is a file, but not a .gguf file: name its directory",
                        hint=FROM_ELSEWHERE)  # fmt: skip
    return source


def check_target(reference: str, command: str) -> Path:
    """Return the place of an adapter, a run's result or a model; of a Hub id, the id itself.

    A Hub id that neither the cache nor the Hub has is an error.

    Args:
        command: the hint for errors, with {} for the nearest directory.
    """
    place = Path(reference).expanduser()
    folder = adapter_folder(place) or baseline_folder(place)
    if folder is not None:
        return folder
    hint = command.replace("{}", quote(str(_near_folder(place) or "DIR")))
    if looks_local(reference) and "://" not in reference and not is_there(place):
        raise SoraError(f"there is no model at {reference}, and no adapter", hint=hint)
    if holds_rows(place):
        raise SoraError(f"{reference} holds rows, and no model, adapter or run", hint=hint)
    source = Path(model_source(reference))
    if not is_there(source):
        try:
            ask_hub(reference)
        except (OSError, ValueError) as error:
            # "runs/x" looks like a Hub id, too; an existing runs/ says that a path was meant
            if place.parent.is_dir() and place.parent != Path():
                raise SoraError(f"there is no directory {reference}", hint=hint) from error
            raise offline_error("model", reference, error, hint=hint) from error
    return source


def _near_folder(place: Path) -> Path | None:
    folders = place.parent.iterdir() if place.parent.is_dir() else ()
    near = closest(place.name, [entry.name for entry in folders if entry.is_dir()])
    return None if near is None else place.parent / near


def _parent(file: Path) -> str:
    parent = file.parent
    return f"give its directory: {parent}" if is_adapter(parent) else FROM_ELSEWHERE


def _is_baseline(folder: Path) -> bool:
    weights = any((folder / name).is_file() for name in (DELTA_FILE, MODEL_CONFIG))
    others = any((folder / name).is_file() for name in (ADAPTER_CONFIG, MERGE_RECORD))
    return weights and (folder / SORA_FILE).is_file() and not others

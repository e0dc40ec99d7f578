"""Where things are on this disk, found without reading them: adapters, and what may be a model.

Nothing heavy is imported here, so that a mistyped path is told at once.
"""

from __future__ import annotations

from pathlib import Path

from sora_cli.errors import SoraError
from sora_cli.references import resolve_model_path
from sora_cli.sora_file import CONFIG_FILE


def adapter_folder(directory: Path) -> Path | None:
    """The adapter directory itself, or the one inside a run directory; None if it is neither."""
    candidates = (directory, directory / "adapter")
    return next((folder for folder in candidates if (folder / CONFIG_FILE).is_file()), None)


def locate_adapter(directory: Path) -> Path:
    """The adapter directory itself, or the one inside a run directory.

    Raises:
        SoraError: neither is there.
    """
    try:
        found = adapter_folder(directory)
        if found is not None:
            return found
        if not directory.exists():
            raise SoraError(f"there is no directory {directory}")
        if not directory.is_dir():
            raise SoraError(f"{directory} is a file, not a directory", hint=_parent(directory))
        inside = sorted(path.parent for path in directory.glob(f"*/{CONFIG_FILE}"))
    except (OSError, ValueError) as error:
        raise SoraError(f"{str(directory)!r} can not be read: {error}") from error
    raise SoraError(
        f"{directory} is no adapter directory: it holds no {CONFIG_FILE}",
        where=f"there are adapters in {', '.join(map(str, inside[:3]))}" if inside else None,
        hint="name one of them" if inside else None,
    )


def model_source(reference: str) -> str:
    """The local path of a model, or its Hub id.

    Raises:
        SoraError: what is there is no model.
    """
    source = resolve_model_path(reference)
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise SoraError(
            f"{reference} holds neither an adapter ({CONFIG_FILE}) nor a model (config.json)"
        )
    if Path(source).is_file() and not source.lower().endswith(".gguf"):
        raise SoraError(f"{reference} is a file, and no .gguf: name its directory")
    return source


def check_target(reference: str) -> None:
    """Raise `SoraError` where what may be an adapter, a run or a model can be none of them."""
    if adapter_folder(Path(reference).expanduser()) is None:
        model_source(reference)


def _parent(file: Path) -> str | None:
    parent = file.parent
    return f"give its directory: {parent}" if (parent / CONFIG_FILE).is_file() else None

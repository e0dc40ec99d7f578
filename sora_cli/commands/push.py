"""`sora push`: upload an adapter or a merged model to the Hub, and no other files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sora_cli.adapter.digest import result_remarks
from sora_cli.adapter.places import locate_adapter
from sora_cli.commands import options
from sora_cli.core.console import emit, printable, say, say_notes, size
from sora_cli.core.errors import SoraError, first_line
from sora_cli.core.hub import quiet_hub
from sora_cli.core.shell import quote
from sora_cli.core.table import Column, Table, emit_table

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, HfApi

    from sora_cli.adapter.shared import Shared

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")


def push(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="A run or adapter directory; with --merged, a merged model."
        ),
    ],
    repository: Annotated[
        str | None,
        typer.Argument(
            metavar="[REPO]", help="NAME or OWNER/NAME on the Hub. Default: the run's name."
        ),
    ] = None,
    *,
    merged: Annotated[
        bool, typer.Option("--merged", help="RUN is a merged model (the output of sora merge).")
    ] = False,
    base_id: Annotated[
        str | None,
        typer.Option("--base-id", help="The base model's Hub id, if the adapter does not name it."),
    ] = None,
    license_: Annotated[
        str | None,
        typer.Option("--license", help="Licence for the card, by its name on the Hub: apache-2.0."),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Make a new repository visible to everybody.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option("--revision", help="The branch to commit to. Default: main.")
    ] = None,
    message: Annotated[
        str | None, typer.Option("--message", "-m", help="Message of the commit.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="List the files and the card's header; upload nothing."),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Upload the directory of an adapter or of a merged model in one commit."""
    directory = run if merged else locate_adapter(run, missing="there is no adapter to push")
    name = _name(run, directory, repository)
    say_notes(result_remarks(directory))
    from sora_cli.adapter.shared import shared_adapter, shared_model

    collect = shared_model if merged else shared_adapter
    shared = collect(directory, base_id=base_id, license_=license_)
    say_notes(f"{left} is not uploaded" for left in shared.left)
    if "\nlicense:" not in shared.card.partition("\n---")[0]:
        say("note: the card states no licence; to add one: --license apache-2.0")
    if dry_run:
        _show(shared.for_repository(name), name, public=public, as_json=as_json)
        return
    api = _api(run, name)
    with _refusals(name):
        full, commit = _push(
            api, shared, name, public=public, revision=revision, message=message or "Upload by sora"
        )
    if as_json:
        facts = _facts(shared.for_repository(full), full, public=public)
        emit(json.dumps({**facts, "url": commit.commit_url, "commit": commit.oid}, indent=2))
    else:
        emit(f"pushed {len(shared.files)} files: {commit.commit_url}")
        say(f"next:\n  sora verify {quote(full)}" if merged else f"the repository: {full}")


def _name(run: Path, directory: Path, given: str | None) -> str:
    """Return the repository's name: the given one, or that of the run's directory, or file."""
    place = directory.resolve()
    in_run = place != run.resolve() and not run.is_file()
    own = place.parent.name if in_run else place.name
    name = own if given is None else given
    if _REPOSITORY.fullmatch(name) is None or ".." in name or "--" in name:
        raise SoraError(
            f"{name!r} cannot be a repository's name",
            where="letters, digits, '-', '_' and '.'; no '--' and no '..'",
            hint=f"sora push {quote(str(run))} OWNER/NAME",
        )
    return name


def _show(shared: Shared, name: str, *, public: bool, as_json: bool) -> None:
    """Print the files of the upload with their sizes, and the header of the card."""
    if as_json:
        emit(json.dumps(_facts(shared, name, public=public), indent=2))
        return
    rows = [(file, shared.size(file)) for file in shared.files]
    total = sum(n_bytes for _, n_bytes in rows)
    kind = "public" if public else "private"
    columns = ("file", Column("size", size))
    emit_table(Table(f"to {name} ({kind})", columns, rows, footer=("all", total)))
    emit("\n".join(printable(line) for line in _header(shared).split("\n")))
    say("nothing was sent: a dry run")


def _facts(shared: Shared, name: str, *, public: bool) -> dict[str, Any]:
    return {
        "repository": name,
        "private": not public,
        "files": {file: shared.size(file) for file in shared.files},
        "left": list(shared.left),
        "header": _header(shared),
    }


def _header(shared: Shared) -> str:
    """Return the card's YAML block."""
    return shared.card.partition("\n---\n")[0] + "\n---"


def _api(run: Path, name: str) -> HfApi:
    """Return the Hub's client; raise `SoraError` without a token or in offline mode."""
    from huggingface_hub import HfApi, constants, get_token

    quiet_hub()
    if constants.is_offline_mode():
        raise SoraError("HF_HUB_OFFLINE is set: nothing can be pushed",
                        hint="unset it, or only list the files: --dry-run")  # fmt: skip
    if get_token() is None:
        raise SoraError(
            "there is no token for the Hub",
            where="neither in HF_TOKEN nor stored by `hf auth login`",
            hint=f"hf auth login; then: sora push {quote(str(run))} {quote(name)}",
        )
    return HfApi()


def _push(
    api: HfApi, shared: Shared, name: str, *, public: bool, revision: str | None, message: str
) -> tuple[str, CommitInfo]:
    """Create the repository if it is missing, and commit; return its full name and the commit."""
    from huggingface_hub import CommitOperationAdd

    full = api.create_repo(name, private=not public, exist_ok=True).repo_id
    is_private = api.repo_info(full).private  # exist_ok leaves an old repository as it was
    if public and is_private:
        raise SoraError(f"{full} exists and is private",
                        hint="leave out --public; or make it public on the Hub first")  # fmt: skip
    if not public and not is_private:
        raise SoraError(f"{full} exists and is public",
                        hint="add --public, or choose another name")  # fmt: skip
    if revision is not None:
        api.create_branch(full, branch=revision, exist_ok=True)
    operations = [
        CommitOperationAdd(path_in_repo=file, path_or_fileobj=content)
        for file, content in shared.for_repository(full).files.items()
    ]
    commit = api.create_commit(
        full, operations, commit_message=message, revision=revision, repo_type="model"
    )
    return full, commit


@contextmanager
def _refusals(name: str) -> Iterator[None]:
    """Convert errors of the Hub's client into `SoraError`."""
    try:
        yield
    except SoraError:
        raise
    except Exception as error:  # the client may raise errors of its HTTP library, requests or httpx
        why = first_line(error, 160)
        hint = "check that the token may write: hf auth whoami"
        raise SoraError(f"the Hub refuses {name}", where=why, hint=hint) from error

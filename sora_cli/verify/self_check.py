"""The last step of train, export and merge: verify the written files, if memory allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora_cli.core.console import say, say_notes, size
from sora_cli.core.environment import free_memory
from sora_cli.core.errors import SoraError
from sora_cli.core.exit_codes import OK
from sora_cli.core.shell import quote
from sora_cli.model.files import ADAPTER_CONFIG

if TYPE_CHECKING:
    from sora_cli.verify.subjects import Subject

_SHARE = 4
"""A model is verified if it needs less than one part in this many of the free memory."""


def self_check(
    a: Path,
    b: Path | None = None,
    *,
    base: str | None = None,
    trained: Any | None = None,
    fresh: bool = True,
    force: bool = False,
    notice: str | None = None,
    record: Callable[[dict[str, Any]], None] | None = None,
) -> int:
    """Compare the written files (`b`) with their source (`a`), and say the result.

    Says one line on stderr: verified, not verified with the reason and the command to type, or
    DIFFERENT. A command ends with `return self_check(...)`; with --no-verify it does not call this.
    Exporting and merging: `self_check(directory, output, base=base)`. Training:
    `self_check(run_directory)`, or `self_check(run_directory, trained=model, fresh=False)` to
    compare the trained model itself with the outputs of its files, without the seconds that a new
    process takes.

    Args:
        a, b: see `sora_cli.verify.verification.verify`; `b` None: a reload of `a`.
        base: the command's --base.
        trained: model in memory that `a` was written from, in full precision.
        fresh: make the reload in a new process.
        force: the base may hold other weights than the adapter was trained on.
        notice: said before anything is loaded.
        record: receives the result, as `sora verify --json` prints it.

    Returns:
        The command's exit code (`core.exit_codes`): OK, also if nothing was compared; FAILED if the
        outputs differ; NO_VERDICT if the comparison cannot tell.
    """
    names = [str(path) for path in (a, b) if path is not None]
    command = " ".join(["sora verify", *map(quote, names)])
    command += f" --base {quote(base)}" if base else ""
    try:
        subjects, reason = _subjects(names, base, force=force)
        if reason is not None:
            say(f"not verified: {reason}; to verify: {command}")
            return OK
        if notice is not None:
            say(notice)
        # here, not at the top: importing torch and transformers takes seconds
        from sora_cli.verify.verdict import Verdict
        from sora_cli.verify.verification import verify

        done = verify(
            names[0],
            names[1] if b else None,
            base=base,
            trained=trained,
            fresh=fresh,
            force=force,
            subjects=subjects,
        )
    except SoraError as error:
        raise SoraError(
            f"{names[-1]} was written but cannot be verified: {error.what}",
            where=error.where,
            hint=f"to verify again: {command}",
        ) from error
    if record is not None:
        record(done.facts())
    say_notes(done.notes)
    judged = done.judgement
    if judged.verdict is Verdict.SAME:
        say(f"verified: {done.summary()}")
    elif judged.verdict is Verdict.DIFFERENT:
        text = f"DIFFERENT: {done.b} does not give the outputs of {names[0]}: {done.summary()}"
        say(text, always=True)
        say(f"  {judged.reason}; to see more: {command}", always=True)
    else:
        say(f"not verified, cannot tell: {judged.reason}", always=True)
        say(f"  {done.summary()}; to see more: {command}", always=True)
    return judged.exit_code


def _subjects(
    names: Sequence[str], base: str | None, *, force: bool
) -> tuple[tuple[Subject, ...], str | None]:
    """Return the subjects to compare, or a reason not to load them without being asked."""
    from sora_cli.verify.subjects import find_subjects, float32_bytes

    try:
        subjects = find_subjects((names[0], names[-1]), base=base, force=force)
        return subjects, too_large([float32_bytes(subject) for subject in subjects])
    except SoraError as error:
        if (Path(names[-1]) / ADAPTER_CONFIG).is_file():
            return (), error.what  # an adapter whose base model is not here is no mistake
        raise


def too_large(known: Sequence[int | None]) -> str | None:
    """Return the reason not to load models of these sizes unasked; None if there is none."""
    sizes = [n for n in known if n is not None]
    free = free_memory()
    if free is None:
        return "the free memory is not known"
    if len(sizes) < len(known):
        return "the model's size is not known, as it is not on this disk"
    if _SHARE * max(sizes) >= free:
        return f"it takes {size(max(sizes))}, at least a quarter of the {size(free)} free"
    return None

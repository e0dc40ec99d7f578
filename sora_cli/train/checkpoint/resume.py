"""Find the checkpoint that a run resumes from, and check that it belongs to the same run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora_cli.core.console import say
from sora_cli.core.errors import SoraError
from sora_cli.core.words import shown_value
from sora_cli.recipe.changes import Change, changes, check_continuable
from sora_cli.report import RateChoice
from sora_cli.train.checkpoint.places import FOLDER

if TYPE_CHECKING:
    from sora_cli.report import RunReport
    from sora_cli.train.checkpoint.files import Checkpoint


MAY_CHANGE = (
    "training.activation_offload",
    "training.checkpoint",
    "training.early_stopping",
    "training.eval_batch_size",
    "training.evaluate",
    "training.gradient_checkpointing",
    "training.keep_best",
    "training.keep_checkpoints",
    "training.loggers",
    "training.logging_steps",
    "training.non_finite",
    "training.workers",
)
"""Keys that do not change the steps; `--resume --force` accepts changes of these."""
_RATE = "learning_rate"  # key of `run.json`: the choice of training.learning_rate


def check_same(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    output: Path,
    *,
    force: bool,
    kind: str = "run",
    unasked: bool = False,
) -> list[str]:
    """Compare a run's recipe with its first recipe; a difference is an error.

    Args:
        force: accept safe changes (`MAY_CHANGE`).
        kind: name of the work in messages.
        unasked: the command resumes without a flag, so no flag can accept a change.

    Returns:
        A note for every accepted change.
    """
    check_continuable(before, f"the {kind} in '{output}'")
    changed = changes(before, now)
    refused = [change for change in changed if not (force and change[0] in MAY_CHANGE)]
    if refused:
        differences = _describe_changes(refused)
        what = f"the {kind} in '{output}' was started with another recipe: {differences}"
        if unasked:
            hint = f"train elsewhere: output.dir=DIR; or delete that {kind}: --force"
            raise SoraError(what, hint=hint)
        if all(key in MAY_CHANGE for key, *_ in refused):
            raise SoraError(what, hint="to accept the change: --resume --force")
        raise SoraError(
            what,
            where=f"with --force, these may change: {', '.join(MAY_CHANGE)}",
            hint="resume it with its own recipe, or train elsewhere: output.dir=DIR",
        )
    return [f"changed when it was resumed: {_describe_changes([change])}" for change in changed]


def find_checkpoint(
    output: Path, identity: Mapping[str, Any], notes: list[str], *, force: bool
) -> Checkpoint | None:
    """Find the newest complete checkpoint of a run; None if there is none yet.

    A checkpoint of another recipe or of other inputs (model, data) is refused.

    Args:
        identity: recipe and input fingerprints of the run to resume.
        notes: list to which accepted changes of the recipe are added.
    """
    from sora_cli.train.checkpoint.files import newest_checkpoint

    checkpoint, skipped = newest_checkpoint(output / FOLDER)
    for what in skipped:
        say(f"skipped: {what}")
    if checkpoint is None:
        say(f"no checkpoint in {output / FOLDER}: starting at the first step")
        return None
    notes += check_same(checkpoint.run["recipe"], identity["recipe"], output, force=force)
    for name, fingerprint in identity["inputs"].items():
        # an input that the checkpoint does not record is accepted
        if checkpoint.run["inputs"].get(name, fingerprint) != fingerprint:
            raise SoraError(
                f"{name} is not the same as when the run in '{output}' started",
                hint="restore it, or train elsewhere: output.dir=DIR",
            )
    say(f"resuming from {checkpoint.path}")
    return checkpoint


def identity_of(report: RunReport) -> dict[str, Any]:
    """Return the recipe and input fingerprints that processes of one run share.

    Call it once the report holds the run's setup.
    """
    data = {f"the data ({part})": d for part, d in report.data.fingerprints.items()}
    start = {} if report.start is None else {"what it starts from": report.start.digest}
    inputs = {"the base model": report.base.fingerprint, **data, **start}
    chosen = report.micro_batch
    rows = {} if chosen is None else {"micro_batch": chosen.rows}
    rate = report.learning_rate
    rates = {} if rate is None else {_RATE: rate.model_dump(mode="json")}
    return {"recipe": report.recipe, "inputs": inputs, **rows, **rates}


def rate_of(run: Mapping[str, Any]) -> RateChoice:
    """Return the learning rate of a checkpoint's run, which runs that continue it take over.

    Args:
        run: the checkpoint's `run.json`.
    """
    if _RATE in run:
        return RateChoice.model_validate(run[_RATE])
    given = run["recipe"]["training"]["learning_rate"]
    return RateChoice(chosen=given, how="fork", reason="as in the run that this one continues")


def _describe_changes(changed: list[Change]) -> str:
    key, old, new = changed[0]
    more = ", ".join(other for other, *_ in changed[1:4])
    rest = f"; also {more}{' and others' if len(changed) > 4 else ''}" if more else ""
    return f"{key} was {shown_value(old)}, is now {shown_value(new)}{rest}"

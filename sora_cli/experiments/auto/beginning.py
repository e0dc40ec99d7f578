"""The output directory of a search before its first run: a new record, or an unfinished one."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sora_cli.core.atomic import remove_file
from sora_cli.core.console import say
from sora_cli.core.processes import is_main
from sora_cli.core.shell import quote
from sora_cli.experiments.auto.plan import AutoPlan
from sora_cli.run.opening import Opening, Work, open_work
from sora_cli.run.output import check_own, clear_run
from sora_cli.search.evidence import FILE_NAME, FULL, PICTURE, SIZES, directory_of
from sora_cli.search.former_design import FORMER_FOLDER
from sora_cli.search.kept_answers import Kept
from sora_cli.search.promise import LABELS
from sora_cli.search.record import FILE_NAME as RECORD
from sora_cli.search.record import AutoRecord, read_auto


def open_record(plan: AutoPlan, *, force: bool, reread: bool = False) -> AutoRecord:
    """Return the record of an unfinished search in the output directory, or a new record.

    Args:
        reread: go on with a finished search, whose labels were changed.
    """
    output, loaded = plan.output, plan.loaded
    record = read_auto(output)
    check_own(output, resume=record is not None)
    for number in (None, *range(plan.block.sizes)):
        check_own(output / directory_of(number), resume=record is not None)
    work = None
    if record is not None:
        usage = f"sora inspect {quote(str(output))}"
        finished = record.status == "completed" and not (record.open or reread)
        work = Work("run", finished, _with_limit(record, plan), usage=usage)
    opening = open_work(output, work, loaded.resolved(), force=force, resume=None)
    if record is None or opening is Opening.NEW:
        if record is not None and is_main():
            clear(output)
        return _new_record(plan)
    say(f"continuing in {output}: {progress(record)}")
    record.recipe = loaded.resolved()  # it has the same values, but for a raised limit of labels
    return record


def _with_limit(record: AutoRecord, plan: AutoPlan) -> Mapping[str, Any]:
    """Return the recipe of a search; it may ask for more labels than it began with."""
    auto, now = record.recipe.get("auto") or {}, plan.block.labels or LABELS
    if plan.block.ask is None:
        return record.recipe
    if now > (auto.get("labels") or LABELS):
        auto = {**auto, "labels": now}
    if plan.block.ask_all:
        auto = {**auto, "ask_all": True}
    return {**record.recipe, "auto": auto}


def clear(output: Path) -> None:
    """Delete the files of a search, of this version or a former one; other files stay."""
    halves = [output / FORMER_FOLDER / name for name in "12"]
    for sizes in [place / SIZES for place in (output, *halves)]:
        for folder in sorted(sizes.glob("*")):
            if folder.name == FULL or folder.name.isdecimal():
                clear_run(folder)
        with suppress(OSError):
            sizes.rmdir()
    for folder in (*halves, output / FORMER_FOLDER):
        with suppress(OSError):
            folder.rmdir()
    for name in (PICTURE, FILE_NAME):
        remove_file(output / name)
    Kept.of(output).forget()
    clear_run(output)
    remove_file(output / RECORD)  # last: it marks the other files as ours


def progress(record: AutoRecord) -> str:
    """Return what a search has finished, in words."""
    if record.full is None:
        return "the run at full rank is not finished"
    return f"finished: the run at full rank, and {len(record.candidates)} of the smaller sizes"


def _new_record(plan: AutoPlan) -> AutoRecord:
    from sora_cli.train.log import provenance

    loaded = plan.loaded
    return AutoRecord(
        name=loaded.name,
        recipe=loaded.resolved(),
        recipe_notes=list(loaded.notes),
        **provenance(),
    )

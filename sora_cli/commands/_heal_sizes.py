"""`sora prune --max-drop --heal`: at most three sizes, each cut, trained on, and then tested.

The sizes follow from the adapter's own: a half, a quarter and an eighth of its parameters. Each is
a run of its own in OUT/sizes/, cut from the adapter that is given; no row that tests it chooses its
checkpoint. They are tested the largest first; the first that fails ends it, and smaller ones are
not trained. The run that is chosen is copied to OUT, which is then a run as any other. Of several
processes that train together the first one's scores decide, and it writes the files.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from sora_cli.adapter.digest import result_remarks
from sora_cli.adapter.places import ADAPTER, locate_adapter, new_adapter_place, with_base
from sora_cli.commands._certify import (
    certified_facts,
    check_confidence,
    metric_of,
    say_unseen_rows,
    show_search,
)
from sora_cli.commands._heal import healing_recipe
from sora_cli.core.atomic import write_text_atomic
from sora_cli.core.checks import check_rules
from sora_cli.core.console import say, say_notes
from sora_cli.core.errors import SoraError
from sora_cli.core.exit_codes import NO_VERDICT, OK
from sora_cli.core.lock import holds_only, locked
from sora_cli.core.outputs import check_apart
from sora_cli.core.processes import is_main
from sora_cli.core.timing import importing
from sora_cli.recipe.tolerance import check_drop, parse_drop
from sora_cli.report import FILE_NAME, HISTORY_FILE
from sora_cli.run.output import RANKS_PLOT

if TYPE_CHECKING:
    from sora_cli.recipe.load import LoadedRecipe
    from sora_cli.search.choice import Candidate, Search

    Training = Callable[[LoadedRecipe, list[str]], int]

SIZES = "sizes"
RECORD = "sizes.json"
_SHARES = (2, 4, 8)  # each size has the adapter's parameters divided by this
_NO_CHOICE = 'training.evaluate="no"'  # the rows that test choose no checkpoint


def heal_sizes(
    directory: Path,
    output: Path,
    rules: Mapping[str, float | str],
    steps: int,
    recipe: str | None,
    overrides: Sequence[str],
    *,
    confidence: float,
    force: bool,
    resume: bool,
    train: Training,
) -> int:
    """Cut, heal and test at most three sizes; write the smallest that passed as a run.

    Args:
        directory: an adapter directory, or a run's.
        output: the new run's directory.
        rules: `max_drop` alone.
        steps: optimiser steps that each size is trained on.
        recipe: to train and to measure with; None: that of the run in `directory`.
        overrides: of the recipe.
        train: trains one size, from its recipe and its words; returns an exit code.

    Returns:
        Exit code: 3 if nothing shows that the drop is within the promise, 1 if a run's files do
        not give its outputs.

    Raises:
        SoraError: bad input, an output that is something else.
    """
    check_rules(rules)
    check_drop(rules["max_drop"])
    check_confidence(confidence)
    read = locate_adapter(directory, missing="there are no ranks to prune")
    say_notes(result_remarks(read))
    check_apart(output, *with_base(read))
    runs = _recipes(directory, output, steps, recipe, overrides)
    promise = parse_drop(rules["max_drop"], metric_of(runs[0][0].recipe))
    with locked(output):
        _check_output(output, force=force, resume=resume)
        try:
            search = _tested(directory, runs, train, promise, confidence)
        except _NotVerifiedError as error:
            return error.code
        if is_main():
            _publish(output, search.key, directory)
            record = certified_facts(search) | {"max_drop": promise}
            record["sizes"] = [asdict(point) for point in search.points]
            write_text_atomic(output / RECORD, json.dumps(record, indent=2) + "\n")
    show_search(search)
    say_unseen_rows(search)
    say(f"wrote {output}")
    return OK if search.certified else NO_VERDICT


def _recipes(
    directory: Path, output: Path, steps: int, recipe: str | None, overrides: Sequence[str]
) -> list[tuple[LoadedRecipe, list[str]]]:
    """Return the recipe of each size, the largest first, with the words that stand for it."""
    from sora_cli.adapter.directory import check_low_rank
    from sora_cli.adapter.reading import open_adapter

    with open_adapter(directory) as file:
        check_low_rank(file)
        whole, least = file.parameters, min((sum(s) for s in file.shapes.values()), default=0)
    budgets = [whole // share for share in _SHARES if whole // share >= max(least, 1)]
    if not budgets:
        raise SoraError(f"{directory} is too small to be cut: it has {whole} parameters")
    given = [*overrides, _NO_CHOICE]
    return [
        healing_recipe(directory, output / SIZES / str(n), {"max_params": n}, steps, recipe, given)
        for n in budgets
    ]


class _NotVerifiedError(Exception):
    """A healed run's files do not give its outputs; `code` is the exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def _tested(
    directory: Path,
    runs: Sequence[tuple[LoadedRecipe, list[str]]],
    train: Training,
    promise: float,
    confidence: float,
) -> Search[Path]:
    """Train and test sizes, the largest first, until one fails; the keys are directories."""
    with importing():
        from sora_cli.adapter.directory import read_adapter
        from sora_cli.adapter.reading import open_adapter
        from sora_cli.experiments.auto.search import decided
        from sora_cli.search.choice import Candidate, choose
        from sora_cli.search.cut import say_carried, scores_of

    recipe = runs[0][0].recipe

    def scored(place: Path) -> tuple[Candidate[Path], str]:
        """Score an adapter on all processes; the first one's scores are everybody's."""
        with open_adapter(place) as file:
            components, parameters = sum(file.ranks[path] for path in file.paths), file.parameters
        scores, split = scores_of(read_adapter(place), recipe)
        return decided((Candidate(place, components, parameters, scores), split))

    def healed(run: tuple[LoadedRecipe, list[str]]) -> Candidate[Path]:
        code = decided(train(*run))  # others wait here until the first one has written its files
        if code != OK:
            raise _NotVerifiedError(code)
        return scored(run[0].output_dir)[0]

    whole, split = scored(directory)
    say_carried(whole.scores, split, confidence)
    return choose(whole, runs, healed, promise, confidence, split, further=False)


def _check_output(output: Path, *, force: bool, resume: bool) -> None:
    """Raise `SoraError` where something is that is no unfinished work of this command."""
    if holds_only(output):
        return
    if not (output / SIZES).is_dir():
        raise SoraError(f"'{output}' is not empty and holds no sizes of this command",
                        hint="choose another place: -o OUT")  # fmt: skip
    if not (force or resume):
        raise SoraError(f"'{output}' holds sizes already", hint="continue: --resume; start over: "
                        "--force; or choose another place: -o OUT")  # fmt: skip


def _publish(output: Path, chosen: Path, whole: Path) -> None:
    """Copy what was chosen, a size's run or the adapter that was given, into the output."""
    target = output / ADAPTER
    with new_adapter_place(target, force=True) as new:
        shutil.copytree(locate_adapter(chosen), new, dirs_exist_ok=True)
    for name in (FILE_NAME, HISTORY_FILE, RANKS_PLOT):
        (output / name).unlink(missing_ok=True)
        if chosen != whole and (chosen / name).is_file():
            shutil.copyfile(chosen / name, output / name)

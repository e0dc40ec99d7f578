"""`sora prune`: write a smaller adapter, and report its loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from methods.keep import RULES, Keep
from sora_cli.adapter.digest import result_remarks
from sora_cli.adapter.losses import loss_table
from sora_cli.adapter.places import ADAPTER, check_adapter_place, locate_adapter
from sora_cli.commands import completion, options
from sora_cli.commands._files import check_files, of_results, output_folder
from sora_cli.commands._flags import Asked, Budget, spliced
from sora_cli.commands._promise import ask_table, load_promise, open_notes, show_evidence
from sora_cli.commands._training import train_loaded
from sora_cli.core.allocator import keep_freed_memory
from sora_cli.core.atomic import tidy
from sora_cli.core.checks import check_bits, check_requires, option
from sora_cli.core.console import count, emit, say, say_notes, size
from sora_cli.core.errors import SoraError
from sora_cli.core.exit_codes import NO_VERDICT, OK
from sora_cli.core.lock import locked
from sora_cli.core.processes import is_main
from sora_cli.core.shell import quote
from sora_cli.core.table import emit_table
from sora_cli.core.timing import command_start, importing, uncollected
from sora_cli.run.opening import ELSEWHERE, Work, open_work
from sora_cli.run.output import check_place
from sora_cli.search.evidence import SIZES
from sora_cli.search.promise import Promise, PromiseOptions

if TYPE_CHECKING:
    from sora_cli.adapter.adapter import Adapter
    from sora_cli.adapter.pruning import Layers, Loss
    from sora_cli.adapter.rounding import Rounding
    from sora_cli.recipe.load import LoadedRecipe
    from sora_cli.recipe.recipe import Recipe
    from sora_cli.search.asking import AskTable
    from sora_cli.search.evidence import Evidence
    from sora_cli.search.shrink import Shrunk

_ELSEWHERE = "choose another place: -o OUT"


@spliced
def prune(
    directory: options.Adapter,
    output: options.Output,
    overrides: options.Overrides = None,
    *,
    budget: Budget,
    bits: options.Bits = None,
    head_bits: options.HeadBits = None,
    asked: Asked,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "-r",
            help="The recipe with the task and the rows for --max-drop and --heal. Default with "
            "--heal: the run's own recipe; --max-differ needs none.",
            autocompletion=completion.recipes,
        ),
    ] = None,
    heal: Annotated[
        int | None,
        typer.Option(
            "--heal",
            min=0,
            help="After the cut, train for this many optimiser steps. The output is then a run.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="With --heal: continue an interrupted run.")
    ] = False,
    force: options.Force = False,
    no_verify: options.NoVerify = False,
    code: options.Code = None,
) -> int:
    """Write a smaller copy of an adapter; without a rule, only exact zeros are removed.

    Returns:
        Exit code: 3 if the promise is not certified, 1 if the files of a healed run give other
        outputs than the trained model.
    """
    options.load_plugins(code)
    keep = budget.keep(asked)
    check_bits(bits, head_bits, heal=heal is not None)
    given = overrides or []
    promise = asked.options(recipe, overrides or [])
    if heal is None:
        check_requires("--heal", {"--resume": resume, "--no-verify": no_verify})
        if promise is None and (recipe or given):
            raise SoraError(
                "--recipe goes with --max-drop, --max-differ and --heal only",
                hint="--max-drop 0.01 --recipe R",
            )
        return _prune(
            directory, output, keep, promise, bits, head=head_bits is not None, force=force
        )
    from sora_cli.search.heal import healing_recipe

    train = partial(
        train_loaded, force=force, resume=resume, verify=not no_verify, began=command_start()
    )
    try:
        if promise is None:
            return train(*healing_recipe(directory, output, keep, heal, recipe, given))
        return _heal_sizes(
            directory, output, promise, heal, force=force, resume=resume, train=train
        )
    except SoraError as error:  # training's hint is the key output.dir; here the option is -o
        error.renamed(ELSEWHERE, _ELSEWHERE)
        raise


def _prune(
    directory: Path,
    output: Path,
    keep: Keep,
    asked: PromiseOptions | None,
    bits: int | None,
    *,
    head: bool,
    force: bool,
) -> int:
    """Write a pruned copy of an adapter, without training it further; see `prune`.

    Args:
        head: round the head, too.
    """
    find = partial(locate_adapter, directory, missing="there are no ranks to prune")
    read, measured = load_promise(asked, find)
    say_notes(result_remarks(read))
    written, table = output_folder("-o", output), None
    if asked is not None and measured is not None:
        table = ask_table(asked, measured[0], written, of_results(read), force=force)
    else:
        check_files(written, of_results(read))
    check_adapter_place(output, force=force)
    with uncollected():
        from sora_cli.adapter.reading import open_adapter
        from sora_cli.search.shrink import shrink

    keep_freed_memory()
    search = None
    if asked is not None and measured is not None:
        search = partial(_search, asked, read, *measured, table)
    with open_adapter(directory) as file:
        size_before = _file_size(file.source.directory)
        small = shrink(file, keep, bits, head=head, search=search)
        if small.warnings:
            say_notes(small.warnings, "warning")
        small.write(output, force=force)
        _show(small)
    evidence = small.evidence
    if evidence is not None:
        show_evidence(evidence)
    say(f"wrote {output}: {_file_size(output)}, was {size_before}")
    if bits is not None and small.total.after:  # else there is nothing to pack
        say(f"to pack it: sora export {quote(str(output))} -o {quote(f'{output}.safetensors')} "
            "--format packed")  # fmt: skip
    return OK if evidence is None or evidence.certified else NO_VERDICT


def _heal_sizes(
    directory: Path,
    output: Path,
    asked: PromiseOptions,
    steps: int,
    *,
    force: bool,
    resume: bool,
    train: Callable[[LoadedRecipe, list[str]], int],
) -> int:
    """Cut, heal and test at most three sizes; write the smallest size that passed as a run.

    Args:
        directory: an adapter directory or a run directory.
        output: the new run's directory; each size is a run in its `sizes/`.
        asked: the promise, and the recipe for training and scoring (recipe None: the recipe of the
            run in `directory`).
        steps: optimiser steps of training after each cut.
        train: trains a size, given its recipe and command-line words; returns an exit code.

    Returns:
        Exit code: 3 if the promise is not certified, 1 if the files of a size give other outputs
        than the trained model.
    """
    from sora_cli.adapter.card import rewrite_card
    from sora_cli.search.heal import NotVerifiedError, healing_runs, publish, smallest_healed

    asked.check()
    read = locate_adapter(directory, missing="there are no ranks to prune")
    say_notes(result_remarks(read))
    runs = healing_runs(directory, output, steps, asked)
    loaded = runs[0][0]
    table = ask_table(asked, loaded, output_folder("-o", output), of_results(read), force=force)
    promise = asked.on(loaded)
    with locked(output):
        asks_again = table is not None and bool(table.kept.rows())
        _check_sizes(output, loaded.recipe, force=force, resume=resume or asks_again)
        for place in filter(Path.is_dir, (output, output / SIZES) if is_main() else ()):
            tidy(place)
        with importing():
            from sora_cli.search.choosing import choosing_rows, recipe_of
        try:
            rows, promise = choosing_rows(asked, loaded, promise, read)
            search = smallest_healed(directory, runs, train, rows, promise, say, table)
        except NotVerifiedError as error:
            return error.code
        evidence = search.evidence("heal", read, recipe_of(asked, loaded.resolved(), promise))
        if is_main():
            written = evidence.written
            chosen = directory if written is None else output / str(written.directory)
            publish(output, chosen, directory)
            rewrite_card(output / ADAPTER, evidence.lines())
            evidence.write(output)
    say_notes(open_notes(search, evidence, table))
    show_evidence(evidence)
    say(f"wrote {output}")
    return OK if evidence.certified else NO_VERDICT


def _check_sizes(output: Path, recipe: Recipe, *, force: bool, resume: bool) -> None:
    """Raise `SoraError` unless `output` is free or holds unfinished work of `_heal_sizes`."""
    is_there = (output / SIZES).is_dir()
    check_place(output, recipe, is_there=is_there, work="sizes of this command", hint=_ELSEWHERE)
    work = Work("search", finished=False, left="sizes already") if is_there else None
    open_work(output, work, {}, force=force, resume=resume, elsewhere=_ELSEWHERE)


def _search(
    asked: PromiseOptions,
    place: Path,
    loaded: LoadedRecipe,
    promise: Promise,
    table: AskTable | None,
    adapter: Adapter,
    rounding: Rounding | None,
) -> tuple[Layers, dict[str, Loss], Evidence]:
    with importing():
        from sora_cli.search.choosing import choosing_rows, recipe_of
        from sora_cli.search.cut import cut_to, smallest_cut

    rows, promise = choosing_rows(asked, loaded, promise, place)
    found = smallest_cut(
        adapter, loaded.recipe, rows, promise, say, rounding=rounding, labels=table
    )
    evidence = found.evidence("prune", place, recipe_of(asked, loaded.resolved(), promise))
    say_notes(open_notes(found, evidence, table))
    return *cut_to(adapter.layers, found.written(evidence.chosen)), evidence


def _show(small: Shrunk) -> None:
    from sora_cli.adapter.pruning import grouped_losses

    file, total, rounding = small.whole, small.total, small.rounding
    say_notes(small.notes)
    emit_table(loss_table(grouped_losses(small.losses, file.forms), total, error=_error))
    rounded = rounding is not None and rounding.head.error is not None
    head, kind = file.head_parameters, "a rounded" if rounded else "an unchanged"
    emit(f"parameters: {count(file.parameters)} -> {count(small.parameters)}"
         + (f", and {kind} head of {count(head)}" if head else ""))  # fmt: skip
    if total.dropped == 0:
        emit("nothing was lost: only components that are exactly zero were removed")
    given: Mapping[str, float | str] = small.rule
    if small.evidence is not None:
        given = dict.fromkeys(given, small.evidence.promise.given)
    emit(_described(given))
    if rounding is not None:
        emit("\n".join(rounding.lines(small.losses, small.errors, file.shapes)))


def _described(rule: Mapping[str, float | str]) -> str:
    """Return the output line that names the rule."""
    tested = (
        "pooled squared singular values per number stored, the largest of all layers together; "
        "tests in a fixed order decide how many"
    )
    how = {**RULES, "max_drop": tested, "max_differ": tested}
    named = (
        f"{option(name)} {value if isinstance(value, str) else f'{value:g}'}: {how[name]}"
        for name, value in rule.items()
    )
    return f"rule: {next(named, 'only exact zeros are removed')}"


def _error(loss: Loss) -> str:
    return "-" if loss.dropped == 0 else f"{loss.relative_error:.2%}"


def _file_size(directory: Path) -> str:
    from sora_cli.model.files import ADAPTER_WEIGHTS

    return size((directory / ADAPTER_WEIGHTS).stat().st_size)

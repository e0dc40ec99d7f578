"""`sora extract`: the difference of a fully fine-tuned model to its base, as a plain LoRA."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from methods.keep import Keep
from sora_cli.adapter.losses import loss_table, module_facts, shown_error
from sora_cli.adapter.places import baseline_folder, check_adapter_place, is_adapter
from sora_cli.commands import completion, options
from sora_cli.commands._files import check_files, of_results, output_folder
from sora_cli.commands._flags import Asked, Budget, spliced
from sora_cli.commands._promise import ask_table, load_promise, open_notes, show_evidence
from sora_cli.core.checks import STORED, check_choice, check_requires
from sora_cli.core.console import count, emit, say, say_notes, size
from sora_cli.core.errors import SoraError
from sora_cli.core.exit_codes import NO_VERDICT, OK
from sora_cli.core.table import emit_table
from sora_cli.core.timing import importing
from sora_cli.core.words import first_few
from sora_cli.model.files import ADAPTER_WEIGHTS, DELTA_FILE
from sora_cli.model.references import resolve_model_path
from sora_cli.search.sizes import NEARLY_ALL

if TYPE_CHECKING:
    from sora_cli.merge.extract import Extracted
    from sora_cli.search.evidence import Evidence


@spliced
def extract(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A fine-tuned model: its directory or Hub id, or a run directory of "
            "method.name=full.",
            autocompletion=completion.runs,
        ),
    ],
    base: Annotated[str, typer.Option("--base", help="The base model: MODEL before fine-tuning.")],
    output: options.Output,
    overrides: options.ReadOverrides = None,
    *,
    budget: Budget,
    asked: Asked,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "-r",
            help="The recipe with the task and the rows for --max-drop; --max-differ needs none.",
            autocompletion=completion.recipes,
        ),
    ] = None,
    no_biases: Annotated[
        bool,
        typer.Option(
            "--no-biases",
            help="Leave out changed biases of linear layers, which vLLM and llama.cpp cannot load.",
        ),
    ] = False,
    dtype: options.FactorDtype = STORED[0],
    as_json: options.Json = False,
    force: options.Force = False,
    code: options.Code = None,
) -> int:
    """Write the difference of a fine-tuned model to its base as an adapter of that base.

    Returns:
        Exit code: 3 if `max_drop` is not certified.
    """
    options.load_plugins(code)
    promise = asked.options(recipe, overrides or [])
    if promise is None:
        given = {"--recipe": recipe is not None} | dict.fromkeys(overrides or [], True)
        check_requires("--max-differ or --max-drop", given)
    keep = budget.keep(asked)
    rule: dict[str, Any] = {**keep.given()}
    if not rule and promise is None:
        raise SoraError(
            "say how much of the difference to keep",
            hint="--rank 32, --mean-rank 16, --max-params N, --energy 0.9 or --max-drop 1pt",
        )
    check_choice("dtype", dtype, STORED)
    source, measured = load_promise(promise, partial(_source, model))
    resolved = (Path(resolve_model_path(name)) for name in (source, base))
    read = [*of_results(Path(source)), *resolved]
    written, table = output_folder("-o", output), None
    if promise is not None and measured is not None:
        table = ask_table(promise, measured[0], written, read, force=force)
    else:
        check_files(written, read)
    check_adapter_place(output, force=force)
    with importing():
        from sora_cli.adapter.dense import module_progress
        from sora_cli.merge.extract import prepare_extract
        from sora_cli.search.choosing import choosing_rows, recipe_of

    tests = None
    if promise is not None and measured is not None:  # before the long part: it finds mistakes
        loaded, (rows, on) = measured[0], choosing_rows(promise, *measured, Path(source))
        tests, recipe_facts = (loaded.recipe, rows, on), recipe_of(promise, loaded.resolved(), on)
    extraction = prepare_extract(source, base, output, biases=not no_biases)
    # the search starts from factors with nearly all of the difference: at full rank a layer's
    # factors, r (in + out) numbers, would be larger than the layer, in x out
    evidence, kept = None, keep if promise is None else Keep(energy=NEARLY_ALL)
    with ExitStack() as stack:
        with module_progress("decomposing") as progress:
            layers = stack.enter_context(extraction.cut(output, kept, progress))
        if promise is not None and tests is not None:
            from sora_cli.search.cut import cut_to, smallest_cut

            adapter = extraction.adapter(layers)
            search = smallest_cut(adapter, *tests, say, against=source, labels=table)
            place = Path(resolve_model_path(source))
            evidence = search.evidence("extract", place, recipe_facts)
            say_notes(open_notes(search, evidence, table))
            layers, _ = cut_to(layers, search.written(evidence.chosen))
            rule = {**evidence.promise.rule, **evidence.lineage()}
        certify = None if evidence is None else evidence.certify
        done = extraction.write(output, layers, rule, dtype=dtype, force=force, certify=certify)
    say_notes(done.notes)
    emit(json.dumps(_facts(done, rule, evidence), indent=2)) if as_json else _show(done)
    if evidence is not None and not as_json:
        show_evidence(evidence)
    say(f"wrote {output}: {size((output / ADAPTER_WEIGHTS).stat().st_size)}")
    return OK if evidence is None or evidence.certified else NO_VERDICT


def _source(model: str) -> str:
    """Return the directory of the model in a run; any other name is returned unchanged."""
    place = Path(model).expanduser()
    if is_adapter(place):
        raise SoraError(f"{model} is an adapter already", hint="to shrink it: sora prune")
    folder = baseline_folder(place)
    if folder is None:
        return model
    if (folder / DELTA_FILE).is_file():
        raise SoraError(
            f"{folder} is a delta, not a whole model",
            hint="train with method.name=full, or name a model's directory",
        )
    return str(folder)


def _show(done: Extracted) -> None:
    emit_table(loss_table(done.losses, done.total, before="full rank"))
    emit(f"parameters: {count(done.parameters)} in the factors"
         + (f", and {count(done.full_parameters)} in full" if done.full else ""))  # fmt: skip
    if done.full:
        emit(f"in full: {first_few(done.full, 6)}")
    if done.biases:
        emit(f"biases: {first_few(done.biases, 3)}")
    if done.left:
        emit(f"left out: {first_few(done.left, 3)}")
    emit(f"error of the whole difference: {shown_error(done.error)}, measured on the written file")


def _facts(done: Extracted, rule: Mapping[str, Any], evidence: Evidence | None) -> dict[str, Any]:
    return {
        "rule": dict(rule),
        "certificate": None if evidence is None else json.loads(evidence.text()),
        "relative_error": done.error,
        "parameters": done.parameters,
        "in_full": list(done.full),
        "in_full_parameters": done.full_parameters,
        "biases": list(done.biases),
        "left_out": list(done.left),
        "modules": module_facts(done.losses),
        "notes": list(done.notes),
    }

"""`sora verify`: compare the outputs of two adapters or models, or check a certificate."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sora_cli.adapter.digest import result_remarks
from sora_cli.adapter.places import adapter_folder, check_target, is_packed, refuse_baseline
from sora_cli.commands import completion, options
from sora_cli.commands._files import of_results, output_file
from sora_cli.commands._flags import Gate, spliced
from sora_cli.commands._promise import ask_table, load_gate, open_notes
from sora_cli.core.atomic import write_text_atomic
from sora_cli.core.checks import COMPUTE, check_comparison, check_excludes, check_requires
from sora_cli.core.console import count, emit, printable, say, say_notes
from sora_cli.core.errors import SoraError
from sora_cli.core.exit_codes import FAILED, NO_VERDICT, OK
from sora_cli.core.outputs import check_new_file
from sora_cli.core.shell import quote
from sora_cli.core.table import Column, Table, emit_table
from sora_cli.core.timing import importing
from sora_cli.data.source import holds_rows
from sora_cli.search.evidence import required_certificate
from sora_cli.search.row_set import TEST
from sora_cli.search.words import gate_table
from sora_cli.verify.server import Server

if TYPE_CHECKING:
    from sora_cli.verify.difference import Difference
    from sora_cli.verify.finding import Finding
    from sora_cli.verify.verification import Verification


@spliced
def verify(
    a: Annotated[
        str,
        typer.Argument(
            metavar="A",
            help="A run, adapter or model directory, or a model's Hub id.",
            autocompletion=completion.runs,
        ),
    ],
    b: Annotated[
        str | None,
        typer.Argument(
            metavar="B",
            help="The second one, to compare with A. Default: A again, loaded in a fresh process.",
            autocompletion=completion.runs,
        ),
    ] = None,
    overrides: options.ReadOverrides = None,
    *,
    base: options.BaseModel = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            help="Largest accepted difference of the outputs, relative to the largest output, such "
            "as 1e-4. If it is given, nothing else is checked. Default: 1e-5 (16-bit weights: 8 "
            "roundings), and the adapter's effect must be the same, too. With --max-differ: the "
            "largest distance of two answers that are numbers and count as the same.",
        ),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype",
            help="Number format of the computation: float32, float64, bfloat16 or float16.",
        ),
    ] = COMPUTE[0],
    certificate: Annotated[
        bool,
        typer.Option(
            "--certificate",
            help="A has a certificate: test its sizes again and compare every figure. If its data "
            "or model have moved, give their new place: data.path=DIR. B is the present place of "
            "the adapter or model that sora prune or sora extract has read, if that has moved.",
        ),
    ] = False,
    server: Annotated[
        str | None,
        typer.Option(
            "--server",
            metavar="URL",
            help="Ask an OpenAI-style server for next tokens, or for vectors, and tell whether it "
            "uses the adapter A, its bare base, or neither. A key is read from SORA_SERVER_KEY in "
            "the environment.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="With --server: the model's name there, if it has several."),
    ] = None,
    gate: Gate,
    as_json: options.Json = False,
    code: options.Code = None,
) -> int:
    """Compare the outputs of two adapters or models on fixed inputs, or their answers on rows.

    Returns:
        Exit code: 1 if the outputs differ, or B is shown to be worse; 3 if the comparison cannot
        tell; 4 if labels are wanted.
    """
    options.load_plugins(code)
    if gate.is_asked:
        words = {"--certificate": certificate, "--dtype": dtype != COMPUTE[0]}
        check_excludes("--max-drop or --max-differ", [n for n, value in words.items() if value])
        asked = None if server is None else Server(server)
        return _gate(
            a, b, overrides or [], gate, tolerance, base=base, as_json=as_json,
            server=asked, model=model,
        )  # fmt: skip
    gate.check_alone()
    check_requires("--server", {"--model": model is not None and server is None})
    if server is not None:
        check_comparison(dtype, tolerance)
        others = {"--tolerance": tolerance, "--certificate": certificate, "B": b}
        check_excludes("--server", [name for name, value in others.items() if value])
        return _verify_server(a, server, model, base=base, dtype=dtype, as_json=as_json)
    if certificate:
        given = {"--base": base, "--tolerance": tolerance}
        check_excludes("--certificate", [name for name, value in given.items() if value])
        more = [*([] if b is None else [b]), *(overrides or [])]
        return _verify_certificate(a, more, as_json=as_json)
    check_comparison(dtype, tolerance)
    if overrides:
        raise SoraError(f"'{overrides[0]}' goes with --certificate only", hint="sora verify A B")
    for reference in filter(None, (a, b)):
        _check_place(reference)
    with importing():
        from sora_cli.verify.verification import verify
    done = verify(a, b, base=base, dtype=dtype, tolerance=tolerance)
    say_notes(done.notes)
    if as_json:
        emit(json.dumps(done.facts(), indent=2))
    else:
        _show(done)
    return done.judgement.exit_code


def _gate(
    a: str,
    b: str | None,
    overrides: list[str],
    gate: Gate,
    tolerance: float | None,
    *,
    base: str | None,
    as_json: bool,
    server: Server | None,
    model: str | None,
) -> int:
    """Tell whether B is no worse than A by more than a promise; return the exit code.

    Args:
        server: what B is, in place of a model; `model` is its name there.
    """
    if server is not None and b is not None and "=" in b:
        overrides, b = [b, *overrides], None
    if (b is None) is (server is None):
        raise SoraError(
            "--max-drop and --max-differ compare two models",
            hint="sora verify A B, or sora verify A --server URL",
        )
    promise = gate.options(overrides, tolerance)
    if server is not None:
        given = {"--ask": gate.ask, "--next-tokens": gate.next_tokens}
        check_excludes("--server", [name for name, value in given.items() if value])
    references = (a,) if b is None else (a, b)
    for reference in references:
        _check_target(reference)
    check_new_file("-o", gate.output, force=gate.force)
    if server is not None:
        place = Path(a).expanduser()
        server.choose(model, adapter_folder(place) or place)  # before anything slow
    with importing():
        from sora_cli.search.choosing import choosing_rows, recipe_of
        from sora_cli.verify.gate import Served, Side, gate_server
        from sora_cli.verify.gate import gate as compare
        from sora_cli.verify.own_reading import reading_notes
    sides = [Side.of(reference, base) for reference in references]
    written = gate.output is not None or as_json  # which needs the figures
    if server is None and not written and sides[0].is_same(sides[1]):
        emit("verdict:    certified: A and B are the same in every file that decides an answer")
        return OK
    loaded, on = load_gate(promise, *references, base=base)
    read = [*of_results(*(side.place for side in sides)), base]
    table = ask_table(promise, loaded, output_file("-o", gate.output), read, force=gate.force)
    sides = [side.reading(loaded.recipe, overrides) for side in sides]
    own = {name: side.recipe for name, side in zip("AB", sides, strict=False) if side.recipe}
    say_notes(reading_notes(own))
    loaded = replace(loaded, recipe=own["A"])
    rows, on = choosing_rows(promise, loaded, on, *(side.place for side in sides))
    if server is None:
        found = compare(sides[0], sides[1], loaded.recipe, rows, on, table, say)
    else:
        served = Served(server)
        references = (a, served.reference)
        found = gate_server(sides[0], served, loaded.recipe, rows, on, say)
    evidence = found.evidence("verify", sides[0].place, recipe_of(promise, loaded.resolved(), on))
    say_notes(open_notes(found, evidence, table))
    if gate.output is not None:
        write_text_atomic(gate.output, evidence.text())
    code = OK if evidence.certified else FAILED if evidence.worse else NO_VERDICT
    if as_json:
        emit(evidence.text().rstrip())
        return code
    emit_table(gate_table(evidence, [printable(name) for name in references]))
    emit(f"about:      {evidence.scope}")
    emit(f"verdict:    {evidence.status}: {evidence.statement}")
    return code


def _check_place(reference: str) -> None:
    _check_target(reference)
    refuse_baseline(Path(reference).expanduser(), "there is no adapter to verify", models=True)


def _verify_server(
    run: str, url: str, model: str | None, *, base: str | None, dtype: str, as_json: bool
) -> int:
    """Tell whether a server uses an adapter; return the exit code."""
    _check_place(run)
    place = Path(run).expanduser()
    server = Server(url)
    server.choose(model, adapter_folder(place) or place)  # before anything slow
    with importing():
        from sora_cli.verify.served import check_server
    done, notes = check_server(run, server, base=base, dtype=dtype)
    say_notes(notes)
    if as_json:
        facts = {"a": run, "server": server.shown(server.url), "model": server.shown(server.model),
                 "path": server.way.path}  # fmt: skip
        emit(json.dumps({**facts, **asdict(done), "verdict": done.verdict.value}, indent=2))
        return done.exit_code
    if done.to_adapter is not None:
        _show_distances(server, done)
    if done.share is not None and done.residual is not None:
        emit(f"effect:     {done.share:.1%} of the adapter's effect is there "
             f"(residual {done.residual:.1%})")  # fmt: skip
    if done.cosine is not None:
        emit(f"change:     its cosine with the adapter's is {done.cosine:.3f} in the mean, "
             f"{done.least_cosine:.3f} at least")  # fmt: skip
    if done.reason:
        emit(f"reason:     {done.reason}")
    emit(f"verdict:    {done.verdict.value}")
    return done.exit_code


def _show_distances(server: Server, done: Finding) -> None:
    places = f"next tokens of {done.texts} texts"
    columns: tuple[str, Column]
    if done.cosine is not None:
        columns = ("compared", Column("vectors differ by", ".4f"))
        places = f"vectors of {done.texts} texts, of unit length (rms)"
    elif done.tokens is None:
        columns = ("compared", Column("other next token", lambda n: f"{n:.0f} of {done.texts}"))
    else:
        columns = ("compared", Column("log-probabilities differ by", ".3f"))
        places = f"{done.tokens} log-probabilities (rms), of the {places}"
    rows = [("server and adapter", done.to_adapter), ("server and bare base", done.to_base),
            ("adapter and bare base", done.effect)]  # fmt: skip
    if done.noise is not None:
        rows.append(("server's bare base and ours", done.noise))
    title = printable(server.shown(f"{server.url}, model {server.model}"))
    emit_table(Table(title, columns, rows))
    emit(f"compared:   {places}, by {server.way.path}")


def _verify_certificate(run: str, overrides: list[str], *, as_json: bool) -> int:
    """Compute a certificate again; return the exit code.

    Args:
        overrides: the present place of the adapter or model that a finished adapter was made from;
            overrides of the recipe, for data or a model at a new place.
    """
    place, reference = Path(run).expanduser(), None
    place = (adapter_folder(place) or place) if is_packed(place) else place
    if overrides and "=" not in overrides[0]:
        reference, overrides = Path(overrides[0]).expanduser(), overrides[1:]
    required_certificate(place)
    with importing():
        from sora_cli.verify.certificate import recheck
    certificate, done = recheck(place, overrides, reference)
    if as_json:
        # by way of pydantic's JSON, which has null for NaN
        facts = json.loads(done.model_dump_json())
        emit(json.dumps({**facts, "verdict": done.verdict.value}, indent=2))
        return done.exit_code
    columns = ("figure", Column("certificate", ".6g"), Column("here", ".6g"),
               Column("tolerance", ".2g"))  # fmt: skip
    rows = [(c.name, c.stored, c.here, c.apart) for c in done.compared]
    emit_table(Table(f"{printable(place)}: says {certificate.status}", columns, rows))
    total = certificate.rows[TEST].rows
    emit(f"tolerance:  {count(done.rows)} of {count(total)} rows may differ")
    emit(f"about:      {certificate.scope}")
    for what in (*done.differs, *done.unclear):
        emit(f"reason:     {what}")
    emit(f"verdict:    {done.verdict.value}")
    return done.exit_code


def _show(done: Verification) -> None:
    columns = (
        "output", Column("numbers", count), Column("largest difference", ".1e"),
        Column("mean", ".1e"), Column("largest value", ".4g"), Column("relative", ".1e"),
        Column("same argmax", none="-"),
    )  # fmt: skip
    title = f"{printable(done.a)}\n{printable(done.b)}"
    emit_table(Table(title, columns, [_cells(d) for d in done.differences]))
    emit(f"inputs:     {done.inputs}")
    if done.effect is not None:
        emit(f"adapter:    its layers change the outputs by {done.effect:.1e} (relative)")
    for effect in done.effects:
        if effect.size:
            emit(f"effect:     {effect.summary()}")
    emit(f"tolerance:  {done.tolerance.value:.1e} (relative; {done.tolerance.source})")
    judged = done.judgement
    if judged.reason:
        emit(f"reason:     {judged.reason}")
    emit(f"verdict:    {judged.verdict.value}")


def _cells(d: Difference) -> list[Any]:
    same = None if d.decisions is None else f"{count(d.agree or 0)} of {count(d.decisions)}"
    return [d.name, d.numbers, d.largest, d.mean, d.scale, d.relative, same]


def _check_target(reference: str) -> None:
    if holds_rows(Path(reference).expanduser()):
        raise SoraError(
            f"{reference} holds rows, and no model: two files of answers cannot be compared yet",
            where="A and B are models, adapters or runs, whose answers to rows are compared",
            hint=f"sora verify A B --max-differ 1% --unlabelled {quote(reference)}; with labels: "
            f"sora init {quote(reference)}, then sora verify A B --max-drop 1pt --recipe RECIPE",
        )
    say_notes(result_remarks(check_target(reference, "sora verify {}")))

"""`sora verify`: compare the outputs of two adapters or models, or check a certificate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sora_cli.adapter.digest import result_remarks
from sora_cli.adapter.places import check_target, refuse_baseline
from sora_cli.commands import completion, options
from sora_cli.core.checks import COMPUTE, check_comparison, check_excludes
from sora_cli.core.console import count, emit, printable, say_notes
from sora_cli.core.errors import SoraError
from sora_cli.core.table import Column, Table, emit_table
from sora_cli.core.timing import importing
from sora_cli.search.certificate import required_certificate

if TYPE_CHECKING:
    from sora_cli.verify.difference import Difference
    from sora_cli.verify.verification import Verification


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
            "roundings), and the adapter's effect must be the same, too.",
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
            help="A is a run of sora auto: score its sizes again and compare with its certificate. "
            "If its data or model have moved, give their new place: data.path=DIR.",
        ),
    ] = False,
    as_json: options.Json = False,
) -> int:
    """Compare the outputs of two adapters or models on fixed inputs.

    Returns:
        Exit code: 1 if the outputs differ, 3 if the comparison cannot tell.
    """
    if certificate:
        given = {"--base": base, "--tolerance": tolerance}
        check_excludes("--certificate", [name for name, value in given.items() if value])
        others = [*([] if b is None else [b]), *(overrides or [])]
        return _verify_certificate(a, others, as_json=as_json)
    check_comparison(dtype, tolerance)
    if overrides:
        raise SoraError(f"'{overrides[0]}' goes with --certificate only", hint="sora verify A B")
    for reference in filter(None, (a, b)):
        say_notes(result_remarks(check_target(reference, "sora verify {}")))
        place = Path(reference).expanduser()
        refuse_baseline(place, "there is no adapter to verify", models=True)
    with importing():
        from sora_cli.verify.verification import verify
    done = verify(a, b, base=base, dtype=dtype, tolerance=tolerance)
    say_notes(done.notes)
    if as_json:
        emit(json.dumps(done.facts(), indent=2))
    else:
        _show(done)
    return done.judgement.exit_code


def _verify_certificate(run: str, overrides: list[str], *, as_json: bool) -> int:
    """Score the sizes of a run of `sora auto` again; return the exit code.

    Args:
        overrides: overrides of the run's recipe, for data or a model at a new place.
    """
    check_excludes("--certificate", ["B" for word in overrides if "=" not in word][:1])
    place = Path(run).expanduser()
    required_certificate(place)
    with importing():
        from sora_cli.verify.certificate import recheck
    certificate, done = recheck(place, overrides)
    if as_json:
        # by way of pydantic's JSON, which has null for NaN
        facts = json.loads(done.model_dump_json())
        emit(json.dumps({**facts, "verdict": done.verdict.value}, indent=2))
        return done.exit_code
    columns = ("figure", Column("certificate", ".6g"), Column("here", ".6g"),
               Column("tolerance", ".2g"))  # fmt: skip
    rows = [(c.name, c.stored, c.here, c.apart) for c in done.compared]
    emit_table(Table(f"{printable(place)}: says {certificate.status}", columns, rows))
    tolerated = ", ".join(
        f"{count(rows)} of {count(certificate.rows[part].rows)} rows"
        + (f" ({part})" if len(done.rows) > 1 else "")
        for part, rows in done.rows.items()
    )
    emit(f"tolerance:  {tolerated} may differ")
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

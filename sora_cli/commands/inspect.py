"""`sora inspect`: ranks and spectra of adapters, and the programs that can load them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sora_cli.adapter.digest import result_remarks
from sora_cli.adapter.metadata import QUERIES_ALONE, step_words
from sora_cli.adapter.places import locate_adapter
from sora_cli.adapter.programs import old_rules
from sora_cli.adapter.ranks import RankMap, rank_map
from sora_cli.adapter.side_by_side import short_names, summary_table
from sora_cli.commands import completion, options
from sora_cli.commands._files import check_files, of_results, output_file
from sora_cli.core.allocator import keep_freed_memory
from sora_cli.core.console import count, emit, printable, say, say_notes, size
from sora_cli.core.errors import SoraError
from sora_cli.core.outputs import check_new_file
from sora_cli.core.shell import quote
from sora_cli.core.table import Column, Table, emit_table
from sora_cli.core.timing import uncollected

if TYPE_CHECKING:
    from sora_cli.adapter.facts import Facts
    from sora_cli.adapter.metadata import BaseReference


def inspect(
    directories: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...",
            help="One or more run directories, adapter directories (ours or any PEFT LoRA) or "
            "packed files.",
            autocompletion=completion.runs,
        ),
    ],
    *,
    as_json: options.Json = False,
    plot: Annotated[
        Path | None,
        options.output("--plot", help="Draw the ranks and spectra into this picture file."),
    ] = None,
    modules: Annotated[
        bool, typer.Option("--modules", help="Print a line for each module, too.")
    ] = False,
    serve: Annotated[
        bool,
        typer.Option(
            "--serve",
            help="Print the command lines of servers for all the adapters together, by base model.",
        ),
    ] = False,
    force: options.Force = False,
) -> None:
    """Show adapters from their files: one in full, several with one line each."""
    _check(directories, plot=plot, modules=modules, serve=serve, force=force)
    missing = "there are no ranks to inspect"
    located = [locate_adapter(place, missing=missing, tokenizer=False) for place in directories]
    say_notes(remark for directory in located for remark in result_remarks(directory))
    check_files(output_file("--plot", plot), of_results(*located))
    if serve:
        _serve(located, as_json=as_json)
    elif len(located) == 1:
        _inspect_one(located[0], as_json=as_json, plot=plot, modules=modules)
    else:
        _inspect_several(located, as_json=as_json)


def _check(
    directories: Sequence[Path], *, plot: Path | None, modules: bool, serve: bool, force: bool
) -> None:
    if len(directories) > 1 or serve:
        for option, given in {"--plot": plot, "--modules": modules}.items():
            if given and serve:
                raise SoraError(f"--serve prints no {option.removeprefix('--')}",
                                hint=f"leave out {option}")  # fmt: skip
            if given:
                alone = f"sora inspect {quote(str(directories[0]))} {option}"
                raise SoraError(
                    f"{option} shows one adapter, not {len(directories)}",
                    hint=alone if plot is None else f"{alone} {quote(str(plot))}",
                )
    check_new_file("--plot", plot, force=force)


def _inspect_one(directory: Path, *, as_json: bool, plot: Path | None, modules: bool) -> None:
    keep_freed_memory()
    (facts,) = _facts_of_each([directory])
    ranks = {path: rank.live for path, rank in facts.ranks.items()}
    start = {path: rank.start for path, rank in facts.ranks.items()}
    if as_json:
        emit(json.dumps(facts.as_json(), indent=2))
    else:
        if ranks:
            _emit_rank_table(rank_map(ranks, start), printable(facts.directory))
        if modules and ranks:
            _emit_modules(facts)
        emit("\n".join(f"{name + ':':<13} {printable(value)}" for name, value in _lines(facts)))
    if plot is not None:
        from sora_cli.adapter.plot_spectra import plot_inspection

        title = f"{facts.method or facts.kind}: {facts.directory}"
        values = {path: s.values.tolist() for path, s in facts.spectra.items()}
        plot_inspection(ranks, start, values, plot, title)
        say(f"wrote {plot}")


def _inspect_several(directories: Sequence[Path], *, as_json: bool) -> None:
    """Show several adapters in one table; as JSON: {"adapters": [...]}."""
    adapters = _facts_of_each(directories)
    if as_json:
        emit(json.dumps({"adapters": [facts.as_json() for facts in adapters]}, indent=2))
        return
    names = [printable(name) for name in short_names([facts.directory for facts in adapters])]
    emit_table(summary_table(names, adapters))
    for name, facts in zip(names, adapters, strict=True):
        for note in facts.notes:
            emit(f"{name}: {printable(note)}")


def _facts_of_each(directories: Sequence[Path]) -> list[Facts]:
    with uncollected():
        from sora_cli.adapter.facts import facts_of
        from sora_cli.adapter.reading import open_adapter
        from sora_cli.search.evidence import certificate_of_adapter
    adapters = []
    for directory in directories:
        with open_adapter(directory) as adapter:
            found = certificate_of_adapter(directory)
            said = None if found is None else f"{found.status}: {found.statement}"
            adapters.append(facts_of(adapter, certificate=said))
    return adapters


def _serve(directories: Sequence[Path], *, as_json: bool) -> None:
    """Print a plan of servers for each base model of the adapters."""
    with uncollected():
        from sora_cli.adapter.serving_many import plan_facts, plan_lines, plan_servers
    plans = plan_servers(_facts_of_each(directories), date.today())
    if as_json:
        emit(json.dumps(plan_facts(plans), indent=2))
    else:
        emit("\n".join(map(printable, plan_lines(plans))))


def _emit_rank_table(table: RankMap, title: str) -> None:
    """Print ranks in a table of layers by kinds of modules; totals are live/start."""
    columns = [label.replace(".", "\n.") for label in table.column_labels()]
    rows = [
        [label, *(_cell(table, row, column) for column in table.columns), table.row_total(row)]
        for label, row in zip(table.row_labels(), table.rows, strict=True)
    ]
    footer = ["all", *map(table.column_total, table.columns), table.total]
    emit_table(Table(title, ["layer", *columns, "all"], rows, footer=footer))


def _cell(table: RankMap, row: str, column: str) -> int | None:
    cell = table.cells.get((row, column))
    return None if cell is None else cell.live


def _emit_modules(facts: Facts) -> None:
    """Print a line per module; the last line has sums, and the norm over all modules."""
    rows, errors = [], facts.rounding_errors
    for path, s in facts.spectra.items():
        rank = facts.ranks[path]
        left = [cut.ranks[path] for cut in facts.cuts]
        rounding = [errors.get(path)] if errors else []
        rows.append([path, rank.stored, rank.live, s.rank_low, s.rank_high, s.entropy, s.norm,
                     s.largest, *rounding, *left])  # fmt: skip
    effective = facts.effective_rank
    stored = sum(rank.stored for rank in facts.ranks.values())
    columns = (
        *map(Column, ("module", "stored", "live", "90 %", "99 %")), Column("entropy", ".1f"),
        Column("||dW||", ".3g"), Column("largest s", ".3g"),
        *([Column("rounding", ".1%")] if errors else []),
        *(Column(f"cut to\n{cut.share:.0%}") for cut in facts.cuts),
    )  # fmt: skip
    footer = ["all", stored, facts.components.live, effective.energy_90,
              effective.energy_99, effective.entropy, facts.norm, None,
              *([None] if errors else []),
              *(cut.components for cut in facts.cuts)]  # fmt: skip
    emit_table(Table(None, columns, rows, footer=footer))


def _lines(facts: Facts) -> list[tuple[str, str]]:
    """Return name and value of each line below the table."""
    base = facts.base
    lines = [
        ("method", facts.method or f"{facts.kind}, written by another tool"),
        ("base", (base.path or "not recorded") + _revision(base)),
        *(_factor_lines(facts) if facts.ranks else ()),
        ("parameters", f"{count(facts.parameters.adapter)} in the adapter"),
        ("file", f"{size(facts.bytes)}, {'packed' if facts.packed else facts.dtype}"),
        ("prune", f"saves {_saving(facts, 'lossless')} without loss, "
                  f"{_saving(facts, 'energy_99')} with --energy 0.99"),
        *_cut_lines(facts),
    ]  # fmt: skip
    if facts.found_rate is not None:
        found = f"{facts.found_rate:g}, by training.learning_rate: auto"
        lines.insert(1, ("rate", found))
    if facts.packed_bytes is not None:
        lines.insert(
            [name for name, _ in lines].index("file") + 1,
            ("bits", _bits(facts, facts.packed_bytes)),
        )
    if not (facts.prunable and facts.ranks):
        lines = [line for line in lines if line[0] != "prune"]
    lines += facts.parts.lines
    if facts.new_tokens:
        lines.append(("new tokens", ", ".join(facts.new_tokens)))
    task = facts.task or facts.task_type
    if task:
        labels = f" ({', '.join(facts.labels)})" if facts.labels else ""
        lines.append(("task", f"{task}{labels}"))
    if facts.adapts is not None:
        lines.append(("for", QUERIES_ALONE))
    if facts.consumers:
        lines += [("note", note) for note in old_rules(date.today())]
    lines += [(c.name, ("" if c.loads else "no: ") + c.advice) for c in facts.consumers]
    lines += [("serve", f"{s.name}: {'; '.join(s.commands)}") for s in facts.servers]
    if facts.packed:
        lines.append(("PEFT", f"unpack it: sora export {quote(facts.directory)} -o DIR"))
    lines += [("note", note) for note in facts.notes]
    lines += [("then", step_words(entry)) for entry in facts.lineage]
    if facts.certificate:
        lines.append(("promise", facts.certificate))
    return lines


def _factor_lines(facts: Facts) -> list[tuple[str, str]]:
    modules, effective = facts.modules, facts.effective_rank
    return [
        ("components", _share(facts.components.live, facts.components.start)),
        ("modules", f"{modules.all - modules.dead} of {modules.all} alive"),
        ("effective", f"{count(effective.energy_90)} components hold 90 % of each module's "
                      f"||dW||², {count(effective.energy_99)} hold 99 %; "
                      f"by entropy {effective.entropy:,.1f}"),
        ("norm", f"||dW|| = {facts.norm:.4g} over all modules"),
    ]  # fmt: skip


def _bits(facts: Facts, packed_bytes: int) -> str:
    """Return the line about an adapter on a grid."""
    errors = facts.rounding_errors.values()
    by = (
        f"; rounding changed its updates by {min(errors):.1%} to {max(errors):.1%}"
        if errors
        else ""
    )
    return f"{facts.bits} a number: {size(packed_bytes)} of factors when packed{by}"


def _cut_lines(facts: Facts) -> list[tuple[str, str]]:
    """Return a line for each cut by share of parameters: the ranks left, and the command."""
    prune = f"sora prune {quote(facts.directory)} -o OUT --max-params"
    return [
        (f"cut to {cut.share:.0%}",
         f"mean rank {cut.components / len(facts.ranks):.2f}, at most {max(cut.ranks.values())}, "
         f"{cut.energy:.1%} of ||dW||²: {prune} {cut.max_params}")
        for cut in facts.cuts
    ]  # fmt: skip


def _share(live: int, start: int) -> str:
    kept = f"{count(live)} of {count(start)}"
    return f"{kept} ({live / start:.0%})" if start else kept


def _saving(facts: Facts, kind: str) -> str:
    """Format the savings of a prune: "1,024 parameters (3 %, 4.1 kB)", or "nothing"."""
    saved, stored = facts.prune_saves[kind], facts.parameters.adapter
    if not saved.parameters:
        return "nothing"
    share = f"{saved.parameters / stored:.0%}"
    return f"{count(saved.parameters)} parameters ({share}, {size(saved.bytes)})"


def _revision(base: BaseReference) -> str:
    return f" @ {base.revision}" if base.revision else ""

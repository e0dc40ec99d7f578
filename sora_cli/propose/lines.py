"""Lines that show a proposal: the columns, the first rows, and each value with its reason."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sized
from typing import Any

from sora_cli.core.console import count, printable
from sora_cli.data.columns import LOOKED_AT, some_rows
from sora_cli.data.overlap import find_overlaps
from sora_cli.data.places import locating
from sora_cli.data.rows import Rows
from sora_cli.propose.proposal import Proposal
from sora_cli.propose.rules import multilingual_remark
from sora_cli.propose.text import in_yaml
from sora_cli.run.class_counts import absent_remarks, class_lines, count_classes
from sora_cli.run.preview import WIDTH, indented, rows_lines, wrapped
from sora_cli.run.remarks import counted_remarks, overlap_remark, unknown_remark
from sora_cli.tasks.base import Task
from sora_cli.tasks.encoded import Encoded

_KEY, _VALUE = 28, 24  # columns


def proposal_lines(proposal: Proposal, *, rows: int) -> Iterator[str]:
    """Yield lines on the task family, its columns and rows, and the recipe's values with reasons.

    Args:
        rows: number of rows to show as the model gets them.
    """
    task, matched = proposal.task, proposal.match
    yield f"{matched.task}: {printable(matched.why)}"
    taken = ", ".join(f"{column} ({part})" for column, part in matched.taken.items())
    yield from indented(wrapped("taken", printable(taken)))
    left = matched.not_taken(proposal.columns)
    if left:
        about = ", ".join(f"{column} ({why})" for column, why in left.items())
        yield from indented(wrapped("not taken", printable(about)))
    template = task.template(proposal.processor)
    if template is not None:
        yield from indented(wrapped("template", printable(template)))
    parts = _encoded(proposal.task, proposal.rows, proposal.processor)
    numbers = {"train": proposal.rows.train, **proposal.rows.report}
    sizes = ", ".join(f"{name} {count(len(part))}" for name, part in numbers.items())
    looked = f"; at most {count(LOOKED_AT)} of each were looked at" if _is_large(numbers) else ""
    yield from indented([f"{'rows':<11} {sizes}{looked}"])
    counts, texts = count_classes(task, parts), task.input_columns
    found_twice = find_overlaps(
        proposal.rows.train, proposal.rows.report, texts=texts, label=task.label_column
    )
    twice = (overlap_remark(name, o, len(numbers[name])) for name, o in found_twice.items())
    looked_at = {name: min(len(part), LOOKED_AT) for name, part in numbers.items()}
    remarks = [*absent_remarks(counts), *counted_remarks(parts, looked_at), *filter(None, twice)]
    remarks += _unknown(proposal, parts)
    for line in (*class_lines(counts), *(f"note: {remark}" for remark in remarks)):
        yield from indented(wrapped("", line, indent=0))
    yield ""
    yield from _values(proposal)
    if rows:
        yield ""
        yield from rows_lines(task, proposal.processor, parts["train"], rows)


def _unknown(proposal: Proposal, parts: Mapping[str, Encoded]) -> Iterator[str]:
    """Yield remarks on texts of a language that the base model does not know."""
    tokenizer = getattr(proposal.processor, "tokenizer", proposal.processor)
    unknown = unknown_remark(parts, tokenizer)
    if unknown is not None:
        path = proposal.loaded.recipe.model.path
        yield from filter(None, (unknown, multilingual_remark(proposal.match.task, path)))


def _is_large(parts: Mapping[str, Sized]) -> bool:
    return any(len(part) > LOOKED_AT for part in parts.values())


def _encoded(task: Task, rows: Rows, processor: Any) -> dict[str, Encoded]:
    """Encode the rows of every part for the model; of a large part only some rows."""
    made = {}
    for name, part in {"train": rows.train, **rows.report}.items():
        places = some_rows(len(part))
        with locating(rows.origin(part).of(places), rows.origin(rows.train)):
            made[name] = task.encode(part.select(places), processor, training=name == "train")
    return made


def _values(proposal: Proposal) -> Iterator[str]:
    """Yield a line for each value that the recipe sets, with its reason."""
    resolved = proposal.loaded.resolved()
    for key, why in proposal.reasons.items():
        block, _, name = key.partition(".")
        value = printable(in_yaml(_at(resolved, block, name)))
        start = f"{key:<{_KEY}} {value:<{_VALUE}} "
        if not why:
            yield start.rstrip()
        elif len(start) + len(why) <= WIDTH:
            yield f"{start}{printable(why)}"
        else:
            yield start.rstrip()
            yield from (
                f"{'':<{_KEY}}   {line}" for line in textwrap.wrap(printable(why), WIDTH - _KEY)
            )


def _at(values: Mapping[str, Any], block: str, key: str) -> Any:
    return values[block].get(key)

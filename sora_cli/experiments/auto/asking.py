"""The table of a search that asks people for labels: write it, and read the labels in it."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from sora_cli.core.errors import SoraError
from sora_cli.core.outputs import check_writable
from sora_cli.core.processes import is_main
from sora_cli.core.words import first_few, shown_path
from sora_cli.search.ask_table import (
    NONE,
    Given,
    Question,
    alike,
    glance,
    guide_of,
    is_guide,
    read_table,
    write_guide,
    write_table,
)
from sora_cli.search.asked_search import Wanted
from sora_cli.search.evidence import Evidence
from sora_cli.search.kept_answers import keep_answers, keep_rows, kept_answers, kept_rows


class AskTable:
    """The table in the place that the user named, and the run's own copies of rows and labels.

    Args:
        run: directory of the search.
        path: of the table.

    Attributes:
        accepted: ids of the rows whose label was changed after it was read, which the user accepts.
    """

    def __init__(self, run: Path, path: Path) -> None:
        self.run, self.path, self.accepted = run, path, list[str]()

    def check_free(self) -> None:
        """Check that a new search can write its table: a file with labels is never replaced."""
        check_writable(self.path)
        for file in (self.path, guide_of(self.path)):
            if os.path.lexists(file) and not is_guide(file):
                raise SoraError(
                    f"{shown_path(file)} is there already, and is not replaced",
                    where="a search that begins asks anew; the file may hold labels",
                    hint="move it away, or name another place: --ask FILE",
                )

    def changed(self) -> list[str]:
        """Return the rows whose label is another one than the run has read, by id."""
        if not self.path.is_file():
            return []
        now = glance(self.path)
        return [
            key
            for key, before in kept_answers(self.run).items()
            if any(
                old and not alike(old, new)
                for old, new in zip(before, now.get(key, before), strict=True)
            )
        ]

    def check_unchanged(self) -> None:
        """Raise `SoraError` if a label was changed after it was read, unless that is accepted."""
        changed = [key for key in self.changed() if key not in self.accepted]
        if changed:
            many = "labels were" if len(changed) > 1 else "label was"
            raise SoraError(
                f"{len(changed)} {many} changed in {shown_path(self.path)} after the run had read "
                f"{'them' if len(changed) > 1 else 'it'}",
                where=f"rows {first_few(changed)}; the outcome was known then",
                hint="put them back; or --force: they count, and nothing is promised any more",
            )

    def read(self, rows: Mapping[str, Question]) -> Mapping[str, Given]:
        """Return the labels of the rows that are asked, and keep them; see `asked_search.Read`."""
        written, known = kept_rows(self.run), kept_answers(self.run)
        given: Mapping[str, Given] = {}
        if written and rows and self.path.is_file():
            any_row = next(iter(rows.values()))
            allowed = {key: rows.get(key, any_row).allowed for key in written}
            given = read_table(self.path, allowed)
            self.check_unchanged()
        found = {key: given.get(key, known.get(key, NONE)) for key in rows}
        if is_main() and (any(map(any, found.values())) or known):
            keep_answers(self.run, found)
        return found

    def lacks(self, wanted: Wanted) -> bool:
        """Return True if the table does not have all rows that are asked."""
        return not (wanted.rows.keys() <= set(kept_rows(self.run)) and self.path.is_file())

    def write(self, wanted: Wanted) -> None:
        """Write the table with the labels that are known, and its guide."""
        rows = [wanted.rows[key] for key in sorted(wanted.rows)]  # ids are in no order of the rows
        allowed = list(dict.fromkeys(label for row in rows for label in row.allowed))
        keep_rows(self.run, rows)  # first: a table that the run does not know would be replaced
        write_guide(self.path, allowed, same_command())
        write_table(self.path, rows, wanted.given)

    def told(self, wanted: Wanted) -> tuple[str, list[str]]:
        """Return the sentence on the missing labels, and lines that tell a person how to go on."""
        table = shown_path(self.path)
        plural = "labels are" if wanted.open > 1 else "label is"
        what = f"{wanted.open:,} {plural} wanted: fill in the column 'label' of {table}"
        guide = f"{what} (how: {shown_path(guide_of(self.path))})"
        more = [] if wanted.left is None else [_for_more(wanted.left)]
        return what, [guide, *more, "then the same command:", f"  {same_command()}"]


def same_command() -> str:
    """Return the command that goes on; `--force` would start again."""
    return shlex.join(["sora", *(word for word in sys.argv[1:] if word != "--force")])


def notes_on(wanted: Wanted, evidence: Evidence) -> Iterator[str]:
    """Yield a note on each result that more labels could change."""
    alone = sum(size.test.labelled.alone for size in evidence.candidates
                if size.test is not None and size.test.labelled is not None)  # fmt: skip
    if alone:
        yield (
            f"{alone} labels are the answer of neither model, a tenth of the labels or more: they "
            "count as lost until a second person has filled in label_2"
        )
    if wanted.open:
        more = f"; about {wanted.more} more certify the next size, if as many of them are lost as "
        more = f"{more}of those given" if wanted.more is not None else ""
        yield (
            f"{wanted.open} rows have no label, which may change the outcome{more}: fill them in, "
            "and type the same command again"
        )
    if wanted.left is not None:
        yield _for_more(wanted.left)


def _for_more(labels: int) -> str:
    return (
        f"the next smaller size is not tested: it takes {labels} labels in all; to test it, too: "
        f"--labels {labels}"
    )

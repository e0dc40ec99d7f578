"""The table of a search that asks people for labels: write it, and read the labels in it."""

from __future__ import annotations

import os
import shlex
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sora_cli.core.errors import SoraError, WaitingError
from sora_cli.core.outputs import check_writable
from sora_cli.core.processes import from_first_process, is_main
from sora_cli.core.words import first_few, listed, shown_path
from sora_cli.search.ask_table import (
    NONE,
    Given,
    Question,
    alike,
    glance,
    guide_of,
    is_guide,
    read_table,
    unused_of,
    write_guide,
    write_table,
    write_unused,
)
from sora_cli.search.asked_search import AskedSearch, Wanted
from sora_cli.search.evidence import Evidence
from sora_cli.search.failed_asking import advice, has_failed
from sora_cli.search.kept_answers import Kept, Memory
from sora_cli.search.test_rows import TestRows


class Labels(ABC):
    """Where the labels of a search come from."""

    entered: int | None = None
    """Number of the largest sizes whose rows are asked; None: the answers of the sizes tell."""

    @abstractmethod
    def remembered(self, about: Mapping[str, Any]) -> Memory:
        """Return the questions and labels that a search has had before.

        Args:
            about: the reference and the promise that its labels are for.
        """

    @abstractmethod
    def read(self, rows: Mapping[str, Question]) -> Mapping[str, Given]:
        """Return the labels of the rows that are asked; see `asked_search.Read`."""

    @abstractmethod
    def conclude(self, search: AskedSearch, memory: Memory) -> None:
        """End a search: keep its questions and labels, and ask for the labels that it wants.

        Raises:
            WaitingError: labels are wanted.
        """


class KeptLabels(Labels):
    """The labels that a result has kept, to check its certificate."""

    def __init__(self, kept: Kept) -> None:
        self._memory = kept.read()
        self.entered = self._memory.sizes

    def remembered(self, about: Mapping[str, Any]) -> Memory:
        """Return all that was kept."""
        del about  # the certificate is compared
        return self._memory

    def read(self, rows: Mapping[str, Question]) -> Mapping[str, Given]:
        """Return the kept labels."""
        return {key: self._memory.answers.get(key, NONE) for key in rows}

    def conclude(self, search: AskedSearch, memory: Memory) -> None:
        """Do nothing: no label is asked for."""


class AskTable(Labels):
    """The table in the place that the user named, and the memory of its rows and labels.

    Args:
        path: of the table.
        kept: the memory.
        anew: `--force` starts the search again, unless labels were changed.

    Attributes:
        accepted: ids of the rows whose label was changed after it was read, which the user accepts.
    """

    def __init__(self, path: Path, kept: Kept, *, anew: bool = True) -> None:
        self.path, self.kept, self.accepted, self._anew = path, kept, list[str](), anew

    @classmethod
    def beside(cls, path: Path, *, force: bool) -> AskTable:
        """Return the table of a command without a directory of its own, checked."""
        kept = Kept.beside(path)
        table = cls(path, kept, anew=False)
        table.begin(begun=bool(kept.rows()), force=force)
        return table

    def begin(self, *, begun: bool, force: bool) -> bool:
        """Check the table before a search; return whether to start the search again.

        With `--force`, labels that were changed are accepted, and nothing is deleted.

        Args:
            begun: the search has asked before.
        """
        if begun and force:
            self.accepted = self.changed()
            force = self._anew and not self.accepted
        if not begun or force:
            self.check_free()
        self.check_unchanged()
        return force

    def check_free(self) -> None:
        """Check that a new search can write its table: a file with labels is never replaced."""
        check_writable(self.path)
        for file in (self.path, guide_of(self.path), unused_of(self.path)):
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
            for key, before in self.kept.answers().items()
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

    def remembered(self, about: Mapping[str, Any]) -> Memory:
        """Return what was asked before; if it was for another promise, raise `SoraError`."""
        memory = self.kept.read()
        other = sorted(key for key in {*memory.about, *about} if memory.about.get(key) !=
                       about.get(key))  # fmt: skip
        if memory.rows and other:
            raise SoraError(
                f"{shown_path(self.path)} belongs to another promise: {listed(other)} "
                f"{'are' if len(other) > 1 else 'is'} not as when it was written",
                where=f"remembered in {shown_path(self.kept.path)}",
                hint="the same command as then; or another table: --ask FILE",
            )
        return memory if not other else Memory()

    def conclude(self, search: AskedSearch, memory: Memory) -> None:
        """Remember what is asked, if anything is, and ask for it."""
        asked = search.record.asked
        assert asked is not None
        asked.changed = sorted({*asked.changed, *self.accepted})
        if search.wanted.rows and is_main():
            self.kept.write(memory.model_copy(update={"changed": asked.changed}))
        self.ask(search)

    def read(self, rows: Mapping[str, Question]) -> Mapping[str, Given]:
        """Return the labels of the rows that are asked, and keep them; see `asked_search.Read`."""
        written, known = self.kept.rows(), self.kept.answers()
        given: Mapping[str, Given] = {}
        if written and rows and self.path.is_file():
            any_row = next(iter(rows.values()))
            allowed = {key: rows.get(key, any_row).allowed for key in written}
            given = read_table(self.path, allowed)
            self.check_unchanged()
        found = {key: given.get(key, known.get(key, NONE)) for key in rows}
        if is_main() and (any(map(any, found.values())) or known):
            self.kept.keep_answers({**known, **found})  # smaller sizes are read later
        return found

    def ask(self, search: AskedSearch) -> None:
        """Write the table if a label can change the outcome and its row was never asked for.

        Raises:
            WaitingError: labels are wanted.
        """
        wanted, asked = search.wanted, search.record.asked
        assert asked is not None
        asked.changed = sorted({*asked.changed, *self.accepted})
        if is_main() and self.kept.answers() not in ({}, wanted.given):
            self.kept.keep_answers(wanted.given)
        lacks = from_first_process(self.lacks(wanted))
        if wanted.open and (lacks or not wanted.answered):
            if lacks and is_main():
                self.write(wanted)
            raise WaitingError(*self.told(wanted))

    def lacks(self, wanted: Wanted) -> bool:
        """Return True if the table does not have all rows that are asked."""
        return not (wanted.rows.keys() <= set(self.kept.rows()) and self.path.is_file())

    def write(self, wanted: Wanted) -> None:
        """Write the table with the labels that are known, and its guide."""
        rows = [wanted.rows[key] for key in sorted(wanted.rows)]  # ids are in no order of the rows
        allowed = list(dict.fromkeys(label for row in rows for label in row.allowed))
        self.kept.keep_rows(rows)  # first: a table that is not known would be replaced
        write_guide(self.path, allowed, self.same_command())
        write_table(self.path, rows, wanted.given)

    def told(self, wanted: Wanted) -> tuple[str, list[str]]:
        """Return the sentence on the missing labels, and lines that tell a person how to go on."""
        table = shown_path(self.path)
        plural = "labels are" if wanted.open > 1 else "label is"
        what = f"{wanted.open:,} {plural} wanted: fill in the column 'label' of {table}"
        guide = f"{what} (how: {shown_path(guide_of(self.path))})"
        more = [] if wanted.left is None else [_for_more(wanted.left)]
        if wanted.kept and wanted.answered:
            more = ["a larger size is certified already: without these labels, the same command "
                    "keeps it", *more]  # fmt: skip
        return what, [guide, *more, "then the same command:", f"  {self.same_command()}"]

    def keep_unused(self, unused: TestRows | None) -> Path | None:
        """Write the rows that have not tested; return the place, or None if there are none."""
        if unused is None or not len(unused) or unused.answers is None:
            return None
        if is_main():
            write_unused(self.path, unused.rows.select_columns(list(unused.answers.columns)))
        return unused_of(self.path)

    def command_anew(self, output: Path | None) -> str:
        """Return the command that searches anew, on the rows that have not tested.

        Args:
            output: directory of a search; None: the command has none, or names it by -o.
        """
        words = [word for word in sys.argv[1:] if word != "--force"]
        given = {"--unlabelled": unused_of(self.path), "--ask": _second(self.path)}
        for option, value in given.items():
            words = [*_without(words, option), option, shown_path(value)]
        for n, word in enumerate(words[:-1]):
            if word in {"-o", "--output"}:
                words[n + 1] = str(_second(Path(words[n + 1])))
        if output is not None:
            words = [word for word in words if not word.startswith("output.dir=")]
            words.append(f"output.dir={shown_path(_second(output))}")
        return shlex.join(["sora", *words])

    def same_command(self) -> str:
        """Return the command that goes on; a `--force` that would start again is left out."""
        dropped = {"--force"} if self._anew else set[str]()
        return shlex.join(["sora", *(word for word in sys.argv[1:] if word not in dropped)])


def notes_on(
    wanted: Wanted, evidence: Evidence, table: AskTable | None, output: Path | None = None
) -> Iterator[str]:
    """Yield notes on results that more labels could change, and advice after a failure.

    Args:
        table: keeps the rows that have not tested.
        output: directory of a search.
    """
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
    if table is not None and not wanted.open and has_failed(evidence):
        unused = table.keep_unused(wanted.unused)
        yield from advice(evidence, None if unused is None else shown_path(unused))
        if unused is not None:
            yield f"to test on them: {table.command_anew(output)}"


def _second(path: Path) -> Path:
    return path.with_name(f"{path.stem}-2{path.suffix}")


def _without(words: Sequence[str], option: str) -> list[str]:
    """Return the words of a command without an option and its value."""
    pairs = zip(["", *words], words, strict=False)
    return [word for last, word in pairs if option not in {last, word.partition("=")[0]}]


def _for_more(labels: int) -> str:
    return (
        f"the next smaller size is not tested: it takes {labels} labels in all; to test it, too: "
        f"--labels {labels}"
    )

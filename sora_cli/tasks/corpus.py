"""A fixed corpus: the documents among which every query is searched, whatever rows are scored.

A model reads the corpus in parts. Of each part only the best documents of each query are kept, so
that memory is bounded: there is never a matrix of all queries and all documents. Documents stand in
the order of their ids: of equally similar documents the one with the smaller id comes first, as in
sentence-transformers' InformationRetrievalEvaluator.
"""

from __future__ import annotations

import tempfile
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any
from weakref import finalize

import numpy as np
import torch
from datasets import Dataset
from safetensors.numpy import load_file as load_tensors
from safetensors.numpy import save
from torch import Tensor
from torch.nn.functional import normalize

from sora_cli.core.atomic import write_bytes_atomic
from sora_cli.core.errors import SoraError
from sora_cli.core.words import listed, shown_path, shown_value
from sora_cli.data.content import data_fingerprint
from sora_cli.data.loading import load_file
from sora_cli.data.places import Origin, RowError, locating
from sora_cli.data.source import check_file
from sora_cli.tasks.embedding_rows import texts_in
from sora_cli.tasks.encoded import Encoded, Found

KEY = "data.corpus"
PART = 4096
"""Documents whose vectors are in memory at a time."""
_QUERIES = 1024  # that are compared with a part at a time
_BATCH = 10_000
_COLUMNS = {"id": ("id", "_id"), "text": ("text",)}  # the second is BEIR's
_VECTORS = "vectors"


class Corpus:
    """The documents of a file, in the order of their ids.

    Attributes:
        ids: ascending.
    """

    def __init__(self, path: Path) -> None:
        try:
            check_file(path)
            part = load_file(path)
        except SoraError as error:
            error.key = error.key or KEY
            raise
        self.path, rows, names = path, part.rows, part.rows.column_names
        columns = {}
        for name, usual in _COLUMNS.items():
            column = next((own for own in usual if own in names), None)
            if column is None:
                raise SoraError(
                    f"{shown_path(path)} has no column '{name}': a corpus has an id and a text",
                    where=f"there are: {listed(names)}",
                    key=KEY,
                )
            columns[column] = name
        rows = rows.select_columns(list(columns)).rename_columns(columns)
        try:
            with locating(part.origin):
                ids, hashes = _read(rows, part.origin)
        except RowError as error:  # else the rows that are scored would be named as its place
            where, hint = error.shown_where, error.hint
            raise SoraError(error.what, where=where, hint=hint, key=KEY) from None
        order = sorted(range(len(ids)), key=ids.__getitem__)
        self.ids = [ids[row] for row in order]
        self._rows = rows if order == list(range(len(ids))) else rows.select(order)
        self._hashes = hashes[order]
        self._by_hash = np.argsort(self._hashes, kind="stable")

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all ids and texts."""
        return data_fingerprint(self._rows)

    def texts(self, numbers: Sequence[int] | np.ndarray | range) -> list[str]:
        """Return the texts of some documents."""
        found: list[str] = self._rows[list(map(int, numbers))]["text"]
        return found

    def parts(self) -> Iterator[list[str]]:
        """Yield the texts of all documents in parts."""
        for first in range(0, len(self), PART):
            yield self.texts(range(first, min(first + PART, len(self))))

    def number(self, value: Any) -> int | None:
        """Return the number of the document with this id; None: there is none."""
        key = str(value)
        place = bisect_left(self.ids, key)
        return place if place < len(self.ids) and self.ids[place] == key else None

    def named(self, cells: Sequence[Any], column: str) -> list[Any] | None:
        """Return the texts of documents that rows name by id; None: they hold texts themselves.

        Args:
            cells: an id or a text, or a list of them, for each row.
        """
        flat = list(_in_cells(cells))
        numbers = [self.number(value) for _, value in flat]
        if all(number is None for number in numbers):
            return None
        if None in numbers:
            row, value = flat[numbers.index(None)]
            what = f"has no document {shown_value(value)}"
            raise self._missing(f"{what}, and column '{column}' names documents by id", row)
        texts = iter(self.texts([number for number in numbers if number is not None]))
        return [
            [next(texts) for _ in cell] if isinstance(cell, list) else next(texts) for cell in cells
        ]

    def numbers(self, cells: Sequence[Any], column: str) -> list[list[int]]:
        """Return the numbers of the documents that each row names by id or by text.

        A row whose document is not there is an error, and so is a text of several documents.

        Args:
            cells: an id or a text, or a list of them, for each row.
        """
        found: list[list[int]] = [[] for _ in cells]
        lacking = []
        for row, value in _in_cells(cells):
            number = self.number(value)
            numbers = self._with_text(value) if number is None else [number]
            if len(numbers) > 1:
                first, second = (self.ids[n] for n in numbers[:2])
                raise RowError(
                    f"the documents '{first}' and '{second}' of {self.path.name} have the text of "
                    f"column '{column}'",
                    row,
                    hint=f"name the document by its id in column '{column}'",
                    key="data.columns.positive",
                )
            if not numbers:
                lacking.append((row, value))
            found[row] += numbers
        if lacking:
            row, value = lacking[0]
            share = f"{len({row for row, _ in lacking}):,} of {len(cells):,} rows"
            what = f"lacks the documents of {share} (column '{column}'): "
            raise self._missing(f"{what}the first is {shown_value(value)}", row)
        return found

    def _with_text(self, text: Any) -> list[int]:
        key = hash(str(text))
        first, last = (
            np.searchsorted(self._hashes, key, side=side, sorter=self._by_hash)
            for side in ("left", "right")
        )
        numbers = self._by_hash[first:last].tolist()
        return [n for n, own in zip(numbers, self.texts(numbers), strict=True) if own == text]

    def _missing(self, what: str, row: int) -> RowError:
        hint = f"add it, or name the file that has it: {KEY}=FILE"
        return RowError(f"{self.path.name} {what}", row, hint=hint, key=KEY)


def _in_cells(cells: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """Yield each text or id of the cells of a column, with its row."""
    for row, cell in enumerate(cells):
        for value in texts_in(cell):
            yield row, value


@lru_cache(maxsize=2)
def _opened(path: Path, state: tuple[int, int]) -> Corpus:
    del state  # a changed file is read again
    return Corpus(path)


def open_corpus(name: str) -> Corpus:
    """Return the corpus in a file; it is read once in a process."""
    path = Path(name).expanduser()
    if not path.is_file():
        return Corpus(path)  # an error that says so
    stat = path.stat()
    return _opened(path, (stat.st_mtime_ns, stat.st_size))


def _read(rows: Dataset, origin: Origin) -> tuple[list[str], np.ndarray]:
    """Return the ids and a hash of each text; a bad document is an error with its place."""
    seen: dict[str, int] = {}
    hashes = list[int]()
    for batch in rows.iter(_BATCH):
        for name, text in zip(batch["id"], batch["text"], strict=True):
            row = len(hashes)
            if isinstance(name, bool) or not isinstance(name, str | int) or not str(name).strip():
                raise RowError(f"column 'id' holds {shown_value(name)}, no id", row)
            if not isinstance(text, str) or not text.strip():
                raise RowError(f"document '{name}' has no text: {shown_value(text)}", row)
            if seen.setdefault(str(name), row) != row:
                raise RowError(
                    f"two documents have the id '{name}'",
                    row,
                    where=f"the first: {origin.place(seen[str(name)])}",
                    hint="give each document an id of its own",
                )
            hashes.append(hash(text))
    return list(seen), np.array(hashes, dtype=np.int64)


@dataclass(frozen=True)
class Measured:
    """The tokens of a corpus as a model reads it.

    Attributes:
        lengths: (documents,) tokens that are read.
        truncated: number of documents that are cut.
        longest: tokens of the longest document before the cut.
        largest: number of the largest token.
    """

    lengths: np.ndarray
    truncated: int
    longest: int
    largest: int

    @classmethod
    def of(cls, corpus: Corpus, parts: Iterable[Encoded]) -> Measured:
        """Measure the parts of a corpus; a document without tokens is an error."""
        lengths, cut, longest, largest = list[np.ndarray](), 0, 0, 0
        for part in parts:
            lengths.append(part.lengths)
            cut, longest = cut + part.truncated, max(longest, part.longest)
            ids = part.dataset["input_ids"][:]
            largest = max(largest, *(max(own, default=0) for own in ids))
        every = np.concatenate(lengths)
        if every.min() == 0:
            raise SoraError(
                f"the tokenizer makes no token of the document '{corpus.ids[int(every.argmin())]}'",
                where=shown_path(corpus.path),
                hint="take documents without text out of the corpus",
                key=KEY,
            )
        return cls(every, cut, longest, largest)


class Reader:
    """A model that reads the parts of a corpus.

    Args:
        processor: the model's tokenizer.
        outputs: returns the model's outputs on encoded documents, (documents, d).
        bare: the same of the base model without adapters, which no training changes.
    """

    def __init__(
        self,
        processor: Any,
        outputs: Callable[[Encoded], np.ndarray],
        bare: Callable[[Encoded], np.ndarray],
    ) -> None:
        self.processor, self._outputs, self._bare = processor, outputs, bare
        self._folder: Path | None = None
        self._lasting: tempfile.TemporaryDirectory[str] | None = None
        self._known: dict[int, np.ndarray] = {}

    def bare(self, rows: Encoded, documents: Callable[[], Encoded]) -> np.ndarray:
        """Return the base model's outputs on the documents of rows, computed once.

        Args:
            rows: the outputs are kept as long as these live.
            documents: returns them as inputs of the model.
        """
        if id(rows) not in self._known:
            self._known[id(rows)] = self._bare(documents())
            finalize(rows, self._known.pop, id(rows), None)
        return self._known[id(rows)]

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep the vectors on the disk inside the `with` block: the model must not change there."""
        with tempfile.TemporaryDirectory(prefix="sora-corpus-") as folder:
            self._folder = Path(folder)
            try:
                yield
            finally:
                self._folder = None

    def vectors(
        self, corpus: Corpus, encoded: Callable[[Sequence[str]], Encoded], *, bare: bool = False
    ) -> Iterator[Tensor]:
        """Yield the vectors of the documents in parts, (documents of a part, d).

        Args:
            encoded: returns texts as inputs of the model.
            bare: those of the base model alone, which are computed once.
        """
        folder, outputs = self._folder, self._outputs
        if bare:
            if self._lasting is None:
                self._lasting = tempfile.TemporaryDirectory(prefix="sora-corpus-")
            folder, outputs = Path(self._lasting.name), self._bare
        for number, texts in enumerate(corpus.parts()):
            file = None if folder is None else folder / f"{number}.safetensors"
            if file is not None and file.is_file():
                made = load_tensors(file)[_VECTORS]
            else:
                made = np.ascontiguousarray(outputs(encoded(texts)))
                if file is not None:
                    write_bytes_atomic(file, save({_VECTORS: made}))
            yield torch.from_numpy(made)


def best_documents(queries: Tensor, parts: Iterable[Tensor], k: int) -> Found:
    """Return the k documents of the largest cosine with each query, or all if there are fewer.

    Args:
        queries: (n, d).
        parts: of the documents' vectors, (m, d) each, in order.
    """
    units = normalize(queries, dim=-1)
    blocks = torch.split(units, _QUERIES)
    kept = [(block.new_empty(len(block), 0), torch.empty(len(block), 0).long()) for block in blocks]
    first = 0
    for part in parts:
        documents = normalize(part.to(units.dtype), dim=-1).T
        for number, block in enumerate(blocks):
            scores, places = _largest(block @ documents, k)
            # those of the parts before stand first, which a stable order keeps for equal cosines
            both = zip(kept[number], (scores, places + first), strict=True)
            scores, places = (torch.cat(pair, dim=1) for pair in both)
            scores, order = scores.sort(dim=1, descending=True, stable=True)
            kept[number] = scores[:, :k], places.gather(1, order)[:, :k]
        first += len(part)
    scores, places = (torch.cat(each) for each in zip(*kept, strict=True))
    return Found(places.numpy(), scores.numpy())


def _largest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest scores of each row and their places; of equal ones the earlier."""
    values, places = scores.topk(min(k, scores.shape[1]))
    # `topk` takes any of equal scores: where the last one has equals outside, sort the row
    tied = ((scores >= values[:, -1:]).sum(dim=1) > values.shape[1]).nonzero()[:, 0]
    ordered = scores[tied].sort(dim=1, descending=True, stable=True).indices
    places[tied] = ordered[:, : values.shape[1]]
    places = places.sort(dim=1).values
    values, order = scores.gather(1, places).sort(dim=1, descending=True, stable=True)
    return values, places.gather(1, order)


def search_bytes(queries: int, documents: int, width: int) -> int:
    """Return the bytes that a search holds at most: a part of the corpus, and its cosines.

    Args:
        width: of a vector.
    """
    part = min(documents, PART)
    return 4 * (2 * part * width + 2 * min(queries, _QUERIES) * part)

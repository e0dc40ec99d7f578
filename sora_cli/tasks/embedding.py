"""Vectors of texts: a query finds its document, or two texts are as similar as their score says.

The loss compares the rows of a whole step, as one batch, whatever its micro-batches and processes:
`before_step` makes the vectors of all rows without gradients and computes the gradient of the loss
by them; each micro-batch then passes on the part of it that belongs to its own vectors (GradCache:
Gao et al. 2021, arXiv 2101.06983). A step of one micro-batch needs no second pass.

Rows that are trained on hold all their texts: a query, one right document, and wrong ones. Rows
that are scored are single texts, each once: queries, then documents; the raw rows
(`Encoded.examples`) say which texts are theirs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn

from methods.inject import adapted_layers, switched_off
from sora_cli.core.device import process_state
from sora_cli.core.errors import SoraError
from sora_cli.core.words import shown_value
from sora_cli.data.overlap import input_hashes, texts_hash
from sora_cli.data.places import RowError
from sora_cli.tasks.corpus import Reader
from sora_cli.tasks.embedding_batch import (
    DOCUMENTS,
    HELD,
    KEYS,
    QUERIES,
    SCORE,
    TextBatches,
    by_side,
    in_order,
    in_rows,
    inputs_of,
    of_all_processes,
    passed_back,
)
from sora_cli.tasks.embedding_rows import (
    IDS,
    padded_keys,
    pairs_of,
    read_rows,
    texts_in,
    tokens_of,
)
from sora_cli.tasks.embedding_scores import NO_TEXT, mean_loss, row_losses, step_loss
from sora_cli.tasks.encoded import Encoded, Predictions
from sora_cli.tasks.retrieval import PARTS, Retrieval, as_tensor, pairs_in, rows_in
from sora_cli.tasks.stand_ins import TEXT, with_column
from sora_cli.tasks.texts import require_column, row_error
from sora_cli.tasks.transformers_internals import commit_of
from sora_cli.tasks.vectors import VectorForm, lists_modules, vector_form

_PULL, _VALUE = "pull", "value"  # in a batch: what `before_step` adds
_NUMBER = r"_?\d+"  # ends the names of further columns of negatives


class Embedding(Retrieval):
    """A text's vector is made as sentence-transformers makes it from the base model's files."""

    _form: VectorForm | None = None  # set by adapt_model
    _held: Tensor | None = None  # (documents, d) of the base model, for training rows

    @classmethod
    def is_for(cls, config: Any) -> bool:
        # a bare model may be for anything: only sentence-transformers' files tell
        return lists_modules(config.name_or_path, commit_of(config))

    def bind(self, train: Dataset) -> None:
        columns = train.column_names
        parts = ("query", "positive", *(("score",) if self._scored else ()))
        self._columns = self.require_columns(columns, parts) | self.grade_column(columns)
        negatives = [] if self._scored else list(self._negatives(columns))
        self._texts = tuple(self._columns[part] for part in PARTS)
        self._several = any(isinstance(cell, list) for cell in train[:1][self._texts[1]])
        self._texts += tuple(name for name in negatives if name not in self._texts)
        self.input_columns = (*(self._columns[p] for p in self._there), *self._texts[2:])
        self.label_column = self._columns.get("score")

    def _negatives(self, columns: Sequence[str]) -> Iterator[str]:
        """Yield the columns of wrong documents: negative, negative_1, negative_2, ..."""
        named = self.find_columns(columns, ["negative"]).get("negative")
        usual = self.options.COLUMNS["negative"] if named is None else [named]
        for stem in (re.escape(re.sub(rf"{_NUMBER}$", "", name)) for name in usual):
            found = [name for name in columns if re.fullmatch(rf"{stem}({_NUMBER})?", name)]
            yield from found
            if found:
                return

    def stand_in(self, rows: Dataset) -> Dataset:
        """Return rows with both texts; a file for `predict` may have queries or documents only."""
        columns = rows.column_names
        named = {part: self.part_column(columns, part) for part in PARTS}
        there = {part: column for part, column in named.items() if column in columns}
        if self.corpus is not None:
            there = {part: column for part, column in there.items() if part == "query"}
        if not there:
            self.require_columns(columns, ["query"])
        self._there, self._answers = tuple(there), True
        for part in PARTS:
            if part not in there:
                rows = with_column(rows, self.part_column(columns, part), [TEXT] * len(rows))
        rows = rows.remove_columns([n for n in self._negatives(columns) if n not in there.values()])
        if self._scored:
            rows = with_column(rows, self.part_column(columns, "score"), [0.0] * len(rows))
        return rows

    def raw_keys(self, rows: Dataset) -> list[np.ndarray]:
        """Return keys of the query and of its documents; of a scored pair one key of both."""
        query, document = self._texts[:2]
        if self._scored:
            return [input_hashes(rows, [query, document])]
        if self.searches_alone:
            return [input_hashes(rows, [query])] * 2
        keys = [
            [texts_hash([str(text)]) for text in texts_in(cell) or [""]]
            for cell in rows[document][:]
        ]
        return [input_hashes(rows, [query]), padded_keys(keys)]

    def input_keys(self, rows: Encoded, *, answers: bool = False) -> list[np.ndarray]:
        keys = [row[: 1 + right] for row, right in rows_in(rows, KEYS)]
        if self._scored:
            return [np.array([hash(tuple(pair)) for pair in keys], dtype=np.int64)]
        queries = np.array([row[0] for row in keys], dtype=np.int64)
        documents = padded_keys([row[1:] for row in keys])
        return [queries, queries if self.searches_alone else documents]

    def check(self, rows: Dataset) -> None:
        for column in (*self._texts, *([self.label_column] if self.label_column else ())):
            require_column(column, rows.column_names)
        rows = self.in_texts(rows)
        for place, column in enumerate(self._texts):
            part = (*PARTS, "negative")[min(place, 2)]
            lists = part != "query" and not self._scored
            for row, cell in enumerate(rows[column][:]):
                # without wrong documents a row has those of the other rows
                enough = cell or part == "negative"
                for text in cell if lists and isinstance(cell, list) and enough else [cell]:
                    if not isinstance(text, str) or not text.strip():
                        nothing = text is None or isinstance(text, str)
                        holds = "has no text" if nothing else f"holds {shown_value(text)}, no text"
                        what = f"column '{column}' {holds}"
                        raise row_error(what, row, key=f"data.columns.{part}")
        if self.label_column is not None:
            self._scores(rows)

    def encode(self, rows: Dataset, processor: Any, *, training: bool = False) -> Encoded:
        form, limit = self._form or self._form_of(processor), self.data.max_length
        wanted = {} if training else self.wanted(rows)
        texts = read_rows(self.in_texts(rows), self._texts)
        own = self._prompt(form, query=True)
        queries = tokens_of(texts.queries, own, self.options.query_max_length or limit, processor)
        own = self._prompt(form, query=False)
        read = queries.join(tokens_of(texts.documents, own, limit, processor))
        keys = [hash(tuple(ids)) for ids in read.ids]
        raw = {"places": texts.places, "right": texts.right, **wanted}
        raw[KEYS] = [[keys[place] for place in row] for row in texts.places]
        scores = {SCORE: self._scores(rows)} if self._scored else {}
        lengths = np.array([len(ids) for ids in read.ids], dtype=np.int64)
        pairs = pairs_of(texts.places, texts.right)
        if training:
            own_keys = _at(np.array(keys), pairs, NO_TEXT)
            self._check_comparable(own_keys, scores.get(SCORE))
            ids = [[read.ids[i] for i in row if i != NO_TEXT] for row in pairs.tolist()]
            dataset = Dataset.from_dict({IDS: ids, KEYS: own_keys.tolist(), **scores})
        else:
            dataset = Dataset.from_dict({IDS: read.ids, "text": [*texts.queries, *texts.documents]})
        own_lengths, ragged = _at(lengths, pairs, 0), bool((pairs == NO_TEXT).any())
        return Encoded(
            dataset,
            own_lengths.max(axis=1) if training else lengths,
            truncated=int((_at(read.cut, pairs, 0).any(axis=1) if training else read.cut).sum()),
            longest=int(read.tokens.max()),
            examples=Dataset.from_dict({**raw, **scores}),
            lacking={
                "have no text within data.max_length": sum(
                    bool(read.unread[row].any()) for row in texts.places
                )
            },
            # a row of many texts needs more memory than a row with a longer one
            tokens=own_lengths.sum(axis=1) if training and ragged else None,
        )

    def documents(self, texts: Sequence[str], processor: Any) -> Encoded:
        form = self._form or self._form_of(processor)
        made = tokens_of(texts, self._prompt(form, query=False), self.data.max_length, processor)
        lengths = np.array([len(ids) for ids in made.ids], dtype=np.int64)
        rows = Dataset.from_dict({IDS: made.ids})
        return Encoded(rows, lengths, int(made.cut.sum()), longest=int(made.tokens.max()))

    def _check_comparable(self, keys: np.ndarray, scores: Sequence[float] | None) -> None:
        """Refuse training rows that have nothing to tell apart."""
        if scores is not None and len(set(scores)) == 1:
            raise RowError(
                f"all pairs have the same score, {scores[0]:g}: no pair is above another",
                hint="give pairs of different scores: data.columns.score=COLUMN",
                key="data.columns.score",
            )
        alike = None
        if len(np.setdiff1d(keys[:, 1:], [NO_TEXT])) == 1:
            alike = self._texts[1]
        elif keys.shape[1] == 2 and len(np.unique(keys[:, 0])) == 1:
            alike = self._texts[0]
        if scores is None and alike is not None:
            rows = "there is one row" if len(keys) == 1 else f"all {len(keys):,} rows have one text"
            raise RowError(
                f"{rows} in column '{alike}': no query has another document to reject",
                hint="give different documents, or wrong ones: data.columns.negative=COLUMN",
                key="data.columns.positive",
            )

    def template(self, processor: Any) -> str | None:
        form = self._form or self._form_of(processor)
        prompts = [self._prompt(form, query=query) for query in (True, False)]
        named = zip(("query", "positive"), prompts, strict=True)
        made = [repr(f"{prompt}{{{self._columns[part]}}}") for part, prompt in named if prompt]
        return " and ".join(made) or None

    def adapt_model(self, model: nn.Module, processor: Any) -> None:
        super().adapt_model(model, processor)
        config: Any = model.config
        if config.is_encoder_decoder:
            raise SoraError(
                f"a {config.model_type} model writes texts: it gives no vector for each token",
                hint="name an encoder or a decoder: model.path=MODEL",
                key="model.path",
            )
        config.use_cache = False  # a decoder's cache would be kept for each text
        source, revision = config.name_or_path, commit_of(config)
        self._form = vector_form(source, revision, self.options.pooling)

    def remarks(self, parts: Mapping[str, Encoded]) -> list[str]:
        form, limit = self._form, self.data.max_length
        if form is None:
            return []
        told = []
        if not form.listed:
            other = "" if form.pooling == "mean" else "; sentence-transformers would take the mean"
            told.append(
                "the base model has no modules.json: a text's vector is "
                f"{_POOLINGS[form.pooling]}, of unit length (task.pooling){other}"
            )
        if self.options.queries_alone:
            told.append("the base model alone embeds documents: the adapter is for queries")
        if form.max_length is not None and form.max_length < limit:
            told.append(
                f"sentence-transformers cuts this model's texts at {form.max_length} tokens, not "
                f"at data.max_length={limit}"
            )
        return told

    def collator(self, processor: Any) -> Any:
        return TextBatches(processor)

    def loss_items(self, batch: Mapping[str, Any]) -> int:
        return len(batch[KEYS])

    def inputs_of(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return some documents, which the model reads after the queries: see `batch_loss`."""
        return inputs_of(batch, QUERIES if HELD in batch else DOCUMENTS)[0]

    def before_step(
        self, model: nn.Module, micro_batches: Sequence[Mapping[str, Any]]
    ) -> Sequence[Mapping[str, Any]]:
        if len(micro_batches) <= 1 and process_state().num_processes == 1:
            return micro_batches  # each is a step by itself
        made = [self._vectors(model, batch) for batch in micro_batches]
        names = (KEYS, *((SCORE,) if self._scored else ()))
        parts = [made, *([batch[name] for batch in micro_batches] for name in names)]
        (vectors, keys, *pairs), first = of_all_processes(parts)
        scores = pairs[0] if pairs else None
        losses, pull = step_loss(vectors, keys, scores, self.options.scale)
        steps = []
        for batch in micro_batches:
            mine = slice(first, first + self.loss_items(batch))
            # the trainer weights a micro-batch by its share of the step's rows
            share = len(batch[KEYS]) / len(keys)
            steps.append({**batch, _PULL: pull[mine] / share, _VALUE: losses[mine].mean()})
            first = mine.stop
        return steps

    def batch_loss(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Any]:
        """Return the loss of a micro-batch, whose queries and documents are read apart.

        Of a part of a step it is the part's own loss, with the gradient of the whole step's.
        """
        if _PULL not in batch:
            outputs = {"vectors": self._vectors(model, batch)}
            return self.loss_of(outputs, batch), outputs
        asked, read = by_side(batch[_PULL], batch)
        pulled = (self._side(model, batch, QUERIES) * asked).sum()
        if not self.options.queries_alone:
            pulled = passed_back(pulled, model) + (self._side(model, batch, DOCUMENTS) * read).sum()
        return pulled - pulled.detach() + batch[_VALUE], {}

    def loss_of(self, outputs: Any, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss of a whole step.

        Args:
            outputs: "vectors" (n, 1 + k, d) of a query and its documents.
        """
        scale, scores = self.options.scale, batch.get(SCORE)
        return row_losses(outputs["vectors"], batch[KEYS], scores, scale).mean()

    def _vectors(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Return the vectors of each row's query and documents, (n, 1 + k, d)."""
        queries = self._side(model, batch, QUERIES)
        return in_rows(queries, self._documents(model, batch), batch)

    def _documents(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Return the vectors of a batch's documents, (texts, d)."""
        if HELD in batch:
            assert self._held is not None
            self._held = self._held.to(batch[HELD].device)
            return self._held[batch[HELD]]
        if not self.options.queries_alone:
            return self._side(model, batch, DOCUMENTS)
        with torch.no_grad(), switched_off(adapted_layers(model)), _scoring(model):
            return self._side(model, batch, DOCUMENTS)

    def with_documents(self, rows: Encoded, reader: Reader) -> Encoded | None:
        if not self.options.queries_alone:
            return None
        known: dict[tuple[int, ...], int] = {}
        held = [
            [known.setdefault(tuple(ids), len(known)) for ids in texts[1:]]
            for texts in rows.dataset[IDS][:]
        ]
        ids = [list(own) for own in known]
        lengths = np.array([len(own) for own in ids], dtype=np.int64)
        documents = Encoded(Dataset.from_dict({IDS: ids}), lengths, truncated=0)
        self._held = as_tensor(reader.bare(rows, lambda: documents))
        return replace(rows, dataset=rows.dataset.add_column(HELD, held))

    def _side(self, model: nn.Module, batch: Mapping[str, Any], side: str) -> Tensor:
        """Return the vectors of all queries or documents of a batch, (texts, d)."""
        parts = inputs_of(batch, side)
        return in_order([self._pooled(model(**part), part) for part in parts], batch, side)

    def _pooled(self, outputs: Any, batch: Mapping[str, Any]) -> Tensor:
        assert self._form is not None
        vectors: Tensor = self._form(outputs["last_hidden_state"], batch["attention_mask"])
        return vectors

    def outputs_to_keep(self, outputs: Any, batch: Mapping[str, Any]) -> Tensor:
        """Return the vectors of texts, (texts, d)."""
        return self._pooled(outputs, batch)

    def loss(self, predictions: Predictions) -> float:
        rows, vectors = predictions.encoded, as_tensor(predictions.outputs).double()
        scores = torch.tensor(rows.examples[SCORE][:]) if self._scored else None
        places, keys = (torch.from_numpy(pairs_in(rows, column)) for column in ("places", KEYS))
        return mean_loss(vectors[places], keys, scores, self.options.scale)

    def _form_of(self, processor: Any) -> VectorForm:
        """Return the form before a model is loaded: its tokenizer knows the place."""
        return vector_form(processor.name_or_path, None, self.options.pooling)

    def _prompt(self, form: VectorForm, *, query: bool) -> str:
        given = self.options.query_prompt if query else self.options.document_prompt
        if given is not None:
            return given
        return form.query_prompt if query else form.document_prompt

    def _scores(self, rows: Dataset) -> list[float]:
        column, scores = self._columns["score"], list[float]()
        for row, value in enumerate(rows[column][:]):
            if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
                what = f"column '{column}' holds {shown_value(value)}, which is no score"
                raise row_error(what, row, key="data.columns.score")
            scores.append(float(value))
        return scores


_POOLINGS = {
    "mean": "the mean of its tokens' vectors",
    "cls": "its first token's vector",
    "last": "its last token's vector",
}


@contextmanager
def _scoring(model: nn.Module) -> Iterator[None]:
    """Take a model out of training inside the `with` block: nothing is dropped."""
    before = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(before)


def _at(values: np.ndarray, places: np.ndarray, other: int) -> np.ndarray:
    """Return the values at places, and another one where there is no text."""
    made: np.ndarray = np.append(values, np.array([other], dtype=values.dtype))[places]
    return made

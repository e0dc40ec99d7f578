"""Vectors of texts: a query finds its document, or two texts are as similar as their score says.

The loss compares the rows of a whole step, as one batch, whatever its micro-batches and processes:
`before_step` makes the vectors of all rows without gradients and computes the gradient of the loss
by them; each micro-batch then passes on the part of it that belongs to its own vectors (GradCache:
Gao et al. 2021, arXiv 2101.06983). A step of one micro-batch needs no second pass.

Rows that are trained on hold all their texts. Rows that are scored are single texts, each once:
queries, then documents; the raw rows (`Encoded.examples`) say which texts are theirs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor, nn

from methods.inject import adapted_layers, switched_off
from sora_cli.core.device import process_state
from sora_cli.core.errors import SoraError
from sora_cli.core.words import shown_value
from sora_cli.data.overlap import input_hashes
from sora_cli.data.places import RowError
from sora_cli.data.processor import pad_inputs
from sora_cli.data.tokens import TOKENS, tokenise, unread_rows
from sora_cli.tasks.corpus import Reader
from sora_cli.tasks.embedding_scores import mean_loss, row_losses, step_loss
from sora_cli.tasks.encoded import Encoded, Predictions
from sora_cli.tasks.retrieval import SCORE, SIDES, Retrieval, as_tensor
from sora_cli.tasks.stand_ins import TEXT, with_column
from sora_cli.tasks.texts import require_column, row_error
from sora_cli.tasks.transformers_internals import commit_of
from sora_cli.tasks.vectors import VectorForm, lists_modules, vector_form

IDS, KEYS = "input_ids", "keys"
"""Columns of rows that are trained on: tokens of each text, and a hash of them."""
_QUERY, _DOCUMENTS = "query", "documents"  # beginnings of names in a batch
_HELD = "held"  # numbers of documents whose vectors the base model has made
_PULL, _VALUE = "pull", "value"  # in a batch: what `before_step` adds
_NUMBER = r"_?\d+"  # ends the names of further columns of negatives


@dataclass(frozen=True)
class Texts:
    """The collator: pads the queries of rows and their documents apart, or single texts."""

    tokenizer: Any

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return `query_...` (n, tokens) and `documents_...` (n, k, tokens), or (texts, tokens)."""
        if KEYS not in rows[0]:
            return self._padded([row[IDS] for row in rows])
        queries = self._padded([row[IDS][0] for row in rows])
        held = _HELD in rows[0]
        documents = {} if held else self._padded([i for row in rows for i in row[IDS][1:]])
        batch = {f"{_QUERY}_{name}": tensor for name, tensor in queries.items()}
        for name, tensor in documents.items():
            batch[f"{_DOCUMENTS}_{name}"] = tensor.view(len(rows), -1, tensor.shape[-1])
        batch[KEYS] = torch.tensor([row[KEYS] for row in rows])
        if held:
            batch[_HELD] = torch.tensor([row[_HELD] for row in rows])
        if SCORE in rows[0]:
            batch[SCORE] = torch.tensor([row[SCORE] for row in rows])
        return batch

    def _padded(self, ids: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        return pad_inputs(self.tokenizer, [{IDS: own} for own in ids])


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
        self._texts = tuple(self._columns[part] for part in ("query", "positive"))
        self._texts += tuple(name for name in negatives if name not in self._texts)
        there = zip(SIDES, self._texts[:2], strict=True)
        shown = tuple(column for side, column in there if side in self._sides)
        self.input_columns = (*shown, *self._texts[2:])
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
        named = {part: self.part_column(columns, part) for part in ("query", "positive")}
        there = {part: column for part, column in named.items() if column in columns}
        if self.corpus is not None:
            there = {part: column for part, column in there.items() if part == "query"}
        if not there:
            self.require_columns(columns, ["query"])
        both = zip(SIDES, ("query", "positive"), strict=True)
        self._sides = tuple(name for name, part in both if part in there)
        self._answers = True
        for part in ("query", "positive"):
            if part not in there:
                rows = with_column(rows, self.part_column(columns, part), [TEXT] * len(rows))
        rows = rows.remove_columns([n for n in self._negatives(columns) if n not in there.values()])
        if self._scored:
            rows = with_column(rows, self.part_column(columns, "score"), [0.0] * len(rows))
        return rows

    def raw_keys(self, rows: Dataset) -> list[np.ndarray]:
        """Return a key of the query and one of the document; of a pair with a score one of both."""
        query, document = self._texts[:2]
        if self.searches_alone:
            document = query
        parts = [[query, document]] if self._scored else [[query], [document]]
        return [input_hashes(rows, columns) for columns in parts]

    def input_keys(self, rows: Encoded, *, answers: bool = False) -> list[np.ndarray]:
        keys = np.asarray(rows.examples[KEYS][:], dtype=np.int64)[:, :2]
        if not self._scored:
            return list((keys[:, [0, 0]] if self.searches_alone else keys).T)
        return [np.array([hash(tuple(pair)) for pair in keys.tolist()], dtype=np.int64)]

    def check(self, rows: Dataset) -> None:
        for column in (*self._texts, *([self.label_column] if self.label_column else ())):
            require_column(column, rows.column_names)
        rows = self.in_texts(rows)
        for place, column in enumerate(self._texts):
            part = ("query", "positive", "negative")[min(place, 2)]
            for row, text in enumerate(rows[column][:]):
                if not isinstance(text, str) or not text.strip():
                    nothing = text is None or isinstance(text, str)
                    holds = "has no text" if nothing else f"holds {shown_value(text)}, no text"
                    raise row_error(f"column '{column}' {holds}", row, key=f"data.columns.{part}")
        if self.label_column is not None:
            self._scores(rows)

    def encode(self, rows: Dataset, processor: Any, *, training: bool = False) -> Encoded:
        form, limit = self._form or self._form_of(processor), self.data.max_length
        wanted = {} if training else self.wanted(rows)
        rows = self.in_texts(rows)
        asked, asking = _distinct(rows[self._texts[0]][:])
        columns = [rows[column][:] for column in self._texts[1:]]
        read, reading = _distinct([text for row in zip(*columns, strict=True) for text in row])
        own = self._prompt(form, query=True)
        queries = _tokens(asked, own, self.options.query_max_length or limit, processor)
        documents = _tokens(read, self._prompt(form, query=False), limit, processor)
        places = np.column_stack([asking, len(asked) + reading.reshape(len(rows), -1)])
        texts = queries.join(documents)
        keys = np.array([hash(tuple(ids)) for ids in texts.ids], dtype=np.int64)[places]
        raw = {"places": places.tolist(), KEYS: keys.tolist(), **wanted}
        scores = {SCORE: self._scores(rows)} if self._scored else {}
        if training:
            self._check_comparable(keys, scores.get(SCORE))
            ids = [[texts.ids[i] for i in row] for row in raw["places"]]
            dataset = Dataset.from_dict({IDS: ids, KEYS: raw[KEYS], **scores})
        else:
            dataset = Dataset.from_dict({IDS: texts.ids, "text": [*asked, *read]})
        tokens = texts.tokens[places].max(axis=1)
        lengths = np.array([len(ids) for ids in texts.ids], dtype=np.int64)
        return Encoded(
            dataset,
            lengths[places].max(axis=1) if training else lengths,
            truncated=int((texts.cut[places].any(axis=1) if training else texts.cut).sum()),
            longest=int(tokens.max()),
            examples=Dataset.from_dict({**raw, **scores}),
            lacking={
                "have no text within data.max_length": int(texts.unread[places].any(axis=1).sum())
            },
        )

    def documents(self, texts: Sequence[str], processor: Any) -> Encoded:
        form = self._form or self._form_of(processor)
        made = _tokens(texts, self._prompt(form, query=False), self.data.max_length, processor)
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
        if scores is None and len(np.unique(keys[:, 1:])) == 1:
            rows = "there is one row" if len(keys) == 1 else f"all {len(keys):,} rows have one text"
            raise RowError(
                f"{rows} in column '{self._texts[1]}': no query has another document to reject",
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
        if self.bare_documents:
            told.append("the base model alone embeds documents: the adapter is for queries")
        if form.max_length is not None and form.max_length < limit:
            told.append(
                f"sentence-transformers cuts this model's texts at {form.max_length} tokens, not "
                f"at data.max_length={limit}"
            )
        return told

    def collator(self, processor: Any) -> Any:
        return Texts(processor)

    def loss_items(self, batch: Mapping[str, Any]) -> int:
        return len(batch[KEYS])

    def inputs_of(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the documents, which the model reads after the queries: see `batch_loss`."""
        return _inputs(batch, _QUERY if _HELD in batch else _DOCUMENTS)

    def before_step(
        self, model: nn.Module, micro_batches: Sequence[Mapping[str, Any]]
    ) -> Sequence[Mapping[str, Any]]:
        if len(micro_batches) <= 1 and process_state().num_processes == 1:
            return micro_batches  # each is a step by itself
        made = [self._vectors(model, batch) for batch in micro_batches]
        names = (KEYS, *((SCORE,) if self._scored else ()))
        parts = [made, *([batch[name] for batch in micro_batches] for name in names)]
        (vectors, keys, *pairs), first = _of_all_processes(parts)
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
        """Return the loss of a micro-batch; queries and documents are padded, and read, apart."""
        outputs = {"vectors": self._vectors(model, batch)}
        return self.loss_of(outputs, batch), outputs

    def loss_of(self, outputs: Any, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss; of a part of a step its value, with the gradient of the whole step's.

        Args:
            outputs: "vectors" (n, 1 + k, d) of a query and its documents.
        """
        vectors = outputs["vectors"]
        if _PULL not in batch:
            scale, scores = self.options.scale, batch.get(SCORE)
            return row_losses(vectors, batch[KEYS], scores, scale).mean()
        pulled = (vectors * batch[_PULL]).sum()
        loss: Tensor = pulled - pulled.detach() + batch[_VALUE]
        return loss

    def _vectors(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Return the vectors of each row's query and documents, (n, 1 + k, d)."""
        queries = self._side(model, batch, _QUERY)
        if _HELD in batch:
            assert self._held is not None
            self._held = self._held.to(queries.device)
            documents = self._held[batch[_HELD]]
        elif self.bare_documents:
            with torch.no_grad(), switched_off(adapted_layers(model)), _scoring(model):
                documents = self._side(model, batch, _DOCUMENTS)
        else:
            documents = self._side(model, batch, _DOCUMENTS)
        return torch.cat([queries, documents], dim=1)

    def _side(self, model: nn.Module, batch: Mapping[str, Any], side: str) -> Tensor:
        """Return the vectors of the queries or of the documents, (n, 1 or k, d)."""
        inputs = _inputs(batch, side)
        vectors = self._pooled(model(**inputs), inputs)
        return vectors.view(len(batch[KEYS]), -1, vectors.shape[-1])

    def with_documents(self, rows: Encoded, reader: Reader) -> Encoded | None:
        if not self.bare_documents:
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
        return replace(rows, dataset=rows.dataset.add_column(_HELD, held))

    def _pooled(self, outputs: Any, batch: Mapping[str, Any]) -> Tensor:
        assert self._form is not None
        vectors: Tensor = self._form(outputs["last_hidden_state"], batch["attention_mask"])
        return vectors

    def outputs_to_keep(self, outputs: Any, batch: Mapping[str, Any]) -> Tensor:
        """Return the vectors of texts, (texts, d)."""
        return self._pooled(outputs, batch)

    def loss(self, predictions: Predictions) -> float:
        raw, vectors = predictions.encoded.examples, as_tensor(predictions.outputs).double()
        scores = torch.tensor(raw[SCORE][:]) if self._scored else None
        rows = vectors[torch.tensor(raw["places"][:])]
        return mean_loss(rows, torch.tensor(raw[KEYS][:]), scores, self.options.scale)

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


@dataclass(frozen=True)
class _Tokens:
    """Tokenised texts: the tokens that are kept, and facts of each text, (texts,) each."""

    ids: list[list[int]]
    tokens: np.ndarray
    cut: np.ndarray
    unread: np.ndarray

    def join(self, other: _Tokens) -> _Tokens:
        """Return these texts and others."""
        return _Tokens(
            self.ids + other.ids,
            np.concatenate([self.tokens, other.tokens]),
            np.concatenate([self.cut, other.cut]),
            np.concatenate([self.unread, other.unread]),
        )


@contextmanager
def _scoring(model: nn.Module) -> Iterator[None]:
    """Take a model out of training inside the `with` block: nothing is dropped."""
    before = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(before)


def _tokens(texts: Sequence[str], prompt: str, limit: int, processor: Any) -> _Tokens:
    rows = Dataset.from_dict({"text": [f"{prompt}{text}" for text in texts]})
    features = tokenise(rows, processor, max_length=limit)
    tokens = np.asarray(features[TOKENS][:], dtype=np.int64)
    unread = unread_rows(tokens.tolist(), processor, max_length=limit, prefix=prompt)
    return _Tokens(features[IDS][:], tokens, tokens > limit, unread)


def _distinct(texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Return each text once, in order, and the place of every text among them, (texts,)."""
    known: dict[str, int] = {}
    places = [known.setdefault(text, len(known)) for text in texts]
    return list(known), np.asarray(places, dtype=np.int64)


def _inputs(batch: Mapping[str, Any], side: str) -> dict[str, Tensor]:
    """Return the model's inputs for the queries or the documents of a batch, (texts, tokens)."""
    named = {n.removeprefix(f"{side}_"): t for n, t in batch.items() if n.startswith(f"{side}_")}
    return {name: tensor.flatten(0, -2) for name, tensor in named.items()}


def _of_all_processes(parts: Sequence[Sequence[Tensor]]) -> tuple[list[Tensor], int]:
    """Join each list over micro-batches and processes; also return this process's first row."""
    state = process_state()
    if state.num_processes == 1:
        return [torch.cat(list(part)) for part in parts], 0
    own = [torch.cat(list(part)).cpu() if part else None for part in parts]
    every = gather_object([own])
    rows = [0 if one[0] is None else len(one[0]) for one in every]
    whole = ([one[i] for one in every if one[i] is not None] for i in range(len(parts)))
    joined = [torch.cat(part).to(state.device) for part in whole]
    return joined, sum(rows[: state.process_index])

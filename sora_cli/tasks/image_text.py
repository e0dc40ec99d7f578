"""Images and their texts, matched against all others in the batch (contrastive, as in CLIP).

The model's loss compares every image of a batch with every text of the batch. So it depends on the
batches, unlike the loss of any other family: `training.gradient_accumulation` and further processes
make the compared batches smaller, and a step's gradient is the mean of their gradients. The loss of
a split is computed over all its rows as one batch, whatever `training.eval_batch_size` is.

Source: Radford et al. 2021 (arXiv 2103.00020), figure 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn

from sora_cli.core.errors import SoraError
from sora_cli.core.words import shown_value
from sora_cli.data.overlap import input_hashes
from sora_cli.data.processor import set_padding
from sora_cli.data.tokens import unread_rows
from sora_cli.recipe.task_options import ImageTextOptions
from sora_cli.tasks.base import Task
from sora_cli.tasks.embedding_scores import nearest
from sora_cli.tasks.encoded import Encoded, Lengths, Predictions
from sora_cli.tasks.family.head import without
from sora_cli.tasks.pixels import (
    Pixels,
    check_images,
    fit_images,
    image_names,
    stored_images,
)
from sora_cli.tasks.stand_ins import check_finite
from sora_cli.tasks.texts import require_column, row_error

_TEXT_KEY = "text key"
"""Column of the examples: a hash of the text's tokens, which are made batch by batch."""


@dataclass(frozen=True)
class PairBatches:
    """The collator: turns rows with stored images and texts into the model's inputs."""

    tokenizer: Any
    pixels: Pixels
    image: str
    text: str
    max_length: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return `input_ids`, `attention_mask` (rows, tokens) and `pixel_values` (rows, ...)."""
        texts = self.tokenizer(
            [str(row[self.text]) for row in rows],
            padding=True,
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        )
        pixels = self.pixels([row[self.image] for row in rows])
        return {**texts, "pixel_values": pixels, "return_loss": True}


class ImageText(Task):
    """Search of the text for an image and the image for a text; the model gets no new head.

    Rows of a batch with equal texts count as wrong answers for each other in the loss, as in
    CLIP's; in the scores they count as right.
    """

    options: ImageTextOptions
    _positions: int | None = None  # set by adapt_model

    def bind(self, train: Dataset) -> None:
        columns = self.require_columns(train.column_names, ["image", "text"])
        self._image, self._text = columns["image"], columns["text"]
        self.input_columns, self.label_column = (self._image, self._text), None

    @classmethod
    def is_for(cls, config: Any) -> bool:
        return hasattr(config, "text_config") and hasattr(config, "projection_dim")

    def stand_in(self, rows: Dataset) -> Dataset:
        return rows  # no label to replace: the question is whether image and text belong together

    def raw_keys(self, rows: Dataset) -> list[np.ndarray]:
        """Return a key of the image and one of the text: a repeated one answers for the other."""
        return [input_hashes(rows, [column]) for column in self.input_columns]

    def input_keys(self, rows: Encoded, *, answers: bool = False) -> list[np.ndarray]:
        return [input_hashes(rows.dataset, [self._image]), np.asarray(rows.examples[_TEXT_KEY][:])]

    def check(self, rows: Dataset) -> None:
        for column in (self._image, self._text):
            require_column(column, rows.column_names)
        _check_texts(rows[self._text][:], self._text)
        check_images(stored_images(rows.select_columns([self._image]), self._image), self._image)

    def encode(self, rows: Dataset, processor: Any, *, training: bool = False) -> Encoded:
        ids, limit = self._token_ids(rows, processor), self.data.max_length
        tokens = list(map(len, ids))
        self._check_positions(min(max(tokens, default=0), limit))
        kept = stored_images(rows.select_columns([self._image, self._text]), self._image)
        # equal lengths: rows are batched by length, and the loss depends on the rows of a batch
        lengths = np.ones(len(kept), dtype=np.int64)
        cut = sum(n > limit for n in tokens)
        unread = unread_rows(tokens, processor.tokenizer, max_length=limit)
        return Encoded(
            kept,
            lengths,
            truncated=cut,
            longest=max(tokens, default=0),
            examples=Dataset.from_dict({_TEXT_KEY: [hash(tuple(own[:limit])) for own in ids]}),
            lacking={"have no text within data.max_length": int(unread.sum())},
            tokens=np.minimum(np.asarray(tokens, dtype=np.int64), limit),
        )

    def token_lengths(self, rows: Dataset, processor: Any) -> Lengths:
        return Lengths(np.array(list(map(len, self._token_ids(rows, processor)))))

    def adapt_model(self, model: nn.Module, processor: Any) -> None:
        config: Any = model.config
        texts = getattr(config, "text_config", None)
        scale, bias = (getattr(model, name, None) for name in ("logit_scale", "logit_bias"))
        # a bias marks SigLIP, whose loss is a sigmoid for each pair, not CLIP's softmax
        if scale is None or bias is not None or texts is None:
            raise SoraError(
                f"a {config.model_type} model does not compare images with texts as CLIP does",
                hint="model.path=openai/clip-vit-large-patch14",
                key="model.path",
            )
        set_padding(model, processor.tokenizer)
        self._form = fit_images(model, processor.image_processor)
        self._scale, self._positions = scale, texts.max_position_embeddings

    def collator(self, processor: Any) -> Any:
        pixels, length = Pixels(processor.image_processor, self._form), self.data.max_length
        return PairBatches(processor.tokenizer, pixels, self._image, self._text, length)

    def loss_items(self, batch: Mapping[str, Any]) -> int:
        return len(batch["input_ids"])

    def scored_inputs(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        return without(batch, "return_loss")

    def outputs_to_keep(self, outputs: Any, batch: Mapping[str, Any]) -> Tensor:
        """Return (rows, 2 d + 1): the unit vectors of text and image, and the temperature.

        The temperature, a factor on the cosines, is the same in all rows.
        """
        texts, images = outputs["text_embeds"].float(), outputs["image_embeds"].float()
        scale = self._scale.detach().float().exp().to(texts.device)
        return torch.cat([texts, images, scale.expand(len(texts), 1)], dim=1)

    def loss(self, predictions: Predictions) -> float:
        return contrastive_loss(*_split_outputs(predictions))

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        if not np.isfinite(predictions.outputs).all():
            return {name: float("nan") for name in self.metric_names}
        return {
            name: self.loss(predictions)
            if name == "loss"
            else float(np.mean(self._right(predictions, name)))
            for name in self.metric_names
        }

    def row_parts(self, predictions: Predictions) -> tuple[Any, ...]:
        """Return a mask of right rows; each row is compared with all rows of the split."""
        if self.best == "loss":
            raise SoraError(
                "the loss compares all images and texts: a single row has no loss",
                hint="task.best_metric=recall_at_1",
                key="task.best_metric",
            )
        if not np.isfinite(predictions.outputs).all():
            return "right", np.full(len(predictions.outputs), np.nan)
        return "right", self._right(predictions, self.best)

    def answer_columns(self, predictions: Predictions) -> list[Sequence[Any]]:
        check_finite(predictions.outputs)
        return [_cosines(predictions)]

    def compared_answers(self, predictions: Predictions) -> Sequence[Any]:
        """Return the text found for each image, and the image found for each text."""
        check_finite(predictions.outputs)
        texts, images, _ = _split_outputs(predictions)
        own = self._texts(predictions)
        found = zip(nearest(images, texts), nearest(texts, images), strict=True)
        return [(own[int(text)], int(image)) for text, image in found]

    def readable(self, predictions: Predictions) -> list[dict[str, Any]]:
        vectors, images, _ = _split_outputs(predictions)
        texts, chosen = self._texts(predictions), nearest(images, vectors)
        cosines = _cosines(predictions)
        names = image_names(predictions.encoded.dataset, self._image)
        return [
            {
                **({"image": name} if name else {}),
                "prediction": texts[int(c)],
                "label": text,
                "cosine": cosine,
            }
            for name, c, text, cosine in zip(names, chosen, texts, cosines, strict=True)
        ]

    def _right(self, predictions: Predictions, metric: str) -> np.ndarray:
        """Return a mask of rows with the right nearest text (`text_recall_at_1`: image)."""
        texts, images, _ = _split_outputs(predictions)
        own = np.unique(self._texts(predictions), return_inverse=True)[1]
        pair = (texts, images) if metric == "text_recall_at_1" else (images, texts)
        return np.asarray(own[nearest(*pair)] == own)

    def _check_positions(self, longest: int) -> None:
        if self._positions is not None and longest > self._positions:
            raise SoraError(
                f"texts of {longest} tokens do not fit the model, which has {self._positions} "
                "positions for them",
                where=f"data.max_length is {self.data.max_length}",
                hint=f"data.max_length={self._positions}",
                key="data.max_length",
            )

    def _token_ids(self, rows: Dataset, processor: Any) -> list[list[int]]:
        ids: list[list[int]] = processor.tokenizer(rows[self._text][:], verbose=False)["input_ids"]
        return ids

    def _texts(self, predictions: Predictions) -> list[str]:
        texts: list[str] = predictions.encoded.dataset[self._text][:]
        return texts


def _check_texts(texts: Sequence[Any], column: str) -> None:
    for row, text in enumerate(texts):
        if not isinstance(text, str) or not text:
            holds = f"holds {shown_value(text)}, which is no text" if text else "has no text"
            raise row_error(f"column '{column}' {holds}", row, key="data.columns.text")


def _cosines(predictions: Predictions) -> list[float]:
    """Return the cosine of each row's image and text."""
    texts, images, _ = _split_outputs(predictions)
    cosines: list[float] = (texts * images).sum(dim=1).tolist()
    return cosines


def _split_outputs(predictions: Predictions) -> tuple[Tensor, Tensor, float]:
    """Split a model's outputs into text vectors, image vectors and temperature."""
    outputs = torch.from_numpy(np.asarray(predictions.outputs, dtype=np.float32))
    width = outputs.shape[1] // 2
    return outputs[:, :width], outputs[:, width : 2 * width], float(outputs[0, -1])


_BLOCK = 1024  # rows that are compared with all others at a time


def contrastive_loss(texts: Tensor, images: Tensor, scale: float) -> float:
    """Return the mean of two cross-entropies: of finding a text's image and an image's text.

    Args:
        texts, images: (rows, d) of unit length; the same row of both belongs together.
        scale: factor on the cosines.
    """
    return (_mean_entropy(texts, images, scale) + _mean_entropy(images, texts, scale)) / 2


def _mean_entropy(queries: Tensor, others: Tensor, scale: float) -> float:
    # in blocks: the logits of all rows against all rows need too much memory for a large split
    total, first, columns = 0.0, 0, others.double().T
    for block in torch.split(queries.double(), _BLOCK):
        own = torch.arange(first, first + len(block))
        logits = scale * block @ columns  # (block, rows)
        total += float(torch.nn.functional.cross_entropy(logits, own, reduction="sum"))
        first += len(block)
    return total / first

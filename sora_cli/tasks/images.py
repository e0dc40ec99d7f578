"""Image classification: one class per image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn

from sora_cli.data.overlap import input_hashes
from sora_cli.data.places import RowError
from sora_cli.recipe.task_options import ImageClassificationOptions
from sora_cli.tasks.classes import OneClass
from sora_cli.tasks.encoded import Encoded, Predictions
from sora_cli.tasks.family.head import without
from sora_cli.tasks.labels import encode_classes
from sora_cli.tasks.pixels import (
    ImageFormat,
    Pixels,
    check_images,
    fit_images,
    image_names,
    stored_images,
)
from sora_cli.tasks.questions import Questions
from sora_cli.tasks.texts import require_column


@dataclass(frozen=True)
class ImageBatches:
    """The collator: turns rows with stored images and labels into the model's inputs."""

    pixels: Pixels
    image: str
    label: str
    names: Sequence[str]

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return `pixel_values` (rows, channels, height, width) and `labels` (rows,)."""
        pixels = self.pixels([row[self.image] for row in rows])
        labels = encode_classes([row[self.label] for row in rows], self.names, column=self.label)
        return {"pixel_values": pixels, "labels": torch.tensor(labels)}


class ImageClassification(OneClass):
    """One class per image; cross-entropy. Images are decoded batch by batch (see `pixels`)."""

    options: ImageClassificationOptions
    _form = ImageFormat("RGB", torch.float32)  # set by adapt_model

    def bind(self, train: Dataset) -> None:
        self._image = self.require_columns(train.column_names, ["image"])["image"]
        self._label = self.data.label_column
        self._check_columns(train)
        self.input_columns, self.label_column = (self._image,), self._label
        self._bind_labels(train, self._label)

    def input_keys(self, rows: Encoded, *, answers: bool = False) -> list[np.ndarray]:
        return [input_hashes(rows.dataset, [self._image])]

    def check(self, rows: Dataset) -> None:
        self._check_columns(rows)
        self._check_labels(rows)
        check_images(stored_images(rows.select_columns([self._image]), self._image), self._image)

    def encode(self, rows: Dataset, processor: Any, *, training: bool = False) -> Encoded:
        kept = stored_images(rows.select_columns([self._image, self._label]), self._image)
        return Encoded(kept, np.ones(len(kept), dtype=np.int64), truncated=0)

    def adapt_model(self, model: nn.Module, processor: Any) -> None:
        self._form = fit_images(model, processor)

    def scored_inputs(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        return without(batch, "labels")

    def collator(self, processor: Any) -> Any:
        pixels = Pixels(processor, self._form)
        return ImageBatches(pixels, self._image, self._label, self._names)

    def questions(self, rows: Dataset, order: np.random.Generator) -> Questions:
        del order  # the classes have their own
        names = image_names(stored_images(rows.select_columns([self._image]), self._image),
                            self._image)  # fmt: skip
        if None in names:
            raise RowError(
                "this image has no file name, by which a person could find it",
                names.index(None),
                hint="give a table with a column of paths: --unlabelled FILE.csv",
            )
        shown = {self._image: [name or "" for name in names]}
        return Questions(shown, [{name: name for name in self._names}] * len(rows))

    def labels(self, rows: Encoded) -> np.ndarray:
        values = rows.dataset[self._label][:]
        return np.asarray(encode_classes(values, self._names, column=self._label))

    def readable(self, predictions: Predictions) -> list[dict[str, Any]]:
        names = image_names(predictions.encoded.dataset, self._image)
        records = super().readable(predictions)
        return [
            {"image": name, **record} if name else record
            for name, record in zip(names, records, strict=True)
        ]

    def _check_columns(self, rows: Dataset) -> None:
        require_column(self._image, rows.column_names)
        require_column(self._label, rows.column_names, hint="data.label_column=COLUMN")

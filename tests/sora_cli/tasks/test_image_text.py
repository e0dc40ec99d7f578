"""Images and texts that belong together: the loss over all rows, and what is nearest."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset

from sora_cli.core.errors import SoraError
from sora_cli.model.base import load_base
from sora_cli.recipe.recipe import DataBlock, ModelBlock, TaskBlock
from sora_cli.run.memory import longest_rows
from sora_cli.tasks import create_task, image_text
from sora_cli.tasks.encoded import Predictions
from sora_cli.tasks.image_text import ImageText
from tests.helpers_errors import refusal
from tests.helpers_images import corner_rows, pair_processor
from tests.helpers_models import tiny_clip
from tests.helpers_rows import assert_rows_add_up


def _task(rows: Dataset, *, model: Any = None, data: Any = None, **options: Any) -> ImageText:
    """Bound, and fitted to a tiny CLIP."""
    block = DataBlock(path="unused", **(data or {}))
    task = create_task(TaskBlock(name="image-text", **options), block)
    assert isinstance(task, ImageText)
    task.bind(rows)
    task.adapt_model(tiny_clip() if model is None else model, pair_processor())
    return task


def _batch(task: ImageText, rows: Dataset) -> dict[str, Any]:
    kept = task.encode(rows, pair_processor()).dataset
    collate = task.collator(pair_processor())
    batch: dict[str, Any] = collate(kept.__getitems__(list(range(len(kept)))))
    return batch


def _predictions(task: ImageText, model: Any, rows: Dataset, *sizes: int) -> Predictions:
    """Return what is kept of batches of those sizes."""
    kept, first = [], 0
    for size in sizes:
        batch = _batch(task, rows.select(range(first, first + size)))
        with torch.no_grad():
            kept.append(task.outputs_to_keep(model(**task.scored_inputs(batch)), batch))
        first += size
    assert first == len(rows)
    return Predictions(torch.cat(kept).numpy(), None, task.encode(rows, pair_processor()))


def test_the_loss_is_the_models_own_on_all_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, model = corner_rows(11), tiny_clip()
    model.logit_scale.data.fill_(1.7)
    task = _task(rows, model=model, metrics=["recall_at_1", "loss"])
    with torch.no_grad():
        whole = float(model(**_batch(task, rows)).loss)
    monkeypatch.setattr(image_text, "_BLOCK", 3)
    predictions = _predictions(task, model, rows, 4, 7)
    assert task.loss(predictions) == pytest.approx(whole, rel=1e-5)
    assert task.scores(predictions)["loss"] == pytest.approx(whole, rel=1e-5)
    assert predictions.outputs[:, -1] == pytest.approx(math.exp(1.7))


def test_a_loss_in_training_is_the_mean_over_rows_of_the_batch() -> None:
    rows, model = corner_rows(5), tiny_clip()
    task = _task(rows, model=model)
    batch = _batch(task, rows)
    assert task.loss_items(batch) == 5
    with torch.no_grad():
        out = model(**batch)
    own = torch.arange(5)
    entropy = torch.nn.functional.cross_entropy
    sides = entropy(out.logits_per_text, own), entropy(out.logits_per_image, own)
    assert float(out.loss) == pytest.approx(float(sum(sides)) / 2, rel=1e-6)


def _made(texts: list[str], vectors: list[float], images: list[float], **options: Any) -> Any:
    """A task, and predictions whose vectors are those angles in turns."""
    rows = corner_rows(len(texts)).remove_columns("text").add_column("text", texts)
    task = _task(rows, **options)
    angles = 2 * np.pi * np.array([vectors, images])
    points = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    outputs = np.concatenate([*points, np.full((len(texts), 1), 10.0)], axis=1)
    predictions = Predictions(outputs.astype(np.float32), None, task.encode(rows, pair_processor()))
    return task, predictions


def test_recalls_count_the_nearest_and_equal_texts_are_one() -> None:
    """Image 1 is nearest to text 0, an equal one: right. Image 2 is nearest to text 3: wrong.

    Text 2's nearest is image 3, wrong; text 1's is image 0, whose text is the same.
    """
    task, predictions = _made(
        ["the north", "the north", "the south", "the west"],
        vectors=[0.0, 0.1, 0.5, 0.7],
        images=[0.09, 0.04, 0.65, 0.61],
    )
    chosen = [1, 0, 3, 3]  # by hand, of texts: |0.09 - 0.1|, |0.04 - 0|, |0.65 - 0.7|, ...
    texts = ["the north", "the north", "the south", "the west"]
    found = [record["prediction"] for record in task.readable(predictions)]
    assert found == [texts[i] for i in chosen]
    assert task.metrics(predictions) == {"recall_at_1": 0.75, "text_recall_at_1": 0.5}
    assert_rows_add_up(task, predictions, 4)
    record = task.readable(predictions)[2]
    assert record["label"] == "the south"
    assert record["cosine"] == pytest.approx(math.cos(2 * math.pi * 0.15), abs=1e-6)


def test_only_the_metrics_that_are_asked_for() -> None:
    task, predictions = _made(["the north"] * 2, [0, 0], [0, 0], metrics=["text_recall_at_1"])
    assert task.metrics(predictions) == {"text_recall_at_1": 1.0}
    assert task.scores(predictions)["loss"] == pytest.approx(math.log(2))


def test_one_broken_row_spoils_every_score() -> None:
    task, predictions = _made(["the north", "the south"], [0, 0.5], [0, 0.5])
    predictions.outputs[1, 0] = np.nan
    assert all(math.isnan(value) for value in task.scores(predictions).values())
    assert_rows_add_up(task, predictions, 2)


def test_no_row_has_a_loss_of_its_own() -> None:
    task, predictions = _made(["the north"] * 2, [0, 0], [0, 0], metrics=["loss"])
    with pytest.raises(SoraError, match="a single row has no loss"):
        task.row_scores(predictions)


def test_texts_are_padded_and_cut_and_keep_their_end() -> None:
    rows = corner_rows(2).remove_columns("text")
    rows = rows.add_column("text", ["the north", "the a the a the a south"])
    task = _task(rows, data={"max_length": 6})
    kept = task.encode(rows, pair_processor())
    assert (kept.truncated, kept.longest) == (1, 9)
    assert kept.lengths.tolist() == [1, 1]  # batches do not depend on them
    assert kept.sizes.tolist() == [4, 6]  # memory does
    assert longest_rows(kept, 1).dataset[0]["text"] == rows[1]["text"]
    batch = _batch(task, rows)
    assert batch["input_ids"].tolist() == [[1, 3, 5, 63, 0, 0], [1, 3, 4, 3, 4, 63]]
    assert batch["attention_mask"].sum(dim=1).tolist() == [4, 6]
    assert batch["pixel_values"].shape == (2, 1, 8, 8)
    for limit, unread in ((2, 2), (3, 0)):
        cut = _task(rows, data={"max_length": limit}).encode(rows, pair_processor())
        assert cut.lacking == {"have no text within data.max_length": unread}


def test_texts_that_the_model_has_no_positions_for() -> None:
    rows = corner_rows(2).remove_columns("text").add_column("text", ["the " * 40, "the north"])
    with refusal():
        _task(rows).encode(rows, pair_processor())


@pytest.mark.parametrize(("text", "message"), [("", "has no text"), (None, "has no text")])
def test_a_row_without_a_text_is_named(text: str | None, message: str) -> None:
    rows = corner_rows(3).remove_columns("text").add_column("text", ["a", text, "the"])
    with pytest.raises(SoraError, match=f"column 'text' {message}\nrow 1 .counted from 0."):
        _task(rows).check(rows)


def test_a_model_with_another_loss_is_refused() -> None:
    config = transformers.SiglipConfig(
        text_config={"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
                     "num_attention_heads": 1, "vocab_size": 64},
        vision_config={"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
                       "num_attention_heads": 1, "image_size": 8, "patch_size": 4},
    )  # fmt: skip
    for model in (transformers.SiglipModel(config), tiny_clip().vision_model):
        with pytest.raises(SoraError, match="does not compare images with texts as CLIP does"):
            _task(corner_rows(2), model=model)


@pytest.mark.parametrize("part", ["tokenizer", "image processor"])
def test_a_model_that_lacks_a_part_of_its_processor_is_refused(part: str, tmp_path: Path) -> None:
    tiny_clip().save_pretrained(tmp_path)
    processor = pair_processor()
    kept = processor.image_processor if part == "tokenizer" else processor.tokenizer
    kept.save_pretrained(tmp_path)
    with pytest.raises(SoraError, match=f"holds no {part}"):
        load_base(ModelBlock(path=str(tmp_path)), _task(corner_rows(2)))

"""Images: kept as they are stored, decoded batch by batch, and classified."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from datasets import Dataset, Image
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from methods.inject import inject
from methods.registry import create
from sora_cli.core.errors import SoraError
from sora_cli.data.rows import load_rows
from sora_cli.model.base import Base, load_base
from sora_cli.recipe.recipe import DataBlock, ModelBlock, Recipe, TaskBlock
from sora_cli.tasks import create_task, pixels
from sora_cli.tasks.encoded import Predictions
from sora_cli.tasks.images import ImageClassification
from sora_cli.train.callback import attach
from sora_cli.train.trainer import build_trainer
from tests.helpers_errors import refusal
from tests.helpers_images import (
    SIDE,
    corner_array,
    corner_rows,
    encoded,
    tiny_image_processor,
    write_image_folder,
)
from tests.helpers_methods import EXAMPLES
from tests.helpers_models import tiny_vit
from tests.helpers_rows import assert_rows_add_up

METHODS = {**EXAMPLES, "sora": {**EXAMPLES["sora"], "l1": 0.3}}
"""With the penalties that a method has."""


def _task(rows: Dataset, *, model: Any = None, **data: Any) -> ImageClassification:
    """Bound, and fitted to a tiny ViT."""
    block = DataBlock(path="unused", **data)
    task = create_task(TaskBlock(name="image-classification"), block)
    assert isinstance(task, ImageClassification)
    task.bind(rows)
    task.adapt_model(tiny_vit(num_labels=4) if model is None else model, tiny_image_processor())
    return task


def _batch(task: ImageClassification, rows: Dataset, processor: Any = None) -> dict[str, Any]:
    processor = processor or tiny_image_processor()
    kept = task.encode(rows, processor).dataset
    batch: dict[str, Any] = task.collator(processor)(kept.__getitems__(list(range(len(kept)))))
    return batch


def test_rows_stay_as_they_are_stored_and_batches_are_decoded() -> None:
    rows = corner_rows(6)
    task = _task(rows)
    kept = task.encode(rows, tiny_image_processor()).dataset
    assert kept[3]["image"]["bytes"] == rows.cast_column("image", Image(decode=False))[3]["image"][
        "bytes"
    ]  # fmt: skip
    batch = _batch(task, rows)
    expected = [np.asarray(row["image"], dtype=np.float32) / 127.5 - 1 for row in rows]
    np.testing.assert_allclose(batch["pixel_values"][:, 0].numpy(), expected, atol=1e-6)
    assert batch["labels"].tolist() == rows["label"][:]
    assert task.labels(task.encode(rows, None)).tolist() == rows["label"][:]


@pytest.mark.parametrize("stored", ["path", "bytes", "struct"])
def test_columns_of_paths_and_of_bytes_are_images(stored: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = [corner_array(i % 4, rng) for i in range(4)]
    content = [encoded(array) for array in arrays]
    for i, value in enumerate(content):
        (tmp_path / f"{i}.png").write_bytes(value)
    made: dict[str, list[Any]] = {
        "path": [str(tmp_path / f"{i}.png") for i in range(4)],
        "bytes": list(content),
        "struct": [{"bytes": value, "path": None} for value in content],
    }
    rows = Dataset.from_dict({"img": made[stored], "label": ["a", "b", "c", "d"]})
    pixels = _batch(_task(rows), rows)["pixel_values"][:, 0].numpy()
    np.testing.assert_allclose(pixels, np.stack(arrays) / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_get_the_models_channels(channels: int) -> None:
    """Grey ones repeat theirs; of coloured ones Pillow's weights make a grey."""
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    colour = np.stack([grey, 3 * grey, 2 * grey], axis=-1)
    rows = Dataset.from_dict({"image": [encoded(grey), encoded(colour)], "label": [0, 1]})
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        image_size=SIDE, patch_size=4, num_channels=channels,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config)
    processor = tiny_image_processor(channels=channels)
    task = _task(rows)
    task.adapt_model(model, processor)
    pixels = _batch(task, rows, processor)["pixel_values"]
    assert pixels.shape == (2, channels, SIDE, SIDE)
    back = (pixels * 127.5 + 127.5).round()
    assert (back[0] == torch.tensor(grey)).all()
    if channels == 3:
        assert (back[1] == torch.tensor(colour).movedim(-1, 0)).all()
    else:
        weighted = colour @ np.array([0.299, 0.587, 0.114])
        np.testing.assert_allclose(back[1, 0].numpy(), weighted, atol=1)


@pytest.mark.parametrize(
    ("room", "pads", "decoded"),
    [
        pytest.param(2**20, False, 4, id="kept"),
        pytest.param(4 * 3 * SIDE * SIDE * 4 - 1, False, 7, id="three"),
        pytest.param(2**20, True, 12, id="pads"),
    ],
)
def test_small_images_are_decoded_once(
    room: int, pads: bool, decoded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whatever batch they come; there is room for all four, or for three of them."""
    read: list[Any] = []
    opened = pixels._open

    def count(image: Any) -> PIL.Image.Image:
        read.append(image)
        return opened(image)

    monkeypatch.setattr(pixels, "_open", count)
    monkeypatch.setattr(pixels, "_KEPT", room)
    processor = tiny_image_processor(channels=3)
    monkeypatch.setattr(processor, "do_pad", pads, raising=False)
    arrays = [corner_array(i, np.random.default_rng(i)) for i in range(4)]
    images = [{"bytes": encoded(array), "path": None} for array in arrays]
    made = pixels.Pixels(processor, pixels.ImageFormat("RGB", torch.float32))
    for order in ([0, 1], [2, 3], [3, 1], [2, 0], [0, 2, 1, 3]):
        expected = np.stack([arrays[i] for i in order]) / 127.5 - 1
        np.testing.assert_allclose(made([images[i] for i in order])[:, 0], expected, atol=1e-6)
    assert len(read) == decoded


def _damaged(kind: str) -> tuple[Any, str]:
    if kind == "cut":
        big = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
        return encoded(big, "jpeg")[:900], "cannot be read: image file is truncated"
    if kind == "deep":
        file = io.BytesIO()
        PIL.Image.fromarray(np.full((8, 8), 999, dtype=np.uint16)).save(file, "png")
        return file.getvalue(), r"has more than 8 bits per channel \(mode I;16\)"
    return {
        "text": (b"hello", "cannot be read: its format is unknown"),
        "empty": (b"", "cannot be read: its format is unknown"),
        "none": (None, "is missing"),
    }[kind]


@pytest.mark.parametrize("kind", ["cut", "text", "empty", "none", "deep"])
def test_a_damaged_image_is_found_before_training(kind: str) -> None:
    content, message = _damaged(kind)
    images = [encoded(corner_array(i % 4, np.random.default_rng(i))) for i in range(300)]
    images[271] = content
    rows = Dataset.from_dict({"image": images, "label": [i % 2 for i in range(300)]})
    with pytest.raises(SoraError, match=f"the image {message}.*\nrow 271 .counted from 0."):
        _task(rows).check(rows)


def test_a_file_that_is_not_there_is_named() -> None:
    rows = Dataset.from_dict({"image": ["/nowhere/cat.png"] * 2, "label": [0, 1]})
    with pytest.raises(SoraError, match=r"there is no file '/nowhere/cat\.png'"):
        _task(rows).check(rows)


@pytest.mark.parametrize(
    ("columns", "data", "message"),
    [
        ({"picture": [b""], "label": [0]}, {}, "no column for 'image' among picture, label"),
        ({"image": [b""], "kind": [0]}, {}, "no column 'label'"),
        ({"image": [b""] * 2, "label": [0, 1]}, {"columns": {"image": "img"}}, "no column 'img'"),
    ],
)
def test_columns_that_are_not_there(columns: Any, data: Any, message: str) -> None:
    with pytest.raises(SoraError, match=message):
        _task(Dataset.from_dict(columns), **data)


def test_a_column_of_numbers_is_no_image() -> None:
    rows = Dataset.from_dict({"image": [[1, 2], [3, 4]], "label": [0, 1]})
    with pytest.raises(SoraError, match="column 'image' holds no images, but List"):
        _task(rows).encode(rows, tiny_image_processor())


def test_an_image_processor_of_another_model_is_refused() -> None:
    rows = corner_rows(4)
    task = _task(rows)
    for processor in (
        ViTImageProcessorPil(),  # three channels, 224 x 224
        tiny_image_processor(size={"height": 16, "width": 16}),
    ):
        with pytest.raises(SoraError, match="does not accept the output of its image processor"):
            task.adapt_model(tiny_vit(num_labels=4), processor)


def test_a_model_without_an_image_processor_is_refused(tmp_path: Path) -> None:
    tiny_vit(num_labels=4).save_pretrained(tmp_path)
    with refusal():
        load_base(ModelBlock(path=str(tmp_path)), _task(corner_rows(4)))


def test_images_of_several_sizes_need_a_processor_that_resizes() -> None:
    images = [encoded(np.zeros((n, 8), dtype=np.uint8)) for n in (8, 9)]
    rows = Dataset.from_dict({"image": images, "label": [0, 1]})
    task = _task(rows)
    kept = task.encode(rows, None).dataset
    with pytest.raises(SoraError, match="the image processor cannot make a batch of these images"):
        task.collator(tiny_image_processor(do_resize=False))([kept[0], kept[1]])


def test_averages_of_the_frozen_model_stay() -> None:
    """Batch normalisation learns from every batch in training, unless it is told not to."""
    config = transformers.MobileViTConfig(
        image_size=64, hidden_sizes=[8, 8, 8], neck_hidden_sizes=[4, 4, 4, 4, 8, 8, 8],
        num_attention_heads=1, expand_ratio=1.0,
    )  # fmt: skip
    model = transformers.MobileViTForImageClassification(config)
    task = _task(corner_rows(4))
    task.adapt_model(model, tiny_image_processor(channels=3, size={"height": 64, "width": 64}))
    before = {name: value.clone() for name, value in model.named_buffers()}
    assert len(before) > 50
    pixels = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        expected = model.eval()(pixel_values=pixels).logits
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        torch.testing.assert_close(model(pixel_values=pixels).logits, expected)
    for name, value in model.named_buffers():
        assert torch.equal(value, before[name]), name


def test_the_loss_is_the_models_own_on_one_batch() -> None:
    rows = corner_rows(9)
    task, model = _task(rows), tiny_vit(num_labels=4)
    batch = _batch(task, rows)
    with torch.no_grad():
        whole = float(model(**batch).loss)
        parts = [_batch(task, rows.select(r)) for r in (range(4), range(4, 9))]
        kept = [task.outputs_to_keep(model(**task.scored_inputs(part)), part) for part in parts]
    outputs = torch.cat(kept).numpy()
    encoded_rows = task.encode(rows, tiny_image_processor())
    predictions = Predictions(outputs, task.labels(encoded_rows), encoded_rows)
    assert task.loss(predictions) == pytest.approx(whole, rel=1e-5)
    assert [task.loss_items(part) for part in parts] == [4, 5]
    right = float(np.mean(outputs.argmax(1) == rows["label"][:]))
    assert task.metrics(predictions) == {"accuracy": right}
    assert_rows_add_up(task, predictions, 9)
    outputs[2, 1] = np.nan
    assert all(math.isnan(value) for value in task.scores(predictions).values())
    assert_rows_add_up(task, predictions, 9)


def test_records_name_the_file_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "dog.png").write_bytes(encoded(np.zeros((8, 8), dtype=np.uint8)))
    rows = Dataset.from_dict({"image": [str(tmp_path / "dog.png")] * 2, "label": ["no", "yes"]})
    task = _task(rows)
    kept = task.encode(rows, tiny_image_processor())
    records = task.readable(Predictions(np.array([[0.0, 1], [2, 0]]), task.labels(kept), kept))
    assert records == [
        {"image": "dog.png", "prediction": "yes", "label": "no", "logits": [0.0, 1.0]},
        {"image": "dog.png", "prediction": "no", "label": "yes", "logits": [2.0, 0.0]},
    ]


def _trained(method: str, folder: Path, accumulation: int) -> dict[str, torch.Tensor]:
    """The trained parameters after two steps of 8 and one of 6."""
    recipe = Recipe(
        model={"path": "unused"},
        task={"name": "image-classification"},
        data={"path": "unused"},
        method={"name": method, **METHODS[method]},
        training={"epochs": 1, "batch_size": 8, "evaluate": "no", "checkpoint": "no",
                  "gradient_accumulation": accumulation, "learning_rate": 0.01},
    )  # fmt: skip
    rows, model = corner_rows(22), tiny_vit(num_labels=4).double()
    task = _task(rows, model=model)
    processor = tiny_image_processor()
    base = Base(model, processor, "tiny", "tiny", None, (), ("classifier",))
    train_rows = task.encode(rows, processor, training=True)
    trainer = build_trainer(recipe, task, base, folder, train=train_rows)
    made = create(method, **METHODS[method])
    generator = torch.Generator().manual_seed(0)
    layers = inject(model, made, exclude=["classifier"], generator=generator)
    attach(trainer, made, layers)
    trainer.train()
    return {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    "method",
    [pytest.param(m, marks=() if m == "sora" else pytest.mark.long) for m in METHODS],
)
def test_micro_batches_train_the_same_model(method: str, tmp_path: Path) -> None:
    whole, parts = (_trained(method, tmp_path, n) for n in (1, 4))
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-6, atol=1e-9)


def test_a_directory_of_images_is_a_data_set(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "corners", splits=("train", "validation"))
    rows = load_rows(DataBlock(path=str(folder)))
    task = _task(rows.train)
    assert task.label_names == ["north-east", "north-west", "south-east", "south-west"]
    validation = rows.report["validation"]
    kept = task.encode(validation, tiny_image_processor())
    named = [Path(row["image"]["path"]).parent.name for row in kept.dataset]
    assert named == [task.label_names[int(label)] for label in task.labels(kept)]
    assert len(named) == 8


def test_a_directory_without_splits_says_how_it_should_be_laid_out(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "corners", splits=("",))
    with refusal():
        load_rows(DataBlock(path=str(folder)))

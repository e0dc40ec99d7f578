"""The families' recipes for the Hub, trained for two steps on a tiny model and rows like its own.

The stand-ins have the columns, features and splits of the data sets the recipes name; what is
there instead of model and data is all that is overridden.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import ClassLabel, Dataset, List

from sora_cli.adapter.directory import read_adapter
from sora_cli.recipe.library import recipe_names
from sora_cli.recipe.load import load_recipe
from tests.helpers_chat import instruct_rows, write_chat_base
from tests.helpers_families import choice_rows, question_rows, tagged_rows, text_tokenizer
from tests.helpers_images import corner_rows, pair_processor, tiny_image_processor
from tests.helpers_models import tiny_bert_for, tiny_clip, tiny_llama, tiny_t5, tiny_vit
from tests.helpers_runs import WORDS, save_base, train
from tests.matrix import rest_is_long

SMALL = ("training.max_steps=2", "training.checkpoint=no", "training.batch_size=8")
SMALL += ("training.workers=0", "data.selection_rows=8")
RECIPES = [name for name in recipe_names() if name.startswith("families/")]
CONLL = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")


@dataclass(frozen=True)
class StandIn:
    """The data trained on instead, and the form of the Hub's rows.

    Attributes:
        base: writes a checkpoint into a folder.
        rows: makes so many rows of a seed.
        splits: the data set's, other than train.
        tiny: overrides that fit the recipe to so small a model.
    """

    base: Callable[[Path], object]
    rows: Callable[[int, int], Dataset]
    splits: tuple[str, ...] = ("validation", "test")
    tiny: tuple[str, ...] = ()


def encoder(kind: str) -> Callable[[Path], object]:
    return lambda folder: save_base(tiny_bert_for(kind), folder)


def with_processor(model: Any, processor: Any) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        model().base_model.save_pretrained(folder)
        processor().save_pretrained(folder)

    return write


def reviews(rows: int, seed: int) -> Dataset:
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(2, 9))) for _ in range(rows)]
    made = Dataset.from_dict({"text": texts, "label": [i % 2 for i in range(rows)]})
    return made.cast_column("label", ClassLabel(names=["neg", "pos"]))


def chats(rows: int, seed: int) -> Dataset:
    made = []
    for i, row in enumerate(instruct_rows(rows, seed=seed)):
        asked, answer = row["instruction"], row["output"]
        said = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        made.append({"prompt": asked, "prompt_id": str(i), "messages": said, "category": "QA"})
    return Dataset.from_list(made)


def summaries(rows: int, seed: int) -> Dataset:
    made = instruct_rows(rows, seed=seed)
    return Dataset.from_list(
        [
            {"id": str(i), "dialogue": row["instruction"], "summary": row["output"]}
            for i, row in enumerate(made)
        ]
    )


def squad(rows: int, seed: int) -> Dataset:
    made = question_rows(rows, seed=seed)
    return Dataset.from_list([{"title": "A", **row} for row in made])


def conll(rows: int, seed: int) -> Dataset:
    """Tags are numbers, without names."""
    kinds = {"ANIMAL": "PER", "THING": "MISC"}
    made = []
    for i, row in enumerate(tagged_rows(rows, seed=seed)):
        places = [tag.partition("-") for tag in row["tags"]]
        tags = [CONLL.index(f"{b}-{kinds[kind]}" if kind else b) for b, _, kind in places]
        made.append({"id": str(i), "tokens": row["tokens"], "pos_tags": tags, "ner_tags": tags})
    return Dataset.from_list(made)


def swag(rows: int, seed: int) -> Dataset:
    made = []
    for row in choice_rows(rows, seed=seed, choices=4):
        first, *rest = row["context"].split()
        endings = {f"ending{i}": text for i, text in enumerate(row["choices"])}
        made.append(
            {"sent1": first, "sent2": " ".join(rest), "startphrase": row["context"], **endings}
            | {"label": row["label"], "gold-source": "gold"}
        )
    return Dataset.from_list(made).cast_column("label", ClassLabel(num_classes=4))


def cifar(rows: int, seed: int) -> Dataset:
    return corner_rows(rows, seed=seed).rename_column("image", "img").remove_columns("text")


def flickr(rows: int, seed: int) -> Dataset:
    made = corner_rows(rows, seed=seed).remove_columns("label")
    return made.rename_column("text", "caption_0").add_column("caption_1", ["a"] * rows)


STAND_INS = {
    "families/cifar10": StandIn(
        with_processor(tiny_vit, tiny_image_processor), cifar, splits=("test",)
    ),
    "families/conll2003": StandIn(encoder("TokenClassification"), conll),
    "families/flickr8k": StandIn(
        with_processor(tiny_clip, pair_processor), flickr, tiny=("data.max_length=16",)
    ),
    "families/no-robots": StandIn(
        write_chat_base, chats, splits=("test",), tiny=("data.max_length=32",)
    ),
    "families/rotten-tomatoes": StandIn(
        lambda folder: save_base(tiny_llama(num_labels=2), folder), reviews
    ),
    "families/samsum": StandIn(
        with_processor(tiny_t5, text_tokenizer), summaries, tiny=("task.max_new_tokens=4",)
    ),
    "families/squad": StandIn(
        encoder("QuestionAnswering"), squad, splits=("validation",),
        tiny=("data.max_length=20", "task.stride=6"),
    ),
    "families/swag": StandIn(encoder("MultipleChoice"), swag),
}  # fmt: skip


def write_like_the_hub(folder: Path, name: str | None, stand_in: StandIn) -> Path:
    """A directory with a card, as data sets of the Hub have one, and a file per split."""
    files = []
    for seed, split in enumerate(("train", *stand_in.splits)):
        place = folder / f"{split}-00000-of-00001.parquet"
        place.parent.mkdir(parents=True, exist_ok=True)
        stand_in.rows(24, seed).to_parquet(place)
        files.append({"split": split, "path": place.name})
    card = {"configs": [{"config_name": name or "default", "data_files": files}]}
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n", encoding="utf-8")
    return folder


def test_there_is_a_stand_in_for_each() -> None:
    assert sorted(STAND_INS) == RECIPES


@pytest.mark.parametrize("name", rest_is_long(RECIPES, 3))
def test_family_recipe(tmp_path: Path, name: str) -> None:
    stand_in, recipe = STAND_INS[name], load_recipe(name).recipe
    stand_in.base(tmp_path / "base")
    data = write_like_the_hub(tmp_path / "data", recipe.data.name, stand_in)
    words = [f"model.path={tmp_path / 'base'}", f"data.path={data}", *SMALL, *stand_in.tiny]
    report = train(name, *words, f"output.dir={tmp_path / 'out'}")
    assert (report.status, report.steps) == ("completed", 2)
    assert list(report.metrics) == recipe.data.validation
    for scores in report.metrics.values():
        assert set(scores) == {*recipe.task.options.metrics, "loss"}
    rows = report.data.rows
    held_out = 8 if recipe.data.selection == "train-rows" else 0
    if recipe.task.name not in ("causal-lm", "question-answering"):  # packed rows, windows
        assert rows["train"] == 24 - held_out
    assert read_adapter(tmp_path / "out").ranks()


def test_tags_may_have_names_of_their_own(tmp_path: Path) -> None:
    """Other copies of CoNLL-2003 name their numbers themselves."""
    named = conll(24, 0).cast_column("ner_tags", List(ClassLabel(names=list(CONLL))))
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "validation"):
        named.to_parquet(folder / f"{split}.parquet")
    save_base(tiny_bert_for("TokenClassification"), tmp_path / "base")
    words = [f"model.path={tmp_path / 'base'}", f"data.path={folder}", *SMALL]
    report = train("families/conll2003", *words, f"output.dir={tmp_path / 'out'}")
    assert report.status == "completed"
    assert read_adapter(tmp_path / "out").meta.labels == CONLL

"""Every recipe and sweep that comes with the tool, trained for two steps by overrides alone.

The stand-ins have the columns, features, classes, splits and unlabelled test rows of the Hub's
data sets; what is there instead of model and data is all that is overridden.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import ClassLabel, Dataset, Features, List, Value

from sora_cli.adapter.reading import read_adapter
from sora_cli.app import run
from sora_cli.experiments.path.record import read_path
from sora_cli.experiments.sweep.plan import PlannedRun
from sora_cli.recipe.library import recipe_names, recipes_dir
from sora_cli.recipe.load import load_recipe
from sora_cli.recipe.recipe import DataBlock
from sora_cli.report import RunReport, read_report
from tests.helpers_chat import instruct_rows, write_chat_base
from tests.helpers_families import (
    choice_rows,
    preference_rows,
    question_rows,
    ranking_rows,
    retrieval_rows,
    single_rows,
    tagged_rows,
    text_tokenizer,
    thumb_rows,
)
from tests.helpers_images import corner_rows, pair_processor, tiny_image_processor
from tests.helpers_models import (
    tiny_bert,
    tiny_bert_for,
    tiny_clip,
    tiny_deberta,
    tiny_llama,
    tiny_t5,
    tiny_vit,
)
from tests.helpers_runs import GLUE, WORDS, save_base, train, write_glue
from tests.matrix import rest_is_long
from tests.present import present
from tests.test_sweeps import GRIDS, planned_sweep, plugin

SMALL = ["training.max_steps=2", "training.checkpoint=no", "data.max_validation_rows=16"]


def recipes(*folders: str) -> list[str]:
    return [name for name in recipe_names() if name.startswith(folders)]


PATHS, FAMILIES = recipes("path/"), recipes("families/")
OTHERS = {"quickstart", *PATHS, *FAMILIES, *recipes("superglue/", "offline/")}
GLUE_RECIPES = [name for name in recipe_names() if name not in OTHERS]


def test_which_recipes_there_are() -> None:
    tasks = sorted(GLUE)
    assert [*tasks, *[f"official/{task}" for task in tasks]] == GLUE_RECIPES


@pytest.fixture(scope="session")
def deberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny DeBERTa-v2, its backbone alone as on the Hub."""
    return save_base(tiny_deberta(), tmp_path_factory.mktemp("models") / "deberta")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By a recipe's data.path: rows like the Hub's."""
    folder = tmp_path_factory.mktemp("data")
    return {
        "nyu-mll/glue": write_glue(folder / "glue", rows=24),
        "aps/super_glue": write_superglue(folder / "super_glue"),
    }


@pytest.fixture(scope="session")
def small(deberta: Path, data: dict[str, Path]) -> list[str]:
    """What makes a recipe for GLUE short."""
    return [f"model.path={deberta}", f"data.path={data['nyu-mll/glue']}", *SMALL]


def check_run(report: RunReport | None, name: str, splits: list[str]) -> None:
    """Two steps were trained, no row was cut, and each split has the recipe's metrics."""
    assert report is not None
    assert (report.status, report.steps) == ("completed", 2)
    assert list(report.metrics) == splits
    metrics = load_recipe(name).recipe.task.options.metrics
    for scores in report.metrics.values():
        assert list(scores) == list(dict.fromkeys([*metrics, "loss"]))


# --- GLUE


@pytest.mark.parametrize("name", rest_is_long(GLUE_RECIPES, 4))
def test_glue_recipe(tmp_path: Path, small: list[str], name: str) -> None:
    out, task = tmp_path / "out", name.rpartition("/")[2]
    words = [*small, f"output.dir={out}"]
    recipe = load_recipe(name).recipe
    if recipe.data.selection == "train-rows":
        words.append("data.selection_rows=8")
    report = train(name, *words)
    assert report.data.truncated == dict.fromkeys(report.data.rows, 0)
    splits = ["validation_matched", "validation_mismatched"] if task == "mnli" else ["validation"]
    check_run(report, name, splits)
    rows = report.data.rows
    if recipe.data.selection == "half-validation":
        assert (rows["select"], rows["validation"], rows["train"]) == (12, 12, 24)
    elif recipe.data.selection == "train-rows":
        assert (rows["select"], rows["train"]) == (8, 16)
    else:
        assert (rows["select"], rows["train"]) == (16, 24)
    assert len(report.ranks) == 12
    assert all(m.start == 8 for m in report.ranks.values())
    assert report.base.head == ["pooler", "classifier"]
    adapter = read_adapter(out)
    assert set(adapter.head_modules) == {"pooler", "classifier"}
    classes = GLUE[task][1]
    assert adapter.meta.labels == (classes or None)
    assert adapter.head["classifier.weight"].shape[0] == max(len(classes), 1)


def test_quickstart(tmp_path: Path) -> None:
    model = save_base(tiny_bert(), tmp_path / "model")
    words = [f"model.path={model}", f"output.dir={tmp_path / 'out'}", "data.max_train_rows=64"]
    report = train("quickstart", *words, *SMALL)
    check_run(report, "quickstart", ["validation"])
    assert list(report.metrics["validation"]) == ["accuracy", "loss"]
    assert len(read_adapter(tmp_path / "out").ranks()) == 12


def test_the_file_itself_runs_from_anywhere(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copied recipe with what it extends, and the output directory its name gives."""
    shutil.copytree(recipes_dir(), tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    train("mine/rte.yaml", *small)
    assert (tmp_path / "runs" / "rte-sora-s0" / "adapter" / "adapter_config.json").is_file()


@pytest.mark.parametrize("name", rest_is_long(PATHS))
def test_path_recipe(tmp_path: Path, small: list[str], name: str) -> None:
    words = [*small, f"output.dir={tmp_path / 'out'}", "path.epochs=0.5", "path.schedule.num=2"]
    recipe = load_recipe(name).recipe
    if recipe.data.selection == "train-rows":
        words.append("data.selection_rows=8")
    assert run(["path", name, *words]) == 0
    report = present(read_path(tmp_path / "out"))
    assert [stage.total for stage in report.stages] == [96, 96]
    assert list(report.rows) == ["train-subset", "validation", "selection"]
    assert report.main_metric == recipe.task.options.metrics[0]


# --- the other families: the form of the Hub's rows

TINY = ("training.max_steps=2", "training.checkpoint=no", "training.batch_size=8")
TINY += ("training.workers=0", "data.selection_rows=8")
CONLL = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")


@dataclass(frozen=True)
class StandIn:
    """The data trained on instead, and the form of the Hub's rows.

    Attributes:
        base: writes a checkpoint into a folder.
        rows: makes so many rows of a seed.
        splits: the data set's, other than the split to train on.
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


def pairs(rows: int, seed: int) -> Dataset:
    """Both lists hold the prompt."""
    made = []
    for i, row in enumerate(preference_rows(rows, seed=seed)):
        asked = {"role": "user", "content": row["prompt"]}
        sides = {
            side: [asked, {"role": "assistant", "content": row[side]}]
            for side in ("chosen", "rejected")
        }
        made.append(
            {"prompt": row["prompt"], "prompt_id": str(i), **sides, "messages": sides["chosen"]}
            | {"score_chosen": 8.0, "score_rejected": 5.0}
        )
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


def nli(rows: int, seed: int) -> Dataset:
    made = Dataset.from_list(retrieval_rows(rows, seed=seed))
    return made.rename_column("query", "anchor")


def sentences(rows: int, seed: int) -> Dataset:
    made = Dataset.from_list(single_rows(ranking_rows(rows, seed=seed))[:rows])
    return made.rename_columns({"query": "question", "passage": "answer"})


def feedback(rows: int, seed: int) -> Dataset:
    made = []
    for row in thumb_rows(rows, seed=seed):
        said = [("prompt", "user"), ("completion", "assistant")]
        lists = {name: [{"role": role, "content": row[name]}] for name, role in said}
        made.append({**lists, "label": row["label"]})
    return Dataset.from_list(made)


STAND_INS = {
    "families/all-nli": StandIn(
        lambda folder: save_base(tiny_bert(), folder), nli, splits=("dev",)
    ),
    "families/cifar10": StandIn(
        with_processor(tiny_vit, tiny_image_processor), cifar, splits=("test",)
    ),
    "families/conll2003": StandIn(encoder("TokenClassification"), conll),
    "families/flickr8k": StandIn(
        with_processor(tiny_clip, pair_processor), flickr, tiny=("data.max_length=16",)
    ),
    "families/kto-mix": StandIn(
        write_chat_base, feedback, splits=("test",), tiny=("data.max_length=32",)
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
    **dict.fromkeys(
        ("families/ultrafeedback", "families/ultrafeedback-rewards"),
        StandIn(write_chat_base, pairs, splits=("test_prefs",), tiny=("data.max_length=32",)),
    ),
    "families/wiki-qa": StandIn(
        lambda folder: save_base(tiny_bert(num_labels=1), folder), sentences,
        tiny=("data.max_length=64",),
    ),
}  # fmt: skip


def write_like_the_hub(folder: Path, recipe: DataBlock, stand_in: StandIn) -> Path:
    """A directory with a card, as data sets of the Hub have one, and a file per split."""
    files = []
    for seed, split in enumerate((recipe.train, *stand_in.splits)):
        place = folder / f"{split}-00000-of-00001.parquet"
        place.parent.mkdir(parents=True, exist_ok=True)
        stand_in.rows(24, seed).to_parquet(place)
        files.append({"split": split, "path": place.name})
    card = {"configs": [{"config_name": recipe.name or "default", "data_files": files}]}
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n", encoding="utf-8")
    return folder


def test_there_is_a_stand_in_for_each() -> None:
    assert sorted(STAND_INS) == FAMILIES


@pytest.mark.parametrize("name", rest_is_long(FAMILIES, 3))
def test_family_recipe(tmp_path: Path, name: str) -> None:
    stand_in, recipe = STAND_INS[name], load_recipe(name).recipe
    stand_in.base(tmp_path / "base")
    data = write_like_the_hub(tmp_path / "data", recipe.data, stand_in)
    words = [f"model.path={tmp_path / 'base'}", f"data.path={data}", *TINY, *stand_in.tiny]
    report = train(name, *words, f"output.dir={tmp_path / 'out'}")
    check_run(report, name, recipe.data.validation)
    rows = report.data.rows
    held_out = 8 if recipe.data.selection == "train-rows" else 0
    if recipe.task.name not in ("causal-lm", "question-answering"):  # packed rows, windows
        # a part has whole groups of rows of one image, text or query, so about as many as asked
        grouped = recipe.task.name in ("image-text", "reranking")
        held_out = rows["select"] if grouped and held_out else held_out
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
    words = [f"model.path={tmp_path / 'base'}", f"data.path={folder}", *TINY]
    report = train("families/conll2003", *words, f"output.dir={tmp_path / 'out'}")
    assert report.status == "completed"
    assert read_adapter(tmp_path / "out").meta.labels == CONLL


# --- sweeps

STEPS = {
    "glue.yaml": ("stsb-full-s0",),
    "superglue.yaml": (
        "boolq-lora-s0", "cb-head-s0", "copa-bitfit-s0", "rte-full-s0", "wic-adalora-s0",
        "wsc-sora-s0", "multirc-sora-s100",
    ),
    "cola-rmax.yaml": ("sora-32-s0",),
    "ablation-grid.yaml": ("FacebookAI-roberta-base-threshold-0-l1-10-r_max-16-s0",),
    "ablation-schedule.yaml": ("exp-linear-s0",),
    "ablation-oneshot.yaml": ("threshold-0.0007-epochs-140-s42",),
    "prox.yaml": ("mrpc-official-times-lr-s0",),
    "time.yaml": ("precision-bf16-batch_size-8-adalora-s0",),
    "stability.yaml": ("cola-threshold-0.001-s0",),
    "arena.yaml": ("qnli-lora-r1-s0",),
    "cpu/arena.yaml": ("sst2-lora-r1-s0",),
    "cpu/arena-long.yaml": ("cola-sora-15-s0",),
    "cpu/arena-tune.yaml": ("learning_rate-0.0005-sst2-lora-r2",),
    "cpu/arena-long-tune.yaml": ("learning_rate-0.0005-stsb-gates",),
    "cpu/arena-long-tune-more.yaml": ("learning_rate-0.005-cola-adalora",),
    "cpu/arena-seeds.yaml": ("cola-lora-r1-s2",),
    "cpu/arena-rows.yaml": ("mrpc-lora-r1-s0",),
    "cpu/arena-bytes-healed.yaml": ("cola-lora-r8-s0",),
    "cpu/arena-bytes-unilora-tune.yaml": ("learning_rate-0.005-sst2-unilora",),
    "cpu/arena-bytes-unilora.yaml": ("stsb-unilora-4096-s0",),
    "cpu/glue.yaml": ("sst2-bitfit-s0",),
    "cpu/superglue.yaml": ("cb-adalora-s0",),
    "cpu/cola-rmax.yaml": ("lora-4-s0",),
    "cpu/ablation-grid.yaml": ("threshold-0.00257-l1-10-r_max-4-s0",),
    "cpu/ablation-schedule.yaml": ("rising-s0",),
    "cpu/ablation.yaml": ("gate-lr-1e-2-s0",),
    "cpu/main.yaml": ("cola-lora-r4-s0",),
    "cpu/tune.yaml": ("learning_rate-0.0005-stsb-head",),
    "cpu/prox.yaml": ("rte-paper-times-lr-s0",),
    "cpu/time.yaml": ("precision-fp32-batch_size-32-lora-s0",),
    "cpu/stability.yaml": ("rte-threshold-0.001-s0",),
}  # fmt: skip
"""Of each sweep, the runs that are tried: all methods, and recipes that no other test runs."""
SUPERGLUE: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "boolq": (("question", "passage"), ("False", "True")),
    "cb": (("premise", "hypothesis"), ("entailment", "contradiction", "neutral")),
    "copa": (("premise", "choice1", "choice2", "question"), ("choice1", "choice2")),
    "multirc": (("paragraph", "question", "answer"), ("False", "True")),
    "rte": (("premise", "hypothesis"), ("entailment", "not_entailment")),
    "wic": (("word", "sentence1", "sentence2"), ("False", "True")),
    "wsc": (("text", "span1_text", "span2_text"), ("False", "True")),
}
"""Text columns and classes of the Hub's SuperGLUE."""
NUMBERS = {"wic": ("start1", "start2", "end1", "end2"), "wsc": ("span1_index", "span2_index")}


def superglue_rows(task: str, rows: int, *, labelled: bool) -> Dataset:
    """Random rows with a SuperGLUE task's columns; every class occurs, unlabelled rows have -1."""
    columns, classes = SUPERGLUE[task]
    rng = random.Random(task)
    made: dict[str, list[Any]] = {
        column: [" ".join(rng.choices(WORDS, k=rng.randint(2, 9))) for _ in range(rows)]
        for column in columns
    }
    if task == "copa":
        made["question"] = [rng.choice(["cause", "effect"]) for _ in range(rows)]
    numbers = NUMBERS.get(task, ())
    made |= {column: [0] * rows for column in numbers}
    made["idx"] = list(range(rows))
    made["label"] = [i % len(classes) if labelled else -1 for i in range(rows)]
    features: dict[str, Any] = {column: Value("string") for column in columns}
    features |= {column: Value("int32") for column in (*numbers, "idx")}
    return Dataset.from_dict(made, Features({**features, "label": ClassLabel(names=list(classes))}))


def write_superglue(folder: Path) -> Path:
    """A directory laid out as the Hub's SuperGLUE."""
    configs = []
    for task in SUPERGLUE:
        (folder / task).mkdir(parents=True)
        for split in ("train", "validation", "test"):
            rows = superglue_rows(task, 24, labelled=split != "test")
            rows.to_parquet(str(folder / task / f"{split}-00000-of-00001.parquet"))
        files = [
            {"split": split, "path": f"{task}/{split}-*.parquet"}
            for split in ("train", "validation", "test")
        ]
        configs.append({"config_name": task, "data_files": files})
    text = yaml.safe_dump({"configs": configs}, sort_keys=False)
    (folder / "README.md").write_text(f"---\n{text}---\n", encoding="utf-8")
    return folder


def short(planned: PlannedRun, deberta: Path, data: dict[str, Path], out: Path) -> list[str]:
    """A run's words, for a tiny model, local rows and two steps."""
    recipe = planned.loaded.recipe
    words = [
        *planned.words, f"model.path={deberta}", f"data.path={data[recipe.data.path]}",
        f"output.dir={out}", "training.max_steps=2", "training.checkpoint=no",
        "data.max_validation_rows=16", "data.max_length=64", "data.selection_rows=8",
    ]  # fmt: skip
    if recipe.path is not None:
        words += ["path.epochs=0.5", "path.schedule.num=2"]
    return words


@pytest.mark.parametrize("file", rest_is_long(GRIDS, 6))
def test_a_few_steps(file: str, tmp_path: Path, deberta: Path, data: dict[str, Path]) -> None:
    plan = planned_sweep(file)
    runs = {planned.name: planned for planned in plan.runs}
    for name in STEPS[file]:
        planned, out = runs[name], tmp_path / name
        words = short(planned, deberta, data, out)
        flags = ["--no-verify"] if plan.kind == "train" else []
        with plugin(file):
            assert run([plan.kind, planned.recipe, *flags, *words]) == 0, name
        if plan.kind == "path":
            record = present(read_path(out))
            assert record.status == "completed"
            continue
        report = present(read_report(out))
        check_run(report, planned.recipe, list(report.metrics))
        assert report.data.truncated == dict.fromkeys(report.data.rows, 0)

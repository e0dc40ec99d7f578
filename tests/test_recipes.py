"""Every recipe that comes with the tool: valid, headed, and with the values it claims."""

import re

import pytest

from sora_cli.experiments.path.plan import plan_stages
from sora_cli.recipe.families import check_columns, task_names
from sora_cli.recipe.library import recipe_names, recipe_title, recipes_dir
from sora_cli.recipe.load import load_recipe

GLUE = ["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb"]
SUPERGLUE = [
    f"superglue/{t}" for t in ("boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc")
]
PATHS = ["path/rte", "path/sst2-minilm", "path/stsb-minilm"]
PAPERS = ["quickstart", *GLUE, *[f"official/{name}" for name in GLUE], *PATHS, *SUPERGLUE]
CUT = ["quickstart", "offline/reranking", "offline/search"]
HUB, HERE = "families/", "offline/"
"""Recipes of the other task families: with models and data of the Hub, and without a network."""
RUNS = recipe_names()
FAMILIES = [name for name in RUNS if name.startswith((HUB, HERE))]
EVERY = sorted(path.relative_to(recipes_dir()).as_posix() for path in recipes_dir().rglob("*.yaml"))
FILES = [file for file in EVERY if not file.startswith("sweeps/")]  # see test_sweeps.py


def text_of(file):
    return (recipes_dir() / file).read_text(encoding="utf-8")


def test_they_are_all_here():
    assert [name for name in RUNS if name not in FAMILIES] == PAPERS
    assert len(PAPERS) == 28
    assert len(FILES) == len(RUNS) + 2  # and base/glue.yaml, base/official.yaml


@pytest.mark.parametrize("folder", [HUB, HERE])
def test_every_family_has_a_recipe_of_the_hubs_and_one_for_here(folder):
    named = [load_recipe(name).recipe for name in FAMILIES if name.startswith(folder)]
    assert {recipe.task.name for recipe in named} == set(task_names()) - {"sequence-regression"}
    if folder == HERE:
        sources = [place for r in named for place in (r.model.path, r.data.path or "package://")]
        assert all(place.startswith(("package://", "builtin://")) for place in sources)


@pytest.mark.parametrize("name", RUNS)
def test_metrics_and_columns_are_the_familys(name):
    recipe = load_recipe(name).recipe
    assert set(recipe.task.options.metrics) <= set(recipe.task.options.METRICS)
    check_columns(recipe.task.name, recipe.data.columns)


@pytest.mark.parametrize("file", FILES)
def test_every_file_points_at_the_schema_and_has_a_header(file):
    lines = text_of(file).splitlines()
    path = "../schema.json" if "/" in file else "schema.json"
    assert lines[0] == f"# yaml-language-server: $schema={path}"
    header = [line for line in lines[1:] if line.startswith("#")]
    assert len(recipe_title(recipes_dir() / file)) > 20
    assert any(line.startswith("# Time") for line in header)
    verb = "path" if file.startswith("path/") else "train"
    command = f"sora {verb} recipes/{'' if file.startswith('base/') else file}"
    assert any(command in line for line in header)
    assert max(len(line) for line in lines) <= 100


@pytest.mark.parametrize("name", RUNS)
def test_every_recipe_is_valid_and_with_every_method(name):
    loaded = load_recipe(name)
    assert loaded.notes == ()
    assert loaded.recipe.method.name == ("cut" if name in CUT else "sora")
    if loaded.recipe.task.name.startswith("sequence-"):
        assert loaded.recipe.data.text_columns
    for method in ("lora", "adalora"):
        assert load_recipe(name, [f"method.name={method}"]).notes


def test_no_two_recipes_write_to_one_directory():
    assert len({load_recipe(name).output_dir for name in RUNS}) == len(RUNS)


@pytest.mark.parametrize("task", GLUE)
def test_glue_recipes_follow_the_paper(task):
    recipe, method = load_recipe(task).recipe, load_recipe(task).method_config
    assert (recipe.model.path, recipe.data.path) == ("microsoft/deberta-v3-base", "nyu-mll/glue")
    assert recipe.data.name == task
    assert (method.prox, method.l1, method.r_max, method.alpha) == ("paper", 0, 8, 16)
    training = recipe.training
    assert (training.batch_size, training.learning_rate, training.seed) == (8, 8e-4, 0)
    assert (training.warmup, training.weight_decay, training.max_grad_norm) == (0.06, 0.1, 0.1)
    regression = recipe.task.name == "sequence-regression"
    assert regression == (task == "stsb")


def steps(name):
    """Return the figures of a header such as '2,490 rows, 6,240 steps of 8'."""
    found = re.search(r"([\d,]+) steps of 8", text_of(f"{name}.yaml"))
    return int(found[1].replace(",", ""))


@pytest.mark.parametrize("task", [*GLUE, *SUPERGLUE])
def test_thresholds_keep_the_final_shrinkage_of_rte(task):
    loaded = load_recipe(task)
    shrinkage = loaded.method_config.threshold**2 * steps(task) / (2 * 8e-4)
    assert shrinkage == pytest.approx(0.35, rel=0.1)


@pytest.mark.parametrize("task", GLUE)
def test_official_recipes_have_the_scripts_values(task):
    loaded, plain = load_recipe(f"official/{task}"), load_recipe(task)
    recipe, method = loaded.recipe, loaded.method_config
    assert (method.prox, method.l1, method.threshold) == ("official", 10, 3e-4)
    assert (method.gate_eps, method.r_max, method.alpha) == (1e-6, 8, 16)
    assert (recipe.training.epochs, recipe.training.batch_size) == (20, 8)
    assert recipe.training.length_grouping is False
    assert recipe.training.train_head is True
    small = task in {"cola", "mrpc", "rte", "stsb"}
    assert recipe.data.selection == ("half-validation" if small else "train-rows")
    assert (recipe.data.selection_rows, recipe.data.selection_seed) == (1000, 42)
    assert recipe.task == plain.recipe.task
    assert recipe.data.text_columns == plain.recipe.data.text_columns
    assert recipe.data.validation == plain.recipe.data.validation
    assert "0 21 42 81 100" in text_of(f"official/{task}.yaml")


def test_mnli_reports_both_validation_sets():
    assert load_recipe("mnli").recipe.data.validation == [
        "validation_matched",
        "validation_mismatched",
    ]


@pytest.mark.parametrize("name", PATHS)
def test_paths_start_without_a_threshold_and_choose_on_rows_of_their_own(name):
    loaded = load_recipe(name)
    plans = plan_stages(loaded)
    thresholds = [plan.value for plan in plans]
    assert thresholds[0] == 0
    assert thresholds == sorted(set(thresholds))
    assert len(plans) >= 7
    assert loaded.recipe.data.selection != "validation"


def test_the_rte_path_has_the_scripts_values():
    loaded = load_recipe("path/rte")
    recipe, method = loaded.recipe, loaded.method_config
    assert (method.prox, method.l1, method.r_max) == ("official", 0.001, 8)
    assert (recipe.training.learning_rate, recipe.training.batch_size) == (1.2e-3, 32)
    assert (recipe.training.epochs, recipe.path.epochs, recipe.data.max_length) == (50, 15, 320)
    values = [plan.value for plan in plan_stages(loaded)]
    assert values == pytest.approx([1e-4 * i * 7 / 6 for i in range(7)])

"""Recipes that are wrong: as files, as YAML, as values, as combinations of values."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.sora_cli.bad_input.runner import PATH, RECIPE, Case, bad, recipe

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]\n" for i in range(8)
)
DIGITS = "9" * 400

FILES: dict[str, Case] = {
    "empty": bad(r=""),
    "only comments": bad(r="# nothing\n# to see\n"),
    "a list": bad(r="- model\n- task\n"),
    "a text": bad(r="model\n"),
    "not UTF-8": bad(r=RECIPE.replace("  dir: out", "  dir: \xff\xfe").encode("latin-1")),
    "UTF-16": bad(r=RECIPE.encode("utf-16")),
    "a zero byte": bad(r=recipe("output", "dir: a\0b")),
    "a tab": bad(r="model:\n\tpath: x\n"),
    "a bracket left open": bad(r=f"{RECIPE}  x: [1, 2\n"),
    "a colon too many": bad(r=recipe("output", "dir: a: b")),
    "nested too deep": bad(r="a: " + "[" * 1500 + "\n"),
    "two documents": bad(r=f"{RECIPE}---\n{RECIPE}"),
    "a Python object": bad(r=recipe("output", "dir: !!python/object/apply:os.system ['touch x']")),
    "a Python name": bad(r=recipe("output", "dir: !!python/name:os.system ''")),
    "a tag of one's own": bad(r=recipe("model", "path: !secret x")),
    "binary": bad(r=recipe("model", "path: !!binary aGk=")),
    "a billion laughs": bad(r=BOMB),
    "an alias to itself": bad(r="model: &m \n  path: *m\n"),
    "an unknown alias": bad(r=recipe("output", "dir: *nowhere")),
    "a merge key": bad(r=recipe("output", "<<: {dir: x}")),
    "a key twice": bad(r=recipe("training", "seed: 1", "seed: 2")),
    "a number for a key": bad(r=recipe("training", "3: x")),
    "a list for a key": bad(r=recipe("training", "[a, b]: x")),
}  # fmt: skip
EXTENDS: dict[str, Case] = {
    "itself": bad(r="extends: r.yaml\n"),
    "a circle of three": bad(r="extends: a.yaml\n", a="extends: b.yaml\n", b="extends: r.yaml\n"),
    "what is not there": bad(r="extends: bsae.yaml\n", base=RECIPE),
    "a directory": bad(r="extends: d\n", **{"d/x.yaml": RECIPE}),
    "a number": bad(r="extends: 3\n"),
    "a list of numbers": bad(r="extends: [1]\n"),
    "a block": bad(r="extends: {a: b}\n"),
    "an empty text": bad(r="extends: ''\n"),
    "a broken base": bad(r="extends: b.yaml\n", b="model:\n  path: ]\n"),
    "a base with a typo": bad(r="extends: b.yaml\n", b=recipe("training", "epochz: 3")),
}  # fmt: skip
KEYS: dict[str, Case] = {
    "unknown block": bad(r=f"{RECIPE}trainning: {{}}\n"),
    "key without its block": bad(r=f"{RECIPE}seed: 3\n"),
    "key of another block": bad(r=recipe("training", "max_length: 9")),
    "unknown key": bad(r=recipe("training", "learning_rat: 1")),
    "unknown method": bad(r=recipe("method", "name: soar")),
    "unknown option": bad(r=recipe("method", "rmax: 3")),
    "option of another method": bad(r=recipe("method", "use_rslora: true")),
    "method of a module's name": bad(r=recipe("method", "name: os:system")),
    "unknown task": bad(r=recipe("task", "name: sequence-clasification")),
    "task of a module's name": bad(r=recipe("task", "name: os:system")),
    "unknown metric": bad(r=recipe("task", "metrics: acuracy")),
    "no metrics": bad(r=recipe("task", "metrics: []")),
    "metric that is no best one": bad(r=recipe("task", "best_metric: f1", "metrics: [accuracy]")),
    "unknown logger": bad(r=recipe("training", "loggers: [tensorbord]")),
    "no model": bad(r=RECIPE.replace("model:\n  path: models/base\n", "")),
    "no model path": bad(r=recipe("model", "revision: main").replace("  path: models/base\n", "")),
    "no name of the method": bad(r=RECIPE.replace("  name: sora\n", "")),
}  # fmt: skip
VALUES: dict[str, Case] = {
    f"{block}.{line:.40} ({len(line)})": bad(r=recipe(block, line))
    for block, line in [
        ("training", "epochs: many"),
        ("training", "epochs: 0"),
        ("training", "checkpoint: 0"),
        ("training", "loggers: [a, 3]"),
        ("training", "precision: bf61"),
        ("training", "epochs: .nan"),
        ("training", "learning_rate: .inf"),
        ("training", "learning_rate: 1e400"),
        ("training", f"learning_rate: {DIGITS}"),
        ("training", "learning_rate: -1e-3"),
        ("training", "learning_rate: [1e-3]"),
        ("training", "epochs: 1e300"),
        ("training", "epochs: true"),
        ("training", "weight_decay: -0.1"),
        ("training", "batch_size: 0"),
        ("training", "batch_size: 8.5"),
        ("training", "batch_size: 99999999999999999999"),
        ("training", "seed: 18446744073709551616"),
        ("training", f"seed: {DIGITS}"),
        ("training", f"seed: {'9' * 5000}"),
        ("training", "seed: -1"),
        ("training", "seed: null"),
        ("training", "max_steps: 99999999999999999999"),
        ("training", "gradient_accumulation: 99999999999999999999"),
        ("training", "precision: fp8"),
        ("training", "adam_betas: [0.9]"),
        ("training", "adam_betas: [0.9, 2]"),
        ("training", "model_dropout: 1"),
        ("training", "evaluate: sometimes"),
        ("data", "max_length: 1"),
        ("data", "max_length: 99999999999999999999"),
        ("data", "selection_seed: 18446744073709551616"),
        ("data", "name: 7"),
        ("data", "validation: []"),
        ("data", "label_names: [a, a]"),
        ("data", "label_names: [a]"),
        ("method", "r_max: 0"),
        ("method", "r_max: 99999999999999999999"),
        ("method", "alpha: 0"),
        ("method", "threshold: -1"),
        ("method", "targets: query"),
        ("method", "targets: []"),
        ("model", "dtype: int8"),
        ("model", "path: null"),
        ("output", "dir: [a]"),
        ("output", "dir: ''"),
    ]
}  # fmt: skip
CONTRADICTIONS: dict[str, Case] = {
    "stopping early without evaluation": bad(r=recipe("training", "early_stopping: 2",
        "evaluate: 'no'")),
    "batches that do not divide": bad(r=recipe("training", "gradient_accumulation: 3")),
    "micro-batches chosen and told": bad(r=recipe("training", "micro_batch: auto",
        "gradient_accumulation: 2")),
    "a number of rows a micro-batch": bad(r=recipe("training", "micro_batch: 4")),
    "a loss in chunks of a few classes": bad(r=recipe("training", "loss: chunked")),
    "counting nothing": bad(r=recipe("training", "compact_only_count: true")),
    "rows twice": bad(r=recipe("data", "path: nyu-mll/glue")),
    "no rows": bad(r=RECIPE.replace("files: {train: train.jsonl, validation: validation.jsonl}",
        "name: null")),
    "ranks in the wrong order": bad(r=recipe("method",
        "target_r: 30").replace("name: sora\n  r_max: 2", "name: adalora")),
    "half precision without a GPU": bad(r=recipe("training", "precision: fp16")),
    "a path that lacks its end": bad(r=PATH.replace(", num: 2", "")),
    "a path of a fixed option": bad("path", "r.yaml",
        r=f"{RECIPE}path:\n  vary: method.r_max\n  schedule: {{start: 1, stop: 3, num: 2}}"),
}  # fmt: skip
CASES = {
    f"{kind}-{name}": case
    for kind, table in [("file", FILES), ("extends", EXTENDS), ("key", KEYS), ("value", VALUES),
                        ("both", CONTRADICTIONS)]
    for name, case in table.items()
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_bad_recipe(case: Case, checked: Callable[[Case], object]) -> None:
    checked(case)

"""Recipes that are wrong: as files, as YAML, as values, as combinations of values."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.sora_cli.bad_input.runner import HERE, RECIPE, Case, bad, recipe

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]\n" for i in range(8)
)
DIGITS = "9" * 400

FILES: dict[str, Case] = {
    "empty": bad("the file is empty", r="", then="a recipe starts like 'model:'"),
    "only comments": bad("the file is empty", r="# nothing\n# to see\n", then="'model:'"),
    "a list": bad("the file holds no blocks", r="- model\n- task\n", then="'model:'"),
    "a text": bad("the file holds no blocks", r="model\n", then="'model:'"),
    "not UTF-8": bad("the file is not UTF-8 text",
        r=RECIPE.replace("  dir: out", "  dir: \xff\xfe").encode("latin-1"), at=("r.yaml", "dir"),
        then="UTF-8"),
    "UTF-16": bad("the file is not UTF-8 text", r=RECIPE.encode("utf-16"), then="UTF-8"),
    "a zero byte": bad("not valid YAML", r=recipe("output", "dir: a\0b")),
    "a tab": bad("not valid YAML", r=f"model:\n\tpath: x {HERE}\n", then="spaces, not tabs"),
    "a bracket left open": bad("not valid YAML", r=f"{RECIPE}  x: [1, 2\n"),
    "a colon too many": bad("not valid YAML", r=recipe("output", "dir: a: b")),
    "nested too deep": bad("nested too deeply", r="a: " + "[" * 1500 + "\n"),
    "two documents": bad("not valid YAML", r=f"{RECIPE}--- {HERE}\n{RECIPE}", then="one recipe"),
    "a Python object": bad("the YAML tag !!python/object/apply:os.system is not allowed",
        r=recipe("output", "dir: !!python/object/apply:os.system ['touch x']")),
    "a Python name": bad("the YAML tag !!python/name:os.system",
        r=recipe("output", "dir: !!python/name:os.system ''")),
    "a tag of one's own": bad("the YAML tag !secret is not allowed",
        r=recipe("model", "path: !secret x")),
    "binary": bad("the YAML tag !!binary is not allowed", r=recipe("model", "path: !!binary aGk=")),
    "a billion laughs": bad("endless", r=BOMB, then="aliases"),
    "an alias to itself": bad("endless", r=f"model: &m  {HERE}\n  path: *m\n"),
    "an unknown alias": bad("undefined alias", r=recipe("output", "dir: *nowhere")),
    "a merge key": bad("merge keys (<<) are not supported", r=recipe("output", "<<: {dir: x}"),
        then="extends"),
    "a key twice": bad("'training.seed' is given twice",
        r=recipe("training", "seed: 1", "seed: 2")),
    "a number for a key": bad("keys must be text, not 3", r=recipe("training", "3: x")),
    "a list for a key": bad("keys must be text", r=recipe("training", "[a, b]: x")),
}  # fmt: skip
EXTENDS: dict[str, Case] = {
    "itself": bad("in a circle", r="extends: r.yaml\n", then="r.yaml -> r.yaml"),
    "a circle of three": bad("in a circle", r="extends: a.yaml\n", a="extends: b.yaml\n",
        b="extends: r.yaml\n", then="r.yaml -> a.yaml -> b.yaml -> r.yaml"),
    "what is not there": bad("no file 'bsae.yaml' to extend", r=f"extends: bsae.yaml {HERE}\n",
        base=RECIPE, then="did you mean 'base.yaml'?"),
    "a directory": bad("'d' cannot be read", r=f"extends: d {HERE}\n", **{"d/x.yaml": RECIPE}),
    "a number": bad("extends must name a file", r=f"extends: 3 {HERE}\n",
        then="extends: base.yaml"),
    "a list of numbers": bad("extends must name", r=f"extends: [1] {HERE}\n"),
    "a block": bad("extends must name", r=f"extends: {{a: b}} {HERE}\n"),
    "an empty text": bad("extends must name", r=f"extends: '' {HERE}\n"),
    "a broken base": bad("not valid YAML", r="extends: b.yaml\n", b=f"model:\n  path: ] {HERE}\n"),
    "a base with a typo": bad("unknown key 'epochz'", r="extends: b.yaml\n",
        b=recipe("training", "epochz: 3"), then="did you mean 'epochs'?"),
}  # fmt: skip
KEYS: dict[str, Case] = {
    "unknown block": bad("unknown block 'trainning'", r=f"{RECIPE}trainning: {{}} {HERE}\n",
        then="'training'"),
    "key without its block": bad("unknown block 'seed'", r=f"{RECIPE}seed: 3 {HERE}\n",
        then="'training.seed'"),
    "key of another block": bad("unknown key 'max_length'", r=recipe("training", "max_length: 9"),
        then="'data.max_length'"),
    "unknown key": bad("unknown key 'learning_rat'", r=recipe("training", "learning_rat: 1"),
        then="'learning_rate'"),
    "unknown method": bad("no method 'soar'", r=recipe("method", "name: soar"),
        then="did you mean 'sora'?"),
    "unknown option": bad("unknown key 'rmax'", r=recipe("method", "rmax: 3"),
        then="did you mean 'r_max'?"),
    "option of another method": bad("unknown key 'use_rslora'",
        r=recipe("method", "use_rslora: true"), then="there are:"),
    "method of a module's name": bad("no method 'os:system'", r=recipe("method", "name: os:system"),
        then="there are:"),
    "unknown task": bad("no task 'sequence-clasification'",
        r=recipe("task", "name: sequence-clasification"),
        then="did you mean 'sequence-classification'?"),
    "task of a module's name": bad("no task 'os:system'", r=recipe("task", "name: os:system"),
        then="there are:"),
    "unknown metric": bad("no metric 'acuracy'", r=recipe("task", "metrics: acuracy"),
        then="did you mean 'accuracy'?"),
    "no metrics": bad("task.metrics", r=recipe("task", "metrics: []"), then="at least 1"),
    "metric that is no best one": bad("task.best_metric 'f1' is not among the metrics",
        r=recipe("task", "best_metric: f1", "metrics: [accuracy]"), then="accuracy"),
    "unknown logger": bad("logger 'tensorbord'", r=recipe("training", "loggers: [tensorbord]"),
        then="tensorboard"),
    "no model": bad("the block 'model' is missing",
        r=RECIPE.replace("model:\n  path: models/base\n", ""), then="model.path"),
    "no model path": bad("model.path is missing",
        r=recipe("model", "revision: main").replace("  path: models/base\n", ""),
        at=("r.yaml", "model:"), then="Hub id"),
    "no name of the method": bad("method.name is missing", r=RECIPE.replace("  name: sora\n", ""),
        at=("r.yaml", "method:"), then="sora"),
}  # fmt: skip
VALUES: dict[str, Case] = {
    f"{block}.{line[:40]} ({says[-12:]})": bad(says, r=recipe(block, line), then=then)
    for block, line, says, then in [
        ("training", "epochs: many", "must be a number above 0", "passes over"),
        ("training", "epochs: 0", "must be a number above 0, not 0", "passes over"),
        ("training", "checkpoint: 0", "must be epoch, no or a whole number at least 1, not 0",
            "steps"),
        ("training", "loggers: [a, 3]", 'a list of texts, not ["a", 3]', "integration of"),
        ("training", "precision: bf61", "must be fp32, bf16, fp16 or auto", "did you mean 'bf16'?"),
        ("training", "epochs: .nan", "'.nan' is not a finite number", "quotes"),
        ("training", "learning_rate: .inf", "'.inf' is not a finite number", "quotes"),
        ("training", "learning_rate: 1e400", "'1e400' is not a finite number", "quotes"),
        ("training", f"learning_rate: {DIGITS}", "learning_rate must be auto or a number above 0",
            "peak"),
        ("training", "learning_rate: -1e-3", "above 0", "peak learning rate"),
        ("training", "learning_rate: [1e-3]", "must be auto or a number", "peak learning rate"),
        ("training", "epochs: 1e300", "training.epochs must be a number above 0 and at most",
            "passes"),
        ("training", "epochs: true", "must be a number, not true", ""),
        ("training", "weight_decay: -0.1", "at least 0", "decay"),
        ("training", "batch_size: 0", "at least 1", "rows per optimiser step"),
        ("training", "batch_size: 8.5", "must be a whole number", "rows per optimiser step"),
        ("training", "batch_size: 99999999999999999999", "at most", "rows per optimiser step"),
        ("training", "seed: 18446744073709551616", "training.seed must be a whole number", "seed"),
        ("training", f"seed: {DIGITS}", "training.seed must be a whole number", "seed"),
        ("training", f"seed: {'9' * 5000}", "is not a valid int", "quotes"),
        ("training", "seed: -1", "at least 0", "seed of factors"),
        ("training", "seed: null", "must be a whole number at least 0", "seed of factors"),
        ("training", "max_steps: 99999999999999999999", "at most", "optimiser steps"),
        ("training", "gradient_accumulation: 99999999999999999999", "at most", "micro-batches"),
        ("training", "precision: fp8", "must be fp32, bf16, fp16 or auto", "there are: fp32"),
        ("training", "adam_betas: [0.9]", "a list of 2 values", "betas"),
        ("training", "adam_betas: [0.9, 2]", "training.adam_betas", "below 1"),
        ("training", "model_dropout: 1", "below 1", "dropout"),
        ("training", "evaluate: sometimes", "must be epoch, no or a whole number", "epoch"),
        ("data", "max_length: 1", "at least 2", "tokens"),
        ("data", "max_length: 99999999999999999999", "at most", "tokens"),
        ("data", "selection_seed: 18446744073709551616", "at most", "seed"),
        ("data", "name: 7", "must be text or null, not 7", "quotes"),
        ("data", "validation: []", "data.validation", "at least 1"),
        ("data", "label_names: [a, a]", "'a' occurs twice", "label_names"),
        ("data", "label_names: [a]", "data.label_names", "at least 2"),
        ("method", "r_max: 0", "at least 1 and at most 65536", "components"),
        ("method", "r_max: 99999999999999999999", "at most 65536", "components"),
        ("method", "alpha: 0", "above 0", "scaling"),
        ("method", "threshold: -1", "at least 0", "gate"),
        ("method", "targets: query", "a list", "[query]"),
        ("method", "targets: []", "no targets given", "all-linear"),
        ("model", "dtype: int8", "must be float32, bfloat16, float16 or auto", "there are:"),
        ("model", "path: null", "model.path must be text, not null", "Hub id"),
        ("output", "dir: [a]", "output.dir must be text or null", "output directory"),
        ("output", "dir: ''", "output.dir", "output directory"),
    ]
}  # fmt: skip
CONTRADICTIONS: dict[str, Case] = {
    "stopping early without evaluation": bad("early_stopping needs evaluations",
        r=recipe("training", "early_stopping: 2", "evaluate: 'no'"), then="evaluate"),
    "batches that do not divide": bad("batch_size 8 is not a multiple of gradient_accumulation 3",
        r=recipe("training", "gradient_accumulation: 3"), at=("r.yaml", "batch_size"),
        then="the next multiple is 9"),
    "micro-batches chosen and told": bad("micro_batch auto chooses gradient_accumulation",
        r=recipe("training", "micro_batch: auto", "gradient_accumulation: 2"),
        then="leave one of them out"),
    "a number of rows a micro-batch": bad("training.micro_batch",
        r=recipe("training", "micro_batch: 4"), then="auto"),
    "a loss in chunks of a few classes": bad(
        "training.loss=chunked is for causal language models, but task.name is",
        r=recipe("training", "loss: chunked"), at=("r.yaml", "loss"), then="training.loss=logits"),
    "counting nothing": bad("compact_only_count needs compact_every",
        r=recipe("training", "compact_only_count: true"), then="compact_every"),
    "rows twice": bad("data.path and data.files exclude each other",
        r=recipe("data", "path: nyu-mll/glue"), then="one of them"),
    "no rows": bad("no data",
        r=RECIPE.replace("files: {train: train.jsonl, validation: validation.jsonl}", "name: null"),
        at=("r.yaml", "data:"), then="data.path or data.files"),
    "ranks in the wrong order": bad("target_r 30 is above init_r 12",
        r=recipe("method", "target_r: 30").replace("name: sora\n  r_max: 2", "name: adalora"),
        then="init_r"),
    "half precision without a GPU": bad("precision fp16 needs a GPU",
        r=recipe("training", "precision: fp16"), then="training.precision=bf16"),
    "a path that lacks its end": bad("kind linear needs start and stop and num",
        r=f"{RECIPE}path:\n  vary: method.threshold\n  schedule: {{start: 0, stop: 1}} {HERE}\n",
        then="no num is set"),
    "a path of a fixed option": bad("may not vary", "path", "r.yaml",
        r=f"{RECIPE}path:\n  vary: method.r_max {HERE}\n  schedule: {{start: 1, stop: 3, num: 2}}",
        then="did you mean"),
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

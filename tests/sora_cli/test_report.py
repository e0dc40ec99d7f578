"""The run report: how a run ended, whole at every moment, and numbers that can be counted after."""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import threading
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from sora_cli.app import run
from sora_cli.core.environment import environment
from sora_cli.core.errors import SoraError
from sora_cli.data.content import data_fingerprint
from sora_cli.report import Environment, RunReport, load_report, read_report, recipe_of_run
from sora_cli.train.log import RunLog
from sora_cli.train.trainer import AdapterTrainer
from tests.helpers_models import HIDDEN, LAYERS, tiny_bert
from tests.helpers_runs import Trained, glue_rows, pair_rows, train, write_recipe, write_rows
from tests.present import present
from tests.shared_files import ROOT

RANK = 4
PHASES = {
    "import", "load data", "load model", "tokenise", "inject", "set up", "train",
    "evaluate in training", "evaluate", "save", "verify",
}  # fmt: skip
SHAPES = [(HIDDEN, HIDDEN)] * 4 + [(HIDDEN, 2 * HIDDEN), (2 * HIDDEN, HIDDEN)]
"""(in, out) of a layer's linear modules."""


def _recipe(folder: Path, **blocks: dict[str, Any]) -> Path:
    return write_recipe(folder, tiny_bert(num_labels=2), **blocks)


PROCESSOR_TIME = """\
import time
time.perf_counter = time.time = time.process_time
del time.CLOCK_BOOTTIME  # the process's start is 0, then
from sora_cli.app import main
main()
"""
"""The program with a clock that stands still while other processes have the processor."""


def test_the_seconds_are_those_of_the_process(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", PROCESSOR_TIME, "train", str(recipe)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    whole = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    assert done.returncode == 0, done.stderr
    report = present(read_report(tmp_path / "out"))
    assert report.status == "completed"
    assert set(report.seconds) == PHASES
    told = sum(report.seconds.values())
    assert 0.9 * whole < told < whole + 0.05
    assert report.finished is not None
    assert datetime.fromisoformat(report.started) <= datetime.fromisoformat(report.finished)
    line = done.stdout.splitlines()[-1]
    assert line.startswith(f"time: {told:.1f} s (")
    largest = max(report.seconds, key=lambda name: report.seconds[name])
    assert f"({largest} {report.seconds[largest]:.1f}, " in line


def test_evaluations_are_no_part_of_training(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, training={"max_steps": 4, "evaluate": 1})
    report = train(recipe)
    spent = [entry["eval_runtime"] for entry in report.history if "eval_runtime" in entry]
    assert len(spent) >= 4
    assert report.seconds["evaluate in training"] == pytest.approx(sum(spent), abs=1e-3)
    assert report.seconds["train"] > 0
    assert "evaluate in training" not in train(recipe, "--force", "training.evaluate=no").seconds


def test_a_check_that_fails_is_timed_and_changes_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> int:
        raise SoraError("cannot be verified")

    monkeypatch.setattr("sora_cli.verify.run_check.self_check", broken)
    assert run(["train", str(_recipe(tmp_path, training={"max_steps": 1}))]) == 2
    report = present(read_report(tmp_path / "out"))
    assert report.status == "completed"
    assert report.error is None
    assert "verify" in report.seconds


def _stop_at(monkeypatch: pytest.MonkeyPatch, step: int, error: BaseException) -> None:
    """Training raises at that micro-batch."""
    inner, calls = AdapterTrainer.training_step, []

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == step:
            raise error
        return inner(self, *args, **kwargs)

    monkeypatch.setattr(AdapterTrainer, "training_step", training_step)


def test_completed(classifier: Trained) -> None:
    report = classifier.report
    assert report.status == "completed"
    assert report.error is None
    assert report.started <= str(report.finished)
    assert report.schema_version == 2
    assert set(report.seconds) == PHASES - {"verify"}  # see helpers_runs.train
    assert all(seconds >= 0 for seconds in report.seconds.values())
    assert report.seconds["train"] > 0
    assert report.peak_memory_bytes > 1e7
    assert report.recipe["training"]["warmup"] == 0.06  # a default
    assert report.recipe["method"]["r_max"] == RANK
    assert report.data.rows == {"train": 48, "select": 24, "validation": 24}
    assert report.main_metric == "accuracy"


@pytest.mark.parametrize(
    ("error", "code", "status", "said"),
    [
        (RuntimeError("no more memory"), 1, "failed", "RuntimeError: no more memory"),
        (SoraError("a file went away"), 2, "failed", "a file went away"),
        (KeyboardInterrupt(), 130, "interrupted", "interrupted by the user"),
        (SystemExit(3), None, "failed", "SystemExit"),
    ],
)
def test_a_run_that_does_not_end_well(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int | None,
    status: str,
    said: str,
) -> None:
    recipe = _recipe(tmp_path)
    with monkeypatch.context() as broken:
        _stop_at(broken, 3, error)
        if code is None:
            with pytest.raises(SystemExit):
                run(["train", str(recipe)])
        else:
            assert run(["train", str(recipe)]) == code
    report = present(read_report(tmp_path / "out"))
    assert report.status == status
    assert said in str(report.error)
    assert report.finished is not None
    assert "train" in report.seconds
    assert report.data.rows["train"] == 48  # what was known is there
    assert not (tmp_path / "out" / "adapter").exists()
    assert train(recipe).status == "completed"  # it is no finished run: no --force needed


def test_running_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    inner = AdapterTrainer.training_step

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(read_report(tmp_path / "out"))
        return inner(self, *args, **kwargs)

    monkeypatch.setattr(AdapterTrainer, "training_step", training_step)
    train(_recipe(tmp_path))
    assert {report.status for report in seen} == {"running"}
    assert seen[0].finished is None


def test_whole_at_every_moment(tmp_path: Path) -> None:
    log = RunLog(tmp_path, name="x", recipe={"text": "y" * 200_000})
    log.save()
    done, torn = threading.Event(), []

    def read() -> None:
        while not done.is_set():
            try:
                json.loads((tmp_path / "report.json").read_text())
            except (OSError, ValueError) as error:
                torn.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(60):
        log.report.events = [str(number)] * number
        log.save()
    done.set()
    reader.join()
    assert torn == []
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_ranks_and_parameters_against_a_count_by_hand(tmp_path: Path) -> None:
    report = train(_recipe(tmp_path, method={"threshold": 0.03}))
    modules = len(SHAPES) * LAYERS
    per_rank = LAYERS * sum(i + o for i, o in SHAPES)
    head = (HIDDEN * HIDDEN + HIDDEN) + (HIDDEN * 2 + 2)  # pooler, classifier
    count = report.parameters
    assert count.adapter_start == RANK * per_rank
    assert count.head == head
    assert count.trained == RANK * per_rank + RANK * modules + head  # with the gates
    assert count.base == tiny_bert(num_labels=2).num_parameters()
    tensors = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    factors = {n: t for n, t in tensors.items() if "lora_" in n}
    assert count.adapter_end == sum(t.numel() for t in factors.values())
    assert 0 < count.adapter_end < count.adapter_start
    ranks = {p: m.end for p, m in report.ranks.items()}
    assert len(ranks) == modules
    stored = {n.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): t.shape[0]
              for n, t in factors.items() if "lora_A" in n}  # fmt: skip
    assert {p: r for p, r in ranks.items() if r} == stored
    assert all(m.start == RANK for m in report.ranks.values())
    assert report.live_components[-1] >= 0
    assert len(report.live_components) == report.steps == 12


def test_nothing_trained_but_adapters_where_the_head_is_frozen(tmp_path: Path) -> None:
    report = train(_recipe(tmp_path, training={"train_head": False}))
    gates = RANK * len(SHAPES) * LAYERS
    assert report.parameters.trained == report.parameters.adapter_start + gates
    assert report.parameters.head == 1122


def test_history_has_losses_and_evaluations(tmp_path: Path) -> None:
    report = train(_recipe(tmp_path, training={"logging_steps": 3, "evaluate": 4}))
    assert [e["step"] for e in report.history if "loss" in e] == [3, 6, 9, 12]
    assert [e["step"] for e in report.history if "eval_accuracy" in e] == [4, 8, 12]


def test_fingerprints_change_with_the_data(tmp_path: Path) -> None:
    rows = glue_rows("rte", 30)
    first = data_fingerprint(rows)
    assert first == data_fingerprint(glue_rows("rte", 30))
    assert first == data_fingerprint(rows.select(range(30)))
    changed = [dict(row) for row in rows]
    changed[17]["sentence2"] += " "
    different = [
        rows.select(range(29)), rows.select([1, 0, *range(2, 30)]), rows.remove_columns("idx"),
        rows.from_list(changed, features=rows.features),
    ]  # fmt: skip
    assert len({first, *map(data_fingerprint, different)}) == 5
    recipe = _recipe(tmp_path, training={"max_steps": 1})
    before = train(recipe).data.fingerprints
    made = pair_rows(48)
    made[0]["label"] = 1 - made[0]["label"]
    write_rows(tmp_path / "train.jsonl", made)
    after = train(recipe, "--force").data.fingerprints
    assert before["train"] != after["train"]
    assert before["validation"] == after["validation"]


def test_fingerprint_of_the_base_changes_with_its_weights(tmp_path: Path) -> None:
    one = train(_recipe(tmp_path, training={"max_steps": 1})).base
    assert one.head == ["bert.pooler", "classifier"]
    assert one.missing == ["classifier.bias", "classifier.weight"]
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2, seed=1), training={"max_steps": 1})
    two = train(recipe, "--force").base
    assert one.resolved == two.resolved
    assert one.fingerprint != two.fingerprint


def test_not_a_number_survives_and_later_versions_can_be_read(tmp_path: Path) -> None:
    """Without it a finished run would not be known as one, and be overwritten."""
    log = RunLog(tmp_path, name="x", recipe={})
    with log.running() as report:
        report.metrics = {"validation": {"accuracy": math.nan, "loss": 0.5}}
        report.history = [{"loss": math.nan}]
    path = tmp_path / "report.json"
    text = json.loads(path.read_text(), parse_constant=pytest.fail)  # strict JSON
    path.write_text(json.dumps({**text, "schema_version": 3, "new": [1]}))
    back = present(read_report(tmp_path))
    assert back.status == "completed"
    assert math.isnan(back.metrics["validation"]["accuracy"])
    assert back.metrics["validation"]["loss"] == 0.5


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"status": "completed"}'])
def test_what_is_no_report(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    assert read_report(tmp_path) is None


def test_a_place_may_be_a_text(tmp_path: Path) -> None:
    RunLog(tmp_path, name="x", recipe={"seed": 1}).write()
    found = present(read_report(tmp_path))
    assert read_report(str(tmp_path)) == found
    assert load_report(str(tmp_path / "report.json")) == found
    assert recipe_of_run(str(tmp_path)) == {"seed": 1}
    assert read_report(str(tmp_path / "none")) is None


def test_environment_and_phases(tmp_path: Path) -> None:
    known = environment()
    assert known["torch"].startswith("2")
    assert list(known) == list(Environment.model_fields)
    log = RunLog(tmp_path, name="x", recipe={})
    with log.phase("a"), log.phase("b"):
        pass
    with pytest.raises(ZeroDivisionError), log.phase("c"):
        _ = 1 / 0
    assert set(log.report.seconds) == {"a", "b", "c"}
    assert isinstance(RunReport.model_json_schema()["properties"]["metrics"], dict)


def test_a_run_starts_with_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sora_cli.train.log.time.perf_counter", lambda: 50.0)
    monkeypatch.setattr("sora_cli.train.log.now", lambda later=0.0: f"now{later:+g}")
    report = RunLog(tmp_path, name="x", recipe={}, began=45.0).report
    assert (report.started, report.seconds) == ("now-5", {"import": 5})


def test_facts_are_written_as_they_were_given() -> None:
    """Neither what an older version did not write is added, nor what a later one does is lost."""
    given = {
        "environment": {"sora": "0.1.0", "gpu": None, "later": 1},
        "base": {"path": "M", "missing": []},
        "data": {"rows": {"train": 3}, "later": {"train": None}},
    }
    report = RunReport(name="r", recipe={}, **given)  # type: ignore[arg-type]
    assert (report.environment.gpu, report.base.fingerprint, report.data.classes) == (
        None,
        None,
        {},
    )
    written = json.loads(report.model_dump_json())
    assert {key: written[key] for key in given} == given
    assert written["verification"] == {}

"""The largest micro-batch that fits: which one is chosen, and that choosing leaves no trace."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate.utils
import pytest
import torch
from datasets import Dataset

from sora_cli.app import run
from sora_cli.core.errors import SoraError
from sora_cli.model.base import Base
from sora_cli.recipe.recipe import Recipe
from sora_cli.recipe.task_options import ImageTextOptions, SequenceClassificationOptions
from sora_cli.report import read_report
from sora_cli.run import micro_batch
from sora_cli.run.micro_batch import Machine, settle, step_fits
from sora_cli.run.prepare import Prepared
from sora_cli.tasks import create_task
from tests.helpers_errors import refusal, refused
from tests.helpers_models import tiny_bert
from tests.helpers_runs import (
    files_of,
    pair_rows,
    signal_at,
    tiny_tokenizer,
    train,
    write_recipe,
)
from tests.present import present


def _recipe(batch: int = 12, **training: Any) -> Recipe:
    return Recipe(
        model={"path": "unused"},
        task={"name": "sequence-classification"},
        data={"path": "unused"},
        method={"name": "lora"},
        training={"batch_size": batch, "micro_batch": "auto", **training},
    )


class Fake:
    """A machine whose rows take ten bytes each, in the prediction and really."""

    def __init__(self, available: float | None, *, holds: int = 10**6) -> None:
        self.holds, self.tried = holds, list[tuple[int, int]]()
        self.probe = Machine(lambda: available, lambda *given: 10.0 * given[2], self.fits)

    def fits(self, ready: Any, recipe: Recipe, rows: int) -> bool:
        self.tried.append((rows, recipe.training.gradient_accumulation))
        return rows <= self.holds


def _settled(machine: Fake, **options: Any) -> tuple[Recipe, Any]:
    ready: Any = SimpleNamespace(task=SimpleNamespace(options=SequenceClassificationOptions()))
    return settle(_recipe(), ready, machine=machine.probe, **options)


@pytest.mark.parametrize(
    ("available", "holds", "tried", "rows"),
    [
        (1000.0, 99, [(12, 1)], 12),
        (None, 99, [(12, 1)], 12),  # nothing is known of the memory: the trial decides
        (133.4, 99, [(12, 1)], 12),  # nine tenths of it are 120.06
        (133.0, 99, [(6, 2)], 6),
        (45.0, 99, [(4, 3)], 4),
        (1000.0, 3, [(12, 1), (6, 2), (3, 4)], 3),
        (1000.0, 2, [(12, 1), (6, 2), (3, 4), (1, 12)], 1),  # at most half of what failed
        (1.0, 99, [(1, 12)], 1),  # a single row is tried, whatever is predicted
    ],
)
def test_the_largest_that_is_predicted_and_tried(
    available: float | None, holds: int, tried: list[tuple[int, int]], rows: int
) -> None:
    machine = Fake(available, holds=holds)
    recipe, found = _settled(machine)
    assert machine.tried == tried
    assert (found.rows, found.parts) == (rows, 12 // rows)
    assert found.failed == [n for n, _ in tried[:-1]]
    assert recipe.training.gradient_accumulation == 12 // rows
    assert recipe.training.micro_batch is None


def test_not_even_one_row() -> None:
    with refusal():
        _settled(Fake(1000.0, holds=0))


def test_a_resumed_run_takes_its_own() -> None:
    machine = Fake(1000.0)
    recipe, found = _settled(machine, stored=3)
    assert (machine.tried, found.rows, recipe.training.gradient_accumulation) == ([], 3, 4)
    with pytest.raises(SoraError, match="micro-batches of 5 rows do not divide the 12 rows"):
        _settled(machine, stored=5)


def test_a_recipe_that_does_not_ask() -> None:
    plain = _recipe(micro_batch=None, gradient_accumulation=3)
    ready: Any = None
    assert settle(plain, ready) == (plain, None)


def test_a_loss_that_compares_rows() -> None:
    ready: Any = SimpleNamespace(
        task=SimpleNamespace(name="image-text", options=ImageTextOptions())
    )
    with pytest.raises(SoraError, match="the loss of image-text compares the rows"):
        settle(_recipe(), ready)


def test_several_processes_take_the_smallest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro_batch, "world_size", lambda: 2)
    monkeypatch.setattr(accelerate.utils, "gather_object", lambda mine: [*mine, 2])
    recipe, found = _settled(Fake(1000.0))
    assert (found.rows, found.parts, recipe.training.gradient_accumulation) == (2, 3, 3)
    monkeypatch.setattr(accelerate.utils, "gather_object", lambda mine: [*mine, 0])
    with pytest.raises(SoraError, match="not even one row"):
        _settled(Fake(1000.0))


def test_memory_that_processes_share_and_what_a_process_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(micro_batch, "is_accelerated", lambda: False)
    monkeypatch.setattr(micro_batch, "resident_memory", lambda: 5.0)
    monkeypatch.setattr(micro_batch, "world_size", lambda: 2)
    monkeypatch.setattr(micro_batch, "free_memory", lambda: 90)
    assert micro_batch.available_memory() == 50.0
    monkeypatch.setattr(micro_batch, "free_memory", lambda: None)
    assert micro_batch.available_memory() is None


def _ready() -> Prepared:
    recipe = _recipe()
    task = create_task(recipe.task, recipe.data)
    raw = Dataset.from_list(pair_rows(9))
    task.bind(raw)
    tokenizer = tiny_tokenizer()
    encoded = task.encode(raw, tokenizer)
    base = Base(tiny_bert(num_labels=2), tokenizer, "tiny", "tiny", None, (), ("classifier",))
    rows: Any = None
    method: Any = None
    return Prepared(task, rows, base, encoded, encoded, {}, method, {})


def test_a_step_is_tried_and_leaves_no_trace() -> None:
    ready, recipe = _ready(), _recipe()
    model = ready.base.model.eval()
    model.register_buffer("seen", torch.zeros(()))
    shapes = []

    def count(*called: Any) -> None:
        model.seen += 1  # as the averages of a batch norm change
        shapes.append(tuple(called[2]["input_ids"].shape))

    model.register_forward_pre_hook(count, with_kwargs=True)
    random = torch.random.get_rng_state()
    block = recipe.training.model_copy(update={"gradient_accumulation": 3})
    parted = recipe.model_copy(update={"training": block})
    assert step_fits(ready, recipe, 4)
    assert step_fits(ready, parted, 4)
    longest = int(ready.train.lengths.max())
    assert shapes == 3 * [(4, longest)]  # with micro-batches the second finds gradients
    assert model.seen == 0
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(random, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."), False),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
        (MemoryError(), False),
        (RuntimeError("size mismatch"), None),
    ],
)
def test_memory_that_runs_out(
    error: Exception, expected: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> float:
        raise error

    monkeypatch.setattr(micro_batch, "run_passes", fail)
    if expected is None:
        with pytest.raises(RuntimeError, match="size mismatch"):
            step_fits(_ready(), _recipe(), 2)
    else:
        assert step_fits(_ready(), _recipe(), 2) is expected


def test_a_run_equals_the_one_told_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chosen, stored, and taken again on a resume on a machine with more memory."""
    block = {"max_steps": 5, "model_dropout": 0.1, "evaluate": "no", "checkpoint": 1}
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2), training=block)
    told = train(recipe, "training.gradient_accumulation=4", f"output.dir={tmp_path / 'told'}")
    small = Fake(25.0)  # room for two rows of eight
    fits = partial(Machine, small.probe.available, small.probe.predict)
    monkeypatch.setattr(micro_batch, "Machine", fits)
    with monkeypatch.context() as patched:
        signal_at(patched, 3, signal.SIGTERM)
        words = ["train", str(recipe), "--no-verify", "training.micro_batch=auto"]
        assert run(words) == 128 + signal.SIGTERM
    large = Fake(1e9)
    monkeypatch.setattr(micro_batch, "Machine", lambda: large.probe)
    report = train(recipe, "training.micro_batch=auto", "--resume")
    assert (large.tried, report.steps) == ([], 5)
    assert report.micro_batch is not None
    assert (report.micro_batch.rows, report.micro_batch.parts) == (2, 4)
    assert files_of(tmp_path / "out" / "adapter") == files_of(tmp_path / "told" / "adapter")
    assert told.micro_batch is None
    kept = present(read_report(tmp_path / "out"))
    assert kept.recipe["training"]["micro_batch"] == "auto"


@pytest.mark.parametrize("words", [["path", "path/rte"], ["auto", "quickstart"]])
def test_commands_that_make_many_runs_refuse_it(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--max-drop", "1pt"] if words[0] == "auto" else []
    refused(capsys, *words, *more, "training.micro_batch=auto")

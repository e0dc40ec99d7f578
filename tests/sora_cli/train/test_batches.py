"""The order of rows: a pure function of seed, epoch and batch size, with less padding."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from methods.inject import inject
from methods.registry import create
from sora_cli.model.base import Base
from sora_cli.recipe.recipe import Recipe
from sora_cli.tasks import create_task
from sora_cli.tasks.encoded import Encoded
from sora_cli.train.batches import GroupedBatchSampler, SortedByLength
from sora_cli.train.callback import attach
from sora_cli.train.trainer import build_trainer
from tests.helpers_models import tiny_bert
from tests.helpers_runs import pair_rows, tiny_tokenizer

ROWS = 1003
LENGTHS = np.random.default_rng(7).integers(3, 90, ROWS)


def _sampler(*, rows: int = ROWS, **options: Any) -> GroupedBatchSampler:
    options = {"batch_size": 16, "rows_per_pass": 16, "seed": 5, **options}
    lengths = options.pop("lengths", LENGTHS[:rows])
    return GroupedBatchSampler(rows, lengths, **options)


def _steps(batches: list[list[int]], parts: int) -> list[list[int]]:
    """The rows of each step of so many micro-batches."""
    groups = [batches[i : i + parts] for i in range(0, len(batches), parts)]
    return [[row for batch in group for row in batch] for group in groups]


@pytest.mark.parametrize("micro", [1, 2, 8])
@pytest.mark.parametrize("lengths", [LENGTHS, None], ids=["grouped", "plain"])
def test_steps_are_the_same_for_any_micro_batch(micro: int, lengths: np.ndarray | None) -> None:
    whole, parts = _sampler(lengths=lengths), _sampler(lengths=lengths, rows_per_pass=micro)
    for epoch in (0, 3):
        whole.set_epoch(epoch)
        parts.set_epoch(epoch)
        assert [i for batch in whole for i in batch] == [i for batch in parts for i in batch]
        full = ROWS // 16 * (16 // micro)
        assert _steps(list(parts)[:full], 16 // micro) == list(whole)[:-1]
        assert all(len(batch) == micro for batch in list(parts)[:full])
        assert len(list(parts)) == len(parts)
        assert len(list(whole)) == len(whole)


def test_steps_of_random_rows_have_micro_batches_of_similar_length() -> None:
    """For a loss that compares the rows of a step."""
    plain, sorted_ = _sampler(lengths=None), _sampler(rows_per_pass=4, pool=1)
    steps = _steps(list(sorted_)[: ROWS // 16 * 4], 4)
    assert sorted(map(sorted, steps)) == sorted(map(sorted, list(plain)[:-1]))
    for step in steps:
        assert list(LENGTHS[step]) == sorted(LENGTHS[step], reverse=True)


@pytest.mark.parametrize("rows", [992, ROWS, 992 + 1, 992 + 7, 3])
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_take_the_same_steps_together(processes: int, rows: int) -> None:
    """Each accumulating two micro-batches a step; fillers left out, every row is there once."""
    alone = [sorted(step.tolist()) for step in _sampler(rows=rows).steps(0)]
    together: list[list[int]] = [[] for _ in alone]
    lengths = set()
    for process in range(processes):
        sampler = _sampler(
            rows=rows, rows_per_pass=8 // processes, process=process, processes=processes
        )
        batches = list(sampler)
        lengths.add(len(batches))
        assert len(batches) == len(sampler)
        for i, batch in enumerate(batches):
            step, number = divmod(i, 2)
            if not sampler.is_filler(step, number):
                together[step] += batch
    assert [sorted(step) for step in together] == alone
    assert len(lengths) == 1


@pytest.mark.parametrize("lengths", [LENGTHS, None], ids=["grouped", "plain"])
@pytest.mark.parametrize("rows", [ROWS, 992, 5, 16])
def test_every_row_exactly_once_an_epoch(rows: int, lengths: np.ndarray | None) -> None:
    sampler = _sampler(
        rows=rows, rows_per_pass=4, lengths=None if lengths is None else lengths[:rows]
    )
    for epoch in range(3):
        sampler.set_epoch(epoch)
        assert sorted(i for batch in sampler for i in batch) == list(range(rows))


def test_pure_function_of_seed_epoch_and_batch() -> None:
    again = _sampler()
    list(again)  # an epoch drawn before changes nothing
    again.set_epoch(2)
    fresh = _sampler()
    fresh.set_epoch(2)
    assert list(again) == list(again) == list(fresh)
    orders = {str(list(_sampler(seed=seed))) for seed in (5, 6)}
    fresh.set_epoch(0)
    assert orders == {str(list(fresh)), str(list(_sampler(seed=6)))}
    assert len(orders) == 2


def test_global_generators_are_left_alone() -> None:
    def draws() -> tuple[Any, ...]:
        return random.random(), float(np.random.rand()), torch.rand(3).tolist()

    def seed() -> None:
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)

    seed()
    expected = draws()
    seed()
    first = list(_sampler())
    assert draws() == expected
    assert list(_sampler()) == first  # nor do they reach in


def test_short_step_is_last_and_of_random_rows() -> None:
    """If grouping chose it, the leftover rows would be of one length."""
    means, seen = [], set()
    for epoch in range(40):
        steps = _sampler().steps(epoch)
        assert [len(step) for step in steps] == [16] * 62 + [11]
        means.append(LENGTHS[steps[-1]].mean())
        seen.update(steps[-1].tolist())
    assert np.mean(means) == pytest.approx(LENGTHS.mean(), rel=0.1)
    assert len(seen) > 250  # 440 draws of 1003 rows: about 356 different ones


def test_plain_order_is_a_plain_shuffle() -> None:
    order = [i for batch in _sampler(lengths=None) for i in batch]
    assert order == np.random.default_rng([5, 0]).permutation(ROWS).tolist()


def test_grouping_takes_out_most_of_the_padding() -> None:
    def padding(lengths: np.ndarray | None) -> int:
        steps = _sampler(lengths=lengths).steps(0)
        return sum(int(LENGTHS[s].max() * len(s) - LENGTHS[s].sum()) for s in steps)

    assert padding(LENGTHS) < 0.2 * padding(None)


def test_steps_are_not_in_order_of_length() -> None:
    means = [LENGTHS[step].mean() for step in _sampler().steps(0)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.4


def test_micro_batches_must_fit() -> None:
    with pytest.raises(ValueError, match="16 rows do not split into micro-batches of 3"):
        _sampler(rows_per_pass=3)


@pytest.mark.parametrize("grouping", [True, False])
def test_trainer_moves_on_to_the_next_epoch(tmp_path: Path, grouping: bool) -> None:
    """The sampler must be told the epoch, after a resume too: else every epoch has one order."""
    recipe = Recipe(
        model={"path": "unused"}, task={"name": "sequence-classification"}, data={"path": "unused"},
        method={"name": "lora", "r": 1},
        training={"epochs": 3, "batch_size": 8, "gradient_accumulation": 2, "evaluate": "no",
                  "checkpoint": "no", "length_grouping": grouping, "seed": 4},
    )  # fmt: skip
    task = create_task(recipe.task, recipe.data)
    rows = Dataset.from_list(pair_rows(30))
    task.bind(rows)
    tokenizer = tiny_tokenizer()
    encoded = task.encode(rows, tokenizer)
    base = Base(tiny_bert(num_labels=2), tokenizer, "tiny", "tiny", None, (), ("classifier",))
    method = create("lora", r=1)
    layers = inject(base.model, method, exclude=base.head, generator=torch.Generator())
    trainer = build_trainer(recipe, task, base, tmp_path, train=encoded)
    attach(trainer, method, layers)
    seen: list[list[list[int]]] = []
    collate = trainer.data_collator

    def watch(features: list[dict[str, Any]]) -> Any:
        seen.append([f["input_ids"] for f in features])
        return collate(features)

    trainer.data_collator = watch
    trainer.train()
    sampler = GroupedBatchSampler(
        30, encoded.lengths if grouping else None, batch_size=8, rows_per_pass=4, seed=4
    )
    expected = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        expected += [[encoded.dataset[i]["input_ids"] for i in batch] for batch in sampler]
    assert seen == expected
    assert seen[:8] != seen[8:16]


def test_evaluation_view_goes_from_longest_to_shortest_and_back() -> None:
    rows = Dataset.from_dict({"row": list(range(50))})
    lengths = LENGTHS[:50]
    view = SortedByLength(Encoded(rows, lengths, truncated=0))
    order = [view[place]["row"] for place in range(len(view))]
    assert sorted(order) == list(range(50))
    assert (np.diff(lengths[order]) <= 0).all()
    assert [r["row"] for r in view.__getitems__([3, 0])] == [order[3], order[0]]
    values = np.stack([np.array(order), 2 * np.array(order)], axis=1).astype(np.float32)
    restored = view.restore(values)
    assert restored.dtype == np.float32
    assert restored.tolist() == [[i, 2 * i] for i in range(50)]

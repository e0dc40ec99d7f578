"""The number of optimiser steps of a run, and each step's learning rate, before it starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import TrainingArguments, get_scheduler

from methods.base import AdapterMethod, Layers, optimizer_groups
from sora_cli.recipe.recipe import TrainingBlock


@dataclass(frozen=True)
class Steps:
    """The optimiser steps of a run, and the rows of one forward pass on one process."""

    total: int
    per_epoch: int
    warmup: int
    rows_per_pass: int


def count_steps(args: TrainingArguments, block: TrainingBlock, rows: int) -> Steps:
    """Count the steps of transformers' Trainer; a last batch of fewer rows counts as a step."""
    total = block.total_steps(rows)
    return Steps(
        total=total,
        per_epoch=block.steps_per_epoch(rows),
        warmup=args.get_warmup_steps(total),
        rows_per_pass=args.per_device_train_batch_size,
    )


def learning_rates(
    args: TrainingArguments, method: AdapterMethod, layers: Layers, total: int
) -> Mapping[str, Sequence[float]]:
    """Return the learning rates of all steps for each of the method's parameter groups, by name."""
    groups = optimizer_groups(method, layers, lr=args.learning_rate, weight_decay=args.weight_decay)
    if not groups:  # only the head is trained
        return {}
    # the scheduler itself is run, on stand-ins: it is exact for every schedule of transformers
    stand_ins = [{"params": [torch.zeros(1)], "lr": group["lr"]} for group in groups]
    optimizer = torch.optim.SGD(stand_ins, lr=args.learning_rate)
    scheduler = get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        num_warmup_steps=args.get_warmup_steps(total),
        num_training_steps=total,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs or None,
    )
    if not total:
        return {group["name"]: () for group in groups}
    rates = []
    for _ in range(total):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    columns = zip(*rates, strict=True)
    return {group["name"]: column for group, column in zip(groups, columns, strict=True)}

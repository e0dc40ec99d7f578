"""Every method under DistributedDataParallel: two processes train what one does alone."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel

from methods.registry import config_class, method_names
from tests.methods.processes import (
    CASES,
    STEPS,
    Case,
    Training,
    Wrap,
    begun,
    check_equal,
    check_unused_is_refused,
    in_processes,
    my_part,
)


def net() -> nn.Module:
    """Four linear layers (6 -> 5 -> 6 -> 4 -> 4), a GELU, a LayerNorm and a tanh between."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 6), nn.LayerNorm(6))
        return first.extend([nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 4)]).double()


def loss(model: nn.Module) -> Tensor:
    g = torch.Generator().manual_seed(1)
    x, y = (torch.randn(8, n, generator=g, dtype=torch.float64) for n in (6, 4))
    return mse_loss(model(my_part(x)), my_part(y))


def trained(case: Case, *, wrap: Wrap | None = None) -> Training:
    run = begun(case, net(), loss, wrap=wrap)
    run.train(range(STEPS))
    return run


def train_all(folder: Path) -> None:
    for name, case in CASES.items():
        trained(case, wrap=DistributedDataParallel).save(folder, name)
    wrap = partial(DistributedDataParallel, find_unused_parameters=True)
    check_unused_is_refused(net, loss, wrap)


def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    """Losses, norms, which gates are alive after each step, and everything at the end.

    A layer that the loss does not use is an error in both.
    """
    methods = {name for name in method_names() if config_class(name).low_rank}
    assert {case.method for case in CASES.values()} >= methods
    in_processes(train_all, tmp_path)
    for name, case in CASES.items():
        check_equal(tmp_path, name, trained(case), atol=1e-10)

"""The fused layer in DistributedDataParallel: two processes get the whole batch's gradients."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from methods.inject import inject
from methods.registry import create
from tests.methods.processes import WORLD, in_processes, my_part


def net() -> nn.Module:
    """Two adapted layers with a GELU and a LayerNorm before them; no update is zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 6), nn.LayerNorm(6)).double()
    model.append(nn.Linear(6, 4).double())
    layers = inject(model, create("sora", r_max=3), generator=torch.Generator().manual_seed(0))
    for layer in layers.values():
        nn.init.normal_(layer.B)
    return model


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model(x).square().mean().backward()
    found = {n.removeprefix("module."): p.grad for n, p in model.named_parameters()}
    return {name: g for name, g in found.items() if g is not None}


def batch() -> Tensor:
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def work(folder: Path) -> None:
    found = gradients(DistributedDataParallel(net()), my_part(batch()))
    file = folder / f"{distributed.get_rank()}.safetensors"
    save_file({n: g.contiguous() for n, g in found.items()}, file)


def test_gradients_of_two_processes_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    in_processes(work, tmp_path)
    expected = gradients(net(), batch())
    assert len(expected) == 9
    for rank in range(WORLD):
        found = load_file(tmp_path / f"{rank}.safetensors")
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)

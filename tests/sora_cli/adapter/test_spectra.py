"""Spectra against the float64 SVD of the dense update, and what they add up to."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from methods.factors import LowRankFactors, rank_for_energy
from sora_cli.adapter.modules import cuts
from sora_cli.adapter.reading import open_adapter
from sora_cli.adapter.spectra import Spectrum, read_spectra, spectrum, totals
from tests.methods.support import generator
from tests.shared_files import ROOT

SHAPES = {"layers.0.q": (24, 16), "layers.0.up": (40, 16), "layers.1.q": (24, 16), "head": (5, 16)}


def write_peft(
    directory: Path,
    shapes: dict[str, tuple[int, int]],
    *,
    rank: int = 6,
    dtype: torch.dtype = torch.float32,
    silent: bool = False,
    **config: object,
) -> dict[str, LowRankFactors]:
    """A PEFT LoRA directory with random factors, alpha 3; and its factors, scaling not folded."""
    g = generator()
    tensors, factors = {}, {}
    for path, (n_out, n_in) in shapes.items():
        a = torch.randn(rank, n_in, generator=g).to(dtype)
        b = (torch.randn(n_out, rank, generator=g) * 0.3 ** torch.arange(rank)).to(dtype)
        b = torch.zeros_like(b) if silent else b
        factors[path] = LowRankFactors(a, b)
        tensors[f"base_model.model.{path}.lora_A.weight"] = a
        tensors[f"base_model.model.{path}.lora_B.weight"] = b
    directory.mkdir(parents=True)
    save_file(tensors, str(directory / "adapter_model.safetensors"), metadata={"format": "pt"})
    full = {"peft_type": "LORA", "r": rank, "lora_alpha": 3, "target_modules": list(shapes)}
    text = json.dumps({**full, "init_lora_weights": True, **config})
    (directory / "adapter_config.json").write_text(text, encoding="utf-8")
    return factors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_singular_values_of_a_directory(tmp_path: Path, dtype: torch.dtype) -> None:
    factors = write_peft(tmp_path / "a", SHAPES, dtype=dtype)
    with open_adapter(tmp_path / "a") as file:
        spectra = read_spectra(file)
    assert set(spectra) == set(SHAPES)
    for path, found in spectra.items():
        pair = factors[path]
        dense = torch.linalg.svdvals(3 / 6 * pair.B.double() @ pair.A.double())
        count = min(6, *SHAPES[path])
        assert found.values.dtype == torch.float64
        assert found.values.shape == (count,)
        assert (found.values - dense[:count]).abs().max() <= 1e-6 * dense[0]
        assert found.shape == SHAPES[path]
        assert (found.stored, found.live) == (6, 6)
        assert found.norm == pytest.approx(float(dense.norm()), rel=1e-6)
        assert found.largest == pytest.approx(float(dense[0]), rel=1e-6)
        assert (found.rank_low, found.rank_high) == (
            rank_for_energy(dense, 0.9),
            rank_for_energy(dense, 0.99),
        )
        assert 1 < found.entropy < count


def test_cuts_by_hand() -> None:
    """Squares per number: 9/10 and 1/10 in the small module, 16/20 and 4/20 in the large one.

    Of 70 numbers, 10 of them zero, 35 hold the first component of each; 21 both of the small one,
    since the large one's do not fit beside its first; 10 that one.
    """
    small = Spectrum((6, 4), 3, 2, torch.tensor([3.0, 1.0], dtype=torch.float64))
    large = Spectrum((16, 4), 2, 2, torch.tensor([4.0, 2.0], dtype=torch.float64))
    found = cuts({"small": small.module, "large": large.module})
    assert [(cut.share, cut.max_params, cut.parameters) for cut in found] == [
        (0.5, 35, 30), (0.3, 21, 20), (0.15, 10, 10),
    ]  # fmt: skip
    assert [tuple(cut.ranks.values()) for cut in found] == [(1, 1), (2, 0), (1, 0)]
    assert [cut.energy for cut in found] == pytest.approx([25 / 30, 10 / 30, 9 / 30])
    assert [cut.share for cut in cuts({"large": large.module})] == [0.5]


def test_ill_conditioned_factors() -> None:
    """Nearly parallel rows: what a Gram matrix would lose, QR keeps."""
    g = generator()
    a = torch.randn(1, 50, generator=g).repeat(4, 1) + 1e-4 * torch.randn(4, 50, generator=g)
    b = torch.randn(30, 1, generator=g).repeat(1, 4) + 1e-4 * torch.randn(30, 4, generator=g)
    found = spectrum(LowRankFactors(a, b)).values
    dense = torch.linalg.svdvals(b.double() @ a.double())[:4]
    torch.testing.assert_close(found, dense, rtol=1e-6, atol=1e-14 * float(dense[0]))


def test_dead_terms_and_dead_modules() -> None:
    g = generator()
    factors = LowRankFactors(torch.randn(5, 12, generator=g), torch.randn(9, 5, generator=g))
    factors.A[1] = 0
    factors.B[:, 3] = 0
    found = spectrum(factors)
    assert (found.stored, found.live, found.values.numel()) == (5, 3, 3)
    for rank in (3, 0):
        dead = spectrum(LowRankFactors(torch.ones(rank, 12), torch.zeros(9, rank)))
        assert (dead.stored, dead.live, dead.norm, dead.largest) == (rank, 0, 0, 0)
        assert (dead.rank_low, dead.rank_high, dead.entropy) == (0, 0, 0)


def test_totals_are_sums() -> None:
    strong = LowRankFactors(torch.eye(2, 4), 2 * torch.eye(3, 2))  # singular values 2, 2
    one = LowRankFactors(torch.eye(3, 4), torch.diag(torch.tensor([1.0, 1e-3, 0.0])))
    total = totals({"a": spectrum(strong), "b": spectrum(one)})
    assert total.live == 4
    assert (total.rank_low, total.rank_high) == (3, 3)
    assert total.norm == pytest.approx(math.sqrt(4 + 4 + 1 + 1e-6))
    shares = torch.tensor([1.0, 1e-3]) / 1.001
    assert total.entropy == pytest.approx(2 + float((-shares * shares.log()).sum().exp()), rel=1e-5)
    assert total.lossless == 4 + 3  # one term of the 3 x 4 module
    assert total.pruned == 2 * (4 + 3)


def test_the_benchmark_runs(tmp_path: Path) -> None:
    program = ROOT / "benchmarks" / "inspect.py"
    done = subprocess.run(
        [sys.executable, str(program), "--quick"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for word in ("ratio", "RssAnon", "whole adapter, scaled"):
        assert word in done.stdout

"""Two adapters against what the dense updates say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from methods.factors import LowRankFactors
from sora_cli.adapter.comparing import Comparison, compare, compare_factors
from sora_cli.adapter.reading import open_adapter
from sora_cli.core.errors import SoraError
from tests.sora_cli.adapter.test_spectra import SHAPES, write_peft


def random_factors(rank: int, seed: int, n_in: int = 15, n_out: int = 20) -> LowRankFactors:
    g = torch.Generator().manual_seed(seed)
    return LowRankFactors(
        torch.randn(rank, n_in, generator=g), torch.randn(n_out, rank, generator=g)
    )


def principal_cosines(dense_a: Tensor, dense_b: Tensor, ranks: tuple[int, int]) -> list[Tensor]:
    """Of the column spaces and of the row spaces, from the dense SVDs (Bjorck and Golub 1973)."""
    u_a, _, vt_a = torch.linalg.svd(dense_a)
    u_b, _, vt_b = torch.linalg.svd(dense_b)
    return [
        torch.linalg.svdvals(u_a[:, : ranks[0]].T @ u_b[:, : ranks[1]]),
        torch.linalg.svdvals(vt_a[: ranks[0]] @ vt_b[: ranks[1]].T),
    ]


@pytest.mark.parametrize("ranks", [(3, 3), (2, 5), (6, 1)])
def test_against_the_dense_updates(ranks: tuple[int, int]) -> None:
    first, second = random_factors(ranks[0], 1), random_factors(ranks[1], 2)
    found = compare_factors(first, second)
    a, b = first.dense(), second.dense()
    assert found.ranks == ranks
    assert found.norms == pytest.approx((float(a.norm()), float(b.norm())), rel=1e-10)
    assert found.inner == pytest.approx(float((a * b).sum()), rel=1e-10)
    assert found.cosine == pytest.approx(float((a * b).sum() / (a.norm() * b.norm())), rel=1e-10)
    assert found.distance == pytest.approx(float((a - b).norm()), rel=1e-10)
    assert found.relative == pytest.approx(float((a - b).norm() / a.norm()), rel=1e-10)
    assert found.overlap is not None
    left, right = principal_cosines(a, b, ranks)
    assert found.overlap.left == pytest.approx(float((left**2).mean()), rel=1e-8)
    assert found.overlap.right == pytest.approx(float((right**2).mean()), rel=1e-8)
    assert found.overlap.chance_left == max(ranks) / 20
    assert found.overlap.chance_right == max(ranks) / 15


def test_the_same_and_nearly_the_same() -> None:
    one = random_factors(4, 1)
    same = compare_factors(one, one)
    assert same.cosine == pytest.approx(1, abs=1e-12)
    assert same.distance <= 1e-14 * same.norms[0]
    assert same.overlap is not None
    assert same.overlap.left == pytest.approx(1, abs=1e-12)
    near = LowRankFactors(one.A.double(), one.B.double() * (1 + 1e-9))
    assert compare_factors(one, near).relative == pytest.approx(1e-9, rel=1e-4)


def test_a_cut_lies_within_the_whole() -> None:
    whole = LowRankFactors(*(t.double() for t in (random_factors(6, 1).A, random_factors(6, 1).B)))
    found = compare_factors(whole, whole.truncate(2))
    assert found.overlap is not None
    assert found.overlap.left == pytest.approx(1, abs=1e-10)
    assert found.overlap.right == pytest.approx(1, abs=1e-10)
    lost = whole.singular_values()[2:].norm()
    assert found.distance == pytest.approx(float(lost), rel=1e-10)


def test_opposite_and_orthogonal() -> None:
    one = random_factors(3, 1)
    opposite = compare_factors(one, LowRankFactors(one.A, -one.B))
    assert opposite.cosine == pytest.approx(-1, abs=1e-12)
    assert opposite.relative == pytest.approx(2, rel=1e-12)
    eye = torch.eye(8)
    apart = compare_factors(
        LowRankFactors(eye[:2], eye[:, :2]), LowRankFactors(eye[4:], eye[:, 4:])
    )
    assert apart.cosine == 0
    assert apart.overlap is not None
    assert apart.overlap.left == apart.overlap.right == 0


def test_a_repeated_direction_counts_once() -> None:
    """Rank is what the update has, not what is stored."""
    one = random_factors(2, 1)
    doubled = LowRankFactors(torch.cat([one.A, one.A]), torch.cat([one.B, 2 * one.B], dim=1))
    found = compare_factors(doubled, one)
    assert found.overlap is not None
    assert found.overlap.chance_left == 2 / 20
    assert found.overlap.left == pytest.approx(1, abs=1e-6)


def test_a_dead_module() -> None:
    dead = LowRankFactors(torch.ones(2, 15), torch.zeros(20, 2))
    found = compare_factors(dead, random_factors(3, 1))
    assert found.ranks == (0, 3)
    assert found.cosine is found.relative is found.overlap is None
    assert found.distance == pytest.approx(found.norms[1])
    both = compare_factors(dead, dead)
    assert both.distance == 0
    assert both.cosine is None


def directories(
    tmp_path: Path, first: dict[str, tuple[int, int]], second: dict[str, tuple[int, int]]
) -> Comparison:
    write_peft(tmp_path / "a", first)
    write_peft(tmp_path / "b", second, rank=3)
    with open_adapter(tmp_path / "a") as a, open_adapter(tmp_path / "b") as b:
        return compare(a, b)


def test_modules_of_one_only(tmp_path: Path) -> None:
    first = {path: SHAPES[path] for path in ("layers.0.q", "layers.0.up")}
    second = {path: SHAPES[path] for path in ("layers.0.q", "layers.1.q")}
    found = directories(tmp_path, first, second)
    assert list(found.modules) == ["layers.0.q", "layers.0.up", "layers.1.q"]
    assert found.only == (("layers.0.up",), ("layers.1.q",))
    assert found.modules["layers.0.up"].ranks == (6, 0)
    assert found.modules["layers.1.q"].ranks == (0, 3)
    assert found.total.ranks == (12, 6)
    squares = [m.norms[0] ** 2 for m in found.modules.values()]
    assert found.total.norms[0] == pytest.approx(sum(squares) ** 0.5)
    distances = [m.distance**2 for m in found.modules.values()]
    assert found.total.distance == pytest.approx(sum(distances) ** 0.5)
    assert found.total.overlap == found.modules["layers.0.q"].overlap
    assert found.total.inner == found.modules["layers.0.q"].inner


def test_other_models(tmp_path: Path) -> None:
    with pytest.raises(SoraError, match="no module in common"):
        directories(tmp_path, {"layers.0.q": (24, 16)}, {"layers.0.k": (24, 16)})


def test_other_shapes(tmp_path: Path) -> None:
    with pytest.raises(SoraError, match=r"\(24, 16\) in one adapter and \(24, 32\) in") as error:
        directories(tmp_path, {"layers.0.q": (24, 16)}, {"layers.0.q": (24, 32)})
    assert len(error.value.lines()) <= 3

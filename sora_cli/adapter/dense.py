"""Cut dense updates to low rank, all layers together, with one update in memory at a time.

The updates are made one after the other. Of each update the leading singular triples wait on the
disk until the number to keep is known. The result is the one that `pruning` gives with all triples:
if all known triples of a layer would be kept, the layer is decomposed again for more of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from methods.decomposition import leading_svd
from methods.factors import LowRankFactors
from methods.keep import Keep
from sora_cli.adapter.modules import Module, kept_ranks
from sora_cli.adapter.on_demand import OnDemand
from sora_cli.adapter.pruning import Layers, Loss, check_left
from sora_cli.core.atomic import remove_file
from sora_cli.core.errors import SoraError, reason
from sora_cli.model.tensors import NewTensor, open_tensors, write_tensors

Dense = Callable[[str], Tensor]
"""Makes the update of a module: (out, in), float32."""
Progress = Callable[[str], None]
"""Receives the path of each module that has been decomposed."""


@contextmanager
def module_progress(title: str) -> Iterator[Progress]:
    """Show a progress bar of decomposed modules."""
    from tqdm import tqdm

    with tqdm(desc=title, unit=" modules", dynamic_ncols=True) as bar:
        yield lambda _: bar.update() and None


_FIRST = 32  # triples of each layer that are looked for at first, at least
_MORE = 4  # times as many the next time
_ROWS = 1024  # of an update that are compared at once


@dataclass(frozen=True)
class _Spectrum:
    """The known part of a layer's spectrum.

    Attributes:
        values: leading singular values, float64.
        squared: squared norm of the whole update.
        sides: (out, in).
        whole: there are no further values.
    """

    values: Tensor
    squared: float
    sides: tuple[int, int]
    whole: bool

    @property
    def module(self) -> Module:
        """The layer in the form that the truncation rules expect."""
        k = self.values.numel()
        return Module(k, k, self.values, sum(self.sides), self.squared)


@contextmanager
def cut_dense(
    paths: Sequence[str], dense: Dense, keep: Keep, beside: Path, progress: Progress
) -> Iterator[Layers]:
    """Give each update's best approximation at the rank that a truncation rule chooses.

    Args:
        paths: the modules.
        beside: the directory to be written; until the block ends, a hidden directory next to it
            holds the factors.
    """
    beside.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=beside.parent, prefix=f".{beside.name}.") as folder:
        store = _Store(Path(folder), paths, beside)
        spectra: dict[str, _Spectrum] = {}
        requested = dict.fromkeys(paths, _first(keep))
        todo = list(paths)
        while todo:
            for path in todo:
                spectra[path] = store.decompose(path, dense(path), requested[path])
                progress(path)
            modules = {path: known.module for path, known in spectra.items()}
            ranks = kept_ranks(modules, keep)
            ranks = {p: min(rank, spectra[p].values.numel()) for p, rank in ranks.items()}
            todo = [
                p for p in paths if ranks[p] >= spectra[p].values.numel() and not spectra[p].whole
            ]
            todo = [] if keep.rank is not None else todo  # an equal rank needs no comparison
            requested |= {path: _MORE * requested[path] for path in todo}
        left = ((ranks[path], known.squared) for path, known in spectra.items())
        check_left(keep, left, (sum(known.sides) for known in spectra.values()))
        yield OnDemand(paths, lambda path: store.read(path, ranks[path]))


def measure(
    layers: Mapping[str, LowRankFactors], paths: Sequence[str], dense: Dense
) -> dict[str, Loss]:
    """Compare factors with the dense updates they approximate, number by number, a layer at a time.

    Args:
        layers: the stored factors; a module that is missing here counts as zero.
        paths: the modules to compare.
    """
    losses = {}
    for path in paths:
        update, factors = dense(path), layers.get(path)
        live = None if factors is None else factors.drop_zeros()
        squared = dropped = 0.0
        for start in range(0, update.shape[0], _ROWS):
            rows = update[start : start + _ROWS]
            left = rows if live is None else rows - live.B[start : start + _ROWS] @ live.A
            squared += _squared(rows)
            dropped += _squared(left)
        rank = 0 if live is None else live.rank
        losses[path] = Loss(min(update.shape), rank, dropped, squared)
    return losses


def _first(keep: Keep) -> int:
    if keep.rank is not None:
        return keep.rank
    return max(_FIRST, math.ceil(_MORE * min(keep.mean_rank or 0, 2**20)))


class _Store:
    """Factors on the disk, one file per module, in the basis of singular vectors.

    Args:
        beside: the directory to be written, for error messages.
    """

    def __init__(self, folder: Path, paths: Sequence[str], beside: Path) -> None:
        self._beside = beside
        self._files = {path: folder / f"{i}.safetensors" for i, path in enumerate(paths)}

    def decompose(self, path: str, update: Tensor, rank: int) -> _Spectrum:
        """Find and store the leading triples, with the singular values shared evenly by A and B."""
        squared = _squared(update)  # rules by energy also count the part that is not decomposed
        if not math.isfinite(squared):
            raise SoraError(f"the update of '{path}' holds NaN or infinity")
        u, s, vt = leading_svd(update, rank)
        root = s.sqrt()  # shared, so that the numbers of A and B are of like size
        factors = {"A": root[:, None] * vt, "B": u * root}
        file = self._files[path]
        remove_file(file)
        stored = {
            name: NewTensor(torch.float32, tuple(t.shape), lambda t=t: t)  # type: ignore[misc]
            for name, t in factors.items()
        }
        try:
            write_tensors(file, stored)
        except OSError as error:  # of a full disk names no file, of others a hidden one
            raise SoraError(f"{self._beside} cannot be written: {reason(error, file)}") from error
        whole = s.numel() < rank or rank >= min(update.shape)
        return _Spectrum(s.double(), squared, (update.shape[0], update.shape[1]), whole)

    def read(self, path: str, rank: int) -> LowRankFactors:
        """Return the factors of the largest singular values."""
        with open_tensors(self._files[path]) as tensors:
            a, b = tensors.read("A"), tensors.read("B")
        return LowRankFactors(a[:rank].contiguous(), b[:, :rank].contiguous())


def _squared(tensor: Tensor) -> float:
    """Return the squared Frobenius norm, added up in float64."""
    return math.fsum(float(row.double().square().sum()) for row in torch.split(tensor, _ROWS))

"""An optimiser's moments as plain numbers, also if bitsandbytes stores them as 8-bit codes.

Removing components also removes their moments. With bitsandbytes' optimisers the moments are
decoded, changed, and encoded again with the rounding that each of its steps applies. The names in
bitsandbytes' state appear only in this file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sora_cli.train.optimizers import BLOCK

_NUMBERS = {"exp_avg": 1, "exp_avg_sq": 2}
"""torch's name of each moment -> its number in bitsandbytes' names ("state1", "absmax1")."""


@contextmanager
def plain_moments(
    optimizer: torch.optim.Optimizer,
) -> Iterator[Mapping[Tensor, dict[str, Any]]]:
    """Yield the moments by parameter, under torch's names; changes inside the block are kept."""
    if not _is_bitsandbytes(optimizer):
        yield optimizer.state
        return
    moments = _Decoded(optimizer.state)
    yield moments
    moments.write_back()


def _is_bitsandbytes(optimizer: torch.optim.Optimizer) -> bool:
    return type(optimizer).__module__.partition(".")[0] == "bitsandbytes"


class _Decoded(Mapping[Tensor, dict[str, Any]]):
    """The state of a bitsandbytes optimiser; a parameter's moments are decoded on first access."""

    def __init__(self, state: Mapping[Tensor, dict[str, Any]]) -> None:
        self._state = state
        self._read: dict[Tensor, dict[str, Any]] = {}

    def __getitem__(self, parameter: Tensor) -> dict[str, Any]:
        if parameter not in self._state:  # a defaultdict: reading would add an entry
            raise KeyError(parameter)
        if parameter not in self._read:
            stored = self._state[parameter]
            self._read[parameter] = {name: _decoded(stored, n) for name, n in _NUMBERS.items()}
        return self._read[parameter]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)

    def write_back(self) -> None:
        """Store the current values of all moments that were read."""
        for parameter, moments in self._read.items():
            for name, number in _NUMBERS.items():
                _store(self._state[parameter], number, moments[name])


def _decoded(stored: Mapping[str, Any], number: int) -> Tensor:
    moment: Tensor = stored[f"state{number}"]
    if moment.dtype != torch.uint8:  # small tensors keep 32 bits
        return moment
    from bitsandbytes.functional import dequantize_blockwise

    scales, code = stored[f"absmax{number}"], stored[f"qmap{number}"]
    codes = moment.to(scales.device)  # paged codes count as CPU tensors
    decoded: Tensor = dequantize_blockwise(codes, absmax=scales, code=code, blocksize=BLOCK)
    return decoded


def _store(stored: dict[str, Any], number: int, moment: Tensor) -> None:
    before: Tensor = stored[f"state{number}"]
    if before.dtype != torch.uint8:
        stored[f"state{number}"] = moment
        return
    from bitsandbytes.functional import quantize_blockwise

    codes, state = quantize_blockwise(
        moment.contiguous(), code=stored[f"qmap{number}"], blocksize=BLOCK
    )
    if codes.shape == before.shape:
        before.copy_(codes)  # in place, so paged memory stays paged
    else:
        stored[f"state{number}"] = codes
    stored[f"absmax{number}"] = state.absmax

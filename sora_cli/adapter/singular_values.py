"""Read the singular values of an adapter that `write_adapter` wrote, with numpy.

A page about a run shows them, and importing torch would take longer than the whole page. The
numbers are those of `spectra`, which reads any tool's adapter.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora_cli.adapter.metadata import read_json
from sora_cli.adapter.modules import Module
from sora_cli.adapter.peft.config import LORA, parse_config
from sora_cli.adapter.peft.layout import plain_pairs
from sora_cli.core.errors import SoraError, reason
from sora_cli.model.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from sora_cli.model.fingerprint import StoredTensor, read_header

if TYPE_CHECKING:
    import numpy as np

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""safetensors' dtypes as numpy's; bfloat16 is the upper half of a float32."""


def read_modules(folder: Path) -> dict[str, Module]:
    """Return {module path: facts for choosing ranks}, with lists as singular values.

    Only plain pairs of factors can be read.

    Args:
        folder: the adapter directory itself.
    """
    where, weights = str(folder / ADAPTER_CONFIG), folder / ADAPTER_WEIGHTS
    config = parse_config(read_json(folder / ADAPTER_CONFIG), where, (LORA,))
    try:
        entries = {entry.name: entry for entry in read_header(weights)}
        pairs = plain_pairs(entries)
        config.prepare(list(pairs), where)
        return {
            path: _module(_factors(entries, *pair, weights), config.scaling(path))
            for path, pair in pairs.items()
        }
    except OSError as error:
        raise SoraError(f"{weights} cannot be read: {reason(error, weights)}") from error


def components_for(values: Any, energy: float) -> int:
    """Return the number of largest singular values that hold this share of their squares' sum."""
    import numpy as np

    squared = np.asarray(values, dtype=np.float64) ** 2
    if not squared.sum():
        return 0
    shares = np.cumsum(squared) / squared.sum()
    return min(int((shares < energy).sum()) + 1, len(squared))


def _factors(
    entries: dict[str, StoredTensor], a_key: str, b_key: str, weights: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Return the stored A (r, in) and B (out, r), in float64."""
    a, b = (_tensor(entries[key]) for key in (a_key, b_key))
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise SoraError(f"'{a_key}' {a.shape} does not fit its B {b.shape}", where=str(weights))
    return a, b


def _tensor(entry: StoredTensor) -> np.ndarray:
    import numpy as np

    if entry.dtype not in _DTYPES:
        raise SoraError(f"'{entry.name}' is stored as {entry.dtype}", where=str(entry.file))
    with entry.file.open("rb") as stream:
        stream.seek(entry.start)
        stored = np.frombuffer(stream.read(entry.length), dtype=_DTYPES[entry.dtype])
    if entry.dtype == "BF16":
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    if stored.size != np.prod(entry.shape, dtype=np.int64):
        raise SoraError(f"{entry.file} is truncated or corrupt: '{entry.name}' ends too early")
    if not np.isfinite(stored).all():
        raise SoraError(f"'{entry.name}' holds NaN or infinity", where=str(entry.file))
    return stored.astype(np.float64).reshape(entry.shape)


def _module(factors: tuple[np.ndarray, np.ndarray], scaling: float) -> Module:
    """Compute the singular values of scaling * B A by thin QR decompositions, without the product.

    The same as `methods.factors.LowRankFactors.singular_values`; components that are exactly zero
    are counted in the rank.
    """
    import numpy as np

    a, b = factors
    live = np.logical_and(a.any(axis=1), (scaling * b).any(axis=0))  # (r,)
    # B A = Q_b (R_b R_a^T) Q_a^T: the small matrix has the same singular values
    r_b: Any = np.linalg.qr(scaling * b[:, live], mode="r")  # (k1, r)
    r_a: Any = np.linalg.qr(a[live].T, mode="r")  # (k2, r)
    values = np.linalg.svd(r_b @ r_a.T, compute_uv=False)
    return Module(a.shape[0], int(live.sum()), values.tolist(), a.shape[1] + b.shape[0])

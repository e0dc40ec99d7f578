"""Writes any adapter that can be read as a plain LoRA, with all scaling folded into B."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sora_cli.adapter.companions import copy_processor
from sora_cli.adapter.consumers import Consumer, consumers_of
from sora_cli.adapter.directory import lazy_adapter, write_adapter
from sora_cli.adapter.places import check_adapter_place, locate_adapter
from sora_cli.adapter.reading import open_adapter
from sora_cli.core.checks import check_apart
from sora_cli.model.files import ADAPTER_WEIGHTS


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Attributes:
        kind: of the source: "LoRA", "rsLoRA" or "AdaLoRA".
        dtype: of the factors written.
        modules: adapted modules written.
        rank: the largest, which is also the configuration's.
        sizes: bytes of the weights, of the source and as written.
        head_modules: modules stored in full.
        notes: what is odd about the source, but harmless.
        consumers: who can load it.
    """

    kind: str
    dtype: str
    modules: int
    rank: int
    sizes: tuple[int, int]
    head_modules: tuple[str, ...]
    notes: tuple[str, ...]
    consumers: tuple[Consumer, ...]


def export_adapter(
    directory: Path,
    output: Path,
    *,
    layout: str = "exact",
    dtype: str | None = None,
    force: bool = False,
) -> Exported:
    """Write an adapter as a plain LoRA, one module in memory at a time.

    Args:
        directory: an adapter directory, ours or PEFT's LoRA, rsLoRA or AdaLoRA, or a run directory.
        layout: "exact": each module at its own rank, by patterns. "padded": all zero-padded to the
            largest, without patterns.
        dtype: of the factors: "float32", "bfloat16" or "float16". None: as they are stored, and
            float32 where that is mixed.
        force: replace an adapter that is at `output`.

    Raises:
        SoraError: bad input, an output that exists, or numbers too large for the dtype.
    """
    check_apart(output, locate_adapter(directory))
    check_adapter_place(output, force=force)
    with open_adapter(directory) as file:
        kind, notes, source = file.kind, file.notes, file.directory / ADAPTER_WEIGHTS
        dtype = dtype or ("float32" if file.dtype == "float64" else file.dtype)
        size = source.stat().st_size
        entry = {"command": "export", "from": kind, "layout": layout, "dtype": dtype}
        adapter = lazy_adapter(file)
        meta = adapter.meta.model_copy(update={"lineage": (*adapter.meta.lineage, entry)})
        adapter = dataclasses.replace(adapter, meta=meta)
        beside = partial(copy_processor, file.directory)
        write_adapter(output, adapter, layout=layout, dtype=dtype, force=force, beside=beside)
    with open_adapter(output) as written:
        return Exported(
            kind=kind,
            dtype=dtype,
            modules=len(written.paths),
            rank=written.config.r,
            sizes=(size, (output / ADAPTER_WEIGHTS).stat().st_size),
            head_modules=written.head_modules,
            notes=notes,
            consumers=consumers_of(written),
        )

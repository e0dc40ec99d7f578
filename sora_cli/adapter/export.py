"""Write any adapter that can be read as a plain LoRA, with all scaling folded into B."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any

from methods.keep import Keep
from sora_cli.adapter.card import write_card
from sora_cli.adapter.companions import copy_companions
from sora_cli.adapter.consumers import Consumer, consumers_of
from sora_cli.adapter.directory import write_adapter
from sora_cli.adapter.parts.kinds import words
from sora_cli.adapter.places import check_adapter_place, locate_adapter
from sora_cli.adapter.pruning import Loss, check_one_rank, grouped_losses, prune_layers
from sora_cli.adapter.reading import open_adapter
from sora_cli.core.errors import SoraError
from sora_cli.core.outputs import check_apart
from sora_cli.model.files import ADAPTER_WEIGHTS


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Attributes:
        kind: of the source: "LoRA", "rsLoRA", "AdaLoRA", "LoHa" or "LoKr".
        dtype: of the written factors.
        modules: number of adapted modules.
        rank: the largest rank, which is also the configuration's `r`.
        sizes: bytes of the weights, of the source and as written.
        head_modules: modules stored in full.
        biases: number of trained biases of the base model.
        rest: what is not in factors, in words, such as " and the head (score)".
        notes: odd but harmless facts about the source.
        consumers: the programs that can load it.
        losses: module path -> loss of the cut; empty if all was kept.
    """

    kind: str
    dtype: str
    modules: int
    rank: int
    sizes: tuple[int, int]
    head_modules: tuple[str, ...]
    biases: int
    rest: str
    notes: tuple[str, ...]
    consumers: tuple[Consumer, ...]
    losses: Mapping[str, Loss]


def export_adapter(
    directory: Path,
    output: Path,
    *,
    layout: str = "exact",
    dtype: str | None = None,
    keep: Keep | None = None,
    force: bool = False,
) -> Exported:
    """Write an adapter as a plain LoRA, one module in memory at a time.

    Args:
        directory: an adapter directory, ours or one of PEFT's, or a run directory.
        layout: "exact": each module at its own rank, by patterns. "padded": all zero-padded to the
            largest, without patterns.
        dtype: of the factors: "float32", "bfloat16" or "float16". None: the stored dtype, or
            float32 if the stored dtypes are mixed.
        keep: cut the adapter by this rule.
        force: replace an adapter that is at `output`.
    """
    check_apart(output, locate_adapter(directory))
    check_adapter_place(output, force=force)
    with open_adapter(directory) as adapter:
        adapter.check_writable()
        source = adapter.source
        kind, notes, size = source.kind, source.notes, source.bytes
        # factors are folded in float32, so that float64 would only look exact
        dtype = dtype or ("float32" if source.dtype == "float64" else source.dtype)
        if adapter.meta.bits is not None and dtype != "float32":
            raise SoraError(
                f"{directory} is rounded to {adapter.meta.bits} bits, and {dtype} would round its "
                "numbers again: they need up to 16 bits of precision",
                hint="leave out --dtype: the small form is --format packed",
            )
        entry: dict[str, Any] = {"command": "export", "from": kind, "layout": layout,
                                 "dtype": dtype}  # fmt: skip
        losses: Mapping[str, Loss] = {}
        if keep is not None and keep.given():
            check_one_rank(adapter, keep)
            layers, losses = prune_layers(adapter.layers, keep)
            losses = grouped_losses(losses, adapter.forms)
            adapter = adapter.with_layers(layers)
            entry |= {"rank": keep.rank, "energy": keep.energy, "relative_error": lost(losses)}
        meta = adapter.meta.model_copy(update={"lineage": (*adapter.meta.lineage, entry)})
        adapter = adapter.with_meta(meta)
        beside = partial(copy_companions, source.directory)
        write_adapter(
            output, adapter, layout=layout, dtype=dtype, force=force, beside=beside,
            describe=write_card,
        )  # fmt: skip
    with open_adapter(output) as written:
        return Exported(
            kind=kind,
            dtype=dtype,
            modules=len(written.groups),
            rank=written.source.config.r,
            sizes=(size, (output / ADAPTER_WEIGHTS).stat().st_size),
            head_modules=written.head_modules,
            biases=len(written.biases),
            rest=words(written.parts),
            notes=notes,
            consumers=consumers_of(written),
            losses=losses,
        )


def lost(losses: Mapping[str, Loss]) -> float:
    """Return ||dW - cut dW|| / ||dW|| of all modules together."""
    return reduce(lambda a, b: a + b, losses.values()).relative_error

"""Merges an adapter into a base model's GGUF file, and writes a new GGUF file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.base_check import OR_FORCE, check_weights
from sora_cli.adapter.gguf_lora import check_parts
from sora_cli.adapter.serving import beside_base
from sora_cli.adapter.survival import LEAST, Overlap, Survival
from sora_cli.core.atomic import new_file
from sora_cli.core.checks import MERGED_GGUF, check_choice
from sora_cli.core.errors import SoraError, reason
from sora_cli.gguf.merged_file import MergedFile
from sora_cli.gguf.places import places_in_file
from sora_cli.merge.rounding import inner, shown_survival


@dataclass(frozen=True)
class GgufMerged:
    """The result of a merge into a GGUF file.

    Attributes:
        modules: number of changed weights.
        copied: number of copied tensors.
        stored: types of the changed weights, such as "q4_1, q6_k".
        base_note: a note on the base; None if the adapter is known to be trained on this base.
        survival: the part of the update in the stored weights.
    """

    modules: int
    copied: int
    stored: str
    base_note: str | None
    survival: Survival


def merge_to_gguf(
    adapter: Adapter,
    source: Path,
    output: Path,
    *,
    type: str = MERGED_GGUF[0],
    accept_loss: bool = False,
    force: bool = False,
) -> GgufMerged:
    """Write a merged GGUF file, with one tensor in memory at a time, and read it back.

    Args:
        source: the base model's GGUF file.
        output: the new file; an existing file is replaced.
        type: of the changed weights, one of `core.checks.MERGED_GGUF`.
        accept_loss: write the file, however little of the update survives.
        force: accept a base with other weights than the adapter was trained on.
    """
    check_choice("type", type, MERGED_GGUF)
    adapter.meta.check_whole()
    adapter.check_all_in_factors()
    check_parts(adapter)
    _, places = places_in_file(source, adapter.shapes)
    note = check_weights(
        adapter.base, source, str(source), "the adapter", force=force, hint=OR_FORCE
    )
    merged_file = MergedFile(source, places, adapter.layers.__getitem__, type)
    overlaps: dict[str, Overlap] = {}

    def measure(path: str, update: Tensor, change: Tensor, in_float32: bool) -> None:
        # in float32 nothing is lost but the last bit of the sum
        noise = 0.0 if in_float32 else inner(change, change)
        overlaps[path] = Overlap(inner(update, update), inner(change, update), noise)

    try:
        with new_file(output) as temporary:
            merged_file.write(temporary, measure)
            survival = Survival(overlaps, {})
            if survival.share < LEAST and not accept_loss:
                more, apart = ways_out_gguf(adapter, source, merged_file.stored)
                raise SoraError(
                    f"{shown_survival(survival, merged_file.stored)}: nothing was written",
                    where=apart,
                    hint=f"{more}; --accept-loss writes it anyway",
                )
            merged_file.check(temporary)
    except OSError as error:
        raise SoraError(f"{output} cannot be written: {reason(error, output)}") from error
    return GgufMerged(len(places), merged_file.copied, merged_file.stored, note, survival)


def ways_out_gguf(adapter: Adapter, source: Path, stored: str) -> tuple[str, str]:
    """Return hints that lose less of the update: a wider type; no merge at all."""
    wider = "f32" if "f16" in stored else "f16"
    commands = "; ".join(beside_base(str(adapter.source.directory), str(source)))
    return f"--type {wider} keeps more of it", f"serve base and adapter apart: {commands}"

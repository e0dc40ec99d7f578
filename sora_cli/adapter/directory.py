"""Write the adapter directory: a plain PEFT LoRA adapter, plus `sora.json` for facts without a key.

In memory an adapter is always plain factors with all scaling in B; see `reading` for files.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.metadata import write_json, write_sora_file
from sora_cli.adapter.parts.factored import Factored
from sora_cli.adapter.parts.kinds import by_kind
from sora_cli.adapter.parts.part import Part
from sora_cli.adapter.peft.layout import written_config
from sora_cli.adapter.places import new_adapter_place
from sora_cli.adapter.reading import open_adapter
from sora_cli.adapter.writing import Plan
from sora_cli.core.errors import SoraError, reason
from sora_cli.model.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, SORA_FILE
from sora_cli.model.tensors import write_tensors
from sora_cli.model.threads import one_thread


@one_thread()
def write_adapter(
    directory: Path,
    adapter: Adapter,
    *,
    layout: str = "exact",
    dtype: str = "float32",
    force: bool = False,
    beside: Callable[[Path], None] | None = None,
    describe: Callable[[Adapter], None] | None = None,
) -> None:
    """Write an adapter, atomically: complete and read back, or not at all.

    Components that are exactly zero are left out, and so are modules without any other. If no
    module is left, one stays as a zero pair of rank 1, so that every tool can load the directory.
    Each layer is requested twice, by several threads, with one layer per core in memory; the files
    are read back and compared by digests.

    Args:
        layout: "exact": each module at its own rank; "padded": all zero-padded to the largest.
        dtype: of the factors; they are folded in float32 and cast last. The head keeps its dtype.
        force: replace an adapter directory that is there.
        beside: writes more of `ADAPTER_FILES` into the directory, such as the tokenizer's.
        describe: given the adapter as it is read back, writes its card and certificate beside it.
    """
    adapter.check_writable()
    rest = _rest(adapter)
    plan = Plan(adapter.layers, rest, layout=layout, dtype=dtype, forms=adapter.forms)
    more: dict[str, Any] = {}
    for kind, parts in by_kind(rest):
        more |= kind.configured(parts)
    config = written_config(
        plan.targets,
        parameters=plan.parameters,
        layout=layout,
        base=adapter.base.hub_id or adapter.base.resolved,  # an id loads on every machine
        revision=adapter.base.revision,
        task_type=adapter.task_type,
        fan_in_fan_out=adapter.fan_in_fan_out,
        more=more,
    )
    ranks = {**dict.fromkeys(adapter.meta.ranks, 0), **plan.sums(plan.live)}
    start = adapter.meta.ranks_start or plan.sums(plan.start)
    facts: dict[str, Any] = {"ranks": ranks, "ranks_start": start, "bits": plan.bits}
    if plan.bits is None:
        facts["rounding_errors"] = {}
    meta = adapter.meta.model_copy(update=facts)
    try:
        with new_adapter_place(directory, force=force) as temporary:
            write_tensors(temporary / ADAPTER_WEIGHTS, plan.tensors(str(directory)))
            write_json(temporary / ADAPTER_CONFIG, config)
            write_sora_file(temporary / SORA_FILE, meta, adapter.base)
            if beside is not None:
                beside(temporary)
            with open_adapter(temporary, as_stored=True) as back:
                plan.check(back.layers, _rest(back))
                if describe is not None:
                    describe(back)
    except OSError as error:
        raise SoraError(f"{directory} cannot be written: {reason(error, directory)}") from error


def _rest(adapter: Adapter) -> list[Part]:
    """Return the parts without factors."""
    return [part for part in adapter.parts if not isinstance(part, Factored)]

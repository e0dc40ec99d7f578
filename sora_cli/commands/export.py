"""`sora export`: any adapter as a plain LoRA, in the layout that another program needs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from sora_cli.adapter.digest import result_remarks
from sora_cli.adapter.places import check_adapter_place, locate_adapter, with_base
from sora_cli.core.checks import LAYOUTS, STORED, check_apart, check_choice
from sora_cli.core.console import emit, printable, say, say_notes, size
from sora_cli.core.exit_codes import OK


def export(
    directory: Path,
    output: Path,
    *,
    layout: str,
    dtype: str | None,
    force: bool,
    verify: bool = True,
    as_json: bool = False,
) -> int:
    """Write an adapter as a plain LoRA, and say who can load it.

    Args:
        directory: an adapter directory, ours or PEFT's LoRA, rsLoRA or AdaLoRA, or a run directory.
        output: directory to write.
        layout: "exact" or "padded"; see `sora_cli.adapter.export`.
        dtype: of the factors; None: as they are stored.
        force: replace an adapter that is at `output`.
        verify: compare the outputs of both, where memory allows and the base is here.
        as_json: print what was written, and who can load it, as JSON.

    Returns:
        Exit code: 1 if they differ, 3 if that cannot be told.

    Raises:
        SoraError: bad input, or an output that exists.
    """
    check_choice("layout", layout, LAYOUTS)
    check_choice("dtype", dtype or STORED[0], STORED)
    read = locate_adapter(directory, missing="there is no adapter to export")
    say_notes(result_remarks(read))
    check_apart(output, *with_base(read))
    check_adapter_place(output, force=force)
    from sora_cli.adapter.export import export_adapter

    done = export_adapter(directory, output, layout=layout, dtype=dtype, force=force)
    say_notes(done.notes)
    head = f" and the head ({', '.join(done.head_modules)})" if done.head_modules else ""
    if as_json:
        facts = {**dataclasses.asdict(done), "layout": layout}
        emit(json.dumps(facts, indent=2, default=str))
    else:
        emit(
            f"{done.kind} of {done.modules} modules{head}, rank {done.rank} at most: "
            f"{layout} layout, {done.dtype}"
        )
        for consumer in done.consumers:
            loads = "yes" if consumer.loads else "no "
            emit(f"  {consumer.name + ':':<13} {loads}  {printable(consumer.advice)}")
    say(f"wrote {output}: {size(done.sizes[1])}, was {size(done.sizes[0])}")
    if not verify:
        return OK
    from sora_cli.verify.self_check import self_check

    return self_check(directory, output)

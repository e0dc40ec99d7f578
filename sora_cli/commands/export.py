"""`sora export`: write an adapter as a plain LoRA for another program."""

from __future__ import annotations

import dataclasses
import json
from functools import reduce
from operator import add
from pathlib import Path
from typing import Annotated

import typer

from sora_cli.adapter.digest import result_remarks
from sora_cli.adapter.losses import loss_table, module_facts
from sora_cli.adapter.places import (
    check_adapter_place,
    is_packed,
    locate_adapter,
    not_made_again,
    with_base,
)
from sora_cli.commands import options
from sora_cli.commands._files import check_files, of_results, output_file, output_folder
from sora_cli.core.allocator import keep_freed_memory
from sora_cli.core.checks import (
    FORMATS,
    GGUF_TYPES,
    LAYOUTS,
    STORED,
    check_choice,
    check_excludes,
    check_keep,
    check_requires,
)
from sora_cli.core.console import emit, printable, say, say_notes, size
from sora_cli.core.errors import SoraError
from sora_cli.core.exit_codes import OK
from sora_cli.core.outputs import check_new_file
from sora_cli.core.shell import quote
from sora_cli.core.table import emit_table
from sora_cli.core.timing import uncollected
from sora_cli.gguf.header import check_gguf_place, modelfile_of
from sora_cli.model.files import ADAPTER_WEIGHTS


def export(
    directory: options.Adapter,
    output: options.OutputOrFile,
    *,
    layout: Annotated[
        str | None,
        typer.Option(
            "--layout",
            help="exact: each module keeps its own rank. padded: all modules get the largest rank, "
            "for programs that ignore rank patterns. Default: exact.",
        ),
    ] = None,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="peft: a directory for PEFT, vLLM and others. gguf: one file for llama.cpp. "
            "packed: one small file of an adapter that sora prune --bits rounded.",
        ),
    ] = FORMATS[0],
    type: Annotated[
        str | None,
        typer.Option("--type", help="With --format gguf: number format, f32 or f16. Default: f32."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            help="With --format gguf: the base model, a checkpoint or a GGUF file. Default: the "
            "model that the adapter names.",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype", help="Number format: float32, bfloat16 or float16. Default: as stored."
        ),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option("--rank", help="Cut each layer to at most this rank, and report the loss."),
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option(
            "--energy",
            help="Keep this share of each layer's squared singular values, such as 0.9, and report "
            "the loss.",
        ),
    ] = None,
    as_json: options.Json = False,
    force: options.Force = False,
    no_verify: options.NoVerify = False,
) -> int:
    """Write an adapter as a plain LoRA, and list the programs that can load it.

    Returns:
        Exit code: 1 if the outputs of both adapters differ, 3 if the comparison cannot tell.
    """
    check_choice("format", form, FORMATS)
    given = {"--layout": layout, "--dtype": dtype, "--rank": rank, "--energy": energy}
    named = [name for name, value in given.items() if value is not None]
    if form != "peft":
        check_excludes(f"--format {form}", named + (["--no-verify"] if no_verify else []))
    if form != "gguf":
        check_requires("--format gguf", {"--type": type is not None, "--base": base is not None})
    if form == "packed":
        return _export_packed(directory, output, force=force, as_json=as_json)
    if form == "gguf":
        return _export_gguf(directory, output, type=type, base=base, force=force, as_json=as_json)
    layout = layout or LAYOUTS[0]
    check_choice("layout", layout, LAYOUTS)
    check_choice("dtype", dtype or STORED[0], STORED)
    keep = check_keep(rank=rank, energy=energy)
    if is_packed(directory) and not named:
        return _unpack(directory, output, force=force, as_json=as_json)
    read = locate_adapter(directory, missing="there is no adapter to export")
    say_notes(result_remarks(read))
    check_files(output_folder("-o", output), of_results(read))
    check_adapter_place(output, force=force)
    with uncollected():
        from sora_cli.adapter.export import export_adapter

    keep_freed_memory()  # before the first large tensors
    done = export_adapter(
        directory,
        output,
        layout=layout,
        dtype=dtype,
        keep=keep,
        force=force,
    )
    say_notes(done.notes)
    if as_json:
        facts = {**dataclasses.asdict(done), "layout": layout, "losses": module_facts(done.losses)}
        del facts["rest"]  # words
        emit(json.dumps(facts, indent=2, default=str))
    else:
        if done.losses:
            emit_table(loss_table(done.losses, reduce(add, done.losses.values())))
        emit(
            f"{done.kind} of {done.modules} modules{done.rest}, rank {done.rank} at most: "
            f"{layout} layout, {done.dtype}"
        )
        for consumer in done.consumers:
            loads = "yes" if consumer.loads else "no "
            emit(f"  {consumer.name + ':':<13} {loads}  {printable(consumer.advice)}")
    say(f"wrote {output}: {size(done.sizes[1])}, was {size(done.sizes[0])}")
    if any(loss.dropped for loss in done.losses.values()):
        say(f"not verified: the cut changes the outputs; to see how much of the effect is left: "
            f"sora verify {quote(str(directory))} {quote(str(output))}")  # fmt: skip
        return OK
    if no_verify:
        return OK
    from sora_cli.verify.self_check import self_check

    return self_check(directory, output)


def _export_packed(directory: Path, output: Path, *, force: bool, as_json: bool) -> int:
    read = locate_adapter(directory, missing="there is no adapter to export")
    say_notes(result_remarks(read))
    check_files(output_file("-o", output), of_results(read))
    if output.suffix != ".safetensors":
        raise SoraError(f"a packed adapter is a .safetensors file, and {output} is not",
                        hint=f"-o {quote(str(output))}.safetensors")  # fmt: skip
    check_new_file("-o", output, force=force, hint="choose another place: -o OUT")
    if output.exists() and not is_packed(output):
        raise SoraError(f"{output} is no packed adapter: it is not replaced, even with --force",
                        hint="choose another place: -o OUT")  # fmt: skip
    with uncollected():
        from sora_cli.adapter.packing import pack

    done = pack(read, output)
    if as_json:
        emit(json.dumps(dataclasses.asdict(done), indent=2))
    else:
        head = f", the head {size(done.head)}" if done.head else ""
        emit(f"factors of {done.bits} bits: {size(done.factors)}{head}, names and facts "
             f"{size(done.texts)}")  # fmt: skip
        if done.left_out:
            emit(f"left out, since the base model has it: {', '.join(done.left_out)}")
        emit(f"to unpack it: sora export {quote(str(output))} -o DIR")
    before = (read / ADAPTER_WEIGHTS).stat().st_size
    say(f"wrote {output}: {size(done.size)}, was {size(before)}; read back and compared")
    return OK


def _unpack(packed: Path, output: Path, *, force: bool, as_json: bool) -> int:
    check_files(output_folder("-o", output), [packed])
    check_adapter_place(output, force=force)
    with uncollected():
        from sora_cli.adapter.packing import unpack

    missing = unpack(packed, output, force=force)
    if as_json:
        emit(json.dumps({"directory": str(output), "missing": missing}, indent=2))
    elif missing:
        emit(not_made_again(missing))
    say(f"wrote {output}: {size((output / ADAPTER_WEIGHTS).stat().st_size)}, was "
        f"{size(packed.stat().st_size)}")  # fmt: skip
    return OK


def _export_gguf(
    directory: Path,
    output: Path,
    *,
    type: str | None,
    base: str | None,
    force: bool,
    as_json: bool,
) -> int:
    check_choice("type", type or GGUF_TYPES[0], GGUF_TYPES)
    read = locate_adapter(directory, missing="there is no adapter to export")
    say_notes(result_remarks(read))
    check_files(output_file("-o", output, modelfile_of(output)), [*of_results(read), base])
    check_gguf_place(output, force=force)
    with uncollected():
        from sora_cli.adapter.gguf_lora import export_gguf
        from sora_cli.gguf.package import parsed_once
        from sora_cli.use.modelfile import write_modelfile

    keep_freed_memory()
    kind = type or GGUF_TYPES[0]
    with parsed_once(base or "", *map(str, with_base(read))):
        done = export_gguf(directory, output, type=kind, base=base, force=force)
        modelfile, notes = write_modelfile(read, output, base=base, merged=False)
    say_notes([*done.notes, *notes])
    command = f"llama-server -m BASE.gguf --lora {quote(str(output))}"
    if as_json:
        facts = {**dataclasses.asdict(done), "format": "gguf", "command": command,
                 "modelfile": modelfile}  # fmt: skip
        emit(json.dumps(facts, indent=2, default=str))
    else:
        ranks = done.ranks.values()
        shown = f"rank {max(ranks)}" if len(set(ranks)) == 1 else f"ranks {min(ranks)}-{max(ranks)}"
        order = f", rows of {done.permuted} in llama.cpp's order" if done.permuted else ""
        emit(f"{done.kind} of {len(ranks)} modules of a {done.architecture} model, {shown}: "
             f"{done.type}, alpha {done.alpha}{order}")  # fmt: skip
        emit(f"  {printable(command)}")
        if modelfile is not None:
            emit(f"  {printable(f'ollama create NAME -f {quote(str(modelfile))}')}")
    say(f"wrote {output}: {size(done.sizes[1])}, was {size(done.sizes[0])}; read back and compared")
    return OK

"""The parts of `sora export` and `sora merge` that write a GGUF file."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

from sora_cli.adapter.digest import result_remarks
from sora_cli.adapter.places import locate_adapter
from sora_cli.core.checks import MERGED_GGUF, check_choice
from sora_cli.core.console import count, emit, printable, say, say_notes, size
from sora_cli.core.errors import SoraError
from sora_cli.core.exit_codes import OK
from sora_cli.core.outputs import check_apart, check_new_file
from sora_cli.model.gguf import MAGIC
from sora_cli.model.references import resolve_model_path


def check_gguf_place(output: Path, *, force: bool) -> None:
    """Raise `SoraError` unless a GGUF file may be written there."""
    if output.suffix.lower() != ".gguf":
        raise SoraError(f"--format gguf writes a file, whose name ends in .gguf, not {output}",
                        hint=f"-o {quote(str(output))}.gguf")  # fmt: skip
    check_new_file("-o", output, force=force, hint="choose another place")
    if not output.exists():
        return
    with output.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise SoraError(f"{output} is not replaced, even with --force: it is no GGUF file",
                            hint="choose another place")  # fmt: skip


def merge_gguf(
    directory: Path,
    output: Path,
    *,
    base: str | None,
    type: str | None,
    force: bool,
    accept_loss: bool,
) -> int:
    """Write the base model's GGUF file with the adapter in it.

    Args:
        directory: an adapter directory, ours or any PEFT LoRA's, or a run directory.
        output: the file.
        base: the base model's GGUF file, where it is not the one that the adapter names.
        type: of the weights that are changed, one of `core.checks.MERGED_GGUF`.
        force: replace a file, and take a base that is not the one trained on.
        accept_loss: write what rounding leaves of the update, however little it is.

    Raises:
        SoraError: bad input, a base that is no GGUF file or does not fit, or an update of which
            rounding would leave too little.
    """
    type = type or MERGED_GGUF[0]
    check_choice("type", type, MERGED_GGUF)
    place = locate_adapter(directory, missing="there is no adapter to merge")
    say_notes(result_remarks(place))
    check_gguf_place(output, force=force)
    from sora_cli.adapter.reading import open_adapter

    with open_adapter(directory, base=base) as adapter:
        source = Path(resolve_model_path(base or adapter.base.name()))
        if source.suffix.lower() != ".gguf" or not source.is_file():
            raise SoraError(
                f"--format gguf merges into a base model in a GGUF file, not into {source}",
                hint="name it with --base BASE.gguf; or merge without --format and convert it",
            )
        check_apart(output, place, source)
        from sora_cli.merge.rounding import ENOUGH, shown_survival
        from sora_cli.merge.to_gguf import merge_to_gguf

        say_notes(adapter.notes)
        done = merge_to_gguf(
            adapter, source, output, type=type, accept_loss=accept_loss, force=force
        )
    if done.base_note is not None:
        say(f"note: {done.base_note}")
    say(f"merged {done.modules} layers into {source}, {type}; {count(done.copied)} tensors are "
        "copied as they are")  # fmt: skip
    warning = "warning: " if done.survival.share < ENOUGH else ""
    say(f"{warning}{shown_survival(done.survival, type)}")
    emit(f"  {printable(f'llama-server -m {quote(str(output))}')}")
    say(f"wrote {output}: {size(output.stat().st_size)}; read back and compared")
    return OK

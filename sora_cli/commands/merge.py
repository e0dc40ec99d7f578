"""`sora merge`: add an adapter's update into the weights of its base model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sora_cli.adapter.digest import result_remarks
from sora_cli.adapter.places import locate_adapter
from sora_cli.commands import options
from sora_cli.commands._files import check_files, of_results, output_file, output_folder
from sora_cli.core.checks import (
    MERGED,
    MERGED_GGUF,
    MODEL_FORMATS,
    ROUNDINGS,
    check_choice,
    check_excludes,
    check_requires,
)
from sora_cli.core.console import count, emit, printable, say, say_notes, size
from sora_cli.core.errors import SoraError
from sora_cli.core.exit_codes import FAILED, OK
from sora_cli.core.shell import quote
from sora_cli.core.timing import uncollected
from sora_cli.core.words import first_few
from sora_cli.gguf.header import check_gguf_place, modelfile_of
from sora_cli.model.references import resolve_model_path
from sora_cli.report import recipe_of_run

if TYPE_CHECKING:
    from sora_cli.adapter.survival import Survival
    from sora_cli.merge.merge import Merge, Merged
    from sora_cli.merge.write import Progress


def merge(
    directory: options.Adapter,
    output: options.OutputOrFile,
    *,
    base: options.BaseModel = None,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="checkpoint: a directory for transformers. gguf: one file for llama.cpp, from a "
            "base model in a GGUF file.",
        ),
    ] = MODEL_FORMATS[0],
    type: Annotated[
        str | None,
        typer.Option(
            "--type",
            help="With --format gguf: number format of changed weights, f16, q8_0 or f32; base: as "
            "in the base model, such as q4_1, which loses small updates. Default: f16.",
        ),
    ] = None,
    untie: Annotated[
        bool,
        typer.Option(
            "--untie", help="Allow merging into a tied weight: both weights are written, untied."
        ),
    ] = False,
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype",
            help="Number format of all weights: float32, float16 or bfloat16; base: each weight as "
            "in the base model. With 16 bits, updates much smaller than their weight are lost.",
        ),
    ] = MERGED[0],
    rounding: Annotated[
        str,
        typer.Option(
            "--round",
            help="Rounding to 16 bits: nearest, or stochastic, which keeps small updates on "
            "average but adds noise.",
        ),
    ] = ROUNDINGS[0],
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", help="With --round stochastic: its seed. Default: 0.", show_default=False
        ),
    ] = None,
    accept_loss: Annotated[
        bool,
        typer.Option(
            "--accept-loss",
            help="Merge even if less than 75 % of the update survives the rounding.",
        ),
    ] = False,
    force: options.Force = False,
    no_verify: options.NoVerify = False,
) -> int:
    """Write a merged model: base weights plus update, with the adapter's head and labels.

    It is an error if rounding would keep less than 75 % of the update, unless `accept_loss`.

    Returns:
        Exit code: 1 if the outputs of merged model and adapter differ (0 if `accept_loss` explains
        it), 3 if the comparison cannot tell.
    """
    check_choice("format", form, MODEL_FORMATS)
    if form == "gguf":
        given = {"--untie": untie, "--dtype": dtype != MERGED[0], "--seed": seed is not None,
                 "--round": rounding != ROUNDINGS[0], "--no-verify": no_verify}  # fmt: skip
        check_excludes("--format gguf", [name for name, is_given in given.items() if is_given])
        return _merge_gguf(
            directory, output, base=base, type=type, force=force, accept_loss=accept_loss
        )
    check_requires("--format gguf", {"--type": type is not None})
    check_choice("dtype", dtype, MERGED)
    check_choice("rounding", rounding, ROUNDINGS)
    if seed is not None and rounding != "stochastic":
        raise SoraError("--seed is for stochastic rounding", hint="add --round stochastic")
    missing = "there is no adapter to merge"
    adapter_place = locate_adapter(directory, missing=missing)  # fails before torch is imported
    on = None if base is None else resolve_model_path(base)
    say_notes(result_remarks(adapter_place))
    check_files(output_folder("-o", output), [*of_results(adapter_place), on])
    with uncollected():
        from sora_cli.adapter.parts.kinds import words
        from sora_cli.adapter.reading import open_adapter

    with open_adapter(directory, base=base) as adapter:
        with uncollected():  # imports transformers: after all checks that can fail fast
            from sora_cli.merge.merge import prepare_merge
            from sora_cli.merge.rounding import Storing, ways_out

        storing = Storing(dtype, rounding, seed or 0, accept_loss)
        say_notes(adapter.source.notes)
        if adapter.meta.quantise is not None:
            say(f"note: the base was quantised to {adapter.meta.quantise} while the adapter was "
                "trained; it is merged into the plain weights, which differ a little")  # fmt: skip
        plan = prepare_merge(adapter, output, base=base, force=force, untie=untie, storing=storing)
        _announce(plan)
        with _bar(plan.weights) as progress:
            merged = plan.write(progress)
        _notes(merged)
    say(
        f"merged {merged.modules} layers{words(adapter.parts)} with the weights of {merged.base}, "
        f"as {merged.dtype}"
    )
    assert merged.survival is not None  # known once the weights are written
    ways = ways_out(merged.dtype, storing)
    _tell_what_is_left(merged.survival, merged.dtype, ways, directory, output, base=base)
    say(f"wrote {output}")
    if no_verify or merged.absent:  # absent parameters are random: outputs differ each time
        return OK
    from sora_cli.verify.self_check import self_check

    code = self_check(directory, output, base=base, force=force)
    # rounding that removes more than 5 % of the update, or adds as much noise as the update has,
    # also changes the outputs by that much
    if code == FAILED and merged.survival.is_lossy and accept_loss:
        say("the loss was accepted with --accept-loss: the difference is no failure")
        return OK
    return code


def _merge_gguf(
    directory: Path,
    output: Path,
    *,
    base: str | None,
    type: str | None,
    force: bool,
    accept_loss: bool,
) -> int:
    """Merge an adapter into the base model's GGUF file; see `merge`."""
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
        written = output_file("-o", output, modelfile_of(output))
        check_files(written, [*of_results(place), source])
        from sora_cli.gguf.package import parsed_once
        from sora_cli.merge.to_gguf import merge_to_gguf, ways_out_gguf
        from sora_cli.use.modelfile import write_modelfile

        say_notes(adapter.source.notes)
        with parsed_once(str(source)):
            done = merge_to_gguf(
                adapter, source, output, type=type, accept_loss=accept_loss, force=force
            )
            modelfile, notes = write_modelfile(place, output, base=base, merged=True)
        ways = "; ".join(ways_out_gguf(adapter, source, done.stored))
    if done.base_note is not None:
        say(f"note: {done.base_note}")
    say(f"merged {done.modules} layers with the weights of {source}, as {done.stored}; "
        f"tensors copied unchanged: {count(done.copied)}")  # fmt: skip
    _tell_what_is_left(done.survival, done.stored, ways, directory, output, base=base)
    say_notes(notes)
    emit(f"  {printable(f'llama-server -m {quote(str(output))}')}")
    if modelfile is not None:
        emit(f"  {printable(f'ollama create NAME -f {quote(str(modelfile))}')}")
    say(f"wrote {output}: {size(output.stat().st_size)}; read back and compared")
    return OK


def _announce(plan: Merge) -> None:
    memory = "" if plan.memory is None else f", and about {size(plan.memory)} of memory"
    say(f"this takes {size(plan.disk)} of disk ({size(plan.free)} are free){memory}")


@contextmanager
def _bar(total: int) -> Iterator[Progress]:
    """Show a progress bar that counts bytes."""
    from tqdm import tqdm

    with tqdm(total=total, desc="merging", unit="B", unit_scale=True, dynamic_ncols=True) as bar:
        yield lambda written: bar.update(written) and None


def _tell_what_is_left(
    survival: Survival, stored: str, ways: str, directory: Path, output: Path, *, base: str | None
) -> None:
    """Print the share of the update that survives rounding; if it is too small, what to do.

    Args:
        ways: options that lose less.
    """
    from sora_cli.merge.rounding import shown_survival

    text = shown_survival(survival, stored)
    if not survival.is_lossy:
        say(text)
        return
    say(f"warning: {text}")
    say(f"  to lose less: {ways}")
    is_run = any(recipe_of_run(place) for place in (directory, directory.parent))
    rows = "" if is_run else " --recipe RECIPE"
    compare = f"sora verify {quote(str(directory))} {quote(str(output))}"
    if base is not None:
        compare += f" --base {quote(base)}"
    say(f"  to test whether its answers are worse: {compare} --max-drop 1pt{rows}")


def _notes(merged: Merged) -> None:
    if merged.base_note is not None:
        say(f"note: {merged.base_note}")
    if not merged.tokenizer:
        say("note: the base model has no tokenizer, so there is none in the merged model")
    if merged.unpacked:
        say(f"note: the numbers of the GGUF file are written out in full, as {merged.dtype}")
    if merged.converted:
        say(f"note: {count(merged.converted)} tensors that the adapter does not change are stored "
            f"as {merged.dtype}, too")  # fmt: skip
    if merged.untied:
        say("note: weights that were tied are now stored separately; the configuration says so")
    if merged.left_out:
        say(f"note: tensors of the base that the merged model does not use, and does not hold: "
            f"{first_few(merged.left_out)}")  # fmt: skip
    if merged.absent:
        say(f"note: {count(len(merged.absent))} parameters are in no file, such as "
            f"'{merged.absent[0]}': they will be random")  # fmt: skip
    if merged.left_files:
        say(f"note: not copied from the base: {first_few(merged.left_files, 5)}")

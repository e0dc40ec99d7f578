"""`sora merge`: an adapter folded into its base model, ready for `from_pretrained`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sora_cli.adapter.digest import result_remarks
from sora_cli.adapter.places import locate_adapter
from sora_cli.core.checks import check_apart
from sora_cli.core.console import count, say, say_notes, size
from sora_cli.core.exit_codes import OK
from sora_cli.model.references import resolve_model_path

if TYPE_CHECKING:
    from sora_cli.merge.merge import Merge, Merged
    from sora_cli.merge.write import Progress


def merge(
    directory: Path,
    output: Path,
    *,
    base: str | None,
    force: bool,
    untie: bool = False,
    verify: bool = True,
) -> int:
    """Write the base model with the adapter, its head and its labels in it.

    Args:
        directory: an adapter directory, ours or any PEFT LoRA's, or a run directory.
        output: directory to write.
        base: the base model, where it is not the one the adapter names.
        force: replace a model at `output`, and take a base that is not the one trained on.
        untie: change a weight that is tied to another, and untie them.
        verify: compare the outputs of both, where memory allows.

    Returns:
        Exit code: 1 if they differ, 3 if that cannot be told.

    Raises:
        SoraError: bad input, a base that does not fit, or an output that exists.
    """
    missing = "there is no adapter to merge"
    adapter_place = locate_adapter(directory, missing=missing)  # before torch is imported
    read = [adapter_place] if base is None else [adapter_place, Path(resolve_model_path(base))]
    say_notes(result_remarks(adapter_place))
    check_apart(output, *read)
    from sora_cli.adapter.reading import open_adapter

    with open_adapter(directory) as adapter:
        from sora_cli.merge.merge import prepare_merge  # transformers: after what can fail fast

        say_notes(adapter.notes)
        if adapter.meta.quantise is not None:
            say(f"note: the base was quantised to {adapter.meta.quantise} while the adapter was "
                "trained; it is merged into the plain weights, which differ a little")  # fmt: skip
        plan = prepare_merge(adapter, output, base=base, force=force, untie=untie)
        _announce(plan)
        with _bar(plan.weights) as progress:
            merged = plan.write(progress)
        _notes(merged)
        modules = adapter.head_modules
    head = f" and the head ({', '.join(modules)})" if modules else ""
    say(f"merged {merged.modules} layers{head} into {merged.base}, {merged.dtype}")
    say(f"wrote {output}")
    if not verify or merged.absent:  # random parameters give other outputs each time
        return OK
    from sora_cli.verify.self_check import self_check

    return self_check(directory, output, base=base)


def _announce(plan: Merge) -> None:
    memory = "" if plan.memory is None else f", and about {size(plan.memory)} of memory"
    say(f"this takes {size(plan.disk)} of disk ({size(plan.free)} are free){memory}")


@contextmanager
def _bar(total: int) -> Iterator[Progress]:
    """Show a progress bar by bytes, but only on a terminal."""
    from tqdm import tqdm

    with tqdm(
        total=total, desc="merging", unit="B", unit_scale=True, dynamic_ncols=True, disable=None
    ) as bar:
        yield lambda written: bar.update(written) and None


def _notes(merged: Merged) -> None:
    if not merged.base_checked:
        say("note: nothing says whether the base is the one that the adapter was trained on")
    if not merged.tokenizer:
        say("note: the base model has no tokenizer, so there is none in the merged model")
    if merged.unpacked:
        say(f"note: the numbers of the GGUF file are written out in full, as {merged.dtype}")
    if merged.untied:
        say("note: weights that were tied are now stored separately; the configuration says so")
    if merged.left_out:
        say(f"note: {count(len(merged.left_out))} tensors of the base were left out, such as "
            f"'{merged.left_out[0]}': the merged model does not use them")  # fmt: skip
    if merged.absent:
        say(f"note: {count(len(merged.absent))} parameters are in no file, such as "
            f"'{merged.absent[0]}': they will be random")  # fmt: skip
    if merged.left_files:
        say(f"note: not copied from the base: {', '.join(merged.left_files)}")

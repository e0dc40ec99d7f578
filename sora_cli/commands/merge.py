"""`sora merge`: an adapter folded into its base model, ready for `from_pretrained`."""

from __future__ import annotations

from pathlib import Path

from sora_cli.console import say


def merge(directory: Path, output: Path, *, base: str | None, force: bool) -> None:
    """Write the base model with the adapter, its head and its labels in it.

    Args:
        directory: an adapter directory, ours or any PEFT LoRA's, or a run directory.
        output: directory to write.
        base: the base model, where it is not the one the adapter names.
        force: replace a model at `output`, and take a base that is not the one trained on.

    Raises:
        SoraError: bad input, a base that does not fit, or an output that exists.
    """
    from sora_cli.adapter import read_adapter

    adapter = read_adapter(directory)
    from sora_cli.merging import merge_adapter  # loads transformers: after what can fail fast

    merged = merge_adapter(adapter, output, base=base, force=force)
    if not merged.base_checked:
        say("note: nothing told whether the base is the one the adapter was trained on")
    if not merged.tokenizer:
        say("note: the base model has no tokenizer, so there is none in the merged model")
    head = f" and the head ({', '.join(adapter.head_modules)})" if adapter.head else ""
    say(f"merged {merged.modules} layers{head} into {merged.base}, {merged.dtype}")
    say(f"wrote {output}")

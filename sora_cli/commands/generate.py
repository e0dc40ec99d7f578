"""`sora generate`: the answer of a trained model to one prompt."""

from __future__ import annotations

import json
import sys
import time
from typing import Annotated

import typer

from sora_cli.adapter.digest import result_remarks
from sora_cli.adapter.places import check_named_base, check_target
from sora_cli.commands import options
from sora_cli.commands._flags import Sampling, spliced
from sora_cli.core.console import emit, say_notes
from sora_cli.core.errors import SoraError
from sora_cli.core.interruption import interruptible
from sora_cli.core.timing import importing
from sora_cli.use.sampling import check_sampling, sampling_of

STDIN = "-"


@spliced
def generate(
    target: options.Target,
    prompt: Annotated[
        str, typer.Option("--prompt", "-p", help="The prompt; - reads it from stdin.")
    ],
    *,
    system: options.System = None,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw", help="Continue the prompt itself, without chat template or headings."
        ),
    ] = False,
    sampling: Sampling,
    base: options.BaseModel = None,
    dtype: options.ComputeDtype = None,
    as_json: options.Json = False,
) -> None:
    """Print a model's answer to a prompt, token by token."""
    check_sampling(sampling, dtype)
    if raw and system is not None:
        raise SoraError("--system does not go with --raw: nothing is put around the prompt")
    place = check_target(target, "sora generate {} --prompt TEXT")
    check_named_base(base, [place])
    say_notes(result_remarks(place))
    text = prompt
    if prompt == STDIN:
        with interruptible():
            text = sys.stdin.read()
    if not text.strip():
        raise SoraError("the prompt is empty")
    with importing():
        from sora_cli.use.chat import to_stdout
        from sora_cli.use.speaker import load_speaker
    speaker, trained_with = load_speaker(target, place, on=base, dtype=dtype, raw=raw)
    system = trained_with if system is None and not raw else system
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": text if raw else text.strip()})
    settings, began = sampling_of(sampling), time.perf_counter()
    answer = speaker.answer(messages, settings, (lambda _: None) if as_json else to_stdout)
    if not as_json:
        emit("")
        return
    facts = {"model": target, "prompt": text, "system": system, "text": answer,
             "seed": settings.seed, "seconds": time.perf_counter() - began,
             "notes": speaker.notes}  # fmt: skip
    emit(json.dumps(facts, indent=2, ensure_ascii=False))

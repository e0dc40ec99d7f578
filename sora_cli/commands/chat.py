"""`sora chat`: a conversation with one trained model, or with two side by side."""

from __future__ import annotations

import shutil
import sys
from typing import Annotated

import typer

from sora_cli.adapter.digest import result_remarks
from sora_cli.adapter.places import check_named_base, check_target, takes_base
from sora_cli.commands import completion, options
from sora_cli.commands._flags import Sampling, spliced
from sora_cli.core.console import say, say_notes
from sora_cli.core.timing import importing
from sora_cli.use.sampling import check_sampling, sampling_of


@spliced
def chat(
    target: options.Target,
    other: Annotated[
        str | None,
        typer.Argument(
            metavar="B",
            help="A second model, whose answers stand beside those of the first.",
            autocompletion=completion.runs,
        ),
    ] = None,
    *,
    system: options.System = None,
    sampling: Sampling,
    base: options.BaseModel = None,
    dtype: options.ComputeDtype = None,
) -> None:
    """Answer typed lines, or the lines of stdin, until the end of input."""
    targets = [target] if other is None else [target, other]
    check_sampling(sampling, dtype)
    places = [check_target(target, "sora chat {}") for target in targets]
    check_named_base(base, places)
    for place in places:
        say_notes(result_remarks(place))
    with importing():
        from sora_cli.core.typed_lines import typed_lines
        from sora_cli.use.chat import Chat, to_stdout
        from sora_cli.use.speaker import load_speaker, say_form
    speakers = []
    for target, place in zip(targets, places, strict=True):
        on = base if takes_base(place) else None
        speaker, trained_with = load_speaker(target, place, on=on, dtype=dtype)
        # two models get the same system message, that of the first, so that answers compare
        system = trained_with if system is None else system
        speakers.append(speaker)
        say_form(speaker)
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else None
    if terminal and sys.stdin.isatty():
        say("/help shows what can be typed; Ctrl-D leaves")
    Chat(speakers, sampling_of(sampling), system, to_stdout, width).run(typed_lines())

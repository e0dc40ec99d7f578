"""Command lines that serve a language model with an adapter, by other people's servers.

A server that takes no adapter, or not this one, gets the merged model. llama.cpp's takes adapters
as GGUF files, beside a base model as a GGUF file (`--lora`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sora_cli.adapter.consumers import Consumer
from sora_cli.adapter.programs import SERVERS, Program
from sora_cli.core.shell import quote

_OPEN_ENDED = "CAUSAL_LM"
"""PEFT's task type of the models that these servers can serve."""


@dataclass(frozen=True)
class Server:
    """A server and the commands, in order, that make it serve the adapter."""

    name: str
    commands: tuple[str, ...]


def servers(
    verdicts: Sequence[Consumer], *, task_type: str | None, directory: str, base: str | None
) -> tuple[Server, ...]:
    """Return the servers for an adapter's model, each with the commands that prepare and start it.

    Args:
        verdicts: the result of `consumers` for this directory.
        task_type: PEFT's; only servers of causal language models are known.
        directory: the adapter's name in the commands.
        base: the base model's name in the commands.
    """
    if task_type != _OPEN_ENDED:
        return ()
    by_name = {verdict.name: verdict for verdict in verdicts}
    merge = f"sora merge {quote(directory)} -o merged"
    return tuple(
        Server(
            program.server or program.name,
            _with_adapter(program, by_name.get(program.name), directory, base)
            or (merge, *program.merged),
        )
        for program in SERVERS
    )


def _with_adapter(
    program: Program, verdict: Consumer | None, directory: str, base: str | None
) -> tuple[str, ...] | None:
    """Return the commands that serve the adapter itself; None: it has to be merged."""
    if verdict is None or not program.many:
        return None
    if program.layout != "gguf":
        return (verdict.advice,) if verdict.loads else None
    convert = gguf_commands(verdict, directory, base, "adapter")
    return None if convert is None else (*convert, beside_base(directory)[1])


def beside_base(directory: str, base: str = "BASE.gguf") -> tuple[str, str]:
    """Return the commands with which llama.cpp serves an adapter beside its base model."""
    return _as_gguf(directory, "adapter.gguf"), f"llama-server -m {quote(base)} --lora adapter.gguf"


def _as_gguf(directory: str, output: str) -> str:
    return f"sora export {quote(directory)} -o {quote(output)} --format gguf"


def gguf_commands(
    verdict: Consumer, directory: str, base: str | None, name: str
) -> tuple[str, ...] | None:
    """Return the commands that write an adapter to NAME.gguf; None: it has to be merged.

    Args:
        verdict: on llama.cpp.
    """
    output = f"{name}.gguf"
    if verdict.step == "gguf":
        return (_as_gguf(directory, output),)
    if verdict.loads:
        return (f"{verdict.advice} --outfile {quote(output)}",)
    if verdict.step == "padded":
        padded = "padded" if name == "adapter" else f"{name}-padded"
        export = f"sora export {quote(directory)} -o {quote(padded)} --layout padded"
        known = "BASE" if not base or base.lower().endswith(".gguf") else quote(base)
        convert = (
            f"convert_lora_to_gguf.py {quote(padded)} --base {known} --outfile {quote(output)}"
        )
        return (export, convert)
    return None

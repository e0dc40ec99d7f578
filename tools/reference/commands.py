"""docs/reference/commands.md, from the Typer app."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import typer

from sora_cli.app import COMMANDS, app, build
from tools.reference.markdown import code, table
from tools.reference.markdown import page as make_page

INTRODUCTION = """\
Every command, argument and option, as printed by `sora COMMAND --help`.

Words after a recipe are overrides: `training.epochs=3` sets this key of the [recipe](recipe.md); \
the value is read as YAML. Results go to stdout, messages to stderr. [Exit codes](exit-codes.md) \
lists the codes that a command returns to the shell. `SORA_DEBUG=1` in the environment has the \
effect of `--debug`.

If stderr is no terminal (a pipe, a file, a job's log), progress is printed as one line every five \
seconds, without carriage returns and escape codes; this includes other libraries' progress. \
`--quiet` prints only results, errors, and the command to continue after an interruption. \
`--verbose` also prints the logs of transformers, datasets and the Hub's client."""


def page() -> str:
    """Return the page."""
    return make_page("Commands", INTRODUCTION, *(_section(*item) for item in commands()))


def commands() -> Iterator[tuple[str, Any]]:
    """Yield every command with its full name, in the order of the help page."""
    yield "sora", _all()
    for name in COMMANDS:
        yield from _below(f"sora {name}", build(name))


@cache
def _all() -> Any:
    return typer.main.get_command(app)


def option_names(command: Any) -> set[str]:
    """Return every spelling of a command's options."""
    options = _options(command)
    return {"--help", *(word for o in options for word in (*o.opts, *o.secondary_opts))}


def _below(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield name, command
    for word, child in getattr(command, "commands", {}).items():
        yield from _below(f"{name} {word}", child)


def _section(name: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    usage = [name, *(["COMMAND"] if getattr(command, "commands", None) else [])]
    usage += [_usage(argument) for argument in arguments]
    usage += ["[OPTIONS]"] if _options(command) else []
    parts = [
        f"## {name}",
        f"```text\n{' '.join(usage)}\n```",
        command.help or "",
        table(["argument", "meaning"], [[code(_name(a)), _meaning(a)] for a in arguments]),
        _option_table(_options(command)),
    ]
    return "\n\n".join(part for part in parts if part)


def _option_table(options: list[Any]) -> str:
    rows = [[code(_spelling(option)), _default(option), _meaning(option)] for option in options]
    if any(row[1] for row in rows):
        return table(["option", "default", "meaning"], rows)
    return table(["option", "meaning"], [[row[0], row[2]] for row in rows])


def _options(command: Any) -> list[Any]:
    return [p for p in command.params if p.param_type_name == "option" and p.name != "help"]


def _name(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _usage(argument: Any) -> str:
    name = _name(argument)
    several = "..." if argument.nargs == -1 and not name.endswith("...") else ""
    return f"{name}{several}" if argument.required else f"[{name}{several}]"


def _spelling(option: Any) -> str:
    """Return an option in the form of the help page: `-o, --output <path>`."""
    record = option.get_help_record(typer.Context(_all()))
    text = re.sub(r"list\[(\w+)\]", lambda kind: kind[1].lower(), record[0])
    return " ".join(text.replace(" range>", ">").split())


def _default(option: Any) -> str:
    if option.required:
        return "required"
    if option.is_flag or option.default is None:
        return ""
    return code(str(option.default))


def _meaning(parameter: Any) -> str:
    return parameter.help or ""

"""docs/reference/programs.md, from the table of programs."""

from __future__ import annotations

from sora_cli.adapter.programs import PROGRAMS, Program
from tools.reference.markdown import code, table
from tools.reference.markdown import page as make_page


def page() -> str:
    """Return the page."""
    columns = ("program", "day", "", "source", "takes", "strength", "largest rank")
    rows = [
        (f"{program.name} {program.version}", str(program.day),
         "tried" if program.tried else "read", code(program.source), _takes(program),
         _strength(program), ", ".join(map(str, program.steps)) or "any")
        for program in PROGRAMS
    ]  # fmt: skip
    without = ", ".join(
        f"{program.name}: {', '.join(map(code, sorted(program.without)))}; of other types the "
        f"classes {', '.join(map(code, sorted(program.classes)))}"
        for program in PROGRAMS
        if program.without
    )
    return make_page(
        "Programs that load adapters",
        "What other people's programs ask of an adapter directory, as `sora inspect` tells it. "
        "The rules were read in the programs' source, or tried, on the day in the table; "
        "`sora inspect` says so where this is over a year ago.",
        table(columns, rows),
        f"Model types that are served without adapters, or not at all. {without}.",
    )


def _takes(program: Program) -> str:
    if program.takes != "pairs":
        kinds = "LoRA and DoRA" if program.takes == "LORA" else "all types of PEFT's"
        return f"{kinds}, but no layer that PEFT loses"
    if program.layout == "gguf":
        return "pairs of factors, for layers with a name in the package `gguf`; a GGUF file"
    return "pairs of factors, for layers that its model adapts"


def _strength(program: Program) -> str:
    if program.strength == "tensor":
        text = "`alpha / rank` of the tensor"
    else:
        text = f"per module as PEFT; {program.strength_note}".removesuffix("; ")
    return text if program.rslora else f"{text}; rsLoRA ignored"

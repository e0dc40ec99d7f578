"""docs/reference/servers.md, from the table of servers' rules."""

from __future__ import annotations

from sora_cli.adapter.server_rules import ALL, Rules
from tools.reference.markdown import code, table
from tools.reference.markdown import page as make_page


def page() -> str:
    """Return the page."""
    columns = ("server", "read", "files", "strength", "ranks of modules", "layers")
    rows = [
        (f"{rules.name} {rules.version}", str(rules.read), code(rules.files), _strength(rules),
         _ranks(rules), _layers(rules))
        for rules in ALL
    ]  # fmt: skip
    without = ", ".join(
        f"{rules.name}: {', '.join(map(code, sorted(rules.without)))}"
        for rules in ALL
        if rules.without
    )
    return make_page(
        "Servers",
        "What other people's servers make of an adapter directory, as `sora inspect` tells it. "
        "The rules were read in the servers' source code, on the day in the table; "
        "`sora inspect` says so where this is over a year ago.",
        table(columns, rows),
        f"Model types that are served without adapters, or not at all. {without}.",
    )


def _strength(rules: Rules) -> str:
    by = "`alpha / rank` of the tensor" if rules.strength == "tensor" else "one `alpha / r`"
    text = f"per module as PEFT; {rules.before}" if rules.before else by
    return text if rules.rslora else f"{text}; rsLoRA ignored"


def _ranks(rules: Rules) -> str:
    if not rules.uneven:
        return "all must be `r`"
    option = ", ".join(map(str, rules.steps))
    return f"any up to its option: {option}" if option else "any"


def _layers(rules: Rules) -> str:
    if rules.layout == "gguf":
        return "those with a name in the package `gguf`; a GGUF file"
    if rules.modules is None:
        return "any that its model adapts"
    kinds = ", ".join(map(code, sorted(rules.modules)))
    return f"{kinds}; each in all layers, or it is passed over" if rules.every_layer else kinds

"""`sora methods`: list the methods with their papers and options."""

from __future__ import annotations

import json
from typing import Any

from methods.registry import config_class, method_names
from sora_cli.commands.options import Code, Json, load_plugins
from sora_cli.core.console import emit
from sora_cli.core.words import default_of, expected, shown_value


def methods(*, as_json: Json = False, code: Code = None) -> None:
    """Print every method: name, paper, and each option with its default and description."""
    load_plugins(code)
    described = [describe_method(name) for name in method_names()]
    if as_json:
        emit(json.dumps(described, indent=2))
        return
    emit("\n\n".join(_as_text(method) for method in described))


def describe_method(name: str) -> dict[str, Any]:
    """Return name, paper and options of a method as plain data."""
    config = config_class(name)
    options = [
        {
            "name": option,
            "type": expected(config, option)[0],
            "required": info.is_required(),
            "default": default_of(config, option),
            "description": info.description or "",
        }
        for option, info in config.model_fields.items()
    ]
    return {
        "name": name,
        "paper": config.paper,
        "low_rank": config.low_rank,
        "adapts_rank": config.adapts_rank,
        "may_vary": list(config.variable_options),
        "options": options,
    }


def _as_text(method: dict[str, Any]) -> str:
    rows = [
        (
            option["name"],
            "(required)" if option["required"] else shown_value(option["default"]),
            option["description"],
        )
        for option in method["options"]
    ]
    widths = [max((len(row[i]) for row in rows), default=0) for i in (0, 1)]
    lines = [f"  {n:{widths[0]}}  {d:{widths[1]}}  {text}".rstrip() for n, d, text in rows]
    if not method["low_rank"]:
        lines.append("  a baseline: trains parameters of the model itself, and has no ranks")
    if method["may_vary"]:
        lines.append(
            f"  options that may vary along a path (sora path): {', '.join(method['may_vary'])}"
        )
    title = f"{method['name']}: {method['paper']}" if method["paper"] else method["name"]
    return "\n".join([title, *lines])

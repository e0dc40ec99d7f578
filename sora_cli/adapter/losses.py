"""Tables and JSON of each module's loss when an adapter was made. Nothing is printed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from sora_cli.core.table import Column, Table

if TYPE_CHECKING:
    from sora_cli.adapter.pruning import Loss


def module_facts(losses: Mapping[str, Loss]) -> dict[str, dict[str, float]]:
    """Return rank, norm and relative error of each module, for JSON."""
    return {
        path: {"rank": x.after, "norm": x.squared**0.5, "relative_error": x.relative_error}
        for path, x in losses.items()
    }


def shown_error(error: float) -> str:
    """Return a relative error for people: a percentage, or a power of ten for mere rounding."""
    return f"{error:.2%}" if error >= 5e-5 else f"{error:.1e}"


def loss_table(
    losses: Mapping[str, Loss],
    total: Loss,
    *,
    before: str = "rank",
    error: Callable[[Loss], str] = lambda loss: shown_error(loss.relative_error),
) -> Table:
    """Return a table with a line for each module.

    Args:
        total: the loss of all modules together.
        before: title of the column with the components before the cut.
        error: turns a loss into text.
    """
    rows = [
        (name, loss.before, loss.after, loss) for name, loss in [*losses.items(), ("all", total)]
    ]
    columns = ("module", before, "kept", Column("error in ||dW||", error))
    return Table(None, columns, rows[:-1], footer=rows[-1])

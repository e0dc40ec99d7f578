"""Parts of commands that make an adapter: what each module lost, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sora_cli.core.checks import check_rules
from sora_cli.core.console import emit_table

if TYPE_CHECKING:
    from sora_cli.adapter.dense import Budget, Told
    from sora_cli.adapter.pruning import Loss


def checked_budget(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the one rule that is given, if one is; raise `SoraError` for a wrong one."""
    check_rules(given)
    return {name: value for name, value in given.items() if value is not None}


def budget_of(given: Mapping[str, Any]) -> Budget | None:
    """Return a checked rule as the functions take it."""
    from sora_cli.adapter.dense import Budget

    return Budget(**given) if given else None


def module_facts(losses: Mapping[str, Loss]) -> dict[str, dict[str, float]]:
    """Return rank, norm and relative error of each module, for JSON."""
    return {
        path: {"rank": x.after, "norm": x.squared**0.5, "relative_error": x.relative_error}
        for path, x in losses.items()
    }


def emit_losses(losses: Mapping[str, Loss], all_together: Loss, *, before: str) -> None:
    """Print a line for each module.

    Args:
        before: title of the column of what there was before the cut.
    """
    emit_table(
        None,
        ["module", before, "kept", "error in ||dW||"],
        [_row(path, loss) for path, loss in losses.items()],
        footer=_row("all", all_together),
    )


def shown_error(error: float) -> str:
    """Return a relative error for people; rounding is no percentage."""
    return f"{error:.2%}" if error >= 5e-5 else f"{error:.1e}"


@contextmanager
def told_modules(title: str) -> Iterator[Told]:
    """Show how many modules have been decomposed."""
    from tqdm import tqdm

    with tqdm(desc=title, unit=" modules", dynamic_ncols=True) as bar:
        yield lambda _: bar.update() and None


def _row(name: str, loss: Loss) -> list[str]:
    return [name, str(loss.before), str(loss.after), shown_error(loss.relative_error)]

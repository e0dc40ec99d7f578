"""docs/reference/exit-codes.md, from the table of exit codes."""

from __future__ import annotations

from sora_cli.core.exit_codes import MEANINGS
from tools.reference.markdown import code
from tools.reference.markdown import page as make_page


def page() -> str:
    """Return the page."""
    rows = [f"**{code(str(number))}**: {meaning}" for number, meaning in MEANINGS.items()]
    return make_page(
        "Exit codes",
        "The codes that a `sora` command returns to the shell, which shows them as `$?`.",
        "\n".join(f"- {row}" for row in rows),
        "A killed process (`SIGKILL`, or the system when memory runs out) cannot choose its code: "
        "shells show 137. `sora train --resume` resumes from the last complete checkpoint.",
    )

"""Print pip's settings of where packages are, and its constraints, as options of `uv pip install`.

`make` calls it where `UV` is given, before anything is installed, so it needs only pip.
"""

from __future__ import annotations

import ast
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator

NAMES = ("constraint", "extra-index-url", "find-links", "index-url")
"""Of settings that are options of the same name in uv."""
_SECTIONS = ("global", "install", ":env:")
"""Of `pip config list`; a later one wins."""


def uv_options(lines: Iterable[str]) -> Iterator[str]:
    """Yield the words of the options for what `pip config list` has printed."""
    settings = dict(line.split("=", 1) for line in lines if "=" in line)
    for name in NAMES:
        given = [settings[key] for s in _SECTIONS if (key := f"{s}.{name}") in settings]
        for one in ast.literal_eval(given[-1]).split() if given else ():
            yield from (f"--{name}", one)


if __name__ == "__main__":
    told = subprocess.check_output([sys.executable, "-m", "pip", "config", "list"], text=True)
    print(shlex.join(uv_options(told.splitlines())))  # noqa: T201

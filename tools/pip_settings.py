"""Print pip's settings of where packages are, and its constraints, as options of `uv pip install`.

`make` calls it where `UV` is given, before anything is installed, so it needs only pip.
"""

from __future__ import annotations

import ast
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator

NAMES = ("index-url", "extra-index-url", "find-links", "constraint")
"""Of settings that are options of the same name in uv."""
_SECTIONS = ("global", "install", ":env:")
"""Of `pip config list`; a later one wins."""


def uv_options(lines: Iterable[str]) -> Iterator[str]:
    """Yield the words of the options for what `pip config list` has printed."""
    settings: dict[str, tuple[int, str]] = {}
    for line in lines:
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        if name in NAMES and section in _SECTIONS:
            found = (_SECTIONS.index(section), str(ast.literal_eval(value)))
            settings[name] = max(settings.get(name, found), found, key=lambda pair: pair[0])
    for name, (_, value) in sorted(settings.items()):
        for one in value.split():
            yield from (f"--{name}", one)


if __name__ == "__main__":
    told = subprocess.check_output([sys.executable, "-m", "pip", "config", "list"], text=True)
    print(shlex.join(uv_options(told.splitlines())))  # noqa: T201

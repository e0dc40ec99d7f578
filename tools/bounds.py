"""Print pip constraints that pin every requirement of pyproject.toml to its lower bound.

`make test-oldest` calls it before anything is installed, so it needs only the standard library.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
# a name, extras if any, and the version after ">="
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?>=([^,;\s]+)")


def lower_bounds(file: Path = PYPROJECT) -> dict[str, str]:
    """Return the lower bounds of all requirements, including extras; others are left out."""
    project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    return dict(_bounds(project))


def _bounds(project: dict[str, object]) -> Iterator[tuple[str, str]]:
    extras = project["optional-dependencies"]
    assert isinstance(extras, dict)
    for group in (project["dependencies"], *extras.values()):
        for requirement in group:
            match = _REQUIREMENT.match(requirement)
            if match is not None:
                yield match[1], match[2]


if __name__ == "__main__":
    # arguments such as torch==2.13.0 replace lower bounds (TORCH=... of `make test-oldest`)
    bounds = lower_bounds() | dict(word.split("==") for word in sys.argv[1:])
    print("\n".join(f"{name}=={version}" for name, version in bounds.items()))  # noqa: T201

"""The packages that a GPU day needs, and those of them that a folder of wheels adds.

Nothing here needs a package itself, but for pip where wheels are given.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from tools.bounds import PYPROJECT

TESTS, BENCHMARKS = "pytest", "peft"
FOR_ROWS = {
    "bitsandbytes": "4-bit bases and 8-bit optimisers",
    "liger-kernel": "Liger's kernels",
    "flash-attn": "flash attention",
    "triton": "compiled blocks",
}
"""Packages without which rows of `benchmarks.gpu` are left out."""


def needed() -> list[str]:
    """Return the packages that the tool itself needs."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    names = (re.match(r"[\w.-]+", line) for line in project["dependencies"])
    return [name[0] for name in names if name]


EVERY = (*needed(), TESTS, BENCHMARKS, *FOR_ROWS)


def versions(names: Iterable[str]) -> dict[str, str | None]:
    """Return the installed packages' versions; None: not installed."""
    return {name: _version(name) for name in names}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def take(names: Iterable[str], wheels: Path, folder: Path) -> list[Path]:
    """Put packages and what they need from wheels into a folder, each by itself.

    The interpreter's own packages stay as they are: no wheel may replace one of them.

    Returns:
        The directories for `sys.path`; they are on this process's already.
    """
    places: list[Path] = []
    fixed = folder / "installed.txt"
    fixed.parent.mkdir(parents=True, exist_ok=True)
    own = {dist.metadata["Name"]: dist.version for dist in metadata.distributions()}
    fixed.write_text("".join(f"{name}=={version}\n" for name, version in own.items()))
    options = ["--no-index", "--find-links", str(wheels), "--prefix", str(folder)]
    options += ["--constraint", str(fixed), "--quiet", "--disable-pip-version-check"]
    for name in names:  # a package that is not among the wheels must not keep the others away
        command = [sys.executable, "-m", "pip", "install", *options, name]
        subprocess.run(command, check=False, capture_output=True)
        places = [path for kind in ("site", "dist") for path in folder.rglob(f"{kind}-packages")]
        sys.path.extend(str(path) for path in places if str(path) not in sys.path)
    return places

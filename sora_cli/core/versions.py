"""Comparison of installed versions with the bounds of pyproject.toml (the package's metadata).

Versions are compared by their numbers alone: a vendor's "2.6.0a0+abc" counts as 2.6.0.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from sora_cli import __version__
from sora_cli.core.environment import installed
from sora_cli.core.errors import SoraError, first_line

DISTRIBUTION = "sora-cli"
_Package = tuple[Requirement, str | None]
"""A requirement and its installed version; None: not installed."""


@cache
def requirements() -> list[Requirement]:
    """Return the requirements of the installed package; empty if it is not installed."""
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return []
    return [Requirement(line) for line in lines]


def too_old(requirement: Requirement, version: str) -> bool:
    """Return True for a version below a requirement's lower bound."""
    return any(_release(version) < at for at in _bounds(requirement, ">="))


def too_new(requirement: Requirement, version: str) -> bool:
    """Return True for a version that is equal to or above a requirement's upper bound."""
    return any(_release(version) >= at for at in _bounds(requirement, "<"))


def check_versions() -> None:
    """Raise `SoraError` if a required package is older than its lower bound.

    Call it before the packages are imported. The error names the command that installs a newer one.
    """
    needed = [(r, installed(r.name)) for r in requirements() if not _is_of_extra(r)]
    old = [(r, version) for r, version in needed if version is not None and too_old(r, version)]
    if old:
        raise _error(old)


def version_error(error: BaseException) -> SoraError | None:
    """Return the error for an exception that a package's version explains; None if none does.

    A version outside its bounds explains any exception (a package of an extra: only if it was
    imported). An import that fails inside another package is explained by that package's version.
    """
    known = requirements()
    wrong = list(_outside(known))
    if wrong:
        return _error(wrong, because=error)
    if not isinstance(error, ImportError) or not error.name:
        return None
    return _broken_import(error, known)


def _outside(known: list[Requirement]) -> Iterator[_Package]:
    for requirement in known:
        version = installed(requirement.name)
        if _is_of_extra(requirement) and requirement.name.replace("-", "_") not in sys.modules:
            continue
        if version is None or too_old(requirement, version) or too_new(requirement, version):
            yield requirement, version


def _error(wrong: Sequence[_Package], because: BaseException | None = None) -> SoraError:
    what = [
        f"{r.name} {version} is installed" if version else f"{r.name} is not installed"
        for r, version in wrong
    ]
    wanted = [shown(r) for r, _ in wrong]
    return SoraError(
        f"{', '.join(what)}; {DISTRIBUTION} {__version__} needs {', '.join(wanted)}",
        where=None if because is None else f"{type(because).__name__}: {first_line(because)}",
        hint=f"pip install {' '.join(map(repr, wanted))}",
    )


def _broken_import(error: ImportError, known: list[Requirement]) -> SoraError | None:
    """Return the error for a package that lacks a name or a submodule; None for this package."""
    name = str(error.name).partition(".")[0]
    packages = metadata.packages_distributions().get(name, [])
    if not packages or DISTRIBUTION in packages:
        return None
    package = packages[0]
    bounds = [shown(r) for r in known if canonicalize_name(r.name) == canonicalize_name(package)]
    needs = f"needs {bounds[0]}" if bounds else "does not ask for it itself"
    return SoraError(
        first_line(error),
        where=f"{package} {installed(package)} is installed; {DISTRIBUTION} {__version__} {needs}",
        hint=f"another version may have it: pip install --upgrade {DISTRIBUTION} {package}",
    )


def shown(requirement: Requirement) -> str:
    """Format a requirement with its lower bound first: "transformers>=5.4,<6"."""
    bounds = sorted(map(str, requirement.specifier), key=lambda part: not part.startswith(">"))
    return f"{requirement.name}{','.join(bounds)}"


def _is_of_extra(requirement: Requirement) -> bool:
    return "extra" in str(requirement.marker or "")


def _bounds(requirement: Requirement, operator: str) -> list[Version]:
    return [Version(part.version) for part in requirement.specifier if part.operator == operator]


def _release(version: str) -> Version:
    """Return the numbers of a version: 2.6.0 for "2.6.0a0+abc"; 0 for an invalid version."""
    try:
        return Version(Version(version).base_version)
    except InvalidVersion:
        return Version("0")

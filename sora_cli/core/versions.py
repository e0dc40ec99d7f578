"""Installed versions against the bounds in the package's metadata, which come from pyproject.toml.

Versions are compared by their numbers alone: a vendor's "2.6.0a0+abc" counts as 2.6.0.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from sora_cli import __version__
from sora_cli.core.errors import SoraError, first_line

DISTRIBUTION = "sora-cli"
_Package = tuple[Requirement, str | None]
"""A requirement, and the version that is installed; None where there is none."""


def requirements() -> list[Requirement]:
    """Return what the installed package asks for; empty where it is not installed."""
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return []
    return [Requirement(line) for line in lines]


def too_old(requirement: Requirement, version: str) -> bool:
    """Return whether a version is below a requirement's lower bound."""
    return any(_release(version) < at for at in _bounds(requirement, ">="))


def too_new(requirement: Requirement, version: str) -> bool:
    """Return whether a version is at a requirement's upper bound or above it."""
    return any(_release(version) >= at for at in _bounds(requirement, "<"))


def check_versions() -> None:
    """Check, before the packages are imported, that none is older than its lower bound.

    Raises:
        SoraError: names the version, the bound, and the command that installs a newer one.
    """
    needed = [(r, _installed(r)) for r in requirements() if not _is_of_extra(r)]
    old = [(r, version) for r, version in needed if version is not None and too_old(r, version)]
    if old:
        raise _error(old)


def blamed(error: BaseException) -> SoraError | None:
    """Return the error to tell where a package's version explains an unexpected one; or None.

    A version outside its bounds explains anything, an extra's if it was imported; an import that
    fails inside another package is explained by that package's version, whatever it is.
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
        version = _installed(requirement)
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
    """Return the error for a package that lacks a name or a part; None for this program itself."""
    name = str(error.name).partition(".")[0]
    packages = metadata.packages_distributions().get(name, [])
    if not packages or DISTRIBUTION in packages:
        return None
    package = packages[0]
    bounds = [shown(r) for r in known if canonicalize_name(r.name) == canonicalize_name(package)]
    needs = f"needs {bounds[0]}" if bounds else "does not ask for it itself"
    return SoraError(
        first_line(error),
        where=f"{package} {metadata.version(package)} is installed; "
        f"{DISTRIBUTION} {__version__} {needs}",
        hint=f"another version may have it: pip install --upgrade {DISTRIBUTION} {package}",
    )


def shown(requirement: Requirement) -> str:
    """Return a requirement with its lower bound first, such as "transformers>=5.4,<6"."""
    bounds = sorted(map(str, requirement.specifier), key=lambda part: not part.startswith(">"))
    return f"{requirement.name}{','.join(bounds)}"


def _installed(requirement: Requirement) -> str | None:
    try:
        return metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return None


def _is_of_extra(requirement: Requirement) -> bool:
    return "extra" in str(requirement.marker or "")


def _bounds(requirement: Requirement, operator: str) -> list[Version]:
    return [Version(part.version) for part in requirement.specifier if part.operator == operator]


def _release(version: str) -> Version:
    """Return a version by its numbers alone: 2.6.0 for "2.6.0a0+abc"; 0 for none that is known."""
    try:
        return Version(Version(version).base_version)
    except InvalidVersion:
        return Version("0")

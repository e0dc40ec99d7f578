"""`model.attention: ORG/NAME@COMMIT`: attention by a kernel from the Hub, which is compiled code.

The package kernels fetches it, and transformers runs it (its `hub_kernels.py`). It is run if the
recipe says that it is trusted, and at one commit only, so that nobody can put another in its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from sora_cli.core.errors import SoraError, first_line
from sora_cli.model.transformers_internals import kernel_versions, takes_any_kernel
from sora_cli.recipe.recipe import ModelBlock

KEY = "model.attention"
TRUST = "model.trust_kernel"
_OFF = f"{KEY}=sdpa"


def is_hub_kernel(name: str | None) -> bool:
    """Tell whether an implementation of attention is a kernel of the Hub."""
    return name is not None and "/" in name


def check_trusted(block: ModelBlock) -> None:
    """Check what can be known of a kernel before anything heavy loads.

    Raises:
        SoraError: it is not trusted, or the package that fetches it is not installed.
    """
    if not block.trust_kernel:
        raise SoraError(
            f"{KEY}={block.attention} is compiled code from the Hub, which is not run",
            hint=f"if you trust its authors: {TRUST}=true; else {_OFF}",
            key=KEY,
        )
    if find_spec("kernels") is None:
        raise SoraError(
            f"{KEY}={block.attention} needs the package kernels, which is not installed",
            hint=f"pip install kernels, or {_OFF}",
            key=KEY,
        )


def check_usable(block: ModelBlock) -> None:
    """Check that transformers, which is imported, works with the installed package kernels.

    Raises:
        SoraError: it wants another version.
    """
    from transformers import __version__
    from transformers.utils import is_kernels_available

    if is_kernels_available():
        return
    raise SoraError(
        f"{KEY}={block.attention}: transformers {__version__} does not work with kernels "
        f"{version('kernels')}",
        hint=f"pip install 'kernels{kernel_versions()}', or {_OFF}",
        key=KEY,
    )


def kernel_options(block: ModelBlock) -> dict[str, Any]:
    """Return the option of `from_pretrained` that lets kernels of any author in."""
    return {"allow_all_kernels": True} if block.trust_kernel and takes_any_kernel() else {}


@contextmanager
def fetching(block: ModelBlock) -> Iterator[None]:
    """Say clearly that a kernel cannot be fetched, or not be run by this machine or model.

    Raises:
        SoraError: so it is.
    """
    try:
        yield
    except (ValueError, ImportError, OSError, RuntimeError) as error:
        name = block.attention or ""
        if not is_hub_kernel(name) or name.partition("@")[0] not in str(error):
            raise
        raise SoraError(
            f"the kernel {name} cannot be used: {first_line(error)}", hint=_OFF, key=KEY
        ) from error

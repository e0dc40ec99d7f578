"""`model.attention: ORG/NAME@COMMIT`: attention by a kernel from the Hub, which is compiled code.

The package kernels fetches it, and transformers runs it (its `hub_kernels.py`). It runs only if the
recipe declares trust in it, and only at one commit, so that nobody can replace it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from sora_cli.core.errors import SoraError, first_line
from sora_cli.model.transformers_internals import kernel_versions
from sora_cli.recipe.recipe import ModelBlock

KEY = "model.attention"
TRUST = "model.trust_kernel"
_OFF = f"{KEY}=sdpa"


def is_hub_kernel(name: str | None) -> bool:
    """Return True if an attention implementation is a kernel from the Hub."""
    return name is not None and "/" in name


def check_trusted(block: ModelBlock) -> None:
    """Check that a kernel is trusted and its package installed, before torch is imported."""
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
    """Check that the imported transformers supports the installed package kernels."""
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
    """Return the argument of `from_pretrained` that allows kernels by any author."""
    return {"allow_all_kernels": True} if block.trust_kernel else {}


@contextmanager
def fetching(block: ModelBlock) -> Iterator[None]:
    """Report clearly that a kernel cannot be fetched, or cannot run on this machine or model."""
    try:
        yield
    except (ValueError, ImportError, OSError, RuntimeError) as error:
        name = block.attention or ""
        if not is_hub_kernel(name) or name.partition("@")[0] not in str(error):
            raise
        raise SoraError(
            f"the kernel {name} cannot be used: {first_line(error)}", hint=_OFF, key=KEY
        ) from error

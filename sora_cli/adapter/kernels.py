"""Find the kernels of convolutions that an adapter does not store, from the base model's header."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sora_cli.adapter.metadata import BaseReference
from sora_cli.adapter.parts.part import Part
from sora_cli.adapter.parts.products import StoredProduct
from sora_cli.core.errors import SoraError
from sora_cli.model.fingerprint import stored_tensors
from sora_cli.model.references import local_checkpoint


def with_kernels(parts: Sequence[Part], base: BaseReference) -> Sequence[Part]:
    """Return the parts, with kernels taken from the base model if needed.

    PEFT's LoHa and LoKr write a convolution's channels and kernel as one dimension by default. As a
    plain LoRA such a module needs the kernel of its own. Nothing is added if the base is not here.
    """
    if not any(isinstance(part, StoredProduct) for part in parts):
        return parts
    shapes = _shapes(base)
    return [
        part.with_kernel(_shape(f"{part.path}.weight", shapes))
        if isinstance(part, StoredProduct)
        else part
        for part in parts
    ]


def _shape(name: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Return the shape of a tensor; a checkpoint may lack the backbone's own name, or have more."""
    same = (s for n, s in shapes.items() if name.endswith(f".{n}") or n.endswith(f".{name}"))
    return shapes.get(name) or next(same, ())


def _shapes(base: BaseReference) -> dict[str, tuple[int, ...]]:
    folder = local_checkpoint(base.resolved or base.path, base.revision)
    if folder is None:
        return {}
    try:
        return {tensor.name: tensor.shape for tensor in stored_tensors(folder)}
    except (SoraError, OSError):
        return {}

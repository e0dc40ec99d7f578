"""What an adapter leaves to its base model: copies of weights, and kernels of convolutions.

`save_pretrained` stores the weights of a targeted `embed_tokens` or `lm_head`, and of a resized
embedding (`save_embedding_layers` in peft/utils/save_and_load.py). `from_pretrained` loads the
stored weights over the base model's own, even if they differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from sora_cli.adapter.metadata import BaseReference
from sora_cli.adapter.parts.full import BASE, Full, full
from sora_cli.adapter.parts.part import Part
from sora_cli.adapter.parts.products import StoredProduct
from sora_cli.core.errors import SoraError
from sora_cli.model.fingerprint import StoredTensor, stored_tensors
from sora_cli.model.references import local_checkpoint, resolve_model_path
from sora_cli.model.tensors import same_numbers


def without_copies(
    parts: Sequence[Part], base: BaseReference, on: str | None
) -> tuple[list[Part], tuple[str, ...]]:
    """Leave out the stored weights that equal the base model's own, number by number.

    Args:
        on: reference of the base model; None: the base model that the adapter names.

    Returns:
        The parts that are left, and a note on each stored base weight.
    """
    weights = [part for part in full(parts).values() if part.role == BASE]
    stored = _base_tensors(base, on) if weights else []
    own = {part.path for part in weights if _is_own(part, stored)}
    left = [part for part in parts if not (isinstance(part, Full) and part.path in own)]
    names = [part.path for part in weights]
    return left, tuple(_notes(names, own, known=bool(stored)))


def _is_own(part: Full, stored: Sequence[StoredTensor]) -> bool:
    assert part.entry is not None
    return any(same_numbers(part.entry, tensor) for tensor in _candidates(part.path, stored))


def with_kernels(parts: Sequence[Part], base: BaseReference) -> Sequence[Part]:
    """Return the parts, with kernels of convolutions taken from the base model if needed.

    PEFT's LoHa and LoKr write a convolution's channels and kernel as one dimension by default. As a
    plain LoRA such a module needs the kernel of its own. Nothing is added if the base is not here.
    """
    if not any(isinstance(part, StoredProduct) for part in parts):
        return parts
    stored = _base_tensors(base, None)

    def kernelled(part: Part) -> Part:
        if not isinstance(part, StoredProduct):
            return part
        name = f"{part.path}.weight"
        return part.with_kernel(next((t.shape for t in _alike(name, stored)), ()))

    return [kernelled(part) for part in parts]


def _notes(names: Iterable[str], own: set[str], *, known: bool) -> Iterator[str]:
    for name in names:
        if name in own:
            yield f"'{name}' is stored in full but equals the base model's: it is left out"
        else:
            why = "differs from" if known else "may differ from"
            yield (
                f"'{name}' is stored in full and {why} the base model's: it takes the place of "
                "that, as in PEFT"
            )


def _base_tensors(base: BaseReference, on: str | None) -> list[StoredTensor]:
    """Return the base model's tensors; none if it is not here or in another format.

    A GGUF file has names and numbers of its own: for such a base, the tensors of the model that the
    adapter names are taken.
    """
    # the model that the user named comes first; it may be a GGUF file, which stored_tensors skips
    for name, revision in ((on, None), (base.resolved or base.path, base.revision)):
        try:
            place = local_checkpoint(resolve_model_path(name), revision) if name else None
            tensors = [] if place is None else stored_tensors(Path(place))
        except (SoraError, OSError):
            tensors = []
        if tensors:
            return tensors
    return []


def _candidates(name: str, stored: Sequence[StoredTensor]) -> Sequence[StoredTensor]:
    """Return the tensors of this name; all if the name is not found.

    A name may be missing since its weight is tied to another one: then any tensor may be its own.
    """
    return _alike(name, stored) or stored


def _alike(name: str, stored: Sequence[StoredTensor]) -> list[StoredTensor]:
    """Return the tensors of this name, with or without a prefix: the name itself first."""
    found = [t for t in stored if f".{name}".endswith(f".{t.name}") or t.name.endswith(f".{name}")]
    return sorted(found, key=lambda tensor: tensor.name != name)

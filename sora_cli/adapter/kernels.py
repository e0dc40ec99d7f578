"""Find the kernels of convolutions that an adapter does not store, from the base model's header."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sora_cli.adapter.peft import lycoris
from sora_cli.adapter.stored import Form
from sora_cli.core.errors import SoraError
from sora_cli.model.fingerprint import stored_tensors
from sora_cli.model.references import local_checkpoint

if TYPE_CHECKING:
    from sora_cli.adapter.reading import AdapterFile


def forms_in(file: AdapterFile) -> Mapping[str, Form]:
    """Return the form of each module, with kernels taken from the base model if needed.

    PEFT's LoHa and LoKr write a convolution's channels and kernel as one dimension by default. As a
    plain LoRA such a module needs the kernel of its own. Nothing is added if the base is not here.
    """
    if file.config.peft_type not in lycoris.PARTS:
        return file.forms
    forms, shapes = dict(file.forms), _shapes(file)
    for path in file.paths:
        name = f"{path}.weight"
        # a checkpoint may lack the backbone's own name in front, or have one more
        same = (s for n, s in shapes.items() if name.endswith(f".{n}") or n.endswith(f".{name}"))
        shape = shapes.get(name) or next(same, ())
        if path not in forms and len(shape) > 2:
            forms[path] = Form(kernel=shape[2:])
    return forms


def _shapes(file: AdapterFile) -> dict[str, tuple[int, ...]]:
    base = file.base
    folder = local_checkpoint(base.resolved or base.path, base.revision)
    if folder is None:
        return {}
    try:
        return {tensor.name: tensor.shape for tensor in stored_tensors(folder)}
    except (SoraError, OSError):
        return {}

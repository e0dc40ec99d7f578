"""Loading with transformers: arguments of `from_pretrained`, and clear errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sora_cli.core.errors import SoraError, first_line
from sora_cli.core.hub import ask_once, has_copies, offline_error, quiet_loading
from sora_cli.core.out_of_memory import ran_out
from sora_cli.gguf.package import parsed_once
from sora_cli.model.files import MODEL_CONFIG, foreign_code, holds_pickles_only, pickled

LOCAL_COPY = "give a local copy: --base DIR"


@contextmanager
def loading(
    reference: str, resolved: str = "", *, purpose: str = "", local_copy: str | None = None
) -> Iterator[None]:
    """Silence transformers inside the block, and turn its errors into messages with a next step.

    Without a copy of the model on this disk, the Hub is first asked whether it answers.

    Args:
        reference: the model as the user named it.
        resolved: the path or Hub id behind it, if different.
        purpose: end of "model 'x' cannot be loaded", such as " for causal-lm".
        local_copy: hint about naming a copy on this disk; None: the model is named in a recipe.
    """
    place = Path(resolved or reference)
    try:
        with quiet_loading(), parsed_once(resolved or reference):
            if not place.exists() and not has_copies(str(place)):
                ask_once(str(place), MODEL_CONFIG)
            yield
    except Exception as error:  # a damaged file may raise anything
        if isinstance(error, SoraError) or ran_out(error):
            raise
        if holds_pickles_only(place) or (not place.exists() and "use_safetensors" in str(error)):
            raise pickled(reference) from error
        if not place.exists() and isinstance(error, OSError):
            raise offline_error("model", reference, error, hint=local_copy) from error
        if local_copy is None and "trust_remote_code" in str(error):
            raise foreign_code(reference) from error
        raise SoraError(
            f"model '{reference}' cannot be loaded{purpose}: {first_line(error)}",
            hint="check that it is complete, as save_pretrained() writes it, and a model for this "
            "task",
            key="model.path",
        ) from error


def split_gguf(resolved: str) -> tuple[str, dict[str, str]]:
    """Return the source for `from_pretrained` (a directory for a GGUF file), and GGUF options."""
    path = Path(resolved)
    if path.suffix.lower() != ".gguf":
        return resolved, {}
    return str(path.parent), {"gguf_file": path.name}


def weights_options(gguf: dict[str, str]) -> dict[str, Any]:
    """Return the options for loading weights: from safetensors, never from a pickle.

    The weights in a GGUF file are unpacked, as its blocks cannot be trained on.
    """
    import transformers

    if not gguf:
        return {"use_safetensors": True}
    # older versions always unpack
    # until: transformers 5.17
    kind = getattr(transformers, "GgufConfig", None)
    return {} if kind is None else {"quantization_config": kind(dequantize=True)}

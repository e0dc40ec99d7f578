"""Find adapter files of other programs; nothing heavy is imported here."""

from __future__ import annotations

from pathlib import Path

from sora_cli.core.errors import SoraError
from sora_cli.core.shell import quote
from sora_cli.model.files import ADAPTER_CONFIG, ADAPTER_PICKLE, ADAPTER_WEIGHTS

MLX_WEIGHTS = "adapters.safetensors"
"""mlx-lm's file (mlx_lm/tuner/trainer.py), beside an adapter_config.json of its own."""
DIFFUSERS_WEIGHTS = "pytorch_lora_weights.safetensors"
"""diffusers' file (diffusers/loaders/lora_base.py), alone in its directory."""
LITGPT_PICKLE = "lit_model.pth.lora"
"""litgpt's file (litgpt/finetune/lora.py)."""

DIFFUSERS_CLASS = "_class_name"
"""The key in the config.json of each model of diffusers."""

_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".lora")


def foreign_file(place: Path) -> Path | None:
    """Return the safetensors file of another program at a path; None if there is none.

    In a directory, the file name that each program uses decides; nothing is read. A pickle is
    refused.
    """
    if place.is_dir():
        return _in_directory(place)
    if not place.is_file():
        return None
    if place.suffix == ".safetensors":
        beside = (place.parent / ADAPTER_CONFIG).is_file()
        return None if place.name == ADAPTER_WEIGHTS and beside else place
    if place.suffix in _PICKLES and place.name != ADAPTER_PICKLE:
        raise _pickled(place)
    return None


def refuse_foreign(place: Path) -> None:
    """Refuse another program's file: most commands accept PEFT's files only."""
    if foreign_file(place) is not None:
        raise SoraError(
            f"{place} is not a PEFT adapter, but another program's file",
            where="sora inspect shows it, and sora export makes a PEFT adapter of it",
            hint=f"sora export {quote(str(place))} -o DIR --base MODEL",
        )


def _in_directory(folder: Path) -> Path | None:
    if (folder / ADAPTER_WEIGHTS).is_file():
        return None
    if (folder / ADAPTER_CONFIG).is_file():
        file = folder / MLX_WEIGHTS
        return file if file.is_file() else None
    if (folder / DIFFUSERS_WEIGHTS).is_file():
        return folder / DIFFUSERS_WEIGHTS
    if (folder / LITGPT_PICKLE).is_file():
        raise _pickled(folder / LITGPT_PICKLE)
    return None


def _pickled(file: Path) -> SoraError:
    if file.name == LITGPT_PICKLE:
        return SoraError(
            f"{file} is litgpt's LoRA, a pickle, which can run any code when it is read",
            hint="if you trust it: litgpt merge_lora, then litgpt convert_from_litgpt, gives a "
            "model without an adapter",
        )
    return SoraError(
        f"{file} is a pickle, which can run any code when it is read",
        hint="if you trust it, write its tensors with safetensors.torch.save_file; torchtune's "
        "Hugging Face checkpointer writes PEFT's files itself",
    )

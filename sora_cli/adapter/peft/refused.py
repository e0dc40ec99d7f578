"""Linear layers that PEFT refuses to adapt, or loses the factors of, by kind of model.

Two rules of PEFT 0.21 with transformers 5:

- `peft.tuners.tuners_utils` refuses some layers of state-space models, whose kernels use the
  weights directly (`_check_lora_target_modules_mamba`).
- `peft.utils.transformers_weight_conversion` goes by the last part of a name. Experts had layers of
  their own before transformers 5 fused them; every layer with such a name is taken for a part of
  the fused parameter (`_convert_peft_config_moe`). The factors of shared experts and dense layers
  are therefore ignored, with a warning.

The table is needed if PEFT is not installed, and for training, which must not depend on PEFT.
`refused_today` asks the installed PEFT, unless its version is the one that the table was compared
with and the table has no objection: importing PEFT takes seconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from sora_cli.core.environment import installed

COMPARED = {"peft": "0.21.", "transformers": "5.24."}
"""The first digits of the versions that a test has compared the table with."""

_STATE_SPACE = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")
# PEFT loses what has these layers' names and is no expert
# until: peft > 0.21 (huggingface/peft#3711)
_FUSED_AS_IN_MIXTRAL = ("minimax", "minimax_m2", "mixtral")
_FUSED_AS_IN_QWEN2_MOE = (
    "afmoe", "beam", "cohere2_moe", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots1",
    "ernie4_5_moe", "exaone_moe", "flex_olmo", "glm4_moe", "glm4_moe_lite", "glm4v_moe",
    "glm_moe_dsa", "hunyuan_v1_moe", "longcat_flash", "mellum", "olmoe", "qwen3_moe", "qwen3_next",
    "qwen3_omni_moe", "qwen3_omni_moe_text", "qwen3_omni_moe_thinker", "sarvam_mla", "solar_open",
)  # fmt: skip
REFUSED = {
    **dict.fromkeys(_STATE_SPACE, ("conv1d", "out_proj")),
    **dict.fromkeys(_FUSED_AS_IN_MIXTRAL, ("w1", "w2", "w3")),
    **dict.fromkeys(_FUSED_AS_IN_QWEN2_MOE, ("gate_proj", "up_proj", "down_proj")),
}
"""Model type -> last parts of paths."""
_AN_EXPERTS = re.compile(r"\.experts\.\d+\.")
"""Part of the path of one expert's layer, as before transformers 5: PEFT converts these rightly."""


def refused(model_type: str, paths: Iterable[str]) -> dict[str, str]:
    """Return {path: the end of a sentence "it is ..." on its fate in PEFT}, by the table."""
    names = REFUSED.get(model_type, ())
    why = (
        f"refused by PEFT in {model_type} models"
        if model_type in _STATE_SPACE
        else f"taken by PEFT for a part of {model_type}'s fused experts and lost"
    )
    return {
        path: why
        for path in paths
        if path.rpartition(".")[2] in names and _is_shared_or_dense(path)
    }


def refused_today(model_type: str, paths: Iterable[str]) -> dict[str, str]:
    """Return {path: its fate}, by the installed PEFT if there is one, else by the table."""
    paths = tuple(paths)
    known = refused(model_type, paths)
    found = [(installed(name), start) for name, start in COMPARED.items()]
    if not all(version for version, _ in found):
        return known
    if not known and all(str(version).startswith(start) for version, start in found):
        return known
    by_peft = refused_by_peft(model_type, paths)
    return known if by_peft is None else by_peft


def refused_by_peft(model_type: str, paths: Iterable[str]) -> dict[str, str] | None:
    """Return {path: its fate} by trying the installed PEFT; None if it is not installed.

    PEFT is given a model of this type that has only layers with these last names.
    """
    try:
        import peft
    except ImportError:
        return None
    last = {path: path.rpartition(".")[2] for path in paths if _is_shared_or_dense(path)}
    fates = _fates(model_type, sorted(set(last.values())))
    where = f"by PEFT {peft.__version__} in {model_type} models"
    return {path: f"{fates[name]} {where}" for path, name in last.items() if name in fates}


def _fates(model_type: str, names: list[str]) -> dict[str, str]:
    """Return the names of layers that get no adapter, each with "refused" or "lost"."""
    try:
        return dict.fromkeys(_lost(model_type, names), "lost")
    except (ValueError, KeyError):  # PEFT refuses one of them, or torch takes no such name
        if len(names) == 1:
            return {names[0]: "refused"}
    fates: dict[str, str] = {}
    for name in names:
        fates |= _fates(model_type, [name])
    return fates


def _lost(model_type: str, names: list[str]) -> list[str]:
    import warnings
    from types import SimpleNamespace

    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer
    from torch import nn

    model = nn.Module()
    config = SimpleNamespace(model_type=model_type)
    # PEFT 0.18 asks for it
    # until: peft 0.19
    config.to_dict = lambda: {"model_type": model_type}
    model.config = config  # type: ignore[assignment]
    model.layer = nn.Module()
    targets = [*names, "of no rule"]  # PEFT fails where it is left without a target
    for name in targets:
        model.layer.add_module(name, nn.Linear(1, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on fused experts, which this model has not
        inject_adapter_in_model(LoraConfig(r=1, target_modules=targets), model)
    return [n for n in names if not isinstance(model.layer.get_submodule(n), BaseTunerLayer)]


def _is_shared_or_dense(path: str) -> bool:
    return _AN_EXPERTS.search(path) is None

"""How a base model's files say that a text becomes a vector, as sentence-transformers reads them.

`modules.json` lists what follows the model: pooling of the tokens' vectors, dense layers, unit
length. `config_sentence_transformers.json` holds prompts for queries and documents. Modules that
this tool cannot compute are refused; none of their own code is run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from sora_cli.core.errors import SoraError

_MODULES, _SETTINGS = "modules.json", "config_sentence_transformers.json"
_LENGTH = "sentence_bert_config.json"
_WEIGHTS = "model.safetensors"
_POOLED = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
"""sentence-transformers' names of poolings; before version 5.5 each was a key of its own."""
_FORMER = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_ACTIVATIONS = {name: getattr(nn, name) for name in ("GELU", "Identity", "ReLU", "SiLU", "Tanh")}
_OF_DOCUMENTS = ("document", "passage", "corpus")  # names of prompts, as `encode_document` tries


@dataclass
class Dense:
    """A dense layer after the pooling; frozen.

    Attributes:
        weight, bias: (out, in) and (out,), float32.
        function: its activation.
    """

    weight: Tensor
    bias: Tensor | None
    function: nn.Module
    _there: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor | None]] = field(
        default_factory=dict
    )

    def __call__(self, vectors: Tensor) -> Tensor:
        """Return (n, out) of (n, in), on the vectors' own device."""
        place = vectors.device, vectors.dtype
        known = self._there.get(place)
        if known is None:
            known = self.weight.to(vectors), None if self.bias is None else self.bias.to(vectors)
            if type(known[0]) is Tensor:  # not a tensor without data, of a forecast of memory
                self._there[place] = known
        made: Tensor = self.function(linear(vectors, *known))
        return made


@dataclass(frozen=True)
class VectorForm:
    """The way from the vectors of a text's tokens to the vector of the text.

    Attributes:
        pooling: mean, cls or last.
        layers: dense layers; None stands for a division by the length.
        query_prompt, document_prompt: texts before queries and documents.
        max_length: tokens at which sentence-transformers cuts a text; None: not said.
        listed: the base model has a list of modules.
    """

    pooling: str = "mean"
    layers: Sequence[Dense | None] = (None,)
    query_prompt: str = ""
    document_prompt: str = ""
    max_length: int | None = None
    listed: bool = False

    def __call__(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return the vectors of texts, (n, d), in 32 bits at least.

        Args:
            tokens: (n, tokens, hidden), padded on the right.
            mask: (n, tokens), 1 for a token and 0 for padding.
        """
        exact = torch.promote_types(tokens.dtype, torch.float32)
        with torch.autocast(tokens.device.type, enabled=False):
            vectors = self._pooled(tokens, mask, exact).to(exact)
            for layer in self.layers:
                vectors = normalize(vectors, dim=-1) if layer is None else layer(vectors)
        return vectors

    def _pooled(self, tokens: Tensor, mask: Tensor, exact: torch.dtype) -> Tensor:
        if self.pooling == "cls":
            return tokens[:, 0]
        if self.pooling == "last":
            last = (mask.sum(dim=1) - 1).clamp(min=0)
            return tokens[torch.arange(len(tokens), device=tokens.device), last]
        weights = mask.to(exact)[..., None]
        return (tokens.to(exact) * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)


def vector_form(source: str, revision: str | None = None, pooling: str = "auto") -> VectorForm:
    """Read a base model's form; without a list of modules: the mean of unit length.

    Args:
        source: a directory or Hub id; "": there are no files.
        revision: commit on the Hub.
        pooling: as in the recipe; anything but auto is for a base model without a list.
    """
    modules = _read(source, _MODULES, revision)
    prompts = _prompts(_read(source, _SETTINGS, revision) or {})
    length = (_read(source, _LENGTH, revision) or {}).get("max_seq_length")
    made, layers = None, list[Dense | None]()
    for module in modules or ():
        kind, folder = str(module.get("type")).rpartition(".")[2], module.get("path")
        if kind == "Pooling":
            made = _pooling(_read(source, f"{folder}/config.json", revision) or {}, source)
        elif kind in ("Dense", "Normalize"):
            layers.append(_dense(source, folder, revision) if kind == "Dense" else None)
        elif kind != "Transformer":
            raise _refused(source, f"a module '{kind}'")
    if made is None and modules:
        raise _refused(source, "no pooling")
    if made is not None and pooling not in ("auto", made):
        raise SoraError(
            f"task.pooling is {pooling}, but the base model's {_MODULES} says {made}",
            hint="task.pooling=auto",
            key="task.pooling",
        )
    made = made or ("mean" if pooling == "auto" else pooling)
    after = tuple(layers) if modules else (None,)
    return VectorForm(made, after, *prompts, max_length=length, listed=bool(modules))


def lists_modules(source: str, revision: str | None = None) -> bool:
    """Return True if a model has sentence-transformers' list of modules; nothing else is read."""
    return bool(_read(source, _MODULES, revision))


def _prompts(settings: Mapping[str, Any]) -> tuple[str, str]:
    """Return the prompts that `encode_query` and `encode_document` of this model would take."""
    known: Mapping[str, str | None] = settings.get("prompts") or {}
    usual = known.get(settings.get("default_prompt_name") or "")
    document = next((known[name] for name in _OF_DOCUMENTS if known.get(name) is not None), usual)
    query = known.get("query")
    return (usual if query is None else query) or "", document or ""


def _pooling(config: Mapping[str, Any], source: str) -> str:
    given = config.get("pooling_mode")
    modes = [given] if isinstance(given, str) else list(given or ())
    modes = modes or [name for key, name in _FORMER.items() if config.get(key)] or ["mean"]
    if not config.get("include_prompt", True):
        raise _refused(source, "a pooling without the prompt's tokens")
    if len(modes) > 1 or modes[0] not in _POOLED:
        raise _refused(source, f"the pooling {' + '.join(modes)}")
    return _POOLED[modes[0]]


def _dense(source: str, folder: str, revision: str | None) -> Dense:
    config = _read(source, f"{folder}/config.json", revision) or {}
    function = str(config.get("activation_function", "torch.nn.Tanh")).rpartition(".")[2]
    if function not in _ACTIVATIONS or config.get("use_residual"):
        raise _refused(source, f"a dense layer with {function}")
    file = _file(source, f"{folder}/{_WEIGHTS}", revision)
    if file is None:
        raise SoraError(
            f"the dense layer of '{source}' has no {folder}/{_WEIGHTS}",
            hint="save the model anew with sentence-transformers: model.save_pretrained(DIR)",
            key="model.path",
        )
    weights = {name: tensor.float() for name, tensor in load_file(file).items()}
    return Dense(weights["linear.weight"], weights.get("linear.bias"), _ACTIVATIONS[function]())


def _refused(source: str, what: str) -> SoraError:
    return SoraError(
        f"'{source}' makes its vectors with {what}, which is not supported",
        where=f"supported: Transformer, Pooling ({', '.join(_POOLED)}), Dense and Normalize",
        hint="name another base model: model.path=MODEL",
        key="model.path",
    )


def _read(source: str, name: str, revision: str | None) -> Any:
    """Return the content of a JSON file of the model; None if it has no such file."""
    file = _file(source, name, revision)
    if file is None:
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SoraError(f"{file} is no JSON", key="model.path") from error


def _file(source: str, name: str, revision: str | None) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    folder = Path(source)
    if not source or folder.is_dir():
        return folder / name if source and (folder / name).is_file() else None
    try:
        return Path(hf_hub_download(source, name, revision=revision))
    except (EntryNotFoundError, HFValidationError):  # also a file that no copy on this disk has
        return None

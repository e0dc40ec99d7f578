"""Folding an adapter into its base model: W + B A for each adapted layer, head and labels set.

The whole model is loaded; every weight is added to in float32 and cast back once. The merged
model's config.json lists the adapters folded into it, under `sora_merged`, so that none goes in
twice. The same inputs give the same files to the last byte.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from methods.factors import LowRankFactors
from sora_cli.adapter import Adapter
from sora_cli.atomic import check_replaceable, new_directory
from sora_cli.errors import SoraError
from sora_cli.fingerprint import fingerprint, read_header, weight_files
from sora_cli.loading import linear_of, load_head, names_by_parameter
from sora_cli.model import lacks_tokenizer, quiet_loading
from sora_cli.references import local_checkpoint, resolve_model_path

MODEL_CONFIG = "config.json"
MERGED_KEY = "sora_merged"
"""In config.json: a list of {"adapter": digest, "method": name or null}, in the order of merging.
"""

_AUTO_CLASSES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
}
_OUTPUT_LAYERS = ("classifier.weight", "score.weight", "out_proj.weight")


@dataclass(frozen=True)
class Merged:
    """What a merge did."""

    base: str
    """The resolved base model."""
    modules: int
    """Layers that were changed."""
    dtype: str
    """Of the merged weights."""
    base_checked: bool
    """Whether the base was known to be the one the adapter was trained on."""
    tokenizer: bool
    """Whether there was one to save."""


def merge_adapter(
    adapter: Adapter, output: Path, *, base: str | None = None, force: bool = False
) -> Merged:
    """Write the merged model and its tokenizer, atomically.

    Args:
        base: reference of the base model; None for the one the adapter names.
        force: replace a model directory at `output`, and merge into a base that is not, or not in
            full, the one the adapter was trained on. Never into one that has this adapter already.

    Raises:
        SoraError: nothing sound can be written; the message says why.
    """
    check_replaceable(output, force=force, markers=(MODEL_CONFIG,))
    source = resolve_model_path(base or _recorded_base(adapter))
    revision = adapter.base.revision if base is None else None
    _check_kind(source)
    _check_apart(output, source)
    config = _load_config(adapter, source, revision)
    folded = [*_folded(config), {"adapter": adapter_digest(adapter), "method": adapter.meta.method}]
    _check_not_folded(folded, source)
    checked = _check_fingerprint(adapter, source, revision, force=force)
    with torch.no_grad():
        model = _load_model(adapter, config, source, revision, force=force)
        add_updates(model, adapter.layers)
        load_head(model, adapter.head)
    set_labels(model.config, adapter)
    setattr(model.config, MERGED_KEY, folded)
    tokenizer = _load_tokenizer(source, revision)
    _save(model, tokenizer, output, force=force)
    return Merged(
        base=source,
        modules=len(adapter.layers),
        dtype=str(model.dtype).removeprefix("torch."),
        base_checked=checked,
        tokenizer=tokenizer is not None,
    )


def add_updates(model: nn.Module, layers: Mapping[str, LowRankFactors]) -> None:
    """Add each layer's B A to its weight, in place: float32, (B A) first, cast once.

    Raises:
        SoraError: no such layer, another shape, tied or quantised weights, a result that is not
            finite. The model may then be half merged.
    """
    names = names_by_parameter(model)
    for path, factors in layers.items():
        module = linear_of(model, path, factors)
        weight = module.weight
        assert isinstance(weight, Tensor)
        tied = [name for name in names[id(weight)] if name != f"{path}.weight"]
        if tied:
            raise SoraError(
                f"'{path}' shares its weight with '{tied[0]}': merging would change both",
                hint="use the adapter unmerged, or untie the base model first",
            )
        update = factors.B.float() @ factors.A.float()  # (out, in)
        if not isinstance(module, nn.Linear):
            update = update.T  # Conv1D stores (in, out)
        merged = (weight.float() + update.to(weight.device)).to(weight.dtype)
        if not bool(merged.isfinite().all()):
            raise SoraError(f"'{path}' would hold NaN or infinity as {weight.dtype}")
        weight.copy_(merged)


def adapter_digest(adapter: Adapter) -> str:
    """SHA-256 of what merging adds: the factors without zero terms, in float32, and the head.

    Names, dtypes, shapes and bytes of all tensors count; nothing else of the adapter does.
    """
    tensors = dict(adapter.head)
    for path, factors in adapter.layers.items():
        live = LowRankFactors(factors.A.float(), factors.B.float()).drop_zeros()
        if live.rank:
            tensors[f"{path}.A"], tensors[f"{path}.B"] = live.A, live.B
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def set_labels(config: Any, adapter: Adapter) -> None:
    """Label names and kind of problem, as far as the adapter knows them."""
    labels = adapter.meta.labels
    if labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: i for i, label in enumerate(labels)}
    if adapter.meta.problem_type:
        config.problem_type = adapter.meta.problem_type


def _recorded_base(adapter: Adapter) -> str:
    recorded = adapter.base
    if recorded.resolved and Path(recorded.resolved).exists():
        return recorded.resolved
    if not recorded.path:
        raise SoraError("the adapter does not say which base model it is for", hint="add --base")
    return recorded.path


def _check_kind(source: str) -> None:
    if source.lower().endswith(".gguf"):
        raise SoraError(
            f"{source} is a GGUF file, whose weights can not be added to",
            hint="name the model it was made from: --base DIR --force",
        )


def _check_apart(output: Path, source: str) -> None:
    if Path(source).exists() and Path(source).resolve().is_relative_to(output.resolve()):
        raise SoraError(f"{output} is, or holds, the base model: choose another place")


def _check_fingerprint(adapter: Adapter, source: str, revision: str | None, *, force: bool) -> bool:
    """Whether the base is known to be the right one; an error if it is known not to be."""
    checkpoint = local_checkpoint(source, revision)
    if adapter.base.fingerprint is None or checkpoint is None:
        return False
    if fingerprint(checkpoint) == adapter.base.fingerprint:
        return True
    if force:
        return False
    raise SoraError(
        f"{source} holds other weights than the base the adapter was trained on",
        where=f"that was: {adapter.base.path}",
        hint="give the right one with --base, or merge all the same with --force",
    )


def _folded(config: Any) -> list[dict[str, Any]]:
    """What was merged into a model before, by its configuration."""
    entries = getattr(config, MERGED_KEY, None)
    return [e for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []


def _check_not_folded(folded: list[dict[str, Any]], source: str) -> None:
    """Refuse the last of these adapters where the model holds it already: dW would count twice."""
    *before, new = folded
    if any(entry.get("adapter") == new["adapter"] for entry in before):
        raise SoraError(
            f"this adapter is already folded into {source}: it would count twice",
            where=f"{MODEL_CONFIG} there lists it under {MERGED_KEY}",
            hint="give the original base model with --base",
        )


@contextmanager
def _loading(source: str) -> Iterator[None]:
    """Transformers kept quiet, and its errors turned into ours."""
    try:
        with quiet_loading():
            yield
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise SoraError(
            f"the base model {source} can not be loaded: {first}",
            hint="give a local copy with --base",
        ) from error


def _load_config(adapter: Adapter, source: str, revision: str | None) -> Any:
    """The base model's configuration, for as many labels as the adapter has."""
    import transformers

    with _loading(source):
        config = transformers.AutoConfig.from_pretrained(source, **_options(source, revision))
    if getattr(config, "quantization_config", None) is not None:
        raise SoraError(
            f"{source} is quantised: adding to its weights would lose the adapter",
            hint="merge into the unquantised model with --base",
        )
    labels = _number_of_labels(adapter)
    if labels is not None:
        config.num_labels = labels
    return config


def _load_model(
    adapter: Adapter, config: Any, source: str, revision: str | None, *, force: bool
) -> Any:
    """The base model in its checkpoint's dtype, with every parameter accounted for."""
    import transformers

    auto = getattr(transformers, _AUTO_CLASSES.get(adapter.task_type or "", "AutoModel"))
    with _loading(source):
        model, info = auto.from_pretrained(
            source,
            config=config,
            dtype="auto",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **_options(source, revision),
        )
    _check_supplied(info, adapter, source, force=force)
    return model.eval()


def _check_supplied(info: Mapping[str, Any], adapter: Adapter, source: str, *, force: bool) -> None:
    """Refuse parameters that neither the checkpoint nor the adapter supplies: they are random."""
    mismatched = [entry[0] for entry in info["mismatched_keys"]]
    random = [key for key in [*info["missing_keys"], *mismatched] if key not in adapter.head]
    if random and not force:
        raise SoraError(
            f"neither the adapter nor {source} holds {len(random)} parameters, such as "
            f"'{sorted(random)[0]}'",
            hint="is it the right base? --force leaves them random",
        )


def _number_of_labels(adapter: Adapter) -> int | None:
    """From the metadata, else from the head's last layer; None where neither tells."""
    meta = adapter.meta
    if meta.labels or meta.num_labels:
        return len(meta.labels) if meta.labels else meta.num_labels
    outputs = (t for name, t in adapter.head.items() if name.endswith(_OUTPUT_LAYERS))
    sizes = [t.shape[0] for t in outputs if t.ndim == 2]
    return min(sizes) if sizes else None


def _load_tokenizer(source: str, revision: str | None) -> Any:
    """The base model's tokenizer, or None if it has none."""
    import transformers

    if lacks_tokenizer(Path(source)):
        return None
    options = _options(source, revision)
    try:
        with quiet_loading():
            return transformers.AutoTokenizer.from_pretrained(source, **options)
    except (OSError, ValueError, ImportError, KeyError):
        return None


def _options(source: str, revision: str | None) -> dict[str, str]:
    """Further arguments of `from_pretrained`: a directory has no revisions."""
    return {} if revision is None or Path(source).exists() else {"revision": revision}


def _save(model: Any, tokenizer: Any, output: Path, *, force: bool) -> None:
    try:
        with new_directory(output, force=force, markers=(MODEL_CONFIG,)) as temporary:
            with quiet_loading():
                model.save_pretrained(temporary)
                if tokenizer is not None:
                    tokenizer.save_pretrained(temporary)
            if not [t for file in weight_files(temporary) for t in read_header(file)]:
                raise SoraError("no weights were written")
    except OSError as error:
        raise SoraError(f"{output} can not be written: {error}") from error

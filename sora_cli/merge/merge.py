"""Merges an adapter into its base model: W + B A for each adapted layer; head and labels replaced.

The merge goes tensor by tensor, from file to file. The model is never loaded, and tensors that the
adapter does not change are copied. For a changed weight, (B A) times the scaling is added in
float32, and the sum is rounded once. The part of the update that survives the rounding is measured;
if it is too small, nothing is written. The merged model's config.json lists its adapters under
`sora_merged`, so that no adapter is merged twice. Equal inputs give equal files, to the byte.

The steps in `sora_cli.merge`: `base` finds the base's files, `names` asks transformers for the
parameter behind each tensor's name, `match` finds the parameter of each part of the adapter, `plan`
lays out the new files, `write` and `blocks` write them, `rounding` rounds and measures.
"""

from __future__ import annotations

import copy
import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.base_check import OR_FORCE, check_weights
from sora_cli.adapter.classes import names_classes
from sora_cli.adapter.companions import replace_processor
from sora_cli.adapter.metadata import write_json, write_sora_file
from sora_cli.adapter.survival import Survival
from sora_cli.adapter.trained_on import write_united
from sora_cli.core.atomic import check_replaceable, new_directory
from sora_cli.core.console import size
from sora_cli.core.environment import process_memory
from sora_cli.core.errors import SoraError, reason
from sora_cli.core.outputs import check_apart
from sora_cli.data.processor import lacks_tokenizer
from sora_cli.merge.base import MODEL_CARD, BaseFolder, decoded, open_base
from sora_cli.merge.blocks import Blocks
from sora_cli.merge.card import (
    MERGED_KEY,
    check_not_merged,
    config_in,
    grown_config,
    merge_record,
    merged_before,
    merged_config,
    model_card,
    untied_config,
    with_survival,
)
from sora_cli.merge.incoming import Incoming, incoming
from sora_cli.merge.match import Match, match, read_stored, tied_part
from sora_cli.merge.names import Runtime, build_runtime
from sora_cli.merge.plan import Plan, plan_weights
from sora_cli.merge.rounding import AS_IN_BASE, Storing, check_survival
from sora_cli.merge.write import Progress, threads, weights_bytes, write_weights
from sora_cli.model.files import MERGE_RECORD, MODEL_CONFIG, SORA_FILE
from sora_cli.model.loading import LOCAL_COPY, loading
from sora_cli.model.references import resolve_model_path
from sora_cli.model.tensors import dtype_name, torch_dtype

_IMAGE_PROCESSOR = "preprocessor_config.json"
_RUNTIME_MEMORY = 20_000_000  # bytes, measured: torch's first product and the writing threads


@dataclass(frozen=True)
class Merged:
    """The result of a merge."""

    base: str
    """The resolved base model."""
    modules: int
    """Number of changed layers."""
    dtype: str
    """Dtype of the merged weights."""
    base_note: str | None
    """A note on the base; None if the adapter is known to be trained on this base."""
    tokenizer: bool
    """True if a tokenizer was copied, or an image processor."""
    untied: bool = False
    """True if tied weights were written separately."""
    left_out: tuple[str, ...] = ()
    """Tensors of the base that the merged model's class does not use."""
    left_files: tuple[str, ...] = ()
    """Files and directories beside the weights that were not copied."""
    absent: tuple[str, ...] = ()
    """Parameters in neither base nor adapter (only with `force`)."""
    unpacked: bool = False
    """True if the base was a GGUF file, which was unpacked first."""
    converted: int = 0
    """Number of tensors that the adapter does not change and that changed their dtype."""
    survival: Survival | None = None
    """The part of the update in the stored weights; None before they are written."""


@dataclass(frozen=True)
class Merge:
    """A checked merge, ready to write; only the numbers themselves are still unchecked.

    Attributes:
        disk: bytes to write.
        free: free bytes on that disk.
        tokenizer: directory of the adapter, whose tokenizer takes the place of the base's: it knows
            the tokens whose rows the adapter holds. None: the base's.
        memory: predicted peak memory of this process during the writing, in bytes (Linux's RssAnon,
            without file pages); None if the system does not tell it.
    """

    incoming: Incoming
    output: Path
    reference: str
    base: BaseFolder
    config: dict[str, Any]
    plan: Plan
    merged: Merged
    storing: Storing
    force: bool
    disk: int
    free: int
    memory: int | None
    tokenizer: Path | None = None

    @property
    def weights(self) -> int:
        """Size of the weight files in bytes, the total of the progress."""
        return weights_bytes(self.plan)

    def write(self, progress: Progress | None = None) -> Merged:
        """Write the merged model atomically, unless too little of the update survives."""
        marker = (MODEL_CONFIG,)
        try:
            with new_directory(self.output, force=self.force, markers=marker) as folder:
                for name in self.base.others:
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(self.base.folder / name, folder / name)
                if self.tokenizer is not None:
                    replace_processor(self.tokenizer, folder)
                survival = write_weights(
                    folder,
                    self.plan,
                    self.incoming,
                    index=self.base.index,
                    storing=self.storing,
                    progress=progress,
                )
                # the configuration holds the measured share, so it is written after the weights
                check_survival(survival, self.merged.dtype, self.storing)
                write_json(folder / MODEL_CONFIG, with_survival(self.config, survival))
                record = merge_record(survival, self.merged.dtype, self.storing)
                write_json(folder / MERGE_RECORD, record)
                meta, base = self.incoming.meta, self.incoming.adapter.base
                if meta.task is not None:
                    write_sora_file(folder / SORA_FILE, meta, base)
                opened = self.incoming.adapter.opened
                if opened is not None:
                    write_united(folder, [opened.directory], self.base.folder)
                (folder / MODEL_CARD).write_text(self._card(survival), encoding="utf-8")
        except OSError as error:
            raise SoraError(
                f"{self.output} cannot be written: {reason(error, self.output)}"
            ) from error
        return dataclasses.replace(self.merged, survival=survival)

    def _card(self, survival: Survival) -> str:
        return model_card(
            self.incoming,
            self.plan,
            base=self.reference,
            class_name=self.config["architectures"][0],
            dtype=self.merged.dtype,
            survival=survival,
        )


def merge_adapter(
    adapter: Adapter,
    output: Path,
    *,
    base: str | None = None,
    force: bool = False,
    untie: bool = False,
    storing: Storing = AS_IN_BASE,
) -> Merged:
    """Prepare and write a merge; see `prepare_merge` and `Merge.write`."""
    merge = prepare_merge(adapter, output, base=base, force=force, untie=untie, storing=storing)
    return merge.write()


def prepare_merge(
    adapter: Adapter,
    output: Path,
    *,
    base: str | None = None,
    force: bool = False,
    untie: bool = False,
    storing: Storing = AS_IN_BASE,
) -> Merge:
    """Check a merge and lay out its files; writes nothing.

    Args:
        adapter: in memory, or an open file, which is read layer by layer and must stay open.
        base: reference of the base model; None: the base named by the adapter.
        force: replace a model directory at `output`, and accept a base other than the adapter's, or
            an incomplete one. A base with this adapter in it is refused all the same.
        untie: allow changes of tied weights: each weight is written separately, and
            `tie_word_embeddings` is set to false.
        storing: dtype and rounding of the merged weights.
    """
    adapter.meta.check_whole()
    if adapter.opened is not None:
        check_apart(output, adapter.opened.directory)
    check_replaceable(output, force=force, markers=(MODEL_CONFIG,))
    new = incoming(adapter)
    folder, adapters, note = _base_of(new, output, base, force=force)
    # again, now that the names to write are known
    check_replaceable(output, force=force, markers=(MODEL_CONFIG,), names=folder.merged_names)
    matched, tied, config = _match(new, folder, untie=untie)
    named = folder.raw.get("architectures")
    if not (named and _is_part(matched.runtime, config)):
        config["architectures"] = [matched.runtime.class_name]
    config |= {MERGED_KEY: adapters}
    if storing.dtype != "base":
        config = config_in(storing.dtype, config)
    plan = plan_weights(
        new.adapter,
        matched,
        folder.weights,
        folder.source,
        tied=tied,
        other_class=named not in (None, [], config["architectures"]),
        force=force,
        dtype=storing.dtype,
    )
    merged = _merged(new, folder, plan, note=note, untied=tied is not None)
    disk, free = weights_bytes(plan) + folder.others_bytes, _free_disk(output)
    if disk > free:
        raise SoraError(f"{output} needs {size(disk)} of disk, and {size(free)} are free",
                        hint="write to another disk with -o, or make room")  # fmt: skip
    own = new.adapter.base
    reference = base or own.hub_id or own.path or folder.source
    memory = _memory(new, plan, storing)
    beside = adapter.opened.directory if adapter.opened and adapter.rows else None
    tokenizer = None if beside is None or lacks_tokenizer(beside) else beside
    return Merge(
        new, output, reference, folder, config, plan, merged, storing, force, disk, free, memory,
        tokenizer,
    )  # fmt: skip


def _is_part(runtime: Runtime, config: Mapping[str, Any]) -> bool:
    """Return True if the model is the decoder of a model for text and images, which stays whole."""
    return bool(runtime.model.config.model_type != config["model_type"])


def _merged(
    new: Incoming, folder: BaseFolder, plan: Plan, *, note: str | None, untied: bool
) -> Merged:
    return Merged(
        base=folder.source,
        modules=new.modules,
        dtype=_dtype(plan),
        base_note=note,
        tokenizer=not lacks_tokenizer(folder.folder)
        or (folder.folder / _IMAGE_PROCESSOR).is_file(),
        untied=untied,
        left_out=plan.left_out,
        left_files=folder.left_out,
        absent=plan.absent,
        unpacked=folder.unpacked is not None,
        converted=sum(item.converted for item in plan.items),
    )


def _base_of(
    new: Incoming, output: Path, base: str | None, *, force: bool
) -> tuple[BaseFolder, list[dict[str, Any]], str | None]:
    """Return the base, its merged adapters with the new one last, and a note on a doubtful base."""
    source = resolve_model_path(base or new.adapter.base.name())
    check_apart(output, Path(source))
    folder = open_base(source, new.adapter.base.revision if base is None else None)
    adapters = [
        *merged_before(folder.raw),
        {"adapter": new.digest(), "method": new.meta.method},
    ]
    check_not_merged(adapters, source)
    reference = new.adapter.base
    note = check_weights(
        reference, folder.origin, source, "the adapter", force=force, hint=OR_FORCE
    )
    return folder, adapters, note


def _match(
    new: Incoming, folder: BaseFolder, *, untie: bool
) -> tuple[Match, Match | None, dict[str, Any]]:
    """Return the match, the match before untying (None: nothing to untie), and config.json."""
    import transformers

    with loading(folder.source, local_copy=LOCAL_COPY):
        known = transformers.AutoConfig.from_pretrained(folder.folder, trust_remote_code=False)
    stored = read_stored(folder.weights)

    def match_with(raw: dict[str, Any]) -> Match:
        with loading(folder.source, local_copy=LOCAL_COPY):
            config = type(known).from_dict(decoded(raw))
        return match(new.adapter, stored, build_runtime(new.adapter, config, folder.source))

    plain = grown_config(folder.raw, new.adapter, known)
    raw = merged_config(plain, new, known)
    matched = match_with(raw)
    if not names_classes(matched.runtime.class_name):  # a model without classes gets no labels
        raw = copy.deepcopy(plain)
    problem = tied_part(matched, new.content)
    if problem is None:
        return matched, None, raw
    if not untie:
        raise problem
    raw = untied_config(raw)
    apart = match_with(raw)
    # weights tied to a base weight that the adapter replaces get the new numbers, too
    apart = dataclasses.replace(apart, heads={**_base_weights(matched, new), **apart.heads})
    if known.is_encoder_decoder or tied_part(apart, new.content) is not None:
        raise SoraError(  # T5's tie_word_embeddings, for one, also scales the decoder's output
            f"{problem.what.partition(':')[0]}, and a {known.model_type} cannot be untied by its "
            "configuration alone",
            hint="use the adapter without a merge",
        )
    return apart, matched, raw


def _base_weights(matched: Match, new: Incoming) -> dict[str, str]:
    return {t: name for t, name in matched.heads.items() if new.adapter.full[name].everywhere}


def _dtype(plan: Plan) -> str:
    """Return the dtypes of the changed weights, as text."""
    names = sorted({item.dtype for item in plan.items if not item.copied})
    known = (torch_dtype(name) for name in names)
    return ", ".join(dtype_name(dtype) for dtype in known if dtype is not None)


def _free_disk(output: Path) -> int:
    place = output.resolve()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def _memory(new: Incoming, plan: Plan, storing: Storing) -> int | None:
    """Predict the peak memory: the process now, the buffers, and the largest layer's factors."""
    now = process_memory("RssAnon")
    if now is None:
        return None
    computed = [item for item in plan.items if not item.copied]
    buffers = Blocks.memory(computed, threads(), storing)
    return now + buffers + 3 * 4 * new.numbers + _RUNTIME_MEMORY

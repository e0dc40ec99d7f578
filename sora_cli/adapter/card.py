"""README.md of an adapter: the model card that the Hub shows, made from the adapter's own files.

It holds no date, no time and no path of this machine, so that equal runs have equal cards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora_cli import __version__
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.consumers import GROW, consumers_of
from sora_cli.adapter.metadata import (
    QUERIES_ALONE,
    AdapterMeta,
    BaseReference,
    Training,
    step_words,
)
from sora_cli.adapter.peft.layout import AUTO_CLASSES
from sora_cli.adapter.ranks import rank_map
from sora_cli.adapter.reading import open_adapter
from sora_cli.core.atomic import write_bytes_atomic
from sora_cli.core.markdown import code, escaped
from sora_cli.core.table import Column, Table, markdown
from sora_cli.model.files import CARD
from sora_cli.recipe.families import families
from sora_cli.recipe.task_options import TaskOptions

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

THIS, BASE = "THIS ADAPTER", "THE BASE MODEL"
"""Placeholders in the card's commands: for an adapter that is not on the Hub yet, and for a base
model without a Hub id."""
TAG = "sora"

_DIGITS = 6


def adapter_card(adapter: Adapter, *, certificate: Sequence[str] = ()) -> str:
    """Return the card of an open adapter directory.

    Args:
        certificate: the certificate's sentences, one a line.
    """
    meta, parts = (
        adapter.meta,
        [_front_matter(adapter), f"# {escaped(_title(adapter))}\n", _introduction(adapter)],
    )
    sections: dict[str, Sequence[str]] = {
        "Scores": _scores(meta),
        "Certificate": [escaped(line) for line in certificate],
        "Ranks": _ranks(adapter),
        "How to load it": _loading(adapter),
        "Licence": [_licence(meta.training)],
    }
    parts += [f"## {title}\n\n{_joined(lines)}" for title, lines in sections.items() if lines]
    return "\n".join(parts)


def write_card(adapter: Adapter, certify: Callable[[Path], Sequence[str]] | None = None) -> None:
    """Write the card of an open adapter into its directory.

    Args:
        certify: writes the adapter's certificate, and returns the certificate's sentences.
    """
    folder = adapter.source.directory
    lines = () if certify is None else certify(folder)
    (folder / CARD).write_bytes(stored(adapter_card(adapter, certificate=lines)))


def rewrite_card(directory: Path, certificate: Sequence[str]) -> None:
    """Write an adapter's card anew, with the sentences of its certificate."""
    with open_adapter(directory) as adapter:
        text = adapter_card(adapter, certificate=certificate)
    write_bytes_atomic(directory / CARD, stored(text))


def card_matches(directory: Path, certificate: Sequence[str]) -> bool:
    """Return true if an adapter's card has these certificate lines, or no certificate at all."""
    try:
        text = (directory / CARD).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
    return "\n## Certificate\n" not in text or _joined(certificate) in text


def stored(text: str) -> bytes:
    """Return the bytes of a card; characters that UTF-8 cannot encode become question marks."""
    return text.encode(errors="replace")


def base_name(base: BaseReference) -> str:
    """Return the base model's name without a path of this machine."""
    name = base.hub_id or base.path or base.resolved
    return name if base.hub_id or "://" in name else Path(name).name


def _joined(lines: Sequence[str]) -> str:
    return "\n".join(lines) + "\n"


def _title(adapter: Adapter) -> str:
    training = adapter.meta.training
    return (
        training.name if training else f"{adapter.source.kind} adapter of {base_name(adapter.base)}"
    )


def _front_matter(adapter: Adapter) -> str:
    from huggingface_hub import ModelCardData

    meta, base = adapter.meta, adapter.base.hub_id
    training = meta.training or Training(name="")
    results, kind = list(_results(meta)), adapter.source.config.peft_type.lower()
    data = ModelCardData(
        base_model=base,
        library_name="peft",
        license=training.license,
        pipeline_tag=_family(adapter)[1],
        tags=[*([f"base_model:adapter:{base}"] if base else []), kind, TAG],
        datasets=list(training.data) if training.hub_data else None,
        metrics=sorted({result.metric_type for result in results}) or None,
        eval_results=results or None,
        model_name=training.name if results else None,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _family(adapter: Adapter) -> tuple[str | None, str | None]:
    """Return the Auto class and the Hub's name of the task, as far as they are known."""
    known = _options(adapter.meta)
    if known is not None:
        return known.MODEL_CLASS, known.HUB_TASK
    auto = AUTO_CLASSES.get(adapter.source.config.task_type or "")
    tasks = {options.MODEL_CLASS: options.HUB_TASK for _, options in families().values()}
    tasks["AutoModel"] = "feature-extraction"  # of images with texts, too
    return auto, tasks.get(auto or "")


def _options(meta: AdapterMeta) -> type[TaskOptions] | None:
    """Return the options class of the adapter's family; None: trained by another tool."""
    return families().get(meta.task or "", (None, None))[1]


def _results(meta: AdapterMeta) -> Iterator[EvalResult]:
    """Yield the scores of the adapter as it is; none if it was changed after its run."""
    from huggingface_hub import EvalResult

    run, family = meta.training, _options(meta)
    if run is None or meta.lineage:  # scores from before a cut would be shown by the Hub as its own
        return
    for split, metric, value in _values(run):
        yield EvalResult(
            task_type=family.HUB_TASK if family else meta.task or "other",
            dataset_type=run.data[0] if run.data else "data",
            dataset_name=", ".join(run.data) or "data",
            dataset_config=run.configuration,
            dataset_split=split,
            dataset_revision=run.data_revision,
            metric_type=metric,
            metric_value=value,
            metric_args={"seed": run.seed, "rows": run.rows.get(split)},
        )


def _values(run: Training) -> Iterator[tuple[str, str, float]]:
    for split, scores in run.metrics.items():
        for metric, value in scores.items():
            if value is not None and metric != "loss":
                yield split, metric, round(value, _DIGITS)


def _introduction(adapter: Adapter) -> str:
    meta, run = adapter.meta, adapter.meta.training
    base, revision = code(base_name(adapter.base)), adapter.base.revision
    if adapter.base.hub_id:
        base = f"[{adapter.base.hub_id}](https://huggingface.co/{adapter.base.hub_id})"
    rows = [("Base model", base + (f" @ {code(revision)}" if revision else ""))]
    if adapter.base.fingerprint:
        rows.append(("Base weights", code(adapter.base.fingerprint)))
    if run is not None:
        counts = ", ".join(f"{n:,} {escaped(split)}" for split, n in run.rows.items())
        names = (*run.data, *([run.configuration] if run.configuration else []))
        rows.append(("Data", ", ".join(map(code, names))))
        rows.append(("Rows", counts))
    if meta.task:
        rows.append(("Task", escaped(meta.task)))
    if meta.adapts is not None:
        rows.append(("For", escaped(QUERIES_ALONE)))
    if meta.labels:
        rows.append(("Labels", ", ".join(map(escaped, meta.labels))))
    extracted = any(entry.get("command") == "extract" for entry in meta.lineage)
    by = "extracted from a whole model" if extracted else "trained by another tool"
    rows.append(("Method", escaped(meta.method or f"{adapter.source.kind}, {by}")))
    if meta.method_config:
        options = (f"{key} {value}" for key, value in meta.method_config.items() if value)
        rows.append(("Method options", escaped(", ".join(options))))
    if run is not None and run.steps is not None:
        rate = "" if run.found_rate is None else f", learning rate auto: {run.found_rate:g}"
        rows.append(("Training", f"{run.steps:,} optimiser steps, seed {run.seed}{rate}"))
    rows.append(("Parameters", _parameters(adapter)))
    rows += [("After training", shown_step(entry)) for entry in meta.lineage]
    lines = [f"| {name} | {value} |" for name, value in rows]
    text = f"A low-rank adapter in PEFT's format, written by sora {__version__}."
    return _joined([text, "", "| | |", "| --- | --- |", *lines])


def _parameters(adapter: Adapter) -> str:
    run = adapter.meta.training
    of = f" of {run.base_parameters:,} in the base model" if run and run.base_parameters else ""
    modules = escaped(", ".join(adapter.head_modules))
    head = f", and a head of {adapter.head_parameters:,} ({modules})"
    return f"{adapter.parameters:,} in the factors{head if adapter.head_modules else ''}{of}"


def shown_step(entry: Mapping[str, Any]) -> str:
    """Return one entry of the lineage as Markdown, without folders of this machine."""
    return escaped(step_words(without_folder(entry)))


def without_folder(value: Any) -> Any:
    """Return a value with every absolute path in it shortened to its last part."""
    if isinstance(value, Mapping):
        return {key: without_folder(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_folder(part) for part in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _scores(meta: AdapterMeta) -> list[str]:
    run = meta.training
    values = [] if run is None else list(_values(run))
    if run is None or not values:
        return []
    columns = ("split", Column("metric", left=True), Column("score", ".4f"), "rows", "seed")
    rows = [(split, *score, run.rows.get(split), run.seed) for split, *score in values]
    chosen = f"Selection: {escaped(run.selection)}." if run.selection else ""
    before = "From before the later changes of the adapter; it has not been scored since."
    return [
        *([before, ""] if meta.lineage else []),
        markdown(Table(None, columns, rows)),
        *(["", chosen] if chosen else []),
    ]


def _ranks(adapter: Adapter) -> list[str]:
    """Return the table of ranks, layers by kinds of modules, and a sentence with the sum."""
    ranks = {**dict.fromkeys(adapter.meta.ranks, 0), **adapter.components(), **adapter.meta.ranks}
    start = {path: adapter.meta.ranks_start.get(path, rank) for path, rank in ranks.items()}
    table = rank_map(ranks, start)
    total = table.total
    rows = []
    for label, row in zip(table.row_labels(), table.rows, strict=True):
        cells = (table.cells.get((row, column)) for column in table.columns)
        live = (None if cell is None else cell.live for cell in cells)
        rows.append((label, *live, table.row_total(row).live))
    return [
        f"{total.live:,} of {total.start:,} components are left, in "
        f"{sum(rank > 0 for rank in ranks.values())} of {len(ranks)} modules; the largest rank is "
        f"{adapter.source.config.r}.",
        "",
        markdown(Table(None, ["layer", *table.column_labels(), "all"], rows)),
    ]


def _loading(adapter: Adapter) -> list[str]:
    meta, auto = adapter.meta, _family(adapter)[0]
    base = adapter.base.hub_id or BASE
    lines = []
    if auto is not None:
        options = _class_options(meta)
        processor = (_options(meta) or TaskOptions).PROCESSOR_CLASS
        reader = (
            f"{'tokenizer' if processor == 'AutoTokenizer' else 'processor'} = "
            f'{processor}.from_pretrained("{THIS}")'
        )
        grown = [reader, GROW] if meta.new_tokens else []
        lines += [
            "```python",
            "from peft import PeftModel",
            f"from transformers import {', '.join(sorted({auto, processor}))}",
            "",
            f'model = {auto}.from_pretrained("{base}"{options})',
            *grown,
            f'model = PeftModel.from_pretrained(model, "{THIS}")',
            *([] if grown else [reader]),
            "```",
            "",
        ]
    lines += ["| program | |", "| --- | --- |"]
    for verdict in consumers_of(adapter, name=THIS, base=base):
        text = verdict.advice if verdict.loads else f"no: {verdict.advice}"
        lines.append(f"| {verdict.name} | {escaped(text)} |")
    return lines


def _class_options(meta: AdapterMeta) -> str:
    """Return the arguments that set a classifier's number of labels or their names."""
    if meta.labels:
        return f", id2label={dict(enumerate(meta.labels))!r}"
    return f", num_labels={meta.num_labels}" if meta.num_labels else ""


def _licence(run: Training | None) -> str:
    if run is not None and run.license:
        return f"The adapter: {escaped(run.license)}. The base model has its own licence."
    return "The adapter states no licence. The base model has its own licence."

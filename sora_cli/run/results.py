"""Results of a run: scores, ranks and parameters for the report, and the files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from methods.configs import MethodConfig
from methods.inject import ALL_LINEAR
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.card import write_card
from sora_cli.adapter.companions import save_processor
from sora_cli.adapter.digest import result_digests
from sora_cli.adapter.directory import write_adapter
from sora_cli.adapter.metadata import AdapterMeta, BaseReference, Training, read_sora_file
from sora_cli.adapter.places import ADAPTER
from sora_cli.adapter.plot import plot_ranks
from sora_cli.adapter.rounding import factor_bytes
from sora_cli.adapter.row_recipe import row_recipe
from sora_cli.adapter.saving import base_reference, build_adapter
from sora_cli.core.atomic import remove_file
from sora_cli.core.errors import SoraError
from sora_cli.core.hub import looks_local
from sora_cli.core.processes import is_main
from sora_cli.data.content import data_fingerprint
from sora_cli.model.files import SORA_FILE, is_there
from sora_cli.model.new_tokens import trained_rows
from sora_cli.model.quantisation import count_values, quantised_as
from sora_cli.model.transformers_internals import attention_of
from sora_cli.recipe.load import LoadedRecipe
from sora_cli.recipe.recipe import Recipe, TrainingBlock
from sora_cli.report import BaseFacts, DataFacts, Parameters, Ranks, RunReport
from sora_cli.run.class_counts import class_counts
from sora_cli.run.layers import left_out_lines, other_weights_lines
from sora_cli.run.output import RANKS_PLOT, clear_results
from sora_cli.run.prepare import Prepared
from sora_cli.run.remarks import data_remarks, overlaps_of, skip_remark
from sora_cli.run.stored import write_baseline
from sora_cli.tasks.base import Task
from sora_cli.train.fit import Fit


def record_setup(report: RunReport, ready: Prepared, training: TrainingBlock) -> None:
    """Record base model, data, starting ranks and parameter counts in the report."""
    base, rows = ready.base, ready.rows
    reference = base_reference(base.reference, base.resolved, base.revision)
    report.base = BaseFacts(
        **asdict(reference),
        attention=attention_of(base.model.config),
        missing=list(base.missing),
        head=list(base.head),
        reference=ready.task.reference and ready.task.reference.name,
        reference_digest=ready.task.reference and ready.task.reference.digest,
    )
    parts = {"train": rows.train, "select": rows.select, **rows.report}
    fingerprints = {name: data_fingerprint(part) for name, part in parts.items()}
    if ready.task.corpus is not None:
        fingerprints["corpus"] = ready.task.corpus.digest
    overlaps = overlaps_of(ready)
    encoded = {"train": ready.train, "select": ready.select, **ready.report}
    report.data = DataFacts(
        rows={name: len(part) for name, part in parts.items()},
        encoded={name: len(part.lengths) for name, part in encoded.items()},
        fingerprints=fingerprints,
        truncated={name: part.truncated for name, part in encoded.items()},
        longest={name: part.longest for name, part in encoded.items()},
        in_training={name: found.rows for name, found in overlaps.items()},
        contradicted={name: found.contradicted for name, found in overlaps.items()},
        classes=class_counts(ready),
        selection=training.choice(rows.rule),
        revision=rows.revision,
    )
    report.parameters = count_parameters(ready)
    report.events = left_out_lines(ready.left_out, base.model)
    config = ready.method.config
    if isinstance(config, MethodConfig) and config.targets == ALL_LINEAR:
        report.events += other_weights_lines(base.model, report.parameters.base)
    report.events += data_remarks(ready, overlaps)
    report.main_metric = ready.task.best
    report.start = ready.start
    report.ranks = {p: Ranks(start=m.rank, end=m.rank) for p, m in ready.layers.items()}


def record_result(report: RunReport, ready: Prepared, result: Fit) -> None:
    """Record steps, history, final ranks and events of the finished training in the report."""
    report.steps, report.skipped_steps = result.steps, result.skipped
    report.best_step, report.history = result.best_step, result.history
    report.non_finite_steps = result.non_finite
    left_out = skip_remark(result.non_finite, result.steps)
    report.events += [left_out] if left_out else []
    # the history of a resumed run also holds evaluations that an earlier process has counted
    _split_training(report, result.first_step)
    report.live_components = result.live
    report.parameters.adapter_end = _baseline_parameters(ready)
    for path, layer in ready.layers.items():
        factors = ready.method.factors(layer).drop_zeros()
        report.ranks[path].end = factors.rank
        report.parameters.adapter_end += factors.parameters
    report.events += ready.method.summary(ready.layers).events
    report.compaction = result.compaction
    if result.compaction is not None:
        report.events.append(result.compaction.event())
    report.method_details = ready.method.details(ready.layers)
    unchanged = all(m.start == m.end for m in report.ranks.values())
    if ready.method.config.adapts_rank and unchanged:
        report.events.append(
            f"NO RANK CHANGED: {ready.method.name} ended with all the components it started with"
        )


def _split_training(report: RunReport, first_step: int) -> None:
    """Separate the seconds of evaluations during training from the training time.

    Only evaluations after step `first_step` belong to this process.
    """
    entries = (entry for entry in report.history if entry["step"] > first_step)
    evaluating = sum(entry.get("eval_runtime", 0.0) for entry in entries)
    if evaluating:
        report.seconds["evaluate in training"] = round(evaluating, 3)
        report.seconds["train"] = round(report.seconds["train"] - evaluating, 3)


def save_results(report: RunReport, ready: Prepared, loaded: LoadedRecipe, output: Path) -> None:
    """Write `adapter/` and `ranks.png`; for a baseline, `delta/` or `model/`.

    Results of another method's run in the same place are deleted. Every process must call it; the
    main process writes.
    """
    known = BaseReference(**{f.name: getattr(report.base, f.name) for f in fields(BaseReference)})
    recipe = loaded.resolved()
    if ready.baseline is not None:
        written = write_baseline(
            output, ready.baseline, ready.base, run_meta(ready, recipe), known, ready.trained.write
        )
        if is_main():
            clear_results(output, kept=written.name)
            report.digests, report.former = result_digests(written), {}
            remove_file(output / RANKS_PLOT)
        return
    adapter = run_adapter(ready, recipe, named_base(known, loaded.recipe))
    if not is_main():
        return
    meta = adapter.meta.model_copy(update={"training": training_of(report, loaded.recipe)})

    def beside(folder: Path) -> None:
        why = save_processor(ready.base.processor, ready.task.options.PROCESSOR_CLASS, folder)
        if why is not None and ready.base.new_tokens:
            raise SoraError(why, hint="leave out model.new_tokens: nobody could use them")
        report.events += [] if why is None else [why]
        ready.trained.write(folder)

    adapter = adapter.with_meta(meta)
    write_adapter(output / ADAPTER, adapter, force=True, beside=beside, describe=write_card)
    bits, ends = read_sora_file(output / ADAPTER / SORA_FILE)[0].bits, report.ranks
    shapes = {path: (m.B.shape[0], m.A.shape[1]) for path, m in ready.layers.items()}
    report.parameters.adapter_bytes = (
        4 * report.parameters.adapter_end
        if bits is None
        else factor_bytes({path: ends[path].end for path in shapes}, shapes, bits)
    )
    clear_results(output, kept=ADAPTER)
    report.digests, report.former = result_digests(output / ADAPTER), {}
    start = {path: m.start for path, m in report.ranks.items()}
    end = {path: m.end for path, m in report.ranks.items()}
    plot_ranks(end, start, output / RANKS_PLOT, f"{report.name}: {ready.method.name}")


def named_base(base: BaseReference, recipe: Recipe) -> BaseReference:
    """Return the base model's reference with the Hub id from the recipe, if it names one."""
    return replace(base, hub_id=recipe.output.base_id or base.hub_id)


def training_of(report: RunReport, recipe: Recipe) -> Training:
    """Return the facts about the run for the adapter's card."""
    data, rows = recipe.data, report.data.rows  # a path also scores parts of splits
    files = [Path(file).name for given in (data.files or {}).values() for file in given]
    on_hub = bool(data.path) and not ("://" in data.path or _is_local(data.path))
    named = data.path if "://" in data.path or on_hub else Path(data.path).name
    return Training(
        name=report.name,
        data=(named,) if named else tuple(dict.fromkeys(files)),
        hub_data=on_hub,
        configuration=data.name,
        data_revision=report.data.revision,
        rows={split: rows[split] for split in ("train", *report.metrics) if split in rows},
        seed=recipe.training.seed,
        steps=report.steps,
        found_rate=None if report.learning_rate is None else report.learning_rate.chosen,
        metric=report.main_metric,
        metrics={
            split: {name: None if math.isnan(value) else value for name, value in scores.items()}
            for split, scores in report.metrics.items()
        },
        selection=report.data.selection,
        base_parameters=report.parameters.base,
        license=recipe.output.license,
    )


def _is_local(path: str) -> bool:
    return looks_local(path) or is_there(path)


def run_adapter(ready: Prepared, recipe: Mapping[str, Any], base: BaseReference) -> Adapter:
    """Build the trained model's adapter and head, ready to be written.

    Args:
        recipe: the run's resolved recipe, as in its report.
    """
    adapter = build_adapter(
        ready.base.model,
        ready.method,
        ready.layers,
        head=ready.base.head,
        task_type=ready.task.options.PEFT_TYPE,
        base=base,
        meta=run_meta(ready, recipe),
    )
    if ready.start is None:
        return adapter
    first = {path: m.start for path, m in ready.start.ranks.items()}
    return replace(adapter, meta=adapter.meta.model_copy(update={"ranks_start": first}))


def run_meta(ready: Prepared, recipe: Mapping[str, Any]) -> AdapterMeta:
    """Return the entries about method and task for `sora.json`."""
    entries = {
        "method": ready.method.name,
        "method_config": {k: v for k, v in recipe["method"].items() if k != "name"},
        "row_recipe": row_recipe(recipe),
        "quantise": quantised_as(ready.base.model),
        "reference": ready.task.reference and ready.task.reference.digest,
    }
    return task_meta(ready.task).model_copy(update=entries)


def task_meta(task: Task) -> AdapterMeta:
    """Return the entries for `sora.json` about a task that is bound to its rows."""
    options = task.model_options()
    return AdapterMeta(
        task=task.name,
        labels=tuple(task.label_names) if task.label_names else None,
        num_labels=options.get("num_labels"),
        problem_type=options.get("problem_type"),
        max_length=task.data.max_length,
        input_columns=task.input_columns,
    )


def count_parameters(ready: Prepared) -> Parameters:
    """Count the parameters before the first step, from the shapes of the loaded model."""
    model, layers = ready.base.model, ready.layers.values()
    rows = [each.rows for each in trained_rows(model).values()]
    adapters = {id(p) for m in layers for p in (m.A, m.B, m.d) if p is not None}
    adapters |= {id(p) for p in rows}
    heads = [model.get_submodule(path) for path in ready.base.head]
    factors = sum(m.A.numel() + m.B.numel() for m in layers) + _baseline_parameters(ready)
    return Parameters(
        base=sum(count_values(p) for p in model.parameters() if id(p) not in adapters),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        adapter_start=factors,
        adapter_end=factors,
        head=sum(p.numel() for p in [*rows, *(p for head in heads for p in head.parameters())]),
    )


def _baseline_parameters(ready: Prepared) -> int:
    """Count the parameters that a baseline trains outside the head; 0 for a low-rank method."""
    method = ready.baseline
    return 0 if method is None else sum(p.numel() for p in method.parameters.values())

"""Round finished adapters in several ways, score each, and print what each costs in bytes.

    python -m tools.bits score RUN... -o FILE.jsonl     # runs that are in the file are left out
    python -m tools.bits take RUN... -o FILE.jsonl      # runs of the plug-ins rounded and unilora
    python -m tools.bits table FILE.jsonl [--steps N]

Every way is scored on the run's reported rows with the base model loaded once. The bytes are those
of the factors, without a head, and 100 % is LoRA r 8 in float32. The ways:

32, 16   as stored; in bfloat16
int8     one float16 scale for each component, the largest number at 127
b8 .. b2 the grid of `sora prune --bits`
plain-N  N bits as in the first study: a scale for each group of 64, the largest number at the end
         of a grid with zero
mixed-N  the grid with 2 to 6 bits, or none, by component: the least error within the bytes of N
at-N     the same within N bytes (with --ways only)

healed-N rounded while it healed (`recipes/sweeps/arena/rounded.py`), beside the same cut in 32 bits

The bytes of 16 and int8 are also given after zstd (pip install zstandard).
"""

from __future__ import annotations

import argparse
import heapq
import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from methods.factors import LowRankFactors
from methods.grid import GROUP, nearest, packed_bytes
from sora_cli.adapter.pruning import Layers
from sora_cli.adapter.reading import open_adapter, read_adapter
from sora_cli.adapter.rounding import factor_bytes, round_layers
from sora_cli.core.console import emit, say
from sora_cli.experiments.compare.stats import difference
from sora_cli.recipe.load import load_stored
from sora_cli.recipe.metric_facts import facts_of
from sora_cli.report import FILE_NAME, RunReport, read_report
from sora_cli.search.cut import Adapted, scored_on
from sora_cli.search.rows import selection_rows

WAYS = ("32", "16", "int8", "b8", "b4", "b3", "b2", "plain-4", "plain-2", "mixed-3", "mixed-2")
_SQUARED_ERROR = {0: 1.0, 2: 0.219, 3: 0.0677, 4: 0.0183, 5: 0.005, 6: 0.00135}
"""Share of a component's squared norm that the grid loses, measured on trained adapters."""


def main() -> None:
    """Score or print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    scoring = commands.add_parser("score")
    scoring.add_argument("runs", nargs="+", type=Path)
    scoring.add_argument("-o", "--output", type=Path, required=True)
    scoring.add_argument("--ways", default=",".join(WAYS), help="default: all")
    taking = commands.add_parser("take")
    taking.add_argument("runs", nargs="+", type=Path)
    taking.add_argument("-o", "--output", type=Path, required=True)
    printing = commands.add_parser("table")
    printing.add_argument("file", type=Path)
    printing.add_argument("--steps", type=int, help="only runs of so many steps")
    options = parser.parse_args()
    if options.command == "table":
        lines = [json.loads(line) for line in options.file.open(encoding="utf-8")]
        emit(table([x for x in lines if options.steps in (None, x["steps"])]))
        return
    if options.command == "take":
        with options.output.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(take(run)) + "\n" for run in options.runs)
        return
    known = set()
    if options.output.exists():
        known = {json.loads(line)["run"] for line in options.output.open(encoding="utf-8")}
    for run in options.runs:
        if name_of(run) not in known:
            with options.output.open("a", encoding="utf-8") as file:
                file.writelines(
                    json.dumps(line) + "\n" for line in score(run, options.ways.split(","))
                )
            say(f"{name_of(run)}: done")


def name_of(run: Path) -> str:
    """Return a run's name: its directory and the one above."""
    return "/".join(run.resolve().parts[-2:])


def score(run: Path, ways: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield a line for each way of storing a run's adapter."""
    report = read_report(run)
    assert report is not None
    recipe = load_stored(report.recipe, run / FILE_NAME, report.name).recipe.to_score()
    data = recipe.data.model_copy(update={"selection": "validation"})  # the rows that are reported
    recipe = recipe.model_copy(update={"data": data})
    adapter = read_adapter(run)
    layers = {path: f.truncate(f.rank) for path, f in adapter.layers.items()}
    ranks = {path: f.rank for path, f in layers.items()}
    shapes = {path: (f.B.shape[0], f.A.shape[1]) for path, f in layers.items()}
    numbers = sum(f.parameters for f in layers.values())
    rows = selection_rows(recipe)
    model = Adapted(adapter, recipe, rows.task)
    scores = scored_on(rows, recipe, model.trainer)[1]
    for way in ways:
        kind, _, bits = way.partition("-")
        if way in ("32", "16"):
            made: Layers = layers if way == "32" else _each(layers, _bfloat16)
            size = numbers * int(way) // 8
        elif way == "int8":
            made, size = _each(layers, _int8), numbers + 4 * sum(ranks.values())
        elif kind == "plain":
            made, size = (
                _each(layers, _plain(int(bits))),
                factor_bytes(ranks, shapes, int(bits)),
            )
        elif kind == "at":
            made, size = mixed(layers, int(bits))
        elif kind == "mixed":
            made, size = mixed(layers, factor_bytes(ranks, shapes, int(bits)))
        else:
            bits = way[1:]
            made, size = round_layers(layers, int(bits)), factor_bytes(ranks, shapes, int(bits))
        model.put(made)
        yield {
            **_about(run, report),
            "way": way,
            "bytes": size,
            **_squeezed(way, layers),
            "error": _error(layers, made),
            "score": scores().value,
        }


def _about(run: Path, report: RunReport) -> dict[str, Any]:
    return {
        "run": name_of(run),
        "label": report.recipe["output"].get("label") or report.name,
        "task": report.recipe["data"].get("name") or report.name,
        "seed": report.recipe["training"]["seed"],
        "steps": report.steps,
        "metric": report.main_metric,
    }


def take(run: Path) -> dict[str, Any]:
    """Return the line of a run that was rounded while it healed, or of Uni-LoRA, by its report."""
    report = read_report(run)
    assert report is not None
    assert report.main_metric is not None
    about, numbers = _about(run, report), report.method_details.get("trained_numbers")
    split = report.recipe["data"]["validation"]
    name = split[0] if isinstance(split, list) else split
    score = report.metrics[name][report.main_metric]
    if numbers is not None:  # the vector is what has to be stored, and its seed
        return {**about, "way": "16", "bytes": 2 * numbers, "error": None, "score": score}
    bits = str(report.recipe["method"]["bits"])
    with open_adapter(run) as file:
        size = factor_bytes(file.stored_ranks, file.shapes, int(bits))
    about["label"] = about["label"].removesuffix(f"-{bits}").replace("rounded", "cut")
    return {**about, "way": f"healed-{bits}", "bytes": size, "error": None, "score": score}


def _each(layers: Layers, work: Callable[[Tensor], Tensor]) -> Layers:
    """Apply a function to rows of A and columns of B."""
    return {p: LowRankFactors(work(f.A), work(f.B.T).T.contiguous()) for p, f in layers.items()}


def _bfloat16(rows: Tensor) -> Tensor:
    return rows.bfloat16().float()


def _codes(rows: Tensor) -> tuple[Tensor, Tensor]:
    scale = (rows.abs().amax(1, keepdim=True) / 127).half().float().clamp_min(1e-30)
    return (rows / scale).round().clamp(-127, 127), scale


def _int8(rows: Tensor) -> Tensor:
    codes, scale = _codes(rows)
    return codes * scale


def _plain(bits: int) -> Callable[[Tensor], Tensor]:
    """Return the rounding with the largest number of each group at the end of the grid."""
    top = 2 ** (bits - 1) - 1

    def work(rows: Tensor) -> Tensor:
        length = rows.shape[1]
        groups = torch.nn.functional.pad(rows, (0, -length % GROUP)).reshape(len(rows), -1, GROUP)
        scale = (groups.abs().amax(-1, keepdim=True) / top).half().float().clamp_min(1e-30)
        rounded: Tensor = ((groups / scale).round().clamp(-top, top) * scale).flatten(1)[:, :length]
        return rounded

    return work


def mixed(layers: Layers, budget: int) -> tuple[Layers, int]:
    """Give each component its own bits, by the largest fall of squared error for a byte.

    Args:
        layers: in their singular basis.
        budget: bytes.
    """
    parts = [
        (path, i, float(norm) ** 2)
        for path, factors in layers.items()
        for i, norm in enumerate(factors.component_norms())
    ]

    def size(path: str, b: int) -> int:
        sides = layers[path].A.shape[1], layers[path].B.shape[0]
        return packed_bytes([(1, side) for side in sides], b) if b else 0

    bits, used = [0] * len(parts), 0
    waiting: list[tuple[float, int, int]] = []

    def offer(k: int) -> None:
        path, _, squared = parts[k]
        gains = [
            (squared * (_SQUARED_ERROR[bits[k]] - lost) / (size(path, b) - size(path, bits[k])), b)
            for b, lost in _SQUARED_ERROR.items()
            if b > bits[k]
        ]
        if gains:
            gain, b = max(gains)
            heapq.heappush(waiting, (-gain, k, b))

    for k in range(len(parts)):
        offer(k)
    while waiting:
        _, k, b = heapq.heappop(waiting)
        more = size(parts[k][0], b) - size(parts[k][0], bits[k])
        if used + more <= budget:
            used, bits[k] = used + more, b
            offer(k)
    made = {p: LowRankFactors(f.A.clone(), f.B.clone()) for p, f in layers.items()}
    for (path, i, _), b in zip(parts, bits, strict=True):
        A, B = made[path].A, made[path].B
        A[i] = nearest(A[i : i + 1], b).values() if b else 0
        B[:, i] = nearest(B[:, i][None], b).values() if b else 0
    return made, used


def _squeezed(way: str, layers: Layers) -> dict[str, int]:
    """Return the bytes after zstd of the two simplest ways."""
    if way not in ("16", "int8"):
        return {}
    import zstandard

    content = b""
    for f in layers.values():
        for rows in (f.A, f.B.T):
            if way == "16":
                content += rows.contiguous().bfloat16().view(torch.uint8).numpy().tobytes()
            else:
                codes, scale = _codes(rows)
                content += codes.to(torch.int8).numpy().tobytes() + scale.half().numpy().tobytes()
    return {"zstd": len(zstandard.ZstdCompressor(level=19).compress(content))}


def _error(before: Layers, after: Layers) -> float:
    """Return ||rounded dW - dW|| / ||dW|| of all layers together."""
    lost = sum(before[p].minus(after[p]).norm() ** 2 for p in before)
    return float((lost / sum(f.norm() ** 2 for f in before.values())) ** 0.5)


def table(lines: list[dict[str, Any]]) -> str:
    """Return a table in Markdown: ways by label, with points against 32 bits and LoRA r 8."""
    whole = {(x["task"], x["label"], x["seed"]): x for x in lines if x["way"] == "32"}
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        groups[line["label"], line["way"]].append(line)
    names = ["", "bits", "runs", "bytes", "% of r 8", "after zstd", "error", "minus 32 bits",
             "minus LoRA r 8"]  # fmt: skip
    rows = [f"| {' | '.join(names)} |", "| --- | --- |" + " ---: |" * 7]
    for (label, way), of in groups.items():
        same, full = ([whole.get((x["task"], name, x["seed"])) for x in of]
                      for name in (label, "lora-r8"))  # fmt: skip
        shares = [x["bytes"] / f["bytes"] for x, f in zip(of, full, strict=True) if f]
        cells = [
            label,
            way,
            len(of),
            f"{_mean(of, 'bytes'):,.0f}",
            f"{100 * statistics.fmean(shares):.2f}" if shares else "",
            f"{_mean(of, 'zstd'):,.0f}" if "zstd" in of[0] else "",
            f"{_mean(of, 'error'):.1%}" if of[0]["error"] is not None else "",
            "" if way == "32" else _points(of, same),
            "" if label == "lora-r8" and way == "32" else _points(of, full),
        ]
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows)


def points(line: dict[str, Any], other: dict[str, Any]) -> float:
    """Return by how much one score is better than another, times 100."""
    sign = -1 if facts_of(line["metric"]).smaller_is_better else 1
    return float(100 * sign * (line["score"] - other["score"]))


def _points(lines: list[dict[str, Any]], others: Sequence[dict[str, Any] | None]) -> str:
    """Return the mean difference in points, with its 95 % bootstrap interval over the pairs."""
    by_task: dict[str, list[float]] = defaultdict(list)
    for line, other in zip(lines, others, strict=True):
        if other is not None:
            by_task[line["task"]].append(points(line, other))
    known = difference(list(by_task.values())) if by_task else None
    if known is None:
        return ""
    if known.low is None or known.high is None:
        return f"{known.mean:+.2f}"
    return f"{known.mean:+.2f} [{known.low:+.2f}, {known.high:+.2f}]"


def _mean(lines: list[dict[str, Any]], key: str) -> float:
    return statistics.fmean(line[key] for line in lines)


if __name__ == "__main__":
    main()

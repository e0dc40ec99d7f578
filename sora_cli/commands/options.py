"""Arguments and options that several commands share, and what `--code` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sora_cli.commands import completion
from sora_cli.core.outputs import output_path


def output(*names: str, help: str) -> Any:
    """Declare an option that names an output; the command gets its place resolved."""
    return typer.Option(*names, help=help, parser=output_path, metavar="<path>")


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Values to change, such as training.epochs=3 or method.name=lora.",
        autocompletion=completion.overrides,
    ),
]
ReadOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Values to change that the command reads, such as data.path=DIR.",
        autocompletion=completion.overrides,
    ),
]
Recipe = Annotated[
    str,
    typer.Argument(
        help="A recipe file, or the name of one that comes with the tool.",
        autocompletion=completion.recipes,
    ),
]
Adapter = Annotated[
    Path,
    typer.Argument(
        help="An adapter directory, ours or any PEFT LoRA; or a run's directory.",
        autocompletion=completion.runs,
    ),
]
Output = Annotated[Path, output("--output", "-o", help="Directory to write.")]
OutputOrFile = Annotated[
    Path,
    output("--output", "-o", help="Directory to write; with --format gguf a file."),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite an existing output.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Energy = Annotated[
    float | None,
    typer.Option("--energy", help="Keep this share of each layer's squared singular values."),
]
Rank = Annotated[int | None, typer.Option("--rank", help="Keep at most this rank in each layer.")]
MaxParams = Annotated[
    int | None,
    typer.Option("--max-params", help="Keep the strongest components within this many parameters."),
]
MeanRank = Annotated[
    float | None,
    typer.Option(
        "--mean-rank", help="Keep the strongest components, this many per layer on average."
    ),
]
MaxDrop = Annotated[
    str | None,
    typer.Option(
        "--max-drop",
        help="Keep the fewest components tried that are shown to lose at most this of the main "
        "metric: 0.01 in its own unit, 1pt for the same of a metric that ends at 1, or smallest: "
        "the smallest loss that the rows can be expected to certify. The exit code is 3 if no size "
        "is shown to.",
    ),
]
MaxDiffer = Annotated[
    str | None,
    typer.Option(
        "--max-differ",
        help="In place of --max-drop: keep the smallest size whose answers differ from the whole "
        "adapter's on at most this share of rows, such as 1%. No labels are needed.",
    ),
]
Unlabelled = Annotated[
    str | None,
    typer.Option(
        "--unlabelled",
        help="With --max-differ: file of rows without labels (csv, tsv, json, jsonl, parquet).",
    ),
]
Tolerance = Annotated[
    float | None,
    typer.Option(
        "--tolerance",
        min=0,
        help="With --max-differ, for answers that are numbers: the largest distance of two that "
        "count as the same, such as 0.1.",
    ),
]
Confidence = Annotated[
    float | None,
    typer.Option(
        "--confidence",
        help="With --max-drop: how sure it is to be; default: 0.95.",
        show_default=False,
    ),
]
FactorDtype = Annotated[
    str, typer.Option("--dtype", help="Store the factors as float32, bfloat16 or float16.")
]
Code = Annotated[
    list[Path] | None,
    typer.Option("--code", help="A Python file with adapter methods of your own; repeatable."),
]
PreviewInDryRun = Annotated[
    int | None,
    typer.Option(
        "--preview", min=0, help="With --dry-run: rows to show as the model gets them (2)."
    ),
]
Preview = Annotated[
    int,
    typer.Option("--preview", min=0, help="Rows to show as the model gets them."),
]
NoVerify = Annotated[
    bool,
    typer.Option("--no-verify", help="Do not compare the result's outputs with the original's."),
]

Target = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="A run, an adapter (ours or any PEFT LoRA), a model, or its Hub id.",
    ),
]
BaseModel = Annotated[
    str | None,
    typer.Option("--base", help="The base model, if it is not the one that the adapter names."),
]
System = Annotated[
    str | None,
    typer.Option("--system", help="The system message; default: that of the training, if any."),
]
Temperature = Annotated[
    float | None,
    typer.Option("--temperature", help="Above 0; default: 0.7.", show_default=False),
]
TopP = Annotated[
    float | None,
    typer.Option(
        "--top-p",
        help="Draw among the likeliest tokens that make up this share; default: 0.95.",
        show_default=False,
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        "--top-k",
        min=0,
        help="Draw among so many of the likeliest tokens, 0: all; default: 50.",
        show_default=False,
    ),
]
NewTokens = Annotated[
    int, typer.Option("--max-new-tokens", min=1, help="Tokens that an answer has at most.")
]
Penalty = Annotated[
    float | None,
    typer.Option("--repetition-penalty", help="Above 1: what was said becomes less likely."),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        min=0,
        max=2**31,
        help="The same seed gives the same answers; default: another one each time.",
        show_default=False,
    ),
]
Greedy = Annotated[
    bool, typer.Option("--greedy", help="Take the likeliest token each time; nothing is drawn.")
]
ComputeDtype = Annotated[
    str | None,
    typer.Option(
        "--dtype", help="Compute in float32, bfloat16 or float16; default: as in training."
    ),
]


def load_plugins(code: Sequence[Path] | None) -> None:
    """Register the methods of the files that `--code` names.

    Raises:
        SoraError: see `load_code`.
    """
    if code:
        from sora_cli.recipe.plugins import load_code

        for path in code:
            load_code(path)

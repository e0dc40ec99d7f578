"""Arguments and options of several commands, and the loading of `--code` files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sora_cli.commands import completion
from sora_cli.core.outputs import output_path


def output(*names: str, help: str) -> Any:
    """Declare an option for an output path, which the command receives resolved."""
    return typer.Option(*names, help=help, parser=output_path, metavar="<path>")


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Changes to the recipe, as KEY=VALUE: training.epochs=3 method.name=lora.",
        autocompletion=completion.overrides,
    ),
]
ReadOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Changes to the recipe that this command reads, as KEY=VALUE: data.path=DIR.",
        autocompletion=completion.overrides,
    ),
]
Recipe = Annotated[
    str,
    typer.Argument(
        help="A recipe file, or the name of a packaged recipe (see: sora recipes).",
        autocompletion=completion.recipes,
    ),
]
Adapter = Annotated[
    Path,
    typer.Argument(
        help="A run directory, an adapter directory (ours or any PEFT LoRA), or a packed file.",
        autocompletion=completion.runs,
    ),
]
Bits = Annotated[
    int | None,
    typer.Option(
        "--bits",
        help="Round the numbers of the factors to 2, 3, 4 or 8 bits, on a grid with a scale for "
        "each group of 64. The output is a float32 adapter, which sora export --format packed "
        "makes small.",
    ),
]
HeadBits = Annotated[
    int | None,
    typer.Option("--head-bits", help="With --bits: round the head's matrices, too, to 8 bits."),
]
Output = Annotated[Path, output("--output", "-o", help="The directory to write.")]
OutputOrFile = Annotated[
    Path,
    output(
        "--output", "-o", help="The directory to write; with --format gguf or packed, the file."
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Energy = Annotated[
    float | None,
    typer.Option(
        "--energy", help="Keep this share of each layer's squared singular values, such as 0.9."
    ),
]
Rank = Annotated[int | None, typer.Option("--rank", help="Cut each layer to at most this rank.")]
MaxParams = Annotated[
    int | None,
    typer.Option(
        "--max-params",
        help="Keep the strongest components of all layers, up to this many parameters in total.",
    ),
]
MeanRank = Annotated[
    float | None,
    typer.Option(
        "--mean-rank",
        help="Keep the strongest components of all layers, this many per layer on average.",
    ),
]
MaxDrop = Annotated[
    str | None,
    typer.Option(
        "--max-drop",
        help="The promise: keep the smallest size that is certified to lose no more than this: "
        "0.01 in the unit of the main metric, or 1pt for one point (0.01 of a metric that ends at "
        "1), or smallest for the smallest drop that the test rows can be expected to certify. "
        "Exits with 3 if no size is certified, but with 0 if sora prune then keeps everything.",
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
NoWorse = Annotated[
    str | None,
    typer.Option(
        "--max-drop",
        help="Test on rows whether B is no worse than A by more than this: 0.01 in the unit of the "
        "main metric, or 1pt for one point. Exits with 0 if that is certified, 1 if B is shown to "
        "be worse, 3 if neither is.",
    ),
]
NoOther = Annotated[
    str | None,
    typer.Option(
        "--max-differ",
        help="Test whether B answers at most this share of rows differently from A, such as 1%. "
        "No labels are needed.",
    ),
]
RecipeOfRows = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        "-r",
        help="With --max-drop or --max-differ: the recipe with the task and the rows. Default: the "
        "recipe of A's run, or of B's; with --unlabelled, what A's directory says.",
        autocompletion=completion.recipes,
    ),
]
CertificateFile = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", help="With --max-drop or --max-differ: write the certificate here."
    ),
]
Unlabelled = Annotated[
    str | None,
    typer.Option(
        "--unlabelled",
        help="File of rows without labels (csv, tsv, json, jsonl, parquet), on which answers are "
        "compared; with --max-drop they are used if they certify more than the recipe's labelled "
        "rows.",
    ),
]
Ask = Annotated[
    str | None,
    typer.Option(
        "--ask",
        help="With --max-drop and --unlabelled: write this table with the rows on which the two "
        "models answer differently, for people to label; the same command reads their labels. "
        "Exits with 4 until then. With --force, labels that were changed later count, and nothing "
        "is promised.",
    ),
]
Labels = Annotated[
    int | None,
    typer.Option(
        "--labels",
        min=1,
        help="With --ask: the largest number of rows to label. Default: 60.",
        show_default=False,
    ),
]
AskAll = Annotated[
    bool,
    typer.Option(
        "--ask-all",
        help="With --ask: ask for the labels of all sizes in one round. Default: ask for a smaller "
        "size's only once the larger one is certified, which takes fewer labels.",
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
NextTokens = Annotated[
    bool,
    typer.Option(
        "--next-tokens",
        help="With --max-differ, for models that write: compare the likeliest next tokens on the "
        "texts of the file, answers included, instead of the texts that the models write.",
    ),
]
Confidence = Annotated[
    float | None,
    typer.Option(
        "--confidence",
        help="With --max-drop or --max-differ: confidence of the certification, below 1. "
        "Default: 0.95.",
        show_default=False,
    ),
]
FactorDtype = Annotated[
    str,
    typer.Option(
        "--dtype", help="Number format of the stored factors: float32, bfloat16 or float16."
    ),
]
Code = Annotated[
    list[Path] | None,
    typer.Option(
        "--code",
        help="A Python file with your own methods, task families or loggers. May be given "
        "repeatedly.",
    ),
]
PreviewInDryRun = Annotated[
    int | None,
    typer.Option(
        "--preview",
        min=0,
        help="With --dry-run: number of rows to show as the model receives them. Default: 2.",
    ),
]
Preview = Annotated[
    int,
    typer.Option("--preview", min=0, help="Number of rows to show as the model receives them."),
]
NoVerify = Annotated[
    bool,
    typer.Option(
        "--no-verify",
        help="Skip the final check that the written files give the same outputs as the original.",
    ),
]

Target = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="A run, an adapter (ours or any PEFT LoRA) or a model: its directory or Hub id.",
    ),
]
BaseModel = Annotated[
    str | None,
    typer.Option("--base", help="The base model. Default: the model that the adapter names."),
]
System = Annotated[
    str | None,
    typer.Option(
        "--system", help="The system message. Default: the system message of the training, if any."
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        help="Sampling temperature, above 0: higher values vary the answers more. Default: 0.7.",
        show_default=False,
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        "--top-p",
        help="Sample from the likeliest tokens whose probabilities add up to this share. "
        "Default: 0.95.",
        show_default=False,
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        "--top-k",
        min=0,
        help="Sample from this many of the likeliest tokens; 0: from all. Default: 50.",
        show_default=False,
    ),
]
NewTokens = Annotated[
    int, typer.Option("--max-new-tokens", min=1, help="Largest number of tokens in an answer.")
]
Penalty = Annotated[
    float | None,
    typer.Option(
        "--repetition-penalty",
        help="Above 1: tokens that have occurred become less likely, for example 1.1.",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        min=0,
        max=2**31,
        help="Seed of the sampling; the same seed gives the same answers. Default: a new seed "
        "each time.",
        show_default=False,
    ),
]
Greedy = Annotated[
    bool, typer.Option("--greedy", help="Always take the likeliest token; no sampling.")
]
ComputeDtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        help="Number format of the computation: float32, bfloat16 or float16. Default: as "
        "in training.",
    ),
]


def load_plugins(code: Sequence[Path] | None) -> None:
    """Register the methods, task families and loggers of `--code` files."""
    if code:
        from sora_cli.recipe.plugins import load_code

        for path in code:
            load_code(path)

"""The commands that put a trained model to work: their flags, and one short function each."""

from __future__ import annotations

from typing import Annotated

import typer

from sora_cli.commands import completion
from sora_cli.commands.options import Json, ReadOverrides

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
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype", help="Compute in float32, bfloat16 or float16; default: as in training."
    ),
]


def predict(
    target: Target,
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="The rows: csv, tsv, jsonl, json or parquet; - is stdin."
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            help="The file to write, by its ending csv, tsv, jsonl or parquet; - is stdout.",
        ),
    ],
    overrides: ReadOverrides = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Add the probability of each class, too.")
    ] = False,
    prefix: Annotated[
        str,
        typer.Option("--prefix", help="Put before the new columns' names.", show_default=False),
    ] = "",
    stream: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="The form of stdin and stdout: jsonl or csv; default: jsonl.",
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", help="The task family, if the files do not say which it is."),
    ] = None,
    base: BaseModel = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, help="Rows that the model gets at a time."),
    ] = None,
    as_json: Json = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Overwrite an existing file, and begin anew."),
    ] = False,
) -> None:
    """Write rows with a model's answers; rows need no labels."""
    from sora_cli.commands.predict import predict

    predict(
        target,
        file,
        output,
        overrides=overrides or [],
        base=base,
        task=task,
        batch_size=batch_size,
        probabilities=probabilities,
        prefix=prefix,
        stream=stream,
        as_json=as_json,
        force=force,
    )


def generate(
    target: Target,
    prompt: Annotated[
        str, typer.Option("--prompt", "-p", help="What to answer; - is stdin, to its end.")
    ],
    system: System = None,
    raw: Annotated[
        bool,
        typer.Option("--raw", help="Go on with the prompt as it is: no template, no headings."),
    ] = False,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    max_new_tokens: NewTokens = 256,
    repetition_penalty: Penalty = None,
    seed: Seed = None,
    greedy: Greedy = False,
    base: BaseModel = None,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Print what a trained model writes to a prompt, as it comes."""
    from sora_cli.commands.generate import generate
    from sora_cli.use.sampling import Given

    given = Given(temperature, top_p, top_k, max_new_tokens, repetition_penalty, seed, greedy)
    generate(
        target,
        prompt=prompt,
        system=system,
        raw=raw,
        given=given,
        base=base,
        dtype=dtype,
        as_json=as_json,
    )


def chat(
    target: Target,
    other: Annotated[
        str | None,
        typer.Argument(
            metavar="B",
            help="Another one, which answers the same side by side.",
            autocompletion=completion.runs,
        ),
    ] = None,
    system: System = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    max_new_tokens: NewTokens = 256,
    repetition_penalty: Penalty = None,
    seed: Seed = None,
    greedy: Greedy = False,
    base: BaseModel = None,
    dtype: Dtype = None,
) -> None:
    """Talk with a trained model, or with two; /base switches the adapter off."""
    from sora_cli.commands.chat import chat
    from sora_cli.use.sampling import Given

    given = Given(temperature, top_p, top_k, max_new_tokens, repetition_penalty, seed, greedy)
    targets = [target] if other is None else [target, other]
    chat(targets, system=system, given=given, base=base, dtype=dtype)

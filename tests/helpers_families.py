"""A small but complete run of each task family on disk: a tiny model, rows, a recipe."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, TrainerCallback

from methods.inject import inject
from methods.registry import create
from sora_cli.model.base import Base, load_base
from sora_cli.recipe.load import load_recipe
from sora_cli.recipe.recipe import Recipe
from sora_cli.run.prepare import load_task
from sora_cli.tasks import create_task
from sora_cli.train.callback import attach
from sora_cli.train.trainer import build_trainer
from tests.helpers_chat import instruct_rows, write_chat_base, write_chat_recipe
from tests.helpers_images import write_image_recipe, write_pair_recipe
from tests.helpers_models import tiny_bert, tiny_bert_for, tiny_llama, tiny_t5
from tests.helpers_runs import WORDS, save_base, save_recipe, write_recipe, write_rows

TRAINING = {"gradient_accumulation": 2}


def _causal_lm(folder: Path) -> Path:
    return write_chat_recipe(
        folder,
        training=TRAINING,
        task={"metrics": ["loss", "perplexity", "token_accuracy", "exact_match", "rougeL"]},
    )


def _packed_lm(folder: Path) -> Path:
    return write_chat_recipe(folder, training=TRAINING, task={"packing": True})


def preference_rows(rows: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """The better answer is the prompt's last two words, the other one some words."""
    rng = random.Random(seed)
    return [
        {
            "prompt": row["instruction"],
            "chosen": row["output"],
            "rejected": " ".join(rng.choices(WORDS, k=rng.randint(1, 4))),
        }
        for row in instruct_rows(rows, seed=seed)
    ]


def write_preference_recipe(folder: Path, **blocks: Any) -> Path:
    """A recipe that trains for seconds; keyword arguments are merged into its blocks."""
    data = {"files": _files(folder, preference_rows), "max_length": 32}
    return write_family_recipe(
        folder,
        **{
            "model": {"path": str(write_chat_base(folder / "base"))},
            **blocks,
            "task": {"name": "preference", **blocks.get("task", {})},
            "data": {**data, **blocks.get("data", {})},
        },
    )


def _decoder_classification(folder: Path) -> Path:
    """The answer is read at the last token that is no padding."""
    return write_recipe(folder, tiny_llama(num_labels=2), training=TRAINING)


def write_family_recipe(folder: Path, **blocks: Any) -> Path:
    """A recipe from its blocks, which trains with SoRA for seconds."""
    return save_recipe(folder / "family.yaml", {}, blocks, **TRAINING)


def choice_rows(rows: int, *, seed: int = 0, choices: int = 3) -> list[dict[str, Any]]:
    """The right choice begins with the context's first word, the others with other ones."""
    rng = random.Random(seed)
    made = []
    for row in range(rows):
        firsts, right = rng.sample(WORDS, choices), row % choices
        texts = [" ".join([f, *rng.choices(WORDS, k=rng.randint(1, 5))]) for f in firsts]
        context = " ".join([firsts[right], *rng.choices(WORDS, k=rng.randint(1, 6))])
        made.append({"context": context, "choices": texts, "label": right})
    return made


def _multiple_choice(folder: Path) -> Path:
    return write_family_recipe(
        folder,
        model={"path": str(save_base(tiny_bert_for("MultipleChoice"), folder / "base"))},
        task={"name": "multiple-choice"},
        data={"files": _files(folder, choice_rows)},
    )


def text_tokenizer(*, ends: bool = True) -> PreTrainedTokenizerFast:
    """One token a word, as T5 numbers its special ones; texts end with </s> if `ends`."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if ends:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=64,
    )


def _seq2seq(folder: Path) -> Path:
    tiny_t5().save_pretrained(folder / "base")
    text_tokenizer().save_pretrained(folder / "base")
    return write_family_recipe(
        folder,
        model={"path": str(folder / "base")},
        task={
            "name": "seq2seq",
            "metrics": ["rougeL", "exact_match", "token_accuracy"],
            "max_new_tokens": 6,
        },
        data={
            "files": _files(folder, instruct_rows),
            "columns": {"source": "instruction", "target": "output"},
        },
    )


def question_rows(rows: int, *, seed: int = 0, words: int = 20) -> list[dict[str, Any]]:
    """The answer is what stands after the question's word, which the context has once."""
    rng = random.Random(seed)
    made = []
    for row in range(rows):
        asked, *others = rng.sample(WORDS, len(WORDS))
        before = rng.choices(others, k=rng.randint(1, words))
        answer = " ".join(rng.choices(others, k=rng.randint(1, 2)))
        start = len(" ".join([*before, asked])) + 1
        after = rng.choices(others, k=rng.randint(1, words))
        made.append(
            {
                "id": f"q{row}",
                "question": asked,
                "context": " ".join([*before, asked, answer, *after]),
                "answers": {"text": [answer], "answer_start": [start]},
            }
        )
    return made


def _question_answering(folder: Path) -> Path:
    return write_family_recipe(
        folder,
        model={"path": str(save_base(tiny_bert_for("QuestionAnswering"), folder / "base"))},
        task={"name": "question-answering", "stride": 6, "max_answer_length": 4},
        data={"files": _files(folder, question_rows), "max_length": 20},
    )


def tagged_rows(rows: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """ "the" and what follows is an animal, "a" and what follows a thing."""
    rng = random.Random(seed)
    made = []
    for _ in range(rows):
        tokens, tags = [], []
        for _ in range(rng.randint(2, 5)):
            kind = rng.choice([("the", "ANIMAL"), ("a", "THING"), None])
            tokens += [kind[0] if kind else "not", rng.choice(WORDS[:12])]
            tags += [f"B-{kind[1]}", f"I-{kind[1]}"] if kind else ["O", "O"]
        made.append({"tokens": tokens, "tags": tags})
    return made


def _token_classification(folder: Path) -> Path:
    return write_family_recipe(
        folder,
        model={"path": str(save_base(tiny_bert_for("TokenClassification"), folder / "base"))},
        task={"name": "token-classification"},
        data={"files": _files(folder, tagged_rows), "max_length": 9},
    )


def _files(folder: Path, make: Callable[..., list[dict[str, Any]]]) -> dict[str, str]:
    """48 training rows and 16 others, written as JSON lines."""
    return {
        "train": write_rows(folder / "train.jsonl", make(48)),
        "validation": write_rows(folder / "validation.jsonl", make(16, seed=1)),
    }


class _Gradients(TrainerCallback):
    """Keeps every step's gradients, as the optimiser gets them."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        named = kwargs["model"].named_parameters()
        self.steps.append({n: p.grad.clone() for n, p in named if p.grad is not None})


def step_gradients(
    folder: Path, model: Any, processor: Any, rows: list[dict[str, Any]], *, accumulation: int,
    **blocks: dict[str, Any],
) -> list[dict[str, torch.Tensor]]:  # fmt: skip
    """Each step's gradients of LoRA layers with random factors: one pass in steps of 8 rows.

    Args:
        model: without dropout.
        rows: raw rows of the task in `blocks`.
    """
    training = {
        "epochs": 1, "batch_size": 8, "max_grad_norm": 0, "evaluate": "no", "checkpoint": "no",
        "gradient_accumulation": accumulation, **blocks.pop("training", {}),
    }  # fmt: skip
    recipe = Recipe(
        **{"model": {"path": "unused"}, "data": {"path": "unused"}, **blocks},
        method={"name": "lora", "r": 3},
        training=training,
    )
    task, raw = create_task(recipe.task, recipe.data), Dataset.from_list(rows)
    task.bind(raw)
    task.adapt_model(model, processor)
    encoded = task.encode(raw, processor, training=True)
    base = Base(model.double(), processor, "tiny", "tiny", None, (), ())
    trainer = build_trainer(recipe, task, base, folder, train=encoded, select=encoded)
    method, generator = create("lora", r=3), torch.Generator().manual_seed(0)
    layers = inject(trainer.model, method, generator=generator)
    for layer in layers.values():  # so that no gradient is zero by construction
        layer.B.data.normal_(generator=generator)
    attach(trainer, method, layers)
    gradients = _Gradients()
    trainer.add_callback(gradients)
    trainer.train()
    return gradients.steps


def check_accumulation(
    folder: Path, model: Any, processor: Any, rows: list[dict[str, Any]], *, steps: int,
    near: float = 1e-6, **blocks: dict[str, Any],
) -> None:  # fmt: skip
    """Check that steps in four micro-batches have the gradients of whole ones.

    Args:
        steps: of one pass over the rows.
        near: by how much a number may differ, relative to the largest one of its factor.
    """
    whole, parts = (
        step_gradients(folder, copy.deepcopy(model), processor, rows, accumulation=n, **blocks)
        for n in (1, 4)
    )
    assert (len(whole), len(parts)) == (steps, steps)
    for one, four in zip(whole, parts, strict=True):
        for name, gradient in one.items():
            within = float(near * gradient.abs().max()) + 1e-12
            torch.testing.assert_close(four[name], gradient, rtol=0, atol=within)
        assert all(gradient.abs().max() > 0 for gradient in one.values())


def _regression(folder: Path) -> Path:
    task = {"name": "sequence-regression"}
    return write_recipe(folder, tiny_bert(num_labels=1), training=TRAINING, task=task)


def retrieval_rows(rows: int, *, seed: int = 0, negatives: int = 1) -> list[dict[str, Any]]:
    """A document begins with the words of its query, a wrong one with others; some repeat."""
    rng = random.Random(seed)
    made: list[dict[str, Any]] = []
    for row in range(rows):
        query = rng.choices(WORDS, k=rng.randint(2, 4))
        texts = [[*query, *rng.choices(WORDS, k=rng.randint(0, 9))]]
        texts += [rng.choices(WORDS, k=rng.randint(3, 9)) for _ in range(negatives)]
        names = ["query", "positive", "negative", *(f"negative_{i}" for i in range(2, 9))]
        made.append(dict(zip(names, (" ".join(t) for t in (query, *texts)), strict=False)))
        if row % 8 == 7:
            made[-1]["positive"] = made[-2]["positive"]
    return made


def _embedding(folder: Path) -> Path:
    return write_family_recipe(
        folder,
        model={"path": str(save_base(tiny_bert(), folder / "base"))},
        task={"name": "embedding"},
        data={"files": _files(folder, retrieval_rows)},
    )


def ranking_rows(rows: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Relevant documents begin with the words of their query; some queries have none."""
    rng = random.Random(seed)
    made = []
    for row in range(rows):
        query = rng.sample(WORDS, rng.randint(2, 4))
        labels = [float(rng.random() < 0.4) for _ in range(rng.randint(2, 5))]
        labels[0] = float(row % 8 != 7)
        starts = (query if label else rng.choices(WORDS, k=3) for label in labels)
        documents = [" ".join([*own, *rng.choices(WORDS, k=rng.randint(0, 4))]) for own in starts]
        made.append({"query": " ".join(query), "documents": documents, "labels": labels})
    return made


def single_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same documents, one a row."""
    return [
        {"query": row["query"], "passage": document, "label": label}
        for row in rows
        for document, label in zip(row["documents"], row["labels"], strict=True)
    ]


def _reranking(folder: Path) -> Path:
    return write_family_recipe(
        folder,
        model={"path": str(save_base(tiny_bert(num_labels=1), folder / "base"))},
        task={"name": "reranking"},
        data={"files": _files(folder, ranking_rows), "max_length": 16},
    )


def _single_reranking(folder: Path) -> Path:
    """One document a row, a loss that compares those of a query, and a decoder."""
    return write_family_recipe(
        folder,
        model={"path": str(save_base(tiny_llama(num_labels=1), folder / "base"))},
        task={"name": "reranking", "loss": "lambda"},
        data={"files": _files(folder, lambda n, **more: single_rows(ranking_rows(n // 3, **more)))},
    )


def _reward(folder: Path) -> Path:
    return write_preference_recipe(folder, task={"name": "reward"})


def thumb_rows(rows: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Each pair gives one of its answers; of five rows three are good."""
    return [
        {
            "prompt": row["prompt"],
            "completion": row["chosen" if number % 5 < 3 else "rejected"],
            "label": number % 5 < 3,
        }
        for number, row in enumerate(preference_rows(rows, seed=seed))
    ]


def _thumbs(folder: Path) -> Path:
    recipe = write_preference_recipe(folder, task={"name": "thumbs"})
    _files(folder, thumb_rows)
    return recipe


FAMILIES: dict[str, Callable[[Path], Path]] = {
    "causal-lm": _causal_lm,
    "causal-lm, packed": _packed_lm,
    "sequence-classification, decoder": _decoder_classification,
    "sequence-regression": _regression,
    "multiple-choice": _multiple_choice,
    "preference": write_preference_recipe,
    "reward": _reward,
    "thumbs": _thumbs,
    "seq2seq": _seq2seq,
    "question-answering": _question_answering,
    "token-classification": _token_classification,
    "image-classification": lambda folder: write_image_recipe(folder, training=TRAINING),
    "embedding": _embedding,
    "reranking": _reranking,
    "reranking, single": _single_reranking,
    "image-text": lambda folder: write_pair_recipe(folder, training=TRAINING),
}
"""By family, what writes a recipe into an empty directory."""


def whole_model(folder: Path, kind: str) -> tuple[Path, Path]:
    """A recipe of the family, and its untrained model with its head."""
    recipe = FAMILIES[kind](folder)
    loaded = load_recipe(recipe)
    task, _ = load_task(loaded.recipe)
    base = load_base(loaded.recipe.model, task)
    base.model.save_pretrained(folder / "whole")
    base.processor.save_pretrained(folder / "whole")
    return recipe, folder / "whole"

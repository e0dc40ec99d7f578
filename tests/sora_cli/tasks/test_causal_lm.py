"""Instructions, chats and plain text: what is learned of them, how it is scored and written."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset

from sora_cli.core.errors import SoraError
from sora_cli.recipe.recipe import DataBlock, TaskBlock
from sora_cli.tasks import create_task, learned
from sora_cli.tasks.causal_lm import CausalLm
from sora_cli.tasks.encoded import Predictions
from sora_cli.tasks.language import IGNORED, token_choices
from tests.helpers_chat import CHATML, chat_tokenizer, instruct_rows, write_chat_recipe
from tests.helpers_errors import refusal
from tests.helpers_models import tiny_bert, tiny_gpt2, tiny_llama
from tests.helpers_rows import assert_rows_add_up
from tests.helpers_runs import resumes_as_if_whole, train

ROWS = [
    {"instruction": "red cat", "input": "", "output": "old dog"},
    {"instruction": "the bird sees", "input": "a fish", "output": "no"},
]
CHAT = [
    {"role": "user", "content": "red cat"},
    {"role": "assistant", "content": "old dog"},
    {"role": "user", "content": "a bird"},
    {"role": "assistant", "content": "no fish"},
]


def _task(rows: list[dict[str, Any]], *, data: Any = None, **options: Any) -> CausalLm:
    block = DataBlock(path="unused", **{"max_length": 64, **(data or {})})
    task = create_task(TaskBlock(name="causal-lm", **options), block)
    task.bind(Dataset.from_list(rows))
    assert isinstance(task, CausalLm)
    return task


def _encoded(task: CausalLm, rows: list[dict[str, Any]], **options: Any) -> Any:
    return task.encode(Dataset.from_list(rows), chat_tokenizer(), **options)


def _learned(row: dict[str, Any]) -> list[str]:
    """Each run of learned tokens, as text."""
    tokenizer, runs = chat_tokenizer(), [[]]
    for token, label in zip(row["input_ids"], row["labels"], strict=True):
        assert label in (-100, token)
        if label == -100:
            runs.append([])
        else:
            runs[-1].append(tokenizer.convert_ids_to_tokens(token))
    return [" ".join(run) for run in runs if run]


def _read(row: dict[str, Any]) -> str:
    return " ".join(chat_tokenizer().convert_ids_to_tokens(row["input_ids"]))


def test_an_answer_is_learned_and_its_instruction_is_not() -> None:
    rows = _encoded(_task(ROWS), ROWS).dataset
    assert [_learned(row) for row in rows] == [["old dog <|im_end|>"], ["no <|im_end|>"]]
    assert _read(rows[0]) == (
        "<|im_start|> user red cat <|im_end|> <|im_start|> assistant old dog <|im_end|>"
    )
    assert _read(rows[1]).startswith("<|im_start|> user the bird sees a fish <|im_end|>")


def test_headings_where_there_is_no_chat_template() -> None:
    task = _task(ROWS, prompt="plain", system="every")
    rows = task.encode(Dataset.from_list(ROWS), chat_tokenizer(template=None)).dataset
    assert _read(rows[0]) == ("every ### Instruction: red cat ### Response: old dog <|im_end|>")
    assert "### Input: a fish ### Response: no" in _read(rows[1])
    assert [_learned(row) for row in rows] == [["old dog <|im_end|>"], ["no <|im_end|>"]]


def test_a_template_of_the_recipes_own_takes_any_column() -> None:
    rows = [{"ask": "red cat", "kind": "blue", "reply": "old dog"}]
    task = _task(rows, prompt="{kind} {ask}", data={
        "columns": {"instruction": "ask", "output": "reply"}})  # fmt: skip
    row = _encoded(task, rows).dataset[0]
    assert _read(row) == "blue red cat old dog <|im_end|>"
    assert task.input_columns == ("kind", "ask")
    assert task.label_column == "reply"


@pytest.mark.parametrize("keys", [("role", "content"), ("from", "value")])
def test_every_answer_of_a_chat_is_learned(keys: tuple[str, str]) -> None:
    names = {"user": "human", "assistant": "gpt"} if keys[0] == "from" else {}
    chat = [{keys[0]: names.get(m["role"], m["role"]), keys[1]: m["content"]} for m in CHAT]
    rows = [{"conversations": chat}]
    encoded = _encoded(_task(rows), rows)
    assert _learned(encoded.dataset[0]) == ["old dog <|im_end|>", "no fish <|im_end|>"]
    assert encoded.examples["reference"][:] == ["no fish"]
    prompt = chat_tokenizer().convert_ids_to_tokens(encoded.examples["prompt"][0])
    assert " ".join(prompt).endswith("dog <|im_end|> <|im_start|> user a bird <|im_end|> "
                                     "<|im_start|> assistant")  # fmt: skip


def test_a_template_that_changes_earlier_turns_leaves_the_last_answer() -> None:
    """As those do that leave out the reasoning of all turns but the last."""
    template = CHATML.replace("{{ m['content'] }}", "{{ m['content'] if loop.last or "
                              "m['role'] != 'assistant' else 'every' }}")  # fmt: skip
    rows = [{"messages": CHAT}]
    encoded = _task(rows).encode(Dataset.from_list(rows), chat_tokenizer(template=template))
    assert _learned(encoded.dataset[0]) == ["no fish <|im_end|>"]


def test_all_of_a_plain_text_is_learned_but_its_first_token() -> None:
    rows = [{"text": "the cat sees a dog"}]
    encoded = _encoded(_task(rows), rows)
    assert _learned(encoded.dataset[0]) == ["cat sees a dog <|im_end|>"]
    assert encoded.lengths.tolist() == [6]
    cut = _encoded(_task(rows, data={"max_length": 3}, metrics=["loss"]), rows)
    assert cut.truncated == 1
    assert not any(cut.notes.values()), "there are no answers"


@pytest.mark.parametrize(
    ("rows", "data", "options", "message"),
    [
        ([{"a": "x"}], {}, {}, "no instructions, chats or texts found among the columns a"),
        (ROWS, {"columns": {"instruction": "outptu"}}, {}, "did you mean 'output'"),
        (ROWS, {}, {"prompt": "{nothing}"}, "no column 'nothing'"),
        ([{"text": "cat"}], {}, {"metrics": ["rougeL"]}, "rows of plain text have no answers"),
    ],
)
def test_rows_that_do_not_fit(rows: Any, data: Any, options: Any, message: str) -> None:
    with pytest.raises(SoraError, match=message):
        _task(rows, data=data, **options)


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": None, "output": "cat"},
        {"instruction": "cat", "output": ""},
        {"messages": [{"role": "user", "content": "cat"}]},
        {"messages": [{"role": "user"}]},
        {"messages": "cat"},
    ],
    ids=str,
)
def test_a_row_that_does_not_fit_is_named(
    row: Any,
) -> None:
    good = {"messages": CHAT} if "messages" in row else {"instruction": "cat", "output": "dog"}
    task = _task([good])
    with refusal():
        task.check(Dataset.from_list([row]))


def test_long_rows_lose_the_end_of_the_answer_and_then_the_beginning_of_the_prompt() -> None:
    words = "the cat sees a dog the cat sees a dog"
    rows = [{"instruction": "red", "output": words}, {"instruction": words, "output": words}]
    encoded = _encoded(_task(rows, data={"max_length": 12}), rows)
    assert encoded.truncated == 2
    assert encoded.longest == 5 + 10 + 10 + 1
    assert encoded.lengths.tolist() == [12, 12]
    assert _learned(encoded.dataset[0]) == ["the cat sees a dog the"]
    assert _learned(encoded.dataset[1]) == ["the cat sees a dog the"]
    assert _read(encoded.dataset[1]).endswith("<|im_start|> assistant the cat sees a dog the")


def _model(**options: Any) -> Any:
    return tiny_llama(eos_token_id=3, bos_token_id=2, **options)


def _batch(task: CausalLm, rows: Any) -> dict[str, Any]:
    batch: dict[str, Any] = task.collator(chat_tokenizer())([rows[i] for i in range(len(rows))])
    return batch


def test_the_loss_is_the_models_own_over_all_tokens() -> None:
    rows = instruct_rows(7)
    task, model = _task(rows), _model()
    encoded = _encoded(task, rows)
    batch = _batch(task, encoded.dataset)
    with torch.no_grad():
        whole = float(model(**batch).loss)
        parts = [_batch(task, encoded.dataset.select(r)) for r in (range(3), range(3, 7))]
        kept = [task.outputs_to_keep(model(**task.scored_inputs(part)), part) for part in parts]
    predictions = Predictions(torch.cat(kept).numpy(), None, encoded)
    assert task.loss(predictions) == pytest.approx(whole, rel=1e-5)
    scores = task.scores(predictions)
    assert scores["perplexity"] == pytest.approx(math.exp(whole), rel=1e-5)
    items = [task.loss_items(part) for part in parts]
    assert sum(items) == predictions.outputs[:, 1].sum()
    logits = model(**batch).logits[:, :-1].argmax(-1)
    labels = batch["labels"][:, 1:]
    right = float((logits == labels)[labels != -100].float().mean())
    assert scores["token_accuracy"] == pytest.approx(right)


@pytest.mark.parametrize("head", ["whole", "learned places"])
def test_next_tokens_are_the_likeliest_at_each_place_of_the_loss(head: str) -> None:
    """Each row by itself, without padding, gives the tokens that a batch gives."""
    rows = [*instruct_rows(6), {"instruction": "red", "output": "the old cat sees a blue dog"}]
    task, model = _task(rows), _model()
    encoded, expected = _encoded(task, rows), []
    for row in encoded.dataset:
        with torch.no_grad():
            best = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1].argmax(-1)
        learned_here = torch.tensor(row["labels"][1:]) != IGNORED
        expected.append(best[learned_here].tolist())
    if head == "learned places":
        model.config.name_or_path = "tiny"
        task.adapt_model(model, chat_tokenizer())
    batch = _batch(task, encoded.dataset)
    with torch.no_grad():
        tokens = task.next_tokens(model(**task.scored_inputs(batch)), batch)
    assert tokens.shape == batch["labels"].shape
    assert token_choices(tokens.numpy()) == expected
    assert {len(choices) for choices in expected} == {3, 8}  # answers and their ends


def test_next_tokens_of_a_broken_model_are_refused() -> None:
    """Two broken models would agree on every row."""
    task = _task(ROWS)
    batch = _batch(task, _encoded(task, ROWS).dataset)
    logits = torch.zeros(*batch["labels"].shape, 40)
    logits[0, :, 3:] = -math.inf  # of words that the model never writes
    assert token_choices(task.next_tokens({"logits": logits}, batch).numpy())
    logits[1, batch["learned"][-1] % batch["labels"].shape[1], 7] = math.nan
    with refusal():
        token_choices(task.next_tokens({"logits": logits}, batch).numpy())


def test_one_broken_row_spoils_every_score() -> None:
    task = _task(ROWS, metrics=["loss", "perplexity", "token_accuracy", "rougeL", "exact_match"])
    outputs = np.array([[1.0, 2, 1], [np.nan, 2, 0]])
    predictions = Predictions(outputs, None, _encoded(task, ROWS), ["old dog", "no"])
    assert all(math.isnan(value) for value in task.scores(predictions).values())
    assert_rows_add_up(task, predictions, 2)
    sound = np.nan_to_num(outputs, nan=3.0)
    whole = Predictions(sound, None, predictions.encoded, predictions.texts)
    assert_rows_add_up(task, whole, 2)


@pytest.mark.parametrize("make", [_model, tiny_gpt2])
def test_packed_rows_have_the_loss_and_gradients_of_padded_ones(make: Any) -> None:
    rows = instruct_rows(9)
    padded, packing = _task(rows), _task(rows, packing=True, data={"max_length": 40})
    model = make().double()
    packing.adapt_model(model, chat_tokenizer())
    found = []
    for task in (padded, packing):
        encoded = _encoded(task, rows, training=True)
        model.zero_grad()
        out = model(**_batch(task, encoded.dataset))
        out.loss.backward()
        grads = {n: p.grad.clone() for n, p in model.named_parameters()}
        found.append((out.loss.item(), grads, len(encoded.lengths), int(encoded.lengths.sum())))
    (loss, grads, n, tokens), (loss_p, grads_p, n_p, tokens_p) = found
    assert n == 9
    assert n_p < 6
    assert tokens == tokens_p  # nothing is lost
    assert loss_p == pytest.approx(loss, rel=1e-5)  # the model's loss is of 32 bits
    for name, grad in grads.items():
        torch.testing.assert_close(grads_p[name], grad, rtol=1e-4, atol=1e-6)


def test_a_model_that_would_mix_packed_rows_is_refused() -> None:
    config = transformers.BloomConfig(vocab_size=40, hidden_size=16, n_layer=2, n_head=2)
    model = transformers.BloomForCausalLM(config)
    with refusal():
        _task(ROWS, packing=True).adapt_model(model, chat_tokenizer())
    _task(ROWS).adapt_model(model, chat_tokenizer())


def test_a_model_that_sees_what_it_is_to_predict_is_refused() -> None:
    config = tiny_bert().config
    for decoder in (True, False):
        config.is_decoder = decoder
        model = transformers.BertLMHeadModel(config)
        if decoder:
            _task(ROWS).adapt_model(model, chat_tokenizer())
        else:
            with pytest.raises(SoraError, match="reads text in both directions"):
                _task(ROWS).adapt_model(model, chat_tokenizer())


def test_what_is_written_is_the_likeliest_token_each_time() -> None:
    rows = instruct_rows(5)
    task, model, tokenizer = _task(rows, max_new_tokens=4), _model(), chat_tokenizer()
    model.config.name_or_path = "tiny"
    encoded = _encoded(task, rows)
    written = task.write(model, tokenizer, encoded.examples)
    for prompt, text in zip(encoded.examples["prompt"][:], written, strict=True):
        ids = list(prompt)
        for _ in range(4):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == 3:
                break
        expected = tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True).strip()
        assert text == expected


def test_texts_are_scored_when_they_are_asked_for() -> None:
    task = _task(ROWS, metrics=["exact_match", "rouge1", "rougeL", "loss"])
    outputs = np.array([[1.0, 2, 1], [3.0, 2, 0]])
    encoded = _encoded(task, ROWS)
    scores = task.scores(Predictions(outputs, None, encoded, ["dog old", "no"]))
    # of 'dog old' and 'old dog' the words agree, the longest common sequence is one of two
    assert scores == pytest.approx({"exact_match": 0.5, "rouge1": 1.0, "rougeL": 0.75, "loss": 1.0})
    assert task.scores(Predictions(outputs, None, encoded)) == {"loss": 1.0}
    records = task.readable(Predictions(outputs, None, encoded, ["dog old", "no"]))
    assert records[1]["prediction"] == records[1]["label"] == "no"
    assert records[0]["loss"] == 0.5
    assert "red cat" in records[0]["source"]


@pytest.mark.parametrize("loss", ["auto", "chunked"])
def test_a_run_in_chunks_resumes_as_if_it_were_whole(
    loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learned, "CHUNK", 1)
    monkeypatch.setattr(learned, "_FEWEST", 5)
    seen, made = [], learned.losses_in_chunks
    monkeypatch.setattr(learned, "losses_in_chunks", lambda *given: seen.append(1) or made(*given))
    training = {"max_steps": 3, "gradient_accumulation": 2, "loss": loss}
    recipe = write_chat_recipe(tmp_path, rows=16, training=training)
    report = resumes_as_if_whole(recipe, tmp_path, monkeypatch)
    assert report.recipe["training"]["loss"] == loss
    assert seen


def test_a_run_in_chunks_ends_as_one_of_all_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learned, "CHUNK", 1)
    monkeypatch.setattr(learned, "_FEWEST", 5)
    training = {"max_steps": 6, "evaluate": 3, "logging_steps": 1}
    recipe = write_chat_recipe(tmp_path, rows=24, training=training)
    whole, chunks = (
        train(recipe, f"training.loss={loss}", f"output.dir={tmp_path / loss}")
        for loss in ("logits", "chunked")
    )
    losses, expected = ([e["loss"] for e in r.history if "loss" in e] for r in (chunks, whole))
    assert losses == pytest.approx(expected, rel=1e-4)
    assert chunks.metrics["validation"] == pytest.approx(whole.metrics["validation"], rel=1e-4)

"""Chats of agents: calls, results and tools, in the forms in which rows and templates have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from sora_cli.core.errors import SoraError
from sora_cli.data.places import RowError
from sora_cli.recipe.recipe import DataBlock, TaskBlock
from sora_cli.tasks import create_task
from sora_cli.tasks.messages import Message, chat_rows, message_list, tools_of
from sora_cli.tasks.prompts import LAST_ONLY, NO_CALLS, NO_TOOLS, Dialogue, chat_dialogue
from tests.helpers_chat import CHATML, chat_tokenizer, write_chat_recipe
from tests.helpers_runs import run, train, write_rows

TOOLS_SHOWN = "{% if tools %}{% for t in tools %}{{ t | tojson }} {% endfor %}{% endif %}"
CALLS_SHOWN = (
    "{% for m in messages %}<|im_start|> {{ m.role }} {% if m.content %}{{ m.content }} {% endif %}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }} {{ ARGUMENTS }} {% endfor %}"
    "<|im_end|> {% endfor %}{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)
FOR_TOOLS = TOOLS_SHOWN + CALLS_SHOWN.replace("ARGUMENTS", "c.function.arguments | tojson")
JOINED = CALLS_SHOWN.replace("ARGUMENTS", "'(' + c.function.arguments + ')'").replace(
    "{% if m.content %}{{ m.content }} {% endif %}", "{{ m['content'] + ' ' }}")  # fmt: skip
PRINTED = CALLS_SHOWN.replace("ARGUMENTS", "c.function.arguments")
OF_SMOLLM2 = CHATML.replace("{{ m['content'] }}", "{{ m['content'] + '' }}")

TOOL = {"type": "function", "function": {"name": "sees", "parameters": {"type": "object"}}}


def call(arguments: Any, *, name: str = "sees") -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def trace(arguments: Any, *, content: Any = None, result: Any = "a fish") -> list[Message]:
    return [
        {"role": "user", "content": "red cat"},
        {"role": "assistant", "content": content, "tool_calls": [call(arguments)]},
        {"role": "tool", "content": result, "tool_call_id": "1"},
        {"role": "assistant", "content": "old dog"},
    ]


def dialogue(template: str, chat: list[Message], **options: Any) -> Dialogue:
    read = message_list(chat, "messages")
    return chat_dialogue(read, chat_tokenizer(template=template), **options)


def learned(made: Dialogue) -> list[str]:
    return [text.strip() for text, is_learned in made.pieces if is_learned]


@pytest.mark.parametrize("arguments", [{"x": "a bird"}, '{"x": "a bird"}'], ids=["object", "text"])
@pytest.mark.parametrize(
    ("template", "written"),
    [(FOR_TOOLS, 'sees {"x": "a bird"}'), (JOINED, 'sees ({"x": "a bird"})'),
     (PRINTED, 'sees {"x": "a bird"}')],
    ids=["as JSON", "joined", "printed"],
)  # fmt: skip
def test_calls_are_learned_as_the_template_writes_them(
    template: str, written: str, arguments: Any
) -> None:
    made = dialogue(template, trace(arguments))
    assert learned(made) == [f"{written} <|im_end|>", "old dog <|im_end|>"]
    assert made.remarks == ()
    assert made.reference == "old dog"
    assert learned(dialogue(template, trace(arguments), last=True)) == ["old dog <|im_end|>"]


def test_a_call_at_the_end_is_the_answer_without_special_tokens() -> None:
    made = dialogue(FOR_TOOLS, trace({}, content="a bird")[:2])
    assert learned(made) == ["a bird sees {} <|im_end|>"]
    # the tokenizer of these tests knows no {}, and joins words without spaces
    assert made.reference == "abirdsees"


def test_tools_stand_in_the_prompt() -> None:
    made = dialogue(FOR_TOOLS, trace({}), tools=[TOOL])
    assert made.pieces[0][0].startswith(json.dumps(TOOL))
    assert made.remarks == ()


def test_a_template_without_tools_leaves_out_calls_and_says_so() -> None:
    made = dialogue(OF_SMOLLM2, trace({"x": 1}), tools=[TOOL])
    assert learned(made) == ["old dog <|im_end|>"], "no empty answer is learned for the call"
    assert made.remarks == (NO_CALLS, NO_TOOLS)
    with_text = dialogue(OF_SMOLLM2, trace({"x": 1}, content="a bird"))
    assert learned(with_text) == ["a bird <|im_end|>", "old dog <|im_end|>"]
    with pytest.raises(RowError, match="leaves out the tool calls of the last answer"):
        dialogue(OF_SMOLLM2, trace({"x": 1})[:2])


def test_a_template_that_changes_earlier_turns_is_told() -> None:
    changing = FOR_TOOLS.replace("{{ m.content }}", "{{ m.content if loop.last or m.role "
                                "!= 'assistant' else 'no' }}")  # fmt: skip
    made = dialogue(changing, trace({}, content="a bird"))
    assert learned(made) == ["old dog <|im_end|>"]
    assert made.remarks == (LAST_ONLY,)
    assert dialogue(changing, trace({}, content="a bird"), last=True).remarks == ()


def test_content_that_is_no_text_is_refused_only_where_the_template_cannot_take_it() -> None:
    parts = [{"type": "text", "text": "a fish"}]
    takes = FOR_TOOLS.replace("{{ m.content }}", "{{ m.content if m.content is string else "
                              "m.content[0].text }}")  # fmt: skip
    assert learned(dialogue(takes, trace({}, result=parts)))[-1] == "old dog <|im_end|>"
    for template in (OF_SMOLLM2, FOR_TOOLS):  # joined: Jinja's error; printed: Python's form
        with pytest.raises(RowError, match="chat template") as error:
            dialogue(template, trace({}, result=parts))
        assert "the content of a message is no text" in str(error.value.hint)


@pytest.mark.parametrize(
    ("message", "about"),
    [
        ({"role": "assistant", "content": None}, "a message without 'content'"),
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, "a tool call without a name"),
        ({"role": "assistant", "tool_calls": ["sees"]}, "a tool call without a name"),
        ({"tool_calls": [call({})]}, "a message without 'role'"),
    ],
)
def test_messages_that_say_nothing_are_refused(message: Any, about: str) -> None:
    with pytest.raises(RowError, match=about):
        message_list([message], "messages")


def test_tools_come_as_lists_or_as_texts() -> None:
    columns = {"tools": "tools"}
    for value in ([TOOL], json.dumps([TOOL])):
        assert tools_of({"tools": value}, columns) == [TOOL]
    for nothing in (None, [], "", "[]"):
        assert tools_of({"tools": nothing}, columns) is None
    assert tools_of({"tools": [TOOL]}, {}) is None
    for wrong in (["sees"], "sees", 3):
        with pytest.raises(RowError, match="no list of tools"):
            tools_of({"tools": wrong}, columns)


ROWS = [
    {"messages": trace({"x": "a bird", "y": None}), "tools": [TOOL]},
    {"messages": trace('{"z": 1}'), "tools": None},
    {"messages": trace({"w": [1, 2]}, content=""), "tools": []},
]


def test_rows_of_a_file_keep_their_own_arguments(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "traces.jsonl", ROWS)
    read = datasets.load_dataset("json", data_files=str(file), split="train",
                                 cache_dir=str(tmp_path / "cache"))  # fmt: skip
    rows = list(chat_rows(read, ["messages", "tools"]))
    calls = [message_list(row["messages"], "m")[1]["tool_calls"][0] for row in rows]
    assert [c["function"]["arguments"] for c in calls] == [
        {"x": "a bird", "y": None}, {"z": 1}, {"w": [1, 2]}]  # fmt: skip


def test_nulls_that_arrow_fills_in_are_no_arguments(tmp_path: Path) -> None:
    rows = [{"messages": trace({"x": 1}), "tools": [TOOL]},
            {"messages": trace({"y": 2}), "tools": [TOOL]}]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "traces.parquet")
    read = datasets.Dataset.from_parquet(str(tmp_path / "traces.parquet"),
                                         cache_dir=str(tmp_path / "cache"))  # fmt: skip
    messages = [row["messages"] for row in chat_rows(read, ["messages", "tools"])]
    assert [m[1]["tool_calls"] for m in messages] == [[call({"x": 1})], [call({"y": 2})]]


def test_rows_without_their_answers_are_bound_checked_and_encoded(tmp_path: Path) -> None:
    """Their calls have arguments of different kinds, which no one type of Arrow holds."""
    file = write_rows(tmp_path / "traces.jsonl", ROWS)
    read = datasets.load_dataset("json", data_files=str(file), split="train",
                                 cache_dir=str(tmp_path / "cache"))  # fmt: skip
    task = create_task(TaskBlock(name="causal-lm"), DataBlock(path="unused", max_length=64))
    task.bind(read)
    assert task.input_columns == ("messages", "tools")
    keys = task.raw_keys(read)[0]
    assert len(set(keys.tolist())) == len(ROWS)
    rows = task.stand_in(read)
    assert rows.features["messages"] == read.features["messages"]
    task.check(rows)
    encoded = task.encode(rows, chat_tokenizer(template=FOR_TOOLS))
    assert encoded.examples["reference"][:] == ["-"] * len(ROWS)


def test_the_last_answer_goes_with_chats() -> None:
    rows = datasets.Dataset.from_list([{"text": "red cat"}])
    task = create_task(
        TaskBlock(name="causal-lm", learn="last", metrics=["loss"]),
        DataBlock(path="unused", max_length=64),
    )
    with pytest.raises(SoraError, match="rows of plain text have no answers"):
        task.bind(rows)


def test_pairs_end_with_calls_and_have_tools() -> None:
    sides = {
        side: [
            *trace({})[:1],
            {"role": "assistant", "content": None, "tool_calls": [call({"x": x})]},
        ]
        for side, x in (("chosen", "a bird"), ("rejected", "a fish"))
    }
    rows = datasets.Dataset.from_list([{**sides, "tools": [TOOL]}])
    task = create_task(TaskBlock(name="preference"), DataBlock(path="unused", max_length=64))
    task.bind(rows)
    assert task.input_columns == ("chosen", "rejected", "tools")
    task.check(rows)
    tokenizer = chat_tokenizer(template=FOR_TOOLS)
    encoded = task.encode(rows, tokenizer)
    assert encoded.examples["source"][0].startswith(json.dumps(TOOL))
    ids, labels = (encoded.dataset[0][name] for name in ("input_ids", "labels"))
    assert ids[0][:8] == ids[1][:8]
    assert all(any(label != -100 for label in side) for side in labels)
    other = datasets.Dataset.from_list([{**sides, "tools": None}])
    assert task.raw_keys(rows)[0] != task.raw_keys(other)[0], "other tools are another prompt"


def test_a_run_trains_on_traces_and_answers_rows_without_answers(tmp_path: Path) -> None:
    def rows(count: int) -> list[dict[str, Any]]:
        return [{"messages": trace({"xyz"[i % 3]: i}, content=""), "tools": [TOOL]}
                for i in range(count)]  # fmt: skip

    recipe = write_chat_recipe(
        tmp_path,
        data={
            "files": {
                "train": write_rows(tmp_path / "traces.jsonl", rows(8)),
                "validation": write_rows(tmp_path / "others.jsonl", rows(4)),
            },
            "max_length": 64,
        },
        task={"metrics": ["loss", "exact_match"], "learn": "last"},
        training={"epochs": 1},
    )
    chat_tokenizer(template=FOR_TOOLS).save_pretrained(tmp_path / "base")
    assert set(train(recipe).metrics["validation"]) == {"loss", "exact_match"}
    asked = [{**row, "messages": row["messages"][:3]} for row in rows(3)]
    file, answers = write_rows(tmp_path / "asked.jsonl", asked), tmp_path / "answers.jsonl"
    assert run(["predict", str(tmp_path / "out"), str(file), "-o", str(answers)]) == 0
    lines = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    assert [line["messages"] for line in lines] == [row["messages"] for row in asked]
    assert all(isinstance(line["prediction"], str) for line in lines)

"""`sora chat` and `sora generate`: prompts, turns, the adapter off and on, two side by side."""

from __future__ import annotations

import io
import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from methods.factors import LowRankFactors
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.directory import write_adapter
from sora_cli.adapter.metadata import BaseReference
from sora_cli.app import run
from sora_cli.core.errors import SoraError
from sora_cli.core.interruption import Interrupted
from sora_cli.use.chat import Chat, columns, shown
from sora_cli.use.speaker import Form, Sampling, Speaker, load_speaker
from tests import smollm2
from tests.helpers_chat import chat_tokenizer, write_chat_base

GREEDY = Sampling({}, 5, 0)
DRAWN = Sampling({"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}, 5, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny chat model, and an adapter that makes it say something else."""
    made = tmp_path_factory.mktemp("chat")
    base = write_chat_base(made / "base")
    config = transformers.AutoConfig.from_pretrained(base)
    g = torch.Generator().manual_seed(0)
    factors = LowRankFactors(
        torch.randn(2, config.intermediate_size, generator=g),
        torch.randn(config.hidden_size, 2, generator=g) * 5,
    )
    path = "model.layers.0.mlp.down_proj"
    adapter = Adapter.of({path: factors}, {}, (), "CAUSAL_LM", BaseReference(str(base), str(base)))
    write_adapter(made / "adapter", adapter)
    return made


def speaker(place: Path, **options: Any) -> Speaker:
    return load_speaker(str(place), place, **options)[0]


def chat(speakers: list[Speaker], *lines: str, **options: Any) -> str:
    """What is written to the answers of these lines."""
    out: list[str] = []
    options = {"sampling": GREEDY, "system": None, **options}
    Chat(speakers, write=out.append, **options).run(lines)
    return "".join(out)


def answer(place: Path, messages: list[dict[str, str]], new: int = 5) -> str:
    """The same, by transformers alone."""
    model = transformers.AutoModelForCausalLM.from_pretrained(place)
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)).strip()


def test_turns_are_remembered_and_forgotten(folder: Path) -> None:
    base = folder / "base"
    asked = [{"role": "system", "content": "every dog"}, {"role": "user", "content": "cat sees"}]
    first = answer(base, asked)
    more = [{"role": "assistant", "content": first}, {"role": "user", "content": "red fish"}]
    second, alone = answer(base, [*asked, *more]), answer(base, [asked[0], more[1]])
    lines = ["cat sees", "", "red fish", "/reset", "red fish", "/quit", "cat sees"]
    given = chat([speaker(base)], *lines, system="every dog").splitlines()
    assert [line.strip() for line in given] == [first, second, alone]
    given = chat([speaker(base)], "/system every dog", "red fish", "/system", "red fish")
    assert [line.strip() for line in given.splitlines()] == [
        alone, answer(base, [{"role": "user", "content": "red fish"}])
    ]  # fmt: skip


def test_the_adapter_is_switched_off_and_on(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, adapted = speaker(folder / "base"), speaker(folder / "adapter")
    before = {name: p.clone() for name, p in adapted.model.named_parameters()}
    lines = ("cat sees", "/base", "/reset", "cat sees", "/base", "/reset", "cat sees")
    first, off, again = chat([adapted], *lines).splitlines()
    assert first == again
    assert off == chat([base], "cat sees").strip("\n")
    assert first != off
    assert all(torch.equal(p, before[name]) for name, p in adapted.model.named_parameters())
    assert "off: the base model answers" in capsys.readouterr().err
    chat([base], "/base", "/nothing")
    told = capsys.readouterr().err
    assert "has no adapter to switch off" in told
    assert "there is no command '/nothing'" in told


def test_two_answer_one_under_the_other_or_side_by_side(folder: Path) -> None:
    both = [speaker(folder / "base"), speaker(folder / "adapter")]
    single = [chat([one], "cat sees", "red").splitlines() for one in both]
    under = chat(both, "cat sees", "red").splitlines()
    titles = [f"--- {folder / 'base'}", f"--- {folder / 'adapter'}"]
    assert under == [titles[0], single[0][0], titles[1], single[1][0],
                     titles[0], single[0][1], titles[1], single[1][1]]  # fmt: skip
    beside = chat(both, "cat sees", width=120).splitlines()
    assert beside[2].split() == [*single[0][0].split(), *single[1][0].split()]
    assert chat(both, "cat sees", width=60) == chat(both, "cat sees")


def test_columns() -> None:
    left, right = "one two three four five six", "a\n\n\x1b[31mred"
    assert list(columns(["A", "B"], [left, right], 33)) == [
        "A                 B",
        "-                 -",
        "one two three     a",
        "four five six",
        r"                  \x1b[31mred",
    ]
    assert shown("a\tb\x07\n") == "a       b\\x07\n"


def test_seeds(folder: Path) -> None:
    """The same seed, the same answers, and both of two models draw from the same one."""
    one = speaker(folder / "base")
    first = chat([one], "cat", "cat", sampling=DRAWN)
    assert chat([one], "cat", "cat", sampling=DRAWN) == first
    assert len({chat([one], "cat", sampling=Sampling(DRAWN.settings, 5, s)) for s in range(9)}) > 4
    lines = chat([one, one], "cat", sampling=DRAWN).splitlines()
    assert lines[1] == lines[3] == first.splitlines()[0]


def test_each_answer_of_a_chat_has_a_seed_of_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(transformers, "set_seed", seeds.append)
    chat([speaker(folder / "base")], "cat", "cat", "dog", sampling=DRAWN)
    assert seeds == [DRAWN.seed, DRAWN.seed + 1, DRAWN.seed + 2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_answer(folder: Path, number: int) -> None:
    """Ctrl-C stops it and the chat goes on; SIGTERM ends the chat."""
    one, out = speaker(folder / "adapter"), list[str]()
    whole = Sampling({}, 20, 0)
    full = chat([one], "every old bird", sampling=whole)

    def write(piece: str) -> None:
        out.append(piece)
        if len(out) == 1:
            signal.raise_signal(number)

    talk = Chat([one], whole, None, write)
    if number == signal.SIGTERM:
        with pytest.raises(Interrupted) as end:
            talk.run(["every old bird", "red"])
        assert end.value.exit_code == 143
        return
    talk.run(["every old bird", "/reset", "every old bird"])
    stopped, again = "".join(out).splitlines()
    assert again == full.strip("\n")
    assert len(stopped) < len(again)
    assert again.startswith(stopped.strip())


def test_old_turns_make_room(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = speaker(folder / "base")
    one.model.config.max_position_embeddings = 32
    asked = "cat sees dog and every old bird"
    lines = chat([one], *[asked] * 3, system="no").splitlines()
    assert "the oldest 1 turn forgotten" in capsys.readouterr().err
    assert len(lines) == 3
    with pytest.raises(SoraError, match="leaves no room for an answer"):
        chat([one], "cat " * 40)


def test_prompts_without_a_template(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(template=None)
    say = [{"role": "system", "content": "S"}, {"role": "user", "content": "cat"}]
    assert Form().dialogue(say, tokenizer).prompt == ("S\n\ncat",)
    assert Form(before="Q: ").dialogue(say[1:], tokenizer).prompt == ("Q: cat",)
    headed = Form(headings=True).dialogue(say[1:], tokenizer).prompt
    assert headed == ("### Instruction:\ncat\n\n### Response:\n",)
    assert Form(own="Q: {q}\nA:").dialogue(say[1:], tokenizer).prompt == ("Q: cat\nA:",)
    write_chat_base(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    (tmp_path / "plain" / "chat_template.jinja").unlink(missing_ok=True)
    plain = speaker(tmp_path / "plain")
    assert not plain.remembers
    assert chat([plain], "cat sees", "red").splitlines()[1] == chat([plain], "red").strip("\n")


def test_the_commands(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base, words = folder / "base", ["--greedy", "--max-new-tokens", "5"]
    wanted = answer(base, [{"role": "user", "content": "cat sees"}])
    capsys.readouterr()
    assert run(["generate", str(base), "--prompt", "cat sees", *words]) == 0
    assert capsys.readouterr().out.strip() == wanted
    monkeypatch.setattr(sys, "stdin", io.StringIO("cat sees\n"))
    assert run(["generate", str(base), "-p", "-", "--json", *words]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["text"].strip() == wanted
    monkeypatch.setattr(sys, "stdin", io.StringIO("cat sees\n/quit\n"))
    assert run(["chat", str(folder / "adapter"), str(base), *words]) == 0
    assert capsys.readouterr().out.splitlines()[3].strip() == wanted
    assert run(["generate", str(base), "-p", "cat sees", "--raw", "--seed", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["seed"] == 1


@pytest.mark.long
def test_a_pretrained_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert smollm2.file().is_file()
    words = ["generate", smollm2.REFERENCE, "-p", "What is the capital of France?", "--greedy"]
    with smollm2.read():
        assert run([*words, "--max-new-tokens", "16"]) == 0
    assert "Paris" in capsys.readouterr().out

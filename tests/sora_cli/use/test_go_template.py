"""A tokenizer's prompts as a template in Go's language, rendered by Go where it is installed."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import transformers
from tokenizers.processors import TemplateProcessing

from sora_cli.data.places import RowError
from sora_cli.tasks.messages import Message
from sora_cli.use.go_template import frame_of
from sora_cli.use.speaker import Form
from tests.helpers_chat import chat_tokenizer
from tests.present import present

DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe {{ '{{' }}good.<|im_end|>\n"
    "{% endif %}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SYSTEM_IN_FIRST_USER = (  # as Gemma 3 and Llama 2, with a start token in the text
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{% set first = messages[0]['content'] + '\n\n' %}{% set others = messages[1:] %}"
    "{% else %}{% set first = '' %}{% set others = messages %}{% endif %}"
    "{% for m in others %}[{{ m['role'] }}] {{ first if loop.first else '' }}"
    "{{ m['content'] | trim }}[end] {% endfor %}[model] "
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] }}</s>{% else %}"
    "{{ raise_exception('only user and assistant roles') }}{% endif %}{% endfor %}"
)
SYSTEM_IN_LAST_USER = (  # as Mistral 0.3
    "{% if messages[0]['role'] == 'system' %}{% set s = messages[0]['content'] %}{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ s if loop.last else '' }}"
    "{{ m['content'] }}[/INST]{% elif m['role'] == 'assistant' %}{{ m['content'] }}</s>{% endif %}"
    "{% endfor %}"
)
DATE = DEFAULT_SYSTEM.replace("good", "{{ strftime_now('%Y') }}")
FORGETS = "[INST] {{ messages[-1]['content'] }} [/INST]"
FORMS = {
    "default system": (Form(template=True), DEFAULT_SYSTEM),
    "system in the first user's": (Form(template=True), SYSTEM_IN_FIRST_USER),
    "no system": (Form(template=True), NO_SYSTEM),
    "headings": (Form(headings=True), None),
    "own prompt": (Form(own="{{ Q {{question} A {"), None),
    "text": (Form(), None),
}
SYSTEM, USER, ANSWER, AGAIN = (
    {"role": role, "content": content}
    for role, content in (("system", "Be kind."), ("user", "Hello"), ("assistant", "Hi {{ you }}"),
                          ("user", 'One\n\n"more"'))
)  # fmt: skip
DIALOGUES: list[list[Message]] = [[USER], [SYSTEM, USER], [USER, ANSWER, AGAIN],
                                  [SYSTEM, USER, ANSWER, AGAIN, ANSWER, USER]]  # fmt: skip
GO = """package main
import ("encoding/json"; "os"; "strings"; "text/template")
type Message struct { Role, Content string }
type Case struct { Template string; Messages []*Message }
func main() {
    var cases []Case
    if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil { panic(err) }
    texts := []string{}
    for _, c := range cases {
        // as template.Execute of Ollama does for a template with .Messages
        var b strings.Builder
        system := ""
        for _, m := range c.Messages { if m.Role == "system" { system = m.Content } }
        t := template.Must(template.New("").Option("missingkey=zero").Parse(c.Template))
        values := map[string]any{"System": system, "Messages": c.Messages, "Response": ""}
        if err := t.Execute(&b, values); err != nil { panic(err) }
        texts = append(texts, b.String())
    }
    json.NewEncoder(os.Stdout).Encode(texts)
}
"""


def tokenizer_with(template: str | None) -> transformers.PreTrainedTokenizerFast:
    tokenizer = chat_tokenizer(template=template)
    tokenizer.bos_token = "<pad>"
    return tokenizer


def prompts(form: Form, tokenizer: transformers.PreTrainedTokenizerFast) -> list[str | None]:
    """The prompts of the dialogues; None for a dialogue that is refused."""
    texts: list[str | None] = []
    for messages in DIALOGUES:
        try:
            texts.append("".join(form.dialogue(messages, tokenizer).prompt))
        except RowError:
            texts.append(None)
    return texts


@pytest.mark.parametrize("kind", FORMS)
def test_other_dialogues_are_rendered_as_the_tokenizer_does(kind: str) -> None:
    form, template = FORMS[kind]
    tokenizer = tokenizer_with(template)
    frame = present(frame_of(form, tokenizer))
    assert (frame.system is None) == (kind == "no system")
    expected = prompts(form, tokenizer)
    assert sum(text is not None for text in expected) >= 2
    for messages, text in zip(DIALOGUES, expected, strict=True):
        assert text is None or frame.render(messages) == text


@pytest.mark.parametrize("template", [SYSTEM_IN_LAST_USER, DATE, FORGETS])
def test_a_template_that_does_more_gives_none(template: str) -> None:
    assert frame_of(Form(template=True), tokenizer_with(template)) is None


def test_the_start_token_is_left_to_llama_cpp() -> None:
    tokenizer = tokenizer_with(SYSTEM_IN_FIRST_USER)
    frame = present(frame_of(Form(template=True), tokenizer))
    assert frame.render([USER]) == "<pad>[user] Hello[end] [model] "
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<pad> $A", special_tokens=[("<pad>", 0)]
    )
    frame = present(frame_of(Form(template=True), tokenizer))
    assert frame.render([USER]) == "[user] Hello[end] [model] "


@pytest.mark.long
@pytest.mark.skipif(shutil.which("go") is None, reason="Go is not installed")
def test_go_renders_the_same(tmp_path: Path) -> None:
    cases, expected = [], []
    for form, template in FORMS.values():
        tokenizer = tokenizer_with(template)
        frame = present(frame_of(form, tokenizer))
        for messages, text in zip(DIALOGUES, prompts(form, tokenizer), strict=True):
            if text is not None:
                cases.append({"Template": frame.in_go(), "Messages": messages})
                expected.append(text)
    (tmp_path / "main.go").write_text(GO, encoding="utf-8")
    done = subprocess.run(
        ["go", "run", str(tmp_path / "main.go")], input=json.dumps(cases), text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected

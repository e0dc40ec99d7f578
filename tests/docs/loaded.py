"""What a page's processes begin with: this project is imported, and SmolLM2's copy is read."""

from __future__ import annotations

import tests.warm.ours  # noqa: F401
from tests import blank, smollm2

blank.install()
if smollm2.is_there():
    smollm2.reader(smollm2.file())
    for_good = smollm2.read()
    for_good.__enter__()

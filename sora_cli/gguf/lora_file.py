"""The GGUF file of an adapter for llama.cpp: a pair of factors beside each weight of the base.

llama.cpp adds `alpha / r * lora_b @ lora_a` to a weight, r the rank of that pair (llama-adapter.h,
`get_scale`), so modules of different ranks fit into one file. It has one alpha: who writes a module
of rank r, whose scaling is in B, gives B r / alpha.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from methods.factors import LowRankFactors
from sora_cli.core.atomic import check_read_back
from sora_cli.gguf.places import Place

_ADAPTER_TYPE = "LORA".lower()  # the kind of file, not the method


@dataclass(frozen=True)
class LoraFile:
    """The content of a file: metadata and tensors, of which one module is in memory at a time.

    Attributes:
        architecture: llama.cpp's name of the base model's architecture.
        base: the base model's name.
        places: module path -> place.
        factors: a module's factors, in the order of the model's own rows and in the file's dtype.
    """

    architecture: str
    base: str
    alpha: float
    places: Mapping[str, Place]
    factors: Callable[[str], LowRankFactors]

    def write(self, file: Path) -> None:
        """Write the file."""
        import gguf

        writer = gguf.GGUFWriter(file, self.architecture)
        try:
            writer.add_type(gguf.GGUFType.ADAPTER)
            writer.add_string(gguf.Keys.Adapter.TYPE, _ADAPTER_TYPE)
            writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, self.alpha)
            writer.add_base_model_count(1)
            writer.add_base_model_name(0, Path(self.base).name)
            # GGUF has all names and shapes before the first number: each module is made twice
            for key, data in self._tensors():
                writer.add_tensor_info(key, data.shape, data.dtype, data.nbytes)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
        finally:
            writer.close()
        # not with the writer: numpy's tofile() loses the error of a disk that fills up
        # until: numpy > 2.4
        with file.open("ab") as out:
            for _, data in self._tensors():
                out.write(bytes(-out.tell() % writer.data_alignment))
                out.write(data)
            out.write(bytes(-out.tell() % writer.data_alignment))

    def check(self, file: Path) -> None:
        """Read the file back and compare it with this content, tensor by tensor."""
        import gguf

        reader = gguf.GGUFReader(file)
        left = {tensor.name: tensor.data for tensor in reader.tensors}
        same = reader.fields[gguf.Keys.Adapter.LORA_ALPHA].contents() == self.alpha
        for key, expected in self._tensors():
            data = left.pop(key, None)
            same = same and data is not None and data.shape == expected.shape
            same = same and data.dtype == expected.dtype and bool((data == expected).all())
        check_read_back(same and not left)

    def _tensors(self) -> Iterator[tuple[str, Any]]:
        for path, place in self.places.items():
            factors = place.in_order(self.factors(path))
            for half, numbers in (("a", factors.A), ("b", factors.B)):
                yield f"{place.name}.weight.lora_{half}", numbers.contiguous().numpy()

"""Images of a data set, decoded batch by batch, and a model's image format.

The pixels of 50,000 images do not fit into memory, and on a disk they need more space than the
original files. So rows keep images in their stored form, and each batch decodes its own. The
pixels of small images fit, and are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import PIL.Image
import torch
from datasets import Dataset, Value
from torch import Tensor, nn

from sora_cli.core.errors import SoraError, first_line
from sora_cli.data.places import RowError

Stored = Mapping[str, Any]
"""An image that is not decoded: the `bytes` of its file, or the file's `path`."""
_MODES = {1: "L", 3: "RGB"}
_CHECKED = 256  # images checked at a time
_KEPT = 64 * 2**20  # bytes
_BLANK = (64, 48)  # pixels; width and height differ, so that swapping them is an error
_DEEP = ("I", "F")  # modes with more than 8 bits per channel, which Pillow clips at 255
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_DRAFT = 8  # a JPEG is checked at 1/8 of its size, which is faster to decode


@dataclass(frozen=True)
class ImageFormat:
    """The image format of a model.

    Attributes:
        mode: of Pillow: "RGB" for three channels, "L" for one.
        dtype: of the pixels.
    """

    mode: str
    dtype: torch.dtype


def stored_images(rows: Dataset, column: str) -> Dataset:
    """Return the rows with the images of a column in their stored form, not decoded.

    Args:
        column: of images, of file contents, or of paths; any other column is a `RowError`.
    """
    feature = rows.features[column]
    names = feature.keys() if isinstance(feature, dict) else set()
    stored = isinstance(feature, Value) and feature.dtype.endswith(("string", "binary"))
    if not (isinstance(feature, datasets.Image) or stored or names == {"bytes", "path"}):
        raise RowError(
            f"column '{column}' holds no images, but {feature}",
            hint="name another column: data.columns.image=COLUMN (images, bytes of their files, "
            "or paths)",
        )
    return rows.cast_column(column, datasets.Image(decode=False))


def check_images(rows: Dataset, column: str) -> None:
    """Read every image once; otherwise training could run for hours before it meets a damaged one.

    An image that is missing, damaged or has more than 8 bits per channel is a `RowError`. Measured
    on one thread of a busy machine: 10,000 PNG of 32 x 32 take 3 s, 10,000 JPEG of 500 x 375 half a
    minute; it uses as many threads as torch has.

    Args:
        column: of stored images.
    """
    first = 0
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for batch in rows.select_columns(column).iter(batch_size=_CHECKED):
            for row, fault in enumerate(pool.map(_find_fault, batch[column]), start=first):
                if fault is not None:
                    raise RowError(
                        f"column '{column}': the image {fault}",
                        row,
                        hint="remove such rows from the data, or repair their images",
                    )
            first += len(batch[column])


def image_names(rows: Dataset, column: str) -> list[str | None]:
    """Return the file names of stored images; None for images without a path."""
    paths = rows.select_columns(column).flatten()[f"{column}.path"][:]
    return [Path(path).name if path else None for path in paths]


class Pixels:
    """Turns stored images into a model's input: decoded, turned upright, resized, normalised.

    The first 64 MiB of pixels are kept, so that a set of small images is decoded once, and not
    once an epoch. (A third of the time of `offline/digits` was that.) Processes of
    `training.workers` begin anew in each epoch, and gain nothing.
    """

    def __init__(self, processor: Any, form: ImageFormat) -> None:
        self._processor, self._form = processor, form
        self._kept: dict[str | bytes, Tensor] = {}
        # what pads to the largest image of a batch makes other pixels in another batch
        self._room = 0 if getattr(processor, "do_pad", False) else _KEPT

    def __call__(self, images: Sequence[Stored]) -> Tensor:  # (images, channels, height, width)
        """Return the pixels of images.

        Images that cannot be read any more, or do not form a batch, are an error.
        """
        if not self._room and not self._kept:
            return self._made(images)
        keys = [_key(image) for image in images]
        new = {key: image for key, image in zip(keys, images, strict=True) if key not in self._kept}
        made = dict(zip(new, self._made([*new.values()]), strict=True)) if new else {}
        pixels = [made[key] if key in made else self._kept[key] for key in keys]
        if len({each.shape for each in pixels}) > 1:
            return self._made(images)
        size = sum(each.nbytes for each in made.values())
        if size <= self._room:
            self._room -= size
            self._kept.update(made)
        return torch.stack(pixels)

    def _made(self, images: Sequence[Stored]) -> Tensor:
        opened = [_open(image).convert(self._form.mode) for image in images]
        try:
            pixels: Tensor = self._processor(images=opened, return_tensors="pt")["pixel_values"]
        except ValueError as error:  # such as images of several sizes
            raise SoraError(
                f"the image processor cannot make a batch of these images: {first_line(error)}",
                hint="see do_resize and size in the model's preprocessor_config.json",
                key="model.path",
            ) from error
        return pixels.to(self._form.dtype)


def fit_images(model: nn.Module, processor: Any) -> ImageFormat:
    """Find a model's image format, test it on a blank image, and freeze batch normalisation.

    A model that does not accept the output of its image processor is an error.
    """
    config: Any = model.config
    towers = (config, getattr(config, "vision_config", None))
    channels = next((n for c in towers if (n := getattr(c, "num_channels", None))), 3)
    if channels not in _MODES:
        raise SoraError(
            f"the model takes images of {channels} channels; only 1 (grey) and 3 (RGB) are known",
            key="model.path",
        )
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    form = ImageFormat(_MODES[channels], dtype)
    _freeze_averages(model)
    try:
        _run_blank(model, processor, form)
    except (ValueError, RuntimeError) as error:
        raise SoraError(
            f"the model does not accept the output of its image processor: {first_line(error)}",
            hint="use the preprocessor_config.json that belongs to the model",
            key="model.path",
        ) from error
    return form


@torch.no_grad()
def _run_blank(model: Any, processor: Any, form: ImageFormat) -> None:
    """Run a blank image through the model."""
    blank = PIL.Image.new(form.mode, _BLANK)
    pixels = processor(images=[blank], return_tensors="pt")["pixel_values"]
    device = next(model.parameters()).device
    two_towers = getattr(model.config, "vision_config", None) is not None
    run = model.get_image_features if two_towers else model
    run(pixel_values=pixels.to(device, form.dtype))


def _freeze_averages(model: nn.Module) -> None:
    """Make batch normalisation use its running averages in training and never update them.

    The averages belong to the frozen model; an adapter does not store them.
    """
    for module in model.modules():
        if isinstance(module, _BATCH_NORMS):
            # a hook, since model.train() sets the module back before each step
            module.register_forward_pre_hook(_in_evaluation)


def _in_evaluation(module: nn.Module, inputs: Any) -> None:
    del inputs
    module.eval()


def _key(image: Stored) -> str | bytes:
    """Return a digest of an image's bytes, or the image's path; equal keys have equal pixels."""
    content = image["bytes"]
    return str(image["path"]) if content is None else blake2b(content, digest_size=16).digest()


def _open(image: Stored) -> PIL.Image.Image:
    try:
        opened: PIL.Image.Image = datasets.Image().decode_example(dict(image))
    except Exception as error:  # each format's reader raises its own types
        raise SoraError(
            f"the image {image['path'] or ''} cannot be read any more: {first_line(error)}",
            key="data",
        ) from error
    return opened


def _find_fault(image: Stored | None) -> str | None:
    """Describe the fault of a stored image; None if it has none."""
    if image is None or (image["bytes"] is None and image["path"] is None):
        return "is missing"
    path = image["path"] if image["bytes"] is None else None
    if path is not None and "://" not in path and not Path(path).is_file():
        return f"is missing: there is no file '{path}'"
    try:
        mode = _decoded_mode(image, path)
    except Exception as error:  # each format's reader raises its own types
        unknown = isinstance(error, PIL.UnidentifiedImageError)
        reason = "its format is unknown" if unknown else first_line(error)
        return f"cannot be read: {reason}{_file_name(image)}"
    if mode.startswith(_DEEP):
        return f"has more than 8 bits per channel (mode {mode}){_file_name(image)}"
    return None


def _decoded_mode(image: Stored, path: str | None) -> str:
    """Decode all of an image, at a small size if its format allows, and return its mode."""
    if path is not None and "://" in path:
        return _open(image).mode
    with PIL.Image.open(BytesIO(image["bytes"]) if path is None else path) as opened:
        opened.draft(None, (opened.width // _DRAFT, opened.height // _DRAFT))
        opened.load()
        return opened.mode


def _file_name(image: Stored) -> str:
    return f" ({Path(image['path']).name})" if image["path"] else ""

"""`training.kernels: liger`: Liger's Triton kernels in place of a model's own layers.

Liger (https://github.com/linkedin/Liger-Kernel) replaces the norms, rotary embeddings and gated
activations of the model families that it knows, through transformers' `apply_liger_kernel`. Its
losses are not used: here the head runs only at positions that carry the loss, and may be adapted.

Liger changes a model, the model's module in transformers and, for some families, a class of torch
for good; some of its functions ignore the model's activation. So its changes are recorded here, and
are in force only in training steps. Before the first step, loss and gradient of a few rows are
computed both ways and compared.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from methods.words import closest
from sora_cli.core.device import is_cuda
from sora_cli.core.errors import SoraError, first_line
from sora_cli.core.processes import check_alone
from sora_cli.core.words import listed
from sora_cli.recipe.recipe import Recipe
from sora_cli.train.switch import Context, Switch

if TYPE_CHECKING:
    from torch import nn

    from sora_cli.train.trainer import AdapterTrainer

KEY = "training.kernels"
_OFF = f"{KEY}=null"
_PACKAGES = {"liger_kernel": "liger-kernel", "triton": "triton"}
_LOSSES = {"cross_entropy": False, "fused_linear_cross_entropy": False}


class LigerKernels(Switch):
    """Liger's kernels, in force in training steps."""

    KEY = KEY
    OFF = None

    def check_recipe(self, recipe: Recipe) -> None:
        """Check for two packages, one process, and no `training.compile`."""
        for module, package in _PACKAGES.items():
            if find_spec(module) is None:
                raise SoraError(
                    f"{KEY}=liger needs the package {package}, which is not installed",
                    hint=f"pip install 'sora-cli[liger]', or {_OFF}",
                    key=KEY,
                )
        if recipe.training.compile:
            raise SoraError(
                f"{KEY} does not go with training.compile, which makes its own kernels",
                hint=f"{_OFF}, or training.compile=false",
                key=KEY,
            )
        check_alone(KEY, _OFF)

    def check_machine(self, recipe: Recipe) -> None:
        """Check that there is a GPU."""
        if not is_cuda():
            raise SoraError(
                f"{KEY}=liger needs a GPU: a CPU cannot run Triton kernels", hint=_OFF, key=KEY
            )

    def check_model(self, recipe: Recipe, model: Any) -> None:
        """Check that Liger knows the model's family."""
        check_family(model)

    def in_passes(self, model: nn.Module) -> Context:
        """Run passes with the kernels."""
        return Kernels(model).running()

    @contextmanager
    def in_training(self, trainer: AdapterTrainer) -> Iterator[Callable[[], Context]]:
        """Compare loss and gradient with and without the kernels, then yield them."""
        from sora_cli.train.sameness import check_same

        kernels = Kernels(trainer.model)
        plain, other = contextlib.nullcontext(), kernels.running()
        check_same(trainer, plain, other, key=KEY, value="liger", hint=_OFF)
        yield kernels.running


def check_family(model: Any) -> Callable[..., None]:
    """Return Liger's function that changes a model's family; an unknown family is an error."""
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    families: Mapping[str, Callable[..., None]] = MODEL_TYPE_TO_APPLY_LIGER_FN
    family = model.config.model_type
    if family not in families:
        near = closest(family, families)
        raise SoraError(
            f"{KEY}=liger: Liger has no kernels for {family} models",
            where=f"closest name: {near}" if near else f"it has: {listed(sorted(families))}",
            hint=_OFF,
            key=KEY,
        )
    return families[family]


class Kernels:
    """Liger's changes to a model: made inside `running`, undone afterwards."""

    def __init__(self, model: nn.Module) -> None:
        from transformers.integrations.liger import apply_liger_kernel

        # until: liger-kernel > 0.8 (linkedin/Liger-Kernel#242)
        with _clear_errors(model):
            spaces = _namespaces(model)
        before = [dict(space) for space in spaces]
        try:
            with _clear_errors(model):
                apply_liger_kernel(model, dict(_LOSSES))
        finally:
            self._changed = [
                (space, name, old.get(name, _ABSENT), value)
                for space, old in zip(spaces, before, strict=True)
                for name, value in space.items()
                if old.get(name, _ABSENT) is not value
            ]
            self._switch(on=False)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the model's layers with the kernels; they are restored afterwards."""
        self._switch(on=True)
        try:
            yield
        finally:
            self._switch(on=False)

    def _switch(self, *, on: bool) -> None:
        for space, name, old, new in self._changed:
            value = new if on else old
            if value is _ABSENT:
                space.pop(name, None)
            else:
                space[name] = value


_ABSENT = object()


@contextmanager
def _clear_errors(model: nn.Module) -> Iterator[None]:
    """Turn Liger's errors about unknown classes or versions into a `SoraError`."""
    try:
        yield
    except (ImportError, TypeError, ValueError, NotImplementedError) as error:
        raise SoraError(
            f"{KEY}=liger cannot be applied to {type(model).__name__}: {first_line(error)}",
            hint=_OFF,
            key=KEY,
        ) from error


def _namespaces(model: Any) -> list[dict[str, Any]]:
    """Return the namespaces that Liger may change: the model's, transformers' and torch.nn's."""
    from torch import nn

    apply = check_family(model)
    switches = inspect.signature(apply).parameters.values()
    # with every switch off it changes nothing, but imports the modules of the model's family
    apply(**{p.name: False for p in switches if isinstance(p.default, bool)})
    code = [m for name, m in sys.modules.items() if name.startswith("transformers.models.")]
    return [vars(each) for each in (*model.modules(), *code, nn)]

"""Baselines: methods that train the model's own parameters, for comparison with low-rank methods.

A baseline wraps no layers and has no factors (its options say `low_rank = False`). All other hooks
of `methods.base` are called as for low-rank methods, with no layers:

    choose(model, method, head=["classifier"])         # calls method.select
    optimizer = AdamW(method.param_groups({}, lr=..., weight_decay=...) + [the head's group])

The result of a run is `method.parameters` and the head: some of the model's parameters, or with
`whole_model` all of them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, NoReturn

import torch
from torch import nn

from methods.base import AdapterMethod, Layers, LowRankLinear
from methods.configs import BitFitOptions, FullOptions, HeadOptions, MethodOptions
from methods.errors import MethodError


class Baseline(AdapterMethod):
    """A selection of the model's own parameters to train: implement `select`."""

    config_class = MethodOptions
    whole_model: ClassVar[bool] = False
    """True if a run writes the whole model, not only the tensors that it changed."""

    def __init__(self, config: MethodOptions) -> None:
        super().__init__(config)
        self._model: nn.Module | None = None
        self._names: tuple[str, ...] = ()

    @abstractmethod
    def select(self, parameters: Mapping[str, nn.Parameter]) -> Iterable[str]:
        """Return the names of the parameters to train.

        Args:
            parameters: of the model without its head, by full name; a shared parameter once.
        """

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters outside the head, by full name; empty before `choose`."""
        model = self._model
        return {} if model is None else {n: model.get_parameter(n) for n in self._names}

    def take(self, model: nn.Module, names: Iterable[str]) -> None:
        """Unfreeze these parameters of the model; called by `choose`."""
        self._model, self._names = model, tuple(names)
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)

    def param_groups(
        self, layers: Layers, *, lr: float, weight_decay: float
    ) -> list[dict[str, Any]]:
        """Return matrices in a group with weight decay, vectors (biases, norm scales) without."""
        chosen = self.parameters.values()
        groups = [
            {"name": "base", "params": [p for p in chosen if p.ndim > 1], "lr": lr,
             "weight_decay": weight_decay},
            {"name": "base_no_decay", "params": [p for p in chosen if p.ndim < 2], "lr": lr,
             "weight_decay": 0.0},
        ]  # fmt: skip
        return [group for group in groups if group["params"]]

    def wrap(self, linear: nn.Module, *, generator: torch.Generator) -> LowRankLinear:
        """Raise `MethodError`: a baseline wraps no layers."""
        self._refuse()

    def factors(self, layer: LowRankLinear) -> NoReturn:
        """Raise `MethodError`: a baseline has no factors."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise MethodError(f"{self.name} is no low-rank method: it adapts no layers")


def choose(
    model: nn.Module, method: Baseline, *, head: Iterable[str] = (), train_head: bool = True
) -> None:
    """Freeze the model except the head and the baseline's parameters, in place.

    Args:
        head: paths of the head's modules; the method cannot select their parameters.
        train_head: False freezes the head, too.
    """
    heads = [model.get_submodule(path) for path in head]
    inside = {id(p) for module in heads for p in module.parameters()}
    outside = {name: p for name, p in model.named_parameters() if id(p) not in inside}
    wanted = set(method.select(outside))
    model.requires_grad_(False)  # first: the method and the head then unfreeze their own
    method.take(model, [name for name in outside if name in wanted])
    for module in heads if train_head else ():
        module.requires_grad_(True)
    if not any(p.requires_grad for p in model.parameters()):
        raise MethodError(
            f"{method.name} has nothing to train: the model's head is frozen or absent"
        )


class Full(Baseline):
    """Full fine-tuning: every parameter, embeddings included."""

    name = "full"
    config_class = FullOptions
    whole_model = True

    def select(self, parameters: Mapping[str, nn.Parameter]) -> Iterable[str]:
        """Select all parameters."""
        return parameters


class Head(Baseline):
    """The task's head alone is trained, on the frozen model; a one-layer head is a linear probe."""

    name = "head"
    config_class = HeadOptions

    def select(self, parameters: Mapping[str, nn.Parameter]) -> Iterable[str]:
        """Select nothing of the model itself."""
        return ()


class BitFit(Baseline):
    """BitFit (Ben Zaken et al. 2022, arXiv 2106.10199, section 3).

    All bias terms are trained, also those of norms, always without weight decay.
    """

    name = "bitfit"
    config_class = BitFitOptions

    def select(self, parameters: Mapping[str, nn.Parameter]) -> Iterable[str]:
        """Select the bias terms."""
        biases = [name for name in parameters if _is_bias(name.rpartition(".")[2])]
        if not biases:
            raise MethodError(f"{self.name} trains bias terms, and the model has none")
        return biases


def _is_bias(name: str) -> bool:
    """Recognise torch's names of biases: bias, in_proj_bias (attention), bias_ih_l0 (RNNs)."""
    return name == "bias" or name.endswith("_bias") or name.startswith("bias_")

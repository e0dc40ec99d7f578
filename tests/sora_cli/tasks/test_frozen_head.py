"""A frozen head's loss: its value and gradient, and which heads it is for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sora_cli.tasks import learned
from sora_cli.tasks.frozen_head import frozen_head_losses, is_frozen_linear
from sora_cli.tasks.learned import LEARNED, LearnedHead, learned_places
from tests.helpers_models import tiny_llama, token_ids
from tests.methods.support import generator

PLACES, FEATURES, WORDS = 7, 5, 11


def _head(*, bias: bool = False) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(FEATURES, WORDS, bias=bias).requires_grad_(False)


def _hidden() -> Tensor:
    return torch.randn(PLACES, FEATURES, generator=generator(1), dtype=torch.float64)


LABELS = torch.tensor([0, 3, 3, 10, 7, 1, 5])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("places", [1, 3, 7, 100])
def test_losses_and_gradient_are_those_of_all_logits_at_once(places: int, bias: bool) -> None:
    head, hidden = _head(bias=bias).double(), _hidden().requires_grad_()
    wanted = cross_entropy(head(hidden), LABELS, reduction="none")
    found = frozen_head_losses(head, hidden, LABELS, places)
    torch.testing.assert_close(found, wanted)
    weights = torch.randn(PLACES, generator=generator(2), dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad(found @ weights, hidden), torch.autograd.grad(wanted @ weights, hidden)
    )
    with torch.no_grad():
        assert torch.equal(frozen_head_losses(head, hidden, LABELS, places), found)


def test_nothing_as_wide_as_the_vocabulary_is_kept() -> None:
    hidden = _hidden().requires_grad_()
    kept: list[torch.Size] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        frozen_head_losses(_head().double(), hidden, LABELS, 2)
    assert kept == [(PLACES, FEATURES)]


def _watched(head: nn.Linear) -> None:
    head.register_forward_hook(lambda *_: None)


def _replaced(head: nn.Linear) -> None:
    head.forward = lambda x: 2 * x  # type: ignore[method-assign, assignment]


@pytest.mark.parametrize("change", [lambda head: head.requires_grad_(True), _watched, _replaced])
def test_other_heads_are_no_frozen_linear(change: Callable[[nn.Linear], object]) -> None:
    head = _head(bias=True)
    assert is_frozen_linear(head)
    change(head)
    assert not is_frozen_linear(head)
    assert not is_frozen_linear(nn.Sequential(_head()))


@pytest.mark.parametrize("frozen", [True, False])
def test_a_model_takes_it_where_its_head_is_frozen(
    monkeypatch: pytest.MonkeyPatch, frozen: bool
) -> None:
    taken: list[int] = []

    def noted(*given: object) -> Tensor:
        taken.append(1)
        return frozen_head_losses(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(learned, "frozen_head_losses", noted)
    model, ids = tiny_llama(), token_ids(2, 6)
    model.get_output_embeddings().requires_grad_(not frozen)
    assert LearnedHead.of(model).alone
    LearnedHead.of(model).chunk()
    model(input_ids=ids, labels=ids, **{LEARNED: learned_places(ids)}).loss.backward()
    assert len(taken) == frozen

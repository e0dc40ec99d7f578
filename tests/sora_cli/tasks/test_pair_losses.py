"""Losses of pairs and their gradients: those of TRL 1.16, and finite at the extremes."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast, get_args

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import logsigmoid

from methods.inject import inject
from methods.registry import create
from sora_cli.recipe.recipe import DataBlock, TaskBlock
from sora_cli.recipe.task_options import PreferenceOptions
from sora_cli.tasks import create_task, learned
from sora_cli.tasks.language import IGNORED
from sora_cli.tasks.learned import LEARNED, LearnedHead
from sora_cli.tasks.pair_losses import pair_losses
from sora_cli.tasks.pairs import SIDES
from sora_cli.tasks.referenced import REFERENCE
from tests.helpers_chat import chat_tokenizer
from tests.helpers_models import tiny_llama
from tests.helpers_runs import WORDS
from tests.methods.support import generator

PAIRS, TOKENS = 1000, 40
CLOSE: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-6}
Given = dict[str, Any]


@pytest.fixture(scope="module")
def trl() -> Any:
    """TRL's parts that we compare with."""
    pytest.importorskip("trl", minversion="1.16", reason="DPOTrainer's inputs had other names")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
        from trl.experimental.cpo import CPOTrainer
        from trl.experimental.orpo import ORPOTrainer
        from trl.trainer import dpo_trainer, utils

    return SimpleNamespace(
        DPO=dpo_trainer.DPOTrainer, ORPO=ORPOTrainer, CPO=CPOTrainer,
        collator=dpo_trainer.DataCollatorForPreference, add_fused_lm_head=utils.add_fused_lm_head,
    )  # fmt: skip


def _dpo(trl: Any, model: Any, inputs: Given, options: PreferenceOptions) -> Tensor:
    """The loss of TRL's DPOTrainer, which needs of itself its settings and some records only."""
    weights = {options.loss: 1.0, **({"sft": options.sft_weight} if options.sft_weight else {})}
    alone = SimpleNamespace(
        device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x
    )
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=alone, _total_train_tokens=0, _tp_size=1,
        _metrics=defaultdict(lambda: defaultdict(list)), precompute_ref_logps=True,
        ld_alpha=None, aux_loss_enabled=False, use_weighting=False, f_divergence_type="reverse_kl",
        loss_types=[*weights], loss_weights=[*weights.values()], beta=options.beta,
        label_smoothing=options.label_smoothing,
    )  # fmt: skip
    loss: Tensor = trl.DPO._compute_loss(trainer, model, inputs, False)
    return loss


def _outputs(logps: Tensor) -> SimpleNamespace:
    """The outputs of a model whose head TRL has replaced."""
    zero = torch.zeros_like(logps)
    return SimpleNamespace(log_probs=logps, entropy=zero, mean_logits=zero, is_top1=zero.bool())


def _random_tokens() -> tuple[Tensor, Tensor, Tensor]:
    """A log-probability for each place (pairs, 2, places), places of tokens, a reference."""
    random, mask = generator(), torch.zeros(PAIRS, 2, TOKENS, dtype=torch.bool)
    for row, count in zip(
        mask.flatten(0, 1), torch.randint(1, TOKENS, (2 * PAIRS,), generator=random), strict=True
    ):
        row[1 : 1 + count] = True  # nothing predicts a row's first token
    logps = torch.rand(PAIRS, 2, TOKENS, generator=random, dtype=torch.float64).log()
    noise = torch.randn(PAIRS, 2, generator=random, dtype=torch.float64)
    return logps.requires_grad_(), mask, (logps.detach() * mask).sum(2) + 5 * noise


def _ours(options: PreferenceOptions, logps: Tensor, mask: Tensor, reference: Tensor) -> Tensor:
    return pair_losses(options, (logps * mask).sum(2), mask.sum(2), reference)


def _same(ours: Tensor, theirs: Tensor, logps: Tensor) -> None:
    """The sum over pairs and each token's gradient, by which every pair counts alone."""
    torch.testing.assert_close(ours.sum() / PAIRS, theirs.to(ours) / PAIRS, **CLOSE)
    (wanted,) = torch.autograd.grad(theirs, logps)
    assert wanted.abs().flatten(1).max(dim=1).values.gt(0).float().mean() > 0.3
    torch.testing.assert_close(torch.autograd.grad(ours.sum(), logps)[0], wanted, **CLOSE)


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "sigmoid"},
        {"loss": "sigmoid", "beta": 0.5},
        {"loss": "hinge", "beta": 0.3},
        {"loss": "ipo"},
        {"loss": "robust", "label_smoothing": 0.2},
        {"loss": "sigmoid", "sft_weight": 0.7},
    ],
    ids=str,
)
def test_losses_beside_a_reference_are_those_of_dpo_trainer(options: Given, trl: Any) -> None:
    chosen, (logps, mask, reference) = PreferenceOptions(**options), _random_tokens()
    if chosen.sft_weight:  # TRL's mean is over the tokens of a batch: equal with equal lengths
        mask = torch.ones_like(mask)
        mask[..., 0] = False
    flat = (logps * mask).transpose(0, 1).flatten(0, 1)[:, 1:]  # TRL: first all chosen ones
    completion = mask.transpose(0, 1).flatten(0, 1).long()
    inputs = {
        "input_ids": completion, "attention_mask": completion, "completion_mask": completion,
        "ref_chosen_logps": reference[:, 0], "ref_rejected_logps": reference[:, 1],
    }  # fmt: skip
    theirs = _dpo(trl, lambda **_: _outputs(flat), inputs, chosen) * PAIRS
    _same(_ours(chosen, logps, mask, reference), theirs, logps)


def test_smoothed_sigmoid_is_conservative_dpo() -> None:
    """TRL had it until its version 0.29: the loss of a pair, and of it the wrong way round."""
    options = PreferenceOptions(label_smoothing=0.2)
    logps, mask, reference = _random_tokens()
    margin = 0.1 * ((logps * mask).sum(2) - reference).diff(dim=1).squeeze(1).neg()
    theirs = -logsigmoid(margin) * (1 - 0.2) - logsigmoid(-margin) * 0.2
    _same(_ours(options, logps, mask, reference), theirs.sum(), logps)


def test_orpos_odds_ratio_is_that_of_orpo_trainer(trl: Any) -> None:
    """And the likelihood beside it is of the chosen answer's tokens; TRL's is of its prompt's too.

    TRL computes in float32.
    """
    options, (logps, mask, reference) = PreferenceOptions(loss="orpo"), _random_tokens()
    logps = logps.detach().float().requires_grad_()
    mean = (logps * mask).sum(2) / mask.sum(2)
    trainer = SimpleNamespace(
        beta=options.beta, accelerator=SimpleNamespace(device=torch.device("cpu"))
    )  # fmt: skip
    gained = trl.ORPO.odds_ratio_loss(trainer, mean[:, 0], mean[:, 1])[0]
    ours = _ours(options, logps, mask, reference)
    _same(ours, (-mean[:, 0] - gained).sum(), logps)


def test_simpo_is_that_of_cpo_trainer(trl: Any) -> None:
    options = PreferenceOptions(loss="simpo", gamma=0.8)
    logps, mask, reference = _random_tokens()
    mean = (logps * mask).sum(2) / mask.sum(2)
    trainer = SimpleNamespace(
        alpha=0.0, beta=2.0, simpo_gamma=0.8, loss_type="simpo", label_smoothing=0.0,
        accelerator=SimpleNamespace(device=torch.device("cpu")),
    )  # fmt: skip
    theirs = trl.CPO.cpo_loss(trainer, mean[:, 0], mean[:, 1])[0].sum()
    _same(_ours(options, logps, mask, reference), theirs, logps)


def _rows(counts: Sequence[tuple[int, int, int]]) -> Dataset:
    """Rows with these numbers of words in their prompts and answers."""
    random = generator(3)

    def words(count: int) -> str:
        chosen = torch.randint(len(WORDS), (count,), generator=random).tolist()
        return " ".join(WORDS[i] for i in chosen)

    parts = ("prompt", *SIDES)
    return Dataset.from_list([dict(zip(parts, map(words, row), strict=True)) for row in counts])


LENGTHS = [(3, 2, 9), (8, 7, 1), (2, 25, 4), (25, 6, 5), (20, 1, 30), (1, 1, 2)]
"""Short and padded ones; the third to fifth are longer than `LIMIT`, in answer and in prompt."""
LIMIT = 24


def _through_a_model(
    options: Given, *, trained: str, chunked: bool
) -> tuple[Any, Given, Any, list[Given]]:
    """A tiny Llama with adapters and our hooks, a batch, its copy without hooks, encoded rows."""
    tokenizer = chat_tokenizer()
    model = tiny_llama(eos_token_id=3, bos_token_id=2)
    model.requires_grad_(False)
    task = create_task(
        TaskBlock(name="preference", **options), DataBlock(path="unused", max_length=LIMIT)
    )
    rows = _rows(LENGTHS)
    task.bind(rows)
    targets = ["lm_head", "*"] if trained == "an adapted head" else ["*"]
    layers = inject(model, create("lora", r=3, targets=targets), generator=generator())
    assert ("lm_head" in layers) is (trained == "an adapted head")
    for layer in layers.values():
        layer.B.data.normal_(std=0.1, generator=generator(5))
    if trained == "a trained head":
        model.get_output_embeddings().weight.requires_grad_(True)
    plain = copy.deepcopy(model)
    task.adapt_model(model, tokenizer)
    if chunked:
        LearnedHead.of(model).chunk()
    encoded = [*task.encode(rows, tokenizer, training=True).dataset]
    for row, noise in zip(encoded, torch.randn(len(encoded), 2, generator=generator(7)),
                          strict=True):  # fmt: skip
        row[REFERENCE] = (-20 + 3 * noise).tolist()
    return task, model, task.collator(tokenizer)(encoded), plain, encoded


def _as_theirs(row: Given) -> Given:
    """An encoded row with the names of TRL's collator."""
    starts = [next(i for i, n in enumerate(labels) if n != IGNORED) for labels in row["labels"]]
    assert starts[0] == starts[1]
    (ids, others), start = row["input_ids"], starts[0]
    assert ids[:start] == others[:start]
    return {
        "prompt_ids": ids[:start], "chosen_ids": ids[start:], "rejected_ids": others[start:],
        **{f"ref_{side}_logps": row[REFERENCE][i] for i, side in enumerate(SIDES)},
    }  # fmt: skip


def _as_trl_calls(model: Any, trl: Any) -> Callable[..., Any]:
    if type(model.get_output_embeddings()) is torch.nn.Linear:
        trl.add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
        return cast("Callable[..., Any]", model)

    def from_logits(*, labels: Tensor, fused_lm_head: bool, **inputs: Any) -> Any:
        assert fused_lm_head  # TRL's own takes the head's weight, and would skip its adapter
        learned_here, after = labels[:, 1:] != IGNORED, labels[:, 1:].clamp(min=0)
        logits = model(**inputs).logits[:, :-1]
        chosen = logits.log_softmax(-1).gather(2, after[..., None]).squeeze(2)
        return _outputs(chosen * learned_here)

    return from_logits


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("trained", ["a frozen head", "a trained head", "an adapted head"])
@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_a_model_has_dpo_trainers_loss_and_gradient(
    loss: str, trained: str, chunked: bool, trl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learned, "CHUNK", 1)
    monkeypatch.setattr(learned, "_FEWEST", 7)
    given = {"loss": loss}
    task, model, batch, plain, encoded = _through_a_model(given, trained=trained, chunked=chunked)
    model.double(), plain.double()  # in float32 the gradient's own rounding is near 1e-6
    inputs = trl.collator(pad_token_id=0)([_as_theirs(row) for row in encoded])
    sizes = inputs["attention_mask"].sum(1)
    assert sizes.max() == LIMIT
    assert sizes.min() < LIMIT / 2
    theirs = _dpo(trl, _as_trl_calls(plain, trl), inputs, PreferenceOptions(**given))
    ours, _ = task.batch_loss(model, batch)
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-6)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert ("lm_head.weight" in names) is (trained == "a trained head")
    assert len(names) > 20
    found, wanted = (
        torch.autograd.grad(loss, [m.get_parameter(name) for name in names])
        for m, loss in ((model, ours), (plain, theirs))
    )
    for one, other in zip(found, wanted, strict=True):
        assert other.norm() > 1e-3
        assert float((one - other).norm() / other.norm()) < 1e-6


LOSSES = get_args(PreferenceOptions.model_fields["loss"].annotation)
EXTREMES = [
    [0.0, 0.0], [0.0, -1e5], [-1e5, 0.0], [-0.0, -1e-9], [-1e-30, -30.0], [-1e5, -1e5], [-3.0, -3.0]
]  # fmt: skip
"""Log-probabilities of two answers: certain ones, impossible ones, both."""
SETTINGS: list[Callable[[], Given]] = [
    *({"loss": loss}.copy for loss in LOSSES),
    {"label_smoothing": 0.3}.copy, {"loss": "robust", "label_smoothing": 0.3}.copy,
    {"sft_weight": 1.0}.copy,
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda made: str(made()))
def test_extremes_are_finite(settings: Callable[[], Given], dtype: torch.dtype) -> None:
    options = PreferenceOptions(**settings())
    logps = torch.tensor(EXTREMES, dtype=dtype, requires_grad=True)
    for tokens, reference in ((1, 0.0), (1000, -50.0)):
        counts = torch.full_like(logps, tokens)
        losses = pair_losses(options, logps, counts, torch.full_like(logps, reference))
        assert losses.isfinite().all()
        (gradient,) = torch.autograd.grad(losses.sum(), logps)
        assert gradient.isfinite().all()
        if options.loss in ("sigmoid", "hinge", "robust"):  # the others' slopes have no bound
            largest = options.beta / (1 - 2 * options.label_smoothing) + options.sft_weight / tokens
            assert gradient.abs().max() <= largest * (1 + 1e-6)
        assert gradient[-1].ne(0).any()


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_model_that_is_certain_has_a_finite_gradient(loss: str, bf16: bool) -> None:
    """With logits as large as these every answer's probability is exactly 1, or exactly 0."""
    task, model, batch, _, _ = _through_a_model(
        {"loss": loss}, trained="a frozen head", chunked=True
    )
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.weight.mul_(1e4)
        inputs = {name: batch[name].flatten(0, 1) for name in ("input_ids", "attention_mask")}
        likeliest = model(**inputs).logits.argmax(-1).view(batch["labels"].shape)
    # the chosen answers are what the model would say
    chosen, learned_here = batch["labels"][:, 0, 1:], batch["labels"][:, 0, 1:] != IGNORED
    chosen[learned_here] = likeliest[:, 0, :-1][learned_here]
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        value, _ = task.batch_loss(model, batch)
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert LEARNED in batch
    factors = [p for p in model.parameters() if p.requires_grad]
    assert all(g.isfinite().all() for g in torch.autograd.grad(value, factors))

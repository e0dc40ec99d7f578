"""The verdict on merges that are right, that lost the adapter to rounding, and that are wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sora_cli.verify.difference import compare, largest_relative
from sora_cli.verify.effect import Effect, measure
from sora_cli.verify.outputs import HIDDEN, Values, run_model
from sora_cli.verify.probes import Probe, make_probe
from sora_cli.verify.verdict import Judgement, Rounding, Tolerance, Verdict, judge
from sora_cli.verify.verification import tolerance_for
from tests.helpers_models import tiny_bert, tiny_llama

SAME, DIFFERENT, UNKNOWN = Verdict.SAME, Verdict.DIFFERENT, Verdict.UNKNOWN
ROUNDOFF = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
MODELS = {
    "llama": (tiny_llama, "AutoModelForCausalLM"),
    "bert": (tiny_bert, "AutoModelForSequenceClassification"),
}


class Merges:
    """A model in memory, and what merges of random updates into it give."""

    def __init__(self, name: str) -> None:
        make, auto = MODELS[name]
        self.model = make().eval()
        self.probe: Probe = make_probe([self.model.config], auto, None)
        self.linears: dict[str, nn.Linear] = {
            path: module
            for path, module in self.model.named_modules()
            if isinstance(module, nn.Linear) and "head" not in path and "classifier" not in path
        }
        self.weights = {p: m.weight.detach().bfloat16().float() for p, m in self.linears.items()}

    def update(self, ratio: float, seed: int = 0) -> dict[str, Tensor]:
        """dW of rank 4 with |dW| / |W| = ratio, for each layer."""
        g = torch.Generator().manual_seed(seed)
        found = {}
        for path, weight in self.weights.items():
            rows, columns = weight.shape
            dW = torch.randn(rows, 4, generator=g) @ torch.randn(4, columns, generator=g)
            found[path] = dW * (ratio * weight.norm() / dW.norm())
        return found

    @torch.no_grad()
    def outputs(self, update: dict[str, Tensor] | None, dtype: str = "float32") -> Values:
        """The outputs with an update added to the weights and rounded once."""
        for path, linear in self.linears.items():
            weight = self.weights[path]
            if update is not None and path in update:
                weight = weight + update[path]
            linear.weight.copy_(weight.to(getattr(torch, dtype)))
        return run_model(self.model, self.probe, "it")

    def judge(
        self, ratio: float, found: Values, dtype: str, tolerance: float | None = None
    ) -> Judgement:
        """The verdict on these outputs, for an adapter of this size."""
        base, reference = self.outputs(None), self.outputs(self.update(ratio))
        differences = compare(reference, found, self.probe, decides=False)
        change = largest_relative(compare(base, reference, self.probe, decides=False))
        effects = measure(base, reference, found, self.probe)
        allowed = tolerance_for([dtype])
        return judge(
            largest_relative(differences),
            change,
            effects,
            Rounding(computed=2.0**-24, weights=ROUNDOFF[dtype], factors=0.0),
            allowed if tolerance is None else Tolerance(tolerance, "as given", given=True),
        )


@pytest.fixture(scope="module", params=list(MODELS))
def merges(request: pytest.FixtureRequest) -> Merges:
    return Merges(request.param)


@pytest.mark.parametrize(
    ("dtype", "ratio", "verdict"),
    [
        ("float32", 1e-4, SAME),
        ("float32", 5e-2, SAME),
        ("float16", 1e-4, DIFFERENT),  # half of the update is lost
        ("float16", 1e-3, SAME),
        ("bfloat16", 1e-4, DIFFERENT),  # 94% lost
        ("bfloat16", 4e-4, DIFFERENT),  # 75% lost
        ("bfloat16", 1e-3, DIFFERENT),  # 45% lost
        ("bfloat16", 3e-3, SAME),  # a few percent lost
        ("bfloat16", 5e-2, SAME),
        ("float32", 1e-7, UNKNOWN),  # less than float32 rounds away
        ("bfloat16", 1e-7, UNKNOWN),
    ],
)
def test_merges_rounded_to_their_format(
    merges: Merges, dtype: str, ratio: float, verdict: Verdict
) -> None:
    found = merges.outputs(merges.update(ratio), dtype)
    judged = merges.judge(ratio, found, dtype)
    assert judged.verdict is verdict, judged
    assert bool(judged.reason) == (verdict is not SAME)


@pytest.mark.parametrize("ratio", [1e-4, 1e-2])
@pytest.mark.parametrize(
    ("dtype", "case"),
    [
        *(("float32", case) for case in ("base", "other", "x1.05", "x0.95", "left out")),
        *(("bfloat16", case) for case in ("base", "other", "x1.05")),  # loses as much as the rest
    ],
)
def test_wrong_merges(merges: Merges, dtype: str, case: str, ratio: float) -> None:
    update: dict[str, Tensor] | None = merges.update(ratio, seed=int(case == "other"))
    assert update is not None
    if case == "base":
        update = None
    elif case == "left out":
        update.pop(list(update)[len(update) // 2])
    elif case.startswith("x"):
        update = {path: dW * float(case[1:]) for path, dW in update.items()}
    judged = merges.judge(ratio, merges.outputs(update, dtype), dtype)
    assert judged.verdict is DIFFERENT, judged


def test_rounding_noise_larger_than_the_effect_is_no_verdict() -> None:
    """As rounding at random leaves it: all of the effect, and much beside it."""
    merges = Merges("llama")
    g = torch.Generator().manual_seed(0)
    update = merges.update(4e-4)
    for path, dW in update.items():
        weight = merges.weights[path]
        update[path] = dW + 2**-10 * weight * torch.randn(weight.shape, generator=g)
    found = merges.outputs(update)
    assert merges.judge(4e-4, found, "bfloat16").verdict is UNKNOWN
    assert merges.judge(4e-4, found, "float32").verdict is DIFFERENT, "nothing was rounded there"


def test_the_users_own_tolerance_decides_alone(merges: Merges) -> None:
    base = merges.outputs(None)
    assert merges.judge(1e-3, base, "float32", tolerance=1e-6).verdict is DIFFERENT
    judged = merges.judge(1e-3, base, "float32", tolerance=0.5)
    assert judged.verdict is UNKNOWN, "the whole effect is within it"
    assert "5.0e-01 are allowed (as given)" in judged.reason
    most = merges.outputs({p: 0.9 * dW for p, dW in merges.update(5e-2).items()})
    assert merges.judge(5e-2, most, "float32", tolerance=0.05).verdict is SAME


def test_measures_of_an_effect() -> None:
    base, reference = torch.zeros(1, 2), torch.tensor([[3.0, 4.0]])
    found = torch.tensor([[0.5 * 3 - 4, 0.5 * 4 + 3]])  # half of it, and as much at a right angle
    (effect,) = measure(*({"logits": x} for x in (base, reference, found)), Probe({}, None, 0, ""))
    assert (effect.size, effect.share, effect.residual) == pytest.approx((1, 0.5, 1))
    said = "50.00% of the adapter's effect on the logits is there (residual 100.00%)"
    assert effect.summary() == said


def test_a_reason_names_the_limits_that_limit() -> None:
    exact, rounded = Rounding(2.0**-24, 0.0, 0.0), Rounding(2.0**-24, 2.0**-8, 0.0)
    half = Effect("logits", 0.01, 0.5, 0.0)
    assert exact.expected(half) == "99.0% to 101.0% of the effect, with a residual of 0.10% at most"
    assert rounded.expected(half) == "95.0% to 101.0% of the effect"
    noisy = Effect("logits", 0.01, 0.6, 0.5)  # 0.5 of noise may hide any share
    assert exact.expected(noisy) == "a residual of 0.10% at most"


def test_a_share_that_only_noise_explains_is_no_verdict() -> None:
    """Noise of 7 % may hide 14 % of the effect, but so small a share is never called the same."""
    rounding, allowed = Rounding(2.0**-24, 2.0**-8, 0.0), Tolerance(0.03, "8 roundings")
    for share, verdict in ((0.7, DIFFERENT), (0.85, UNKNOWN), (0.95, SAME)):
        effect = Effect("logits", size=0.1, share=share, residual=0.07)
        assert not effect.blind
        assert judge(1e-3, 0.1, [effect], rounding, allowed).verdict is verdict


def test_no_effect_at_all() -> None:
    nothing = [Effect("logits", 0.0, 1.0, 0.0), Effect(HIDDEN, 0.0, 1.0, 0.0)]
    rounding = Rounding(2.0**-24, 2.0**-8, 0.0)
    allowed = Tolerance(0.03, "8 roundings to bfloat16")
    for relative, verdict in ((0.0, SAME), (1e-3, UNKNOWN), (0.1, DIFFERENT)):
        assert judge(relative, 0.0, nothing, rounding, allowed).verdict is verdict
    assert judge(1e-3, None, [], rounding, allowed).verdict is SAME, "no adapter on either side"


def test_hidden_states_are_as_they_were_afterwards() -> None:
    model: Any = tiny_bert()
    values = run_model(model, make_probe([model.config], MODELS["bert"][1], None), "it")
    assert values[HIDDEN].ndim == 4
    assert not model.config.output_hidden_states

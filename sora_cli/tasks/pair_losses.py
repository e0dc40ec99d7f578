"""Losses and rewards of pairs: DPO and its relatives, from the log-probabilities of two answers.

Each function takes, for `pairs` pairs of a chosen and a rejected answer:

- `logps`, (pairs, 2): the log-probability of each answer, summed over its tokens, in nats;
- `tokens`, (pairs, 2): the number of tokens in each answer;
- `reference`, (pairs, 2): as `logps`, but by the reference model; not used by ORPO and SimPO.

Names and units are those of TRL (1.16). Where TRL takes a mean over all tokens of a micro-batch
(its term of SFT, ORPO's likelihood), the mean is over the tokens of each pair here, so that a
batch has the same gradient in one micro-batch as in several.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from sora_cli.recipe.task_options import NO_REFERENCE, PreferenceOptions

_GAMMA = 1.0  # Meng et al.: gamma / beta of 0.5, with a beta of 2


def rewards(options: PreferenceOptions, logps: Tensor, tokens: Tensor, reference: Tensor) -> Tensor:
    """Return the implicit reward of each answer, (pairs, 2).

    DPO: beta log(p / p_reference) (Rafailov et al. 2023, arXiv 2305.18290, section 4). Without a
    reference model: beta log(p) per token (Meng et al. 2024, arXiv 2405.14734, equation 4).
    """
    if options.loss in NO_REFERENCE:
        return options.beta * logps / tokens
    return options.beta * (logps - reference)


def pair_losses(
    options: PreferenceOptions, logps: Tensor, tokens: Tensor, reference: Tensor
) -> Tensor:
    """Return the loss of each pair, (pairs,)."""
    mean = logps / tokens
    if options.loss == "orpo":
        # Hong et al. 2024, arXiv 2403.07691, equations 4 to 7: log odds = log p - log(1 - p)
        odds = mean - _log1mexp(mean)
        return -mean[:, 0] - options.beta * logsigmoid(odds[:, 0] - odds[:, 1])
    reward = rewards(options, logps, tokens, reference)
    margin = reward[:, 0] - reward[:, 1]
    if options.loss == "simpo":
        gamma = _GAMMA if options.gamma is None else options.gamma
        losses = -logsigmoid(margin - gamma)  # equation 6
    elif options.loss == "hinge":
        losses = relu(1 - margin)  # SLiC-HF: Zhao et al. 2023, arXiv 2305.10425
    elif options.loss == "ipo":
        # Azar et al. 2023, arXiv 2310.12036, equation 17, with tau = beta, per token: otherwise
        # long answers have far larger losses than short ones. Its authors confirmed this to TRL
        ratios = (logps - reference) / tokens
        losses = (ratios[:, 0] - ratios[:, 1] - 1 / (2 * options.beta)).square()
    else:
        smooth = options.label_smoothing
        right, wrong = -logsigmoid(margin), -logsigmoid(-margin)
        if options.loss == "robust":  # Chowdhury et al. 2024, arXiv 2403.00409: unbiased
            losses = ((1 - smooth) * right - smooth * wrong) / (1 - 2 * smooth)
        else:  # DPO, equation 7; conservative with smoothing (Mitchell 2023)
            losses = (1 - smooth) * right + smooth * wrong
    return losses - options.sft_weight * mean[:, 0] if options.sft_weight else losses


def _log1mexp(x: Tensor) -> Tensor:
    """Return log(1 - exp(x)) of x < 0 without cancellation.

    Source: Maechler 2012, Accurately Computing log(1 - exp(-|a|)), equation 7.
    """
    # an answer that is certain, x = 0, has infinite odds: stay below. Then both branches are finite
    # and `where` passes no 0 x inf = NaN back through the one that is not taken
    x = x.clamp(max=-torch.finfo(x.dtype).eps)
    near = x > -0.6931472  # log 2
    return torch.where(near, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))

"""A whole run in one file: load, wrap, train, cut, heal, count, save.

    python docs/core.py MODEL ROWS.jsonl OUT

The project must be installed. MODEL is a decoder that transformers loads; each row has an
"instruction" and an "output". OUT is a LoRA for PEFT. This is `sora train` with
`method: {name: cut}`, without recipes, checks, checkpoints and scores: only torch, transformers
(with the safetensors that it needs) and this repository's `methods`. tests/test_core.py holds that
both find the same adapter. Read it from top to bottom.
"""

import json
import math
import re
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, get_scheduler

from methods.base import StepInfo, optimizer_groups
from methods.inject import inject
from methods.registry import create

SEED = 0
BATCH = 8  # rows of an optimiser step
EPOCHS = 2
RATE = 5e-3  # high, as adapters take it: full fine-tuning of the same model takes a tenth
WARMUP = 0.1  # a share of all steps; Adam's second moments are poor estimates before that
WEIGHT_DECAY = 0.01
CLIP = 1.0  # largest norm of the gradient of all factors together
PROMPT = "{instruction} -> "  # what the model reads before it answers
IGNORED = -100  # the label that torch's cross entropy leaves out

# Every layer starts with `r_max` components. After 60 % of the steps a mean of `target_r` of them
# is left, spread over the layers as their singular values ask for: the run itself shows which of
# them need components. LoRA-Squeeze (arXiv 2602.10993) finds this better than to train at the
# small rank from the start.
METHOD = {"r_max": 8, "target_r": 2, "cut_at": 0.6, "alpha": 16}


def encode(row: dict[str, str], tokenizer) -> dict[str, torch.Tensor]:
    """Return the token ids of a row, and its labels: the model learns the answer and its end."""
    # The prompt and the answer are tokenised apart. When the model answers later it reads the
    # tokens of the prompt alone, and a tokenizer might join its last letters with the answer's.
    prompt = tokenizer(PROMPT.format(**row))["input_ids"]
    answer = tokenizer(row["output"], add_special_tokens=False)["input_ids"]
    answer.append(tokenizer.eos_token_id)  # or the model would never learn to stop
    labels = [IGNORED] * len(prompt) + answer
    return {"input_ids": torch.tensor(prompt + answer), "labels": torch.tensor(labels)}


def collate(rows: list[dict[str, torch.Tensor]], pad: int) -> dict[str, torch.Tensor]:
    """Pad rows on the right to one length; padding is neither attended to nor learned."""
    ids = [row["input_ids"] for row in rows]
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad),
        "attention_mask": pad_sequence([torch.ones_like(i) for i in ids], batch_first=True),
        "labels": pad_sequence([row["labels"] for row in rows], True, IGNORED),
    }


def train(model, tokenizer, rows: list[dict[str, str]]):
    """Train, cut and heal an adapter in the model; return the method and the adapted layers."""
    # Wrap: every linear layer but the head becomes `base(x) + scaling * B (A x)`, the base frozen.
    # A is random and B zero, so the model is exactly the base model until the first step. A
    # generator of its own makes the same A whatever else draws random numbers.
    method = create("cut", **METHOD)
    layers = inject(model, method, generator=torch.Generator().manual_seed(SEED))

    encoded = [encode(row, tokenizer) for row in rows]
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    # In the order of the file: shuffle it if its neighbours are alike. (`sora train` draws an order
    # for each epoch, and puts rows of similar length together.)
    batches = [encoded[i : i + BATCH] for i in range(0, len(encoded), BATCH)]
    steps = EPOCHS * len(batches)

    # The method knows its parameters, and whether they differ in rate or decay (gates do).
    groups = optimizer_groups(method, layers, lr=RATE, weight_decay=WEIGHT_DECAY)
    optimizer = torch.optim.AdamW(groups, fused=True)
    schedule = get_scheduler("linear", optimizer, math.ceil(steps * WARMUP), steps)
    factors = [p for group in groups for p in group["params"]]

    method.begin(layers, total_steps=steps)  # here a schedule that does not fit is refused
    model.train()
    for step in range(steps):
        batch = collate(batches[step % len(batches)], pad)
        loss = model(**batch, use_cache=False).loss  # the mean over the learned tokens
        # Only some methods have a penalty (AdaLoRA: orthogonal factors); it never counts in scores.
        penalty = method.penalty(layers)
        (loss if penalty is None else loss + penalty).backward()
        torch.nn.utils.clip_grad_norm_(factors, CLIP)
        rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
        optimizer.step()
        # The method's own step comes after the optimiser's, and before the gradients are cleared:
        # some methods read them. `cut` does nothing here but once. Then it turns each layer to its
        # singular basis, dW = U S V^T, with A = S^1/2 V^T and B = U S^1/2; of the singular values
        # of all layers together it keeps the largest, and sets the other components to zero. The
        # moments of AdamW turn with the factors, so the next step goes on as if nothing had been
        # turned: that is why it gets the optimiser's state. The steps that remain heal the cut.
        # Zero stays zero: the gradient of a component of zeros is zero, and so are its moments.
        method.after_step(layers, StepInfo(step, steps, rates, optimizer.state))
        optimizer.zero_grad()
        schedule.step()
        live = method.summary(layers).live
        print(f"step {step + 1}: loss {loss.item():.4f}, {live} components", file=sys.stderr)
    return method, layers


def save(method, layers, model_name: str, out: Path) -> tuple[int, int]:
    """Write a PEFT LoRA directory; return its numbers of components and of parameters."""
    # `factors` folds gates and the scaling alpha / r into B, so that the result of every method is
    # the same plain thing: dW = B A. Components of zeros are left out, which changes nothing, and
    # so are layers without any; their removal is what makes the adapter small.
    kept = {path: method.factors(layer).drop_zeros() for path, layer in layers.items()}
    kept = {path: factors for path, factors in kept.items() if factors.rank}
    tensors = {}
    for path, factors in kept.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = factors.A.contiguous()
        tensors[f"base_model.model.{path}.lora_B.weight"] = factors.B.contiguous()
    # PEFT scales by alpha / r, once more; with alpha = r, layer by layer, that is 1. Its patterns
    # are regular expressions: without ^ and escapes, layer 1 would also match in layer 11.
    ranks = {f"^{re.escape(path)}": factors.rank for path, factors in kept.items()}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model_name,
        "r": max(ranks.values(), default=1),
        "lora_alpha": max(ranks.values(), default=1),
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "target_modules": sorted(kept),
        "inference_mode": True,
    }
    out.mkdir(parents=True)
    save_file(tensors, out / "adapter_model.safetensors")
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return sum(ranks.values()), sum(factors.parameters for factors in kept.values())


def main(model_name: str, rows_file: str, out: str) -> None:
    """Run all of it."""
    lines = Path(rows_file).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    # In 32 bits: the update of a step is often smaller than 16 bits can add to a factor.
    model = AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32)
    method, layers = train(model, tokenizer, rows)
    started = sum(layer.rank for layer in layers.values())
    # Count: this is what the cut was for. Parameters matter to whoever keeps thousands of adapters;
    # whether fewer are good enough is a question for scores, which `sora auto` asks.
    components, parameters = save(method, layers, model_name, Path(out))
    print(f"{components} of {started} components, {parameters:,} parameters: {out}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: python docs/core.py MODEL ROWS.jsonl OUT")
    main(*sys.argv[1:])

"""Proxies: tokens a second of one core, beside transformers' Llama of the same shape.

Every way trains the same shape on the same made-up tokens with AdamW and clipped gradients, one
thread each: ours in float32 and bfloat16, and `LlamaForCausalLM` in float32 and under autocast to
bfloat16. Rounds go over all in turn; shown are medians over rounds, in seconds of the processor,
which a busy machine spoils less than those of the wall, and ratios to Llama in float32.

The floor is the matrix products of a step alone (of the weights, three times each), in the same
shapes and numbers, with nothing between them: no attention, no norms, no softmax.

With `--losses TOKENS` (a folder of `tamis mix tokenise`) the two kinds of numbers are trained on an
even mixture with several seeds, and their losses compared.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import mean, median, stdev

import torch
from harness import print_table

from tamis.scoring.onednn import product
from tamis.scoring.proxy_model import ProxyModel
from tamis.scoring.proxy_training import SIZES, ProxySettings, train_proxy
from tamis.storage.token_shards import TokenShards

KINDS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def shape_of(size: str) -> dict[str, int]:
    return {key: SIZES[size][key] for key in ("width", "layers", "heads", "hidden")}


def stepper(
    model: torch.nn.Module, loss: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[..., None]:
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step(rows: torch.Tensor) -> None:
        optimiser.zero_grad()
        loss(rows).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

    return step


def ours(size: str, vocabulary: int, context: int, kind: torch.dtype) -> Callable[..., None]:
    model = ProxyModel(vocabulary=vocabulary, context=context, **shape_of(size))
    return stepper(model, lambda rows: model.mean_loss(rows[:, :-1], rows[:, 1:], kind))


def llama(size: str, vocabulary: int, context: int, kind: torch.dtype) -> Callable[..., None]:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = shape_of(size)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=shape["width"],
            intermediate_size=shape["hidden"],
            num_hidden_layers=shape["layers"],
            num_attention_heads=shape["heads"],
            num_key_value_heads=shape["heads"],
            max_position_embeddings=context,
            tie_word_embeddings=True,
            use_cache=False,
        )
    )

    def loss(rows: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == torch.bfloat16):
            logits = model(rows[:, :-1]).logits
        return torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), rows[:, 1:].flatten()
        )

    return stepper(model, loss)


def floor(size: str, vocabulary: int, context: int, kind: torch.dtype) -> Callable[..., None]:
    """The products of a step: forward, for the gradient of what came in, and of the matrix."""
    shape = shape_of(size)
    width, hidden = shape["width"], shape["hidden"]
    layer = [(3 * width, width), (width, width), (2 * hidden, width), (width, hidden)]
    matrices = [torch.randn(m).to(kind) for m in [*layer * shape["layers"], (vocabulary, width)]]

    def step(rows: torch.Tensor) -> None:
        tokens = rows.shape[0] * context
        for matrix in matrices:
            given = torch.empty(tokens, matrix.shape[1], dtype=kind)
            came = product(given, matrix)
            product(came, matrix.t())
            product(came.t(), given.t())

    return step


def speeds(size: str, vocabulary: int, batch: int, context: int, rounds: int) -> None:
    ways = {
        f"{name}, {number}": make(size, vocabulary, context, kind)
        for name, make in (("Llama", llama), ("ours", ours), ("products alone", floor))
        for number, kind in KINDS.items()
    }
    random = torch.Generator().manual_seed(0)
    took: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):  # the first warms up
        rows = torch.randint(0, vocabulary, (batch, context + 1), generator=random)
        for name, step in ways.items():
            begun = time.process_time()
            step(rows)
            if number:
                took[name].append(time.process_time() - begun)
    model = ProxyModel(vocabulary=vocabulary, context=context, **shape_of(size))
    weights = sum(part.numel() for part in model.parameters() if part.ndim > 1)
    base = took["Llama, float32"]
    print(f"{size}: {model.parameter_count:,} weights, {6 * weights / 1e6:.2f} MFLOP a token")
    header = ("way", "tokens/s", "GFLOP/s", "times Llama, float32")
    lines: list[list[str]] = []
    for name, seconds in took.items():
        rate = batch * context / median(seconds)
        ratio = median(a / b for a, b in zip(base, seconds, strict=True))
        lines.append([name, f"{rate:,.0f}", f"{6 * weights * rate / 1e9:.0f}", f"{ratio:.2f}"])
    print_table(header, lines, 1)


def losses(path: str, seeds: int, steps: int) -> None:
    tokens = TokenShards.open(path)
    even = dict.fromkeys(tokens.domains, 1 / len(tokens.domains))
    found: dict[str, list[float]] = {name: [] for name in KINDS}
    for seed in range(seeds):
        for name in KINDS:
            settings = ProxySettings(steps=steps, seed=seed, precision=name)
            run = train_proxy(tokens, even, settings)
            found[name].append(mean(run.losses.values()))
            print(seed, name, f"{found[name][-1]:.4f}", f"{run.seconds:.0f} s", flush=True)
    apart = [b - a for a, b in zip(found["float32"], found["bfloat16"], strict=True)]
    error = stdev(apart) / len(apart) ** 0.5
    print(f"bfloat16 less float32: {mean(apart):+.4f} ± {error:.4f} (standard error)")
    print(f"standard deviation over seeds, float32: {stdev(found['float32']):.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", action="append", choices=list(SIZES))
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--losses", metavar="TOKENS")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=250)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.losses:
        losses(given.losses, given.seeds, given.steps)
    for size in given.size or (() if given.losses else SIZES):
        speeds(size, given.vocabulary, given.batch, given.context, given.rounds)

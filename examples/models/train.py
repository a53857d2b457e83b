"""Train the two tiny language models that lie beside this script, on pairs gathered by tamis.

    pip install --no-deps --only-binary :all: --target pairs/train \\
        -r examples/models/requirements-train.txt
    pip install --no-deps --only-binary :all: --target pairs/held-out \\
        -r examples/models/requirements-held-out.txt
    python examples/models/train.py --train pairs/train --held-out pairs/held-out \\
        --work pairs/work --out examples/models

Nothing is downloaded here. `reference` is a language model of functions and the first paragraphs
of their docstrings; `policy` is the reference tuned by DPO (Rafailov et al. 2023, beta 0.1) to
prefer a function's docstring to a wrong one. Both are judged on packages that neither has seen.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np
import polars as pl
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

import tamis

PAD, END = "<pad>", "<|end|>"
#: The chat form is the string form: a user's message is a prompt, an assistant's its answer.
TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
BETA = 0.1
ANSWERS = ("chosen", "rejected")
#: Of a package so many functions at most, so that generated ones do not outweigh the others.
MOST_OF_A_PACKAGE = 4000


# -- Data ---------------------------------------------------------------------------------------


def gather(folder: Path, out: Path, seen: Path | None = None) -> pl.DataFrame:
    """Pairs of the packages in a folder, without copies, and without near-copies of `seen`."""
    stages: list[dict[str, Any]] = [{"operator": "exact_dedup"}, {"operator": "near_dedup"}]
    if seen is not None:
        known = {"path": str(seen), "text": "prompt", "name": "training"}
        stages.append({"operator": "known_dedup", "references": [known]})
    run = tamis.run(
        {
            "corpus": {
                "path": f"python-pairs:{folder}",
                "roles": {"text": "prompt", "domain": "package"},
            },
            "stages": stages,
            "output": {"path": str(out)},
        }
    )
    print(f"{folder.name}: {json.dumps(run.manifest['rows'])}")
    return pl.read_parquet(out / "*.parquet").sort("package", "path", "name", "prompt")


# -- Tokenizer ----------------------------------------------------------------------------------


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which a word is the same tokens in an identifier and in a sentence.

    `read_csv`, `readCsv` and `Read CSV` are the same: words are lower case, split at underscores
    and humps, and begin with a space wherever they stand, as does every sign.
    """
    tokenizer = Tokenizer(models.BPE())
    humps = [normalizers.Replace(Regex(f"(?<=[a-z0-9]){c}"), f" {c}") for c in ascii_uppercase]
    tokenizer.normalizer = normalizers.Sequence([*humps, normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[_ \t\r\f]+"), "removed"),
            pre_tokenizers.Split(Regex(r'"""|\p{L}+|\p{N}|[^\p{L}\p{N}]'), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        chat_template=TEMPLATE,
        model_max_length=1024,
    )


# -- Batches ------------------------------------------------------------------------------------

Tokens = list[int]


class Texts:
    """Prompts and answers as tokens; an answer ends in the end token."""

    def __init__(self, tokenizer: Any, frame: pl.DataFrame, *answers: str) -> None:
        def encode(texts: list[str]) -> list[Tokens]:
            return tokenizer(texts, add_special_tokens=False)["input_ids"]

        end = [tokenizer.eos_token_id]
        self.prompts = encode(frame["prompt"].to_list())
        self.answers = [[a + end for a in encode(frame[name].to_list())] for name in answers]
        self.lengths = [
            len(p) + sum(map(len, a)) for p, *a in zip(self.prompts, *self.answers, strict=True)
        ]

    def batches(self, tokens: int, seed: int | None) -> Iterator[list[int]]:
        """Rows of nearly one length, so many that they hold about `tokens` with their padding;
        in an order that a seed says, by length without one."""
        made = random.Random(seed)
        jitter = 0.0 if seed is None else 8.0
        order = sorted(
            range(len(self.lengths)), key=lambda row: self.lengths[row] + made.random() * jitter
        )
        batches: list[list[int]] = [[]]
        for row in order:
            if batches[-1] and (len(batches[-1]) + 1) * self.lengths[row] > tokens:
                batches.append([])
            batches[-1].append(row)
        if seed is not None:
            made.shuffle(batches)
        return iter(batches)

    def padded(self, rows: list[int]) -> "Batch":
        """A row is its prompt once, then its answers, each as if it followed the prompt."""
        lengths = [self.lengths[row] for row in rows]
        shape = (len(rows), max(lengths))
        ids, places, before = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
        part = torch.full(shape, -1)
        for n, row in enumerate(rows):
            prompt = self.prompts[row]
            start = end = len(prompt)
            ids[n, :end] = torch.tensor(prompt)
            places[n, :end] = torch.arange(end)
            part[n, :end] = 0
            before[n, 1:end] = torch.arange(end - 1)
            for number, answers in enumerate(self.answers, 1):
                answer = answers[row]
                start, end = end, end + len(answer)
                ids[n, start:end] = torch.tensor(answer)
                places[n, start:end] = torch.arange(len(prompt), len(prompt) + len(answer))
                part[n, start:end] = number
                before[n, start:end] = torch.arange(start - 1, end - 1)
                before[n, start] = len(prompt) - 1
        return Batch(ids, places, part, before, len(self.answers))


@dataclass
class Batch:
    """Token ids; positions; which part a token is of (0 the prompt, from 1 the answers, -1
    padding); and the place whose hidden state predicts it."""

    ids: torch.Tensor
    places: torch.Tensor
    part: torch.Tensor
    before: torch.Tensor
    answers: int

    def attention(self) -> torch.Tensor | None:
        """An answer sees the prompt and itself. One answer alone needs no mask but the causal."""
        if self.answers == 1:
            return None
        keys, queries = self.part[:, None, :], self.part[:, :, None]
        return (((keys == 0) | (keys == queries)).tril())[:, None]


def token_logps(model: LlamaForCausalLM, batch: Batch, scored: torch.Tensor) -> torch.Tensor:
    """Log-probs of the scored tokens, row after row; the head runs for no other."""
    hidden = model.model(
        input_ids=batch.ids,
        position_ids=batch.places,
        attention_mask=batch.attention(),
        use_cache=False,
    ).last_hidden_state
    row, _ = scored.nonzero(as_tuple=True)
    logits = model.lm_head(hidden[row, batch.before[scored]]).float()
    return -torch.nn.functional.cross_entropy(logits, batch.ids[scored], reduction="none")


def answer_logps(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """Summed log-prob of each answer, shape (rows, answers)."""
    scored = batch.part > 0
    row, _ = scored.nonzero(as_tuple=True)
    sums = torch.zeros(len(batch.ids) * batch.answers)
    place = row * batch.answers + batch.part[scored] - 1
    return sums.index_add(0, place, token_logps(model, batch, scored)).view(-1, batch.answers)


# -- Training -----------------------------------------------------------------------------------


def mixed() -> torch.autocast:
    """Products in bfloat16, sums and weights in float32."""
    return torch.autocast("cpu", dtype=torch.bfloat16)


def optimiser(model: LlamaForCausalLM, rate: float, steps: int) -> tuple[Any, Any]:
    """AdamW, a linear warm-up over a twentieth of the steps, then a cosine down to a tenth."""
    adam = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)

    def factor(step: int) -> float:
        warm = max(1, steps // 20)
        if step < warm:
            return (step + 1) / warm
        return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

    return adam, torch.optim.lr_scheduler.LambdaLR(adam, factor)


def train_reference(
    model: LlamaForCausalLM,
    texts: Texts,
    *,
    tokens: int,
    epochs: int,
    rate: float,
    prompt_share: float,
    seed: int,
) -> None:
    """Next-token loss of the answers and of a random share of the prompts' tokens."""
    plan = [rows for e in range(epochs) for rows in texts.batches(tokens, seed + e)]
    adam, schedule = optimiser(model, rate, len(plan))
    start, sums, count = time.perf_counter(), np.zeros(2), np.zeros(2)
    for step, rows in enumerate(plan):
        batch = texts.padded(rows)
        scored = (batch.part == 0) & (torch.rand(batch.part.shape) < prompt_share)
        scored |= batch.part > 0
        scored[:, 0] = False
        with mixed():
            logps = token_logps(model, batch, scored)
        answers = batch.part[scored] > 0
        loss = -logps.mean()
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        schedule.step()
        for place, part in enumerate((logps[answers], logps[~answers])):
            sums[place] -= part.sum().item()
            count[place] += len(part)
        if (step + 1) % 100 == 0 or step + 1 == len(plan):
            answer, prompt = sums / np.maximum(count, 1)
            print(
                f"reference step {step + 1}/{len(plan)} loss of answers {answer:.3f} "
                f"of prompts {prompt:.3f} nats a token, {time.perf_counter() - start:.0f} s",
                flush=True,
            )
            sums, count = np.zeros(2), np.zeros(2)


def train_policy(
    policy: LlamaForCausalLM,
    reference: LlamaForCausalLM,
    texts: Texts,
    *,
    tokens: int,
    epochs: int,
    rate: float,
    seed: int,
) -> None:
    """DPO's sigmoid loss (equation 7 of the paper), the reference's log-probs beside it."""
    plan = [rows for e in range(epochs) for rows in texts.batches(tokens, seed + e)]
    adam, schedule = optimiser(policy, rate, len(plan))
    start, told = time.perf_counter(), []
    for step, rows in enumerate(plan):
        batch = texts.padded(rows)
        with mixed():
            with torch.no_grad():
                base = answer_logps(reference, batch)
            moved = answer_logps(policy, batch) - base
        margin = BETA * (moved[:, 0] - moved[:, 1])
        loss = -torch.nn.functional.logsigmoid(margin).mean()
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        adam.step()
        schedule.step()
        right = (margin > 0).float()
        told.append([n.mean().item() for n in (loss, right, margin, moved[:, 0])])
        if (step + 1) % 50 == 0 or step + 1 == len(plan):
            loss_, right_, mean, chosen = np.mean(told, axis=0)
            print(
                f"policy step {step + 1}/{len(plan)} loss {loss_:.4f} right {right_:.3f} margin "
                f"{mean:.3f} chosen moved by {chosen:.2f} nats, "
                f"{time.perf_counter() - start:.0f} s",
                flush=True,
            )
            told = []


# -- Judging ------------------------------------------------------------------------------------


def logps(model: LlamaForCausalLM, tokenizer: Any, frame: pl.DataFrame, name: str) -> pl.DataFrame:
    """Columns ``NAME_chosen_logp``, ``NAME_rejected_logp`` and the answers' numbers of tokens."""
    texts = Texts(tokenizer, frame, *ANSWERS)
    found = np.zeros((len(frame), 2))
    with torch.no_grad():
        for rows in texts.batches(8192, None):
            found[rows] = answer_logps(model, texts.padded(rows)).numpy()
    columns = {}
    for place, answer in enumerate(ANSWERS):
        columns[f"{name}_{answer}_logp"] = found[:, place]
        columns[f"{answer}_tokens"] = np.array([len(a) for a in texts.answers[place]])
    return pl.DataFrame(columns)


def judged(frame: pl.DataFrame) -> dict[str, np.ndarray]:
    """Four numbers a pair that should be above zero: the implicit reward margin, and baselines."""
    logp = {m: [frame[f"{m}_{a}_logp"] for a in ANSWERS] for m in ("policy", "reference")}
    gap = {model: chosen - rejected for model, (chosen, rejected) in logp.items()}
    each = [frame[f"reference_{a}_logp"] / frame[f"{a}_tokens"] for a in ANSWERS]
    length = frame["chosen"].str.len_chars().cast(int) - frame["rejected"].str.len_chars().cast(int)
    columns = {
        "margin": BETA * (gap["policy"] - gap["reference"]),
        "reference": gap["reference"],
        "reference a token": each[0] - each[1],
        "longer": length,
    }
    return {name: column.to_numpy() for name, column in columns.items()}


def accuracy(values: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Share above zero (ties count half), with a bootstrap interval of 95 %."""
    hits = np.where(values == 0, 0.5, values > 0)
    drawn = np.random.default_rng(seed).integers(len(hits), size=(1000, len(hits)))
    low, high = np.quantile(hits[drawn].mean(axis=1), [0.025, 0.975])
    return float(hits.mean()), float(low), float(high)


def report(frame: pl.DataFrame, known: set[str]) -> None:
    parts = [
        ("all", pl.lit(True)),
        ("neighbour", pl.col("rejected_kind") == "neighbour"),
        ("corrupted", pl.col("rejected_kind") == "corrupted"),
        ("answer not in training", ~pl.col("chosen").str.to_lowercase().is_in(known)),
        *((name, pl.col("package") == name) for name in sorted(set(frame["package"]))),
    ]
    print("| pairs | number | margin | reference | reference a token | longer |")
    print("|---|---:|---|---|---|---|")
    for name, rule in parts:
        some = frame.filter(rule)
        if len(some) < 30:
            continue
        cells = ["{:.3f} ({:.3f} to {:.3f})".format(*accuracy(v)) for v in judged(some).values()]
        print(f"| {name} | {len(some)} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--train", type=Path, required=True, help="packages to learn from")
    parser.add_argument("--held-out", type=Path, required=True, help="packages to judge on")
    parser.add_argument("--work", type=Path, required=True, help="for what comes between")
    parser.add_argument("--out", type=Path, required=True, help="reference and policy go there")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=4096, help="of a batch")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument(
        "--prompt-share", type=float, default=0.25, help="of prompts' tokens to learn"
    )
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--policy-rate", type=float, default=1e-3)
    parser.add_argument("--policy-epochs", type=int, default=1)
    parser.add_argument("--reference-rows", type=int, default=45_000, help="the first so many")
    parser.add_argument("--policy-rows", type=int, default=36_000, help="the last so many")
    parser.add_argument("--judge-rows", type=int, default=6_000, help="of the held-out pairs")
    parser.add_argument("--seed", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(given.seed)
    start = time.perf_counter()

    train = gather(given.train, given.work / "train")
    held = gather(given.held_out, given.work / "held-out", seen=given.work / "train")
    train = train.sample(fraction=1, shuffle=True, seed=given.seed)
    most = pl.int_range(pl.len()).over("package") < MOST_OF_A_PACKAGE
    train = train.filter(most)
    first, last = train.head(given.reference_rows), train.tail(given.policy_rows)
    held = held.sample(fraction=1, shuffle=True, seed=given.seed)
    held = held.head(given.judge_rows)
    print(f"{len(train)} pairs to learn from, {len(held)} to judge on", flush=True)

    some = first.head(20_000)
    tokenizer = train_tokenizer([*some["prompt"], *some["chosen"]], given.vocabulary)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=given.width,
        intermediate_size=given.width * 8 // 3 // 32 * 32,
        num_hidden_layers=given.layers,
        num_attention_heads=given.width // 32,
        num_key_value_heads=given.width // 32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        dtype="float32",
    )
    model = LlamaForCausalLM(config)
    print(f"{sum(p.numel() for p in model.parameters())} weights, {len(tokenizer)} tokens")
    texts = Texts(tokenizer, first, "chosen")
    answers = sum(map(len, texts.answers[0]))
    print(f"reference: {sum(texts.lengths)} tokens, {answers} of answers", flush=True)
    train_reference(
        model,
        texts,
        tokens=given.tokens,
        epochs=given.epochs,
        rate=given.rate,
        prompt_share=given.prompt_share,
        seed=given.seed,
    )
    save(model, tokenizer, given.out / "reference")

    reference, _ = load(given.out / "reference")
    policy, _ = load(given.out / "reference")
    pairs = Texts(tokenizer, last, *ANSWERS)
    print(f"policy: {sum(pairs.lengths)} tokens", flush=True)
    train_policy(
        policy,
        reference,
        pairs,
        tokens=given.tokens,
        epochs=given.policy_epochs,
        rate=given.policy_rate,
        seed=given.seed,
    )
    save(policy, tokenizer, given.out / "policy")
    print(f"trained after {time.perf_counter() - start:.0f} s")

    for name in ("policy", "reference"):
        found = logps(*load(given.out / name), held, name)
        held = held.with_columns(found.get_columns())
    held.write_parquet(given.work / "judged.parquet")
    report(held, set(train["chosen"].str.to_lowercase()))
    print(f"done after {time.perf_counter() - start:.0f} s")


def save(model: LlamaForCausalLM, tokenizer: Any, folder: Path) -> None:
    """Half precision: eleven bits of a weight, where bfloat16 has eight."""
    half = LlamaForCausalLM(model.config)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load(folder: Path) -> tuple[LlamaForCausalLM, Any]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder)


if __name__ == "__main__":
    main()

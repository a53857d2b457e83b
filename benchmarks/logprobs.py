"""Log-probabilities of preference pairs: ours beside TRL's and beside a plain transformers loop.

Takes pairs of real texts (--data, a Parquet file with `prompt`, `chosen` and `rejected`, such as
hh-rlhf's) and a Llama of random weights with some 50 M parameters, made in a scratch folder with a
BPE tokenizer trained on these texts. In every round each way runs in a process of its own, one
after the other; shown are medians over the rounds of seconds and of their ratio to ours, and the
highest resident memory of the process.

- `trl`: what `DPOTrainer(precompute_ref_log_probs=True)` does before it trains, with its defaults
  but for float32: it tokenises, makes batches of 8 pairs and computes the log-probabilities.
- `plain`: batches of 8 rows in the order of the data, padded, the model's own forward, log_softmax.
- `ours`: the signal `logprobs`, in float32 and in bfloat16.

Timed is all that comes after the model is loaded, tokenising included: by the clock on all cores,
or with --busy by the processor, each way on one thread (where other work runs on the machine,
clocks say little, and threads that wait for one another burn time). Sums in float32 must be equal
to 1e-3 of each other, or the script ends with an error. The sets: `pairs` as they are; `single`,
each prompt with its chosen answer only, where nothing is shared; `alone`, both answers without a
prompt. TRL has no way to run `single`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from harness import Floats, print_table, run_watched

#: Seconds by the clock, or with --busy of this process.
CLOCK = time.process_time if "--busy" in sys.argv else time.perf_counter
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "pref_hh_harmless_test.parquet"
BATCH = 8
WAYS = ("ours", "ours bfloat16", "trl", "plain")
SETS = ("pairs", "single", "alone")
#: Of a Llama with 48 M parameters, embeddings shared with the head.
SIZES: dict[str, Any] = {
    "vocab_size": 32_000,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 10,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}


def make_model(folder: Path, texts: list[str]) -> None:
    """A Llama of random weights and a byte-level BPE trained on the texts."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from tokenizers.trainers import BpeTrainer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(
        vocab_size=SIZES["vocab_size"],
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SIZES, bos_token_id=0, eos_token_id=1)).save_pretrained(folder)


def rows_of(table: pl.DataFrame, kind: str) -> pl.DataFrame:
    """Pairs as one of the sets has them."""
    if kind == "alone":
        return table.with_columns(prompt=pl.lit(""))
    return table.select("prompt", "chosen") if kind == "single" else table


def ours(folder: str, table: pl.DataFrame, dtype: str) -> tuple[float, Floats, dict[str, Any]]:
    from tamis.scoring.logprobs import Logprobs

    pair = "rejected" in table.columns
    stage = Logprobs(
        name="s", model=folder, of="pair" if pair else "completion", dtype=dtype, device="cpu"
    ).resolve(Path())
    names = table.columns if pair else ["prompt", "completion"]
    columns = [column.combine_chunks() for column in table.to_arrow().columns]
    batch = pa.record_batch(columns, names=names)
    model = stage.loaded()
    stage.compute(batch.slice(0, 2))  # whatever is set up at first use
    before = model.forwarded
    begin = CLOCK()
    found = stage.compute(batch)
    seconds = CLOCK() - begin
    sides = ("s_chosen", "s_rejected") if pair else ("s",)
    sums = np.stack([found[f"{side}_logp"].to_numpy(zero_copy_only=False) for side in sides])
    scored = sum(sum(found[f"{side}_tokens"].to_pylist()) for side in sides)
    return seconds, sums, {"forwarded": model.forwarded - before, "scored": scored}


def trl(folder: str, table: pl.DataFrame) -> tuple[float, Floats, dict[str, Any]]:
    import datasets
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    datasets.disable_progress_bars()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = DPOConfig(
        output_dir=f"{folder}/trl",
        precompute_ref_log_probs=True,
        max_length=SIZES["max_position_embeddings"],
        bf16=False,
        use_cpu=True,
        report_to=[],
    )
    rows = datasets.Dataset.from_list(table.to_dicts())
    begin = CLOCK()
    trainer = DPOTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer)
    found = trainer.train_dataset
    seconds = CLOCK() - begin
    names = ("ref_chosen_logps", "ref_rejected_logps")
    return seconds, np.array([found[name] for name in names]), {}


def plain(folder: str, table: pl.DataFrame) -> tuple[float, Floats, dict[str, Any]]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    begin = CLOCK()
    sides = [name for name in ("chosen", "rejected") if name in table.columns]
    rows = [
        (prompt, answer + tokenizer.eos_token)
        for side in sides
        for prompt, answer in zip(table["prompt"], table[side], strict=True)
    ]
    sums = []
    with torch.inference_mode():
        for first in range(0, len(rows), BATCH):
            batch = rows[first : first + BATCH]
            prompts = tokenizer([p for p, _ in batch])["input_ids"]
            whole = tokenizer([p + c for p, c in batch])["input_ids"]
            longest = max(map(len, whole))
            ids = torch.tensor([row + [0] * (longest - len(row)) for row in whole])
            lengths = torch.tensor([len(row) for row in whole])
            # The answer begins where the tokens part.
            given = torch.tensor([common(p, w) for p, w in zip(prompts, whole, strict=True)])
            place = torch.arange(longest)
            mask = (place < lengths[:, None]).long()
            logps = model(input_ids=ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
            tokens = logps.gather(2, ids[:, 1:, None])[..., 0]
            scored = (place[1:] >= given[:, None]) & (place[1:] < lengths[:, None])
            sums += (tokens * scored).sum(1).tolist()
    seconds = CLOCK() - begin
    return seconds, np.array(sums).reshape(len(sides), -1), {}


def common(first: list[int], second: list[int]) -> int:
    for place, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return place
    return min(len(first), len(second))


def run_one(way: str, kind: str, folder: Path, busy: bool) -> None:
    """What a process of its own does: one way, one set; a line of JSON."""
    if busy:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    table = rows_of(pl.read_parquet(folder / "pairs.parquet"), kind)
    run = {
        "ours": lambda: ours(str(folder), table, "float32"),
        "ours bfloat16": lambda: ours(str(folder), table, "bfloat16"),
        "trl": lambda: trl(str(folder), table),
        "plain": lambda: plain(str(folder), table),
    }
    seconds, sums, more = run[way]()
    np.save(folder / f"{kind}-{way}.npy", sums)
    print(json.dumps({"seconds": seconds, **more}))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?", default=SHARED)
    parser.add_argument("--pairs", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--busy", action="store_true", help="one thread, seconds of the processor")
    parser.add_argument("--run", nargs=3, metavar=("WAY", "SET", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run_one(options.run[0], options.run[1], Path(options.run[2]), options.busy)
        return

    os.environ["TQDM_DISABLE"] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"
    columns = ["prompt", "chosen", "rejected"]
    table = pl.read_parquet(options.data, columns=columns)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["HF_DATASETS_CACHE"] = str(folder / "datasets")
        make_model(folder, [text for name in columns for text in table[name]])
        table = table.sample(min(options.pairs, len(table)), seed=options.seed)
        table.write_parquet(folder / "pairs.parquet")
        print(
            f"{len(table)} pairs of {options.data.name}; {os.cpu_count()} cores, load before "
            f"{os.getloadavg()[0]:.1f}; median of {options.rounds} rounds, seconds "
            f"{'of the processor on one thread' if options.busy else 'by the clock'}\n"
        )
        for kind in options.sets:
            compare(kind, folder, options)


def compare(kind: str, folder: Path, options: argparse.Namespace) -> None:
    """Run a set in all ways, by turns, and print a table."""
    ways = [way for way in options.ways if (way, kind) != ("trl", "single")]
    took: dict[str, list[float]] = {way: [] for way in ways}
    peak = dict.fromkeys(ways, 0)
    said: dict[str, Any] = {}
    for _ in range(options.rounds):
        for way in ways:
            command = [sys.executable, __file__, "--run", way, kind, str(folder)]
            command += ["--busy"] if options.busy else []
            output, _, memory = run_watched(command)
            line = json.loads(output.splitlines()[-1])
            took[way].append(line.pop("seconds"))
            peak[way] = max(peak[way], memory)
            said[way] = line
    sums = {way: np.load(folder / f"{kind}-{way}.npy") for way in ways}
    rows = []
    for way in ways:
        apart = float(np.abs(sums[way] - sums["ours"]).max())
        if way != "ours bfloat16" and apart > 1e-3:
            raise SystemExit(f"{kind}: the sums of {way} differ from ours by {apart:.2g}")
        ratio = statistics.median(a / b for a, b in zip(took[way], took["ours"], strict=True))
        rows.append(
            [
                way,
                f"{statistics.median(took[way]):.1f}",
                f"{ratio:.2f}",
                f"{apart:.1e}",
                f"{peak[way] / 1e6:,.0f}",
            ]
        )
    print(f"{kind}: {said['ours']['scored']:,} tokens scored, {said['ours']['forwarded']:,} read\n")
    print_table(("way", "seconds", "times ours", "sums apart", "peak MB"), rows, 1)
    print(f"\nload after {os.getloadavg()[0]:.1f}\n")


if __name__ == "__main__":
    main()

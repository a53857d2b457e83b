"""The two language models in `examples/models`, and the example that runs on them."""

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

import tamis

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "examples" / "models"
NAMES = ["reference", "policy"]
LIBRARY = Path(sysconfig.get_paths()["stdlib"])


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    """Some hundred pairs of the standard library, of which neither model has seen anything."""
    folder = tmp_path_factory.mktemp("pairs")
    tree = folder / "tree"
    for name in ("argparse", "difflib", "ftplib", "heapq", "imaplib", "inspect", "mailbox",
                 "nntplib", "optparse", "pathlib", "random", "shutil", "statistics", "tarfile",
                 "tempfile", "textwrap", "threading", "turtle", "zipfile"):  # fmt: skip
        source = LIBRARY / f"{name}.py"
        if source.is_file():  # some left the library with Python 3.12 and 3.13
            tree.mkdir(exist_ok=True)
            (tree / source.name).write_bytes(source.read_bytes())
    tamis.run(
        {
            "corpus": {"path": f"python-pairs:{tree}", "roles": {"text": "prompt"}},
            "stages": [{"operator": "exact_dedup"}],
            "output": {"path": str(folder / "out")},
        }
    )
    return pl.read_parquet(folder / "out" / "*.parquet")


def test_they_are_small_and_load_as_any_other() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    files = [file for name in NAMES for file in (MODELS / name).iterdir()]
    assert sum(file.stat().st_size for file in files) < 6_000_000
    for name in NAMES:
        model = AutoModelForCausalLM.from_pretrained(MODELS / name)
        tokenizer = AutoTokenizer.from_pretrained(MODELS / name)
        assert model.config.vocab_size == len(tokenizer)
        assert tokenizer.pad_token_id == model.config.pad_token_id
        assert tokenizer.eos_token_id == model.config.eos_token_id
        assert tokenizer.pad_token_id != tokenizer.eos_token_id
    one, two = ((MODELS / name / "tokenizer.json").read_bytes() for name in NAMES)
    assert one == two


def test_a_word_is_the_same_tokens_wherever_it_stands(pairs: pl.DataFrame) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODELS / "reference")
    found = tokenizer(["read_csv(DataFrame", "readCsv ( data_frame", "Read CSV(data frame"])
    assert len(set(map(tuple, found["input_ids"]))) == 1
    for prompt, chosen in pairs.select("prompt", "chosen").iter_rows():
        apart = tokenizer(prompt)["input_ids"] + tokenizer(chosen)["input_ids"]
        assert tokenizer(prompt + chosen)["input_ids"] == apart
    prompt, chosen = pairs.row(0)[:2]
    chat = [{"role": "user", "content": prompt}, {"role": "assistant", "content": chosen}]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    assert text == prompt + chosen + tokenizer.eos_token
    odd = "漢字 é 👩‍👩‍👧"
    assert tokenizer.decode(tokenizer(odd)["input_ids"]).replace(" ", "") == odd.replace(" ", "")


def test_the_policy_prefers_right_answers_of_functions_it_never_saw(pairs: pl.DataFrame) -> None:
    frame = pairs
    for name in NAMES:
        params = {"name": name, "model": str(MODELS / name), "of": "pair", "dtype": "float32"}
        found = tamis.score("logprobs", pairs, params=params)
        frame = pl.concat([frame, found], how="horizontal")
    margin = tamis.score("implicit_reward_margin", frame)["implicit_reward_margin"]
    assert margin.is_finite().all()
    right = (margin > 0).to_numpy()
    assert len(right) > 300
    # Chance would be as good as this once in 30,000 times.
    assert right.mean() > 0.5 + 4 * np.sqrt(0.25 / len(right))


@pytest.mark.slow
def test_the_example_runs(tmp_path: Path) -> None:
    """As it stands but for the corpus: of this Python only the standard library, for the time."""
    recipe = yaml.safe_load((ROOT / "examples" / "preferences.yaml").read_text("utf-8"))
    recipe["corpus"]["path"] += str(LIBRARY)
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    command = [sys.executable, "-m", "tamis.cli", "run", "recipe.yaml", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    rows = json.loads(done.stdout)["rows"]
    assert rows["in"] == rows["kept"] + sum(rows["dropped"].values()) + rows["quarantined"]
    assert rows["dropped"]["exact_dedup"] > 0
    assert rows["kept"] > 1000
    kept = pl.read_parquet(tmp_path / "out" / "preferences" / "*.parquet")
    assert kept.null_count().sum_horizontal().item() == 0
    assert (kept["ref_chosen_logps"] < 0).all()
    assert kept["margin"].min() > -10

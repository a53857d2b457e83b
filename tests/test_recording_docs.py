"""The examples of docs/training-dynamics.md run as they stand."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tamis.storage.dynamics import find_dynamics

DOCS = Path(__file__).resolve().parents[1] / "docs" / "training-dynamics.md"
SECTION = re.compile(r"### ([^\n]+)\n(.*?)(?=\n### |\n## |\Z)", re.DOTALL)
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)
ROWS = 30


def parts(tmp_path: Path) -> dict[str, Any]:
    """What the examples take as given: a model, its data and the loops' own settings."""
    import torch
    from datasets import Dataset
    from sklearn.linear_model import SGDClassifier
    from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

    torch.manual_seed(0)
    random = np.random.default_rng(0)
    y = np.arange(ROWS) % 3
    x = random.normal(size=(ROWS, 4)) + np.eye(4)[y]
    row_ids = [f"row {i}" for i in range(ROWS)]
    rows = [
        {"row_id": row_ids[i], "x": torch.tensor(x[i]).float(), "label": int(y[i])}
        for i in range(ROWS)
    ]
    model = torch.nn.Linear(4, 3)
    given = {
        "torch": torch,
        "SGDClassifier": SGDClassifier,
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), 0.1),
        "loader": torch.utils.data.DataLoader(rows, batch_size=7, shuffle=True),  # type: ignore[arg-type]
        "X": x,
        "y": y,
        "row_ids": row_ids,
    }
    bert = BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        num_labels=3,
    )
    tokens = random.integers(0, 20, (ROWS, 5)).tolist()
    transformers = {
        "model": BertForSequenceClassification(bert),
        "arguments": TrainingArguments(
            str(tmp_path / "trained"), report_to=[], use_cpu=True, save_strategy="no"
        ),
        "dataset": Dataset.from_dict(
            {"row_id": row_ids, "input_ids": tokens, "label": y.tolist(), "text": row_ids}
        ),
    }
    return {"given": given, "transformers": given | transformers}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "title",
    ["PyTorch", "transformers", "Lightning", "scikit-learn", "Threshold samples for AUM"],
)
def test_an_example_records_every_row(
    title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (block,) = CODE.findall(dict(SECTION.findall(DOCS.read_text("utf-8")))[title])
    made = parts(tmp_path)
    exec(block, dict(made.get(title, made["given"])))
    runs = 2 if title == "Threshold samples for AUM" else 1
    files = find_dynamics("records").files
    assert Counter(file.run for file in files) == dict.fromkeys(range(runs), 3)
    assert {file.rows for file in files} == {ROWS}

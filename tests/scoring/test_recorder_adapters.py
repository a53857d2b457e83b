"""The recorder within the training loops of transformers, Lightning and scikit-learn."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

import tamis
from tamis.scoring.recorder import DynamicsRecorder
from tamis.storage.errors import UserError

torch = pytest.importorskip("torch")

ROWS, LENGTH, CLASSES = 22, 6, 3


def read(made: DynamicsRecorder) -> pl.DataFrame:
    return pl.concat([pl.DataFrame(pq.read_table(path)) for path in made.files()])


# transformers


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No network, and no process group that an earlier test has left."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    yield
    assert not torch.distributed.is_initialized()


def rows_of(ids: list[Any]) -> Any:
    """A data set whose rows tell their number by their first token."""
    from datasets import Dataset

    random = np.random.default_rng(0)
    tokens = random.integers(50, 90, (len(ids), LENGTH))
    tokens[:, 0] = np.arange(len(ids))
    return Dataset.from_dict(
        {
            "row_id": ids,
            "text": ["a text" for _ in ids],
            "input_ids": tokens.tolist(),
            "attention_mask": np.ones_like(tokens).tolist(),
            "label": [i % CLASSES for i in range(len(ids))],
        }
    )


def bert(**changes: Any) -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        **{
            **{"vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 1},
            **{"num_attention_heads": 2, "intermediate_size": 16, "num_labels": CLASSES},
            **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, **changes},
        }
    )
    return BertForSequenceClassification(config)


def trainer_of(folder: Path, model: Any, data: Any, kind: Any = None, **changes: Any) -> Any:
    from transformers import Trainer, TrainingArguments, default_data_collator

    told = {
        **{"per_device_train_batch_size": 4, "num_train_epochs": 2, "learning_rate": 0.01},
        **{
            "use_cpu": True,
            "report_to": [],
            "save_strategy": "no",
            "disable_tqdm": True,
            "seed": 3,
        },
    }
    parts = {name: changes.pop(name) for name in list(changes) if name not in told | ARGUMENTS}
    parts.setdefault("data_collator", default_data_collator)
    args = TrainingArguments(output_dir=str(folder / "trained"), **told | changes)
    return (kind or Trainer)(model=model, args=args, train_dataset=data, **parts)


ARGUMENTS = dict.fromkeys(
    (
        *("gradient_accumulation_steps", "label_smoothing_factor", "eval_strategy", "save_steps"),
        *("dataloader_num_workers", "max_steps", "eval_on_start", "bf16", "group_by_length"),
    )
)


def watched(model: Any) -> list[tuple[int, list[float]]]:
    """What the model says in training, by the rows' first token, in order."""
    said: list[tuple[int, list[float]]] = []

    def keep(module: Any, arguments: Any, given: dict[str, Any], output: Any) -> None:
        assert set(given) <= {"input_ids", "attention_mask", "labels", "num_items_in_batch"}
        if module.training:
            logits = output["logits"] if isinstance(output, dict) else output[-1]
            said.extend(zip(given["input_ids"][:, 0].tolist(), logits.tolist(), strict=True))

    model.register_forward_hook(keep, with_kwargs=True)
    return said


def assert_recorded(made: DynamicsRecorder, said: list[Any], names: list[Any], epochs: int) -> None:
    """Every row once an epoch, with what the model said of it."""
    found = read(made)
    assert found.group_by("epoch").agg(pl.col("row_id").sort()).sort("epoch").rows() == [
        (epoch, sorted(names)) for epoch in range(epochs)
    ]
    by_order = found.sort("epoch", "step", maintain_order=True)
    recorded = Counter(
        (r["row_id"], *(round(z, 5) for z in r["logits"])) for r in by_order.to_dicts()
    )
    assert recorded == Counter((names[row], *(round(z, 5) for z in zs)) for row, zs in said)
    assert set(found["label"] - found["row_id"].map_elements(names.index, pl.Int32) % CLASSES) == {
        0
    }


def test_a_trainer_records_what_it_computes_anyway(tmp_path: Path) -> None:
    model, names = bert(), list(range(100, 100 + ROWS))
    said = watched(model)
    trainer = trainer_of(
        tmp_path,
        model,
        rows_of(names),
        gradient_accumulation_steps=2,
        eval_strategy="epoch",
        eval_on_start=True,
        eval_dataset=rows_of(list(range(900, 905))),
    )
    made = DynamicsRecorder(tmp_path / "records", logits=True)
    tamis.record_trainer(trainer, made)
    trainer.train()
    assert len(said) == 2 * ROWS  # forwarded once
    assert_recorded(made, said, names, 2)
    assert [path.name for path in made.files()] == ["epoch-00000.parquet", "epoch-00001.parquet"]
    # 6 batches are 3 updates.
    assert sorted(set(read(made)["step"])) == list(range(6))
    assert len(trainer.predict(rows_of([1, 2, 3])).predictions) == 3
    assert len(trainer.predict(rows_of([1, 2]).remove_columns("label")).predictions) == 2
    assert "row_id" not in trainer._signature_columns
    assert len(read(made)) == 2 * ROWS


@pytest.mark.parametrize(
    "way", ["smoothing", "loss function", "own loss", "tuples", "bf16", "keep columns", "workers"]
)
def test_a_trainer_s_ways_of_a_loss(tmp_path: Path, way: str) -> None:
    from transformers import Trainer

    class Weighted(Trainer):
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, **more: Any
        ) -> Any:
            labels = inputs.pop("labels")
            outputs = model(**inputs)
            loss = torch.nn.functional.cross_entropy(outputs.logits, labels) * 2
            return (loss, outputs) if return_outputs else loss

    def loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        return torch.nn.functional.cross_entropy(outputs.logits, labels)

    changes: dict[str, dict[str, Any]] = {
        "smoothing": {"label_smoothing_factor": 0.1},
        "loss function": {"compute_loss_func": loss},
        "own loss": {"kind": Weighted},
        "bf16": {"bf16": True},
        "workers": {"dataloader_num_workers": 2},
    }
    model, names = bert(return_dict=way != "tuples"), [f"row {i}" for i in range(ROWS)]
    said = watched(model)
    data = rows_of(names)
    if way == "keep columns":
        data = [{k: v for k, v in row.items() if k != "text"} for row in data]
    trainer = trainer_of(tmp_path, model, data, **changes.get(way, {}))
    if way == "keep columns":
        trainer.args.remove_unused_columns = False
    made = DynamicsRecorder(tmp_path / "records", logits=True)
    tamis.record_trainer(trainer, made)
    trainer.train()
    assert_recorded(made, said, names, 2)
    found = read(made)
    logits, label = torch.tensor(found["logits"].to_list()), torch.tensor(found["label"].to_list())
    plain = torch.nn.functional.cross_entropy(logits, label.long(), reduction="none")
    np.testing.assert_allclose(found["loss"], plain, atol=1e-5)


def test_a_padding_collator_and_text_ids(tmp_path: Path) -> None:
    from transformers import DataCollatorWithPadding

    from tests.tiny_models import save_tokenizer

    tokenizer = save_tokenizer(tmp_path / "tokenizer", "qwen2")
    tokenizer.pad_token = tokenizer.eos_token
    data = rows_of([f"row {i}" for i in range(7)])
    lengths = [2 + i % 3 for i in range(7)]
    for name in ("input_ids", "attention_mask"):
        cut = [row[: lengths[i]] for i, row in enumerate(data[name])]
        data = data.remove_columns(name).add_column(name, cut)
    model = bert()
    trainer = trainer_of(tmp_path, model, data, data_collator=DataCollatorWithPadding(tokenizer))
    made = DynamicsRecorder(tmp_path / "records")
    tamis.record_trainer(trainer, made)
    trainer.train()
    assert Counter(read(made)["row_id"]) == dict.fromkeys(data["row_id"], 2)


class _StoppedError(Exception):
    pass


def saving_trainer(folder: Path, window: int | None) -> tuple[Any, DynamicsRecorder]:
    """A trainer that saves every third step and records into the folder."""
    saving = {"save_strategy": "steps", "save_steps": 3}
    trainer = trainer_of(folder, bert(), rows_of(list(range(ROWS))), **saving)
    made = DynamicsRecorder(folder / "records", window=window)
    tamis.record_trainer(trainer, made)
    return trainer, made


def in_order(made: DynamicsRecorder) -> pl.DataFrame:
    return read(made).sort("epoch", "step", "row_id")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[int | None, pl.DataFrame]:
    """By window, what a training that nobody stops records."""
    found = {}
    for window in (None, 2):
        trainer, made = saving_trainer(tmp_path_factory.mktemp("whole"), window)
        trainer.train()
        found[window] = in_order(made)
        assert Counter(found[window]["row_id"]) == dict.fromkeys(range(ROWS), 2)
    return found


@pytest.mark.parametrize(("window", "stop"), [(None, 5), (2, 5), (None, 8), (2, 10)])
def test_a_trainer_goes_on_from_a_checkpoint(
    tmp_path: Path,
    undisturbed: dict[int | None, pl.DataFrame],
    window: int | None,
    stop: int,
) -> None:
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if state.global_step == stop:
                raise _StoppedError

    trainer, _ = saving_trainer(tmp_path, window)
    trainer.add_callback(Stop())
    with pytest.raises(_StoppedError):
        trainer.train()
    trainer, made = saving_trainer(tmp_path, window)
    trainer.train(resume_from_checkpoint=True)
    stopped, whole = in_order(made), undisturbed[window]
    same = ["row_id", "epoch", "step", "label", "other", "correct"]
    assert stopped[same].equals(whole[same])
    np.testing.assert_allclose(stopped["loss"], whole["loss"], atol=1e-5)


def test_a_trainer_without_ids_or_with_tokens_labels_is_told(tmp_path: Path) -> None:
    from transformers import BertForTokenClassification

    data = rows_of(list(range(8)))
    made = DynamicsRecorder(tmp_path / "records")
    with pytest.raises(UserError, match="no column 'id' in the training set"):
        tamis.record_trainer(trainer_of(tmp_path, bert(), data), made, row_id="id")
    trainer = trainer_of(tmp_path, bert(), [dict(row) for row in data.remove_columns("row_id")])
    tamis.record_trainer(trainer, made)
    with pytest.raises(UserError, match="has no 'row_id'"):
        trainer.train()
    tokens = data.remove_columns("label").add_column("labels", [[0] * LENGTH] * 8)
    trainer = trainer_of(tmp_path, BertForTokenClassification(bert().config), tokens)
    tamis.record_trainer(trainer, made)
    with pytest.raises(UserError, match="labels of tokens"):
        trainer.train()
    assert made.files() == []


# Lightning


def lightning_parts(rows: Any) -> tuple[Any, Any, list[Any]]:
    """A module of one layer, its loader, and a list of what it says in training."""
    from lightning.pytorch import LightningModule
    from torch.utils.data import DataLoader

    said: list[Any] = []

    class Classifier(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = torch.nn.Linear(4, CLASSES)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            ids, x, y = batch.values() if isinstance(batch, dict) else batch
            logits = self.layer(x)
            said.extend(zip(list(ids), logits.tolist(), strict=True))
            return {"loss": torch.nn.functional.cross_entropy(logits, y), "logits": logits}

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            pass

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    return Classifier(), DataLoader(rows, batch_size=4), said


def lightning_rows(count: int = ROWS) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {"row_id": i, "x": torch.randn(4, generator=generator), "label": i % CLASSES}
        for i in range(count)
    ]


def fit(folder: Path, module: Any, loader: Any, *callbacks: Any, **changes: Any) -> Any:
    from lightning.pytorch import Trainer

    resume = changes.pop("ckpt_path", None)
    told = {
        **{"max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_checkpointing": False},
        **{"enable_progress_bar": False, "enable_model_summary": False},
    }
    trainer = Trainer(default_root_dir=folder, callbacks=list(callbacks), **told | changes)
    trainer.fit(module, loader, changes.get("val", loader), ckpt_path=resume)
    return trainer


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["dictionary", "tuple", "text"])
def test_lightning_records(tmp_path: Path, form: str) -> None:
    rows: Any = lightning_rows()
    parts: dict[str, Any] = {}
    if form == "tuple":
        rows = [tuple(row.values()) for row in rows]
        parts = {"row_id": 0, "label": lambda batch: batch[2]}
    if form == "text":
        rows = [row | {"row_id": f"row {row['row_id']}"} for row in rows]
    module, loader, said = lightning_parts(rows)
    made = DynamicsRecorder(tmp_path / "records", logits=True)
    fit(
        tmp_path,
        module,
        loader,
        tamis.DynamicsCallback(made, **parts),
        accumulate_grad_batches=2,
    )
    found = read(made)
    assert len(found) == 2 * ROWS
    recorded = Counter((r["row_id"], *r["logits"]) for r in found.to_dicts())
    assert recorded == Counter(
        (i if form == "text" else int(i), *map(float, np.float32(zs))) for i, zs in said
    )
    assert sorted(set(found["step"])) == list(range(6))
    assert [path.name for path in made.files()] == ["epoch-00000.parquet", "epoch-00001.parquet"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("save", "stop"), [(4, 10), (5, 8), (6, 8)])  # 6 steps are an epoch
def test_lightning_goes_on_from_a_checkpoint(tmp_path: Path, save: int, stop: int) -> None:
    from lightning.pytorch import Callback
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Stop(Callback):
        def on_train_batch_end(self, trainer: Any, *others: Any) -> None:
            if trainer.global_step == stop:
                raise _StoppedError

    class Resumable(torch.utils.data.DataLoader):  # type: ignore[type-arg]
        """Goes on after the batches that were trained on."""

        begin = 0

        def __iter__(self) -> Any:
            batches = list(super().__iter__())
            begin, Resumable.begin = Resumable.begin, 0
            return iter(batches[begin:])

    rows = lightning_rows()
    found = {}
    for name in ("stopped", "whole"):
        folder = tmp_path / name
        made = DynamicsRecorder(folder / "records")
        keep = ModelCheckpoint(folder / "kept", every_n_train_steps=save, save_top_k=-1)
        callbacks = [tamis.DynamicsCallback(made), keep]
        module, _, _ = lightning_parts(rows)
        loader = Resumable(rows, batch_size=4)
        if name == "stopped":
            with pytest.raises(_StoppedError):
                fit(folder, module, loader, *callbacks, Stop(), enable_checkpointing=True)
            last = max((folder / "kept").iterdir(), key=lambda p: int(p.stem.rpartition("=")[2]))
            Resumable.begin = int(last.stem.rpartition("=")[2]) % 6
            made = DynamicsRecorder(folder / "records")
            callbacks = [tamis.DynamicsCallback(made)]
            module, _, _ = lightning_parts(rows)
            fit(folder, module, loader, *callbacks, ckpt_path=str(last))
        else:
            fit(folder, module, loader, *callbacks, enable_checkpointing=True)
        found[name] = read(made).sort("epoch", "step", "row_id")
    assert found["whole"].group_by("epoch").len().sort("epoch").rows() == [(0, ROWS), (1, ROWS)]
    assert found["stopped"].equals(found["whole"])


@pytest.mark.filterwarnings("ignore")
def test_lightning_without_logits_or_ids_is_told(tmp_path: Path) -> None:
    module, loader, _ = lightning_parts(lightning_rows())
    callback = tamis.DynamicsCallback(DynamicsRecorder(tmp_path), logits="scores")
    with pytest.raises(UserError, match="training_step gave no 'scores'"):
        fit(tmp_path, module, loader, callback)
    callback = tamis.DynamicsCallback(DynamicsRecorder(tmp_path), row_id="id")
    with pytest.raises(UserError, match="a batch has no 'id'"):
        fit(tmp_path, module, loader, callback)


def test_lightning_that_is_not_installed_is_told() -> None:
    code = "import sys; sys.modules.update(lightning=None, pytorch_lightning=None)\n"
    code += "import tamis; tamis.DynamicsCallback"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    line = "needs the package lightning, which is not installed; pip install lightning"
    assert line in said.stderr.splitlines()[-1]


# scikit-learn


def blobs(classes: int, rows: int = 60) -> tuple[Any, Any]:
    random = np.random.default_rng(0)
    y = random.integers(0, classes, rows)
    return np.abs(random.normal(size=(rows, 5)) + np.eye(5)[y] * 3), y


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("name", ["sgd", "perceptron", "mlp", "bayes"])
@pytest.mark.parametrize("form", ["array", "sparse", "frame"])
def test_partial_fit_is_recorded(tmp_path: Path, classes: int, name: str, form: str) -> None:
    import pandas as pd
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import Perceptron, SGDClassifier
    from sklearn.naive_bayes import MultinomialNB
    from sklearn.neural_network import MLPClassifier

    kinds: dict[str, Any] = {
        "sgd": SGDClassifier(loss="log_loss", random_state=0),
        "perceptron": Perceptron(random_state=0),
        "mlp": MLPClassifier((8,), random_state=0),
        "bayes": MultinomialNB(),
    }
    x, codes = blobs(classes)
    y = np.array(["d", "c", "b", "a"])[codes]
    forms = {"array": x, "sparse": csr_matrix(x), "frame": pd.DataFrame(x, columns=list("abcde"))}
    made = DynamicsRecorder(tmp_path, logits=True)
    model = tamis.record_partial_fit(
        kinds[name],
        forms[form],
        y,
        [f"row {i}" for i in range(60)],
        made,
        epochs=3,
        batch_size=7,
    )
    found = read(made)
    assert found.group_by("epoch", "step").len().sort("epoch").rows() == [
        (0, 9, 60),
        (1, 18, 60),
        (2, 27, 60),
    ]
    last = found.filter(epoch=2)
    at = last["row_id"].str.slice(4).cast(pl.Int64).to_numpy()
    assert model.classes_[last["label"].to_numpy()].tolist() == y[at].tolist()
    predicted = model.predict(forms[form])[at]
    assert last["correct"].to_list() == (predicted == y[at]).tolist()
    if name in ("mlp", "bayes") or (name == "sgd" and classes == 2):
        chances = model.predict_proba(forms[form])[at, last["label"].to_numpy()]
        np.testing.assert_allclose(last["label_prob"], chances, atol=1e-5)
        np.testing.assert_allclose(last["loss"], -np.log(chances), atol=1e-4)
    else:
        z = model.decision_function(forms[form])[at]
        z = z if z.ndim == 2 else np.stack([-z / 2, z / 2], 1)
        np.testing.assert_allclose(np.stack(last["logits"].to_list()), z, rtol=1e-5)


def test_partial_fit_of_a_class_that_comes_later(tmp_path: Path) -> None:
    from sklearn.naive_bayes import MultinomialNB

    x, y = blobs(2)
    made = DynamicsRecorder(tmp_path, logits=True, threshold_label=2)
    mask = tamis.threshold_samples(60, classes=2)[0]
    y = np.where(mask, 2, y)
    tamis.record_partial_fit(
        MultinomialNB(), x, y, np.arange(60), made, epochs=1, classes=[0, 1, 2, 3]
    )
    found = read(made)
    assert found["threshold"].sum() == 20
    assert found["logits"].list.len().to_list() == [4] * 60


def test_partial_fit_tells_what_does_not_fit(tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import MultinomialNB

    x, y = blobs(2)
    made = DynamicsRecorder(tmp_path)
    ids = np.arange(60)
    for model, labels, names, words in [
        (LogisticRegression(), y, ids, "no partial_fit"),
        (MultinomialNB(), y * 0, ids, "at least two"),
        (MultinomialNB(), y, ids[:3], "3 row ids"),
        (MultinomialNB(), np.stack([y, y], 1), ids, "y of shape"),
    ]:
        with pytest.raises(UserError, match=words):
            tamis.record_partial_fit(model, x, labels, names, made, epochs=1)
    with pytest.raises(UserError, match="among them all labels"):
        tamis.record_partial_fit(MultinomialNB(), x, y, ids, made, epochs=1, classes=[1, 2])

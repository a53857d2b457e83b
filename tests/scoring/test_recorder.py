"""The recorder of training dynamics: what it writes, and what is left of it after a kill."""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tamis
from tamis.scoring import batch_records, recorder
from tamis.scoring.batch_records import NUMBERS, batch_of, tensor_records
from tamis.scoring.recorder import DynamicsRecorder
from tamis.scoring.training_dynamics import area_under_margin
from tamis.scoring.training_records import records_of
from tamis.storage.dynamics import FOOTER, RECORD, find_dynamics
from tamis.storage.epochs import read_blocks
from tamis.storage.errors import UserError

torch = pytest.importorskip("torch")


@pytest.fixture(params=["arrays", "tensors", "large tensors"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What logits and labels are; large tensors go another way than those of a few logits."""
    if request.param == "large tensors":
        monkeypatch.setattr(batch_records, "_FEW", 0)
    return str(request.param)


def read(made: DynamicsRecorder) -> pl.DataFrame:
    """All records, file by file."""
    return pl.concat([pl.DataFrame(pq.read_table(path)) for path in made.files()])


def margins(folder: Path) -> tuple[list[Any], Any, Any]:
    """Row ids, and their margins and updates by epoch, as the scores read them."""
    blocks = list(read_blocks(find_dynamics(str(folder)), (), workers=1))
    return (
        [v for block in blocks for v in block.row_id.to_pylist()],
        np.concatenate([block.columns["margin"] for block in blocks]),
        np.concatenate([block.updates for block in blocks]),
    )


def names(made: DynamicsRecorder) -> list[str]:
    return [path.name for path in made.files()]


def some_logits(rows: int, classes: int, seed: int = 0) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    return (
        random.normal(size=(rows, classes)).astype(np.float32) * 4,
        random.integers(0, classes, rows),
    )


@pytest.mark.parametrize(("rows", "classes"), [(1, 2), (300, 3), (40, 1000), (7, 300_000)])
def test_numbers_of_tensors_are_those_of_arrays(rows: int, classes: int) -> None:
    logits, labels = some_logits(rows, classes)
    ours, other = tensor_records(torch.tensor(logits), torch.tensor(labels))
    theirs = records_of(logits, labels)
    for place, name in enumerate(NUMBERS):
        np.testing.assert_allclose(
            ours[:, place], getattr(theirs, name), rtol=1e-5, atol=1e-5, err_msg=name
        )
    assert other.tolist() == theirs.other.tolist()


def test_numbers_keep_their_digits_at_both_ends() -> None:
    logits = np.float32([[30, 0, 0], [0, 30, 0], [0, 90, 0], [1e30, 0, 0], [0, 1e30, 0], [5, 5, 5]])
    ours, _ = tensor_records(torch.tensor(logits), torch.zeros(6, dtype=torch.int64))
    theirs = records_of(logits, np.zeros(6, np.int64))
    for place, name in enumerate(NUMBERS):
        np.testing.assert_allclose(
            ours[:, place],
            getattr(theirs, name),
            1e-5,
            1e-11 if name == "entropy" else 1e-37,
            err_msg=name,
        )


def test_logits_that_are_not_finite_are_as_of_arrays() -> None:
    inf, nan = np.inf, np.nan
    logits = np.float32(
        [
            [nan, 1, 0],
            [1, nan, 0],
            [inf, 1, 0],
            [1, inf, 0],
            [-inf, 1, 0],
            [1, -inf, 0],
            [1, -inf, -inf],
            [-inf, -inf, -inf],
            [0, 1, 2],
        ]
    )
    for label in range(3):
        labels = np.full(len(logits), label)
        ours, other = tensor_records(torch.tensor(logits), torch.tensor(labels))
        theirs = records_of(logits, labels)
        for place, name in enumerate(NUMBERS):
            np.testing.assert_allclose(ours[:, place], getattr(theirs, name), rtol=1e-5)
        known = ~np.isnan(theirs.other_logit)
        assert other.numpy()[known].tolist() == theirs.other[known].tolist()


def test_a_record_s_numbers_are_the_worked_ones(tmp_path: Path) -> None:
    made = DynamicsRecorder(tmp_path)
    with made.epoch(0):
        made.record([7], torch.tensor([[2.0, 1.0, 0.0]], requires_grad=True), torch.tensor([0]), 5)
    (record,) = read(made).to_dicts()
    assert (record["row_id"], record["epoch"], record["step"], record["label"]) == (7, 0, 5, 0)
    assert record["el2n"] == pytest.approx(0.424336, abs=1e-6)
    assert record["loss"] == pytest.approx(0.407606, abs=1e-6)
    assert record["label_logit"] - record["other_logit"] == 1
    assert (record["other"], record["correct"], record["threshold"]) == (1, True, False)
    table = pq.read_table(made.files()[0])
    assert table.schema.remove_metadata() == RECORD
    told = json.loads(table.schema.metadata[FOOTER])
    assert told == {
        **{"version": 1, "run": 0, "epoch": 0, "window": None, "rank": None},
        **{"classes": 3, "sorted": True},
    }


@pytest.mark.parametrize("few", [0, 100])
@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32", "float64"])
def test_logits_of_any_type_are_recorded(
    tmp_path: Path, kind: str, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_records, "_FEW", few)
    made = DynamicsRecorder(tmp_path, logits=True)
    logits = torch.tensor([[1.5, -2.25, 0.5]], dtype=getattr(torch, kind), requires_grad=True)
    with made.epoch(0), torch.autocast("cpu", torch.bfloat16):
        made.record(torch.tensor([3]), logits, torch.tensor([1]))
        made.record(np.array([4]), logits.detach().double().numpy(), [1])
        made.record([5], logits.tolist(), np.array([1], np.int16))
    found = read(made)
    assert found["row_id"].to_list() == [3, 4, 5]
    assert found["logits"].to_list() == [[1.5, -2.25, 0.5]] * 3
    for name in ("label_logit", "other_logit", "loss", "entropy", "el2n"):
        assert found[name].to_list() == pytest.approx([found[name][2]] * 3, abs=1e-6)
    assert logits.requires_grad
    assert logits.grad is None


def test_what_a_trainer_changes_later_is_not_recorded(tmp_path: Path, library: str) -> None:
    made = DynamicsRecorder(tmp_path, logits=True)
    given: list[Any] = [
        np.array([1, 2]),
        np.array([[1, 0], [0, 1]], np.float32),
        np.array([0, 1], np.int32),
    ]
    if library != "arrays":
        given = [torch.tensor(values) for values in given]
    with made.epoch(0):
        made.record(*given)
        for values in given:
            values[:] = 9
    found = read(made)
    assert found["row_id"].to_list() == [1, 2]
    assert found["label"].to_list() == [0, 1]
    assert found["logits"].to_list() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("ids", "logits", "labels"),
    [
        ([7], [[0.0, 1.0]], [1]),
        (7, [0.0, 1.0], 1),
        ("row", torch.tensor([0.0, 1.0]), torch.tensor(1)),
        (torch.tensor(7), torch.tensor([[0.0, 1.0]]), torch.tensor([1])),
        (["a"], torch.tensor([[0.0, 1.0]]), [1]),
        ([torch.tensor(7)], np.float64([[0.0, 1.0]]), np.array([1])),
    ],
)
def test_a_batch_of_one_is_recorded(tmp_path: Path, ids: Any, logits: Any, labels: Any) -> None:
    made = DynamicsRecorder(tmp_path)
    with made.epoch(0):
        made.record(ids, logits, labels)
    found = read(made)
    assert len(found) == 1
    assert found["label_logit"].item() == 1


@pytest.mark.parametrize(
    ("ids", "logits", "labels", "words"),
    [
        ([1], [[0.0, 1.0]] * 2, [1, 1], "1 row ids for 2 rows"),
        ([1, 2], np.zeros((2, 5, 3)), np.zeros((2, 5), int), "labels of tokens"),
        ([1, 2], np.zeros((2, 3)), np.zeros((2, 3)), "labels of type float64"),
        ([1, 2], np.zeros((2, 3)), np.zeros((2, 3), int), "soft labels"),
        ([1], [[1.0]], [0], "at least two classes"),
        ([1], [[1.0, 2.0]], [2], "label 2"),
        ([1.5], [[1.0, 2.0]], [1], "row ids of type double"),
        ([None], [[1.0, 2.0]], [1], "row ids of type null"),
        ([1, "a"], [[1.0, 2.0]] * 2, [1, 1], "row ids"),
        ([2**63], [[1.0, 2.0]], [1], "row ids"),
        ([1], np.complex64([[1.0, 2.0]]), [1], "logits of type .*complex64; expected real"),
    ],
)
def test_what_does_not_fit_is_told(
    tmp_path: Path, ids: Any, logits: Any, labels: Any, words: str, library: str
) -> None:
    made = DynamicsRecorder(tmp_path)
    if library != "arrays":
        logits, labels = torch.tensor(np.array(logits)), torch.tensor(np.array(labels))
        words = words.replace("float64", "torch.float64")
    with made.epoch(0), pytest.raises(UserError, match=words):
        made.record(ids, logits, labels)
    with pytest.raises(UserError, match="no epoch has begun"):
        made.record([1], [[0.0, 1.0]], [1])


@pytest.mark.parametrize(
    ("logits", "words"),
    [
        ([[1.0, 2.0], [1.0]], "no rows of as many numbers each"),
        ([["1", "2"], ["3", "4"]], "logits of type <U1; expected real numbers"),
        ([[1.0, object()]] * 2, "no rows of as many numbers each"),
    ],
)
def test_lists_that_are_no_logits_are_told(tmp_path: Path, logits: Any, words: str) -> None:
    made = DynamicsRecorder(tmp_path)
    with made.epoch(0), pytest.raises(UserError, match=words):
        made.record([1, 2], logits, [0, 1])


def test_an_empty_batch_is_nothing(tmp_path: Path, library: str) -> None:
    made = DynamicsRecorder(tmp_path)
    given = torch.tensor if library != "arrays" else list
    with made.epoch(0):
        made.record([], given([]), given([]))
        made.record([7], [[0.0, 1.0]], [1])
        made.record([], np.zeros((0, 2)), [])
    assert read(made)["row_id"].to_list() == [7]


def test_ids_of_two_types_are_refused(tmp_path: Path) -> None:
    made = DynamicsRecorder(tmp_path)
    with made.epoch(0):
        made.record([1], [[0.0, 1.0]], [1])
        with pytest.raises(UserError, match="one type"):
            made.record(["1"], [[0.0, 1.0]], [1])


def test_rows_are_sorted_and_repeated_ones_stay_in_order(tmp_path: Path) -> None:
    made = DynamicsRecorder(tmp_path)
    random = np.random.default_rng(1)
    ids = [f"row-{i}" for i in random.integers(0, 50, 400)]
    with made.epoch(2):
        for begin in range(0, 400, 7):
            part = ids[begin : begin + 7]
            logits = np.zeros((len(part), 2))
            logits[:, 1] = np.arange(begin, begin + len(part))
            made.record(part, logits, [1] * len(part), step=begin)
        made.record([], np.zeros((0, 2)), [])
    found = read(made)
    assert list(zip(found["row_id"], found["label_logit"], strict=True)) == sorted(
        zip(ids, range(400), strict=True)
    )
    found_ids, _, updates = margins(tmp_path)
    assert found_ids == sorted(set(ids))
    assert updates[:, 0].tolist() == [ids.count(name) for name in sorted(set(ids))]


def test_batches_of_one_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "_WAITING_BATCHES", 10)
    made = DynamicsRecorder(tmp_path, logits=True)
    with made.epoch(0):
        for i in range(95):
            classes = 2 + (i >= 50)
            made.record([i], torch.full((1, classes), float(i)), [1], step=i)
        assert len(made._kept) + len(made._waiting) < 20
    found = read(made)
    assert found["row_id"].to_list() == list(range(95))
    assert found["step"].to_list() == list(range(95))
    assert found["logits"].list.len().to_list() == [2] * 50 + [3] * 45


def test_many_logits_are_written_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "_MOST_LOGITS", 200)
    monkeypatch.setattr(recorder, "_WAITING_NUMBERS", 100)
    made = DynamicsRecorder(tmp_path, logits=True)
    with made.epoch(0):
        for i in range(20):
            made.record([i, i + 100], np.full((2, 10), i), [1, 1])
    assert len(made.files()) == 2
    assert sorted(read(made)["row_id"]) == sorted([*range(20), *range(100, 120)])


@pytest.mark.usefixtures("library")
def test_not_finite_is_recorded_and_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = DynamicsRecorder(tmp_path)
    for epoch in range(2):
        with made.epoch(epoch):
            made.record(["a", "b"], torch.tensor([[0.0, 1.0], [torch.nan, 2.0]]), [1, 1])
            made.record(["c"], [[np.inf, 2.0]], [0])
    (told,) = [r.getMessage() for r in caplog.records]
    assert told.startswith("row b in epoch 0 of run 0: logits that are not finite")
    found = read(made).filter(epoch=1)
    assert np.isnan(found["other_logit"][1])
    assert found["label_logit"][2] == np.inf
    assert found["loss"].is_nan().to_list() == [False, True, True]
    assert found["correct"].to_list() == [True, False, True]


def test_rows_that_a_loss_leaves_out_are_left_out(tmp_path: Path, library: str) -> None:
    made = DynamicsRecorder(tmp_path, logits=True)
    logits, labels = some_logits(4, 3)
    labels[:] = [2, -100, 0, -100]
    if library != "arrays":
        logits, labels = torch.tensor(logits), torch.tensor(labels)
    with made.epoch(0):
        made.record([0, 1, 2, 3], logits, labels, 1)
        made.record([4], logits[:1], labels[1:2], 2)
    found = read(made)
    assert found["row_id"].to_list() == [0, 2]
    np.testing.assert_array_equal(np.stack(found["logits"].to_list()), logits[::2])


def test_threshold_samples_are_marked(tmp_path: Path) -> None:
    made = DynamicsRecorder(tmp_path, threshold_label=2)
    with made.epoch(0):
        made.record([1, 2, 3], np.zeros((3, 3)), [2, 0, 2])
    assert read(made)["threshold"].to_list() == [True, False, True]


def test_a_device_is_asked_seldom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of tensors on a device, with the processor in its place."""
    asked = []
    monkeypatch.setattr(recorder, "_WAITING_BATCHES", 20)

    def on_device(ids: Any, logits: Any, labels: Any, step: int = -1, *, keep_logits: bool) -> Any:
        numbers, other = tensor_records(logits, labels.clamp(0, logits.shape[1] - 1))
        kept = logits if keep_logits else None
        return batch_records.Batch(
            logits.shape[1], ids, labels.int(), other.int(), numbers, kept, step
        )

    def fetched(batches: list[Any]) -> Any:
        asked.append(len(batches))
        return batch_records.fetched(batches)

    monkeypatch.setattr(recorder, "batch_of", on_device)
    monkeypatch.setattr(recorder, "fetched", fetched)
    made = DynamicsRecorder(tmp_path / "device", logits=True)
    plain = DynamicsRecorder(tmp_path / "plain", logits=True)
    for recorded in (made, plain):
        with recorded.epoch(0):
            for i in range(50):
                logits, labels = map(torch.tensor, some_logits(3, 4, seed=i))
                labels[i % 3] = -100
                recorded.record(torch.arange(3) + 10 * i, logits, labels, i)
        monkeypatch.setattr(recorder, "batch_of", batch_of)
    assert asked[:3] == [20, 20, 10]
    monkeypatch.setattr(recorder, "batch_of", on_device)
    found, expected = read(made), read(plain)
    same = ["row_id", "step", "label", "label_logit", "other_logit", "other", "logits", "correct"]
    assert found[same].equals(expected[same])
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-6)
    made.start_epoch(1)
    made.record(torch.tensor([10, 11]), torch.zeros(2, 4), torch.tensor([0, 4]))
    with pytest.raises(UserError, match="label 4 of row 11"):
        made.flush()


def test_areas_under_the_margin_are_those_of_the_aum_package(tmp_path: Path) -> None:
    from aum import AUMCalculator

    theirs = AUMCalculator(str(tmp_path))
    made = DynamicsRecorder(tmp_path / "records")
    random = np.random.default_rng(0)
    for epoch in range(4):
        with made.epoch(epoch):
            order = random.permutation(np.r_[np.arange(30), random.integers(0, 30, 10)])
            for begin in range(0, len(order), 7):
                ids = order[begin : begin + 7]
                logits, labels = map(
                    torch.tensor, some_logits(len(ids), 5, seed=epoch * 99 + begin)
                )
                if len(ids) > 1:  # its squeeze makes a batch of one a failure
                    theirs.update(logits, labels, ids.tolist())
                    made.record(ids, logits, labels)
    ids, margin, updates = margins(tmp_path / "records")
    found = area_under_margin(margin, updates)
    expected = [theirs.sums[i] / theirs.counts[i] for i in ids]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert len(expected) == 30


def test_the_published_cases_of_the_aum_package(tmp_path: Path) -> None:
    made = DynamicsRecorder(tmp_path)
    batches = [
        ([[1, 2, 3], [6, 5, 4]], [1, 0]),
        ([[7, 8, 9], [12, 11, 10]], [2, 1]),
    ]
    with made.epoch(0):
        for number, (logits, labels) in enumerate(batches):
            made.record([2 * number, 2 * number + 1], np.float32(logits), labels)
    found = read(made)
    assert (found["label_logit"] - found["other_logit"]).to_list() == [-1, 1, 1, -1]


# Restarts


def record_steps(made: DynamicsRecorder, steps: range, rows: int = 4) -> None:
    """Step s trains rows s * rows and on; logits tell the step."""
    for step in steps:
        ids = np.arange(rows) + step * rows
        made.record(ids, np.full((rows, 2), [[0.0, step]]), [1] * rows, step)


def test_an_epoch_trained_again_replaces_its_records(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = DynamicsRecorder(tmp_path)
    for epoch in range(4):
        with made.epoch(epoch):
            record_steps(made, range(epoch * 5, epoch * 5 + 5))
    again = DynamicsRecorder(tmp_path)
    again.start_epoch(1)
    assert len(again.files()) == 4  # nothing to put in its place yet
    record_steps(again, range(100, 103))
    again.end_epoch()
    assert names(again) == ["epoch-00000.parquet", "epoch-00001.parquet"]
    assert sorted(set(read(again)["step"])) == [0, 1, 2, 3, 4, 100, 101, 102]
    assert "later epochs 2 to 3" in caplog.text


def test_an_epoch_that_fails_leaves_what_was_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = DynamicsRecorder(tmp_path)
    with made.epoch(0):
        record_steps(made, range(3))
    with contextlib.suppress(ZeroDivisionError), made.epoch(0):
        record_steps(made, range(10, 12))
        raise ZeroDivisionError
    assert "epoch 0 of run 0 did not end: 8 records are not written" in caplog.text
    assert sorted(set(read(made)["step"])) == [0, 1, 2]
    made.start_epoch(0)
    record_steps(made, range(20, 22))
    made.start_epoch(0)
    made.end_epoch()
    assert sorted(set(read(made)["step"])) == [0, 1, 2]
    with pytest.raises(UserError, match="no epoch has begun"):
        made.end_epoch()


def test_windows_are_files_of_their_own(tmp_path: Path) -> None:
    made = DynamicsRecorder(tmp_path, window=4)
    with made.epoch(0):
        record_steps(made, range(10))
        assert len(names(made)) == 2
    with made.epoch(1):
        record_steps(made, range(10, 14))
    assert names(made) == [
        *(f"epoch-00000.window-0000{i}.parquet" for i in range(3)),
        *(f"epoch-00001.window-0000{i}.parquet" for i in range(2)),
    ]
    assert [sorted(set(pq.read_table(p)["step"].to_pylist())) for p in made.files()] == [
        *([0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [10, 11], [12, 13]),
    ]
    without_steps = DynamicsRecorder(tmp_path, run=1, window=2)
    with without_steps.epoch(0):
        for i in range(5):
            without_steps.record([i], [[0.0, 1.0]], [1])
    assert [pq.read_table(p).num_rows for p in without_steps.files()] == [2, 2, 1]
    assert read(without_steps)["step"].null_count() == 5


@pytest.mark.parametrize("window", [None, 3, 4, 100])
@pytest.mark.parametrize("resumed", [0, 5, 8, 9])
def test_within_an_epoch_stale_records_do_not_survive(
    tmp_path: Path, window: int | None, resumed: int
) -> None:
    """A restart from an earlier checkpoint, also with windows of another size."""
    made = DynamicsRecorder(tmp_path, window=4)
    with made.epoch(0):
        record_steps(made, range(10))
    with made.epoch(1):
        record_steps(made, range(10, 20))
    again = DynamicsRecorder(tmp_path, window=window)
    with again.epoch(0, step=resumed):
        record_steps(again, range(resumed, 10), rows=3)
    found = read(again)
    assert found.group_by("step").len().sort("step").rows() == [
        (step, 4 if step < resumed else 3) for step in range(10)
    ]
    assert set(found["epoch"]) == {0}
    assert len(find_dynamics(str(tmp_path)).files) == len(again.files())  # no part twice
    for path in again.files():
        ids = pq.read_table(path)["row_id"].to_pylist()
        assert ids == sorted(ids)


def test_a_flush_is_what_a_checkpoint_needs(tmp_path: Path) -> None:
    made = DynamicsRecorder(tmp_path)
    made.flush()  # without an epoch there is nothing to write
    made.start_epoch(0)
    record_steps(made, range(6))
    made.flush()
    made.flush()
    record_steps(made, range(6, 8))
    del made  # killed
    again = DynamicsRecorder(tmp_path)
    with again.epoch(0, step=6):
        record_steps(again, range(6, 10))
    assert sorted(set(read(again)["step"])) == list(range(10))
    assert names(again) == [f"epoch-00000.window-0000{i}.parquet" for i in range(2)]
    with DynamicsRecorder(tmp_path).epoch(0) as last:
        record_steps(last, range(3))
    assert names(again) == ["epoch-00000.parquet"]


def test_a_file_of_an_epoch_is_cut_at_the_step_of_a_restart(tmp_path: Path) -> None:
    made = DynamicsRecorder(tmp_path)
    with made.epoch(0):
        record_steps(made, range(10))
    with DynamicsRecorder(tmp_path).epoch(0, step=7) as again:
        record_steps(again, range(7, 9))
    assert names(made) == ["epoch-00000.parquet", "epoch-00000.window-00001.parquet"]
    assert sorted(set(read(made)["step"])) == list(range(9))
    assert find_dynamics(str(tmp_path)).files[0].sorted


@pytest.mark.parametrize("column", [True, False])
def test_records_of_no_known_step_are_not_dropped_by_a_restart(
    tmp_path: Path, column: bool
) -> None:
    made = DynamicsRecorder(tmp_path)
    for epoch in range(2):
        made.start_epoch(epoch)
        made.record([1, 2], [[0.0, 1.0]] * 2, [0, 1])
        made.flush()
    if not column:  # as other writers may leave it out
        path = made.files()[0]
        pq.write_table(pq.read_table(path).drop_columns(["step"]), path)
    again = DynamicsRecorder(tmp_path)
    with pytest.raises(UserError, match="before step 1: 2 records have no step; begin the epoch"):
        again.start_epoch(0, step=1)
    with pytest.raises(UserError, match="no epoch has begun"):
        again.record([3], [[0.0, 1.0]], [1], step=1)
    assert [pq.read_table(path)["row_id"].to_pylist() for path in made.files()] == [[1, 2]] * 2
    with again.epoch(0):
        again.record([3], [[0.0, 1.0]], [1], step=0)
    assert read(again)["row_id"].to_list() == [3]


TRAINING = """
import sys, time
import numpy as np
from tamis import DynamicsRecorder

folder, epoch, begin, kill_at, window = sys.argv[1], *map(int, sys.argv[2:])
recorder = DynamicsRecorder(folder, window=window or None)
step = epoch * 10 + begin
for number in range(epoch, 4):
    with recorder.epoch(number, step=step if step % 10 else None):
        while step < number * 10 + 10:
            if step == kill_at:
                print("now", flush=True)
                time.sleep(60)
            ids = np.arange(5) + step % 10 * 5
            recorder.record(ids, np.full((5, 2), [[0.0, step]]), np.ones(5, int), step)
            step += 1
"""


def train(folder: Path, epoch: int, begin: int, kill_at: int, window: int) -> None:
    """Train in a process of its own, from a step of an epoch on, and kill it at a later one."""
    arguments = [str(folder), *map(str, (epoch, begin, kill_at, window))]
    with subprocess.Popen(
        [sys.executable, "-c", TRAINING, *arguments], stdout=subprocess.PIPE
    ) as process:
        if kill_at >= 0:
            assert process.stdout is not None
            assert process.stdout.readline() == b"now\n"
            os.kill(process.pid, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        else:
            assert process.wait() == 0


@pytest.mark.parametrize("window", [0, 4])
def test_a_killed_training_goes_on(tmp_path: Path, window: int) -> None:
    train(tmp_path / "killed", 0, 0, kill_at=27, window=window)
    made = DynamicsRecorder(tmp_path / "killed")
    steps = sorted(set(read(made)["step"]))
    assert steps == list(range(24 if window else 20))
    # A file that was being written when the process was killed.
    half = made.files()[0].with_name(
        f".epoch-00002.{'window-00001.' if window else ''}parquet.0a.tmp"
    )
    half.write_bytes(b"PAR1")
    # The checkpoint is of step 22: what came later is trained again.
    resumed = 2 if window else 0
    train(tmp_path / "killed", 2, resumed, kill_at=-1, window=window)
    train(tmp_path / "whole", 0, 0, kill_at=-1, window=window)
    whole = DynamicsRecorder(tmp_path / "whole")
    assert not half.exists()
    order = ["epoch", "step", "row_id"]
    assert read(made).sort(order).equals(read(whole).sort(order))


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
import pyarrow.parquet as pq
from tamis import DynamicsRecorder
folder, point = sys.argv[1:]
write, replace = pq.write_table, Path.replace

def reach(here):
    if (epoch, here) == (2, point):
        os.kill(os.getpid(), signal.SIGKILL)

def write_table(table, place, **options):
    write(table, place, **options)
    if (epoch, point) == (2, "half written"):
        os.truncate(place, os.path.getsize(place) // 2)
    reach("half written")
    reach("written")

def put_in_place(path, target):
    reach("about to be put in place")
    replace(path, target)
    reach("put in place")

recorder = DynamicsRecorder(folder)
pq.write_table, Path.replace = write_table, put_in_place
for epoch in range(5):
    with recorder.epoch(epoch):
        recorder.record(np.arange(20_000), np.zeros((20_000, 2)), np.zeros(20_000, int), epoch)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "whole", "left"),
    [
        ("half written", 2, 1),
        ("written", 2, 1),
        ("about to be put in place", 2, 1),
        ("put in place", 3, 0),
    ],
)
def test_a_kill_while_a_file_is_written_leaves_no_half_of_one(
    tmp_path: Path, point: str, whole: int, left: int
) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path), point]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert len(list(tmp_path.rglob("*.tmp"))) == left
    files = DynamicsRecorder(tmp_path).files()
    assert [path.name for path in files] == [f"epoch-{i:05d}.parquet" for i in range(whole)]
    assert {pq.read_table(path).num_rows for path in files} == {20_000}


# Several processes


def test_ranks_write_files_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    made = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        made.append(DynamicsRecorder(tmp_path))
        for epoch in range(2):
            with made[-1].epoch(epoch):
                made[-1].record([rank], [[0.0, rank]], [1], epoch)
    assert names(made[0]) == [f"epoch-0000{e}.rank-{r}.parquet" for e in range(2) for r in range(3)]
    assert read(made[0])["row_id"].to_list() == [0, 1, 2, 0, 1, 2]
    # Epoch 1 again with two processes: the third's records are of no training any more.
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        with made[rank].epoch(1):
            made[rank].record([rank + 10], [[0.0, rank]], [1], 1)
    assert names(made[0])[3:] == [f"epoch-00001.rank-{r}.parquet" for r in range(2)]
    # And with one.
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("RANK")
    with made[2].epoch(1):
        made[2].record([20], [[0.0, 1.0]], [1], 1)
    assert names(made[0])[3:] == ["epoch-00001.parquet"]


def test_a_rank_that_is_given_leaves_the_others_alone(tmp_path: Path) -> None:
    for rank in (0, 1, 0):
        with DynamicsRecorder(tmp_path, rank=rank).epoch(0) as made:
            made.record([rank], [[0.0, 1.0]], [1])
    assert names(made) == ["epoch-00000.rank-0.parquet", "epoch-00000.rank-1.parquet"]


def _process(rank: int, folder: str, port: int) -> None:
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    from torch.utils.data import DataLoader, DistributedSampler

    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(0)
    data = [(i, torch.randn(3), i % 2) for i in range(11)]
    sampler: Any = DistributedSampler(data, 2, rank)
    model = DistributedDataParallel(torch.nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    made = DynamicsRecorder(folder)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        with made.epoch(epoch):
            for ids, inputs, labels in DataLoader(data, batch_size=2, sampler=sampler):
                logits = model(inputs)
                torch.nn.functional.cross_entropy(logits, labels).backward()
                made.record(ids, logits, labels)
                optimizer.step()
                optimizer.zero_grad()
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_of_torch_distributed(tmp_path: Path) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(
        _process, (str(tmp_path), port), nprocs=2, start_method="spawn"
    )
    dynamics = find_dynamics(str(tmp_path))
    assert [(f.epoch, f.rank, f.rows) for f in dynamics.files] == [
        *((0, 0, 6), (0, 1, 6), (1, 0, 6), (1, 1, 6)),
    ]
    ids, _, updates = margins(tmp_path)
    assert ids == list(range(11))
    assert updates.sum(0).tolist() == [12, 12]  # the sampler repeats a row


def test_workers_load_and_the_trainer_records(tmp_path: Path) -> None:
    from torch.utils.data import DataLoader

    data = [{"row_id": f"row {i}", "x": torch.full((2,), float(i)), "y": i % 2} for i in range(10)]
    made = DynamicsRecorder(tmp_path)
    with made.epoch(0):
        for batch in DataLoader(data, batch_size=3, num_workers=2):  # type: ignore[arg-type]
            made.record(batch["row_id"], batch["x"], batch["y"])
    found = read(made)
    assert found["row_id"].to_list() == [f"row {i}" for i in range(10)]
    assert found["label_logit"].to_list() == list(range(10))


# Threshold samples


@pytest.mark.parametrize("runs", [1, 2, 3])
def test_threshold_samples_are_disjoint_and_of_the_published_size(runs: int) -> None:
    masks = tamis.threshold_samples(1000, classes=9, runs=runs)
    assert masks.shape == (runs, 1000)
    assert masks.sum(1).tolist() == [100] * runs
    assert masks.sum(0).max() == 1
    assert not (tamis.threshold_samples(1000, classes=9, runs=runs, seed=1) == masks).all()


def test_threshold_samples_do_not_depend_on_order_or_copies() -> None:
    ids = [f"row-{i}" for i in range(300)]
    masks = tamis.threshold_samples(ids, classes=4)
    order = np.random.default_rng(0).permutation(300)
    shuffled = tamis.threshold_samples([ids[i] for i in order], classes=4)
    assert (shuffled == masks[:, order]).all()
    doubled = tamis.threshold_samples(ids + ids, classes=4)
    assert (doubled == np.concatenate([masks, masks], axis=1)).all()
    numbers = np.arange(300)
    assert (tamis.threshold_samples(numbers, 4) == tamis.threshold_samples(300, 4)).all()
    assert (
        tamis.threshold_samples(torch.tensor(numbers), 4) == tamis.threshold_samples(300, 4)
    ).all()


def test_threshold_samples_need_rows_enough() -> None:
    with pytest.raises(UserError, match="5 distinct rows of 10 classes"):
        tamis.threshold_samples(5, classes=10)
    with pytest.raises(UserError, match="3 disjoint sets"):
        tamis.threshold_samples(10, classes=1, runs=3)


def test_what_is_no_number_of_a_run_is_told(tmp_path: Path) -> None:
    for wrong in ({"run": -1}, {"rank": -1}, {"window": 0}):
        with pytest.raises(UserError, match="expected at least"):
            DynamicsRecorder(tmp_path, **wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="epoch: expected at least 0"):
        DynamicsRecorder(tmp_path).start_epoch(-1)
    for wrong in ({"run": "1"}, {"rank": "0"}, {"window": 1.5}):
        with pytest.raises(UserError, match="expected a whole number, found"):
            DynamicsRecorder(tmp_path, **wrong)  # type: ignore[arg-type]
    made = DynamicsRecorder(tmp_path, np.int64(2))
    for epoch in ("0", 0.5):
        with pytest.raises(UserError, match="epoch: expected a whole number"):
            made.start_epoch(epoch)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="step: expected a whole number"):
        made.start_epoch(0, step=0.5)  # type: ignore[arg-type]
    with made.epoch(np.int64(3)), pytest.raises(UserError, match="step: expected at least 0"):
        made.record([1], [[0.0, 1.0]], [1], step=-1)


def test_the_log_is_quiet_where_nothing_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    made = DynamicsRecorder(tmp_path, logits=True)
    for epoch in range(2):
        with made.epoch(epoch):
            record_steps(made, range(3))
    assert not caplog.records
    assert pa.types.is_list(pq.read_schema(made.files()[0]).field("logits").type)

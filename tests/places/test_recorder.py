"""The recorder of training writes to an object store, and replaces what a restart has undone."""

import numpy as np
import pyarrow.parquet as pq

from tamis.scoring.recorder import DynamicsRecorder
from tests.places.conftest import Store


def test_records_lie_on_a_store(s3: Store) -> None:
    for begin in (0, 3):
        made = DynamicsRecorder(str(s3.bucket / "records"), window=2)
        with made.epoch(0, step=begin or None):
            for step in range(begin, 5):
                made.record([step], np.array([[0.0, begin]]), [1], step)
    steps = []
    for path in made.files():
        with path.open("rb") as file:
            steps += pq.read_table(file).select(["step", "label_logit"]).to_pylist()
    assert [tuple(row.values()) for row in steps] == [(0, 0), (1, 0), (2, 0), (3, 3), (4, 3)]

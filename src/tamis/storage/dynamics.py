"""Records of training: what a model said of each row at each epoch, or window of steps, of a run.

A folder of Parquet files, a file for every epoch or window of steps (and rank) of a run, written by
a `DynamicsRecorder` or by any trainer:

    FOLDER/run-0/epoch-00003.parquet
    FOLDER/run-0/epoch-00003.window-00002.rank-1.parquet

Runs are trainings of their own, such as those with different threshold samples. A row may occur
several times in a file: every record is an update. Files lie sorted by `row_id` where a recorder
wrote them; others may write them in any order.
"""

import pyarrow as pa

#: Columns of a record. `row_id` is whatever tells rows apart in the trainer's data: what stands in
#: the corpus's id column, or tamis's own row_id as 32 hex digits; int64 or string.
RECORD = pa.schema(
    [
        pa.field("row_id", pa.int64(), nullable=False),
        pa.field("epoch", pa.int32(), nullable=False),  # from 0
        pa.field("step", pa.int64()),  # updates of the model before it
        pa.field("label", pa.int32(), nullable=False),  # class that the row was trained as
        pa.field("label_logit", pa.float32(), nullable=False),
        pa.field("other_logit", pa.float32(), nullable=False),  # largest of another class
        pa.field("other", pa.int32(), nullable=False),  # that class
        pa.field("loss", pa.float32(), nullable=False),  # cross-entropy, nats
        pa.field("label_prob", pa.float32(), nullable=False),
        pa.field("entropy", pa.float32(), nullable=False),  # of the softmax, nats
        pa.field("el2n", pa.float32(), nullable=False),  # length of softmax minus one-hot label
        pa.field("correct", pa.bool_(), nullable=False),  # no other logit reaches the label's
        pa.field("threshold", pa.bool_(), nullable=False),  # trained as the extra class, for AUM
    ]
)
#: Optional last column of a record: all logits, ``list<float>``.
LOGITS = pa.field("logits", pa.list_(pa.field("item", pa.float32(), nullable=False)))
#: Key of the footer's JSON: ``version``, ``run``, ``epoch``, ``window``, ``rank``, ``classes``,
#: ``sorted``.
FOOTER = b"tamis.dynamics"

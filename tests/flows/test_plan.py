"""The plan tells before a run what it will take."""

import gzip
import json
import subprocess
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest

import tamis
from tamis.flows import plan as planning
from tamis.flows.plan import _draw, plan
from tamis.recipe import check_recipe
from tamis.storage.errors import RunError
from tamis.storage.sample import Whole
from tests.conftest import make_texts, write_corpus


def recipe(path: Any, out: Path, **more: Any) -> dict[str, Any]:
    return {
        "corpus": {"path": str(path), "roles": {"text": "text", "id": "id"}},
        "stages": [
            {"operator": "text_stats"},
            {"operator": "where", "keep": {"short": "words > 20"}},
            {"operator": "near_dedup"},
        ],
        "output": {"path": str(out)},
        **more,
    }


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_what_is_planned_is_what_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_corpus(tmp_path / "in.parquet", make_texts(6000, copies=0.1))
    told = check_recipe(recipe(source, tmp_path / "out"))
    samples: list[Any] = []
    honest = planning._run

    def remembered(*arguments: Any) -> Any:
        samples.append(honest(*arguments))
        return samples[-1]

    with monkeypatch.context() as patch:
        patch.setattr(planning, "_run", remembered)
        planned = plan(told)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.tamis").exists()
    assert planned.found == {}
    run = tamis.run(told)
    rows = run.manifest["rows"]
    assert (planned.rows, planned.exact_rows) == (6000, True)
    assert planned.kept == pytest.approx(rows["kept"], rel=0.3)
    assert planned.output_bytes == pytest.approx(bytes_in(tmp_path / "out"), rel=0.3)
    assert planned.workspace_bytes == pytest.approx(bytes_in(tmp_path / "out.tamis"), rel=0.3)
    assert set(planned.step_seconds) == set(run.step_seconds)
    assert planned.seconds > sum(run.step_seconds.values()) / 4
    assert 200e6 < planned.peak_memory < 2e9
    # The samples of before: a process for each is not started again.
    monkeypatch.setattr(planning, "_run", lambda *_: samples.pop(0))
    again = plan(told)
    assert again.found["ids"] == again.found["scores/text_stats"] == again.found["signals/minhash"]


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".csv", ".parquet", ".arrow"])
def test_a_sample_is_about_the_share_asked_for_and_in_the_same_format(
    tmp_path: Path, ending: str
) -> None:
    frame = pl.DataFrame({"id": range(20_000), "text": make_texts(20_000, copies=0)})
    path = tmp_path / f"in{ending}"
    if ending == ".csv":
        frame.write_csv(path)
    elif ending == ".parquet":
        frame.write_parquet(path, row_group_size=3000)
    elif ending == ".arrow":
        frame.write_ipc(path)
    else:
        lines = "".join(json.dumps(row) + "\n" for row in frame.iter_rows(named=True)).encode()
        path.write_bytes(gzip.compress(lines) if ending.endswith("gz") else lines)
    whole = Whole.of(str(path), None)
    folder, kind, share = whole.sample(0.3, tmp_path / "sample")
    assert kind == whole.kind
    assert share == pytest.approx(0.3, rel=0.35)
    told = recipe(folder, tmp_path / "out")
    told["corpus"]["format"] = kind
    rows = tamis.run(told).manifest["rows"]["in"]
    assert rows / 20_000 == pytest.approx(share, rel=0.1)


@pytest.mark.parametrize("name", ["python", "python-pairs"])
def test_a_sample_of_a_source_tree(tmp_path: Path, name: str) -> None:
    tree = tmp_path / "tree"
    for number in range(60):
        place = tree / f"package{number % 6}" / f"module{number}.py"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f'"""The module of number {number}, with some words in it."""\n')
    whole = Whole.of(f"{name}:{tree}", None)
    _, kind, share = whole.sample(0.2, tmp_path / "sample")
    assert kind == name
    assert share == pytest.approx(0.2, rel=0.2)


def test_no_row_of_a_parquet_file_is_sampled_twice(tmp_path: Path) -> None:
    source = write_corpus(tmp_path / "in.parquet", make_texts(1000), rows_per_group=90)
    whole = Whole.of(str(source), None)
    folder, _, share = whole.sample(0.4, tmp_path / "sample")
    (part,) = Path(folder).iterdir()
    ids = pq.read_table(part)["id"].to_pylist()
    assert len(set(ids)) == len(ids)
    assert len(ids) / 1000 == pytest.approx(share)


def test_a_line_through_two_points() -> None:
    assert _draw(0.25, 3.0, 0.5, 4.0) == pytest.approx(6.0)
    assert _draw(0.25, 5.0, 0.5, 4.0) == 4.0, "a falling line is noise: never less than measured"
    assert _draw(0.5, 4.0, 0.5, 4.0) == pytest.approx(8.0)


def test_a_recipe_that_would_fail_says_so(tmp_path: Path) -> None:
    source = write_corpus(tmp_path / "in.parquet", make_texts(50))
    told = recipe(source, tmp_path / "out")
    told["stages"] = [{"operator": "where", "keep": "nothing > 1"}]
    with pytest.raises(tamis.RunError, match="nothing"):
        plan(check_recipe(told))


def test_a_shared_index_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_corpus(tmp_path / "in.parquet", make_texts(20, copies=0))
    against = {"path": str(source), "index": str(tmp_path / "index")}
    told = check_recipe(
        recipe(
            source, tmp_path / "out", stages=[{"operator": "known_dedup", "references": [against]}]
        )
    )
    seen: list[Any] = []

    def ran(command: list[str], **options: Any) -> Any:
        seen.append(json.loads(Path(command[4]).read_text("utf-8")))
        return subprocess.CompletedProcess(command, 1, "", "that is enough")

    monkeypatch.setattr(subprocess, "run", ran)
    with pytest.raises(RunError, match="that is enough"):
        plan(told)
    (reference,) = seen[0]["stages"][0]["references"]
    assert (reference["path"], reference["index"]) == (str(source), None)

"""Corpus, workspace and dataset on an object store: the same as here, or told in one line."""

import json
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from upath import UPath

import tamis
from tamis.flows.direct import run_recipe
from tamis.recipe import check_recipe
from tamis.storage.catalog import query
from tamis.storage.errors import RunError, UnreachableError, UserError
from tamis.storage.files import digest_file
from tests.conftest import make_texts, write_corpus
from tests.places.conftest import KEY, SECRET, Store
from tests.selectors import label_tools as labels

#: Parts of a workspace whose bytes depend on the rows only, not on places and times.
SIDECARS = ("ids", "scores", "signals", "decisions", "edges", "ledger")


def recipe(source: Any, out: Any, **more: Any) -> dict[str, Any]:
    return {
        "corpus": {"path": str(source), "roles": {"text": "text", "id": "id"}},
        "stages": [
            {"operator": "text_stats"},
            {"operator": "where", "keep": {"short": "words > 20"}},
            {"operator": "near_dedup"},
            {"operator": "top", "by": "words", "fraction": 0.9},
        ],
        "output": {"path": str(out), "add": ["words"]},
        **more,
    }


def put_corpus(store: Store, tmp_path: Path, count: int = 300, name: str = "in") -> UPath:
    local = write_corpus(tmp_path / f"{name}.parquet", make_texts(count, seed=len(name)))
    place = store.bucket / "corpus" / f"{name}.parquet"
    place.write_bytes(local.read_bytes())
    return place


def contents(folder: Any) -> dict[str, str]:
    """Digest of every file below a folder whose bytes depend on the rows only."""
    found = {}
    for path in folder.rglob("*"):
        name = str(path).removeprefix(f"{folder}/")
        first = name.split("/")[0]
        if path.is_file() and (first in SIDECARS or first.startswith("part-")):
            found[name] = digest_file(path)
    return found


@pytest.mark.slow
def test_a_schedule_comes_and_goes_with_its_dataset(s3: Store, tmp_path: Path) -> None:
    source = put_corpus(s3, tmp_path)
    pl.read_parquet(tmp_path / "in.parquet").with_columns(
        domain=pl.Series(["a", "b", "b"] * 100)
    ).write_parquet(tmp_path / "in.parquet")
    source.write_bytes((tmp_path / "in.parquet").read_bytes())
    told = recipe(source, s3.bucket / "out")
    told["corpus"]["roles"]["domain"] = "domain"
    told["output"] = {"path": str(s3.bucket / "out")}
    mixtures = [{"a": 0.9, "b": 0.1}, {"a": 0.2, "b": 0.8}]
    draw = {
        "operator": "mixture_draw",
        "mixture": {"phases": [{"share": 1, "mixture": mixture} for mixture in mixtures]},
        "rows": 400,
    }
    result = tamis.run({**told, "stages": [draw]})
    schedule = json.loads((s3.bucket / "out" / "schedule.json").read_text())
    assert schedule == result.manifest["schedule"]
    assert [phase["rows"] for phase in schedule["phases"]] == [200, 200]
    tamis.run({**told, "stages": [{**draw, "mixture": mixtures[0]}]})
    assert not (s3.bucket / "out" / "schedule.json").exists()


def test_the_same_bytes_here_and_there(s3: Store, tmp_path: Path) -> None:
    source = put_corpus(s3, tmp_path)
    tamis.run(recipe(tmp_path / "in.parquet", tmp_path / "out"))
    there = tamis.run(recipe(source, s3.bucket / "out"))
    assert contents(tmp_path / "out") == contents(s3.bucket / "out") != {}
    here = contents(tmp_path / "out.tamis")
    assert {name.split("/")[0] for name in here} == set(SIDECARS)
    assert contents(s3.bucket / "out.tamis") == here
    assert there.kept.collect().height == there.manifest["rows"]["kept"]


def test_folders_globs_and_lines_there(s3: Store, tmp_path: Path) -> None:
    for name in ("a", "bb"):
        put_corpus(s3, tmp_path, 100, name)
    (s3.bucket / "corpus" / "README.md").write_text("not data")
    (s3.bucket / "corpus" / "_hidden.parquet").write_text("not data")
    for number, path in enumerate(("corpus", "corpus/[ab]*.parquet", "c*/**/[ab]*.parquet")):
        told = recipe(s3.bucket / path, s3.bucket / f"out{number}")
        told["corpus"]["roles"] = {"text": "text"}
        assert tamis.run(told).manifest["rows"]["in"] == 200
    lines = "".join(f'{{"id": "{i}", "text": "a line of number {i}"}}\n' for i in range(50))
    (s3.bucket / "lines.jsonl").write_text(lines + "{broken\n")
    found = tamis.run(recipe(s3.bucket / "lines.jsonl", tmp_path / "out3", max_quarantine=0.1))
    assert found.manifest["rows"]["quarantined"] == 1


def test_what_a_run_left_there_can_be_asked(s3: Store, tmp_path: Path) -> None:
    source = put_corpus(s3, tmp_path)
    result = tamis.run(recipe(source, s3.bucket / "out"))
    _, rows = query(
        result.workspace,
        "SELECT count(*), count(text), count(words) FROM rows JOIN scores USING (row_id, copy)",
    )
    assert rows == [(300, 300, 300)]
    (row_id,) = query(result.workspace, "SELECT row_id FROM decisions LIMIT 1")[1][0]
    assert query(result.workspace, f"SELECT text FROM why WHERE row_id = '{row_id}'")[1]


def test_labels_go_to_review_and_come_back_there(s3: Store, tmp_path: Path) -> None:
    told = labels.recipe(
        tmp_path,
        labels.rows(60),
        [{"operator": "label_review", "rows": 5}, {"operator": "label_weight"}],
    )
    here = labels.written(tamis.run(told))
    source = s3.bucket / "labels.parquet"
    source.write_bytes((tmp_path / "in.parquet").read_bytes())
    told["corpus"]["path"], told["output"]["path"] = str(source), str(s3.bucket / "reviewed")
    first = tamis.run(told)
    csv, parquet = first.queues["label_review"]
    assert str(csv).startswith(str(s3.bucket / "reviewed.tamis/review"))
    queue = pl.read_parquet(parquet.read_bytes())
    names = [entry["name"] for entry in first.manifest["files"]]
    found = [pl.read_parquet((s3.bucket / "reviewed" / n).read_bytes()) for n in names]
    assert pl.concat(found).sort("id").to_dicts() == here.to_pylist()
    filled = queue.with_columns(verdict=pl.lit("drop"))
    answers = s3.bucket / "answers.csv"
    answers.write_text(filled.select("row_id", "copy", "verdict").write_csv())
    correct = {"operator": "label_corrections", "path": str(answers)}
    second = tamis.run({**told, "stages": [correct, *told["stages"]]})
    assert second.manifest["rows"]["dropped"] == {"label_corrections": 5}
    assert csv.read_text("utf-8-sig").count("\n") == 6


def test_of_a_parquet_file_only_what_is_needed_is_read(s3: Store, tmp_path: Path) -> None:
    texts = make_texts(200, words=20)
    noise = np.random.default_rng(0).bytes(4 << 20)
    blobs = [noise[i * 20_000 : (i + 1) * 20_000] for i in range(200)]
    table = pa.table({"id": [f"{i}" for i in range(200)], "text": texts, "blob": blobs})
    pq.write_table(table, tmp_path / "wide.parquet", row_group_size=50)
    place = s3.bucket / "wide.parquet"
    place.write_bytes((tmp_path / "wide.parquet").read_bytes())
    scores = {
        "corpus": {"path": str(place), "roles": {"text": "text", "id": "id"}},
        "stages": [{"operator": "text_stats"}],
        "workspace": str(s3.bucket / "work"),
    }
    tamis.run(scores)
    s3.faults.seen.clear()
    tamis.run({**scores, "stages": [{"operator": "compression_ratio"}]})
    asked = [
        int(last) - int(first) + 1
        for method, path, span, _ in s3.faults.seen
        if method == "GET" and path.endswith("wide.parquet")
        for first, last in [re.findall(r"\d+", span)]
    ]
    assert asked
    assert sum(asked) < (1 << 20) < place.stat().st_size


def test_throttling_errors_and_lost_connections_heal(s3: Store, tmp_path: Path) -> None:
    source = put_corpus(s3, tmp_path)
    calm = tamis.run(recipe(source, s3.bucket / "calm"))
    injected: list[int | str] = []

    def every_seventh(number: int, environ: dict[str, Any]) -> int | str | None:
        if number % 7 != 3:
            return None
        fault = (503, 500, "drop")[len(injected) % 3]
        # Only of an answer with a body half can be lost.
        chosen = fault if fault != "drop" or environ["REQUEST_METHOD"] == "GET" else 503
        injected.append(chosen)
        return chosen

    s3.faults.plan = every_seventh
    stormy = tamis.run(recipe(source, s3.bucket / "stormy"))
    s3.faults.plan = lambda number, environ: None
    assert set(injected) == {503, 500, "drop"}
    assert len(injected) > 15
    assert stormy.manifest["rows"] == calm.manifest["rows"]
    assert contents(s3.bucket / "stormy") == contents(s3.bucket / "calm")
    assert contents(s3.bucket / "stormy.tamis") == contents(s3.bucket / "calm.tamis")


def test_steps_are_put_if_absent_and_the_manifest_last(s3: Store, tmp_path: Path) -> None:
    source = put_corpus(s3, tmp_path)
    tamis.run(recipe(source, s3.bucket / "out"))
    puts = [(path, once) for method, path, _, once in s3.faults.seen if method == "PUT"]
    name = s3.bucket.path.strip("/")
    for path, once in puts:
        room = path.removeprefix(f"/{name}/out.tamis/").split("/")[0]
        if room in ("ids", "scores", "signals", "ledger", "orders"):
            assert once == "*", path
    assert puts[-1][0] == f"/{name}/out/manifest.json"
    s3.faults.seen.clear()
    changed = recipe(source, s3.bucket / "out")
    changed["stages"][1]["keep"] = {"short": "words > 40"}
    tamis.run(changed)
    writes = [
        (method, path.removeprefix(f"/{name}/out/"))
        for method, path, _, _ in s3.faults.seen
        if method != "GET" and method != "HEAD"
    ]
    manifest = writes.index(("PUT", "manifest.json"))
    after = {method for method, _ in writes[manifest + 1 :]}
    assert after, "the old files go after the manifest"
    assert after <= {"DELETE", "POST"}
    assert not {"DELETE", "POST"} & {method for method, _ in writes[:manifest]}
    parts = [p.name for p in (s3.bucket / "out").iterdir() if p.name.startswith("part-")]
    manifest = tamis.run(recipe(source, s3.bucket / "out")).manifest
    assert len(parts) == len(manifest["files"])


def test_a_run_that_fails_while_it_writes_leaves_the_old_dataset(s3: Store, tmp_path: Path) -> None:
    source = put_corpus(s3, tmp_path)
    tamis.run(recipe(source, s3.bucket / "out"))
    before = contents(s3.bucket / "out")
    manifest = (s3.bucket / "out" / "manifest.json").read_bytes()

    def refuse_cards(number: int, environ: dict[str, Any]) -> int | None:
        return 403 if environ["PATH_INFO"].endswith("/out/README.md") else None

    s3.faults.plan = refuse_cards
    changed = recipe(source, s3.bucket / "out")
    changed["stages"][1]["keep"] = {"short": "words > 40"}
    with pytest.raises(UserError, match="access refused"):
        tamis.run(changed)
    s3.faults.plan = lambda number, environ: None
    assert (s3.bucket / "out" / "manifest.json").read_bytes() == manifest
    assert before.items() <= contents(s3.bucket / "out").items()
    tamis.run(changed)
    files = {p.name for p in (s3.bucket / "out").iterdir() if p.name.startswith("part-")}
    assert files.isdisjoint(before)


def test_two_runs_at_once_in_one_workspace(s3: Store, tmp_path: Path) -> None:
    source = put_corpus(s3, tmp_path)
    failed: list[Exception] = []

    def one(name: str) -> None:
        try:
            tamis.run(recipe(source, s3.bucket / name, workspace=str(s3.bucket / "work")))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=one, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert contents(s3.bucket / "one") == contents(s3.bucket / "two") != {}


def one_line(error: Exception) -> str:
    text = str(error)
    assert "\n" not in text
    assert SECRET not in text
    assert KEY not in text
    return text


def test_a_wrong_credential_is_one_line(s3: Store, tmp_path: Path) -> None:
    source = put_corpus(s3, tmp_path)
    s3.faults.plan = lambda number, environ: 403
    for corpus, out in ((source, tmp_path / "out"), (tmp_path / "in.parquet", s3.bucket / "out")):
        with pytest.raises(UserError) as caught:
            tamis.run(recipe(corpus, out))
        assert "access refused" in one_line(caught.value)
        assert "credentials" in str(caught.value)


def test_no_credential_is_one_line(
    s3: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from s3fs import S3FileSystem

    source = put_corpus(s3, tmp_path)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    S3FileSystem.clear_instance_cache()
    with pytest.raises(UserError, match="credential"):
        tamis.run(recipe(source, tmp_path / "out"))


def test_a_missing_bucket_and_a_missing_file_are_one_line(s3: Store, tmp_path: Path) -> None:
    source = put_corpus(s3, tmp_path)
    with pytest.raises(UserError, match="no such bucket"):
        tamis.run(recipe("s3://nowhere-at-all/in.parquet", tmp_path / "out"))
    with pytest.raises(UserError, match="no such bucket"):
        tamis.run(recipe(source, "s3://nowhere-at-all/out"))
    with pytest.raises(UserError, match="no such file"):
        tamis.run(recipe(s3.bucket / "none.parquet", tmp_path / "out"))


def test_a_store_that_does_not_answer_is_one_line(
    s3: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from s3fs import S3FileSystem

    source = put_corpus(s3, tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(
        "tamis.storage.places._S3_RETRIES", {"config_kwargs": {"retries": {"max_attempts": 1}}}
    )
    S3FileSystem.clear_instance_cache()
    with pytest.raises(UnreachableError, match="does not answer") as caught:
        tamis.run(recipe(source, tmp_path / "out"))
    one_line(caught.value)


@pytest.mark.parametrize("where", ["here", "there"])
@pytest.mark.parametrize("change", ["vanishes", "changes"])
def test_a_file_that_goes_or_changes_between_two_steps(
    s3: Store, tmp_path: Path, where: str, change: str
) -> None:
    place: Any = put_corpus(s3, tmp_path)
    if where == "here":
        place = tmp_path / "in.parquet"
    before = place.read_bytes()
    other = write_corpus(tmp_path / "other.parquet", make_texts(300, seed=99)).read_bytes()

    def disturb(name: str, done: int, total: int) -> None:
        if name == "text_stats" and done == total:
            if change == "vanishes":
                place.unlink()
            else:
                place.write_bytes(other)

    told = check_recipe(recipe(place, tmp_path / "out"))
    with pytest.raises(
        RunError, match="changed" if change == "changes" else "no such file|No such"
    ) as caught:
        run_recipe(told, disturb)
    one_line(caught.value)
    assert not (tmp_path / "out").exists()
    place.write_bytes(before)
    assert tamis.run(told).manifest["rows"]["in"] == 300


def test_no_credential_is_written_down(s3: Store, tmp_path: Path) -> None:
    source = put_corpus(s3, tmp_path)
    tamis.run(recipe(source, s3.bucket / "out"))
    for path in s3.bucket.rglob("*"):
        if path.is_file():
            held = path.read_bytes()
            assert SECRET.encode() not in held
            assert KEY.encode() not in held
    for secret in (SECRET, f"with/a/{SECRET}"):
        with pytest.raises(UserError, match="holds a credential") as caught:
            tamis.run(recipe(f"s3://{KEY}:{secret}@bucket/in.parquet", tmp_path / "out2"))
        one_line(caught.value)


def test_words_of_a_path_say_nothing_of_what_went_wrong(s3: Store, tmp_path: Path) -> None:
    put_corpus(s3, tmp_path)
    name = s3.bucket / "my-bucket 401 token" / "credential"
    tamis.run(recipe(tmp_path / "in.parquet", name / "out", workspace=str(name / "work")))
    with pytest.raises(UserError, match="no such file"):
        tamis.run(recipe(name / "none.parquet", tmp_path / "out"))


def test_names_that_are_patterns_are_only_names_there(s3: Store, tmp_path: Path) -> None:
    put_corpus(s3, tmp_path)
    name = "br[1] a*b q? it's"
    result = tamis.run(recipe(tmp_path / "in.parquet", s3.bucket / name / "out"))
    assert query(result.workspace, "SELECT count(text) FROM rows")[1] == [(300,)]


@pytest.mark.parametrize("foreign", ["manifest.json", "README.md", "part-00000-deadbeef.parquet"])
def test_what_is_not_of_tamis_is_not_replaced_there(
    s3: Store, tmp_path: Path, foreign: str
) -> None:
    put_corpus(s3, tmp_path)
    (s3.bucket / "out" / foreign).write_text('{"mine": 1}')
    with pytest.raises(UserError, match="not part of a dataset of tamis"):
        tamis.run(recipe(tmp_path / "in.parquet", s3.bucket / "out"))
    assert (s3.bucket / "out" / foreign).read_text() == '{"mine": 1}'


def test_a_corpus_is_known_in_its_output_under_another_scheme(s3: Store, tmp_path: Path) -> None:
    put_corpus(s3, tmp_path)
    place = str(s3.bucket / "corpus")
    with pytest.raises(UserError, match="corpus"):
        tamis.run(recipe(place.replace("s3://", "s3a://"), place, workspace=str(tmp_path / "w")))
    assert (s3.bucket / "corpus" / "in.parquet").exists()


def test_lines_that_change_while_they_are_read_are_told(
    s3: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tamis.storage import ingest

    def lines(letter: str) -> bytes:
        return "".join(f'{{"id": "{i}", "text": "{letter * 40}"}}\n' for i in range(9)).encode()

    known = ingest.known_digest
    for place in (tmp_path / "in.jsonl", s3.bucket / "in.jsonl"):
        place.write_bytes(lines("A"))

        def digest_then_change(path: Any, *more: Any) -> str:
            found = known(path, *more)
            path.write_bytes(lines("B") + b"\n")
            return found

        told = recipe(place, tmp_path / "out") | {
            "stages": [],
            "output": {"path": str(tmp_path / "out")},
        }
        with monkeypatch.context() as patch:
            patch.setattr(ingest, "known_digest", digest_then_change)
            with pytest.raises(RunError, match="has changed"):
                tamis.run(told)
        place.write_bytes(lines("A"))
        tamis.run(told)
        (part,) = (tmp_path / "out").glob("*.parquet")
        assert set(pq.read_table(part)["text"].to_pylist()) == {"A" * 40}


def test_only_stores_that_hold_whole_files_are_written_to(tmp_path: Path) -> None:
    source = write_corpus(tmp_path / "in.parquet", make_texts(20))
    with pytest.raises(UserError, match="read from only"):
        tamis.run(recipe(source, "memory://out"))


def test_a_row_that_a_sidecar_lacks_is_told() -> None:
    from tamis.storage.columns import Cursor

    cursor = Cursor.__new__(Cursor)
    batch = pa.record_batch({"row": pa.array([0, 2, 3], pa.int64()), "x": ["a", "c", "d"]})
    cursor._path, cursor._column, cursor._parts = Path("sidecar"), "x", iter([batch])
    cursor._rows, cursor._values = np.zeros(0, np.int64), []
    assert cursor.take(np.array([0, 2])).to_pylist() == ["a", "c"]
    with pytest.raises(RunError, match="no value for a row"):
        cursor.take(np.array([3, 4]))


def test_a_reference_and_a_history_there(s3: Store, tmp_path: Path) -> None:
    texts = make_texts(60, seed=3, copies=0)
    old = write_corpus(tmp_path / "old.parquet", texts[:40])
    (s3.bucket / "old" / "old.parquet").write_bytes(old.read_bytes())
    corpus = write_corpus(tmp_path / "in.parquet", texts[30:])
    reference = {"path": str(s3.bucket / "old"), "name": "old", "index": str(s3.bucket / "index")}
    for _ in range(2):
        result = tamis.run(
            {
                "corpus": {"path": str(corpus), "roles": {"text": "text"}},
                "stages": [
                    {"operator": "known_dedup", "references": [reference]},
                    {"operator": "near_dedup"},
                ],
                "output": {"path": str(s3.bucket / "new")},
            }
        )
        assert result.manifest["rows"]["dropped"] == {"known_dedup:old": 10}
    assert len(list((s3.bucket / "index" / "signals" / "minhash").iterdir())) == 1
    for history in (s3.bucket / "new", s3.bucket / "old"):
        found = tamis.check([texts[35], "something else that is new"], str(history))
        assert found["new"].to_list() == [False, True]

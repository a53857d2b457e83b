"""The commands as a user meets them."""

import json
from pathlib import Path

import duckdb
import polars as pl
import pyarrow.parquet as pq
import pytest

from tests.commands import tamis, tamis_process
from tests.conftest import make_texts, write_corpus


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `tamis dedup` has run."""
    folder = tmp_path_factory.mktemp("cli")
    write_corpus(folder / "in.parquet", make_texts(500, copies=0.5))
    out, err = tamis_process("dedup", folder / "in.parquet", folder / "out", "--id", "id")
    assert "dropped: near_dedup" in out
    assert "near_dedup: done" in err
    return folder


def test_dedup_leaves_a_dataset_a_ledger_and_a_catalog(done: Path) -> None:
    manifest = json.loads((done / "out" / "manifest.json").read_text())
    kept = pl.read_parquet(done / "out" / "*.parquet")
    rows = manifest["rows"]
    assert rows["in"] == 500 == rows["kept"] + sum(rows["dropped"].values())
    assert len(kept) == rows["written"] == rows["kept"] < 500
    with duckdb.connect(str(done / "out.tamis" / "catalog.duckdb"), read_only=True) as catalog:
        for view, count in {
            "rows": 500,
            "scores": 500,
            "decisions": 500,
            "why": 500,
            "runs": 1,
        }.items():
            assert catalog.sql(f"SELECT count(*) FROM {view}").fetchall() == [(count,)]
        text = catalog.sql("SELECT text, partner_text FROM why WHERE action = 'drop'").fetchall()
        assert all(a and b for a, b in text)


def test_datasets_reads_the_output(done: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = json.loads((done / "out" / "manifest.json").read_text())["rows"]["written"]
    files = str(done / "out" / "*.parquet")
    direct = datasets.load_dataset(
        "parquet", data_files=files, split="train", cache_dir=str(tmp_path / "a")
    )
    by_card = datasets.load_dataset(str(done / "out"), split="train", cache_dir=str(tmp_path / "b"))
    assert len(direct) == len(by_card) == rows
    assert by_card.column_names == ["id", "text"]


def test_why_follows_the_partner(done: Path) -> None:
    out, _ = tamis(
        "sql", "-w", done / "out", "--json", "SELECT row_id FROM decisions WHERE action = 'drop'"
    )
    row_id = json.loads(out)[0]["row_id"]
    out, _ = tamis("why", "-w", done / "out.tamis", row_id)
    assert f"row {row_id}" in out
    assert "drop by near_dedup" in out
    assert "its partner" in out
    assert out.rstrip().splitlines()[-1].strip().startswith("run ")
    chain = json.loads(tamis("why", "-w", done / "out.tamis", row_id[:12], "--json")[0])
    assert chain[0]["partner"] == chain[1]["row_id"]
    assert chain[1]["action"] == "keep"


def test_sql_prints_a_table_and_refuses_to_write(done: Path) -> None:
    out, _ = tamis(
        "sql", "-w", done / "out", "SELECT reason, count(*) AS n FROM decisions GROUP BY 1"
    )
    assert "near_dedup" in out
    for statement in ("DROP VIEW rows", "COPY (SELECT 1) TO 'x'", "SELECT 1; SELECT 2", "nonsense"):
        # While an interpreter ends, DuckDB complains of what is left of a connection.
        command = tamis_process if statement == "nonsense" else tamis
        _, err = command("sql", "-w", done / "out", statement, code=2)
        assert err.startswith("tamis: sql: ")
        assert len(err.splitlines()) == 1


def test_score_leaves_the_data_alone(tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "in.parquet", make_texts(50))
    before = path.read_bytes()
    out, _ = tamis("score", "text_stats", path, "-w", tmp_path / "w", "--json")
    found = {entry["score"]: entry for entry in json.loads(out)["scores"]}
    assert found["words"]["rows"] == 50
    assert found["words"]["min"] <= found["words"]["median"] <= found["words"]["max"]
    assert path.read_bytes() == before
    assert "words" in tamis("score", "text_stats", path, "-w", tmp_path / "w")[0]


def test_score_takes_parameters(tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "in.parquet", ["Das ist ein Satz.", "And this is one."])
    out, _ = tamis("score", "token_count", path, "--param", "bytes_per_token=4.0")
    assert "tokens_estimated" in out
    out, _ = tamis("score", "language", path, "--param", "languages=[de, en]", "-w", tmp_path / "w")
    assert "language_confidence" in out
    out, _ = tamis("sql", "-w", tmp_path / "w", "SELECT language FROM scores", "--json")
    assert {row["language"] for row in json.loads(out)} == {"de", "en"}
    for wrong, message in (("[", "name=value"), ("a=[", "name=value"), ("size=1", "no such key")):
        _, err = tamis("score", "language", path, "--param", wrong, code=2)
        assert message in err
    _, err = tamis("score", "token_count", path, code=2)
    assert "either `tokenizer` or `bytes_per_token`" in err


def test_score_runs_what_a_scorer_reads_before_it(tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "in.parquet", ["A cat.", "The cat.", "Tax law.", "Tax act."])
    given = ("--param", "k=2", "--param", "embedding.precision=float32")
    out, _ = tamis("score", "cluster", path, "--param", "cluster.seed=1", *given)
    assert "cluster" in out
    manifest = json.loads((tmp_path / "in.parquet.tamis" / "manifest.json").read_text())
    assert [stage["operator"] for stage in manifest["stages"]] == ["embedding", "cluster"]
    assert manifest["stages"][0]["precision"] == "float32"
    assert manifest["stages"][1]["seed"] == 1
    _, err = tamis("score", "text_stats", path, "--param", "embedding.precision=float32", code=2)
    assert "'embedding' is not run before text_stats" in err


def test_select_by_scores_of_text_and_of_scorers_that_need_parameters(tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "in.parquet", ["Das ist ein Satz.", "And this is one."])
    tamis("select", path, tmp_path / "out", "--where", "language = 'de'", "--text", "text")
    assert pl.read_parquet(tmp_path / "out" / "*.parquet")["id"].to_list() == ["row-0"]
    _, err = tamis(
        "select", path, tmp_path / "o", "--where", "tokens > 1", "--text", "text", code=2
    )
    assert "neither a column nor a score" in err


def test_select_computes_the_scores_it_names(tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "in.parquet", make_texts(200))
    out, _ = tamis(
        "select", path, tmp_path / "out", "--text", "text", "--where", "words > 10",
        "--top", "compression_ratio:50%", "--sample", "20", "--json",
    )  # fmt: skip
    rows = json.loads(out)["rows"]
    assert rows["kept"] == 20
    assert set(rows["dropped"]) == {"where", "top", "sample"}
    (part,) = (tmp_path / "out").glob("*.parquet")
    assert pq.read_schema(part).names == ["id", "text"]


def test_operators_are_listed_and_explained() -> None:
    assert "near_dedup" in tamis("operators")[0]
    assert "threshold" in tamis("operators", "near_dedup")[0]
    assert {o["name"] for o in json.loads(tamis("operators", "--json")[0])} >= {"top", "where"}
    _, err = tamis("operators", "nothing", code=2)
    assert "no operator named 'nothing'" in err


def test_recipe_schema_and_check(tmp_path: Path) -> None:
    assert json.loads(tamis("recipe", "schema")[0])["properties"]["stages"]
    path = tmp_path / "r.yaml"
    path.write_text("corpus: {path: x}\nstages: [{operator: sample, rows: 1}]\noutput: {path: y}\n")
    assert "1 stages" in tamis("recipe", "check", path)[0]


def test_run_reads_a_recipe(tmp_path: Path) -> None:
    write_corpus(tmp_path / "in.parquet", make_texts(100))
    (tmp_path / "r.yaml").write_text(
        "corpus: {path: in.parquet, roles: {text: text}}\n"
        "stages: [{operator: exact_dedup}]\noutput: {path: out}\n"
    )
    out, _ = tamis_process(
        "run", "r.yaml", "--memory", "8GB", "--workers", 1, "--json", cwd=tmp_path
    )
    found = json.loads(out)
    assert found["rows"]["in"] == 100
    assert found["peak_memory"] <= found["memory_bound"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dedup", "nowhere.parquet", "out"), "no such file"),
        (("dedup", "in.parquet", "out", "--text", "body"), "no column 'body'"),
        (("dedup", "in.parquet", "out", "--threshold", "1.5"), "threshold"),
        (("dedup", "in.parquet", "out", "--memory", "1MB"), "may need"),
        (("dedup", "in.parquet", "out", "--format", "xml"), "format"),
        (("select", "in.parquet", "out"), "nothing to select by"),
        (("select", "in.parquet", "out", "--top", "words"), "--top"),
        (("select", "in.parquet", "out", "--sample", "few"), "--sample"),
        (("run", "none.yaml"), "cannot read the recipe"),
        (("score", "near_dedup", "in.parquet"), "near_dedup"),
        (("why", "zz", "-w", "."), "hex digits"),
        (("sql", "SELECT 1"), "no finished run"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    write_corpus(tmp_path / "in.parquet", make_texts(20))
    # One that has read data, and one that has not, end an interpreter too.
    command = tamis_process if message in ("no column 'body'", "hex digits") else tamis
    out, err = command(*arguments, code=2, cwd=tmp_path)
    *said, last = err.splitlines()
    assert message in last
    assert all(line.endswith(": done") for line in said), err
    assert not out
    assert not (tmp_path / "out").exists()


def test_debug_shows_where(tmp_path: Path) -> None:
    _, err = tamis_process("dedup", "nowhere", "out", "--debug", code=1, cwd=tmp_path)
    assert "Traceback" in err


def test_demo_cleans_a_source_tree_of_this_machine(tmp_path: Path) -> None:
    """The invariants of the README's first command, on a part of the same corpus."""
    import json.decoder as somewhere

    tree = Path(somewhere.__file__).parents[1] / "email"
    out, _ = tamis(
        "select", f"python:{tree}", tmp_path / "out", "--where", "kind = 'function'", "--json"
    )
    rows = json.loads(out)["rows"]
    assert rows["in"] > rows["kept"] > 0
    kept = pl.read_parquet(tmp_path / "out" / "*.parquet")
    assert kept["source"].is_not_null().all()
    assert kept["text"].str.len_chars().min() > 0


def test_select_takes_a_column_for_a_score_of_that_name(tmp_path: Path) -> None:
    table = pl.DataFrame({"words": [1, 5, 9]})
    table.write_parquet(tmp_path / "in.parquet")
    out, _ = tamis(
        "select", tmp_path / "in.parquet", tmp_path / "out", "--where", "words > 4", "--json"
    )
    assert json.loads(out)["rows"]["kept"] == 2

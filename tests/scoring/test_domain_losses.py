"""Tables of losses by domain: the forms they come in, documents folded to domains, mistakes."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tamis.scoring.domain_losses import Columns, losses_of, read_losses
from tamis.storage.errors import UserError

LONG = pl.DataFrame(
    {
        "step": [10, 10, 0, 0],
        "domain": ["web", "code", "code", "web"],
        "loss": [2.5, 1.0, 2.0, 3.0],
        "reference": [2.75, 0.5, 0.5, 2.75],
    }
)
WIDE = pl.DataFrame(
    {
        "step": [0.0, 10.0],
        "loss_web": [3.0, 2.5],
        "loss_code": [2.0, 1.0],
        "reference_code": [0.5, 0.5],
        "reference_web": [2.75, 2.75],
    }
)


@pytest.mark.parametrize("table", [LONG, WIDE, LONG.to_arrow(), WIDE.to_pandas()])
def test_long_and_wide_tables_say_the_same(table: object) -> None:
    found = losses_of(table)
    assert found.domains == ("code", "web")
    assert found.steps.tolist() == [0, 10]
    assert found.losses.tolist() == [[2.0, 3.0], [1.0, 2.5]]
    assert found.references is not None
    assert found.references.tolist() == [[0.5, 2.75], [0.5, 2.75]]
    assert found.excess is not None
    assert found.excess.tolist() == [[1.5, 0.25], [0.5, 0.0]]
    assert found.notes == ()


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_files(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"losses.{ending}"
    write = {"parquet": WIDE.write_parquet, "csv": WIDE.write_csv, "jsonl": WIDE.write_ndjson}
    write[ending](path)
    assert read_losses(path).losses.tolist() == [[2.0, 3.0], [1.0, 2.5]]


def test_columns_may_be_called_otherwise() -> None:
    table = LONG.rename({"step": "update", "domain": "source", "loss": "nll", "reference": "base"})
    found = losses_of(table, columns=Columns("update", "source", "nll", "base"))
    assert found.excess is not None
    assert found.excess.tolist() == [[1.5, 0.25], [0.5, 0.0]]


def test_a_reference_in_a_table_of_its_own() -> None:
    proxy = losses_of(LONG.drop("reference"))
    assert proxy.references is None
    same_steps = losses_of(LONG.with_columns(loss=pl.col("reference")).drop("reference"))
    found = proxy.against(same_steps)
    assert found.excess is not None
    assert found.excess.tolist() == [[1.5, 0.25], [0.5, 0.0]]
    once = losses_of(pl.DataFrame({"step": [999], "loss_web": [2.75], "loss_code": [0.5]}))
    held = proxy.against(once)
    assert held.excess is not None
    assert held.excess.tolist() == [[1.5, 0.25], [0.5, 0.0]]
    with pytest.raises(UserError, match="only one of the two tables has: books, code"):
        proxy.against(
            losses_of(pl.DataFrame({"step": [0], "loss_web": [1.0], "loss_books": [1.0]}))
        )
    other = losses_of(pl.DataFrame({"step": [0, 7], "loss_web": [1.0, 1.0], "loss_code": [1.0, 1]}))
    with pytest.raises(UserError, match="the reference has no losses at step 10"):
        proxy.against(other)


def test_a_domain_that_a_step_has_no_loss_of() -> None:
    gaps = pl.DataFrame(
        {"step": [1, 2, 3], "loss_web": [3.0, None, None], "loss_code": [2.0, 1.5, None]}
    )
    with pytest.raises(UserError, match=r"step 2 has no loss of 'web' \(2 more are missing\)"):
        losses_of(gaps)
    found = losses_of(gaps, missing="carry")
    assert found.losses.tolist() == [[2.0, 3.0], [1.5, 3.0], [1.5, 3.0]]
    assert "3 of 6 losses are missing" in found.notes[0]
    with pytest.raises(UserError, match="first step, 2, has no loss of 'web' to carry on"):
        losses_of(gaps[1:], missing="carry")


def test_what_is_carried_keeps_loss_and_reference_together() -> None:
    table = LONG.with_columns(
        reference=pl.when((pl.col("step") == 10) & (pl.col("domain") == "web")).then(None)
        .otherwise(pl.col("reference"))
    )  # fmt: skip
    with pytest.raises(UserError, match="step 10 has no reference of 'web'"):
        losses_of(table)
    found = losses_of(table, missing="carry")
    assert found.losses[1].tolist() == [1.0, 3.0]
    assert found.excess is not None
    assert found.excess[1].tolist() == [0.5, 0.25]


@pytest.mark.parametrize(
    ("table", "what"),
    [
        (LONG.clear(), "no losses"),
        (LONG.drop("step"), "no column 'step'"),
        (LONG.drop("loss"), "no column 'loss'"),
        (LONG.drop("domain"), "no column 'domain', and none that starts with 'loss_'"),
        (WIDE.drop("step"), "no column 'step'"),
        (WIDE.drop("reference_web"), "no column 'reference_web'"),
        (WIDE.drop("loss_web"), "no column 'loss_web'"),
        (pl.concat([LONG, LONG[:1]]), "step 10 has more than one loss of 'web'"),
        (pl.concat([WIDE, WIDE[1:]]), "step 10 has more than one loss of 'code'"),
        (LONG.with_columns(loss=pl.lit("high")), "column 'loss' holds String, not numbers"),
        (LONG.with_columns(step=pl.col("step") + 0.5), "step 10.5: expected a whole number"),
        (LONG.with_columns(step=pl.lit(None, pl.Int64)), "step None: expected a whole number"),
        (LONG.with_columns(domain=pl.lit(None, pl.String)), "4 rows have no domain"),
        (
            LONG.with_columns(loss=pl.lit(float("nan"))),
            "the loss of 'code' is nan; losses are nats",
        ),
        (LONG.with_columns(loss=pl.lit(float("inf"))), "the loss of 'code' is inf"),
        (
            LONG.with_columns(loss=-pl.col("loss")),
            "step 0: the loss of 'code' is -2; .*log-probabilities",
        ),
        (LONG.with_columns(loss=pl.lit(1e300)), r"is 1e\+300"),
        (LONG.with_columns(reference=pl.lit(float("nan"))), "the reference of 'code' is nan"),
    ],
)
def test_mistakes(table: pl.DataFrame, what: str) -> None:
    with pytest.raises(UserError, match=what):
        losses_of(table)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_losses(tmp_path / "none.csv")
    with pytest.raises(UserError, match="no such file, folder or glob"):
        read_losses(tmp_path / "none*.csv", documents=True)
    (tmp_path / "torn.parquet").write_bytes(b"PAR1torn")
    for documents in (False, True):
        with pytest.raises(UserError, match=r"torn\.parquet"):
            read_losses(tmp_path / "torn.parquet", documents=documents)
    (tmp_path / "losses.csv").write_text("step,domain,loss\n0,web,-1\n")
    with pytest.raises(UserError, match=r"losses\.csv: step 0: the loss of 'web' is -1"):
        read_losses(tmp_path / "losses.csv")
    with pytest.raises(UserError, match=r"files that end in \.csv, \.parquet"):
        read_losses(tmp_path, documents=True)


def test_a_folder_of_documents_may_hold_a_card(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# A dataset")
    with pytest.raises(UserError, match="no table among the files"):
        read_losses(tmp_path, documents=True)
    documents(50).write_ndjson(tmp_path / "part.jsonl")
    found = read_losses(tmp_path, documents=True)
    assert found.losses.tobytes() == losses_of(documents(50), documents=True).losses.tobytes()
    documents(50).write_csv(tmp_path / "part.csv")
    with pytest.raises(UserError, match=r"files that end in \.csv, \.jsonl"):
        read_losses(tmp_path, documents=True)


def test_losses_that_are_hardly_nats_a_token_are_told() -> None:
    found = losses_of(pl.DataFrame({"step": [0], "loss_web": [2500.0], "loss_code": [3.0]}))
    assert "a loss of 2500" in found.notes[0]
    assert "multiply bits by 0.6931" in found.notes[0]


def documents(rows: int = 400, seed: int = 0) -> pl.DataFrame:
    draws = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "domain": draws.choice(["code", "web", "維基"], rows),
            "step": draws.integers(0, 3, rows),
            "loss": draws.gamma(4, 0.7, rows),
            "reference": draws.gamma(4, 0.7, rows),
            "tokens": draws.integers(1, 5000, rows),
        }
    )


def slowly(table: pl.DataFrame, weighed: bool) -> dict[tuple[int, str], tuple[float, float]]:
    """Means of loss and of excess in exact fractions, one document at a time."""
    sums: dict[tuple[int, str], list[Fraction]] = {}
    for row in table.iter_rows(named=True):
        parts = sums.setdefault((row["step"], row["domain"]), [Fraction(0)] * 3)
        tokens = row["tokens"] if weighed else 1
        parts[0] += tokens
        parts[1] += tokens * Fraction(row["loss"])
        parts[2] += tokens * max(Fraction(row["loss"]) - Fraction(row["reference"]), Fraction(0))
    return {key: (float(b / a), float(c / a)) for key, (a, b, c) in sums.items()}


@pytest.mark.parametrize("weighed", [False, True])
def test_documents_are_folded_to_domains(weighed: bool) -> None:
    table = documents()
    columns = Columns(tokens="tokens" if weighed else None)
    found = losses_of(table, columns=columns, documents=True)
    assert found.domains == ("code", "web", "維基")
    assert sum(found.rows.values()) == 400
    assert found.excess is not None
    for (step, domain), (loss, excess) in slowly(table, weighed).items():
        place = found.domains.index(domain)
        assert found.losses[step, place] == pytest.approx(loss, rel=1e-11)
        assert found.excess[step, place] == pytest.approx(excess, rel=1e-11)


def test_no_order_of_documents_and_no_cut_into_files_changes_a_bit(tmp_path: Path) -> None:
    table = documents(3000).with_columns(
        loss=pl.col("loss") * pl.Series(10.0 ** np.random.default_rng(1).integers(-8, 6, 3000))
    )
    columns = Columns(tokens="tokens")
    first = losses_of(table, columns=columns, documents=True)
    for seed in range(3):
        shuffled = table.sample(fraction=1, shuffle=True, seed=seed)
        for part, cut in enumerate((shuffled[:17], shuffled[17:1200], shuffled[1200:])):
            cut.write_parquet(tmp_path / f"{part}.parquet")
        again = read_losses(tmp_path, columns=columns, documents=True)
        assert again.losses.tobytes() == first.losses.tobytes()
        assert again.excess is not None
        assert first.excess is not None
        assert again.excess.tobytes() == first.excess.tobytes()


def test_documents_without_loss_are_left_out_and_told() -> None:
    table = documents(100)
    gone = pl.Series(np.arange(100) % 4 == 0)
    with_gaps = table.with_columns(loss=pl.when(gone).then(None).otherwise(pl.col("loss")))
    found = losses_of(with_gaps, documents=True)
    assert found.notes == ("25 documents without loss are left out (25.0%)",)
    left = losses_of(table.filter(~gone), documents=True)
    assert found.losses.tobytes() == left.losses.tobytes()
    assert sum(found.rows.values()) == 75


def test_documents_without_step_are_of_one_step() -> None:
    found = losses_of(documents().drop("step", "reference"), documents=True)
    assert found.steps.tolist() == [0]
    assert found.losses.shape == (1, 3)
    assert found.excess is None


def test_a_domain_whose_documents_all_lack_a_loss_is_missing() -> None:
    table = pl.DataFrame({"domain": ["web", "code"], "loss": [1.0, None]})
    with pytest.raises(UserError, match="step 0 has no loss of 'code'"):
        losses_of(table, documents=True)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"loss": float("nan")}, "1 documents cannot be used; one of 'code' has loss nan"),
        ({"loss": float("inf")}, "has loss inf"),
        ({"loss": -3.0}, "has loss -3.0, .*log-probabilities"),
        ({"loss": 1e300}, r"has loss 1e\+300"),
        ({"reference": float("nan")}, "reference nan"),
        ({"reference": None}, "reference None"),
        ({"tokens": 0}, "tokens 0.*1 token or more"),
        ({"tokens": None}, "tokens None"),
    ],
)
def test_documents_that_cannot_be_used(change: dict[str, float | None], what: str) -> None:
    row = {"domain": "code", "step": 0, "loss": 1.0, "reference": 1.0, "tokens": 5, **change}
    table = pl.concat([documents(20), pl.DataFrame([row], schema=documents(1).schema)])
    with pytest.raises(UserError, match=what):
        losses_of(table, columns=Columns(tokens="tokens"), documents=True)


def test_documents_without_domain() -> None:
    table = pl.DataFrame({"domain": ["web", None, None], "loss": [1.0, 2.0, 3.0]})
    with pytest.raises(UserError, match="2 rows have no domain"):
        losses_of(table, documents=True)

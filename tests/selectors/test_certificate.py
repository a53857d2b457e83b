"""Certificates against the truth: all pairs compared, with plain sets."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tamis
from tamis.scoring.plain_shingles import plain_shingles
from tamis.scoring.shingles import Shingling
from tamis.selectors import near_certificate
from tamis.selectors.intervals import number_of, share_of
from tests.commands import tamis as command
from tests.conftest import make_texts

NEAR: dict[str, Any] = {"operator": "near_dedup", "threshold": 0.7}
#: Bands that miss most pairs at this threshold.
COARSE = {**NEAR, "bands": 2, "band_rows": 16}


def run(folder: Path, texts: list[str], stage: dict[str, Any], **options: Any) -> tuple[Any, Any]:
    """The result and the certificate of a run; ids are the places of the texts."""
    path = folder / "in.parquet"
    order = options.get("order", range(len(texts)))
    ids = pa.array([f"row-{i}" for i in order], pa.string())
    table = pa.table({"id": ids, "text": pa.array([texts[i] for i in order], pa.string())})
    pq.write_table(table, path, row_group_size=options.get("group", 500))
    told = {
        "corpus": {
            "path": str(path), "roles": {"text": "text", "id": "id"}, "shard_bytes": 1,
        },
        "stages": [stage],
        "workspace": str(folder / "w"),
    }  # fmt: skip
    result = tamis.run(told)
    return result, result.manifest["stages"][0]["report"].get("certificate")


def should_go(result: Any, texts: list[str], threshold: float) -> int:
    """Rows that stay although a longer one stays that is as similar: all pairs, plain sets."""
    rows = result.decisions.collect()
    kept = [
        (-len(text), high, low, text)
        for text, high, low, action in zip(
            texts, rows["id_hi"], rows["id_lo"], rows["action"], strict=True
        )
        if action == "keep"
    ]
    sets = [plain_shingles(text, Shingling()) for *_, text in sorted(kept)]
    places: dict[object, list[int]] = {}
    missed = 0
    for row, mine in enumerate(sets):
        common: dict[int, int] = {}
        for shingle in mine:
            for other in places.setdefault(shingle, []):
                common[other] = common.get(other, 0) + 1
            places[shingle].append(row)
        missed += any(
            n / (len(mine) + len(sets[other]) - n) >= threshold for other, n in common.items()
        )
    return missed


def test_bounds_of_a_share() -> None:
    # Clopper and Pearson's bounds as scipy.stats.beta.ppf gives them.
    for successes, trials, low, high in (
        (0, 10, 0.0, 0.30850), (3, 10, 0.06674, 0.65245), (10, 10, 0.69150, 1.0),
        (497, 500, 0.98257, 0.99876), (500, 500, 0.99265, 1.0),
    ):  # fmt: skip
        found = share_of(successes, trials)
        assert found.estimate == successes / trials
        assert [found.low, found.high] == pytest.approx([low, high], abs=1e-5)
    assert share_of(0, 0)[1:] == (0.0, 1.0)


@pytest.mark.parametrize(("number", "chance"), [(0, 0.3), (1, 0.05), (40, 0.2), (500, 0.01)])
def test_bounds_of_a_number_hold_as_often_as_they_say(number: int, chance: float) -> None:
    seen = np.random.default_rng(0).binomial(number, chance, 2000)
    bounds = {n: number_of(n, chance, 100_000) for n in set(seen.tolist())}
    inside = np.mean([bounds[n].low <= number <= bounds[n].high for n in seen.tolist()])
    assert inside >= 0.94
    assert np.mean([bounds[n].estimate for n in seen.tolist()]) == pytest.approx(number, rel=0.1)


def test_where_every_value_is_looked_at_the_certificate_is_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near_certificate, "VALUES", 1 << 20)
    texts = make_texts(1500, copies=0.6, words=40)
    result, found = run(tmp_path, texts, COARSE)
    truth = should_go(result, texts, 0.7)
    assert truth > 50
    missed = found["recall"]["missed"]
    assert missed["estimate"] == missed["low"] == missed["high"] == found["recall"]["seen"] == truth
    dropped = sum(result.manifest["rows"]["dropped"].values())
    assert found["recall"]["estimate"] == pytest.approx(dropped / (dropped + truth), abs=1e-6)
    assert found["precision"]["estimate"] == 1.0
    assert found["precision"]["largest_difference"] == 0.0
    assert found["precision"]["checked"] == min(500, dropped)


@pytest.mark.parametrize("values", [3_000, 20_000])
def test_a_sample_covers_the_truth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: int
) -> None:
    monkeypatch.setattr(near_certificate, "VALUES", values)
    inside, estimates, truths = 0, [], []
    for seed in range(12):
        monkeypatch.setattr(near_certificate, "SEED", seed)
        texts = make_texts(1200, seed=seed, copies=0.6, words=40)
        (tmp_path / str(seed)).mkdir()
        result, found = run(tmp_path / str(seed), texts, COARSE)
        truth = should_go(result, texts, 0.7)
        missed = found["recall"]["missed"]
        inside += missed["low"] <= truth <= missed["high"]
        estimates.append(missed["estimate"])
        truths.append(truth)
    assert inside >= 10
    assert np.mean(estimates) == pytest.approx(np.mean(truths), rel=0.15)


def test_good_bands_are_certified_as_good(tmp_path: Path) -> None:
    texts = make_texts(3000, copies=0.3, words=60)
    result, found = run(tmp_path, texts, {**NEAR, "threshold": 0.8})
    assert should_go(result, texts, 0.8) == 0
    assert found["recall"]["estimate"] == 1.0
    assert found["recall"]["low"] > 0.99
    assert found["precision"]["low"] > 0.98


def test_neither_order_nor_shards_nor_workers_change_a_certificate(tmp_path: Path) -> None:
    texts = make_texts(3000, copies=0.5)
    found = []
    for number, options in enumerate(
        ({}, {"order": np.random.default_rng(1).permutation(3000).tolist()}, {"group": 37})
    ):
        (tmp_path / str(number)).mkdir()
        found.append(run(tmp_path / str(number), texts, COARSE, **options)[1])
    assert found[0] == found[1] == found[2]


def test_a_wrong_partner_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tamis.selectors import duplicates

    exact = duplicates.exact_jaccard
    monkeypatch.setattr(duplicates, "exact_jaccard", lambda *a: np.maximum(exact(*a), 0.75))
    texts = make_texts(600, copies=0.5, words=10)
    _, found = run(tmp_path, texts, {**NEAR, "bands": 64, "band_rows": 1})
    assert found["precision"]["high"] < 1.0
    assert found["precision"]["right"] < found["precision"]["checked"]
    assert found["precision"]["largest_difference"] > 0.0


@pytest.mark.parametrize(
    "texts", [[], ["one"], ["one two", "three four"], ["a b c d e"] * 40, ["", "", "!"]]
)
def test_small_corpora(tmp_path: Path, texts: list[str]) -> None:
    result, found = run(tmp_path, texts, NEAR)
    dropped = sum(result.manifest["rows"]["dropped"].values())
    assert found["precision"]["checked"] == dropped
    assert found["precision"]["estimate"] == (1.0 if dropped else None)
    assert found["recall"]["estimate"] == (1.0 if dropped else None)
    json.loads(json.dumps(result.manifest, allow_nan=False))


def test_no_certificate_if_none_is_wanted(tmp_path: Path) -> None:
    assert run(tmp_path, make_texts(50), {**NEAR, "certificate": 0})[1] is None


def test_texts_of_many_characters_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tamis.selectors import near_dedup

    monkeypatch.setattr(near_dedup, "MIN_CHARACTERS", 1_000)
    monkeypatch.setattr(near_dedup, "CHARACTER_SHARE", 0.0)
    texts = make_texts(400, copies=0.5, words=30)
    result, found = run(tmp_path, texts, NEAR)
    dropped = sum(result.manifest["rows"]["dropped"].values())
    assert 0 < found["precision"]["checked"] < dropped


@pytest.fixture(scope="module")
def giant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus in which half of the rows are near-copies of one."""
    folder = tmp_path_factory.mktemp("giant")
    base = [f"w{i}" for i in range(60)]
    texts = make_texts(400, copies=0.0, words=80)
    for i in range(400):
        words = list(base)
        words[i % 60] = f"\x1b[31mred{i}"
        texts.append(" ".join(words))
    texts.append(" ".join([*base, "and more of it"]))
    path = folder / "in.parquet"
    pq.write_table(pa.table({"id": [f"r{i}" for i in range(len(texts))], "text": texts}), path)
    return folder


def test_giant_groups_are_announced(giant: Path) -> None:
    out, _ = command(
        *("dedup", giant / "in.parquet", giant / "out", "--id", "id", "--threshold", "0.6")
    )
    assert "near_dedup: precision 1.0000 (" in out
    assert "near_dedup: a group of 401 rows (50.1%)" in out
    assert "w0 w1 w2" in out
    assert "\x1b" not in out
    manifest = json.loads((giant / "out" / "manifest.json").read_text())
    (group,) = manifest["stages"][0]["report"]["certificate"]["giant_groups"]
    assert group["rows"] == 401
    answer, _ = command(
        *("sql", "-w", giant / "out", "--json"),
        "SELECT min(similarity) AS least, any_value(partner) AS stays FROM decisions "
        "WHERE action = 'drop'",
    )
    (row,) = json.loads(answer)
    assert group["least_similar"]["similarity"] == row["least"]
    assert group["row_id"] == row["stays"]
    card = (giant / "out" / "README.md").read_text()
    assert "precision 1.0000" in card
    assert "w0 w1" not in card
    answer, _ = command("sql", "-w", giant / "out", "--json", "SELECT * FROM certificates")
    (row,) = json.loads(answer)
    assert row["stage"] == "near_dedup"
    assert row["precision_estimate"] == row["recall_estimate"] == 1.0
    assert row["giant_groups"] == 1


def test_a_run_without_dedup_has_no_certificate(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": [1, 2, 3]}), tmp_path / "in.parquet")
    command("select", tmp_path / "in.parquet", tmp_path / "out", "--where", "n > 1")
    answer, _ = command("sql", "-w", tmp_path / "out", "--json", "SELECT * FROM certificates")
    assert json.loads(answer) == []

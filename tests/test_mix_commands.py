"""`tamis mix`, as a user types it."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from tamis.cli import app
from tamis.storage.errors import UserError


@pytest.fixture
def runs_file(tmp_path: Path) -> Path:
    draws = np.random.default_rng(0)
    shares = draws.dirichlet(np.ones(3), 60)
    parts = np.array([[0.3, -3.0, 0.5], [-0.6, 0.4, -2.5]])
    losses = 2 + np.exp(shares @ parts.T) + draws.normal(0, 0.003, (60, 2))
    table = pl.DataFrame(
        {
            **{f"mix_{name}": shares[:, i] for i, name in enumerate(("arxiv", "code", "web"))},
            **{f"loss_{name}": losses[:, i] for i, name in enumerate(("code", "web"))},
            "seed": [1] * 59 + [2],
        }
    )
    table.write_csv(tmp_path / "runs.csv")
    return tmp_path / "runs.csv"


def tamis(*arguments: object) -> str:
    found = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.output


def test_from_runs_to_the_best_mixture(runs_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "fit.json"
    said = tamis("mix", "fit", runs_file, out, "--where", "seed = 1")
    assert "error held out" in said
    assert "t[code]" in said
    told = json.loads(
        tamis("mix", "fit", runs_file, out, "--target", "loss_code", "--law", "linear", "--json")
    )
    assert told["runs"] == 60
    assert [c["name"] for c in told["coefficients"]] == ["arxiv", "code", "web"]
    tamis("mix", "fit", runs_file, out, "--param", "starts=4")
    found = json.loads(
        tamis(
            "mix",
            "optimise",
            out,
            "--target",
            "loss_code=3",
            "--target",
            "loss_web",
            "--ceiling",
            "code=0.5",
            "--natural",
            "arxiv=1",
            "--natural",
            "code=1",
            "--natural",
            "web=1",
            "--json",
        )
    )
    assert found["mixture"]["code"] == pytest.approx(0.5)
    assert found["binding"] == {"code": "ceiling"}
    assert found["natural"]["objective"] > found["objective"]
    said = tamis("mix", "optimise", out, "--target", "loss_code", "--out", tmp_path / "m.json")
    written = json.loads((tmp_path / "m.json").read_text())["phases"][0]["mixture"].values()
    assert all(share == 0 or share > 1e-9 for share in written)
    assert "as good within the error" in said
    front = json.loads(tamis("mix", "optimise", out, "--front", "--json"))
    assert len(front) > 5
    assert "loss_web" in tamis("mix", "optimise", out, "--front")


def test_compare_tells_what_it_could_not_fit(runs_file: Path) -> None:
    arguments = ("mix", "compare", runs_file, "--law", "linear", "--law", "mixing_law:components=1")
    said = tamis(*arguments, "--law", "nested_mixing_law")
    assert "not fitted: nested_mixing_law" in said
    told = json.loads(tamis(*arguments, "--target", "loss_web", "--json"))
    assert [row["law"] for row in told["laws"]] == ["mixing_law(components=1)", "linear"]


def test_laws_are_listed() -> None:
    known = {entry["law"] for entry in json.loads(tamis("mix", "laws", "--json"))}
    assert {"mixing_law", "nested_mixing_law", "regmix", "linear", "bimix"} <= known
    assert "components" in tamis("mix", "laws", "mixing_law")


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("--law", "magic"), "no law named 'magic'"),
        (("--param", "components=none"), "mixing_law: components"),
        (("--target", "loss_law"), "no column of losses is or starts with 'loss_law'"),
        (("--mix", "share_"), "starts with 'share_'"),
        (("--where", "seed = 3"), "no run meets"),
        (("--law", "regmix", "--where", "loss_code < 2.4"), "regmix takes at least 42"),
    ],
)
def test_what_a_user_can_mend(
    runs_file: Path, tmp_path: Path, arguments: tuple[str, ...], what: str
) -> None:
    with pytest.raises(UserError, match=what):
        tamis("mix", "fit", runs_file, tmp_path / "fit.json", *arguments)
    assert not (tmp_path / "fit.json").exists()


def test_options_that_do_not_fit(runs_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "fit.json"
    tamis("mix", "fit", runs_file, out, "--law", "linear")
    for arguments, what in (
        (("--method", "magic"), "expected search or regmix"),
        (("--floor", "code"), "--floor: expected name=value"),
        (("--floor", "code=much"), "--floor: expected name=number"),
        (("--floor", "code=0.7", "--floor", "web=0.7"), "floors sum to 1.4"),
        (("--epochs", "-1"), "epochs: expected greater than 0, found -1"),
        (("--tokens", "nan"), "tokens: expected greater than 0, found nan"),
        (("--tokens", "0", "--supply", "web=1"), "tokens: expected greater than 0, found 0"),
        (
            ("--tokens", "10", "--supply", "web=0", "--floor", "web=0.1"),
            "leave the floor out, or get data of 'web'",
        ),
    ):
        with pytest.raises(UserError, match=what):
            tamis("mix", "optimise", out, *arguments)


def test_a_corpus_becomes_tokens_and_a_design_may_not_be_overwritten(tmp_path: Path) -> None:
    names = ("code", "web")
    rows = {
        "text": [f"{name} number {i} of a text " * 40 for i in range(40) for name in names],
        "source": list(names) * 40,
    }
    pl.DataFrame(rows).write_ndjson(tmp_path / "corpus.jsonl")
    out = tmp_path / "tokens"
    flags = ("--domain", "source", "--vocabulary", 280, "--validation", 0.3)
    told = json.loads(tamis("mix", "tokenise", tmp_path / "corpus.jsonl", out, *flags, "--json"))
    assert list(told["domains"]) == ["code", "web"]
    assert told["vocabulary"] <= 280
    assert "tokens to train" in tamis("mix", "tokenise", tmp_path / "corpus.jsonl", out, *flags)
    arguments = ["mix", "tokenise", "IN", "OUT", "--seed", str(2**32)]
    assert CliRunner().invoke(app, arguments).exit_code == 2
    design = tmp_path / "design.parquet"
    pl.DataFrame({"mix_code": [0.5], "mix_web": [0.5]}).write_parquet(design)
    with pytest.raises(UserError, match="take the design's place"):
        tamis("mix", "train", out, design, design)
    with pytest.raises(UserError, match=r"no size 'large'; one of tiny, small, 1m"):
        tamis("mix", "train", out, design, tmp_path / "runs.parquet", "--size", "large")

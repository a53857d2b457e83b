"""A corpus into tokens: the same bytes in any order, and what becomes of rows that have none."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tamis.commands.recipes import recipe_for
from tamis.flows import tokenise as flow
from tamis.flows.tokenise import tokenise
from tamis.recipe import Recipe, with_changes
from tamis.scoring import token_encoding
from tamis.scoring.token_encoding import encode, end_token, learn_tokenizer, tokenizer_at
from tamis.storage.domain_supply import load_supply
from tamis.storage.errors import RunError, UserError
from tamis.storage.token_shards import TokenShards

from ..conftest import make_texts

ROLES: dict[str, str | None] = {"text": "text", "domain": "domain", "id": "id"}


def corpus(rows: int = 240) -> pa.Table:
    texts = [f"{text} é 漢字 🙂\n" for text in make_texts(rows, copies=0)]
    return pa.table(
        {
            "id": [f"row-{i}" for i in range(rows)],
            "text": texts,
            "domain": [("web", "code", "books/old")[i % 3] for i in range(rows)],
        }
    )


def recipe_of(path: Path | str, home: Path, **changes: Any) -> Recipe:
    return with_changes(recipe_for(str(path), None, ROLES, [], None, str(home)), **changes)


def written(folder: Path, table: pa.Table, name: str = "corpus.parquet", **options: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / name, **options)
    return folder / name


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> TokenShards:
    home = tmp_path_factory.mktemp("plain")
    path = written(home, corpus())
    return tokenise(recipe_of(path, home / "work"), home / "tokens", vocabulary=300, validation=0.3)


def contents(found: TokenShards) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in found.folder.iterdir()}


def test_documents_lie_in_order_of_row_id_split_by_it(plain: TokenShards) -> None:
    tokenizer = tokenizer_at(plain.folder / "tokenizer.json")
    table = corpus()
    assert plain.domains == ("books/old", "code", "web")
    seen = {"train": 0, "validation": 0}
    for domain in plain.domains:
        there = set(table.filter(pc.equal(table["domain"], domain))["text"].to_pylist())
        for split in ("train", "validation"):
            part = plain.manifest.domains[domain][split]
            found = plain.read(domain, split)
            ends = np.flatnonzero(found == plain.manifest.end_of_text)
            documents = np.split(found, ends + 1)[:-1]
            texts = [tokenizer.decode(document[:-1].tolist()) for document in documents]
            assert part.rows == len(texts)
            assert part.tokens == len(found)
            assert part.bytes == sum(len(text.encode()) for text in texts)
            assert there.issuperset(texts)
            there -= set(texts)
            seen[split] += len(texts)
        assert not there
    assert sum(seen.values()) == 240
    assert 0.2 < seen["validation"] / 240 < 0.4
    supply = load_supply(plain.folder / "supply.json")
    assert supply.of() == {d: float(plain.train_tokens(d)) for d in plain.domains}
    assert supply.of("rows")["web"] == plain.manifest.domains["web"]["train"].rows


def test_bytes_depend_on_neither_order_nor_sharding(plain: TokenShards, tmp_path: Path) -> None:
    table = corpus()
    mixed = table.take(pa.array(np.random.default_rng(0).permutation(len(table))))
    written(tmp_path / "in", mixed.slice(0, 50), "a.parquet", row_group_size=7)
    written(tmp_path / "in", mixed.slice(50), "b.parquet", row_group_size=60)
    recipe = recipe_of(tmp_path / "in", tmp_path / "work", workers=2)
    changed = recipe.model_copy(
        update={"corpus": recipe.corpus.model_copy(update={"shard_bytes": 5000})}
    )
    found = tokenise(changed, tmp_path / "tokens", vocabulary=300, validation=0.3)
    theirs, ours = contents(plain), contents(found)
    assert theirs.keys() == ours.keys()
    for name in theirs.keys() - {"tokens.json"}:
        assert theirs[name] == ours[name], name
    assert found.digest == plain.digest


def test_nothing_of_it_stays_in_the_workspace(plain: TokenShards) -> None:
    work = plain.folder.parent / "work"
    assert (work / "ids").is_dir()
    assert not (work / "tokens").exists()
    assert not list(work.rglob("*tokenizer*"))


def test_memory_of_its_own_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(written(tmp_path, corpus()), tmp_path / "work", memory=4 << 30)
    monkeypatch.setattr(flow, "ROW_BYTES", 1 << 30)
    with pytest.raises(UserError, match=r"may need 2\d\d GB of memory for 240 rows"):
        tokenise(recipe, tmp_path / "tokens", vocabulary=300)


def test_what_is_there_is_not_done_again(plain: TokenShards, tmp_path: Path) -> None:
    home = plain.folder.parent
    before = (plain.folder / "tokens.json").stat().st_ino
    same = recipe_of(home / "corpus.parquet", home / "work")
    assert tokenise(same, plain.folder, vocabulary=300, validation=0.3).digest == plain.digest
    assert (plain.folder / "tokens.json").stat().st_ino == before
    copied = tmp_path / "tokens"
    shutil.copytree(plain.folder, copied)
    other = tokenise(
        same, copied, tokenizer=plain.folder / "tokenizer.json", validation=0.3, only=["web"]
    )
    assert other.domains == ("web",)
    assert np.array_equal(other.read("web", "train"), plain.read("web", "train"))
    assert other.manifest.left_out == {"other domains": 160}
    assert not list(tmp_path.glob(".tokens*"))


@pytest.mark.parametrize("broken", ["train-0001.npy", "tokens.json"])
def test_a_broken_folder_is_written_anew(plain: TokenShards, tmp_path: Path, broken: str) -> None:
    home, copied = plain.folder.parent, tmp_path / "tokens"
    shutil.copytree(plain.folder, copied)
    (copied / broken).write_bytes((copied / broken).read_bytes()[:-40])
    recipe = recipe_of(home / "corpus.parquet", tmp_path / "work")
    assert contents(tokenise(recipe, copied, vocabulary=300, validation=0.3)) == contents(plain)
    (copied / "tokens.json").unlink()
    with pytest.raises(UserError, match="which is no file of tokens"):
        tokenise(recipe, copied, vocabulary=300, validation=0.3)


def test_rows_that_have_no_tokens_are_left_out_and_told(plain: TokenShards, tmp_path: Path) -> None:
    table = corpus()
    texts, domains = table["text"].to_pylist(), table["domain"].to_pylist()
    texts[0], texts[1], domains[2], texts[3] = None, "", None, "<|endoftext|> is text here"
    path = written(tmp_path, pa.table({"id": table["id"], "text": texts, "domain": domains}))
    given: dict[str, Any] = {"tokenizer": plain.folder / "tokenizer.json", "validation": 0.3}
    recipe = recipe_of(path, tmp_path / "work", max_quarantine=0.05)
    found = tokenise(recipe, tmp_path / "tokens", **given)
    assert found.manifest.left_out == {"unusable": 1, "no domain": 1, "empty text": 1}
    parts = [part for splits in found.manifest.domains.values() for part in splits.values()]
    assert sum(part.rows for part in parts) == 237
    ends = [
        int((found.read(d, s) == 0).sum()) for d in found.domains for s in ("train", "validation")
    ]
    assert sum(ends) == 237
    path = written(tmp_path, table.set_column(2, "domain", pa.array([*domains[:237], *[None] * 3])))
    with pytest.raises(RunError, match="4 of 240 rows have no domain, more than max_quarantine"):
        tokenise(recipe_of(path, tmp_path / "w"), tmp_path / "t", **given)


def test_what_cannot_be_tokenised_is_refused(plain: TokenShards, tmp_path: Path) -> None:
    path = written(tmp_path, corpus(30))
    recipe = recipe_of(path, tmp_path / "work")
    own = plain.folder / "tokenizer.json"
    with pytest.raises(UserError, match=r"too few tokens to measure on: .*'code' has 0, .*--only"):
        tokenise(recipe, tmp_path / "tokens", tokenizer=own, validation=0.05)
    for most in (1, 0.9999):
        with pytest.raises(UserError, match=r"too few documents to train on: .*'code' has 0, "):
            tokenise(recipe, tmp_path / "tokens", validation=most)
    with pytest.raises(
        UserError, match=r"no row has the domain 'law'; there: books/old, code, web"
    ):
        tokenise(recipe, tmp_path / "tokens", tokenizer=own, only=["law"])
    with pytest.raises(UserError, match="'</end>' is not in it"):
        tokenise(recipe, tmp_path / "tokens", tokenizer=own, end_of_text="</end>")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("long")
    with pytest.raises(UserError, match=r"holds 'thesis\.txt'"):
        tokenise(recipe, tmp_path / "mine", tokenizer=own)
    with pytest.raises(UserError, match="lie on this machine only"):
        tokenise(recipe, "s3://bucket/tokens", tokenizer=own)
    far = recipe.model_copy(update={"workspace": "memory://tokens.tamis"})
    with pytest.raises(UserError, match=r"memory://tokens\.tamis: .*lie on this machine only"):
        tokenise(far, tmp_path / "tokens")
    with pytest.raises(UserError, match="no tokens here"):
        TokenShards.open(tmp_path)
    broken = shutil.copytree(plain.folder, tmp_path / "broken")
    (broken / "train-0001.npy").write_bytes(b"")
    with pytest.raises(UserError, match="tokens of 'code'"):
        TokenShards.open(broken)


def test_a_long_text_in_pieces_has_the_tokens_of_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(token_encoding, "PIECE", 500)
    tokenizer = learn_tokenizer(["some words of a text, and more of them "], 280)
    end = end_token(tokenizer, None, "")
    words = np.random.default_rng(0).choice(["some", "more  words", "text,", "\n", "and"], 4000)
    long = " ".join(words)
    assert len(list(token_encoding.pieces(long, 500))) > 30
    found, offsets = encode(tokenizer, pa.array(["text", long, "", "of"]), end, np.dtype("uint16"))
    whole = tokenizer.encode(long, add_special_tokens=False).ids
    assert found[offsets[1] : offsets[2]].tolist() == [*whole, end]
    assert np.diff(offsets)[2:].tolist() == [1, 1 + len(tokenizer.encode("of").ids)]


def test_a_tokenizer_does_not_depend_on_the_order_of_texts() -> None:
    texts = make_texts(200, copies=0)
    assert learn_tokenizer(texts, 400).to_str() == learn_tokenizer(texts[::-1], 400).to_str()

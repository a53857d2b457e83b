"""Made-up corpora, an independent measure of similarity, and looks at what a run left."""

import json
import random
import re
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tamis.storage.files import digest_file

Key = tuple[int, int, int]
Stages = list[dict[str, Any]]

#: What a run computes beside the data; everything in these folders is compared byte by byte.
SIDECARS = ("ids", "signals", "scores", "decisions", "edges", "ledger")

#: Actions of rows that stay.
STAYS = ("keep", "relabel", "review")

STAGES: Stages = [
    {"operator": "text_stats"},
    {"operator": "where", "keep": {"short": "words >= 8", "long": "words <= 55"}},
    {"operator": "exact_dedup"},
    {"operator": "near_dedup", "threshold": 0.8},
    {"operator": "top", "by": "words", "fraction": 0.9},
]

_SYLLABLES = [a + b for a in "bdfgklmnprstv" for b in "aeiou"]


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> list[str]:
        """Lines of the error stream that are not progress."""
        return [line for line in self.err.splitlines() if not line.endswith(": done")]

    def line(self, code: int) -> str:
        """The one line with which the command failed, with the exit code expected."""
        assert self.code == code, f"exit code {self.code}, not {code}: {self.err}"
        assert len(self.said) == 1, self.err
        assert self.said[0].startswith("tamis: ")
        assert "--debug shows where" not in self.said[0], f"an error nobody foresaw: {self.said[0]}"
        return self.said[0]


@dataclass(frozen=True)
class Disk:
    """A mounted tmpfs."""

    place: Path

    def resize(self, kilobytes: int) -> None:
        subprocess.run(
            ["mount", "-o", f"remount,size={kilobytes}k", str(self.place)],
            check=True,
            capture_output=True,
        )


def vocabulary(size: int = 2000) -> list[str]:
    """Words of two and three syllables, always the same."""
    pairs = [a + b for a in _SYLLABLES for b in _SYLLABLES]
    return pairs[:size]


def documents(seed: int, count: int, shortest: int = 5, longest: int = 60) -> list[str]:
    """Texts of which a fifth are copies and a third are edited copies of earlier ones."""
    draw = random.Random(seed)
    words = vocabulary()
    texts: list[str] = []
    for _ in range(count):
        fate = draw.random()
        if texts and fate < 0.2:
            texts.append(draw.choice(texts))
        elif texts and fate < 0.55:
            texts.append(edited(draw, draw.choice(texts), words))
        else:
            texts.append(" ".join(draw.choices(words, k=draw.randint(shortest, longest))))
    return texts


def edited(draw: random.Random, text: str, words: Sequence[str]) -> str:
    """A text with one to three words replaced, added at the end, or upper-cased."""
    parts = text.split()
    for _ in range(draw.randint(1, 3)):
        fate = draw.random()
        if fate < 0.3:
            parts[draw.randrange(len(parts))] = draw.choice(words)
        elif fate < 0.8:
            parts.append(draw.choice(words))
        else:
            place = draw.randrange(len(parts))
            parts[place] = parts[place].upper() + ","
    return " ".join(parts)


def table_of(texts: Sequence[str | None], first_id: int = 0) -> pa.Table:
    """Columns ``id``, ``text`` and ``number``."""
    count = len(texts)
    return pa.table(
        {
            "id": pa.array([f"row-{first_id + i}" for i in range(count)], pa.string()),
            "text": pa.array(texts, pa.string()),
            "number": pa.array([float(i * 7 % 101) for i in range(count)], pa.float64()),
        }
    )


def write_parquet(path: Path, table: pa.Table, rows_per_group: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows_per_group)
    return path


def write_jsonl(path: Path, table: pa.Table) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()), "utf-8")
    return path


def recipe(
    corpus: Path | str,
    output: Path | str | None,
    stages: Stages | None = None,
    *,
    roles: dict[str, str] | None = None,
    corpus_options: dict[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """A recipe as plain data; text and id roles and all five stages if nothing else is said."""
    return {
        "corpus": {
            "path": str(corpus),
            "roles": {"text": "text", "id": "id"} if roles is None else roles,
            **(corpus_options or {}),
        },
        "stages": STAGES if stages is None else stages,
        **({} if output is None else {"output": {"path": str(output)}}),
        **options,
    }


def workspace_of(output: Path) -> Path:
    return output.with_name(output.name + ".tamis")


def manifest_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text("utf-8"))
    return found


def read_dataset(folder: Path) -> pa.Table:
    """All rows of a dataset, in the order of its manifest."""
    return pa.concat_tables(
        [pq.read_table(folder / entry["name"]) for entry in manifest_of(folder)["files"]]
    )


def read_ledger(workspace: Path) -> list[dict[str, Any]]:
    """All decisions of the last run, in the order of the shards."""
    rows: list[dict[str, Any]] = []
    for name in manifest_of(workspace)["ledger"]:
        rows += pq.read_table(workspace / name).to_pylist()
    return rows


def key_of(row: dict[str, Any]) -> Key:
    return row["id_hi"], row["id_lo"], row["copy"]


def partner_of(row: dict[str, Any]) -> Key | None:
    if row["partner_hi"] is None:
        return None
    return row["partner_hi"], row["partner_lo"], row["partner_copy"]


def decisions_by_row(workspace: Path) -> dict[Key, dict[str, Any]]:
    """What the ledger says of every row, wherever the row stands."""
    rows = read_ledger(workspace)
    found = {
        key_of(row): {k: v for k, v in row.items() if k not in ("shard", "row")} for row in rows
    }
    assert len(found) == len(rows), "two rows share row_id and copy"
    return found


def digests(folder: Path, under: Sequence[str] = ("",)) -> dict[str, str]:
    """Relative path to digest for every file in some folders of a folder."""
    return {
        str(path.relative_to(folder)): digest_file(path)
        for part in under
        for path in sorted((folder / part).rglob("*"))
        if path.is_file()
    }


def leftovers(folder: Path) -> list[str]:
    """Temporary files and folders below a folder."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if ".tmp" in path.name or path.suffix in (".wal", ".old")
    )


def shingles(text: str) -> frozenset[tuple[str, ...]]:
    """Word 5-grams of an ASCII text, by the definition and nothing else."""
    assert text.isascii()
    words = [word.lower() for word in re.findall(r"\w+", text)]
    if not words:
        return frozenset({("", text)})
    if len(words) < 5:
        return frozenset({tuple(words)})
    return frozenset(tuple(words[i : i + 5]) for i in range(len(words) - 4))


def jaccard(a: str, b: str) -> float:
    left, right = shingles(a), shingles(b)
    return len(left & right) / len(left | right)


def check_balance(workspace: Path, output: Path | None) -> dict[str, Any]:
    """Hold manifest, ledger files, quarantine and dataset against each other, shard by shard."""
    manifest = manifest_of(workspace)
    rows = manifest["rows"]
    assert rows["in"] == rows["kept"] + sum(rows["dropped"].values()) + rows["quarantined"]

    ledger: Counter[str] = Counter()
    kept_by_shard: dict[int, int] = {}
    in_shards_by_source: Counter[str] = Counter()
    if not manifest["shards"]:
        assert read_ledger(workspace) == []
    names = manifest["ledger"] if manifest["shards"] else []
    for shard, name in zip(manifest["shards"], names, strict=True):
        decisions = pq.read_table(workspace / name).to_pylist()
        assert [row["row"] for row in decisions] == list(range(shard["rows"]))
        assert {row["shard"] for row in decisions} in ({shard["shard"]}, {shard["digest"]})
        actions = Counter(row["action"] for row in decisions)
        assert set(actions) <= {*STAYS, "drop", "quarantine"}
        stays = sum(actions[action] for action in STAYS)
        reasons = Counter(row["reason"] for row in decisions if row["action"] == "drop")
        assert None not in reasons, "a row was dropped without a reason"
        assert shard["rows"] == (stays + sum(reasons.values()) + actions["quarantine"])
        assert all(row["repeat"] == (row["action"] in STAYS) for row in decisions)
        assert all(row["weight"] == 0 for row in decisions if row["action"] not in STAYS)
        ledger.update({f"drop {reason}": count for reason, count in reasons.items()})
        ledger.update(quarantine=actions["quarantine"], **{a: actions[a] for a in STAYS})
        kept_by_shard[shard["shard"]] = stays
        in_shards_by_source[shard["source"]] += shard["rows"]

    assert sum(ledger[action] for action in STAYS) == rows["kept"]
    assert (ledger["relabel"], ledger["review"]) == (rows["relabelled"], rows["in_review"])
    assert {
        name.removeprefix("drop "): count
        for name, count in ledger.items()
        if name.startswith("drop ")
    } == {reason: count for reason, count in rows["dropped"].items() if count}

    keys = {key_of(row): row["action"] for row in read_ledger(workspace)}
    generated: list[int] = []
    for made in manifest["generated"].values():
        for shard, name, notes in zip(made["shards"], made["ledger"], made["notes"], strict=True):
            decisions = pq.read_table(workspace / name).to_pylist()
            assert [row["row"] for row in decisions] == list(range(shard["rows"]))
            assert {row["shard"] for row in decisions} == {shard["digest"]}
            assert pq.read_metadata(workspace / notes).num_rows == shard["rows"]
            for row in decisions:
                assert (row["action"], row["repeat"], row["weight"]) == ("generate", 1, 1.0)
                parent = row["parent_hi"], row["parent_lo"], row["parent_copy"]
                assert keys[parent] in (*STAYS, "drop"), "a parent that is no row of the corpus"
                assert key_of(row) not in keys, "a new row has the id of another"
                keys[key_of(row)] = "generate"
            generated.append(shard["rows"])
    assert sum(generated) == rows["generated"]

    aside: list[dict[str, Any]] = []
    for name in manifest["quarantine"]:
        aside += pq.read_table(workspace / name).to_pylist()
    unread = Counter(row["file"] for row in aside if row["row_id"] is None)
    assert len(aside) == rows["quarantined"]
    assert ledger["quarantine"] + sum(unread.values()) == rows["quarantined"]
    assert all(row["reason"] for row in aside)
    for entry in manifest["inputs"]:
        assert entry["rows"] == in_shards_by_source[entry["path"]] + unread[entry["path"]]
    assert rows["in"] == sum(entry["rows"] for entry in manifest["inputs"])

    if output is None:
        assert rows["written"] == 0
        return manifest
    published = manifest_of(output)
    assert published["rows"] == rows
    assert rows["written"] == rows["kept"] + rows["generated"]
    in_files = {
        entry["name"]: pq.read_metadata(output / entry["name"]).num_rows
        for entry in published["files"]
    }
    assert in_files == {entry["name"]: entry["rows"] for entry in published["files"]}
    assert sum(in_files.values()) == rows["written"]
    assert {p.name for p in output.iterdir()} == {*in_files, "manifest.json", "README.md"}
    for entry in published["files"]:
        assert digest_file(output / entry["name"]) == entry["digest"]
    by_shard = {int(name.split("-")[1]): rows for name, rows in in_files.items()}
    for shard, kept in kept_by_shard.items():
        assert by_shard.pop(shard, 0) == kept
    assert [rows for _, rows in sorted(by_shard.items())] == [
        *generated,
        *([0] if not rows["written"] and by_shard else []),
    ]
    return manifest

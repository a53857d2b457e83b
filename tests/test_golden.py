"""An operator whose output changes must raise its version.

After a deliberate change: raise the version, then ``python -m tests.test_golden`` writes the new
digests.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tamis
from tamis.recipe import operators
from tamis.scoring.column_scorer import ColumnScorer
from tamis.scoring.embedding import Embedding
from tamis.scoring.logprobs import Logprobs
from tamis.scoring.ngram_index import NgramIndex
from tamis.scoring.ngram_model import NgramLogp, NgramModel
from tamis.scoring.operator import RowScorer
from tamis.scoring.responses import Responses
from tamis.scoring.sampling import draw, uniforms
from tamis.selectors.sera_bootstrap import SeraBootstrap
from tamis.selectors.table_scorer import TableScorer
from tamis.storage.catalog import query
from tamis.storage.dynamics import RECORD, write_records
from tamis.storage.files import digest_of
from tamis.storage.ledger import PARENT
from tests.conftest import make_texts, write_corpus
from tests.tiny_models import save_model

GOLDEN = Path(__file__).with_name("golden.json")
TEXTS = [*make_texts(200, copies=0.5), "", "!", "Straße, Ünïcode", "漢字とかな", "a\nb\na\n"]
#: What a reference holds: copies and edited copies of some of the texts.
KNOWN = [*TEXTS[:20], *(f"{text} and more" for text in TEXTS[20:60]), "漢字とかな"]
#: Text for scorers that look for what plain words do not have.
MARKED = [
    "a@b.cd, (415) 555-2671 or 8.8.8.8",
    "Sign in\nwww.a.bc\n3 likes",
    "Ein Satz auf Deutsch.",
    "AKIAABCDEFGHIJKLMNOP, GB82 WEST 1234 5698 7654 32, 4111 1111 1111 1111",
]
SCORERS: dict[str, dict[str, Any]] = {
    "pii": {"mask": True},
    "token_count": {"bytes_per_token": 4.0},
    "excess_loss": {"unit": "byte"},
    "idealised_ranking_accuracy": {"alpha": 0.7},
    "implicit_reward_margin": {"policy": {"policy": 0.75, "older": 0.25}},
}
#: A page for the rules of web text: what each of them asks about is in one of these.
PAGE = """The weather of the week was fair, and the people of the town were out with their dogs.
- it was said that this should have been better #1 # #
• "Nobody knows," she said, "that the harbour of the old town was built twice."
Read more...
This is the end of the first part … it goes on …
We use cookies to improve your stay, see our privacy policy for that.
Enable javascript in your browser to read on.
The harbour of the old town was built twice. It was burnt down twice, too! Was it not?
"""
PAGES = [
    PAGE,
    PAGE * 3,
    PAGE.replace(".", ""),
    "Lorem ipsum dolor sit amet is said.\n" + PAGE,
    "It is written in brackets {as here} in C.\n" + PAGE,
    "one two one two one two one two one two one two one two one two.\n\n" * 4,
    "a b c d e f g h i j k l m n o p. " * 6 + "\n" + PAGE,
]
MORE: dict[str, list[str]] = {
    **dict.fromkeys(("boilerplate", "language", "pii", "token_count"), MARKED),
    **dict.fromkeys(("c4", "fineweb_quality", "gopher_quality", "gopher_repetition"), PAGES),
}
#: Another corpus, which lies beside the corpus of the test.
REFERENCE = {"path": "reference.parquet", "id": "id", "name": "reference"}
SELECTORS: dict[str, dict[str, Any]] = {
    "exact_dedup": {},
    "near_dedup": {"threshold": 0.7},
    "known_dedup": {
        "threshold": 0.7,
        "references": [{"path": "known.parquet", "id": "id", "name": "known"}],
    },
    "where": {"keep": {"long": "length(text) > 50", "letters": "text LIKE '%a%'"}},
    "top": {"by": "number", "rows": 50},
    "quantile": {"by": "number", "low": 0.1, "high": 0.8},
    "sample": {"fraction": 0.5},
    "semdedup": {"embedding": "vector", "threshold": 0.8, "k": 9},
    "prototype_pruning": {"embedding": "vector", "fraction": 0.6},
    "d4": {"embedding": "vector", "fraction": 0.5},
    "cluster": {"embedding": "vector"},
    "random_subset": {"fraction": 0.3, "epoch": 4},
    "mixture_draw": {
        "mixture": {
            "phases": [
                {"share": 3, "mixture": {"0": 0.5, "1": 0.3, "2": 0.2}},
                {"share": 1, "mixture": {"0": 0.1, "1": 0.9, "2": 0.0}},
            ]
        },
        "by": "number",
        "tokens": 9000,
    },
    "repeats": {},
    "repetition_risk": {"near": 0.7, "max_repeats": 1},
    "representative_sample": {"embedding": "vector", "rows": 40},
    "subclass_balanced": {"embedding": "vector", "label": "number", "size": 2},
    "semantic_leak": {"embedding": "vector", "threshold": 0.9, "references": [REFERENCE]},
    "reference_similarity": {"embedding": "vector", "references": [REFERENCE]},
    "importance_sample": {"embedding": "vector", "rows": 60, "target": REFERENCE},
    "importance_weight": {"embedding": "vector", "target": REFERENCE},
    "kernel_mean_weight": {"embedding": "vector", "target": REFERENCE, "d": 2.0},
    "propensity_weight": {"embedding": "vector", "target": REFERENCE, "l2": 1.0},
    "row_weight": {"by": "number"},
    "sera": {"by": "number", "fraction": 0.4, "order": "middle", "high_quantile": 0.9},
    "high_loss": {"by": "number"},
    "dynamic_loss_weight": {"by": "number", "strategy": "mid"},
    "small_loss": {"by": "number", "fraction": 0.4},
    "late_stopping_prune": {"by": "number", "fraction": 0.3},
    "aum_threshold": {"quantile": 0.8},
    "confident_learning": {},
    "label_agreement": {"embedding": "vector"},
    "label_consensus": {"detectors": {"number": "low"}},
    "probe": {"embedding": "vector", "epochs": 2, "hidden": [0, 4]},
    "topics": {"topics": {"letters": ["alphabet", "a letter"], "web": ["cookies", "a page"]}},
}
#: Of what a trainer would have recorded, see `write_dynamics`.
SELECTORS["training_dynamics"] = {"path": "dynamics.records"}
#: Stages before it, and columns to look at: cosines and exponentials differ in the last bits
#: between processors.
BEFORE = {"topics": [{"operator": "embedding", "precision": "float32"}]}
COLUMNS = {
    "topics": ["topic"],
    "probe": [
        *("probe_label", "probe_ordinary", "probe_unseen", "round(probe_suggested_prob, 2)"),
        *(f"round(list_sum(probe_{name}), 2)" for name in ("margin", "loss", "entropy", "el2n")),
    ],
    "dynamic_loss_weight": ["round(dynamic_loss_weight, 9)"],
    "kernel_mean_weight": ["round(kernel_mean_weight, 3)"],
    "propensity_weight": [
        "round(propensity_weight, 3)",
        "round(propensity_weight_probability, 3)",
    ],
    "label_consensus": [
        "round(label_consensus, 9)",
        "list_transform(label_consensus_votes, lambda vote: vote.rule)",
    ],
    "confident_learning": [
        "confident_learning_error",
        "round(confident_learning_class_noise + confident_learning, 9)",
    ],
}


#: Operators that cut text, whose columns say what they do.
CUTTERS: dict[str, dict[str, Any]] = {
    "line_dedup": {"min_characters": 5, "normalisation": "folded"},
    "paragraph_dedup": {"min_characters": 5},
    "substring_dedup": {"min_bytes": 40, "bounds": "word"},
}
#: Operators on n-gram models, and the columns to look at.
NGRAM_MODELS = {
    "ngram_logp": "",
    "ngram_likelihood": "target_logp, target_bytes, general_logp, general_tokens",
    "cross_entropy_difference": "cross_entropy_difference",
}
#: Operators that act on rows whose label is probably wrong.
LABEL_ACTIONS: dict[str, dict[str, Any]] = {
    "label_errors": {"by": "p", "threshold": 0.6, "votes": {"number": {"low": 9}}},
    "relabel": {"by": "p", "threshold": 0.3, "confidence": 0.5},
    "label_weight": {"by": "p", "floor": 0.1},
    "label_review": {"by": "p", "rows": 12},
    "label_corrections": {"new_classes": True},
}
#: Operators on what probes leave of labelled rows, beside those in `SELECTORS`.
OF_LABELS = (
    *("aum", "data_map", "early_learning_target", "el2n", "forgetting", "late_stopping"),
    *("confidence_weighted_entropy", "label_entropy", "label_loss", "max_softmax"),
    *("normalized_margin", "self_confidence", "training_loss"),
)
#: Operators on a score of two components.
MIXTURES: dict[str, dict[str, Any]] = {
    "mixture_posterior": {"by": "score", "distribution": "beta"},
    "mixture_threshold": {"by": "score", "per": "label"},
    "loss_gate": {"by": "score"},
    "turn": {"by": "score", "threshold": 0.8},
}
#: Operators that look for the n-grams of a benchmark.
OVERLAPS = ("contamination", "decontaminate")


def digest_of_operator(name: str) -> str:
    cls = operators()[name]
    if name in NGRAM_MODELS:
        return digest_of_ngram_models(name)
    if name == "embedding":
        return digest_of_vectors()
    if name == "logprobs":
        return digest_of_logprobs()
    if name == "responses":
        return digest_of_draws()
    if name == "sera_bootstrap":
        return digest_of_pairs()
    if name == "contamination_hits":
        return digest_of_hits()
    if name in OF_LABELS:
        return digest_of_label_scores(name)
    if issubclass(cls, ColumnScorer):
        return digest_of_scores(cls(**SCORERS.get(name, {})))
    if issubclass(cls, RowScorer):
        texts = [*TEXTS, *MORE.get(name, [])]
        found = cls(**SCORERS.get(name, {})).compute(pa.record_batch({"text": texts}))
        for column in found.schema.names:
            assert len(set(map(repr, found[column].to_pylist()))) > 1, f"{column} is not tried"
        return digest_of([repr(row) for row in found.to_pylist()])
    if name in CUTTERS:
        return digest_of_columns(name)
    if name in OVERLAPS:
        return digest_of_overlap(name)
    if name in LABEL_ACTIONS:
        return digest_of_label_action(name)
    if name in MIXTURES:
        return digest_of_mixtures(name)
    with tempfile.TemporaryDirectory() as folder:
        path = write_corpus(Path(folder) / "in.parquet", TEXTS)
        table = pl.read_parquet(path).with_columns(number=pl.int_range(pl.len()) * 37 % 101)
        vectors = np.random.default_rng(4).integers(-9, 10, (len(table), 5))
        table = table.with_columns(vector=pl.Series(vectors.tolist()))
        roles = {"text": "text", "id": "id"}
        if "label" in cls.roles:
            table, roles = (
                table.with_columns(label=pl.col("number") % 3),
                {**roles, "label": "label"},
            )
        if "domain" in cls.roles:
            table = table.with_columns(domain=(pl.col("number") % 3).cast(pl.String))
            roles = {**roles, "domain": "domain"}
        if name in ("aum_threshold", "confident_learning", "label_consensus"):
            table = table.hstack(pl.from_arrow(of_probes(len(table))).drop("probe_logits"))
        table.write_parquet(path)
        table[::9].with_columns(pl.col("text") + "!").write_parquet(f"{folder}/reference.parquet")
        write_corpus(Path(folder) / "known.parquet", KNOWN)
        given = json.dumps(SELECTORS[name])
        write_dynamics(Path(folder) / "dynamics.records", table["id"].to_list())
        for reference in ("reference.parquet", "known.parquet", "dynamics.records"):
            given = given.replace(reference, f"{folder}/{reference}")
        params = json.loads(given)
        result = tamis.run(
            {
                "corpus": {"path": str(path), "roles": roles},
                "stages": [*BEFORE.get(name, []), {"operator": name, **params}],
                "workspace": f"{folder}/work",
            }
        )
        if issubclass(cls, TableScorer):
            columns = ", ".join(COLUMNS.get(name, cls(**params).fields().names))
            _, rows = query(result.workspace, f"SELECT {columns} FROM scores ORDER BY row_id")
            return digest_of([repr(row) for row in rows])
        return digest_of([repr(row) for row in decisions_of(result)])


def write_dynamics(folder: Path, ids: list[str]) -> None:
    """Records of two runs of three epochs, some twice and some missing."""
    random = np.random.default_rng(5)
    for run, epoch in ((r, e) for r in range(2) for e in range(3)):
        some = random.choice(ids, len(ids)).tolist()
        columns: dict[str, Any] = {
            field.name: random.integers(0, 2 if pa.types.is_boolean(field.type) else 9, len(ids))
            for field in RECORD
        }
        columns |= {"row_id": some, "epoch": np.full(len(ids), epoch)}
        arrays = [pa.array(columns[field.name]) for field in RECORD]
        schema = RECORD.set(0, pa.field("row_id", pa.string(), nullable=False))
        table = pa.table(arrays, names=RECORD.names).cast(schema)
        path = folder / f"run-{run}/epoch-{epoch:05d}.parquet"
        write_records(path, table, {"run": run, "epoch": epoch})


def decisions_of(result: Any) -> list[tuple[Any, ...]]:
    """The ledger, but for what only generated rows have."""
    found = result.decisions.drop("shard", "row", *PARENT.names).sort("id_hi").collect()
    rows: list[tuple[Any, ...]] = found.rows()
    return rows


def digest_of_scores(scorer: ColumnScorer) -> str:
    """What it makes of made-up columns, but for the last bits."""
    random = np.random.default_rng(6)
    rows = 50
    columns: dict[str, Any] = {"text": [chr(97 + i % 26) * (1 + i % 3) for i in range(rows)]}
    for name in sorted(scorer.reads()):
        values = random.normal(size=rows)
        if name.endswith(("tokens", "bytes")):
            columns[name] = random.integers(0, 9, rows)
        elif name.endswith(("hidden_sum", "min_k", "quantiles")):
            width = len(getattr(scorer, "levels", "abc"))
            columns[name] = [None, *random.normal(size=(rows - 1, width)).tolist()]
        else:
            columns[name] = pa.array(-9 * np.abs(values), mask=values > 1.5)
    found = scorer.compute(pa.record_batch(columns)).to_pydict()
    for column in found.values():
        assert len(set(column)) > 2
        assert None in column
    return digest_of([[value and f"{value:.9g}" for value in column] for column in found.values()])


def of_probes(rows: int) -> pa.Table:
    """Made-up columns as `probe` leaves them: two runs of four epochs, three classes."""
    random = np.random.default_rng(7)
    seen = random.integers(0, 3, (rows, 8))
    seen[::9] = 0
    logits = random.normal(size=(rows, 8, 3))
    probs = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    label = random.integers(0, 3, rows)
    margin = np.where(seen > 0, random.normal(size=(rows, 8)), np.nan)
    matrices = {
        "margin": (margin, pa.float32()),
        "label_prob": (np.where(seen > 0, probs[np.arange(rows), :, label], np.nan), pa.float32()),
        "loss": (np.abs(margin), pa.float32()),
        "el2n": (np.abs(margin) / 4, pa.float32()),
        "correct": (np.where(seen > 0, margin > 0, -1), pa.int8()),
        "updates": (seen, pa.int32()),
        "ordinary": (random.random((rows, 2)) < 0.8, pa.bool_()),
        "logits": (logits.reshape(rows, -1), pa.float32()),
        "probs": (probs[:, 0], pa.float32()),
    }
    columns = {f"probe_{n}": pa.array(m.tolist(), pa.list_(k)) for n, (m, k) in matrices.items()}
    aum = pa.array(random.normal(size=(rows, 2)).tolist(), pa.list_(pa.float64()))
    codes = pa.array(label, pa.int32(), mask=random.random(rows) < 0.05)
    return pa.table({**columns, "probe_label": codes, "aum_by_run": aum})


def digest_of_label_scores(name: str) -> str:
    """Scores of made-up outputs of probes, but for the last bits."""
    scorer = operators()[name]()
    assert isinstance(scorer, RowScorer)
    (batch,) = of_probes(80).to_batches()
    rows = [row.values() for row in scorer.compute(batch).to_pylist()]
    for column in zip(*rows, strict=True):
        assert len(set(map(repr, column))) > 2
        assert None in column or isinstance(column[0], list)
    return digest_of([[f"{v:.9g}" if isinstance(v, float) else repr(v) for v in r] for r in rows])


def digest_of_vectors() -> str:
    """Which text lies clearly closest to each: the last bits of a vector differ between processors
    and numbers of threads."""
    found = Embedding(precision="float32").compute(
        pa.record_batch({"text": [*TEXTS, *PAGES, "word " * 300]})
    )
    vectors = np.stack(found["embedding"].to_numpy(zero_copy_only=False))
    similar = vectors @ vectors.T
    np.fill_diagonal(similar, -1)
    similar[similar > 0.9999] = -1  # copies, of which none is the closest
    first, second = np.sort(similar, axis=1)[:, :-3:-1].T
    closest = np.where(first - second > 1e-3, similar.argmax(axis=1), -1)
    assert (closest >= 0).mean() > 0.5
    rest = [found[name].to_pylist() for name in ("embedding_tokens", "embedding_truncated")]
    return digest_of([closest.tolist(), rest])


def digest_of_logprobs() -> str:
    """Tokens, and what is more likely than what: the last bits differ between processors."""
    rows = [
        {"prompt": f"Say {text[:30]}", "chosen": text[30:200], "rejected": text[:90]}
        for text in TEXTS[:40]
    ]
    with tempfile.TemporaryDirectory() as folder:
        model = str(save_model(Path(folder), "llama"))
        stage = Logprobs(name="s", model=model, of="pair", dtype="float32", max_tokens=60)
        found = stage.compute(pa.RecordBatch.from_pylist(rows)).to_pydict()
    exact = ("tokens", "bytes", "top1", "truncated")
    sides = ("s_chosen", "s_rejected")
    ranks = [np.argsort([row or 0 for row in found[f"{side}_logp"]]).tolist() for side in sides]
    counts = [found[f"{side}_{name}"] for side in sides for name in exact]
    return digest_of([ranks, counts, found["s_refused"]])


def digest_of_columns(name: str) -> str:
    """What an operator that cuts text makes of rows that repeat one another."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_corpus(Path(folder) / "in.parquet", [*TEXTS, *PAGES, "漢字とかな\r\n" * 9])
        stage = operators()[name](**CUTTERS[name])
        assert isinstance(stage, TableScorer)
        workspace = tamis.run(
            {
                "corpus": {"path": str(path), "roles": {"text": "text", "id": "id"}},
                "stages": [stage.model_dump(mode="json")],
                "workspace": f"{folder}/work",
            }
        ).workspace
        names = ", ".join(stage.fields().names)
        _, rows = query(workspace, f"SELECT {names} FROM scores ORDER BY row_id")
        for column in zip(*rows, strict=True):
            assert len(set(column)) > 1
        return digest_of([repr(row) for row in rows])


def digest_of_label_action(name: str) -> str:
    """What an operator decides of rows with made-up judgements of their labels."""
    count = 60
    given = [i * 7 % 3 for i in range(count)]
    probs = [[(i * k % 5 + 1) / 16 for k in (1, 2)] for i in range(count)]
    table = pa.table(
        {
            "id": [f"r{i}" for i in range(count)],
            "label": ["abc"[code] for code in given],
            "p": [(i * 37 % 64) / 64 if i % 9 else None for i in range(count)],
            "number": [i % 12 for i in range(count)],
            "probe_label": given,
            "probe_probs": [[*p, 1 - sum(p)] if i % 8 else None for i, p in enumerate(probs)],
            "probe_suggested": ["abc"[i % 3] if i % 7 else None for i in range(count)],
            "probe_suggested_prob": [(i % 8) / 8 for i in range(count)],
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(table, f"{folder}/in.parquet")
        params = dict(LABEL_ACTIONS[name])
        recipe: dict[str, Any] = {
            "corpus": {"path": f"{folder}/in.parquet", "roles": {"id": "id", "label": "label"}},
            "stages": [],
            "workspace": f"{folder}/work",
        }
        if name == "label_corrections":
            _, ids = query(tamis.run(recipe).workspace, "SELECT row_id FROM rows ORDER BY row_id")
            said = [("keep", ""), ("relabel", "d"), ("drop", ""), ("", "a"), ("", "")]
            lines = [f"{row},{','.join(said[i % 5])}" for i, (row,) in enumerate(ids)]
            params["path"] = f"{folder}/said.csv"
            Path(params["path"]).write_text("\n".join(["row_id,verdict,label", *lines]))
        result = tamis.run({**recipe, "stages": [{"operator": name, **params}]})
        fields = set()
        if name != "label_errors":
            fields = set(operators()[name](**params).fields().names)  # type: ignore[attr-defined]
        told = ", ".join(f"round({f}, 9)" if "informa" in f else f for f in sorted(fields))
        _, scores = query(result.workspace, f"SELECT row_id, {told} FROM scores ORDER BY row_id")
        decisions = [
            tuple(round(part, 9) if isinstance(part, float) else part for part in row)
            for row in decisions_of(result)
        ]
        assert len(set(map(repr, scores))) == count
        return digest_of([repr(row) for row in [*scores, *decisions]])


def digest_of_mixtures(name: str) -> str:
    """What is made of a score of two components, but for the last bits."""
    draws = np.random.default_rng(12)
    score = np.r_[draws.beta(2, 10, 400), draws.beta(8, 3, 150), np.nan]
    labels = draws.choice(["a", "b", "c"], len(score), p=[0.5, 0.3, 0.2])
    with tempfile.TemporaryDirectory() as folder:
        path = write_corpus(Path(folder) / "in.parquet", [f"text {n}" for n in range(len(score))])
        columns = {"score": score, "label": labels}
        pl.read_parquet(path).with_columns(
            **{k: pl.Series(v) for k, v in columns.items()}
        ).write_parquet(path)
        roles = {"text": "text", "id": "id", "label": "label"}
        result = tamis.run(
            {
                "corpus": {"path": str(path), "roles": roles},
                "stages": [{"operator": name, **MIXTURES[name]}],
                "workspace": f"{folder}/work",
            }
        )
        if name == "mixture_posterior":
            sql = "SELECT round(mixture_posterior, 6) FROM scores ORDER BY row_id"
            rows = query(result.workspace, sql)[1]
        else:
            found = result.decisions.sort("id_hi").collect()
            figures = pl.col("value", "threshold").round(6)
            rows = found.select("id_hi", "action", "reason", figures).rows()
        assert len(set(rows)) > 100
        return digest_of([repr(row) for row in rows])


def digest_of_overlap(name: str) -> str:
    """What an operator that looks for benchmark items finds in pages."""
    with tempfile.TemporaryDirectory() as folder:
        source = write_corpus(Path(folder) / "in.parquet", [*TEXTS, *PAGES])
        items = write_corpus(
            Path(folder) / "bench.parquet", [PAGE[:120], PAGE[200:400], *TEXTS[:9]]
        )
        reference = {"path": str(items), "id": "id", "name": "bench"}
        result = tamis.run(
            {
                "corpus": {"path": str(source), "roles": {"text": "text", "id": "id"}},
                "stages": [{"operator": name, "references": [reference], "ngram": 8}],
                "workspace": f"{folder}/work",
            }
        )
        if name == "decontaminate":
            rows = (
                result.decisions.drop("shard", "row", *PARENT.names).sort("id_hi").collect().rows()
            )
        else:
            rows = query(result.workspace, "SELECT * FROM scores ORDER BY row_id")[1]
        assert len(set(rows)) > 10
        return digest_of([repr(row) for row in rows])


def digest_of_ngram_models(name: str) -> str:
    """What n-gram models and their difference make of texts, but for the last bits."""
    with tempfile.TemporaryDirectory() as folder:
        texts = [*TEXTS, *PAGES]
        path = write_corpus(Path(folder) / "in.parquet", texts)
        write_corpus(Path(folder) / "target.parquet", PAGES)
        if name == "ngram_logp":
            model = f"{folder}/model.npz"
            NgramModel.trained(pa.array(TEXTS), 5).write(Path(model))
            signal = NgramLogp(model=model).compute(pa.record_batch({"text": texts}))
            found = list(zip(*signal.to_pydict().values(), strict=True))
        else:
            target = {"train": {"path": f"{folder}/target.parquet"}, "order": 4}
            general = {"max_bytes": 3_000}
            models = [("target", target), ("general", general)]
            workspace = tamis.run(
                {
                    "corpus": {"path": str(path), "roles": {"text": "text", "id": "id"}},
                    "stages": [
                        *({"operator": "ngram_likelihood", "name": n, **p} for n, p in models),
                        {"operator": "cross_entropy_difference"},
                    ],
                    "workspace": f"{folder}/work",
                }
            ).workspace
            columns = NGRAM_MODELS[name]
            found = query(workspace, f"SELECT {columns} FROM scores ORDER BY row_id")[1]
        for column in zip(*found, strict=True):
            assert len(set(column)) > 50
            assert None in column or 0 in column
        return digest_of([[value and f"{value:.6g}" for value in row] for row in found])


def digest_of_hits() -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index.npz"
        NgramIndex.of(pa.array([PAGE[:120], PAGE[200:400], *TEXTS[:9]]), 8, 4, 10).write(path)
        signal = operators()["contamination_hits"](index=str(path), digest="0")
        assert isinstance(signal, RowScorer)
        found = signal.compute(pa.record_batch({"text": [*TEXTS, *PAGES]}))
        return digest_of([repr(row) for row in found.to_pylist()])


def digest_of_draws() -> str:
    """The tokens that answers to some prompts are drawn as, but for what a model says."""
    import torch

    stage = Responses.model_validate({name: {"model": name} for name in ("policy", "reference")})
    keys = stage.keys(pa.array(TEXTS)).ravel()
    logits = torch.linspace(-2, 2, 50, dtype=torch.float64).expand(len(keys), -1)
    drawn = [draw(logits, torch.from_numpy(uniforms(keys, step)), 0.8, 0.9) for step in range(3)]
    return digest_of([tokens.tolist() for tokens in drawn])


def digest_of_pairs() -> str:
    """The pairs of made-up answers and rewards."""
    draws = np.random.default_rng(8)
    policy, reference = draws.integers(-3, 0, (2, 200, 4)).astype(float)
    texts = [[f"answer {n}" for n in row] for row in draws.integers(0, 3, (200, 4))]
    ended = (draws.random((200, 4)) < 0.7).tolist()
    refused = ["why" if n % 20 == 0 else None for n in range(200)]

    def answered(lists: list[Any]) -> list[Any]:
        return [None if why else part for part, why in zip(lists, refused, strict=True)]

    lists = {
        "texts": texts,
        "ended": ended,
        "policy": policy.tolist(),
        "reference": reference.tolist(),
    }
    columns = {**{name: answered(part) for name, part in lists.items()}, "refused": refused}
    made = pa.record_batch(columns)
    pairs = SeraBootstrap().pairs(made)
    assert len(set(pairs.outcome.tolist())) == 5
    found = made.filter(pa.array(pairs.outcome == 0))
    texts = [column.to_pylist() for column in SeraBootstrap().texts(found).values()]
    return digest_of([[column.tolist() for column in pairs[:3]], texts])


@pytest.mark.parametrize("name", sorted(operators()))
def test_output_changes_only_with_the_version(name: str) -> None:
    known = json.loads(GOLDEN.read_text())
    assert name in known, "run `python -m tests.test_golden`"
    version, digest = known[name]
    assert version == operators()[name].version, "run `python -m tests.test_golden`"
    assert digest_of_operator(name) == digest, f"{name} changed: raise its version"


if __name__ == "__main__":
    found = {name: [cls.version, digest_of_operator(name)] for name, cls in operators().items()}
    GOLDEN.write_text(json.dumps(found, indent=2) + "\n")

"""A corpus into a folder of tokens: split by row_id, tokenised by shard, put in order of row_id."""

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tamis.flows.direct import open_run
from tamis.flows.steps import Run, set_aside
from tamis.recipe import Recipe
from tamis.scoring.model_files import need_package
from tamis.scoring.token_encoding import encode, end_token, learn_tokenizer, tokenizer_at
from tamis.selectors.budgets import draws
from tamis.storage.columns import Mask, keep_mask, kept_mask, read_columns
from tamis.storage.corpus import Progress, Shard, shards_in, starts_in
from tamis.storage.errors import RunError, UserError
from tamis.storage.files import digest_file, digest_of, locked, whole_file
from tamis.storage.kernels import Int64s, in_threads, string_buffers
from tamis.storage.places import Place, absolute, place_errors, place_of, shown
from tamis.storage.sidecar import Part, sidecar_batches, sidecar_once, sidecar_path
from tamis.storage.tasks import Runner, Task, Threads
from tamis.storage.token_shards import (
    TokenManifest,
    TokenShards,
    check_target,
    lay_out,
    local_folder,
    token_files,
    token_type,
)

_VERSION = 1
#: Bytes of text that a tokenizer is learnt from, as many of every domain. Unconfirmed.
SAMPLE_BYTES = 16 << 20
#: Fewest tokens of a domain that a loss is measured on. Unconfirmed.
LEAST_VALIDATION = 1024
#: Bytes a row that is held beside what every run holds (counted, not measured).
ROW_BYTES = 80


class Tokenise(Task):
    """Write the tokens of a shard's texts into a sidecar.

    Attributes:
        shards: list of shards, see `Corpus.keep`.
        kept: mask of the rows to tokenise, see `keep_mask`.
        text: column of the texts.
        tokenizer, digest: file, and its digest.
        end: token that ends a document.
        wide: whether tokens take 32 bits.
        folder: where the sidecars lie.
    """

    task: Literal["tokenise"] = "tokenise"
    label: ClassVar[str] = "tokens"
    shards: str
    kept: str
    text: str
    tokenizer: str
    digest: str
    end: int
    wide: bool
    folder: str

    @property
    def kind(self) -> np.dtype[np.uint16] | np.dtype[np.uint32]:
        return np.dtype(np.uint32) if self.wide else np.dtype(np.uint16)

    @property
    def fields(self) -> pa.Schema:
        kind = pa.from_numpy_dtype(self.kind)
        return pa.schema([("tokens", pa.large_list(kind)), ("length", pa.int64())])

    def place(self, shard: Shard) -> tuple[Place, str]:
        """Path and step of a shard's sidecar."""
        parts = [_VERSION, self.text, self.digest, self.end, place_of(self.kept).name]
        step = digest_of([*parts, version("tokenizers"), shard.digest])
        return sidecar_path(place_of(self.folder), shard, step), step

    def run(self, item: int) -> None:
        shard = shards_in(self.shards)[item]
        path, step = self.place(shard)
        sidecar_once(path, shard, step, self.fields, partial(self._parts, shard))

    def _parts(self, shard: Shard) -> Iterator[Part]:
        starts = starts_in(self.shards)
        inside = kept_mask(self.kept)[starts[shard.index] : starts[shard.index + 1]]
        tokenizer = tokenizer_at(Path(self.tokenizer))
        for rows, batch in read_columns(shard, {"text": self.text}, inside):
            values, offsets = encode(tokenizer, batch["text"], self.end, self.kind)
            lists = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values))
            columns = [lists, pa.array(np.diff(offsets))]
            yield rows, pa.record_batch(columns, schema=self.fields)


@dataclass(frozen=True)
class Texts:
    """What is known of every row before it is tokenised.

    Attributes:
        domains: names, sorted.
        domain: int32 [rows], place among the names; -1 for rows that are left out.
        bytes: int64 [rows], of text.
        left_out: rows that are left out, by reason.
    """

    domains: tuple[str, ...]
    domain: npt.NDArray[np.int32]
    bytes: Int64s
    left_out: dict[str, int]


def tokenise(
    recipe: Recipe,
    out: str | Path,
    *,
    tokenizer: Path | None = None,
    vocabulary: int = 2048,
    validation: float = 0.05,
    seed: int = 0,
    only: Sequence[str] = (),
    end_of_text: str | None = None,
    progress: Progress | None = None,
    runner: Runner | None = None,
) -> TokenShards:
    """Tokenise a corpus into a folder for trainers; what is there already is not done again.

    Args:
        recipe: names the corpus and its roles `text` and `domain`, and a workspace; its stages are
            not run.
        out: folder of the tokens on this machine, as the workspace is; replaced as a whole.
        tokenizer: a tokenizer.json; if not given, one is learnt from the texts to train on.
        vocabulary: tokens of one that is learnt.
        validation: share of the documents to measure on, picked by their row_id.
        only: domains to take, all if not given.
        end_of_text: the token that ends documents, as it is written.

    Raises:
        UserError: if the corpus, its roles or the tokenizer do not fit, or a domain has too few
            tokens to measure on.
        RunError: if more rows are bad than the recipe allows.
    """
    need_package("tokenizers", "tokenising a corpus", "tokens")
    target, workspace = local_folder(out), local_folder(recipe.workspace_path)
    home = absolute(workspace)
    assert isinstance(home, Path)
    check_target(target)
    runner = runner or Threads(recipe.workers or len(os.sched_getaffinity(0)))
    report = progress or (lambda name, done, total: None)
    with locked(workspace):
        run, _ = open_run(recipe, workspace, runner, report, row_bytes=ROW_BYTES)
        set_aside(run)
        own = None if tokenizer is None else digest_file(tokenizer)
        key = digest_of(
            [
                _VERSION,
                [shard.digest for shard in run.corpus.shards],
                run.recipe.corpus.roles.columns(),
                run.recipe.corpus.identity,
                own or vocabulary,
                validation,
                seed,
                sorted(only),
                end_of_text,
                version("tokenizers"),
            ]
        )
        standing = _standing(target)
        if standing is not None and standing.manifest.key == key:
            return standing
        texts = _texts(run, only, report)
        ids = run.rows.id_hi, run.rows.id_lo
        # Copies of a row go where it goes: none is measured on that was trained on.
        held_out = draws(*ids, np.zeros_like(run.rows.copy), seed) < validation
        trained = np.bincount(
            texts.domain[(texts.domain >= 0) & ~held_out], minlength=len(texts.domains)
        )
        _enough(texts.domains, trained, 1, "documents to train on", validation)
        if tokenizer is None:
            tokenizer = home / "tokens" / f"tokenizer-{key}.json"
            if not tokenizer.is_file():
                report("learning a tokenizer", 0, 1)
                learnt = learn_tokenizer(_sample(run, texts, ~held_out, seed), vocabulary)
                with whole_file(tokenizer) as temporary:
                    temporary.write_text(learnt.to_str(pretty=True) + "\n", "utf-8")
                report("learning a tokenizer", 1, 1)
        made = tokenizer_at(tokenizer)
        size = made.get_vocab_size(with_added_tokens=True)
        task = Tokenise(
            shards=run.corpus.keep(home / "orders"),
            kept=keep_mask(texts.domain >= 0, home / "orders"),
            text=recipe.corpus.roles.columns()["text"],
            tokenizer=str(tokenizer),
            digest=digest_file(tokenizer),
            end=end_token(made, end_of_text, str(tokenizer)),
            wide=token_type(size) == np.uint32,
            folder=str(home / "tokens"),
        )
        runner.map(task, run.corpus.sizes, run.advance("tokens"))
        file = np.where(texts.domain < 0, -1, 2 * texts.domain + held_out).astype(np.int32)
        lengths = _lengths(run, task)
        layout = lay_out(file, lengths, 2 * len(texts.domains), (*ids, run.rows.copy))
        measured = layout.tokens[1::2]
        _enough(texts.domains, measured, LEAST_VALIDATION, "tokens to measure on", validation)
        with token_files(target, layout, task.kind) as files:
            for shard in run.corpus.shards:
                for rows, values, offsets in _documents(run, task, shard):
                    files.put(rows, values, offsets)
            some = file >= 0
            sizes = np.bincount(
                file[some], weights=texts.bytes[some], minlength=2 * len(texts.domains)
            )
            manifest = TokenManifest(
                key=key,
                tokenizer=task.digest,
                vocabulary=size,
                end_of_text=task.end,
                validation=validation,
                seed=seed,
                domains=files.parts(texts.domains, sizes.astype(np.int64)),
                left_out=texts.left_out,
                origin={
                    "corpus": shown(recipe.corpus.path),
                    "roles": recipe.corpus.roles.columns(),
                    "inputs": digest_of([found.digest for found in run.corpus.inputs]),
                    "tokenizers": version("tokenizers"),
                },
            )
            found = files.publish(target, manifest, tokenizer.read_text("utf-8"))
        with place_errors(home / "tokens"):
            shutil.rmtree(home / "tokens")
    return found


def _standing(target: Path) -> TokenShards | None:
    """The folder as it is; none if it is not there, or broken and to be written anew."""
    try:
        return TokenShards.open(target)
    except UserError:
        return None


def _texts(run: Run, only: Sequence[str], report: Progress) -> Texts:
    """Read the domains and the lengths of all texts."""
    roles = run.recipe.corpus.roles.columns()
    for role in ("text", "domain"):
        if role not in roles:
            raise UserError(f"no column is named for the role {role!r}", mend=f"--{role} COLUMN")

    def of_shard(shard: Shard) -> tuple[Int64s, pa.ChunkedArray, Int64s]:
        inside = run.kept[run.rows.of(shard)]
        at, names, sizes = [], [], []
        read = {"text": roles["text"], "domain": roles["domain"]}
        for rows, batch in read_columns(shard, read, inside):
            at.append(rows + run.rows.start[shard.index])
            names.append(pc.cast(batch["domain"], pa.large_string()))
            sizes.append(np.diff(string_buffers(batch["text"])[1]))
        empty = np.zeros(0, np.int64)
        positions = np.concatenate([empty, *at])
        named = pa.chunked_array(names, pa.large_string()).dictionary_encode()
        return positions, named, np.concatenate([empty, *sizes])

    found = in_threads(of_shard, run.corpus.shards, run.runner.workers)
    domain = np.full(run.corpus.rows, -1, np.int32)
    sizes = np.zeros(run.corpus.rows, np.int64)
    seen = {n for _, named, _ in found for c in named.chunks for n in c.dictionary.to_pylist()}
    names = sorted(n for n in seen if n is not None and (not only or n in only))
    for wanted in only:
        if wanted not in names:
            raise UserError(
                f"no row has the domain {wanted!r}",
                where=shown(run.recipe.corpus.path),
                mend=f"there: {', '.join(sorted(n for n in seen if n is not None)[:20])}",
            )
    nameless = others = empty = 0
    for positions, named, lengths in found:
        codes = np.full(len(positions), -1, np.int32)
        begin = 0
        for chunk in named.chunks:
            own = chunk.dictionary.to_pylist()
            place = np.array([*(names.index(n) if n in names else -2 for n in own), -1], np.int32)
            codes[begin : begin + len(chunk)] = place[pc.fill_null(chunk.indices, -1).to_numpy()]
            begin += len(chunk)
        nameless += int((codes == -1).sum())
        others += int((codes == -2).sum())
        empty += int(((codes >= 0) & (lengths == 0)).sum())
        codes[lengths == 0] = -1
        domain[positions] = np.maximum(codes, -1)
        sizes[positions] = lengths
    if nameless > run.recipe.max_quarantine * max(1, run.corpus.rows):
        raise RunError(
            f"{nameless:,} of {run.corpus.rows:,} rows have no domain, more than max_quarantine = "
            f"{run.recipe.max_quarantine:g} allows",
            where=shown(run.recipe.corpus.path),
            mend="fill the column in, or raise --max-quarantine to leave these rows out",
        )
    if not names or not (domain >= 0).any():
        raise UserError("no row has both text and a domain", where=shown(run.recipe.corpus.path))
    left_out = {
        "unusable": int(run.rows.unusable.sum()) + run.corpus.unread_rows,
        "no domain": nameless,
        "other domains": others,
        "empty text": empty,
    }
    return Texts(tuple(names), domain, sizes, {k: n for k, n in left_out.items() if n})


def _sample(run: Run, texts: Texts, trained: Mask, seed: int) -> Iterator[str]:
    """Texts to learn a tokenizer from: as many bytes of every domain, drawn by row_id."""
    value = draws(run.rows.id_hi, run.rows.id_lo, run.rows.copy, seed + 1)
    file = np.where(trained, texts.domain, -1)
    order = np.lexsort((run.rows.copy, run.rows.id_lo, run.rows.id_hi, value, file))
    order = order[file[order] >= 0]
    ends = np.cumsum(texts.bytes[order])
    mine = file[order]
    first = np.searchsorted(mine, np.arange(len(texts.domains)))
    before = np.append(0, ends)[:-1]
    within = before - before[np.minimum(first, len(order) - 1)][mine]
    wanted = np.zeros(len(file), np.int64)
    share = SAMPLE_BYTES // len(texts.domains)
    wanted[order] = np.clip(share - within, 0, texts.bytes[order])
    column = run.recipe.corpus.roles.columns()["text"]
    for shard in run.corpus.shards:
        here = wanted[run.rows.of(shard)]
        for rows, batch in read_columns(shard, {"text": column}, here > 0):
            whole = batch["text"].to_pylist()
            for text, most in zip(whole, here[rows].tolist(), strict=True):
                cut = (
                    text
                    if len(text) * 4 <= most
                    else text.encode()[:most].decode("utf-8", "ignore")
                )
                yield cut


def _lengths(run: Run, task: Tokenise) -> Int64s:
    """Tokens of every row, 0 for those that are left out."""
    lengths = np.zeros(run.corpus.rows, np.int64)
    for shard in run.corpus.shards:
        for batch in sidecar_batches(*_located(task, shard), ["row", "length"]):
            lengths[run.rows.of(shard)][batch["row"].to_numpy()] = batch["length"].to_numpy()
    return lengths


def _documents(
    run: Run, task: Tokenise, shard: Shard
) -> Iterator[tuple[Int64s, npt.NDArray[np.uint16], Int64s]]:
    """Positions of rows, their tokens and where each row's begin."""
    for batch in sidecar_batches(*_located(task, shard), ["row", "tokens"]):
        lists = batch["tokens"]
        offsets = lists.offsets.to_numpy().astype(np.int64)
        rows = batch["row"].to_numpy() + run.rows.start[shard.index]
        yield rows, lists.values.to_numpy(), offsets


def _located(task: Tokenise, shard: Shard) -> tuple[Place, Shard, str]:
    path, step = task.place(shard)
    return path, shard, step


def _enough(
    domains: Sequence[str], there: Int64s, least: int, what: str, validation: float
) -> None:
    """Raise if a domain has nothing to train on or too little to measure on."""
    short = [
        f"{name!r} has {count:,}"
        for name, count in zip(domains, there.tolist(), strict=True)
        if count < least
    ]
    if short:
        raise UserError(
            f"too few {what}: {', '.join(short)}, expected {least:,} or more with "
            f"{validation:g} of the documents for validation",
            mend="raise or lower --validation, join the domain with another, or leave it out "
            "(--only names those to take)",
        )

"""New preference pairs from a policy's own answers: the best against the worst."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from tamis.scoring.evaluate import Evaluated
from tamis.scoring.logprobs import Logprobs
from tamis.scoring.operator import Operator
from tamis.scoring.responses import Drawing, Responses, scoring
from tamis.scoring.reuse import KEYS
from tamis.selectors.budgets import wanted
from tamis.selectors.generator import Generator, NewRows
from tamis.selectors.table import Table
from tamis.storage.errors import UserError
from tamis.storage.kernels import Int64s, UInt64s
from tamis.storage.ledger import Float64s

#: What becomes of a prompt's answers, by number.
_PAIR, _REFUSED, _TOO_FEW, _ALIKE, _EQUAL = range(5)
_NO_PAIR = {
    _REFUSED: "prompt_not_answered",
    _TOO_FEW: "fewer_than_two_answers",
    _ALIKE: "all_answers_alike",
    _EQUAL: "equal_rewards",
}
_ANSWERS = ("drawn", "without_a_word", "cut_off", "not_scored")


class Pairs(NamedTuple):
    """The best and the worst answer to every prompt.

    Attributes:
        outcome: int8, whether there is a pair, and if not why.
        best, worst: int64, numbers of the answers; 0 where there is no pair.
        chosen, rejected: float64, their rewards; nan where there is no pair.
        answers: int64, how many could be paired.
    """

    outcome: npt.NDArray[np.int8]
    best: Int64s
    worst: Int64s
    chosen: Float64s
    rejected: Float64s
    answers: Int64s


class SeraBootstrap(Drawing, Generator):
    """SeRA's preference bootstrapping: answers of the policy, best against worst by its reward.

    To every prompt the policy gives some answers (operator `responses`). Each has the implicit
    reward r = beta * (log p_policy - log p_reference), sums over its tokens. The answer with the
    highest reward is chosen, the one with the lowest rejected; of equal ones the first. The pairs
    with the largest margins become rows beside those that are kept. A prompt that several rows
    share is answered once, for the row with the smallest row_id.

    There is no pair where the prompt cannot be answered (no token, or no room for an answer in the
    policy's context), where fewer than two answers are left (those without a word, those that
    `max_new_tokens` cut off unless `unfinished` is keep, those that a model cannot score), where
    all are alike, and where best and worst have the same reward. The report counts them.

    A new row has the parent's prompt and domain, an id of its own, and null in other columns (the
    parent's value where a column must not be null or tells rows apart). Put the stage before the
    selector to take `fraction` of all rows, as the paper does, after it to take it of those kept.

    Example:
        >>> SeraBootstrap(policy="policy", reference="reference").stage
        'sera_bootstrap'
    """

    operator: Literal["sera_bootstrap"] = "sera_bootstrap"

    policy: str = Field(
        default="policy", description="name of an earlier stage `logprobs`: the model that answers"
    )
    reference: str = Field(
        default="reference",
        description="name of an earlier stage `logprobs`: what it was tuned from",
    )
    samples: int = Field(
        default=4, ge=2, le=1024, description="answers to every prompt (default not confirmed)"
    )
    unfinished: Literal["drop", "keep"] = Field(
        default="drop", description="what to do with answers that `max_new_tokens` cut off"
    )
    beta: float = Field(
        default=0.1, gt=0, description="factor of the reward; changes no order (not confirmed)"
    )
    fraction: float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="new rows at the most, as a share of the rows the stage sees (0.3 as recalled "
        "of the paper; not confirmed)",
    )
    rows: int | None = Field(default=None, ge=0, description="new rows at the most, not a share")

    version: ClassVar[int] = 1
    paper: ClassVar[str] = Responses.paper
    roles: ClassVar[tuple[str, ...]] = ("prompt", "chosen", "rejected")
    notes: ClassVar[pa.Schema] = pa.schema(
        [
            pa.field("chosen_reward", pa.float64()),
            pa.field("rejected_reward", pa.float64()),
            pa.field("answers", pa.int64()),
        ]
    )

    def source(self, earlier: Mapping[str, Operator]) -> Responses:
        models = {}
        for name in ("policy", "reference"):
            stage = earlier.get(getattr(self, name))
            if not isinstance(stage, Logprobs):
                known = [s.stage for s in earlier.values() if isinstance(s, Logprobs)]
                raise UserError(
                    f"{self.stage}.{name}: no earlier stage `logprobs` is named "
                    f"{getattr(self, name)!r}",
                    where="recipe",
                    mend=f"name one of {', '.join(known)}"
                    if known
                    else "put `- operator: logprobs` with a model and a name before it",
                )
            models[name] = scoring(stage)
        drawn = Drawing.model_fields.keys() - Operator.model_fields.keys()
        return Responses(**models, **{name: getattr(self, name) for name in drawn})

    def memory(self, rows: int, earlier: Mapping[str, Operator]) -> int:
        # The models are those of the stages before, which count them.
        return rows * 120 + self.source(earlier).drawing_memory()

    def choose(self, table: Table, made: Evaluated) -> NewRows:
        columns = [*made.operator.fields().names, *(key.name for key in KEYS)]
        parts: list[Pairs] = []
        high, low = [], []
        counts: list[Int64s] = []
        for shard in table.corpus.shards:
            inside = table.kept[table.rows.of(shard)]
            for batch in made.of_shard(shard.index, columns, inside):
                parts.append(self.pairs(batch))
                counts.append(_no_use(batch, self.samples))
                high.append(batch[KEYS[0].name].to_numpy())
                low.append(batch[KEYS[1].name].to_numpy())
        if not parts:
            parts, high, low = [_NOTHING], [table.id_hi], [table.id_lo]
            counts = [np.zeros((4, 0), np.int64)]
        pairs = Pairs(*map(np.concatenate, zip(*parts, strict=True)))
        first = _first_of_each(table, np.concatenate(high), np.concatenate(low))
        margin = pairs.chosen - pairs.rejected
        found = first[pairs.outcome[first] == _PAIR]
        order = np.lexsort(
            (table.copy[found], table.id_lo[found], table.id_hi[found], -margin[found])
        )
        best = found[order][: wanted(len(table), self.rows, self.fraction)]
        parents = np.sort(best)
        least = margin[best[-1]] if len(best) else np.nan
        answers = np.concatenate(counts, axis=1)[:, first].sum(axis=1)
        outcomes = np.bincount(pairs.outcome[first], minlength=len(_NO_PAIR) + 1)
        return NewRows(
            parents=parents,
            value=margin[parents],
            threshold=np.full(len(parents), least),
            notes=pa.table(
                {
                    "chosen_reward": pairs.chosen[parents],
                    "rejected_reward": pairs.rejected[parents],
                    "answers": pairs.answers[parents],
                },
                schema=self.notes,
            ),
            report={
                "rows": len(table),
                "prompts": len(first),
                "answers": dict(zip(_ANSWERS, answers.tolist(), strict=True)),
                "no_pair": {why: int(outcomes[code]) for code, why in _NO_PAIR.items()},
                "pairs": len(found),
                "least_margin": float(least) if len(best) else None,
            },
        )

    def texts(self, made: pa.RecordBatch) -> dict[str, pa.Array]:
        pairs = self.pairs(made)
        said = made[0].flatten()
        begin = np.asarray(made[0].offsets, np.int64)[:-1] - made[0].offsets[0].as_py()
        return {
            "chosen": said.take(pa.array(begin + pairs.best)),
            "rejected": said.take(pa.array(begin + pairs.worst)),
        }

    def pairs(self, made: pa.RecordBatch) -> Pairs:
        """Best and worst of the answers of a batch of `responses`."""
        texts, ended, policy, reference, refused = made.columns[:5]
        answered = np.asarray(refused.is_null())
        rewards = self.beta * (_table(policy) - _table(reference))
        usable = np.isfinite(rewards)
        if self.unfinished == "drop":
            usable &= _table(ended) == 1
        codes = np.asarray(texts.flatten().dictionary_encode().indices).reshape(rewards.shape)
        best = np.where(usable, rewards, -np.inf).argmax(axis=1)
        worst = np.where(usable, rewards, np.inf).argmin(axis=1)
        rows = np.arange(len(rewards))
        count = usable.sum(axis=1)
        alike = np.where(usable, codes, codes[rows, best][:, None]) == codes[rows, best][:, None]
        conditions = [count < 2, alike.all(axis=1), rewards[rows, best] == rewards[rows, worst]]
        outcome = np.select(conditions, [_TOO_FEW, _ALIKE, _EQUAL], _PAIR)
        pair = outcome == _PAIR

        def spread(values: npt.NDArray[Any], nothing: float) -> npt.NDArray[Any]:
            whole = np.full(len(made), nothing, values.dtype)
            whole[answered] = values
            return whole

        return Pairs(
            spread(outcome.astype(np.int8), _REFUSED),
            spread(np.where(pair, best, 0), 0),
            spread(np.where(pair, worst, 0), 0),
            spread(np.where(pair, rewards[rows, best], np.nan), np.nan),
            spread(np.where(pair, rewards[rows, worst], np.nan), np.nan),
            spread(count, 0),
        )


def _table(lists: pa.Array) -> Float64s:
    """Lists of as many numbers each as a table, without those that are null; nan for null."""
    values = lists.flatten().cast(pa.float64())
    rows = len(lists) - lists.null_count
    return np.asarray(pc.fill_null(values, np.nan)).reshape(rows, -1 if rows else 1)


def _no_use(made: pa.RecordBatch, samples: int) -> Int64s:
    """For every row of a batch of `responses` the answers that were drawn, those without a word,
    those that were cut off, and those with words that could not be scored.
    """
    texts, ended, policy, reference = (column.flatten() for column in made.columns[:4])
    blank = np.asarray(pc.equal(pc.utf8_trim_whitespace(texts), ""))
    scored = np.asarray(policy.is_valid()) & np.asarray(reference.is_valid())
    of_each = np.stack([np.ones(len(texts)), blank, ~np.asarray(ended), ~scored & ~blank])
    found = np.zeros((4, len(made)), np.int64)
    found[:, np.asarray(made[0].is_valid())] = of_each.reshape(4, -1, samples).sum(axis=2)
    return found


def _first_of_each(table: Table, high: UInt64s, low: UInt64s) -> Int64s:
    """Of the rows that share a content key the one with the smallest row_id; ascending."""
    order = np.lexsort((table.copy, table.id_lo, table.id_hi, low, high))
    high, low = high[order], low[order]
    new = np.ones(len(order), np.bool_)
    new[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    return np.sort(order[new])


_NOTHING = Pairs(
    np.zeros(0, np.int8), *(np.zeros(0, kind) for kind in (int, int, float, float, int))
)

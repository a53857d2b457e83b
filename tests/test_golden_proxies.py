"""A trainer or a tokeniser whose output changes must raise its version.

After a deliberate change: raise the version, then ``python -m tests.test_golden_proxies`` prints
the new numbers.
"""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tamis.commands.recipes import recipe_for
from tamis.flows import tokenise as flow
from tamis.scoring import proxy_training as trainer
from tamis.storage.mixture_plan import MixturePlan
from tests.conftest import make_texts
from tests.scoring.proxy_tools import write_tokens

TOKENS = (1, "ed827620d64f9efcb6f5e4dcc73df1a5")
LOSSES = (2, {"down": 0.9702, "up": 0.9774})


def digest_of_tokens(folder: Path) -> str:
    """Of the tokens of made-up texts under a tokenizer that is learnt from them."""
    texts = [f"{text} é 漢字 🙂\n" for text in make_texts(120, copies=0)]
    table = pa.table({"text": texts, "domain": ["web", "code"] * 60})
    pq.write_table(table, folder / "corpus.parquet")
    roles: dict[str, str | None] = {"text": "text", "domain": "domain"}
    recipe = recipe_for(str(folder / "corpus.parquet"), None, roles, [], None, str(folder / "w"))
    return flow.tokenise(recipe, folder / "tokens", vocabulary=300, validation=0.3).digest


def losses_of_a_run(folder: Path) -> dict[str, float]:
    """Of a small run of two phases."""
    up = np.tile(np.arange(1, 8), 100)
    tokens = write_tokens(folder / "tokens", {"up": up, "down": up[::-1]})
    plan = MixturePlan.of({"up": 0.3, "down": 0.7}, {"up": 1.0, "down": 0.0}, shares=(2, 1))
    shape = {"context": 8, "batch": 4, "width": 16, "layers": 2, "heads": 2, "hidden": 24}
    settings = trainer.ProxySettings.model_validate({**shape, "steps": 24, "rate": 0.01})
    return trainer.train_proxy(tokens, plan, settings).losses


def test_tokens_change_only_with_the_version(tmp_path: Path) -> None:
    assert TOKENS[0] == flow._VERSION
    assert digest_of_tokens(tmp_path) == TOKENS[1], "tokens changed: raise _VERSION"


def test_losses_change_only_with_the_version(tmp_path: Path) -> None:
    assert LOSSES[0] == trainer.VERSION
    found = losses_of_a_run(tmp_path)
    assert found == pytest.approx(LOSSES[1], abs=1e-3), "losses changed: raise VERSION"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        print(f"TOKENS = {flow._VERSION, digest_of_tokens(Path(one))}")
        losses = {name: round(loss, 4) for name, loss in losses_of_a_run(Path(two)).items()}
        print(f"LOSSES = {trainer.VERSION, losses}")

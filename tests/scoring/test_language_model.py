"""One forward of packs: the same numbers as the model's own, whatever is packed with what."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("transformers", reason="the extra `models` is not installed")

from tamis.scoring import language_model
from tamis.scoring.completions import Ragged, offsets_of
from tamis.scoring.language_model import LanguageModel
from tamis.scoring.model_files import ModelFiles
from tamis.scoring.packing import distinct, pack, plan
from tamis.storage.errors import RunError
from tests.tiny_models import SIZES

Rows = list[tuple[list[int], list[int]]]
WORDS = 9000  # more than two blocks of the vocabulary
#: Architectures of which packs give the numbers, with what makes them special.
PACKED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"num_key_value_heads": 2}),
    "qwen2": ("Qwen2", {"num_key_value_heads": 2}),
    "qwen3": ("Qwen3", {"num_key_value_heads": 2, "head_dim": 16}),
    "gpt2": ("GPT2", {}),
    "mistral, sliding window": ("Mistral", {"num_key_value_heads": 2, "sliding_window": 6}),
    "mixtral": ("Mixtral", {"num_key_value_heads": 2, "num_local_experts": 4}),
}
#: And of which they do not: softcap, sinks, scaled logits, ALiBi, no attention at all.
OWN: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2": ("Gemma2", {"num_key_value_heads": 2, "head_dim": 16}),
    "cohere": ("Cohere", {"num_key_value_heads": 2}),
    "bloom": ("Bloom", {"n_head": 4}),
    "mamba": ("Mamba", {}),
    "llama, dynamic positions": (
        "Llama",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
    ),
}


def save(folder: Path, kind: tuple[str, dict[str, Any]], **changes: Any) -> Any:
    """A model of random weights; the folder has no tokenizer."""
    import torch
    import transformers

    name, special = kind
    config = getattr(transformers, f"{name}Config")(
        **{**SIZES, "vocab_size": WORDS, "pad_token_id": 0, **special, **changes}
    )
    torch.manual_seed(0)
    tail = "LMHeadModel" if name == "GPT2" else "ForCausalLM"
    model = getattr(transformers, f"{name}{tail}")(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return model


def load(folder: Path, precision: Any = "float32") -> LanguageModel:
    return LanguageModel(ModelFiles("tiny", folder, ""), precision, "cpu")


def rows() -> Rows:
    """Prompts that several completions share, one that is too short to be shared, and copies."""
    random = np.random.default_rng(3)

    def some(count: int) -> list[int]:
        found: list[int] = random.integers(0, WORDS, count).tolist()
        return found

    long, short = some(30), some(3)
    made = [(long, some(n)) for n in (7, 12, 1)] + [(short, some(n)) for n in (40, 2)]
    made += [(some(1), some(50)), (some(9), some(1)), made[0], (long[:20], some(5))]
    return made


def ragged(made: Rows) -> tuple[Ragged, npt.NDArray[np.int64]]:
    lengths = np.array([len(p) + len(c) for p, c in made], np.int64)
    ids = np.array([i for p, c in made for i in (*p, *c)], np.int32)
    return Ragged(ids, offsets_of(lengths)), np.array([len(p) for p, _ in made], np.int64)


def expected(model: Any, made: Rows) -> list[tuple[Any, Any, Any, Any]]:
    """Log-probabilities, entropies, hits and sum of states of each row, one by one in float64."""
    import torch

    found = []
    for prompt, completion in made:
        with torch.no_grad():
            said = model(torch.tensor([prompt + completion]), output_hidden_states=True)
        here = slice(len(prompt) - 1, -1)
        logps = said.logits[0, here].double().log_softmax(-1)
        hit = logps.argmax(-1) == torch.tensor(completion)
        entropy = -(logps.exp() * logps).sum(-1)
        logps = logps.gather(1, torch.tensor(completion)[:, None])[:, 0]
        states = said.hidden_states[-1][0, here].sum(0)
        found.append(tuple(part.numpy() for part in (logps, entropy, hit, states)))
    return found


def check(model: LanguageModel, own: Any, made: Rows, atol: float = 2e-5) -> None:
    found = model.score(*ragged(made), hidden=True)
    assert found.hidden is not None
    for row, (logps, entropy, hit, states) in enumerate(expected(own, made)):
        here = slice(*found.offsets[row : row + 2])
        np.testing.assert_allclose(found.logps[here], logps, atol=atol)
        np.testing.assert_allclose(found.entropy[here], entropy, atol=atol)
        np.testing.assert_array_equal(found.top1[here], hit)
        np.testing.assert_allclose(found.hidden[row], states, atol=20 * atol)


@pytest.mark.parametrize("kind", list(PACKED))
def test_packs_give_the_models_own_numbers(tmp_path: Path, kind: str) -> None:
    own = save(tmp_path, PACKED[kind])
    model = load(tmp_path)
    assert model.way == "packed"
    check(model, own, rows())


@pytest.mark.parametrize("kind", list(OWN))
def test_models_that_packs_are_not_made_for_run_as_they_are(tmp_path: Path, kind: str) -> None:
    own = save(tmp_path, OWN[kind])
    model = load(tmp_path)
    assert model.way == "own"
    check(model, own, rows())


def test_a_window_that_attention_is_not_told_of_is_not_taken_for_none(tmp_path: Path) -> None:
    from tamis.scoring.language_model import _unseen_limit

    class Config:
        sliding_window = 4096
        layer_types = ("full_attention", "sliding_attention")

    assert _unseen_limit(Config, set())
    assert not _unseen_limit(Config, {4096})


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("llama")
    return folder, save(folder, PACKED["llama"])


def test_a_prompt_and_a_row_are_read_once(llama: tuple[Path, Any]) -> None:
    model = load(llama[0])
    prompt = list(range(100))
    made: Rows = [(prompt, [5] * 11), (prompt, [7] * 21), (prompt, [9]), (prompt, [5] * 11)]
    model.score(*ragged(made))
    assert model.forwarded == 100 + 10 + 20
    model.score(*ragged([(prompt[:3], [5] * 11), (prompt[:3], [7] * 11)]))
    assert model.forwarded == 130 + 2 * 13  # three tokens are not worth a group


@pytest.mark.parametrize("budget", [1, 40, 64, 10_000])
def test_results_do_not_depend_on_what_is_packed_together(
    llama: tuple[Path, Any], budget: int
) -> None:
    model = load(llama[0])
    model._budget = model._largest = budget
    check(model, llama[1], rows())
    alone = [model.score(*ragged([row])).logps for row in rows()]
    np.testing.assert_allclose(np.concatenate(alone), model.score(*ragged(rows())).logps, atol=2e-5)


def test_packs_follow_from_what_rows_hold_and_lose_nothing() -> None:
    made = rows()
    order = np.random.default_rng(0).permutation(len(made))
    for budget in (1, 50, 100, 1000):
        seen = []
        for some in (made, [made[i] for i in order]):
            tokens, context = ragged(some)
            items = distinct(tokens, context)
            packs = plan(tokens, context, items, budget, budget)
            assert sorted(np.concatenate(packs).tolist()) == list(range(len(made) - 1))
            found = [pack(tokens, context, items, chosen) for chosen in packs]
            for one in found:
                (group, *others) = one.groups
                size = len(one.ids) - (0 if others else group.prompt)
                assert size <= budget or len(one.items) == 1
            seen.append([(one.ids.tolist(), one.targets.tolist()) for one in found])
        assert seen[0] == seen[1]


def test_a_long_prompt_is_read_once_and_masks_stay_small(llama: tuple[Path, Any]) -> None:
    random = np.random.default_rng(5)
    prompt = random.integers(0, WORDS, 900).tolist()
    made = [(prompt, random.integers(0, WORDS, 400).tolist()) for _ in range(4)]
    model = load(llama[0])
    model._largest = 1000
    model._budget = 100
    check(model, llama[1], made)
    assert model.forwarded == 2 * 900 + 4 * 399
    tokens, context = ragged(made)
    items = distinct(tokens, context)
    (group,) = pack(tokens, context, items, np.arange(4)).groups
    assert [len(run) - 1 for run in group.runs()] == [2, 2]


def test_no_rows_and_rows_without_tokens(llama: tuple[Path, Any]) -> None:
    model = load(llama[0])
    assert len(model.score(*ragged([])).logps) == 0
    made = [([], []), rows()[0], ([], [])]
    found = model.score(*ragged(made), hidden=True)
    assert found.offsets.tolist() == [0, 0, 7, 7]
    assert found.hidden is not None
    assert np.isnan(found.hidden[[0, 2]]).all()
    assert np.isfinite(found.hidden[1]).all()


def test_bfloat16_is_close(llama: tuple[Path, Any]) -> None:
    model = load(llama[0], "bfloat16")
    assert model.way == "packed"
    found, exact = model.score(*ragged(rows())), load(llama[0]).score(*ragged(rows()))
    assert np.abs(found.logps - exact.logps).mean() < 0.1


def test_out_of_memory_halves_the_batch_and_goes_on(
    llama: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(llama[0])
    forward = LanguageModel._forward_pack
    tried: list[int] = []

    def small(self: LanguageModel, made: Any, hidden: bool) -> Any:
        tried.append(len(made.ids))
        if len(made.ids) > 60:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        return forward(self, made, hidden)

    monkeypatch.setattr(LanguageModel, "_forward_pack", small)
    check(model, llama[1], rows())
    assert max(tried) > 60
    tried.clear()
    model.score(*ragged(rows()))
    assert max(tried) <= 75  # it has learnt, and does not run into it at every batch
    monkeypatch.setattr(language_model, "_is_memory", lambda error: True)
    with pytest.raises(RunError, match=r"no memory for a row of 100 tokens; set a lower"):
        model.score(*ragged([([1] * 50, [2] * 50)]))


def test_other_errors_are_not_taken_for_a_lack_of_memory(
    llama: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: LanguageModel, made: Any, hidden: bool) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    model = load(llama[0])
    monkeypatch.setattr(LanguageModel, "_forward_pack", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        model.score(*ragged(rows()))

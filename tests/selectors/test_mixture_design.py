"""RegMix's design of runs: its distribution, what every design keeps to, and its errors."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from tamis.scoring.mixture_runs import read_table
from tamis.selectors.mixture_constraints import MixtureLimits
from tamis.selectors.mixture_design import DirichletSettings, dirichlet_design
from tamis.storage.errors import UserError

NATURAL = {"web": 60.0, "code": 25.0, "law": 14.0, "mail": 1.0}


def slow_design(natural: list[float], runs: int, seed: int) -> np.ndarray:
    """The public recipe, a draw at a time."""
    draws = np.random.default_rng(seed)
    prior = np.array(natural) / sum(natural)
    flat = np.sqrt(prior) / np.sqrt(prior).sum()
    strengths = [0.1 * 50 ** (step / 14) for step in range(15)]
    pool: dict[tuple[int, ...], np.ndarray] = {}
    for _ in range(runs * 20):
        parts = np.array([draws.gamma(a) for a in flat * strengths[draws.integers(15)]])
        point = parts / parts.sum()
        if any(share > 15 * own for share, own in zip(point, prior, strict=True)):
            continue
        point[point < 2e-4] = 0
        point /= point.sum()
        pool.setdefault(tuple(np.round(point / 1e-5).astype(int)), point)
    found = list(pool.values())
    return np.array([found[place] for place in draws.permutation(len(found))[:runs]])


def test_draws_are_distributed_as_those_of_the_public_recipe() -> None:
    slow = np.vstack([slow_design(list(NATURAL.values()), 300, seed) for seed in range(3)])
    ours = np.vstack(
        [
            dirichlet_design(
                NATURAL,
                300,
                settings=DirichletSettings(seed=seed, natural=False, oversampling=20),
            ).mixtures
            for seed in range(3)
        ]
    )
    for place in range(len(NATURAL)):
        assert ks_2samp(slow[:, place], ours[:, place]).pvalue > 1e-3
        present = [(part[:, place] > 0).mean() for part in (slow, ours)]
        assert present[0] == pytest.approx(present[1], abs=0.07)
    # A proportion of mail is at most 15 times its natural 0.01.
    assert 0.1 < ours[:, 3].max() <= 0.15
    assert ours[ours > 0].min() >= 2e-4
    # One strength gives a Dirichlet's own mean and variance: m (1 - m) / (strength + 1).
    one = DirichletSettings(
        natural=False,
        strength_low=3,
        strength_high=3,
        times_natural=np.inf,
        power=1,
        least=0,
        apart=0,
        oversampling=2,
    )
    many = dirichlet_design({"a": 1, "b": 3}, 4000, settings=one).mixtures
    assert many.mean(axis=0) == pytest.approx([0.25, 0.75], abs=0.02)
    assert many[:, 0].var() == pytest.approx(0.25 * 0.75 / 4, rel=0.1)


amounts = st.lists(st.floats(0.01, 100), min_size=2, max_size=7)


@settings(max_examples=25, deadline=None)
@given(amounts, st.integers(3, 30), st.integers(0, 5), st.integers(0, 99), st.data())
def test_what_every_design_keeps_to(
    parts: list[float], runs: int, validation: int, seed: int, data: st.DataObject
) -> None:
    natural = {f"d{place}": part for place, part in enumerate(parts)}
    whole = sum(parts)
    # Limits that the natural mixture keeps to, so that there are mixtures.
    own = {name: part / whole for name, part in natural.items()}
    limits = MixtureLimits(
        floor={"d0": own["d0"] * data.draw(st.sampled_from([0.0, 0.01, 0.9]))},
        ceiling={"d1": max(own["d1"], data.draw(st.sampled_from([0.3, 1.0])))},
        supply=natural,
        tokens=whole * data.draw(st.sampled_from([0.5, 3.0])),
        epochs=4,
    )
    chosen = DirichletSettings(seed=seed, natural=data.draw(st.booleans()))
    low, high = limits.bounds(tuple(natural))
    found = dirichlet_design(natural, runs, validation=validation, limits=limits, settings=chosen)
    assert found.mixtures.shape == (runs + validation, len(parts))
    assert found.mixtures.sum(axis=1) == pytest.approx(1, abs=1e-9)
    assert (found.mixtures >= low - 1e-9).all()
    assert (found.mixtures <= high + 1e-9).all()
    apart = np.abs(found.mixtures[:, None] - found.mixtures).sum(axis=2)
    assert apart[~np.eye(len(apart), dtype=bool)].min() > 1e-5
    shuffled = dict(sorted(natural.items(), key=lambda entry: entry[1]))
    again = dirichlet_design(shuffled, runs, validation=validation, limits=limits, settings=chosen)
    order = [again.domains.index(name) for name in found.domains]
    assert again.mixtures[:, order].tolist() == found.mixtures.tolist()


def test_another_seed_gives_other_runs() -> None:
    one, two = (
        dirichlet_design(NATURAL, 24, settings=DirichletSettings(seed=seed)).mixtures
        for seed in (1, 2)
    )
    assert one[0].tolist() == two[0].tolist() == pytest.approx([0.6, 0.25, 0.14, 0.01])
    assert not np.allclose(one[1:], two[1:])


def test_corners_have_as_much_of_a_domain_as_may_be() -> None:
    limits = MixtureLimits(ceiling={"web": 0.8})
    found = dirichlet_design(NATURAL, 8, limits=limits, settings=DirichletSettings(corners=True))
    code, law, mail, web = found.mixtures[1:5]
    assert code.tolist() == pytest.approx([0, 1, 0, 0])
    assert law.tolist() == pytest.approx([0, 0, 1, 0])
    assert mail[3] == pytest.approx(0.15)
    assert mail[0] / mail[1] == pytest.approx(60 / 25)
    assert web[0] == pytest.approx(0.8)
    with pytest.raises(UserError, match="alone are 5 runs, and 4 were asked"):
        dirichlet_design(NATURAL, 4, settings=DirichletSettings(corners=True))


def test_every_domain_is_in_some_run() -> None:
    natural = {f"d{place}": 0.5**place for place in range(12)}
    for seed in range(5):
        found = dirichlet_design(natural, 12, settings=DirichletSettings(seed=seed, natural=False))
        assert (found.mixtures > 0).any(axis=0).all() or "no run has" in " ".join(found.notes)
    for seed in range(20):
        found = dirichlet_design(NATURAL, 16, settings=DirichletSettings(seed=seed))
        assert (found.mixtures[1:] > 0).sum(axis=0).min() >= 3
    scarce = DirichletSettings(natural=False, strength_high=0.1)
    few = dirichlet_design(natural, 2, settings=scarce)
    assert "a law cannot be fitted to these columns" in few.notes[-1]


def test_limits_that_few_draws_meet_move_the_others_and_say_so() -> None:
    limits = MixtureLimits(ceiling={"web": 0.3, "code": 0.3, "law": 0.3, "mail": 0.12})
    found = dirichlet_design(NATURAL, 12, limits=limits)
    assert len(found.mixtures) == 12
    assert "drawn outside the limits and moved" in found.notes[0]
    assert (found.mixtures <= np.array([0.3, 0.3, 0.3, 0.12]) + 1e-9).all()
    assert len(np.unique(found.mixtures.round(6), axis=0)) == 12


def test_one_domain_and_one_run() -> None:
    assert dirichlet_design({"web": 5}, 1).mixtures.tolist() == [[1.0]]
    bare = DirichletSettings(natural=False)
    assert dirichlet_design({"web": 5}, 1, settings=bare).mixtures.tolist() == [[1.0]]
    with pytest.raises(UserError, match="'web' alone makes 1 mixture, and 3 runs"):
        dirichlet_design({"web": 5}, 3)
    assert dirichlet_design(NATURAL, 1).mixtures.shape == (1, 4)
    assert dirichlet_design({"web": 5, "code": 1}, 40).mixtures.shape == (40, 2)


def test_domains_of_which_there_is_nothing_are_left_out_and_told() -> None:
    limits = MixtureLimits(supply={"mail": 0}, tokens=100)
    found = dirichlet_design({**NATURAL, "chat": 0}, 6, limits=limits)
    assert found.domains == ("web", "code", "law")
    assert found.notes == (
        "chat is left out: its natural share is 0",
        "mail is left out: the limits keep it at 0",
    )


@pytest.mark.parametrize(
    ("natural", "limits", "what"),
    [
        ({}, {}, "no domains"),
        ({"web": -1, "code": 1}, {}, "'web' has -1"),
        ({"web": float("nan"), "code": 1}, {}, "'web' has nan"),
        ({"web": 0, "code": 0}, {}, "all shares are 0"),
        ({"web": 0, "code": 1}, {"floor": {"web": 0.1}}, "'web' has a floor"),
        ({"web": 0, "code": 1}, {"ceiling": {"code": 0.9}}, "reach 0.9 of the mixture"),
        ({"web": 0.99, "code": 0.01}, {"ceiling": {"web": 0.5}}, "15 times .* reach 0.65"),
        (NATURAL, {"supply": NATURAL, "tokens": 500}, "have too few tokens"),
        ({"web": 1, "code": 1}, {"floor": {"web": 0.5, "code": 0.5}}, "only 1 different mixtures"),
    ],
)
def test_what_no_design_can_keep_to(
    natural: dict[str, float], limits: dict[str, object], what: str
) -> None:
    with pytest.raises(UserError, match=what):
        dirichlet_design(natural, 6, limits=MixtureLimits.model_validate(limits))


def test_strengths_the_wrong_way_round_and_no_runs() -> None:
    with pytest.raises(UserError, match="least strength is 3 and the largest 1"):
        dirichlet_design(NATURAL, 6, settings=DirichletSettings(strength_low=3, strength_high=1))
    with pytest.raises(UserError, match="at least 1 run"):
        dirichlet_design(NATURAL, 0)


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_the_table(ending: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("designs") / f"runs.{ending}"
    found = dirichlet_design(NATURAL, 5, validation=2)
    found.save(path)
    table = read_table(path)
    assert table.columns == ["run", "split", "mix_web", "mix_code", "mix_law", "mix_mail"]
    assert table["run"].to_list() == list(range(7))
    assert table["run"].dtype == pl.Int64
    assert table["split"].to_list() == ["train"] * 5 + ["validation"] * 2
    assert table.drop("run", "split").to_numpy() == pytest.approx(found.mixtures, abs=1e-15)
    with pytest.raises(UserError, match=r"cannot tell the format of '.txt'"):
        found.save(path.with_suffix(".txt"))


def test_epochs_of_a_design() -> None:
    found = dirichlet_design({"web": 3, "code": 1}, 1)
    rows = found.summary(MixtureLimits(supply={"web": 150, "code": 10}, tokens=100))
    assert [row["mean"] for row in rows] == pytest.approx([0.75, 0.25])
    assert [row["epochs"] for row in rows] == pytest.approx([0.5, 2.5])
    assert [row["repeated"] for row in rows] == [0, 1]
    assert "epochs" not in found.summary()[0]

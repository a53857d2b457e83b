"""The best mixture: against what is known to be best, under limits, and what it says of itself."""

from itertools import product

import numpy as np
import pytest

from tamis.scoring.fits import Fitted, law
from tamis.scoring.mixture_runs import Runs
from tamis.selectors.mixture_constraints import MixtureLimits, project
from tamis.selectors.mixture_optimum import optimise, pareto
from tamis.storage.errors import UserError

DOMAINS = ("arxiv", "code", "web")


def made_fit(name: str = "mixing_law", noise: float = 0.003, **params: object) -> Fitted:
    """Fitted to two targets that pull apart: code wants code, web wants web and a little arxiv."""
    draws = np.random.default_rng(0)
    shares = draws.dirichlet(np.full(3, 0.7), 150)
    parts = np.array([[0.3, -3.0, 0.5], [-0.6, 0.4, -2.5]])
    losses = 2 + np.exp(shares @ parts.T) + draws.normal(0, noise, (150, 2))
    runs = Runs(DOMAINS, shares, {}, ("loss_code", "loss_web"), losses)
    return law(name, **params).fit(runs)


@pytest.fixture(scope="module")
def smooth() -> Fitted:
    return made_fit()


@pytest.fixture(scope="module")
def trees() -> Fitted:
    return made_fit("regmix", learning_rate=0.1, trees=100, leaf_rows=5)


def grid(step: float = 0.01) -> np.ndarray:
    """All mixtures of three domains on a grid."""
    ticks = np.round(np.arange(0, 1 + step / 2, step), 10)
    found = [(a, b, 1 - a - b) for a, b in product(ticks, ticks) if a + b <= 1 + 1e-9]
    return np.maximum(np.array(found), 0)


WEIGHTS = {"loss_code": 0.6, "loss_web": 0.4}
LIMITS = MixtureLimits(floor={"arxiv": 0.1}, ceiling={"code": 0.45}, beyond_runs=True)


def allowed(points: np.ndarray) -> np.ndarray:
    return points[(points[:, 0] >= 0.1 - 1e-9) & (points[:, 1] <= 0.45 + 1e-9)]


@pytest.mark.parametrize("limits", [MixtureLimits(beyond_runs=True), LIMITS])
def test_no_mixture_of_a_grid_is_better(smooth: Fitted, limits: MixtureLimits) -> None:
    points = grid() if not limits.floor else allowed(grid())
    values = smooth.predict(points).value @ [0.6, 0.4]
    found = optimise(smooth, WEIGHTS, limits=limits)
    assert found.objective <= values.min() + 1e-9
    assert found.objective == pytest.approx(values.min(), abs=1e-3)
    assert found.mixture.sum() == pytest.approx(1)
    assert found.prediction.value[0] @ [0.6, 0.4] == pytest.approx(found.objective)


def test_trees_do_as_well_as_a_grid_and_better_than_the_mean_of_draws(trees: Fitted) -> None:
    best = optimise(trees, WEIGHTS, ranges=False)
    values = trees.predict(grid()).value @ [0.6, 0.4]
    assert best.objective <= values.min() + 2e-3
    published = optimise(trees, WEIGHTS, method="regmix", ranges=False)
    assert best.objective <= published.objective


def test_ranges_hold_all_mixtures_that_are_about_as_good(smooth: Fitted) -> None:
    found = optimise(smooth, WEIGHTS, limits=LIMITS)
    points = allowed(grid())
    good = points[smooth.predict(points).value @ [0.6, 0.4] <= found.objective + found.tolerance]
    for place, domain in enumerate(DOMAINS):
        low, high = found.ranges[domain]
        assert low - 1e-6 <= good[:, place].min() < low + 0.02
        assert high - 0.02 < good[:, place].max() <= high + 1e-6


def test_ranges_of_trees_hold_what_is_good(trees: Fitted) -> None:
    found = optimise(trees, "loss_web")
    for place, domain in enumerate(DOMAINS):
        low, high = found.ranges[domain]
        assert low <= found.mixture[place] <= high
    assert found.ranges["web"][0] > 0.3


def test_supply_and_repetition(smooth: Fitted) -> None:
    supply = {"arxiv": 1e9, "code": 2e8, "web": 4e9}
    limits = MixtureLimits(supply=supply, tokens=4e9, epochs=2)
    found = optimise(smooth, "loss_code", limits=limits)
    assert found.mixture[1] == pytest.approx(0.1)  # 2 * 2e8 of 4e9
    assert found.binding["code"] == "supply"
    assert found.natural is not None  # the supply's own mixture, to compare with
    assert found.natural[0] > found.objective


def test_a_gain_within_the_error_of_the_fit_is_told(smooth: Fitted) -> None:
    best = optimise(smooth, "loss_code")
    near = dict(zip(DOMAINS, best.mixture + np.array([0.01, -0.02, 0.01]), strict=True))
    (note,) = optimise(smooth, "loss_code", natural=near).notes
    assert "is not told apart from the error of the fit" in note
    assert not optimise(smooth, "loss_code", natural={"arxiv": 1, "code": 1, "web": 2}).notes


def test_the_natural_mixture_draws_the_best_towards_it(smooth: Fitted) -> None:
    natural = {"arxiv": 1, "code": 1, "web": 2}
    shares = np.array([0.25, 0.25, 0.5])
    away = []
    for kl in (0, 0.1, 1, 100):
        found = optimise(smooth, "loss_code", natural=natural, kl=kl)
        away.append(np.abs(found.mixture - shares).sum())
    assert sorted(away, reverse=True) == away
    assert away[-1] < 0.02
    points = grid()
    ratio = np.where(points > 0, points / shares, 1)
    values = smooth.predict(points).value[:, 0] + 0.1 * (points * np.log(ratio)).sum(axis=1)
    assert optimise(smooth, "loss_code", natural=natural, kl=0.1).objective <= values.min() + 1e-9


def test_mixtures_that_no_run_had_take_leave() -> None:
    draws = np.random.default_rng(0)
    shares = draws.dirichlet(np.full(3, 30), 60)
    losses = 2 + np.exp(shares @ np.array([[0.3], [-3.0], [0.5]])) + draws.normal(0, 1e-3, (60, 1))
    fitted = law("mixing_law").fit(Runs(DOMAINS, shares, {}, ("loss",), losses))
    kept = optimise(fitted)
    assert kept.mixture[1] == pytest.approx(shares[:, 1].max() + 0.01)
    assert kept.binding["code"] == "runs"
    assert kept.notes == ()
    beyond = optimise(fitted, limits=MixtureLimits(beyond_runs=True))
    assert beyond.mixture[1] == pytest.approx(1)
    assert "code: no run had 1.000" in beyond.notes[1]
    with pytest.raises(UserError, match="keeps to the proportions that the runs had"):
        optimise(fitted, limits=MixtureLimits(ceiling={"code": 0.01, "web": 0.01}))


@pytest.mark.parametrize(
    ("limits", "what"),
    [
        ({"floor": {"law": 0.1}}, "floor: no domain 'law' in the runs; there: arxiv, code, web"),
        ({"floor": {"code": 1.5}}, "floor of 'code': expected between 0 and 1, found 1.5"),
        ({"floor": {"code": 0.8, "web": 0.4}}, "floors sum to 1.2; lower some of them by 0.2"),
        ({"floor": {"code": 0.5}, "ceiling": {"code": 0.2}}, "floor of 0.5 above its ceiling"),
        (
            {"ceiling": {"arxiv": 0.1, "code": 0.2, "web": 0.3}},
            "together reach 0.6 .*raise some of them by 0.4",
        ),
        ({"supply": {"code": 1e9}}, "without the tokens wanted"),
        (
            {"supply": {"code": 1e8}, "tokens": 4e9, "floor": {"code": 0.5}},
            "floor of 'code' is 0.5, and 1e.08 tokens seen 4 times are 0.1 of 4e.09; lower the "
            "floor to 0.1, want 8e.08 tokens, or allow 20 epochs",
        ),
        (
            {"supply": {"arxiv": 1e8, "code": 1e8, "web": 3e8}, "tokens": 4e9},
            "reach 0.5 .*'arxiv', 'code', 'web' have too few tokens.*want 2e.09 tokens, allow 8",
        ),
        (
            {"supply": {"code": 1e8, "web": 1e8}, "tokens": 4e9, "ceiling": {"arxiv": 0.2}},
            "reach 0.4 .*'code', 'web' have too few.*want 1e.09 tokens, allow 16 epochs",
        ),
    ],
)
def test_limits_that_no_mixture_keeps_to(limits: dict[str, object], what: str) -> None:
    with pytest.raises(UserError, match=what):
        MixtureLimits.model_validate(limits).bounds(DOMAINS)


def test_what_an_infeasible_supply_is_told_to_do_mends_it() -> None:
    supply = {"code": 1e8, "web": 1e8}
    ceiling = {"arxiv": 0.2}
    for mend in ({"tokens": 1e9, "epochs": 4}, {"tokens": 4e9, "epochs": 16}):
        _, high = MixtureLimits(supply=supply, ceiling=ceiling, **mend).bounds(DOMAINS)
        assert high.sum() >= 1


def test_targets_and_weights_that_do_not_fit(smooth: Fitted) -> None:
    with pytest.raises(UserError, match="no target 'loss_law'; there: 'loss_code', 'loss_web'"):
        optimise(smooth, "loss_law")
    with pytest.raises(UserError, match="all targets weigh 0"):
        optimise(smooth, {"loss_code": 0.0})
    with pytest.raises(UserError, match="expected 0 or more, found -1"):
        optimise(smooth, {"loss_code": -1.0})
    with pytest.raises(UserError, match="no mixture to stay near"):
        optimise(smooth, kl=1.0)
    with pytest.raises(UserError, match="natural mixture: no share of 'code'"):
        optimise(smooth, natural={"arxiv": 1, "web": 1})


def test_the_front_holds_what_the_targets_cost_each_other(smooth: Fitted) -> None:
    free = MixtureLimits(beyond_runs=True)
    front = pareto(smooth, ["loss_code", "loss_web"], points=11, limits=free)
    losses = np.array([list(point["losses"].values()) for point in front])
    assert len(front) >= 9
    assert (np.diff(losses[:, 0]) > 0).all()
    assert (np.diff(losses[:, 1]) < 0).all()
    # No mixture of a grid is better in both than a point of the front.
    values = smooth.predict(grid(0.02)).value
    for point in losses:
        assert not ((values < point - 1e-6).all(axis=1)).any()
    with pytest.raises(UserError, match="at least two targets"):
        pareto(smooth, ["loss_code"])


def test_one_target_that_all_agree_on_is_a_front_of_one_point() -> None:
    draws = np.random.default_rng(0)
    shares = draws.dirichlet(np.ones(3), 60)
    losses = shares @ np.array([[3.0, 4.0], [2.0, 1.0], [3.0, 5.0]]) + draws.normal(
        0, 1e-3, (60, 2)
    )
    fitted = law("linear").fit(Runs(DOMAINS, shares, {}, ("a", "b"), losses))
    front = pareto(fitted, ["a", "b"], limits=MixtureLimits(beyond_runs=True))
    assert [point["mixture"]["code"] for point in front] == [pytest.approx(1)]


def test_projections_are_the_nearest_mixtures() -> None:
    draws = np.random.default_rng(0)
    low, high = np.array([0.1, 0, 0.05]), np.array([0.5, 0.6, 0.7])
    points = draws.normal(0, 1, (50, 3))
    found = project(points, low, high)
    assert np.allclose(found.sum(axis=1), 1)
    others = grid(0.01)
    others = others[((others >= low - 1e-9) & (others <= high + 1e-9)).all(axis=1)]
    for point, near in zip(points, found, strict=True):
        best = ((others - point) ** 2).sum(axis=1).min()
        assert ((near - point) ** 2).sum() <= best + 1e-9


def test_one_domain_is_all_of_the_mixture() -> None:
    draws = np.random.default_rng(0)
    losses = draws.normal(3, 0.1, (10, 1))
    runs = Runs(("web",), np.ones((10, 1)), {}, ("loss",), losses)
    with pytest.raises(UserError, match="1 different mixtures"):
        law("linear").fit(runs)

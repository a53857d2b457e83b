"""Laws of mixtures: what they recover of laws that are known, what they state, what they refuse."""

import json
from pathlib import Path

import lightgbm
import numpy as np
import pytest
from scipy.optimize import check_grad, minimize
from scipy.stats import spearmanr

from tamis.scoring.cluster_intervals import spread
from tamis.scoring.compare_fits import compare
from tamis.scoring.fits import LAWS, Fitted, folds_of, law, load_fit, load_laws, spearman
from tamis.scoring.mixing_law import MixingLaw, NestedMixingLaw, pinned
from tamis.scoring.mixture_runs import Inputs, Runs, covariate_inputs
from tamis.scoring.power_law import fit_curves, plateau
from tamis.scoring.regmix import Linear, RegMix
from tamis.scoring.task_ladder import TaskLadder
from tamis.scoring.tree_ensemble import ensemble_of
from tamis.storage.errors import UserError

DOMAINS = ("arxiv", "code", "web", "wiki")


def made_runs(
    count: int = 60, *, domains: int = 3, noise: float = 0.01, seed: int = 0, targets: int = 1
) -> tuple[Runs, np.ndarray, np.ndarray]:
    """Runs of known mixing laws: the runs, their constants [k] and exponents [k, 1, d]."""
    draws = np.random.default_rng(seed)
    exponents = draws.normal(0, 1.5, (targets, 1, domains)) - 0.2
    constant = 2 + draws.random(targets)
    shares = draws.dirichlet(np.ones(domains), count)
    losses = (
        constant + np.exp(shares @ exponents[:, 0].T) + draws.normal(0, noise, (count, targets))
    )
    names = tuple(f"loss_{i}" for i in range(targets))
    return Runs(DOMAINS[:domains], shares, {}, names, losses), constant, exponents


def numbers(fitted: Fitted) -> dict[str, float]:
    return {c.name: c.value for c in fitted.model.coefficients()}


# The mixing law


def test_a_law_without_noise_is_recovered() -> None:
    runs, constant, exponents = made_runs(80, domains=4, noise=0, targets=3)
    model = MixingLaw(ridge=0).train(runs)
    assert np.allclose(model.constant, constant, atol=1e-3)
    assert np.allclose(model.exponents, exponents, atol=5e-3)
    values = numbers(Fitted(MixingLaw(), runs.domains, runs.targets[:1], model, {}))
    assert abs(sum(v for name, v in values.items() if name.startswith("t["))) < 1e-9


def test_the_law_is_the_minimum_that_another_search_finds() -> None:
    """Against scipy on the same Huber loss, from the truth."""
    runs, constant, exponents = made_runs(50, noise=0.05, seed=3)
    model = MixingLaw(ridge=0, delta=0.03).train(runs)

    def loss(x: np.ndarray) -> float:
        away = np.abs(x[0] + np.exp(runs.mixtures @ x[1:]) - runs.losses[:, 0])
        return float(np.where(away <= 0.03, away**2 / 2, 0.03 * (away - 0.015)).mean())

    options = {"xatol": 1e-10, "fatol": 1e-14, "maxiter": 20000, "maxfev": 20000}
    other = minimize(
        loss, np.r_[constant, exponents.ravel()], method="Nelder-Mead", options=options
    )
    ours = loss(np.r_[model.constant, model.exponents.ravel()])
    assert ours <= other.fun * (1 + 1e-5)


def test_outlying_runs_move_the_law_little() -> None:
    runs, constant, _ = made_runs(60, noise=0.005)
    runs.losses[::15] += 3.0
    model = MixingLaw().train(runs)
    assert abs(model.constant[0] - constant[0]) < 0.05


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """40 tables of 5 coefficients each, intervals of 90 %."""
    held = []
    for seed in range(40):
        runs, constant, exponents = made_runs(48, noise=0.02, seed=seed)
        model = MixingLaw(starts=2).train(runs)
        truth = pinned(constant, exponents)
        held.append((model.low <= truth) & (truth <= model.high))
    assert 0.85 <= np.mean(held) <= 0.97


def test_spread_of_groups_is_that_of_whole_matrices() -> None:
    """CR2 and its degrees of freedom, group by group, against matrices of all runs."""
    draws = np.random.default_rng(3)
    group = draws.permutation(np.repeat(np.arange(11), [1, 2, 3, 1, 2, 3, 1, 1, 4, 1, 1]))
    jacobian, score = draws.normal(size=(20, 3)), draws.normal(size=20)
    contrast = draws.normal(size=(4, 3))
    found = spread(jacobian, score, group, contrast)
    inverse = np.linalg.inv(jacobian.T @ jacobian)
    rest = np.eye(20) - jacobian @ inverse @ jacobian.T
    moves = np.zeros((11, 20, 4))
    for number in range(11):
        own = np.flatnonzero(group == number)
        values, axes = np.linalg.eigh(rest[np.ix_(own, own)])
        root = axes @ np.diag(values**-0.5) @ axes.T
        moves[number][own] = root @ jacobian[own] @ inverse @ contrast.T
    for q in range(4):
        assert found.error[q] ** 2 == pytest.approx(((moves[:, :, q] @ score) ** 2).sum())
        eigen = np.linalg.eigvalsh(moves[:, :, q] @ rest @ moves[:, :, q].T)
        assert found.freedom[q] == pytest.approx(eigen.sum() ** 2 / (eigen**2).sum())
    assert np.isnan(spread(jacobian, score, group % 3, contrast).error).all()


def test_intervals_of_few_runs_are_unknown_and_not_narrow() -> None:
    runs, _, _ = made_runs(4, noise=0.01)
    model = MixingLaw().train(runs)
    assert np.isnan(model.low).all()


def test_prediction_intervals_cover_new_runs() -> None:
    covered = []
    for seed in range(20):
        runs, _, _ = made_runs(100, noise=0.03, seed=seed)
        fitted = MixingLaw(starts=2).fit(runs.take(np.arange(50)))
        new = runs.take(np.arange(50, 100))
        found = fitted.predict(new, level=0.8)
        covered.append((found.low <= new.losses) & (new.losses <= found.high))
    assert 0.74 <= np.mean(covered) <= 0.88


def test_hidden_domains_are_two_exponentials() -> None:
    draws = np.random.default_rng(1)
    shares = draws.dirichlet(np.ones(3), 150)
    parts = np.array([[-3.0, 0.5, 0.5], [1.0, 0.2, -4.0]])
    losses = 1.5 + np.exp(shares @ parts.T).sum(axis=1) + draws.normal(0, 0.003, 150)
    runs = Runs(DOMAINS[:3], shares, {}, ("loss",), losses[:, None])
    error = [MixingLaw(components=c).fit(runs).evidence["held_out"]["loss"]["rmse"] for c in (1, 2)]
    assert error[1] < 0.005 < 5 * error[1] < error[0]


def test_gradients_of_all_smooth_laws() -> None:
    runs, _, _ = made_runs(60, targets=2)
    runs = Runs(runs.domains, runs.mixtures, {}, ("loss_arxiv", "loss_web"), runs.losses)
    for name, params in (
        ("mixing_law", {"components": 2}),
        ("linear", {}),
        ("bimix", {}),
        ("autoscale", {}),
    ):
        model = law(name, **params).train(runs)
        for k in range(2):

            def value(r: np.ndarray, model=model, k=k) -> float:
                return float(model.mean(Inputs(runs.domains, r[None]))[0, k])

            def slope(r: np.ndarray, model=model, k=k) -> np.ndarray:
                return model.gradient(Inputs(runs.domains, r[None]))[0, k]

            assert check_grad(value, slope, np.array([0.3, 0.3, 0.4])) < 1e-5, name


def test_domains_that_cannot_be_told_apart() -> None:
    runs, _, _ = made_runs(40, domains=2)
    half = np.column_stack(
        [runs.mixtures[:, :1], runs.mixtures[:, 1:] / 2, runs.mixtures[:, 1:] / 2]
    )
    twins = Runs(DOMAINS[:3], half, {}, runs.targets, runs.losses)
    with pytest.raises(UserError, match=r"'web' follows from the others"):
        MixingLaw().fit(twins)


def test_a_domain_of_one_run_does_not_stop_the_fit() -> None:
    """Where that run is held out, the domain counts as one like the others."""
    runs, _, _ = made_runs(60, noise=0.01)
    shares = np.column_stack([runs.mixtures, np.zeros(60)])
    shares[7] = [*shares[7, :-1] * 0.8, 0.2]
    rare = Runs((*runs.domains, "rare"), shares, {}, runs.targets, runs.losses)
    error = MixingLaw(starts=2).fit(rare).evidence["held_out"][runs.targets[0]]["rmse"]
    assert error < 0.1 * runs.losses.std()


def test_too_few_runs() -> None:
    runs, _, _ = made_runs(5, domains=4)
    with pytest.raises(
        UserError,
        match=r"at least 5 different mixtures, and 5 leave 4.*at least 7 are needed",
    ):
        MixingLaw().fit(runs)
    with pytest.raises(UserError, match=r"regmix takes at least 42 different mixtures"):
        RegMix().fit(runs)


# Evidence


def test_held_out_errors_are_those_of_runs_not_seen() -> None:
    runs, _, _ = made_runs(50, targets=2, noise=0.05)
    fitted = Linear().fit(runs)
    fold = np.array(fitted.evidence["fold"])
    assert sorted(np.bincount(fold)) == [10] * 5
    away = np.empty((50, 2))
    for number in range(5):
        held = fold == number
        weights = np.linalg.lstsq(runs.mixtures[~held], runs.losses[~held])[0]
        away[held] = runs.losses[held] - runs.mixtures[held] @ weights
    for k, target in enumerate(runs.targets):
        assert np.allclose(fitted.evidence["residuals"][target], away[:, k])
        stated = fitted.evidence["held_out"][target]
        assert stated["rmse"] == pytest.approx(np.sqrt(np.mean(away[:, k] ** 2)))
        assert stated["rmse"] > fitted.evidence["in_sample"][target]["rmse"]


def test_runs_of_one_mixture_are_held_out_together_in_any_order() -> None:
    runs, _, _ = made_runs(20)
    doubled = runs.take(np.r_[np.arange(20), np.arange(20)])
    fold = folds_of(doubled, 5, 0)
    assert (fold[:20] == fold[20:]).all()
    shuffle = np.random.default_rng(0).permutation(40)
    assert (folds_of(doubled.take(shuffle), 5, 0) == fold[shuffle]).all()


def test_spearman_is_scipys() -> None:
    draws = np.random.default_rng(0)
    a, b = draws.integers(0, 8, (2, 100)).astype(float)
    assert spearman(a, b) == pytest.approx(spearmanr(a, b)[0])


@pytest.mark.parametrize("name", ["mixing_law", "regmix", "linear", "bimix", "autoscale"])
def test_a_saved_fit_predicts_the_same(name: str, tmp_path: Path) -> None:
    runs, _, _ = made_runs(80, targets=2)
    runs = Runs(runs.domains, runs.mixtures, {}, ("loss_arxiv", "loss_web"), runs.losses)
    params = {"regmix": {"trees": 30, "leaf_rows": 5}}
    fitted = law(name, **params.get(name, {})).fit(runs)
    fitted.save(tmp_path / "fit.json")
    again = load_fit(tmp_path / "fit.json")
    new = made_runs(10, seed=9)[0].mixtures
    for one, other in zip(fitted.predict(new), again.predict(new), strict=True):
        assert np.array_equal(one, other)
    assert again.fit == fitted.fit
    assert again.evidence == fitted.evidence
    same = law(name, **params.get(name, {})).fit(runs)
    assert json.dumps(same.model.state()) == json.dumps(fitted.model.state())
    text = (tmp_path / "fit.json").read_text()
    assert "NaN" not in text
    saved = json.loads(text)
    assert saved["evidence"]["digest"] == runs.digest()
    assert "numpy" in saved["evidence"]["libraries"]


def test_files_that_are_no_fit(tmp_path: Path) -> None:
    place = tmp_path / "fit.json"
    with pytest.raises(UserError, match=r"no such file"):
        load_fit(place)
    place.write_text("{}")
    with pytest.raises(UserError, match=r"expected 'tamis fit 1'"):
        load_fit(place)
    place.write_text("no JSON")
    with pytest.raises(UserError, match=r"not JSON"):
        load_fit(place)
    runs, _, _ = made_runs(30)
    Linear().fit(runs).save(place)
    saved = json.loads(place.read_text())
    place.write_text(json.dumps({**saved, "version": 0}))
    with pytest.raises(UserError, match=r"linear of version 0.*fit again"):
        load_fit(place)


def test_laws_tell_what_they_are() -> None:
    for name, cls in load_laws().items():
        assert LAWS[name] is cls
        assert cls.paper
        assert cls.version >= 1
        described = {key for key, field in cls.model_fields.items() if field.description}
        assert described >= cls.model_fields.keys() - {"law"}
    with pytest.raises(UserError, match=r"no law named 'magic'; known: autoscale"):
        law("magic")
    with pytest.raises(UserError, match=r"mixing_law: components"):
        law("mixing_law", components=0)


def test_predictions_of_mixtures_that_are_none() -> None:
    runs, _, _ = made_runs(30)
    fitted = Linear().fit(runs)
    with pytest.raises(UserError, match=r"row 1: the proportions sum to 0.9"):
        fitted.predict([0.3, 0.3, 0.3])
    with pytest.raises(UserError, match=r"expected 3 proportions a mixture, found 2"):
        fitted.predict([0.5, 0.5])
    assert np.isinf(fitted.half_width(0.999)).all()


# Trees


def test_trees_are_summed_as_lightgbm_does() -> None:
    draws = np.random.default_rng(0)
    x = draws.dirichlet(np.full(6, 0.3), 400)
    x[:50] = np.round(x[:50], 1)  # values on thresholds, zeros among them
    for leaves, rounds in ((2, 5), (31, 60), (64, 40)):
        data = lightgbm.Dataset(x, draws.normal(size=400) + 3 * x[:, 0])
        params = {"num_leaves": leaves, "min_data_in_leaf": 1, "verbosity": -1, "num_threads": 1}
        booster = lightgbm.train(params, data, rounds)
        ours = ensemble_of(booster.model_to_string(), 6)
        rows = np.concatenate([x, draws.dirichlet(np.ones(6), 200), np.eye(6)])
        assert np.array_equal(ours.predict(rows), booster.predict(rows))


def test_a_model_without_a_split_is_a_constant() -> None:
    x = np.random.default_rng(0).random((10, 3))
    params = {"min_data_in_leaf": 20, "verbosity": -1, "num_threads": 1}
    booster = lightgbm.train(params, lightgbm.Dataset(x, x[:, 0]), 3)
    ours = ensemble_of(booster.model_to_string(), 3)
    assert np.array_equal(ours.predict(x), booster.predict(x))


def test_runs_that_stop_the_boosting_are_not_trained_on() -> None:
    runs, _, _ = made_runs(200, noise=0.2)
    stopped = RegMix().train(runs)
    assert 10 < len(stopped.ensembles[0].leaves) < 1000
    seen = RegMix().train(runs, stopping=runs)
    assert len(seen.ensembles[0].leaves) == 1000


def test_weights_of_least_squares_are_losses_of_domains_alone() -> None:
    truth, held = np.array([2.0, 3.0, 4.0]), []
    for seed in range(60):
        draws = np.random.default_rng(seed)
        shares = draws.dirichlet(np.ones(3), 100)
        losses = shares @ truth[:, None] + draws.normal(0, 0.1, (100, 1))
        model = Linear().train(Runs(DOMAINS[:3], shares, {}, ("loss",), losses))
        found = np.array([(c.value, c.low, c.high) for c in model.coefficients()])
        assert np.allclose(found[:, 0], truth, atol=0.15)
        held.append((found[:, 1] <= truth) & (truth <= found[:, 2]))
    assert 0.84 <= np.mean(held) <= 0.96


# Steps, sizes, other losses


def test_step_curves_share_an_exponent() -> None:
    draws = np.random.default_rng(0)
    floor, factor = np.array([2.0, 2.5, 3.0]), np.array([4.0, 8.0, 2.0])
    steps = np.tile(np.geomspace(100, 10000, 8), 3)
    curve = np.repeat(np.arange(3), 8)
    losses = floor[curve] + factor[curve] / steps**0.37 + draws.normal(0, 1e-4, 24)
    found = fit_curves(steps, losses, curve)
    assert found.exponent == pytest.approx(0.37, abs=0.005)
    assert np.allclose(found.floor, floor, atol=0.01)
    assert np.allclose(found.at(1e5, [0, 1, 2]), floor + factor / 1e5**0.37, atol=0.01)
    with pytest.raises(UserError, match=r"too few for a power law"):
        fit_curves([1, 2, 1, 2], [3.0, 2.0, 3.0, 2.0], [0, 0, 1, 1])
    with pytest.raises(UserError, match=r"above 0"):
        fit_curves([0, 2, 3], [3.0, 2.0, 1.5], [0, 0, 0])


def test_a_plateau_is_told_from_a_slope() -> None:
    steps = np.geomspace(100, 1600, 9)
    assert not plateau(steps, 2 + 10 / steps**0.5, least_gain=0.05).stop
    found = plateau(steps, 2 + 10 / steps**0.5, least_gain=0.1)
    assert found.stop
    assert found.gain == pytest.approx(10 / 40 - 10 / np.sqrt(3200), abs=1e-6)


def test_nested_laws_predict_steps_and_sizes_that_no_run_had() -> None:
    runs, _, _ = made_runs(30, noise=0)
    steps, size = (a.ravel() for a in np.meshgrid([500, 1000, 2000, 4000], [1e6, 4e6, 1.6e7]))
    many = runs.take(np.repeat(np.arange(30), len(steps)))
    steps, size = np.tile(steps, 30), np.tile(size, 30)
    base = many.losses[:, 0]
    losses = base + 20 / steps**0.5 + 30 / size**0.3
    table = Runs(
        runs.domains, many.mixtures, {"steps": steps, "size": size}, ("l",), losses[:, None]
    )
    with pytest.raises(UserError, match=r"several values of 'size'; name to_size"):
        NestedMixingLaw(to_steps=1e5).fit(table)
    with pytest.raises(UserError, match=r"neither to_steps nor to_size"):
        NestedMixingLaw().fit(table)
    fitted = NestedMixingLaw(to_steps=1e5, to_size=1e9).fit(table)
    wanted = runs.losses[:, 0] + 20 / 1e5**0.5 + 30 / 1e9**0.3
    assert np.allclose(fitted.predict(runs.mixtures).value[:, 0], wanted, atol=0.01)
    assert any("exponent of steps 0.5" in note for note in fitted.evidence["notes"])
    assert any("exponent of size 0.3" in note for note in fitted.evidence["notes"])
    assert fitted.evidence["runs"] == 30


def test_a_loss_from_another_loss() -> None:
    x = np.linspace(2.2, 4, 30)
    y = 1.3 * (x - 1.7) ** 0.8 + 1.1 + np.random.default_rng(0).normal(0, 1e-3, 30)
    runs = Runs((), np.zeros((30, 0)), {"loss_a": x}, ("loss_b",), y[:, None])
    fitted = law("loss_to_loss", source="loss_a", source_floor=1.7).fit(runs)
    found = numbers(fitted)
    assert found["K"] == pytest.approx(1.3, abs=0.02)
    assert found["kappa"] == pytest.approx(0.8, abs=0.02)
    assert found["E1"] == pytest.approx(1.1, abs=0.02)
    ahead = fitted.predict(covariate_inputs(loss_a=[2.0])).value[0, 0]
    assert ahead == pytest.approx(1.3 * 0.3**0.8 + 1.1, abs=0.01)
    free = law("loss_to_loss", source="loss_a").fit(runs)
    assert free.evidence["held_out"]["loss_b"]["rmse"] < 0.003
    with pytest.raises(UserError, match=r"a run has 2.2"):
        law("loss_to_loss", source="loss_a", source_floor=2.5).fit(runs)
    with pytest.raises(UserError, match=r"reads 'loss_c'"):
        law("loss_to_loss", source="loss_c").fit(runs)


def test_a_ladder_reaches_a_larger_model() -> None:
    size, ratio = (a.ravel() for a in np.meshgrid([1.9e8, 3.7e8, 7.6e8, 1.3e9], [1, 2, 5, 10]))
    tokens = 20 * size * ratio
    loss = 200 / size**0.3 + 400 / tokens**0.32 + 0.6
    accuracy = 0.25 + 0.7 / (1 + np.exp(6 * (loss - 1.25)))
    runs = Runs(
        (),
        np.zeros((16, 0)),
        {"size": size, "tokens": tokens},
        ("l", "a"),
        np.column_stack([loss, accuracy]),
    )
    fitted = TaskLadder(loss="l", accuracy="a").fit(runs)
    found = fitted.predict(covariate_inputs(size=[7e9], tokens=[4e12])).value[0]
    truth = 200 / 7e9**0.3 + 400 / 4e12**0.32 + 0.6
    assert found[0] == pytest.approx(truth, abs=0.005)
    assert found[1] == pytest.approx(0.25 + 0.7 / (1 + np.exp(6 * (truth - 1.25))), abs=0.01)
    assert "largest size, held out" in fitted.model.notes()[0]
    runs.losses[0, 1] = 40
    with pytest.raises(UserError, match=r"divide percentages"):
        TaskLadder(loss="l", accuracy="a").fit(runs)


def test_powers_of_a_domains_own_share() -> None:
    draws = np.random.default_rng(0)
    shares = draws.dirichlet(np.ones(3), 90)
    steps = np.tile([500.0, 1000.0, 2000.0], 30)
    losses = np.maximum(shares[:, 1], 1e-3) ** -0.12 * (30 * steps**-0.4 + 1.7)
    runs = Runs(DOMAINS[:3], shares, {"steps": steps}, ("loss_code",), losses[:, None])
    found = numbers(law("bimix").fit(runs))
    for name, truth in {"alpha": 0.12, "B": 30, "beta": 0.4, "C": 1.7}.items():
        assert found[name] == pytest.approx(truth, rel=0.03)
    with pytest.raises(UserError, match=r"'loss_x' is the loss of no domain"):
        law("bimix").fit(Runs(runs.domains, shares, {}, ("loss_x",), losses[:, None]))
    one = law("bimix", own={"loss_x": "code"}).fit(
        Runs(runs.domains, shares, {}, ("loss_x",), losses[:, None])
    )
    assert numbers(one)["alpha"] == pytest.approx(0.12, abs=0.05)


# Comparison


def test_the_law_that_made_the_runs_ranks_first() -> None:
    runs, _, _ = made_runs(60, noise=0.01)
    laws = [{"law": "linear"}, {"law": "bimix"}, {"law": "mixing_law"}]
    found = compare(runs, laws)
    assert found.rows[0]["law"] == "mixing_law"
    assert [row["rank"] for row in found.rows] == list(range(1, len(found.rows) + 1))
    assert found.laws[0]["law"] == "mixing_law"
    assert "bimix" in found.refused  # 'loss_0' is no domain's loss
    assert found.rows[0]["rmse_sd"] > 0
    with pytest.raises(UserError, match=r"no law could be fitted"):
        compare(runs, [{"law": "bimix"}])

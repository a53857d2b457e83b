"""Laws fitted again to resamples of their runs: how far apart they are."""

import numpy as np
import pytest

from tamis.scoring.fits import Model
from tamis.scoring.mixing_law import MixingLaw
from tamis.scoring.mixture_runs import Inputs, Runs
from tamis.scoring.regmix import Linear
from tamis.storage.errors import UserError
from tests.scoring.test_mixing_fits import DOMAINS, made_runs


def test_resampled_mixing_laws_lie_as_far_apart_as_intervals_say() -> None:
    """Two ways to the same spread: refits to resamples, and the sandwich."""
    runs, _, _ = made_runs(200, noise=0.01, targets=2)
    model = MixingLaw().train(runs)
    drawn = MixingLaw().resampled(runs, model, 100, 1)
    values = np.array([[c.value for c in one.coefficients()] for one in drawn])
    width = np.array([c.high - c.low for c in model.coefficients()])
    assert np.allclose(np.ptp(np.quantile(values, [0.05, 0.95], axis=0), axis=0), width, rtol=0.35)


def test_resampled_linear_laws_vary_as_least_squares_says() -> None:
    draws = np.random.default_rng(4)
    shares = draws.dirichlet(np.ones(3), 150)
    losses = shares @ np.array([[1.0], [2.0], [3.0]]) + draws.normal(0, 0.1, (150, 1))
    runs = Runs(DOMAINS[:3], shares, {}, ("loss",), losses)
    model = Linear().train(runs)
    weights = np.array(
        [
            one.mean(Inputs(DOMAINS[:3], np.eye(3)))[:, 0]
            for one in Linear().resampled(runs, model, 400, 0)
        ]
    )
    error = 0.1 * np.sqrt(np.diag(np.linalg.inv(shares.T @ shares)))
    assert weights.std(axis=0) == pytest.approx(error, rel=0.25)
    again = Linear().resampled(runs, model, 400, 0)[7]
    assert again.mean(Inputs(DOMAINS[:3], np.eye(3)))[:, 0].tolist() == weights[7].tolist()


def test_runs_of_one_mixture_are_resampled_together() -> None:
    shares = np.repeat(np.random.default_rng(0).dirichlet(np.ones(2), 3), 2, axis=0)
    runs = Runs(DOMAINS[:2], shares, {}, ("loss",), np.arange(6.0)[:, None])
    seen = []

    class Spy(Linear):
        def train(self, runs: Runs, *, evidence: bool = True) -> Model:
            seen.append(runs.losses[:, 0])
            return super().train(runs)

    Spy(law="linear").resampled(runs, Linear().train(runs), 8, 0)
    for losses in seen:
        assert sorted(losses[losses % 2 == 0] + 1) == sorted(losses[losses % 2 == 1])


def test_resamples_that_no_law_fits_are_told() -> None:
    runs, _, _ = made_runs(12)

    class Never(Linear):
        def train(self, runs: Runs, *, evidence: bool = True) -> Model:
            raise UserError("no")

    with pytest.raises(UserError, match="could not be fitted to 15 of 15 resamples"):
        Never(law="linear").resampled(runs, Linear().train(runs), 5, 0)

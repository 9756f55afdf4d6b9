"""Tests of linear_gaussian.py."""

import json

import numpy as np
import pytest

from conftest import page_text
from toy_experiments import linear_gaussian


def test_optimal_encoder_of_the_linear_case_against_samples():
    """v_i = Var(E[z_i | x]) and E[z_i z_hat_i] = v_i, with E[z | x] by least squares on samples."""
    random = np.random.default_rng(0)
    a = random.normal(size=(3, 4))
    p = random.uniform(0.2, 2, 4)
    z = random.normal(size=(200_000, 4))
    x = (z * np.sqrt(p)) @ a.T + 0.5 * random.normal(size=(200_000, 3))
    z_hat = x @ np.linalg.lstsq(x, z, rcond=None)[0]
    expected = linear_gaussian.variances(a, p, 0.5)
    np.testing.assert_allclose((z_hat**2).mean(0), expected, atol=0.01)
    np.testing.assert_allclose((z * z_hat).mean(0), expected, atol=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_the_scale_update_never_loses_information(seed):
    random = np.random.default_rng(seed)
    a = random.normal(size=(5, 8))
    sigma = random.uniform(0.1, 1)
    p, trace = linear_gaussian.dls_iterations(a, sigma, 300)
    assert np.diff(trace).min() > -1e-10 and trace[-1] > trace[0] + 0.01
    # v_i = p_i d/dp_i logdet(sigma^2 I + A diag(p) A^T), which is 2 p_i dI/dp_i, by finite differences
    steps = 1e-6 * np.eye(8)
    both = [[linear_gaussian.information(a, p + sign * step, sigma) for sign in (1, -1)] for step in steps]
    slope = np.array([(more - less) / 2e-6 for more, less in both])
    np.testing.assert_allclose(linear_gaussian.variances(a, p, sigma), 2 * p * slope, atol=1e-6)


def test_linear_gaussian_claims():
    result = linear_gaussian.main(steps=3000, learned_steps=1, moving_steps=1500, figure=False)
    assert result["margin_to_the_water_line"] >= 0.05 and result["water_filling_error"] < 1e-12
    assert result["largest_fall_of_information"] < 1e-10
    assert result["sum_v_rank_3_sigma_0.001"] == pytest.approx(3, abs=1e-5)
    fixed, moved = result["correlated"].values()
    assert (
        fixed["effective_dimensions"] > 4 and fixed["l_enc"] > 0.5
    )  # the fixed point of a fixed, correlated A
    assert moved["effective_dimensions"] < 2.1 and moved["l_enc"] < 0.05  # and what is left when A moves


def test_what_the_page_says_of_the_linear_case():
    kept = json.loads((linear_gaussian.RESULTS / "linear_gaussian.json").read_text())
    assert max(kept["learned_error_ema"], kept["learned_error_sma"]) < 0.02
    losses = [kept["correlated"][name]["l_enc"] for name in ("fixed A", "A moves, too")]
    said = f"L_enc stays at {losses[0]:.2f} for a fixed A, and falls to {losses[1]:.3f} when A learns, too"
    assert said in page_text("toy_experiments/README.md")


def test_water_filling_against_its_conditions():
    gains = np.array([2.0, 1.0, 0.5, 0.3])
    power, level = linear_gaussian.water_filling(gains, 1.0)
    wet = power > 0
    assert power.sum() == pytest.approx(4)
    assert power[wet] + 1 / gains[wet] ** 2 == pytest.approx(level)
    assert (1 / gains[~wet] ** 2 >= level).all() and not wet.all()


@pytest.mark.slow
def test_learned_linear_scale_within_two_percent():
    result = linear_gaussian.main(figure=False)
    assert result["learned_error_ema"] < 0.02 and result["learned_error_sma"] < 0.02

"""Weighted draws: how many they are worth, their tail, and draws from them.

Runs with ArviZ 0.23 and 1.x alike.
"""

import sys

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import numpyro_rtk as rtk


def test_pareto_k_knows_the_tail():
    """Weights x**k, x Pareto(1), have exactly the tail index k; 20,000 of them.

    ArviZ's two generations take their argument with opposite signs: with the sign wrong
    both values below come out near zero or negative.
    """
    uniform = np.random.default_rng(0).uniform(size=20_000)
    for k in (0.3, 0.9):
        assert abs(rtk.pareto_k(-k * np.log(uniform)) - k) < 0.12


def test_pareto_k_of_chains_and_dead_draws():
    log_weight = np.random.default_rng(1).normal(size=(4, 250))
    flat = rtk.pareto_k(log_weight)
    assert flat == rtk.pareto_k(log_weight.ravel())
    with_dead = np.where(np.arange(1000).reshape(4, 250) < 10, -np.inf, log_weight)
    assert np.isfinite(rtk.pareto_k(with_dead))
    assert rtk.pareto_k(np.full(100, -np.inf)) == np.inf
    assert rtk.pareto_k(np.zeros(100)) == -np.inf


def test_pareto_k_refuses_nan():
    with pytest.raises(ValueError, match="must not be NaN"):
        rtk.pareto_k([0.0, np.nan])


def test_weighted_sample_size():
    assert rtk.weighted_sample_size(jnp.zeros((2, 5))) == pytest.approx(10.0)
    assert rtk.weighted_sample_size(jnp.array([0.0, -jnp.inf])) == pytest.approx(1.0)
    assert rtk.weighted_sample_size(jnp.full(3, -jnp.inf)) == 0.0
    with pytest.raises(ValueError, match="at least one"):
        rtk.weighted_sample_size(jnp.zeros(0))


def test_importance_resample_follows_the_weights():
    samples = {"x": jnp.arange(3.0), "y": jnp.arange(6.0).reshape(3, 2)}
    log_weight = jnp.log(jnp.array([0.25, 0.0, 0.75]))
    drawn = rtk.importance_resample(jr.key(0), samples, log_weight, 8)
    # systematic: counts are the expected ones, rounded up or down; here no rounding
    np.testing.assert_array_equal(np.bincount(drawn["x"].astype(int)), [2, 0, 6])
    np.testing.assert_array_equal(drawn["y"][:, 0], 2 * drawn["x"])


@pytest.mark.parametrize(
    ("log_weight", "match"),
    [
        (jnp.zeros((3, 1)), "must have shape"),
        (jnp.zeros(2), "must have shape"),
        (jnp.full(3, -jnp.inf), "finite largest"),
    ],
)
def test_importance_resample_refuses(log_weight, match):
    with pytest.raises(ValueError, match=match):
        rtk.importance_resample(jr.key(0), jnp.zeros((3, 2)), log_weight, 4)


def test_pareto_k_names_the_remedy_without_arviz(monkeypatch):
    for name in ("arviz", "arviz_stats", "arviz_stats.base"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install numpyro-rtk\[arviz\]"):
        rtk.pareto_k(jnp.zeros(10))

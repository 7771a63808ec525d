"""The page on networks trained elsewhere: it runs, and what it says is so."""

import pathlib
import re
from typing import Any

import jax.random as jr
import numpy as np
import pytest
from sklearn.datasets import make_moons

KEY = jr.key(9)
PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "trained-network.md"


def test_the_page_runs_and_is_right(tmp_path, monkeypatch, capsys):
    """1,000 draws against 1,000 held-out moons: a share has a standard error of .022."""
    if not PAGE.exists():
        pytest.skip("the documentation is not in the source distribution")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "trained_network"}
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(compile(code, PAGE.name, "exec"), names)
    out = capsys.readouterr().out
    assert "ScoreModel.from_network(Network, event_shape=(2,), predicts='noise'" in out
    assert "- nothing found" in out
    assert names["found"].mistake == "the output is noise, taken for a score"
    draws, rows = np.asarray(names["draws"]), names["held_out"]
    np.testing.assert_allclose(draws.mean(axis=0), rows.mean(axis=0), atol=0.12)
    np.testing.assert_allclose(draws.std(axis=0), rows.std(axis=0), rtol=0.1)
    # the distance to the two half circles: not that of a Gaussian with these moments
    angle = np.linspace(0.0, np.pi, 200)
    upper = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    curve = np.concatenate([upper, [1.0, 0.5] - upper])
    off = lambda x: np.linalg.norm(x[:, None] - curve, axis=-1).min(axis=1).mean()
    rng = np.random.default_rng(0)
    blurred = rng.multivariate_normal(rows.mean(axis=0), np.cov(rows.T), 1000)
    assert off(draws) < 1.6 * off(rows)
    assert off(blurred) > 2.5 * off(rows)
    np.testing.assert_array_equal(
        names["again"].score(rows[:5], 0.1), names["score"].score(rows[:5], 0.1)
    )
    # the posterior under what the network draws: its own draws, weighted by the likelihood
    x = np.asarray(names["mcmc"].get_samples()["x"])
    more = np.asarray(names["rtk"].LearnedPrior(names["score"]).sample(KEY, (20_000,)))
    weight = np.exp(-0.5 * ((0.25 - more[:, 1]) / 0.1) ** 2)
    mean = np.average(more[:, 1], weights=weight)
    sd = np.sqrt(np.average((more[:, 1] - mean) ** 2, weights=weight))
    np.testing.assert_allclose(x[:, 1].mean(), mean, atol=0.2 * sd)
    np.testing.assert_allclose(x[:, 1].std(), sd, rtol=0.15)
    left = np.average(more[:, 0] < 0.5, weights=weight)
    assert abs(np.mean(x[:, 0] < 0.5) - left) < 0.1
    assert "no fault found" in out
    # the energy: nearly normalised, and no further from the moons than the network's draws
    distilled = names["distilled"]
    assert distilled.error.divergence < 0.125
    assert str(distilled.error) in out
    sides = [np.arange(low, high, 0.025) for low, high in ((-1.8, 2.8), (-1.4, 1.9))]
    grid = np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1).reshape(-1, 2)
    mass = np.exp(np.asarray(names["prior"].log_prob(grid), float)) * 0.025**2
    np.testing.assert_allclose(mass.sum(), 1.0, atol=0.15)
    law = bins(make_moons(200_000, noise=0.1, random_state=1)[0])
    ours, theirs = bins(grid, mass), bins(more)
    assert np.abs(ours - law).sum() < np.abs(theirs - law).sum() + 0.1


def bins(x, weights=None):
    """Shares of squares of width .2."""
    edges = np.arange(-1.8, 2.9, 0.2), np.arange(-1.4, 1.9, 0.2)
    found = np.histogram2d(*np.asarray(x).T, bins=edges, weights=weights)[0]
    return found / found.sum()

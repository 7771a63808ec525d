"""The documentation's own network, density and inner sampler: each runs and is right."""

import pathlib
import re

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from tests.core.test_inner import (
    Row,
    accept_always,
    antisymmetric_part,
    before_and_after,
)
from tests.oracles import assert_mean, summaries, z_score

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "extending.md"
NETWORK, DENSITY, INNER = range(3)


def code_of(block: int) -> str:
    if not PAGE.exists():
        pytest.skip("the documentation is not in the source distribution")
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[block]


def run(block: int) -> dict:
    names = {"__name__": "extending"}
    exec(compile(code_of(block), PAGE.name, "exec"), names)
    return names


@pytest.mark.parametrize("block", [NETWORK, DENSITY, INNER])
def test_it_takes_no_more_than_forty_lines(block):
    lines = [line for line in code_of(block).splitlines() if line.strip()]
    assert len(lines) <= 40


def test_own_network_of_the_documentation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CI", "1")  # no progress bar
    names = run(NETWORK)
    density, prior = names["density"], names["prior"]
    untrained = eqx.tree_at(lambda m: m.network, density, names["network"])
    assert type(density.network) is names["RadialEnergy"]
    # A ring of radius 1 and sd .1: entropy log(2 pi) - .88 nats, a Gaussian with its
    # covariance has log(pi e): 1.2 nats more. The standard error is about .02.
    gain = prior.log_prob(names["ring"]) - untrained.log_density(names["ring"], 0.0)
    assert 0.8 < float(jnp.mean(gain)) < 1.4
    centre = prior.log_prob(jnp.zeros(2))
    assert float(centre - jnp.mean(prior.log_prob(names["ring"]))) < -3.0
    with pytest.raises(ValueError, match=r"class 'RadialEnergy'"):
        names["rtk"].load("ring.rtk")


def test_own_density_of_the_documentation(monkeypatch):
    """The posterior in closed form; 2,000 draws, more than 200 effective ones: z = 5."""
    monkeypatch.setenv("CI", "1")
    names = run(DENSITY)
    apart = np.abs(np.subtract.outer(np.arange(6), np.arange(6)))
    prior, seen = np.exp(-apart / 3.0), np.eye(6)[::2]
    gain = prior @ seen.T @ np.linalg.inv(seen @ prior @ seen.T + 0.25 * np.eye(3))
    mean, sd = (
        gain @ np.asarray(names["y"]),
        np.sqrt(np.diag(prior - gain @ seen @ prior)),
    )
    x = np.asarray(names["mcmc"].get_samples()["x"])
    assert np.max(np.abs(x.mean(axis=0) - mean) / sd) < 5.0 / np.sqrt(200.0)
    np.testing.assert_allclose(x.std(axis=0), sd, rtol=5.0 / np.sqrt(400.0))


def test_own_inner_sampler_of_the_documentation(key):
    """As the package's own: invariance and detailed balance, seen when it is broken."""
    names = run(INNER)
    barker = names["Barker"]
    assert barker() == barker()
    assert hash(barker()) == hash(barker())
    before, after, info = before_and_after(Row(barker(), 0.9), key)
    assert 0.3 < np.mean(info.accept_prob) < 0.95
    assert_mean(summaries(after) - summaries(before))
    assert_mean(antisymmetric_part(before, after))
    names["accept_probability"] = accept_always
    before, after, _ = before_and_after(Row(barker(), 0.9), key)
    assert np.max(np.abs(z_score(summaries(after) - summaries(before)))) > 10.0
    assert names["kernel"].guarantee.startswith("exact")

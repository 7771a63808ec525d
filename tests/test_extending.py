"""The documentation's own network: its block runs, learns, and comes back from a file."""

import pathlib
import re

import equinox as eqx
import jax.numpy as jnp
import pytest

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "extending.md"


def test_own_network_of_the_documentation(tmp_path, monkeypatch):
    if not PAGE.exists():
        pytest.skip("the documentation is not in the source distribution")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CI", "1")  # no progress bar
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[0]
    names = {"__name__": "extending"}
    exec(compile(code, PAGE.name, "exec"), names)
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

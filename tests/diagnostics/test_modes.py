"""``rtk.check_modes`` against a posterior of two modes whose shares are known."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS

import numpyro_rtk as rtk
from numpyro_rtk.diagnostics.modes import ModeCheck, _problems

# Of different widths and unequal weights.
WEIGHT, LEFT, RIGHT, NARROW, WIDE = 0.3, -2.0, 2.0, 0.25, 0.5
PARTICLES = 1024


def model():
    x = numpyro.sample("x", dist.Normal(0.0, 4.0).expand([2]).to_event(1))
    prior = dist.Normal(0.0, 4.0).log_prob(x).sum()
    left = dist.Normal(LEFT, NARROW).log_prob(x).sum() + jnp.log(WEIGHT)
    right = dist.Normal(RIGHT, WIDE).log_prob(x).sum() + jnp.log(1.0 - WEIGHT)
    numpyro.factor("two modes", jnp.logaddexp(left, right) - prior)


def run(kernel, draws=200, chains=4, **options):
    mcmc = MCMC(
        kernel,
        num_warmup=60,
        num_samples=draws,
        num_chains=chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jr.key(1), **options)
    return mcmc


def left_of(check):
    """Share and error of the regions on the left, of the particles and of the run."""
    is_left = np.array([float(place.split("=")[1]) < 0 for place in check.places])
    pick = lambda share: float(share[is_left].sum())
    error = float(np.sqrt(np.sum(check.share_error[is_left] ** 2)))
    return pick(check.share), error, pick(check.run_share)


@pytest.fixture(scope="module")
def stuck():
    """NUTS on the right, from where it never crosses."""
    return run(NUTS(model), init_params={"x": jnp.full((4, 2), RIGHT)})


def test_a_mode_that_nuts_has_missed_is_named_with_its_share(stuck):
    assert np.all(np.asarray(stuck.get_samples()["x"]) > -0.5)
    check = rtk.check_modes(stuck, key=jr.key(2), num_particles=PARTICLES)
    assert check.num_particles == 2 * PARTICLES
    assert check.problems
    assert all("missed a mode around x[" in problem for problem in check.problems)
    share, error, of_run = left_of(check)
    # the errors of regions of one mode lean on each other: at most their sum
    assert 0.005 < error < 0.05
    assert abs(share - WEIGHT) < 4 * error
    assert of_run == 0.0
    # the mode is where it is said to be, and nothing that the run has is named
    for problem in check.problems:
        place = float(problem.split(" = ")[1].split(":")[0])
        assert abs(place - LEFT) < 4 * NARROW
    # a normalised density has log evidence 0
    value, its_error = check.log_evidence
    assert abs(value) < 4 * its_error + 0.05
    assert np.all(np.isnan(check.run_log_evidence))
    assert "of the draws" in str(check)
    assert "no mode is missing" not in str(check)


def test_a_run_with_both_modes_misses_nothing():
    """Shares of 4 chains of 200 draws: an error of some .02 from visits of the modes."""
    kernel = rtk.RTKReplicaExchange(model, num_levels=5, num_particles=512)
    mcmc = run(kernel)
    check = rtk.check_modes(mcmc, key=jr.key(2), num_particles=PARTICLES)
    assert check.problems == ()
    assert "no mode is missing that these particles found" in str(check)
    share, error, of_run = left_of(check)
    assert abs(share - WEIGHT) < 4 * error
    assert abs(of_run - WEIGHT) < 0.08
    assert abs(check.run_log_evidence[0]) < 4 * check.run_log_evidence[1] + 0.05
    assert 0.0 < check.narrowest < 1.0


def test_refuses_what_it_cannot_look_at(stuck):
    density = rtk.GaussianMixture([1.0], [[0.0]], [[[1.0]]])
    alone = MCMC(
        rtk.RTKReplicaExchange(score=density), num_warmup=1, num_samples=1, num_chains=1
    )
    with pytest.raises(TypeError, match="`mcmc` must be a run of a NumPyro model"):
        rtk.check_modes(alone)
    with pytest.raises(ValueError, match=r"`mcmc` must be finished.*Call `mcmc.run"):
        rtk.check_modes(MCMC(NUTS(model), num_warmup=1, num_samples=1))
    with pytest.raises(ValueError, match="`num_particles` must be at least 1; got 0"):
        rtk.check_modes(stuck, num_particles=0)


def test_few_ancestors_tell_nothing():
    """In many dimensions all particles go back to a few: not a word of green."""
    half, none = np.array([0.5, 0.5]), np.zeros(2)
    found = ModeCheck(
        share=half,
        share_error=none + 0.01,
        run_share=np.array([1.0, 0.0]),
        run_share_error=none,
        places=("x = 0", "x = 1"),
        log_evidence=(0.0, 0.1),
        run_log_evidence=(0.0, 0.1),
        num_particles=2048,
        num_ancestors=200,
        narrowest=0.1,
        problems=(),
    )
    assert any("missed a mode around x = 1" in p for p in _problems(found))
    few = found._replace(num_ancestors=7)
    few = few._replace(problems=tuple(_problems(few)))
    assert "Nothing can be told: the particles go back to 7" in str(few)
    assert "no mode is missing" not in str(few)
    assert "missed a mode" not in str(few)

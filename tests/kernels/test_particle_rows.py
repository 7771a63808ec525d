"""RTKParticleGibbs in plates: every row has its posterior, and weights of its own."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import MCMC, NUTS
from scipy.stats import norm

import numpyro_rtk as rtk
from numpyro_rtk.core import particles
from numpyro_rtk.diagnostics.particles import _most_apart, _says_apart

# Two modes of different widths; the data see the first coordinate, and do not know which.
WEIGHTS, MEANS = np.array([0.3, 0.7]), np.array([[-1.0, -2.0], [0.6, 1.5]])
COVARIANCES = [np.diag([0.5, 0.1]), np.diag([0.2, 0.6])]
PRIOR = rtk.GaussianMixture(WEIGHTS, MEANS, COVARIANCES)
ROWS, SD = 24, 0.6
DATA = np.linspace(-2.5, 2.0, ROWS)
SEEN = np.arange(ROWS) % 5 != 3
OPTIONS = {"num_particles": 24, "num_levels": 12}
CHAINS, DRAWS, THRESHOLD = 16, 250, 5.0


def model(y):
    with numpyro.plate("rows", len(y)):
        x = numpyro.sample("x", rtk.LearnedPrior(PRIOR))
        with handlers.mask(mask=jnp.asarray(SEEN)[: len(y)]):
            numpyro.sample("y", dist.Normal(x[..., 0], SD), obs=y)


def shares_and_evidence(sd=SD):
    """Of the second mode in each row's posterior, and the rows' log evidences."""
    spread = np.sqrt(np.array([c[0, 0] for c in COVARIANCES]) + sd**2)
    parts = WEIGHTS * norm.pdf(DATA[:, None], MEANS[:, 0], spread)
    parts = np.where(SEEN[:, None], parts, WEIGHTS)
    return parts[:, 1] / parts.sum(axis=1), np.log(parts.sum(axis=1))


def run(kernel, num_samples=DRAWS):
    mcmc = MCMC(
        kernel,
        num_warmup=5,
        num_samples=num_samples,
        num_chains=CHAINS,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jr.key(0), jnp.asarray(DATA, jnp.float32))
    return mcmc


def worst_row(mcmc):
    """z of the rows' shares, with the standard error of the chains' means."""
    x = np.asarray(mcmc.get_samples(group_by_chain=True)["x"])
    share = np.mean(x[..., 1] > 0.0, axis=1)
    # the second coordinate crosses 0 in a mode too, by its tails
    tails = norm.sf(0.0, MEANS[:, 1], np.sqrt([c[1, 1] for c in COVARIANCES]))
    of_second, _ = shares_and_evidence()
    truth = (1.0 - of_second) * tails[0] + of_second * tails[1]
    error = np.hypot(share.std(axis=0), 0.01) / np.sqrt(CHAINS)
    return np.abs(share.mean(axis=0) - truth) / error


@pytest.fixture(scope="module")
def finished():
    return run(rtk.RTKParticleGibbs(model, **OPTIONS))


def test_every_row_has_its_posterior(finished):
    """24 rows, five of them without data; 16 chains, z = 5."""
    assert worst_row(finished).max() < THRESHOLD
    found = rtk.diagnose(finished)
    assert found.moved.shape == (CHAINS, ROWS)
    assert found.moved.min() > 0.8
    assert not found.problems


def test_the_evidence_is_that_of_all_rows(finished):
    value, error = rtk.log_evidence(finished)
    assert error < 0.1
    assert abs(value - shares_and_evidence()[1].sum()) < 5.0 * error


def test_particles_of_each_row_are_worth_as_much_as_of_one(finished):
    """Negative control: the same rows beside a term that couples them, by a hair."""

    def joint(y):
        with numpyro.plate("rows", len(y)):
            x = numpyro.sample("x", rtk.LearnedPrior(PRIOR))
            with handlers.mask(mask=jnp.asarray(SEEN)):
                numpyro.sample("y", dist.Normal(x[..., 0], SD), obs=y)
        numpyro.factor("f", -1e-12 * jnp.square(jnp.sum(x)))

    whole = run(rtk.RTKParticleGibbs(joint, **OPTIONS), num_samples=20)
    assert rtk.diagnose(whole).moved.shape == (CHAINS, 1)
    by_row, at_once = (
        rtk.diagnose(finished).sample_size,
        rtk.diagnose(whole).sample_size,
    )
    assert by_row.min() > 1.5 * at_once.min()


def test_rows_that_stay_are_named():
    """A row that no fresh particle is worth as much in as the path that it has."""
    found = rtk.diagnose(
        run(rtk.RTKParticleGibbs(model, num_particles=2, num_levels=2), num_samples=20)
    )
    (said,) = [text for text in found.problems if "rows" in text]
    assert f"of {ROWS} rows (" in said


def test_weights_that_rows_share_are_noticed(monkeypatch):
    """Negative control: one row's ancestors for all rows."""
    right = particles._ancestors

    def shared(here, uniforms, keep):
        chosen = right(here, uniforms, keep)
        return jnp.broadcast_to(chosen[:, :1], chosen.shape)

    monkeypatch.setattr(particles, "_ancestors", shared)
    kernel = rtk.RTKParticleGibbs(model, likelihood_variance=1.0, **OPTIONS)
    assert worst_row(run(kernel)).max() > 2 * THRESHOLD


def test_a_run_that_goes_on_with_rows_that_are_coupled_is_refused():
    """A run that goes on is not set up anew; what rows are is proved once more."""

    def either(y, is_coupled=False):
        with numpyro.plate("rows", len(y)):
            x = numpyro.sample("x", rtk.LearnedPrior(PRIOR))
            shift = jnp.mean(x[..., 0]) if is_coupled else 0.0
            numpyro.sample("y", dist.Normal(x[..., 0] - shift, SD), obs=y)

    kernel = rtk.RTKParticleGibbs(either, num_particles=4, num_levels=2)
    mcmc = MCMC(kernel, num_warmup=1, num_samples=2, progress_bar=False)
    mcmc.run(jr.key(0), DATA[:3])
    mcmc.post_warmup_state = mcmc.last_state
    mcmc.run(jr.key(1), DATA[:3] + 0.1)
    with pytest.raises(ValueError, match="got 3 rows then and 1 now"):
        mcmc.run(jr.key(1), DATA[:3], is_coupled=True)


def test_chains_that_do_not_agree_are_said_by_coordinate(finished):
    """R-hat of every coordinate; one chain's row 7 stands elsewhere."""
    x = np.array(finished.get_samples(group_by_chain=True)["x"])
    assert _most_apart({"x": x})[0] < 1.1
    x[:8, :, 7, 1] += 3.0
    rhat, name = _most_apart({"x": x, "still": np.ones((CHAINS, DRAWS))})
    assert rhat > 1.3
    assert name == "x[7,1]"
    # a deterministic site may be infinite where that means something
    x[..., 0, 0] = np.inf
    assert _most_apart({"x": x, "log": np.full((CHAINS, DRAWS), -np.inf)}) == (
        rhat,
        name,
    )
    found = rtk.diagnose(finished)
    assert _says_apart(found) is None
    assert "`x[7,1]`" in _says_apart(found._replace(rhat=rhat, apart=name))


@pytest.mark.slow
def test_a_shared_scale_by_nuts_beside_the_rows():
    """NumPyro's Gibbs: rows given what they share; the scale against quadrature."""
    gibbs = pytest.importorskip("numpyro.infer.gibbs")
    if not hasattr(gibbs, "Gibbs"):
        pytest.skip("NumPyro < 0.22")

    def hierarchical(y):
        scale = numpyro.sample("scale", dist.LogNormal(-0.5, 0.5))
        with numpyro.plate("rows", len(y)):
            x = numpyro.sample("x", rtk.LearnedPrior(PRIOR))
            numpyro.sample("y", dist.Normal(x[..., 0], scale), obs=y)

    blocks = [
        (rtk.RTKParticleGibbs(hierarchical, **OPTIONS), ["x"]),
        (NUTS(hierarchical), None),
    ]
    mcmc = MCMC(
        gibbs.Gibbs(blocks),
        num_warmup=60,
        num_samples=300,
        num_chains=CHAINS,
        chain_method=jax.vmap,
        progress_bar=False,
    )
    mcmc.run(jr.key(1), jnp.asarray(DATA, jnp.float32))
    found = np.asarray(mcmc.get_samples(group_by_chain=True)["scale"])
    grid = np.linspace(0.02, 4.0, 2000)
    spread = np.sqrt(np.array([c[0, 0] for c in COVARIANCES]) + grid[:, None] ** 2)
    each = norm.pdf(DATA[None, :, None], MEANS[:, 0], spread[:, None]) @ WEIGHTS
    log_post = (
        np.log(each).sum(axis=1) + norm.logpdf(np.log(grid), -0.5, 0.5) - np.log(grid)
    )
    weight = np.exp(log_post - log_post.max())
    mean = weight @ grid / weight.sum()
    error = found.mean(axis=1).std() / np.sqrt(CHAINS)
    assert error < 0.05
    assert abs(found.mean() - mean) < THRESHOLD * error

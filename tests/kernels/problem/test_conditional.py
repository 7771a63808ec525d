"""Kernels where a learned prior is conditional on data, or on other latent sites.

The exact p(x | c) here is a user's own object: two components whose means and weights
move with c. Log densities at noise zero must be NumPyro's own, and the posterior of
(c, x) that of quadrature.
"""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats as st
from numpyro import handlers
from numpyro.infer import MCMC
from numpyro.infer.util import potential_energy

import numpyro_rtk as rtk
from numpyro_rtk.core.warmup.adapt import Frame
from numpyro_rtk.kernels.problem import problem as problem_module
from numpyro_rtk.kernels.problem.coupling import Coupling
from numpyro_rtk.kernels.problem.dependence import depends_on
from numpyro_rtk.kernels.problem.problem import Problem
from numpyro_rtk.paths import levels_of
from tests.kernels.conftest import MIXTURE
from tests.kernels.densities import Moving, MovingAt
from tests.networks.test_condition import conditional_model

LEARNED = conditional_model()
Y = jnp.array(0.4)


def model(y=None):
    c = numpyro.sample("c", dist.Normal(0.3, 0.8))
    x = numpyro.sample("x", rtk.LearnedPrior(Moving(), condition=c))
    numpyro.sample("y", dist.Normal(x[0], 0.6), obs=y)


def chain_in_plates(y=None):
    """Ordinary sites, a learned condition, plates, a mask and a scale, all at once."""
    tau = numpyro.sample("tau", dist.LogNormal(0.0, 0.5))
    width = numpyro.sample("width", dist.Uniform(0.0, tau))
    first = numpyro.sample("first", rtk.LearnedPrior(MIXTURE))
    with numpyro.plate("groups", 3):
        c = numpyro.sample("c", dist.Normal(0.0, tau))
        condition = jnp.stack([c, first[1] * jnp.ones(3)], axis=-1)
        x = numpyro.sample("x", rtk.LearnedPrior(LEARNED, condition=condition))
        with handlers.scale(scale=0.5):
            masked = rtk.LearnedPrior(LEARNED, condition=condition + width)
            numpyro.sample("w", masked.mask(jnp.array([True, False, True])))
        numpyro.sample("y", dist.Normal(x[:, 0], width), obs=y)


def rounded(y=None):
    """The condition is a step of c: no derivative, and yet it depends on it."""
    c = numpyro.sample("c", dist.Normal(0.3, 0.8))
    condition = jnp.where(c > 0.0, 1.0, -1.0)
    x = numpyro.sample("x", rtk.LearnedPrior(Moving(), condition=condition))
    numpyro.sample("y", dist.Normal(x[0], 0.6), obs=y)


def bound_by_hand(y=None):
    """What a user might write instead; the kernel must see it."""
    c = numpyro.sample("c", dist.Normal(0.3, 0.8))
    x = numpyro.sample("x", rtk.LearnedPrior(Moving().given(c)))
    numpyro.sample("y", dist.Normal(x[0], 0.6), obs=y)


def observed(y=None, c=None):
    sigma = numpyro.sample("sigma", dist.LogNormal(-0.5, 0.3))
    with numpyro.plate("groups", 2):
        x = numpyro.sample("x", rtk.LearnedPrior(Moving(), condition=c))
        numpyro.sample("y", dist.Normal(x[:, 0], sigma), obs=y)


MODELS = {
    "latent": (model, (Y,), True),
    "chain in plates": (chain_in_plates, (jnp.array([0.1, -0.4, 0.8]),), True),
    "step": (rounded, (Y,), True),
    "bound by hand": (bound_by_hand, (Y,), True),
    "observed": (observed, (Y, jnp.array([0.5, -1.0])), False),
}


def bind(model, args):
    problem = Problem(model, None)
    problem.setup(jr.key(0), args, {})
    n = problem.num_ordinary
    loc, scale = jnp.linspace(-0.3, 0.4, n), jnp.linspace(0.6, 1.7, n)
    frame = Frame(loc, scale, jnp.zeros(problem.dim))
    return problem, problem.bind(args, {}, frame)


@pytest.mark.parametrize("name", MODELS)
def test_at_noise_zero_it_is_numpyro_s_potential(name):
    """Value and gradient, for two c far apart, at a scaling that is not the prior's."""
    model, args, is_coupled = MODELS[name]
    problem, bound = bind(model, args)
    assert problem.is_coupled is is_coupled
    level = jax.tree.map(lambda leaf: leaf[0], levels_of(np.array([0.0, 1.0]), 1.0))
    target = jax.jit(lambda u: bound.path(u, level))
    potential = lambda u: potential_energy(model, args, {}, bound.unflatten(u))
    expected = jax.jit(jax.value_and_grad(potential))
    for key in jr.split(jr.key(5)):
        u = jr.normal(key, (problem.dim,))
        value, gradient = target(u)
        value_0, gradient_0 = expected(u)
        np.testing.assert_allclose(bound.energy(value), value_0, rtol=2e-4)
        np.testing.assert_allclose(gradient, -gradient_0, rtol=5e-3, atol=2e-3)


def test_in_the_noise_the_condition_is_at_the_clean_guess():
    _, bound = bind(model, (Y,))
    u, t = jnp.array([0.7, -1.1]), jnp.array(0.5)
    value, score = jax.jit(bound.base)(u, t)
    # the position is x, then c; bind() scales the only ordinary site by -.3, .6
    c = -0.3 + 0.6 * float(jnp.exp(-t) * u[1])
    x = Moving.loc + Moving.scale * u[:1]
    log_density = jax.jit(lambda c: MovingAt(c).log_density(x, t))
    expected = log_density(c) + jnp.log(Moving.scale[0])
    expected += st.norm.logpdf(u[1])
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda u: bound.base(u, t).log_density))(u)
    np.testing.assert_allclose(score, gradient, rtol=1e-5)


def test_without_latent_conditions_nothing_is_differentiated(monkeypatch):
    monkeypatch.setattr("numpyro_rtk.kernels.problem.problem.coupled_base", None)
    _, bound = bind(*MODELS["observed"][:2])
    base = jax.jit(bound.base)
    assert np.isfinite(base(jnp.zeros(3), jnp.array(0.3)).log_density)


def grid(still=None):
    """Points, density and evidence; ``still``: x is given this and not c."""
    axes = np.linspace(-3.5, 4, 901), np.linspace(-5, 4, 901)
    c, x = np.meshgrid(*axes, indexing="ij")
    given = c if still is None else still
    weight = 1.0 / (1.0 + np.exp(-1.2 * given))
    prior = weight * st.norm.pdf(x, given - 1.3, 0.1**0.5)
    prior += (1 - weight) * st.norm.pdf(x, 1.0 + 0.3 * given, 0.2**0.5)
    density = st.norm.pdf(c, 0.3, 0.8) * prior * st.norm.pdf(float(Y), x, 0.6)
    return c, x, density, density.sum() * (7.5 / 900) * (9 / 900)


STATISTICS = (
    lambda c, x: c,
    lambda c, x: c**2,
    lambda c, x: x,
    lambda c, x: 1.0 * (x < 0.2),
    lambda c, x: c * x,
)
CHAINS = 20


def run():
    mcmc = MCMC(
        rtk.RTKReplicaExchange(model, num_levels=6),
        num_warmup=60,
        num_samples=200,
        num_chains=CHAINS,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jr.key(3), Y)
    return mcmc


def worst_z(mcmc, still=None):
    """Largest |z|; the standard error is that of 20 independent chains' means."""
    samples = mcmc.get_samples(group_by_chain=True)
    c, x = np.asarray(samples["c"]), np.asarray(samples["x"])[..., 0]
    grid_c, grid_x, density, _ = grid(still)
    scores = []
    for f in STATISTICS:
        means = f(c, x).mean(axis=1)
        exact = (f(grid_c, grid_x) * density).sum() / density.sum()
        scores.append(abs(means.mean() - exact) / (means.std(ddof=1) / CHAINS**0.5))
    return max(scores)


# Student's t with 19 degrees of freedom: |t| > 5 has probability 8e-5 per statistic.
def test_posterior_under_a_latent_condition_is_that_of_quadrature():
    mcmc = run()
    assert worst_z(mcmc) < 5.0
    # the law that a kernel would have whose condition stands still
    assert min(worst_z(mcmc, still) for still in (-0.5, 0.3, 1.0)) > 10.0
    assert float(mcmc.get_extra_fields()["accept_prob"].mean()) > 0.3
    value, error = rtk.log_evidence(mcmc)
    assert abs(value - np.log(grid()[3])) < 5.0 * error < 0.3


@pytest.mark.slow
def test_a_condition_that_stands_still_is_seen(monkeypatch):
    """Negative control: c of the first trace in place of the chain's own."""
    uncoupled = lambda noted, run: Coupling(False)
    monkeypatch.setattr(problem_module, "find_coupling", uncoupled)
    assert worst_z(run()) > 10.0


def test_a_score_alone_takes_observed_conditions_only():
    score = conditional_model("score")

    def latent():
        c = numpyro.sample("c", dist.Normal().expand([2]).to_event(1))
        numpyro.sample("x", rtk.LearnedPrior(score, condition=c))

    with pytest.raises(ValueError, match="depends on latent sites needs an energy"):
        Problem(latent, None).setup(jr.key(0), (), {})

    def known():
        numpyro.sample("x", rtk.LearnedPrior(score, condition=jnp.zeros(2)))

    _, bound = bind(known, ())
    base = jax.jit(bound.base)
    assert np.all(np.isfinite(base(jnp.ones(2), jnp.array(0.3)).score))


def test_a_noise_process_that_depends_on_latent_sites_is_refused():
    def latent():
        c = numpyro.sample("c", dist.Normal())
        density = MovingAt(c)
        density.loc = c[None]
        numpyro.sample("x", rtk.LearnedPrior(density))

    with pytest.raises(ValueError, match="`loc` and `scale` of a learned density"):
        Problem(latent, None).setup(jr.key(0), (), {})


def test_a_model_that_prints_is_not_coupled():
    def latent():
        c = numpyro.sample("c", dist.Normal())
        jax.debug.print("c: {}", c)
        numpyro.sample("x", rtk.LearnedPrior(MovingAt(jnp.array(0.3))))

    problem = Problem(latent, None)
    problem.setup(jr.key(0), (), {})
    assert not problem.is_coupled


def test_what_is_written_and_read_again_may_depend():
    if not hasattr(jax, "new_ref"):
        pytest.skip("JAX without references")

    def through_a_place(x):
        place = jax.new_ref(jnp.zeros(()))
        place[...] = x[0]
        return place[...]

    assert depends_on(through_a_place, jnp.ones(1))

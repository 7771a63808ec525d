"""LearnedPrior as a NumPyro distribution: what it must survive, and what it refuses."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.distributions.batch_util import promote_batch_shape
from numpyro.infer import Predictive, log_likelihood
from numpyro.infer.util import log_density

import numpyro_rtk as rtk

MIXTURE = rtk.GaussianMixture(
    [0.3, 0.7],
    [[-1.5, 0.5], [1.0, -0.5]],
    [np.eye(2) * 0.2, [[0.2, -0.05], [-0.05, 0.4]]],
    standardise=True,
)
PRIOR = rtk.LearnedPrior(MIXTURE)
X = jnp.array([[0.1, -0.3], [1.0, 0.2], [-1.2, 0.6]])


class Plain:
    """A user's own density: no batches, no pytree, no draws of its own."""

    event_shape = (2,)
    loc, scale = MIXTURE.loc, MIXTURE.scale

    def log_density(self, x, t):
        assert jnp.shape(x) == (2,)
        return MIXTURE.log_density(x, t)

    def score(self, x, t):
        return MIXTURE.score(x, t)


class ScoreOnly:
    event_shape = (2,)

    def score(self, x, t):
        return MIXTURE.score(x, t)


def test_log_prob_is_the_density_at_noise_zero():
    np.testing.assert_allclose(PRIOR.log_prob(X), MIXTURE.log_density(X, 0.0))
    np.testing.assert_allclose(
        rtk.LearnedPrior(Plain()).log_prob(X), PRIOR.log_prob(X), rtol=1e-5
    )
    assert PRIOR.log_prob(X.reshape(3, 1, 2)).shape == (3, 1)


def test_it_crosses_jit_vmap_and_cond():
    direct = PRIOR.log_prob(X)
    through_jit = jax.jit(lambda prior, x: prior.log_prob(x))(PRIOR, X)
    through_vmap = jax.vmap(lambda prior, x: prior.log_prob(x), in_axes=(None, 0))(
        PRIOR, X
    )
    through_cond = jax.jit(
        lambda flag: jax.lax.cond(flag, lambda: PRIOR, lambda: PRIOR)
    )(True).log_prob(X)
    for other in (through_jit, through_vmap, through_cond):
        np.testing.assert_allclose(other, direct, rtol=1e-5)


def test_a_stack_of_priors_is_each_of_them():
    """As NumPyro's scan and jax.vmap make one: arrays with further axes in front."""
    move = lambda i: eqx.tree_at(lambda m: m.loc, MIXTURE, MIXTURE.loc + i)
    moved = [move(i) for i in range(3)]
    priors = [rtk.LearnedPrior(density) for density in moved]
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *priors)
    assert stack.is_stacked
    expected = jnp.stack([p.log_prob(x) for p, x in zip(priors, X, strict=True)])
    np.testing.assert_allclose(stack.log_prob(X), expected, rtol=1e-5)
    np.testing.assert_allclose(
        jax.jit(stack.log_prob)(X[:1])[0], priors[0].log_prob(X[0]), rtol=1e-5
    )
    both = stack.log_prob(jnp.stack([X, X]))
    np.testing.assert_allclose(both, jnp.stack([expected] * 2), rtol=1e-5)
    with pytest.raises(ValueError, match="broadcasts with the .3,. stacked priors"):
        stack.log_prob(X[:2])
    draws = stack.sample(jr.key(0), (2000,))
    assert draws.shape == (2000, 3, 2)
    centres = jnp.stack([p.sample(jr.key(1), (2000,)).mean(0) for p in priors])
    # a standard error of at most 1.3 / sqrt(2000), twice
    assert np.abs(draws.mean(0) - centres).max() < 5 * 1.3 * (2 / 2000) ** 0.5
    assert stack.has_energy
    assert promote_batch_shape(stack).batch_shape == (3,)


def test_a_learned_model_crosses_jit_too():
    samples = jr.normal(jr.key(0), (64, 2)) * 2.0 + 1.0
    model, _ = rtk.fit(
        jr.key(1), samples, num_steps=50, batch_size=16, progress_bar=False
    )
    prior = rtk.LearnedPrior(model)
    inside = jax.jit(lambda p, x: p.log_prob(x))(prior, X)
    np.testing.assert_allclose(inside, prior.log_prob(X), rtol=1e-4)


def test_expand_mask_and_to_event():
    expanded = PRIOR.expand((4, 3))
    assert expanded.batch_shape == (4, 3)
    assert expanded.event_shape == (2,)
    draws = expanded.sample(jr.key(0))
    assert draws.shape == (4, 3, 2)
    np.testing.assert_allclose(
        expanded.log_prob(draws), PRIOR.log_prob(draws), rtol=1e-5
    )
    masked = PRIOR.expand((3,)).mask(jnp.array([True, False, True]))
    np.testing.assert_allclose(
        masked.log_prob(X), PRIOR.log_prob(X) * jnp.array([1.0, 0.0, 1.0]), rtol=1e-5
    )
    total = PRIOR.expand((3,)).to_event(1).log_prob(X)
    np.testing.assert_allclose(total, PRIOR.log_prob(X).sum(), rtol=1e-5)


def test_support_is_real():
    assert PRIOR.support.event_dim == 1
    assert bool(jnp.all(PRIOR.support(X)))


def test_a_model_left_at_its_base_is_drawn_from_exactly():
    """Student's t of 3 degrees, learned: 20,000 draws against the model's own density.

    Probability of what is within .5 of the centre, by the log density on a grid; within
    5 standard errors, .0177 at most.
    """
    samples = np.random.default_rng(0).standard_t(3, size=(600, 1))
    options = {"num_steps": 250, "batch_size": 16, "progress_bar": False}
    model_, _ = rtk.fit(
        jr.key(0), samples, network=rtk.EnergyMLP(1, width=8, key=jr.key(1)), **options
    )
    assert not model_.uses_network
    prior = rtk.LearnedPrior(model_)
    draws = np.asarray(prior.sample(jr.key(2), (20_000,)))[:, 0]
    grid = np.linspace(-0.5, 0.5, 2001)
    inside = np.mean(np.exp(prior.log_prob(grid[:, None])))
    assert 0.2 < inside < 0.5
    error = np.sqrt(inside * (1.0 - inside) / len(draws))
    assert abs(np.mean(np.abs(draws) < 0.5) - inside) < 5.0 * error


@pytest.mark.parametrize("c", [-1.0, 2.0])
def test_the_base_of_a_conditional_model_is_drawn_from_at_its_condition(c):
    """x = 3 c + noise of sd .5: mean and sd of 4,000 draws, within 5 standard errors."""
    rng = np.random.default_rng(0)
    condition = rng.normal(size=2000)
    samples = 3.0 * condition + 0.5 * rng.normal(size=2000)
    options = {"num_steps": 250, "batch_size": 16, "progress_bar": False}
    model_, _ = rtk.fit(jr.key(0), samples, condition=condition, **options)
    model_ = dataclasses.replace(model_, uses_network=False)
    draws = rtk.LearnedPrior(model_, condition=c).sample(jr.key(1), (4000,))
    # the regression has errors of .5 / sqrt(2000) (1 + |c|) beside those of the draws
    allowed = 5.0 * 0.5 * (4000**-0.5 + (1.0 + abs(c)) * 2000**-0.5)
    assert abs(np.mean(draws) - 3.0 * c) < allowed
    assert abs(np.std(draws) / 0.5 - 1.0) < 5.0 * (8000**-0.5 + 4000**-0.5)


def model(y=None):
    with numpyro.plate("groups", 3):
        x = numpyro.sample("x", PRIOR)
        numpyro.sample("y", dist.Normal(x[:, 0], 0.5), obs=y)


def test_predictive_and_plates():
    draws = Predictive(model, num_samples=5)(jr.key(0))
    assert draws["x"].shape == (5, 3, 2)
    assert draws["y"].shape == (5, 3)


def test_log_likelihood_holds_the_observed_site_only():
    values = log_likelihood(model, {"x": X[None]}, y=jnp.zeros(3))
    assert set(values) == {"y"}
    expected = dist.Normal(X[:, 0], 0.5).log_prob(0.0)
    np.testing.assert_allclose(values["y"][0], expected, rtol=1e-5)


def test_log_density_of_a_model_counts_the_prior_once():
    value, _ = log_density(model, (), {"y": jnp.zeros(3)}, {"x": X})
    expected = PRIOR.log_prob(X).sum() + dist.Normal(X[:, 0], 0.5).log_prob(0.0).sum()
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_mask_and_scale_reach_the_kernels_target():
    """What the annealed path counts in full is put right for masked or scaled sites."""
    from numpyro_rtk.kernels.problem.problem import Problem
    from numpyro_rtk.paths import levels_of

    def odd():
        with numpyro.plate("g", 3), handlers.scale(scale=0.5):
            x = numpyro.sample("x", PRIOR.mask(jnp.array([True, False, True])))
        numpyro.factor("rest", -jnp.sum(x**2))

    problem = Problem(odd, None)
    problem.setup(jr.key(0), (), {})
    bound = problem.bind((), {}, problem.frame())
    level = jax.tree.map(lambda leaf: leaf[0], levels_of(np.array([0.0, 1.0]), 1.0))
    value = -bound.energy(bound.path(bound.flatten({"x": X}), level).log_density)
    expected, _ = log_density(odd, (), {}, {"x": X})
    np.testing.assert_allclose(value, expected, rtol=1e-4)


def test_refusals():
    with pytest.raises(TypeError, match="`density` must be an object.*rtk.fit"):
        rtk.LearnedPrior(lambda x: x)
    with pytest.raises(ValueError, match=r"shape batch \+ \(2,\); got \(3,\)"):
        PRIOR.log_prob(jnp.zeros(3))
    with pytest.raises(TypeError, match="`log_prob` needs an energy"):
        rtk.LearnedPrior(ScoreOnly()).log_prob(jnp.zeros(2))
    with pytest.raises(TypeError, match="`key` must be a PRNG key"):
        PRIOR.sample(3)


def test_the_two_halves_make_the_density_again():
    assert eqx.tree_equal(PRIOR.density, MIXTURE)


def test_a_density_whose_scale_is_not_resolved_is_refused():
    class Far:
        event_shape = (2,)
        scale = np.array([1.0, 0.01])

        def __init__(self, offset):
            self.loc = np.array([0.0, offset])

        def score(self, x, t):
            return -x

    with pytest.raises(ValueError, match=r"`density` must have a scale.*index \(1,\)"):
        rtk.LearnedPrior(Far(1e6))
    with pytest.warns(UserWarning, match="`density` must have a scale.*holds 81.9 of"):
        rtk.LearnedPrior(Far(2e3))
    rtk.LearnedPrior(Far(10.0))

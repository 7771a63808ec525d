"""One contract for every density: those of the package and a user's own, a row each."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import numpyro_rtk as rtk
from numpyro_rtk.density import (
    Density,
    DensityWithEnergy,
    Part,
    check_conditional,
    check_density,
    condition_shape_of,
    coupled_base,
    exact_sampler,
    has_energy,
    loc_and_scale,
    product_base,
    standardised,
    usable,
)
from tests.networks.conftest import build_model
from tests.networks.test_condition import C, conditional_model
from tests.oracles import SKEWED, Mixture

SHIFTED = Mixture(SKEWED.weights, 3.0 * SKEWED.means + 5.0, 9.0 * SKEWED.covariances)
MIXTURE: DensityWithEnergy = SHIFTED.jax(standardise=True)
CONDITIONAL = conditional_model()
BOUND = CONDITIONAL.given(C)
ENERGY = build_model("energy", (3, 2))
SCORE: Density = build_model("score", (3, 2))


class Plain:
    """A user's own: one event at a time, no pytree, two numbers for the process."""

    event_shape = (2,)
    loc, scale = 1.5, jnp.array([2.0, 0.5])

    def log_density(self, x, t):
        """A standard normal in the first coordinate; the second has sd .25."""
        assert jnp.shape(x) == (2,)
        z = (x - self.loc) / self.scale
        spread = jnp.sqrt(1.0 - jnp.array([0.0, 0.75]) * jnp.exp(-2.0 * t))
        return jnp.sum(
            jax.scipy.stats.norm.logpdf(z, 0.0, spread) - jnp.log(self.scale)
        )

    def score(self, x, t):
        return jax.grad(self.log_density)(x, t)


class Module(eqx.Module):
    """A user's own module, of one event at a time: N(0, diag(variances))."""

    variances: jax.Array
    event_shape = (3,)

    def log_density(self, x, t):
        spread = jnp.sqrt(1.0 + jnp.exp(-2.0 * t) * (self.variances - 1.0))
        return jnp.sum(jax.scipy.stats.norm.logpdf(x, 0.0, spread))

    def score(self, x, t):
        return jax.grad(self.log_density)(x, t)


class ScoreOnly:
    """The least that a density can be."""

    event_shape = (2, 1)

    def score(self, x, t):
        a = jnp.exp(-t)
        return -x / (4.0 * a**2 + 1.0 - a**2)


class Wrong(Plain):
    """A score that is not the gradient, on a process that is not the density's."""

    def score(self, x, t):
        return 1.1 * super().score(x, t)

    @property
    def loc(self):
        return 1.4

    def log_density(self, x, t):
        return Plain().log_density(x, t)


PLAIN: DensityWithEnergy = Plain()
LEAST: Density = ScoreOnly()
WITH_ENERGY = {
    "mixture": MIXTURE,
    "energy": ENERGY,
    "p(x|c)": BOUND,
    "own": PLAIN,
    "own module": Module(jnp.array([0.2, 1.0, 3.0])),
}
ALL = {**WITH_ENERGY, "score": SCORE, "least": LEAST}
energies = pytest.mark.parametrize("density", WITH_ENERGY.values(), ids=WITH_ENERGY)
densities = pytest.mark.parametrize("density", ALL.values(), ids=ALL)


def position(density, seed=0):
    size = int(np.prod(density.event_shape))
    return jnp.asarray(np.random.default_rng(seed).normal(size=size), jnp.float32)


def call(method, x, t):
    """Compiled; what is bound to arrays cannot be handed to ``jax.jit`` itself."""
    return jax.jit(lambda x, t: method(x, t))(x, t)


def the_score_is_the_gradient(density, t=0.3):
    base, z = standardised(density), position(density)
    gradient = jax.jit(jax.grad(lambda z: base(z, t).log_density))(z)
    score = jax.jit(base)(z, t).score
    np.testing.assert_allclose(score, gradient, rtol=1e-4, atol=1e-4)


def the_noise_end_is_standard_normal(density, t=15.0):
    z = position(density)
    found = jax.jit(standardised(density))(z, t)
    np.testing.assert_allclose(found.score, -z, rtol=1e-4, atol=1e-4)
    if has_energy(density):
        expected = stats.norm.logpdf(z).sum()
        np.testing.assert_allclose(found.log_density, expected, rtol=1e-5, atol=1e-4)


def the_user_and_the_package_read_the_same(density, t=0.3):
    """Flat and standardised here, the event's shape and the user's scale there."""
    z = position(density)
    loc, scale = loc_and_scale(density)
    x = loc + scale * z.reshape(density.event_shape)
    found = jax.jit(standardised(density))(z, t)
    score = jnp.ravel(scale * call(density.score, x, t))
    np.testing.assert_allclose(found.score, score, rtol=1e-4, atol=1e-5)
    if has_energy(density):
        expected = call(density.log_density, x, t) + jnp.sum(jnp.log(scale))
        np.testing.assert_allclose(found.log_density, expected, rtol=1e-5, atol=1e-5)
        value = jax.jit(standardised(density, with_score=False))(z, t)
        np.testing.assert_allclose(value.log_density, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(value.score, np.zeros_like(z))
    else:
        assert found.log_density == 0.0


def the_prior_is_the_density_at_noise_zero(density):
    prior = rtk.LearnedPrior(density)
    assert prior.event_shape == tuple(density.event_shape)
    loc, scale = loc_and_scale(density)
    both = jnp.stack([position(density), position(density, seed=1)])
    x = loc + scale * both.reshape((2, *density.event_shape))
    expected = [call(density.log_density, one, 0.0) for one in x]
    found = jax.jit(prior.log_prob)(x)
    assert found.shape == (2,)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    gradient = jax.jit(jax.grad(prior.log_prob))(x[0])
    score = call(density.score, x[0], 0.0)
    np.testing.assert_allclose(gradient, score, rtol=1e-4, atol=1e-4)


@densities
def test_it_passes_the_check(density):
    check_density("density", density)
    assert has_energy(density) == any(density is d for d in WITH_ENERGY.values())
    loc, scale = loc_and_scale(density)
    assert loc.shape == scale.shape == tuple(density.event_shape)
    assert loc.dtype == scale.dtype == jnp.float32


@energies
@pytest.mark.parametrize(
    "contract", [the_score_is_the_gradient, the_prior_is_the_density_at_noise_zero]
)
def test_densities_with_an_energy(contract, density):
    contract(density)


@densities
@pytest.mark.parametrize(
    "contract",
    [the_noise_end_is_standard_normal, the_user_and_the_package_read_the_same],
)
def test_all_densities(contract, density):
    contract(density)


@pytest.mark.parametrize(
    "contract",
    [
        the_score_is_the_gradient,
        the_prior_is_the_density_at_noise_zero,
        the_noise_end_is_standard_normal,
    ],
)
def test_the_contracts_see_a_wrong_density(contract):
    with pytest.raises(AssertionError):
        contract(Wrong())


@pytest.mark.parametrize("density", [SCORE, LEAST], ids=["score", "least"])
def test_a_score_alone_has_no_log_prob(density):
    prior = rtk.LearnedPrior(density)
    assert not prior.has_energy
    with pytest.raises(TypeError, match="`log_prob` needs an energy"):
        prior.log_prob(jnp.zeros(density.event_shape))


def test_standardised_changes_variables():
    """The density of u = (x - loc) / scale, by the closed form of that law."""
    base = standardised(MIXTURE)
    law = SHIFTED.standardised().noised(0.4)
    for u in np.random.default_rng(0).normal(size=(12, 2)).astype(np.float32):
        got = base(u, jnp.float32(0.4))
        np.testing.assert_allclose(got.log_density, law.log_density(u), rtol=1e-4)


def test_another_process_is_followed():
    """The same density of x, standardised by what another one says."""
    z, t = position(PLAIN), jnp.float32(0.0)
    found = standardised(PLAIN, process=MIXTURE)(z, t)
    loc, scale = loc_and_scale(MIXTURE)
    expected = PLAIN.log_density(loc + scale * z, t) + jnp.sum(jnp.log(scale))
    np.testing.assert_allclose(found.log_density, expected, rtol=1e-5)


def test_loc_and_scale_default_and_broadcast():
    loc, scale = loc_and_scale(LEAST)
    np.testing.assert_array_equal(loc, np.zeros((2, 1)))
    np.testing.assert_array_equal(scale, np.ones((2, 1)))
    np.testing.assert_array_equal(loc_and_scale(PLAIN)[0], [1.5, 1.5])

    class Whole(ScoreOnly):
        loc, scale = 2, 3

    loc, scale = loc_and_scale(Whole())
    assert (loc.shape, scale.dtype) == ((2, 1), jnp.float32)


def test_what_draws_exactly():
    assert exact_sampler(MIXTURE) is not None
    assert exact_sampler(PLAIN) is exact_sampler(ENERGY) is None
    alone = dataclasses.replace(ENERGY, uses_network=False)
    assert exact_sampler(alone) == alone.sample_base


def test_product_base_adds_up():
    one_d = Mixture([0.7, 0.3], [[-2.0], [1.5]], [[[0.2]], [[0.6]]])
    flat, wide = standardised(one_d.jax()), standardised(SKEWED.jax())
    base = product_base([(flat, 1, 3), (wide, 2, 1)], num_normal=2)
    u = jnp.asarray(np.random.default_rng(2).normal(size=7), jnp.float32)
    t = jnp.float32(0.3)
    got = base(u, t)
    expected = one_d.noised(0.3).log_density(u[:3, None]).sum()
    expected += SKEWED.noised(0.3).log_density(u[3:5])
    expected += stats.norm.logpdf(u[5:]).sum()
    np.testing.assert_allclose(got.log_density, expected, rtol=1e-5)
    gradient = jax.grad(lambda v: base(v, t).log_density)(u)
    np.testing.assert_allclose(got.score, gradient, rtol=1e-4, atol=1e-5)


def test_product_base_of_normals_alone():
    u = position(PLAIN)
    got = product_base([], num_normal=2)(u, jnp.float32(0.3))
    np.testing.assert_allclose(got.log_density, stats.norm.logpdf(u).sum(), rtol=1e-6)
    np.testing.assert_array_equal(got.score, -u)


def test_coupled_base_follows_its_conditions():
    """x_i ~ N(c, 1 / 4) for two copies, c ~ N(0, 1), at the clean guess of c."""

    def at(z, t, c):
        a = jnp.exp(-t)
        spread = jnp.sqrt(a**2 / 4.0 + 1.0 - a**2)
        value = jnp.sum(jax.scipy.stats.norm.logpdf(z, a * c, spread))
        return usable(value, jnp.zeros_like(z))

    parts_at = lambda u: [Part(at, 1, 2, (jnp.broadcast_to(u[2], 2),))]
    u, t = jnp.array([0.4, -1.0, 0.7]), jnp.float32(0.2)
    for forward_mode in (False, True):
        found = coupled_base(parts_at, 1, forward_mode)(u, t)
        a2 = np.exp(-0.4)
        law = stats.norm(a2 * 0.7, np.sqrt(a2 / 4.0 + 1.0 - a2))
        expected = law.logpdf(u[:2]).sum() + stats.norm.logpdf(0.7)
        np.testing.assert_allclose(found.log_density, expected, rtol=1e-5)
        pull = (np.asarray(u[:2]) - a2 * 0.7) / law.var()
        score = [*-pull, a2 * pull.sum() - 0.7]
        np.testing.assert_allclose(found.score, score, rtol=1e-4)


def test_a_condition_that_is_open_or_missing():
    assert condition_shape_of(CONDITIONAL) == (2,)
    assert condition_shape_of(BOUND) is condition_shape_of(PLAIN) is None
    assert check_conditional("density", CONDITIONAL) == (2,)
    with pytest.raises(ValueError, match=r"`score` must be .* `score.given\(c\)`"):
        check_density("score", CONDITIONAL)
    for density in (BOUND, PLAIN):
        with pytest.raises(ValueError, match="`condition` must be None unless"):
            check_conditional("density", density)


def test_what_is_no_density():
    with pytest.raises(TypeError, match=r"without \['event_shape', 'score'\].*rtk.fit"):
        check_density("density", lambda x: x)

    class Shapeless:
        condition_shape = ()

        def given(self, c):
            return PLAIN

    with pytest.raises(TypeError, match="`density` must have `event_shape`"):
        check_conditional("density", Shapeless())


def test_what_is_no_number_is_no_density_and_no_drift():
    values = jnp.array([1.0, jnp.inf, -jnp.inf, jnp.nan])
    scores = jnp.array([[1.0, jnp.nan], [jnp.inf, 2.0], [-jnp.inf, 3.0], [4.0, 5.0]])
    found = usable(values, scores)
    np.testing.assert_array_equal(found.log_density, [1.0, -np.inf, -np.inf, -np.inf])
    expected = [[1.0, 0.0], [0.0, 2.0], [0.0, 3.0], [4.0, 5.0]]
    np.testing.assert_array_equal(found.score, expected)

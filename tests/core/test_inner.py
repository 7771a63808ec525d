"""Every inner sampler through the same table; a new one is one more row."""

import dataclasses
import functools
import pickle
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import linalg

from numpyro_rtk.core import mala as mala_module, uld as uld_module
from numpyro_rtk.core.inner import (
    InnerSampler,
    accept_probability,
    check_inner,
    draw_noise,
)
from numpyro_rtk.core.mala import MALA
from numpyro_rtk.core.segment import Evaluation
from numpyro_rtk.core.uld import ULD, exponential_noise
from tests.oracles import SKEWED, assert_mean, gaussian_target, summaries, z_score

N = 20_000
BALL = 2.0


class Row(NamedTuple):
    """A sampler, a step size that keeps its bias out of sight, and where it lives."""

    sampler: InnerSampler
    step_size: float
    radius: float = np.inf


# Score-only rows are exact up to the rule's error, so their steps are shorter.
TABLE = {
    "mala-1": Row(MALA(num_leapfrog=1), 0.9),
    "mala-2": Row(MALA(num_leapfrog=2), 0.9),
    "mala-3": Row(MALA(num_leapfrog=3), 0.8),
    "mala-1-simpson": Row(MALA(num_leapfrog=1, acceptance="simpson"), 0.5),
    "mala-2-simpson": Row(MALA(num_leapfrog=2, acceptance="simpson"), 0.3),
    "mala-1-trapezoid": Row(MALA(num_leapfrog=1, acceptance="trapezoid"), 0.2),
    "mala-1-taylor": Row(MALA(num_leapfrog=1, acceptance="taylor"), 0.1),
    "mala-projected": Row(MALA(move_radius=1.5, ball_radius=BALL), 0.5, BALL),
    "uld-adjusted": Row(ULD(friction=2.0), 0.9),
    "uld-unadjusted": Row(ULD(friction=2.0).unadjusted(), 0.3),
}
EXACT = [name for name, row in TABLE.items() if row.sampler.is_exact]
INVARIANT = [name for name in TABLE if name != "uld-unadjusted"]
SCALE = jnp.array([0.7, 0.9])


def run_chain(sampler, target, key, x, step_size, num_steps, scale=SCALE):
    noise = draw_noise(key, sampler, (), num_steps, x.size, x.dtype)
    state = sampler.init(noise.start, x, target(x))

    def body(state, noise):
        return sampler.step(noise, state, target, step_size, scale)

    state, info = jax.lax.scan(body, state, noise.steps)
    return state, info


def one_step(key, sampler, x):
    """Noise of a start and of a single step."""
    noise = draw_noise(key, sampler, (), 1, x.size, x.dtype)
    return noise._replace(steps=jax.tree.map(lambda leaf: leaf[0], noise.steps))


@functools.cache
def exact_draws(radius=np.inf):
    draws = SKEWED.draws(seed=0, n=2 * N)
    return draws[np.linalg.norm(draws, axis=1) <= radius][:N]


def before_and_after(row, key, num_steps=4):
    """Exact draws, and the same chains ``num_steps`` later."""
    before = jnp.asarray(exact_draws(row.radius), jnp.float32)
    chain = functools.partial(
        run_chain, row.sampler, SKEWED.target(), num_steps=num_steps
    )
    keys = jr.split(key, before.shape[0])
    step = jax.jit(jax.vmap(chain, in_axes=(0, 0, None)))
    state, info = step(keys, before, jnp.float32(row.step_size))
    return np.asarray(before), np.asarray(state.position), info


def antisymmetric_part(before, after):
    """``f(z) g(z') - g(z) f(z')``, of mean 0 for every reversible step."""
    f, g = summaries(before), summaries(after)
    i, j = np.triu_indices(f.shape[1], 1)
    return f[:, i] * g[:, j] - f[:, j] * g[:, i]


def accept_always(log_ratio):
    return jnp.ones_like(log_ratio), jnp.zeros_like(log_ratio, dtype=bool)


@pytest.mark.parametrize("name", INVARIANT)
def test_invariance_and_reversibility(name, key):
    """n = 20,000 exact draws z and z' four steps later; z = 5.

    Paired changes of seven statistics; where the step is exact also 21 antisymmetric
    ones, whose mean is 0 by detailed balance.
    """
    before, after, info = before_and_after(TABLE[name], key)
    assert_mean(summaries(after) - summaries(before))
    if name in EXACT:
        assert_mean(antisymmetric_part(before, after))
    assert 0.3 < np.mean(info.accept_prob) < 1.0
    assert np.mean(np.any(before != after, axis=1)) > 0.6


@pytest.mark.parametrize("name", ["mala-1", "mala-2", "uld-adjusted"])
def test_negative_control_accepting_always(name, key, monkeypatch):
    """The same two statistics see a sampler that accepts everything."""
    for module in (mala_module, uld_module):
        monkeypatch.setattr(module, "accept_probability", accept_always)
    before, after, _ = before_and_after(TABLE[name], key)
    assert np.max(np.abs(z_score(summaries(after) - summaries(before)))) > 10.0
    assert np.max(np.abs(z_score(antisymmetric_part(before, after)))) > 10.0


def test_negative_control_momentum_not_flipped(key, monkeypatch):
    """The flip on refusal is what makes adjusted ULD exact; see it missed."""
    keep_sign = lambda ok, new, old: jax.tree.map(
        lambda n, o: jnp.where(ok, n, o),
        new,
        old._replace(velocity=-old.velocity),
    )
    monkeypatch.setattr(uld_module, "accept", keep_sign)
    row = Row(ULD(friction=0.1), 1.3)
    before, after, _ = before_and_after(row, key, num_steps=16)
    assert np.max(np.abs(z_score(summaries(after) - summaries(before)))) > 8.0
    monkeypatch.undo()
    before, after, _ = before_and_after(row, key, num_steps=16)
    assert_mean(antisymmetric_part(before, after))
    assert_mean(summaries(after) - summaries(before))


def test_projection_refuses_what_leaves(key):
    row = TABLE["mala-projected"]
    before, after, _ = before_and_after(row, key, num_steps=1)
    assert np.all(np.linalg.norm(after, axis=1) <= BALL * 1.00001)
    assert np.all(np.linalg.norm(after - before, axis=1) <= 1.5 * 1.00001)


@pytest.mark.parametrize("name", TABLE)
def test_calls_traces_and_vmap(name, key):
    """A step calls the target as often as it says, however it is mapped."""
    sampler, calls, inner = TABLE[name].sampler, [], SKEWED.target()

    def target(z):
        calls.append(None)
        return inner(z)

    def step(key, x, step_size, scale):
        noise = one_step(key, sampler, x)
        state = sampler.init(noise.start, x, inner(x))
        return sampler.step(noise.steps, state, target, step_size, scale)

    keys, x = jr.split(key, 3), jnp.array([[0.1, 0.2], [-0.9, 0.3], [1.3, 1.0]])
    step_sizes, scales = jnp.array([0.0, 0.3, 0.8]), jnp.stack([SCALE] * 3)
    jitted = jax.jit(step)
    alone = [jitted(keys[i], x[i], step_sizes[i], scales[i]) for i in range(3)]
    assert len(calls) == sampler.evals_per_step  # new step sizes do not retrace
    together = jax.jit(jax.vmap(step))(keys, x, step_sizes, scales)
    assert len(calls) == 2 * sampler.evals_per_step
    for i in range(3):
        jax.tree.map(
            lambda one, many, i=i: np.testing.assert_allclose(
                one, many[i], rtol=1e-4, atol=1e-5
            ),
            alone[i],
            together,
        )
    # a step of size zero stays, and is accepted
    state, info = alone[0]
    np.testing.assert_array_equal(state.position, x[0])
    np.testing.assert_allclose(info.accept_prob, 1.0, rtol=1e-6)
    assert not info.is_diverging


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype_is_kept(name, dtype, x64):
    target = gaussian_target(np.zeros(2, dtype), np.ones(2, dtype))
    x, scale, step_size = (jnp.asarray(a, dtype) for a in ([0.1, 0.2], [1.0, 2.0], 0.3))
    step = functools.partial(run_chain, TABLE[name].sampler, target, num_steps=2)
    state, info = jax.eval_shape(
        lambda k: step(k, x, step_size, scale=scale), jr.key(0)
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype(dtype)}
    assert info.accept_prob.dtype == jnp.dtype(dtype)
    assert info.is_accepted.dtype == info.is_diverging.dtype == bool


@pytest.mark.parametrize("name", TABLE)
def test_never_moves_where_there_is_no_density(name, key):
    """100 chains of 20 steps beside a wall, NaN behind it for half, -inf for half."""
    inside = gaussian_target([0.0, 0.0], [1.0, 1.0])

    def target(z, value):
        here, ok = inside(z), z[0] < 0.5
        score = jnp.where(ok, here.score, jnp.nan)
        return Evaluation(jnp.where(ok, here.log_density, value), score)

    row, x = TABLE[name], jnp.array([[0.4, 0.2]] * 100, jnp.float32)
    values = jnp.array([jnp.nan, -jnp.inf] * 50)

    def chain(key, x, value):
        walled = functools.partial(target, value=value)
        return run_chain(row.sampler, walled, key, x, jnp.float32(0.5), 20)

    state, info = jax.jit(jax.vmap(chain))(jr.split(key, 100), x, values)
    assert np.all(state.position[:, 0] < 0.5)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))
    assert np.all(np.isfinite(info.accept_prob))
    assert np.any(info.is_diverging[::2])
    assert np.any(info.is_diverging[1::2])
    assert np.all(~info.is_accepted[info.is_diverging])
    assert np.mean(np.any(state.position != x, axis=1)) > 0.9


@pytest.mark.parametrize("friction", [0.5, 2.0])
def test_an_unstable_step_does_not_explode(friction, key):
    """A scale 300 times too large: steps are flagged and not taken, nothing overflows."""
    target, x = gaussian_target([0.0], [1e-5]), jnp.array([0.001])
    run = lambda k: run_chain(
        ULD(friction=friction).unadjusted(),
        target,
        k,
        x,
        jnp.float32(0.5),
        50,
        jnp.ones(1),
    )
    state, info = jax.jit(run)(key)
    assert np.any(info.is_diverging)
    assert not np.any(info.is_accepted[info.is_diverging])
    assert np.all(np.abs(state.position) < 1.0)


def test_acceptance_of_every_ratio():
    ratios = jnp.array([0.3, 0.0, -1.0, -2000.0, jnp.inf, -jnp.inf, jnp.nan])
    probability, is_diverging = accept_probability(ratios)
    expected = [1.0, 1.0, np.exp(-1.0), 0.0, 1.0, 0.0, 0.0]
    np.testing.assert_allclose(probability, expected, rtol=1e-6)
    np.testing.assert_array_equal(is_diverging, [0, 0, 0, 1, 1, 1, 1])


@pytest.mark.parametrize("friction", [0.5, 2.0, 7.0])
@pytest.mark.parametrize("step_size", [1e-3, 0.03, 0.2, 1.0, 4.0])
def test_noise_of_the_exponential_step_is_the_exact_integral(friction, step_size):
    """The paper's covariance by Gauss-Legendre quadrature of the Ito integrals.

    xi_u = sqrt(2 g) int e^{-g s} dB, xi_z = sqrt(2 g) int (1 - e^{-g s}) / g dB.
    """
    nodes, weights = np.polynomial.legendre.leggauss(60)
    s, w = 0.5 * step_size * (nodes + 1.0), step_size * weights * friction
    on_u, on_z = np.exp(-friction * s), -np.expm1(-friction * s) / friction
    sd_u, slope, sd_rest = exponential_noise(friction, jnp.float32(step_size))
    np.testing.assert_allclose(sd_u**2, np.sum(w * on_u**2), rtol=1e-5)
    np.testing.assert_allclose(slope * sd_u**2, np.sum(w * on_u * on_z), rtol=1e-5)
    var_z = slope**2 * sd_u**2 + sd_rest**2
    np.testing.assert_allclose(var_z, np.sum(w * on_z**2), rtol=3e-5)
    schur = np.sum(w * on_z**2) - np.sum(w * on_u * on_z) ** 2 / np.sum(w * on_u**2)
    np.testing.assert_allclose(sd_rest**2, schur, rtol=1e-3)


def stationary_variance(friction, step_size):
    """Of z under unadjusted ULD on N(0, 1), by the discrete Lyapunov equation.

    The step is linear: its matrix is read off the sampler by differentiation.
    """
    sampler = ULD(friction=friction).unadjusted()
    target = gaussian_target([0.0], [1.0])

    def move(zu):
        noise = one_step(jr.key(1), sampler, zu[:1])
        state = sampler.init(noise.start, zu[:1], target(zu[:1]))
        state = state._replace(velocity=zu[1:])
        state, _ = sampler.step(noise.steps, state, target, step_size, jnp.ones(1))
        return jnp.concatenate([state.position, state.velocity])

    matrix = np.asarray(jax.jacobian(move)(jnp.zeros(2)), float)
    sd_u, slope, sd_rest = map(float, exponential_noise(friction, step_size))
    factor = np.array([[slope * sd_u, sd_rest], [sd_u, 0.0]])
    return linalg.solve_discrete_lyapunov(matrix, factor @ factor.T)[0, 0]


def test_bias_of_unadjusted_uld_falls_with_the_step(x64):
    """On N(0, 1) the variance's error halves with the step: first order."""
    steps = (0.4, 0.2, 0.1)
    errors = [stationary_variance(2.0, jnp.asarray(h)) - 1.0 for h in steps]
    assert abs(errors[0]) > 0.01
    rates = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(rates, 1.0, atol=0.3)


@pytest.mark.parametrize("step_size", [0.2, 0.8])
def test_unadjusted_uld_has_the_variance_of_its_recursion(step_size, key):
    """n = 20,000 chains, 60 steps of memory at most; z = 5 against Lyapunov."""
    target, row = gaussian_target([0.0], [1.0]), TABLE["uld-unadjusted"]
    x = jr.normal(key, (N, 1))
    chain = jax.vmap(
        lambda k, x: run_chain(
            row.sampler, target, k, x, jnp.float32(step_size), 60, jnp.ones(1)
        )
    )
    state, _ = jax.jit(chain)(jr.split(key, N), x)
    expected = stationary_variance(2.0, jnp.float32(step_size))
    assert_mean(state.position**2, expected)
    assert_mean(state.velocity)
    if step_size == 0.8:  # and the test would see a sampler without its bias
        assert abs(z_score(state.position[:, 0] ** 2, 1.0)) > 5.0


REFUSED = [
    (lambda: MALA(num_leapfrog=0), ValueError, "`num_leapfrog` must be at least 1"),
    (lambda: MALA(num_leapfrog=1.5), TypeError, "`num_leapfrog` must be an integer"),
    (lambda: MALA(acceptance="exact"), ValueError, "`acceptance` must be one of"),
    (
        lambda: MALA(num_leapfrog=3, acceptance="simpson"),
        ValueError,
        "`num_leapfrog` must be 1 or 2 .*got 3",
    ),
    (lambda: MALA(move_radius=0.0), ValueError, "`move_radius` must be positive"),
    (lambda: MALA(ball_radius=-1.0), ValueError, "`ball_radius` must be positive"),
    (lambda: MALA(ball_radius="1"), TypeError, "`ball_radius` must be a real number"),
    (lambda: ULD(friction=0.0), ValueError, "`friction` must be positive"),
    (lambda: ULD(friction=None), TypeError, "`friction` must be a real number"),
]


@pytest.mark.parametrize(("build", "error", "message"), REFUSED)
def test_refusals(build, error, message):
    with pytest.raises(error, match=message):
        build()


OPTIONS = [
    (MALA, {"num_leapfrog": 1}),
    (MALA, {"acceptance": "simpson"}),
    (MALA, {"move_radius": 2.0}),
    (ULD, {"friction": 1.5}),
]


@pytest.mark.parametrize(("cls", "options"), OPTIONS)
def test_equal_options_are_equal_samplers(cls, options):
    """Compiled programs are kept by value; a kernel with its sampler is pickled."""
    sampler = cls(**options)
    assert sampler == cls(**options)
    assert hash(sampler) == hash(cls(**options))
    assert sampler != cls()
    assert pickle.loads(pickle.dumps(sampler)) == sampler
    for name in options:
        assert name in repr(sampler)
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(sampler, name, 1)
    assert ULD(1.5).unadjusted() == ULD(1.5).unadjusted() != ULD(2.0).unadjusted()


@pytest.mark.parametrize("wrong", ["mala", MALA, None, 0.5, lambda: MALA()])
def test_what_is_no_inner_sampler_is_refused(wrong):
    with pytest.raises(TypeError, match=r"`inner` must be an inner sampler, such as"):
        check_inner(wrong)
    check_inner(MALA())


@pytest.mark.parametrize("name", [name for name in TABLE if name != "mala-projected"])
def test_a_dense_spread_is_the_step_in_stretched_coordinates(name, key):
    """With a root R, from z = R w: the step of w's own density with no spread, by R."""
    sampler, target = TABLE[name].sampler, SKEWED.target()
    root = jnp.array([[0.7, 0.0], [0.5, 0.3]])

    def stretched(w):
        value, score = target(root @ w)
        return Evaluation(value, root.T @ score)

    def step(target, x, scale):
        noise = one_step(key, sampler, x)
        state = sampler.init(noise.start, x, target(x))
        return sampler.step(noise.steps, state, target, jnp.float32(0.4), scale)

    w = jnp.array([0.6, -0.9])
    own, own_info = step(stretched, w, jnp.ones(2))
    state, info = step(target, root @ w, root)
    np.testing.assert_allclose(state.position, root @ own.position, rtol=1e-4)
    np.testing.assert_allclose(info.accept_prob, own_info.accept_prob, rtol=1e-3)

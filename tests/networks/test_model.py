"""The models' methods: shapes, batching, consistency, closed forms."""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from numpyro_rtk.gaussians import noised_gaussian
from numpyro_rtk.networks import EnergyMLP, EnergyModel, ScoreMLP, ScoreModel
from numpyro_rtk.noise import time_from_noise_to_signal

TIMES = [0.0, 0.1, 1.0, 3.0, 5.0]


@eqx.filter_jit
def call(method, x, t):
    return method(x, jnp.asarray(t))


def points(event_shape, *batch, seed=3):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=batch + event_shape), jnp.float32)


@pytest.mark.parametrize("batch", [(), (4,), (3, 4), (0,)])
@pytest.mark.parametrize("times", ["scalar", "last", "full"])
def test_shapes_follow_the_batch(energy_model, score_model, batch, times):
    shape = {"scalar": (), "last": batch[-1:], "full": batch}[times]
    t = jnp.full(shape, 0.3)
    x = jnp.zeros(batch + energy_model.event_shape)

    def shape_of(method):
        return jax.tree.map(
            lambda out: (out.shape, out.dtype), jax.eval_shape(lambda: method(x, t))
        )

    log_density, point = (batch, jnp.float32), (x.shape, jnp.float32)
    assert shape_of(energy_model.log_density) == log_density
    assert shape_of(energy_model.score) == point
    assert shape_of(energy_model.log_density_and_score) == (log_density, point)
    assert shape_of(score_model.score) == point


def test_batch_equals_one_at_a_time(energy_model, score_model):
    x = points(energy_model.event_shape, 2, 3)
    t = jnp.array([0.0, 0.2, 2.0])
    batched = call(energy_model.log_density, x, t), call(energy_model.score, x, t)
    scores = call(score_model.score, x, t)
    for i in range(2):
        for j in range(3):
            alone = call(energy_model.log_density_and_score, x[i, j], t[j])
            np.testing.assert_allclose(batched[0][i, j], alone[0], rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(batched[1][i, j], alone[1], rtol=1e-4, atol=1e-4)
            score = call(score_model.score, x[i, j], t[j])
            np.testing.assert_allclose(scores[i, j], score, rtol=1e-4, atol=1e-4)


def test_score_is_the_gradient_of_the_log_density(energy_model):
    x = points(energy_model.event_shape, 5)
    for t in TIMES:
        by_point = jax.grad(
            lambda x, t=t: jnp.sum(call(energy_model.log_density, x, t))
        )(x)
        np.testing.assert_allclose(
            call(energy_model.score, x, t), by_point, rtol=1e-4, atol=1e-4
        )
        log_density, score = call(energy_model.log_density_and_score, x, t)
        np.testing.assert_allclose(
            log_density, call(energy_model.log_density, x, t), rtol=1e-5, atol=1e-5
        )
        np.testing.assert_allclose(score, by_point, rtol=1e-4, atol=1e-4)


def test_score_is_the_gradient_by_finite_differences(energy_model):
    # Against autodiff alone, a wrong convention for x would go unseen. Central
    # differences with step h = 1e-2: float32 rounding of a log density of size 10 gives
    # 10 * 6e-8 / h = 6e-5, curvature h**2 / 6 times a third derivative of order 10.
    x, t, h = points(energy_model.event_shape), 0.3, 1e-2
    score = np.ravel(call(energy_model.score, x, t))
    for i in range(x.size):
        step = jnp.zeros(x.size).at[i].set(h).reshape(x.shape)
        up, down = (call(energy_model.log_density, x + s * step, t) for s in (1, -1))
        np.testing.assert_allclose(
            score[i], (up - down) / (2 * h), rtol=0.01, atol=0.01
        )


def test_methods_under_jit_and_outer_vmap(energy_model, score_model):
    x = points(energy_model.event_shape, 6)
    t = jnp.linspace(0.0, 2.0, 6)
    for model, names in (
        (energy_model, ["log_density", "score", "log_density_and_score"]),
        (score_model, ["score"]),
    ):
        for name in names:
            method = getattr(model, name)
            expected = jax.tree.leaves(call(method, x, t))
            mapped = jax.tree.leaves(jax.jit(jax.vmap(method))(x, t))
            for one, two in zip(expected, mapped, strict=True):
                np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)


def test_wrong_event_shape_is_refused(energy_model, score_model):
    wrong = jnp.zeros((*energy_model.event_shape, 7))
    message = rf"event_shape \({', '.join(map(str, energy_model.event_shape))}.*got sh"
    if energy_model.event_shape == ():
        pytest.skip("every array is a batch of scalars")
    for method in (
        energy_model.log_density,
        energy_model.score,
        energy_model.log_density_and_score,
        score_model.score,
    ):
        with pytest.raises(ValueError, match=message):
            method(wrong, 0.0)
        with pytest.raises(ValueError, match=message):
            method(0.0, 0.0)


def test_times_that_do_not_fit_the_batch_are_refused(energy_model):
    x = points(energy_model.event_shape, 4)
    with pytest.raises(ValueError, match="`t` must be a scalar or broadcast"):
        energy_model.score(x, jnp.zeros(3))


def test_times_below_the_smallest_noise_are_raised_to_it(energy_model, score_model):
    x = points(energy_model.event_shape, 3)
    smallest = float(time_from_noise_to_signal(jnp.float32(0.02)))
    for method in (energy_model.log_density, energy_model.score, score_model.score):
        np.testing.assert_array_equal(
            call(method, x, 0.0), call(method, x, 0.5 * smallest)
        )
        assert not np.allclose(
            call(method, x, 0.0), call(method, x, 20 * smallest), rtol=1e-3
        )


def test_far_beyond_the_largest_noise_it_is_standard_normal(energy_model, score_model):
    z = points(energy_model.event_shape, 5)
    scale = energy_model.scale
    x = energy_model.loc + scale * z
    np.testing.assert_array_equal(scale, score_model.scale)
    log_volume = float(jnp.sum(jnp.log(scale)))
    axes = tuple(range(1, z.ndim))
    expected = -0.5 * np.sum(np.asarray(z) ** 2 + math.log(2 * math.pi), axis=axes)
    for t in (15.0, 80.0):  # exp(2 * 80) overflows float32
        np.testing.assert_allclose(
            call(energy_model.log_density, x, t),
            expected - log_volume,
            rtol=1e-5,
            atol=1e-5,
        )
        np.testing.assert_allclose(
            call(energy_model.score, x, t), -z / scale, rtol=1e-4, atol=1e-4
        )
        np.testing.assert_allclose(
            call(score_model.score, x, t), -z / scale, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("t", TIMES)
def test_untrained_model_is_the_exact_noised_gaussian(t):
    # The network starts at 0, so the base alone is seen: its only errors are float32
    # rounding, about 1e-6 of terms of size 10.
    rng = np.random.default_rng(1)
    axes, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    variances = np.array([0.3, 1.0, 1.7])
    loc, scale = rng.normal(size=3), np.array([0.5, 1.0, 4.0])
    shared = {
        "base": noised_gaussian(jnp.asarray(axes), jnp.asarray(variances)),
        "loc": jnp.asarray(loc),
        "scale": jnp.asarray(scale),
        "noise_range": (0.02, 20.0),
    }
    energy = EnergyModel(
        network=EnergyMLP(3, width=4, depth=2, key=jr.key(0)), **shared
    )
    score = ScoreModel(network=ScoreMLP(3, width=4, depth=2, key=jr.key(0)), **shared)
    clamped = max(t, 0.5 * math.log1p(0.02**2))
    a = math.exp(-clamped)
    on_z = axes @ np.diag(a**2 * variances + 1.0 - a**2) @ axes.T
    covariance = on_z * np.outer(scale, scale)
    x = loc + scale * rng.normal(size=(5, 3))
    pull = -np.linalg.solve(covariance, (x - loc).T).T
    log_density = (
        0.5 * np.sum(pull * (x - loc), axis=1)
        - 0.5 * np.linalg.slogdet(2.0 * math.pi * covariance)[1]
    )
    np.testing.assert_allclose(call(energy.log_density, x, t), log_density, atol=2e-5)
    np.testing.assert_allclose(call(energy.score, x, t), pull, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(call(score.score, x, t), pull, rtol=1e-4, atol=1e-5)


def test_scalar_time_features_are_computed_once():
    # With one time for the whole batch nothing of the time alone may be batched: this
    # is the hot path of a sampler.
    model = EnergyModel(
        network=EnergyMLP(3, width=8, depth=2, key=jr.key(0)),
        base=noised_gaussian(jnp.eye(3), jnp.ones(3)),
        loc=jnp.zeros(3),
        scale=jnp.ones(3),
        noise_range=(0.02, 20.0),
    )
    batched = jax.make_jaxpr(lambda x, t: model.log_density(x, t))(
        jnp.zeros((100, 3)), 0.1
    )
    cosines = [e for e in batched.jaxpr.eqns if e.primitive.name == "cos"]
    assert cosines
    assert all(100 not in e.outvars[0].aval.shape for e in cosines)


def test_within_its_reach_the_network_is_bounded(energy_model):
    """Far out the base rules, whatever the weights; without a reach the network does."""
    z, log_r = jnp.sign(points(energy_model.event_shape)) + 0.5, jnp.asarray(-1.0)
    pull = energy_model.network.pull + 0.1
    energy_model = eqx.tree_at(lambda m: m.network.pull, energy_model, pull)

    def correction(reach, c):
        # not a difference of energies, whose squares would hide it in float32
        model = dataclasses.replace(energy_model, reach=reach)
        return float(model._correction(c * z, jnp.asarray(0.1), log_r))

    near = [correction(reach, 1e-3) for reach in (5.0, None)]
    np.testing.assert_allclose(near[0], near[1], rtol=1e-4)
    far, farther = (correction(5.0, c) for c in (1e3, 1e5))
    assert abs(far - farther) < 1e-3 * abs(far)
    far, farther = (correction(None, c) for c in (1e3, 1e5))
    assert abs(farther) > 50.0 * abs(far)

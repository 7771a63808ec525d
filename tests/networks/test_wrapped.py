"""Networks trained elsewhere stand where a fitted score stands; what is refused."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import numpyro_rtk as rtk
from numpyro_rtk import schedules
from numpyro_rtk.draw import is_fixed
from numpyro_rtk.networks.wrapped import WrappedScore
from tests.networks.exact_networks import (
    BETAS,
    COVARIANCES,
    LOC,
    MEANS,
    PRODUCTS,
    SCALE,
    WEIGHTS,
    error,
    exact,
    wrapped,
)


def test_single_precision_holds_where_nothing_cancels():
    """Noise predictions keep their digits; a denoiser's are lost by x - x_0 near the data.

    At r = .014 the score is up to 60, and a thousandth of that is 10 roundings of x.
    """
    assert error(wrapped("VP", "noise")) < 0.1


def test_batches_of_positions_and_times():
    model_ = wrapped("VP", "velocity")
    x, t = LOC + SCALE * jr.normal(jr.key(0), (3, 4, 2)), jnp.linspace(0.1, 1.0, 4)
    got = model_.score(x, t)
    assert got.shape == x.shape
    np.testing.assert_allclose(got[1, 2], model_.score(x[1, 2], t[2]), rtol=1e-4)
    with pytest.raises(ValueError, match="batch \\+ event_shape"):
        model_.score(x[..., :1], 0.1)


def test_a_batched_network_is_asked_with_an_axis():
    def batched(x, time):
        assert x.shape[1:] == (2,)
        assert x.shape[:1] == time.shape
        return jax.vmap(exact("VP", "noise"))(x, time)

    got = wrapped("VP", "noise", fn=batched, batched=True)
    x = LOC + 0.3 * SCALE
    np.testing.assert_allclose(
        got.score(x, 0.2), wrapped("VP", "noise").score(x, 0.2), rtol=1e-5
    )


def apply(params, x, time, *, scale=1.0):
    return scale * (x @ params["weight"] + params["bias"] * time)


class Applied:
    """With a bound method, as a flax module's."""

    def apply(self, params, x, time):
        return apply(params, x, time)


@pytest.mark.parametrize("is_bound", [False, True])
def test_the_arrays_of_a_partial_are_leaves(is_bound):
    params = {"weight": np.eye(2, dtype=np.float32), "bias": jnp.ones(2)}
    fn = functools.partial(Applied().apply if is_bound else apply, params)
    model_ = wrapped("OU", "noise", fn=fn)
    assert len([leaf for leaf in jax.tree.leaves(model_) if eqx.is_array(leaf)]) == 4
    assert all(map(is_fixed, jax.tree.leaves(model_)))
    doubled = jax.tree.map(lambda leaf: 2.0 * leaf, model_.network)
    two = eqx.tree_at(lambda m: m.network, model_, doubled)
    x = LOC + SCALE
    np.testing.assert_allclose(two.score(x, 1.0), 2.0 * model_.score(x, 1.0))


def test_a_partial_of_a_module_keeps_the_arrays_of_both():
    net = eqx.nn.MLP(2, 2, 4, 1, activation=jax.nn.silu, key=jr.key(0))
    clock = lambda net, x, time: net(x) * time
    for fn in (functools.partial(clock, net), functools.partial(net, key=None)):
        if fn.func is net:
            fn = functools.partial(lambda f, x, time: f(x) * time, fn)
        model_ = wrapped("VP", "noise", fn=fn)
        weights = [x for x in jax.tree.leaves(model_.network) if eqx.is_array(x)]
        assert len(weights) == 4
        assert all(map(is_fixed, jax.tree.leaves(model_)))


def test_compiled_programs_take_the_arrays_as_arguments():
    traces = []

    @eqx.filter_jit
    def score(model_, x):
        traces.append(None)
        return model_.score(x, 0.3)

    net = eqx.nn.Linear(2, 2, key=jr.key(0))
    call = lambda net, x, time: net(x)
    for factor in (jnp.asarray(1.0), jnp.asarray(2.0)):
        changed = jax.tree.map(factor.__mul__, net)
        score(wrapped("VP", "noise", fn=functools.partial(call, changed)), LOC)
    assert len(traces) == 1


def test_it_stands_where_a_fitted_score_stands(key):
    """Draws: 2,000, standard error of a mean .022 sd; the predictor is close, not exact."""
    model_ = wrapped("VP", "noise")
    prior = rtk.LearnedPrior(model_)
    assert not prior.has_energy
    draws = np.asarray(prior.sample(key, (2000,)))
    mean = WEIGHTS @ MEANS
    variance = WEIGHTS @ (np.diagonal(COVARIANCES, axis1=1, axis2=2) + MEANS**2)
    z = (draws - LOC) / SCALE
    sd = np.sqrt(variance - mean**2)
    assert np.max(np.abs(z.mean(axis=0) - mean) / sd) < 0.12
    np.testing.assert_allclose(z.std(axis=0), sd, rtol=0.08)
    with pytest.raises(TypeError, match="has a score"):
        prior.log_prob(draws)


def test_repr_says_what_it_is():
    assert repr(wrapped("VP", "noise")) == (
        "ScoreModel.from_network(Exact, event_shape=(2,), predicts='noise', "
        "schedule=VP(beta_min=0.1, beta_max=20.0, end=1.0); a score without a density, "
        "held below noise 0.01 and above 152)"
    )
    fn = functools.partial(apply, {"weight": jnp.eye(2), "bias": jnp.ones(2)})
    text = repr(wrapped("DDPM", "data", fn=fn))
    assert "from_network(apply, " in text
    assert "DDPM(1000 steps, noise 0.01 to 157)" in text


NAN = lambda x, time: jnp.where(time > 5.0, jnp.nan, x)
BAD = {
    "not callable": ({"fn": 3}, TypeError, "`fn` must be a callable"),
    "predicts": (
        {"predicts": "epsilon"},
        ValueError,
        '`predicts` must be one of.*"noise"',
    ),
    "no schedule": ({"schedule": "vp"}, TypeError, "`schedule` must be one of"),
    "class": ({"schedule": schedules.VP}, TypeError, r"Call it: `VP\(\.\.\.\)`"),
    "velocity of VE": (
        {"predicts": "velocity", "schedule": schedules.VE(0.01, 50.0)},
        ValueError,
        "`predicts` must be one of .*VE, which has no velocity",
    ),
    "raw noise": (
        {"schedule": schedules.EDM(0.5, raw=True)},
        ValueError,
        '`predicts` must be "data" with a raw network of EDM',
    ),
    "channels": (
        {"fn": lambda x, time: jnp.concatenate([x, x])},
        ValueError,
        r"shape of x, \(2,\); got float32 of shape \(4,\).*learned variance",
    ),
    "tuple": ({"fn": lambda x, time: (x, x)}, ValueError, "got tuple"),
    "integers": ({"fn": lambda x, time: jnp.ones(2, int)}, ValueError, "got int32"),
    "one argument": ({"fn": lambda x: x}, ValueError, "it raised TypeError"),
    "axis": (
        {"fn": lambda x, time: x.reshape(1, 2) @ jnp.eye(3)},
        ValueError,
        "`fn` must take x of shape.*Pass `batched=True` if it wants a leading axis",
    ),
    "NaN": (
        {"fn": NAN, "schedule": schedules.DDPM(PRODUCTS)},
        ValueError,
        "`fn` must return finite numbers; got NaN.*time",
    ),
    "loc": ({"loc": np.ones(3)}, ValueError, r"`loc` must be numbers that broadcast"),
    "scale": ({"scale": 0.0}, ValueError, "`scale` must be positive"),
    "noise range": ({"noise_range": (1.0, 0.1)}, ValueError, "must increase"),
    "one noise": ({"noise_range": 0.1}, TypeError, "`noise_range` must be two numbers"),
    "event": ({"event_shape": (2.5,)}, TypeError, "`event_shape` must be a tuple"),
}


@pytest.mark.parametrize(("change", "kind", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_refused(change, kind, message):
    arguments = {
        "fn": lambda x, time: x,
        "event_shape": (2,),
        "predicts": "noise",
        "schedule": schedules.VP(0.1, 20.0),
        **change,
    }
    with pytest.raises(kind, match=message):
        rtk.ScoreModel.from_network(**arguments)


def test_a_schedule_with_little_noise_is_warned_of():
    """Steps' own alphas in the place of their products: the noise ends at .14."""
    with pytest.warns(UserWarning, match="cumulative products"):
        model_ = wrapped("DDPM", "noise", schedule=schedules.DDPM(1.0 - BETAS))
    assert isinstance(model_, WrappedScore)

"""Learning p(x | c): the truth at several c, and what a fit refuses.

The target: with probability 1 / (1 + exp(-1.5 c)) a component at 1 + c / 2 of standard
deviation .3, else one at -1 of .4.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import stats

import numpyro_rtk as rtk
from numpyro_rtk.training.data import check_condition

QUICK = {"num_steps": 20, "batch_size": 16, "progress_bar": False}


def draw(rng, c):
    right = rng.uniform(size=c.shape) < 1 / (1 + np.exp(-1.5 * c))
    return np.where(
        right,
        1 + 0.5 * c + 0.3 * rng.normal(size=c.shape),
        -1 + 0.4 * rng.normal(size=c.shape),
    )


def truth(x, c):
    weight = 1 / (1 + np.exp(-1.5 * c))
    return np.logaddexp(
        np.log(weight) + stats.norm.logpdf(x, 1 + 0.5 * c, 0.3),
        np.log(1 - weight) + stats.norm.logpdf(x, -1, 0.4),
    )


RNG = np.random.default_rng(0)
C = 2.0 + RNG.normal(size=8000) * 1.0
X = draw(RNG, C - 2.0)
SMALL = {"width": 32, "depth": 2}


@pytest.fixture(scope="module")
def learned():
    network = rtk.EnergyMLP((), condition_shape=(), key=jr.key(1), **SMALL)
    model, _ = rtk.fit(
        jr.key(0),
        X,
        condition=C,
        network=network,
        num_steps=1500,
        batch_size=256,
        progress_bar=False,
    )
    return model


LOG_DENSITY = jax.jit(lambda m, c, x: m.given(c).log_density(x, 0.0))


@pytest.mark.parametrize("c", [-1.2, 0.0, 0.7, 1.5])
def test_learned_density_is_the_truth_at_every_c(learned, c):
    """Of 2,000 fresh draws, standard deviation and mean of the error, in nats.

    8,000 rows and 1,500 steps leave about .05 and .03 (.02 of it the sampling error of
    the rows near one c); the limits are three times that.
    """
    x = draw(np.random.default_rng(1), np.full(2000, c))
    error = np.asarray(LOG_DENSITY(learned, 2.0 + c, x), float) - truth(x, c)
    assert error.std() < 0.2
    assert abs(error.mean()) < 0.1
    grid = np.linspace(-6, 6, 2001)
    total = np.trapezoid(np.exp(np.asarray(LOG_DENSITY(learned, 2.0 + c, grid))), grid)
    assert abs(total - 1.0) < 0.1
    # the same statistic sees a c that is off by its standard deviation
    wrong = np.asarray(LOG_DENSITY(learned, 3.0 + c, x), float) - truth(x, c)
    assert max(wrong.std() / 0.2, abs(wrong.mean()) / 0.1) > 2.0


def test_gradient_through_c_is_the_truths(learned):
    """Along c at fixed x, against differences of the closed form; root mean square.

    The truth's own gradient has a root mean square of 1.1 here.
    """
    c = np.linspace(-1.0, 1.0, 41)
    x = draw(np.random.default_rng(2), c)
    slope = jax.jit(jax.vmap(jax.grad(LOG_DENSITY, argnums=1), in_axes=(None, 0, 0)))
    found = np.asarray(slope(learned, jnp.asarray(2.0 + c), jnp.asarray(x)))
    expected = (truth(x, c + 1e-4) - truth(x, c - 1e-4)) / 2e-4
    error = np.sqrt(np.mean((found - expected) ** 2))
    size = np.sqrt(np.mean(expected**2))
    assert error < 0.4 * size


def test_save_and_load(learned, tmp_path):
    rtk.save(tmp_path / "m.rtk", learned)
    again = rtk.load(tmp_path / "m.rtk")
    assert bool(eqx.tree_equal(again, learned))
    assert again.condition_shape == ()
    with pytest.raises(ValueError, match="bound to a condition"):
        rtk.save(tmp_path / "n.rtk", learned.given(0.0))


def test_named_sites_and_scores_have_conditions(tmp_path):
    c = np.stack([C, RNG.integers(2, size=C.size)], axis=1)[:200]
    rows = {"a": X[:200], "b": RNG.normal(size=(200, 2))}
    network = rtk.EnergyMLP(3, condition_shape=(2,), key=jr.key(0), **SMALL)
    model, _ = rtk.fit(jr.key(0), rows, condition=c, network=network, **QUICK)
    assert model.condition_shape == (2,)
    network = rtk.ScoreMLP(3, condition_shape=(2,), key=jr.key(0), **SMALL)
    score, _ = rtk.fit(jr.key(0), rows, condition=c, network=network, **QUICK)
    assert score.given(c[0]).score(jnp.zeros(3), 0.0).shape == (3,)
    for saved in (model, score):
        rtk.save(tmp_path / "m.rtk", saved)
        assert bool(eqx.tree_equal(rtk.load(tmp_path / "m.rtk"), saved))
    prior = rtk.LearnedPrior(model, condition=c[:4])
    assert (prior.batch_shape, prior.event_shape) == ((4,), (3,))


def test_a_checkpoint_knows_its_condition(tmp_path):
    options = {**QUICK, "checkpoint": tmp_path / "fit.ckpt"}
    first, _ = rtk.fit(jr.key(0), X[:60], condition=C[:60], **options)
    again, _ = rtk.fit(jr.key(0), X[:60], condition=C[:60], **options)
    assert bool(eqx.tree_equal(first, again))
    with pytest.raises(ValueError, match=r"differs in \['condition'\]"):
        rtk.fit(jr.key(0), X[:60], condition=C[:60] + 1.0, **options)


@pytest.mark.parametrize(
    ("condition", "error", "message"),
    [
        (C[:59], ValueError, r"one row for each of the 60 rows.*got shape \(59,\)"),
        (np.float64(1.0), ValueError, r"one row for each.*got shape \(\)"),
        (np.r_[np.nan, C[:59]], ValueError, "`condition` must be finite; got 1"),
        (np.ones(60), ValueError, r"vary in every entry.*1 constant.*index \(\)"),
        (["a"] * 60, TypeError, "must be an array of numbers.*one column of 0 and 1"),
        ({"c": C[:60]}, TypeError, "must be an array of numbers.*got dict"),
        (C[:60] + 1j, TypeError, "must be an array of numbers"),
        (X[:60] * 3.0, ValueError, "must not be a linear function of `condition`"),
    ],
)
def test_refused_conditions(condition, error, message):
    with pytest.raises(error, match=message):
        rtk.fit(jr.key(0), X[:60], condition=condition, **QUICK)


def test_conditions_are_for_rows_on_the_device():
    options = {"training": rtk.Training(on_host=True), **QUICK}
    with pytest.raises(ValueError, match="`condition` must be given with samples that"):
        rtk.fit(jr.key(0), X, condition=C, **options)


def test_refused_networks():
    network = rtk.EnergyMLP((), condition_shape=(3,), key=jr.key(0))
    message = r"condition of shape \(\).*got one for \(3,\).*`condition_shape=\(\)`"
    with pytest.raises(ValueError, match=message):
        rtk.fit(jr.key(0), X[:60], condition=C[:60], network=network, **QUICK)
    message = "condition of shape None.*one for .3,.*without `condition_shape`"
    with pytest.raises(ValueError, match=message):
        rtk.fit(jr.key(0), X[:60], network=network, **QUICK)


@pytest.mark.parametrize(
    ("kind", "instead"),
    [(rtk.EnergyUNet, rtk.EnergyMLP), (rtk.ScoreUNet, rtk.ScoreMLP)],
)
def test_networks_that_take_no_condition(kind, instead):
    """The advice is one that can be followed."""
    images = np.random.default_rng(0).normal(size=(60, 4, 4))
    network = kind((4, 4), channels=4, key=jr.key(0))
    advice = f"{kind.__name__} takes none: use `{instead.__name__}"
    with pytest.raises(ValueError, match=advice) as raised:
        rtk.fit(jr.key(0), images, condition=C[:60], network=network, **QUICK)
    written = str(raised.value).split("`")[-2].replace("...", "jr.key(0)")
    network = eval(written, {instead.__name__: instead, "jr": jr})
    rtk.fit(
        jr.key(0),
        images,
        condition=C[:60],
        network=network,
        **{**QUICK, "num_steps": 1},
    )


def test_whole_numbers_and_booleans_are_conditions():
    for values in ([0, 1] * 5, [False, True] * 5, jnp.arange(10)):
        assert check_condition(values, 10).dtype == np.float64

"""Training: what comes back, when it stops, and what it has learned."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from numpyro_rtk.networks import (
    AbstractEnergyNetwork,
    EnergyMLP,
    EnergyModel,
    ScoreMLP,
    ScoreModel,
)
from numpyro_rtk.training.fit import FitResult, fit
from numpyro_rtk.training.options import Training
from tests.training.fits import (
    QUICK,
    SAMPLES,
    draw_clusters,
    equal,
    interrupt,
    quick,
    spoil_after,
    tiny,
    weights,
)


@pytest.mark.parametrize("network_class", [EnergyMLP, ScoreMLP])
@pytest.mark.parametrize("event_shape", [(), (2, 2)])
def test_model_fits_the_event_shape(network_class, event_shape):
    samples = draw_clusters(40, event_shape)
    network = tiny(event_shape, network_class)
    result = fit(jr.key(0), samples, network=network, **QUICK)
    model, history = result
    assert isinstance(result, FitResult)
    assert (result.model, result.history) == (model, history)
    assert type(model) is (ScoreModel if network_class is ScoreMLP else EnergyModel)
    assert model.event_shape == event_shape
    assert model.loc.shape == model.scale.shape == event_shape
    assert {leaf.dtype for leaf in weights(model)} == {np.dtype(np.float32)}
    np.testing.assert_allclose(model.loc, samples.mean(0), rtol=1e-5)
    assert set(history) == {
        *("step", "loss", "validation_loss", "wall_time"),
        *("best_step", "stopped_early"),
    }
    assert all(isinstance(values, np.ndarray) for values in history.values())
    np.testing.assert_array_equal(history["step"], [60])
    assert np.isfinite(history["loss"]).all()
    assert history["best_step"] == 60
    assert not history["stopped_early"]


def test_default_network_is_an_energy():
    model, _ = fit(jr.key(0), SAMPLES, **{**QUICK, "num_steps": 1})
    assert isinstance(model.network, EnergyMLP)


def test_deterministic_given_the_key():
    fits = [
        fit(key, SAMPLES, network=tiny(), **QUICK)[0]
        for key in (jr.key(3), jr.PRNGKey(3), jr.key(4))
    ]
    assert equal(fits[0], fits[1])
    assert not equal(fits[0], fits[2])


def test_location_scale_and_base_are_not_trained():
    model, _ = fit(jr.key(0), SAMPLES, network=tiny(), **QUICK)
    other, _ = fit(jr.key(1), SAMPLES, network=tiny(), **{**QUICK, "num_steps": 80})
    assert not equal(model.network, other.network)
    assert equal(model.base, other.base)
    np.testing.assert_array_equal(model.loc, other.loc)
    np.testing.assert_array_equal(model.scale, other.scale)


def test_global_standardisation_has_one_scale():
    options = quick(standardise="global")
    model, _ = fit(jr.key(0), SAMPLES, network=tiny(), **options)
    expected = np.sqrt(np.mean(SAMPLES.var(0)))
    np.testing.assert_allclose(model.scale, [expected, expected], rtol=1e-5)


def test_early_stopping_returns_the_best_weights():
    # 20 rows and ten thousand steps: the validation loss must turn.
    samples = draw_clusters(20, (2,))
    options = {**quick(patience=2), "num_steps": 10_000, "learning_rate": 0.02}
    network = EnergyMLP(2, width=32, depth=2, key=jr.key(1))
    model, history = fit(jr.key(0), samples, network=network, **options)
    assert history["stopped_early"]
    assert len(history["step"]) < 40
    best = np.argmin(history["validation_loss"])
    assert best == len(history["step"]) - 3
    assert history["best_step"] == history["step"][best]
    assert np.isfinite(model.log_density(jnp.zeros(2), 0.0))


def test_without_patience_all_steps_are_taken():
    options = {**quick(patience=None), "num_steps": 600, "learning_rate": 0.02}
    _, history = fit(jr.key(0), SAMPLES, network=tiny(), **options)
    np.testing.assert_array_equal(history["step"], [250, 500, 600])
    assert not history["stopped_early"]
    assert np.all(np.diff(history["wall_time"]) > 0.0)


def test_untrained_weights_are_kept_where_nothing_is_better():
    samples = np.random.default_rng(0).normal(size=(20, 2))
    options = {**QUICK, "num_steps": 250, "learning_rate": 0.1}
    model, history = fit(jr.key(0), samples, network=tiny(), **options)
    assert history["best_step"] == 0
    assert not model.uses_network
    x = samples[:3]
    untrained = dataclasses.replace(model, uses_network=True)
    np.testing.assert_allclose(
        model.log_density(x, 0.1), untrained.log_density(x, 0.1), rtol=1e-6
    )


def test_divergence_at_once_is_an_error():
    with pytest.raises(FloatingPointError, match="diverged before step 60.*learning_r"):
        fit(jr.key(0), SAMPLES, network=tiny(), **{**QUICK, "learning_rate": 1e30})


def make_nan(result):
    state, loss = result
    return jax.tree.map(lambda leaf: leaf * jnp.nan, state), loss


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (make_nan, "diverged before step 750.*Returning the best weights so far"),
        (interrupt, "interrupted after 500 of 1000 steps; .* best weights so far"),
    ],
    ids=["divergence", "interruption"],
)
def test_the_best_so_far_survives(monkeypatch, spoil, message):
    options = {**QUICK, "num_steps": 1000, "learning_rate": 1e-3}
    spoil_after(monkeypatch, 2, spoil)
    with pytest.warns(UserWarning, match=message):
        model, history = fit(jr.key(0), SAMPLES, network=tiny(), **options)
    np.testing.assert_array_equal(history["step"], [250, 500])
    assert all(np.isfinite(leaf).all() for leaf in weights(model))
    assert np.isfinite(model.log_density(jnp.zeros(2), 0.0))


def test_interruption_before_anything_is_passed_on(monkeypatch):
    spoil_after(monkeypatch, 0, interrupt)
    with pytest.raises(KeyboardInterrupt):
        fit(jr.key(0), SAMPLES, network=tiny(), **QUICK)


@pytest.mark.parametrize(
    ("progress_bar", "ci", "shown"),
    [(True, None, True), (True, "1", False), (False, None, False)],
)
def test_progress_bar(monkeypatch, capsys, progress_bar, ci, shown):
    monkeypatch.delenv("CI", raising=False)
    if ci is not None:
        monkeypatch.setenv("CI", ci)
    options = {**QUICK, "progress_bar": progress_bar}
    fit(jr.key(0), SAMPLES, network=tiny(), **options)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("validation=" in captured.err) == shown


class OwnEnergy(AbstractEnergyNetwork):
    """A user's own network: a quadratic form that grows at the data end."""

    root: jax.Array
    event_shape: tuple[int, ...] = eqx.field(static=True, default=(2,))

    def __call__(self, z, log_r):
        return jnp.sum((self.root @ z) ** 2) * jax.nn.sigmoid(-log_r)

    def hyperparameters(self):
        return {}


def test_own_network():
    network = OwnEnergy(root=0.1 * jnp.eye(2))
    model, _ = fit(jr.key(0), SAMPLES, network=network, **QUICK)
    assert isinstance(model, EnergyModel)
    assert isinstance(model.network, OwnEnergy)
    assert not np.array_equal(model.network.root, network.root)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_steps": 0}, ValueError, "`num_steps` must be at least 1; got 0"),
        ({"num_steps": 1.5}, TypeError, "`num_steps` must be an integer; got 1.5"),
        ({"num_steps": True}, TypeError, "`num_steps` must be an integer; got True"),
        ({"batch_size": 0}, ValueError, "`batch_size` must be at least 1; got 0"),
        ({"learning_rate": -1.0}, ValueError, "`learning_rate` must be positive"),
        ({"learning_rate": "a"}, TypeError, "`learning_rate` must be a real number"),
        ({"validation_fraction": 0.0}, ValueError, "`validation_fraction` must be bet"),
        ({"validation_fraction": 1}, ValueError, "`validation_fraction` must be betw"),
        ({"training": {"patience": 2}}, TypeError, "`training` must be a `numpyro_rtk"),
        (
            {"learning_rate": 0.1, "training": Training(optimizer=optax.sgd(0.1))},
            ValueError,
            "`learning_rate` must be None where .* got 0.1. Give the rate to the opt",
        ),
        ({"network": 3}, TypeError, "`network` must be an energy network.*got 3"),
        ({"network": EnergyMLP}, TypeError, "`network` must be .* instance, not the"),
        (
            {"network": tiny((3,))},
            ValueError,
            r"`network` must be made for the event shape of `samples`, \(2,\)",
        ),
        ({"samples": SAMPLES * np.nan}, ValueError, "`samples` must be finite"),
        ({"key": 0}, TypeError, "`key` must be one JAX random key"),
    ],
)
def test_refusals(options, error, message):
    arguments = {"key": jr.key(0), "samples": SAMPLES, **QUICK, **options}
    with pytest.raises(error, match=message):
        fit(**arguments)


# An asymmetric mixture on the line: two narrow modes of weights .3 and .7.
LINE_WEIGHT, LINE_MEANS, LINE_SD = 0.3, np.array([-4.0, 5.0]), 0.8


@pytest.fixture(scope="module")
def line_model():
    rng = np.random.default_rng(0)
    which = (rng.uniform(size=4000) > LINE_WEIGHT).astype(int)
    samples = LINE_MEANS[which] + LINE_SD * rng.normal(size=4000)
    model, _ = fit(
        jr.key(0),
        samples,
        network=EnergyMLP((), width=32, depth=2, key=jr.key(1)),
        num_steps=2500,
        batch_size=256,
        learning_rate=5e-3,
        progress_bar=False,
    )
    return model


@pytest.mark.parametrize("t", [0.0, 0.1, 1.0])
def test_learned_density_is_normalised(line_model, t):
    # The constant is learned, not imposed: 5 % is what 2,500 steps give.
    grid = jnp.linspace(-25.0, 25.0, 5001)
    density = jnp.exp(jax.jit(lambda x: line_model.log_density(x, t))(grid))
    assert abs(np.trapezoid(density, grid) - 1.0) < 0.05


def test_learned_modes_have_their_weights(line_model):
    grid = jnp.linspace(-25.0, 25.0, 5001)
    density = jnp.exp(jax.jit(lambda x: line_model.log_density(x, 0.0))(grid))
    left = grid < 0.5
    weight = np.trapezoid(density[left], grid[left]) / np.trapezoid(density, grid)
    # The sampling error of the weight itself is sqrt(.3 * .7 / 4000) = .007.
    assert abs(weight - LINE_WEIGHT) < 0.05


def test_learned_density_is_close_to_the_truth(line_model):
    grid = jnp.asarray(np.r_[np.linspace(-5.5, -2.5, 50), np.linspace(3.5, 6.5, 50)])
    parts = (
        np.log([LINE_WEIGHT, 1 - LINE_WEIGHT])
        - 0.5 * ((np.asarray(grid)[:, None] - LINE_MEANS) / LINE_SD) ** 2
    )
    exact = np.logaddexp(*parts.T) - 0.5 * np.log(2 * np.pi * LINE_SD**2)
    learned = jax.jit(lambda x: line_model.log_density(x, 0.0))(grid)
    assert np.sqrt(np.mean((learned - exact) ** 2)) < 0.15


def test_gaussian_data_give_the_gaussian():
    # The p = 9 moments from n = 5,000 rows leave an error of sd sqrt(p / n) = .04 in
    # the log density; the small network, after few steps, up to .1 more.
    rng = np.random.default_rng(0)
    root = np.array([[2.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.5, 0.3]])
    samples = rng.normal(size=(5000, 3)) @ root.T + [10.0, -5.0, 0.0]
    network = EnergyMLP(3, width=16, depth=2, key=jr.key(1))
    options = {"num_steps": 500, "batch_size": 128, "progress_bar": False}
    model, _ = fit(jr.key(0), samples, network=network, **options)
    x = rng.normal(size=(4000, 3)) @ root.T + [10.0, -5.0, 0.0]
    covariance = root @ root.T
    centred = x - [10.0, -5.0, 0.0]
    exact = -0.5 * np.sum(centred * np.linalg.solve(covariance, centred.T).T, 1)
    exact -= 0.5 * np.linalg.slogdet(2.0 * np.pi * covariance)[1]
    error = eqx.filter_jit(model.log_density)(jnp.asarray(x, jnp.float32), 0.0) - exact
    assert abs(np.mean(error)) < 0.05
    assert np.std(error) < 0.15

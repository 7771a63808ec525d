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
from numpyro_rtk.training import descent as descent_module
from numpyro_rtk.training.fit import FitResult, fit
from numpyro_rtk.training.loop import run_steps
from numpyro_rtk.training.options import Training

# One Gaussian: a mixture would leave the network of these tests nothing to learn.
ONE_GAUSSIAN = Training(num_components=1)
QUICK = {
    "num_steps": 60,
    "batch_size": 16,
    "progress_bar": False,
    "training": ONE_GAUSSIAN,
}


def quick(**options):
    """With these options of ``Training``."""
    return {**QUICK, "training": dataclasses.replace(ONE_GAUSSIAN, **options)}


def draw_clusters(num, event_shape):
    """Two tight clusters: a few steps are enough to beat the Gaussian base."""
    rng = np.random.default_rng(0)
    side = np.where(rng.uniform(size=num) < 0.3, -2.0, 1.0)
    centre = side.reshape(num, *(1 for _ in event_shape))
    return 5.0 + centre + 0.1 * rng.normal(size=(num, *event_shape))


SAMPLES = draw_clusters(60, (2,)) * [1.0, 5.0]


def tiny(event_shape=(2,), network_class=EnergyMLP):
    return network_class(event_shape, width=8, depth=2, key=jr.key(1))


def weights(model):
    return jax.tree.leaves(eqx.filter(model, eqx.is_array))


def equal(one, two):
    pairs = zip(weights(one), weights(two), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


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


def spoil_after(monkeypatch, calls, spoil):
    """Let ``spoil`` act on what the compiled steps return, after a few calls."""
    run_steps, count = descent_module.run_steps, iter(range(1000))

    def run(*arguments):
        result = run_steps(*arguments)
        return spoil(result) if next(count) >= calls else result

    monkeypatch.setattr(descent_module, "run_steps", run)


def make_nan(result):
    state, loss = result
    return jax.tree.map(lambda leaf: leaf * jnp.nan, state), loss


def interrupt(_):
    raise KeyboardInterrupt


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


# As an optimiser that `fit` does not know: no clipping, a schedule of its own.
OWN_OPTIMIZER = optax.adamw(optax.cosine_decay_schedule(0.02, 1000))


def test_a_given_optimizer_is_used_as_it_is(tmp_path):
    """Steps of one size, whatever the gradient: no clipping, no rate, no schedule."""
    step = lambda updates, _: jax.tree.map(lambda u: jnp.full_like(u, 1e-3), updates)
    options = quick(optimizer=optax.stateless(step))
    path = tmp_path / "fit.ckpt"
    fit(jr.key(0), SAMPLES, network=tiny(), checkpoint=path, **options)
    with np.load(path) as file:
        readout = file["['state'].weights.readout"]
    np.testing.assert_allclose(readout, 60 * 1e-3, rtol=1e-4)  # from zero


def test_an_optimizer_is_given_the_loss():
    seen = []

    def update(updates, state, params=None, **extra):
        seen.append(extra["value"])
        return updates, state

    own = optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
    optimizer = optax.chain(own, optax.scale(-1e-3))
    fit(jr.key(0), SAMPLES, network=tiny(), **quick(optimizer=optimizer))
    assert {value.shape for value in seen} == {()}


def test_a_second_fit_compiles_nothing():
    """Whatever its rate, its rows and its key; another optimiser object does."""

    def num_programs(**options):
        fit(jr.key(5), SAMPLES + 1.0, network=tiny(), **options)
        return run_steps._cached._cache_size()

    first = num_programs(**QUICK)
    assert num_programs(**QUICK, learning_rate=1e-4) == first
    assert num_programs(**quick(optimizer=OWN_OPTIMIZER)) == first + 1
    assert num_programs(**quick(optimizer=OWN_OPTIMIZER, patience=3)) == first + 1
    assert num_programs(**quick(optimizer=optax.adamw(0.01))) == first + 2


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


def interrupted_after(monkeypatch, calls, path, **options):
    """A fit that is stopped from the keyboard, with its checkpoint left behind."""
    with monkeypatch.context() as patch:
        spoil_after(patch, calls, interrupt)
        with pytest.warns(UserWarning, match="interrupted"):
            fit(jr.key(0), SAMPLES, network=tiny(), checkpoint=path, **options)


RESUMED = {
    "num_steps": 1000,
    "batch_size": 16,
    "training": Training(patience=None),
    "progress_bar": False,
}


def with_optimizer(optimizer):
    return {**RESUMED, "training": Training(patience=None, optimizer=optimizer)}


def test_a_resumed_fit_ends_as_an_unbroken_one(monkeypatch, tmp_path):
    whole, history = fit(jr.key(0), SAMPLES, network=tiny(), **RESUMED)
    path = tmp_path / "fit.ckpt"
    interrupted_after(monkeypatch, 2, path, **RESUMED)
    resumed, later = fit(jr.key(0), SAMPLES, network=tiny(), checkpoint=path, **RESUMED)
    assert equal(whole, resumed)
    for name in ("step", "loss", "validation_loss", "best_step"):
        np.testing.assert_array_equal(history[name], later[name])
    assert np.all(np.diff(later["wall_time"]) > 0)
    # a finished one gives its result at once
    again, _ = fit(jr.key(0), SAMPLES, network=tiny(), checkpoint=path, **RESUMED)
    assert equal(whole, again)


def test_a_fit_with_an_optimizer_is_resumed(monkeypatch, tmp_path):
    options = with_optimizer(OWN_OPTIMIZER)
    whole, _ = fit(jr.key(0), SAMPLES, network=tiny(), **options)
    path = tmp_path / "fit.ckpt"
    interrupted_after(monkeypatch, 2, path, **options)
    # the same again as another object, as in another process
    again = with_optimizer(optax.adamw(optax.cosine_decay_schedule(0.02, 1000)))
    resumed, _ = fit(jr.key(0), SAMPLES, network=tiny(), checkpoint=path, **again)
    assert equal(whole, resumed)


@pytest.mark.parametrize(
    ("optimizer", "named"),
    [
        (optax.adamw(optax.cosine_decay_schedule(0.02, 900)), r"\['optimizer'\]"),
        (optax.adamw(0.02), r"\['optimizer'\]"),
        (optax.sgd(0.02), r"\['optimizer'\]"),
        (None, r"\['learning_rate', 'optimizer'\]"),
    ],
    ids=["schedule", "no schedule", "kind", "default"],
)
def test_a_checkpoint_of_another_optimizer_is_refused(
    monkeypatch, tmp_path, optimizer, named
):
    path = tmp_path / "fit.ckpt"
    interrupted_after(monkeypatch, 1, path, **with_optimizer(OWN_OPTIMIZER))
    options = {"checkpoint": path, **with_optimizer(optimizer)}
    with pytest.raises(ValueError, match=f"differs in {named}"):
        fit(jr.key(0), SAMPLES, network=tiny(), **options)


@pytest.mark.parametrize(
    ("key", "samples", "options", "named"),
    [
        (1, SAMPLES, {}, "key"),
        (0, SAMPLES + 1.0, {}, "samples"),
        (0, SAMPLES, {"batch_size": 8}, "batch_size"),
        (0, SAMPLES, {"network": "other"}, "network"),
        (0, SAMPLES, {"training": Training(ema_decay=0.9)}, "ema_decay"),
    ],
)
def test_a_checkpoint_of_another_fit_is_refused(
    monkeypatch, tmp_path, key, samples, options, named
):
    path = tmp_path / "fit.ckpt"
    interrupted_after(monkeypatch, 1, path, **RESUMED)
    options = {"network": tiny(), **RESUMED, **options}
    if options["network"] == "other":
        options["network"] = EnergyMLP((2,), width=8, depth=2, key=jr.key(7))
    with pytest.raises(ValueError, match=rf"differs in \['{named}'\]"):
        fit(jr.key(key), samples, checkpoint=path, **options)


def test_a_damaged_checkpoint_is_refused(monkeypatch, tmp_path):
    path = tmp_path / "fit.ckpt"
    interrupted_after(monkeypatch, 1, path, **RESUMED)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"fit\.ckpt must .*Delete the file to begin"):
        fit(jr.key(0), SAMPLES, network=tiny(), checkpoint=path, **RESUMED)


@pytest.mark.parametrize(
    ("place", "error", "message"),
    [
        ("", ValueError, "`checkpoint` must be the path of a file"),
        ("none/fit.ckpt", FileNotFoundError, "folder that exists.*Make"),
    ],
)
def test_a_checkpoint_that_cannot_be_written_is_refused_at_once(
    tmp_path, place, error, message
):
    with pytest.raises(error, match=message):
        fit(jr.key(0), SAMPLES, network=tiny(), checkpoint=tmp_path / place, **RESUMED)


def test_a_checkpoint_takes_the_numbers_of_numpy(tmp_path):
    options = {**QUICK, "checkpoint": tmp_path / "fit.ckpt"}
    options["num_steps"] = np.int64(options["num_steps"])
    first, _ = fit(jr.key(0), SAMPLES, network=tiny(), **options)
    again, _ = fit(jr.key(0), SAMPLES, network=tiny(), **options)
    assert equal(first, again)

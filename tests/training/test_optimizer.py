"""An optimiser of the user's: used as it is, compiled for once, known to checkpoints."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from numpyro_rtk.training.fit import fit
from numpyro_rtk.training.loop import run_steps
from numpyro_rtk.training.options import Training
from tests.training.fits import (
    QUICK,
    RESUMED,
    SAMPLES,
    equal,
    interrupted_after,
    quick,
    tiny,
)

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


def with_optimizer(optimizer):
    return {**RESUMED, "training": Training(patience=None, optimizer=optimizer)}


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

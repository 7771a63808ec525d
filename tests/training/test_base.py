"""Who gets which base: one Gaussian, a mixture, a product of mixtures."""

import jax
import jax.random as jr
import numpy as np
import pytest

from numpyro_rtk.networks import EnergySet
from numpyro_rtk.training.base import fit_base
from numpyro_rtk.training.fit import fit
from numpyro_rtk.training.options import Training
from tests.oracles import SKEWED

OPTIONS = {"num_steps": 2, "batch_size": 16, "progress_bar": False}


def rows(num, seed):
    return SKEWED.draws(seed, num)


def test_one_gaussian_is_enough_for_one():
    z = np.random.default_rng(0).normal(size=(1200, 3))
    assert fit_base(z[200:], z[:200], None) is None
    assert fit_base(z[200:], z[:200], 1) is None


def test_the_same_rows_give_the_same_base():
    first, second = (
        fit_base(rows(600, 1), rows(100, 2), 3).as_base() for _ in range(2)
    )
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("num_components", [3, 1])
def test_fit_starts_from_a_mixture_and_may_be_told_not_to(num_components):
    training = Training(num_components=num_components)
    model, _ = fit(jr.key(0), rows(400, 4), training=training, **OPTIONS)
    # three components, or three pairs
    assert len(model.base.log_weights) in (num_components, 6)
    assert num_components > 1 or len(model.base.log_weights) == 1


def test_at_least_one_component():
    with pytest.raises(ValueError, match="`num_components` must be at least 1"):
        Training(num_components=0)


@pytest.mark.parametrize(
    ("num_components", "options", "message"),
    [
        (200, {}, "`num_components` must be at most 60"),
        (
            2,
            {"condition": np.arange(400.0)},
            "`num_components` must be None or 1 where",
        ),
    ],
)
def test_refusals(num_components, options, message):
    training = Training(num_components=num_components)
    with pytest.raises(ValueError, match=message):
        fit(jr.key(0), rows(400, 4), training=training, **options, **OPTIONS)


def test_an_exchangeable_network_keeps_its_gaussian():
    network = EnergySet((4, 2), key=jr.key(0))
    samples = np.random.default_rng(0).normal(size=(100, 4, 2))
    two = Training(num_components=2)
    with pytest.raises(ValueError, match="None or 1 for an exchangeable network"):
        fit(jr.key(0), samples, network=network, training=two, **OPTIONS)


def test_one_scale_for_what_shares_a_unit():
    near = rows(400, 4)
    model, _ = fit(jr.key(0), near, **OPTIONS)
    assert np.ptp(np.asarray(model.scale)) == 0.0
    model, _ = fit(jr.key(0), near * [1.0, 5.0], **OPTIONS)
    assert np.ptp(np.asarray(model.scale)) > 1.0

"""Checks of the training data: what is refused, and what is said."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from numpyro_rtk.training.data import check_key, check_samples, split_rows

RNG = np.random.default_rng(0)
SOUND = RNG.normal(size=(20, 3))


def replaced(index, value):
    samples = SOUND.copy()
    samples[index] = value
    return samples


@pytest.mark.parametrize(
    ("samples", "error", "message"),
    [
        (replaced((4, 1), np.nan), ValueError, r"1 NaN.* 1 of 20 rows.*\(4, 1\)"),
        (replaced(np.s_[5:7], np.inf), ValueError, r"6 NaN.* 2 of 20 rows.*\(5, 0\)"),
        (np.float64(3.0), ValueError, "shape .*got a scalar"),
        (SOUND[:9], ValueError, r"at least 10 rows; got shape \(9, 3\)"),
        (SOUND[:, :0], ValueError, r"at least one coordinate; got shape \(20, 0\)"),
        (replaced(np.s_[:, 1], 2.0), ValueError, r"vary in every .* index \(1,\)"),
        (
            replaced(np.s_[:, :], 2.0),
            ValueError,
            r"3 constant .* \(0,\), \(1,\), \(2,\)",
        ),
        (replaced(np.s_[:, 2], 0.0), ValueError, "drop these coord.*dequantisation"),
        (1e8 + SOUND, ValueError, "constant up to float32 rounding.*large offset"),
        (np.ones((20, 4, 4)), ValueError, r"16 constant.*\(1, 3\) and 8 more"),
        (np.ones((20, 3), int), TypeError, r"int64.*samples.astype\(float\).*dequan"),
        (np.ones((20, 3), bool), TypeError, "got an array of type bool"),
        (SOUND + 1j, TypeError, "got an array of type complex128"),
        ([["a", "b"]] * 20, TypeError, "got an array of type <U1"),
        ({"a": SOUND}, TypeError, r"one array.*dict of \['a'\]"),
    ],
)
def test_refused_samples(samples, error, message):
    with pytest.raises(error, match=message):
        check_samples(samples)


@pytest.mark.parametrize(
    "samples",
    [
        SOUND,
        SOUND[:, 0],
        SOUND.astype(np.float32),
        SOUND.tolist(),
        jnp.asarray(SOUND),
        jnp.asarray(SOUND, jnp.bfloat16),
        1000.0 + SOUND,
    ],
    ids=["double", "scalars", "single", "list", "jax", "bfloat16", "offset"],
)
def test_sound_samples_become_double(samples):
    checked = check_samples(samples)
    assert checked.dtype == np.float64
    assert checked.shape == np.shape(samples)


def test_typed_and_legacy_keys_are_one():
    typed = jr.key(7)
    for key in (typed, jr.PRNGKey(7), np.asarray(jr.PRNGKey(7))):
        assert jnp.issubdtype(check_key(key).dtype, jax.dtypes.prng_key)
        np.testing.assert_array_equal(jr.key_data(check_key(key)), jr.key_data(typed))


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (0, "got 0"),
        (None, "got None"),
        (jnp.zeros(2), "shape .2,. and type float32"),
        (jnp.zeros(3, jnp.uint32), "shape .3,. and type uint32"),
        (jr.split(jr.key(0)), "keys of shape .2,."),
        (jr.split(jr.PRNGKey(0)), "shape .2, 2. and type uint32"),
    ],
    ids=["integer", "none", "float", "length", "typed batch", "legacy batch"],
)
def test_what_is_not_a_key_is_refused(key, message):
    with pytest.raises(TypeError, match=f"`key` must be one JAX random key.*{message}"):
        check_key(key)


@pytest.mark.parametrize(("num", "fraction", "held"), [(100, 0.1, 10), (10, 0.01, 2)])
def test_split_is_a_partition(num, fraction, held):
    train, held_out = split_rows(jr.key(0), num, fraction)
    assert len(held_out) == held
    assert sorted([*train, *held_out]) == list(range(num))


def test_split_leaves_rows_to_train():
    train, _ = split_rows(jr.key(0), 10, 0.999)
    assert len(train) == 2
